#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include <pith/core/fingerprint.hpp>
#include <pith/text/detail/chat_styles.hpp>
#include <pith/text/detail/chat_styles_granite.hpp>
#include <pith/text/detail/chat_styles_inst.hpp>
#include <pith/text/detail/chat_styles_roles.hpp>

// The published chat formats, and the templates that identify them.
namespace pith { inline namespace v0 { namespace detail {

/// A published chat format.
struct ChatStyle {
  std::string_view name;
  void (*write)(ChatWriter&, const ChatInput&);
  std::array<std::string_view, 3> stop;  ///< tokens that end an answer
  std::string_view date = {};            ///< the format's default, or an example if needs_date
  bool needs_date = false;               ///< the format has no default date
  bool thinking = true;                  ///< unless asked otherwise, the model may reason before it answers
};

inline constexpr std::array chat_styles = {
    ChatStyle{"chatml", write_chatml, {"<|im_end|>"}},
    ChatStyle{"qwen2", write_qwen2, {"<|im_end|>", "<|endoftext|>"}},
    ChatStyle{"qwen2.5", write_qwen2_5, {"<|im_end|>", "<|endoftext|>"}},
    ChatStyle{"qwen3", write_qwen3, {"<|im_end|>", "<|endoftext|>"}},
    ChatStyle{"smollm2", write_smollm2, {"<|im_end|>"}},
    ChatStyle{"smollm3", write_smollm3, {"<|im_end|>"}, "04 September 2026", true},
    ChatStyle{"smollm3-unsloth", write_smollm3_unsloth, {"<|im_end|>"}},
    ChatStyle{"llama2", write_llama2, {"</s>"}},
    ChatStyle{"llama3", write_llama3, {"<|eot_id|>", "<|end_of_text|>"}},
    ChatStyle{"llama3.1", write_llama3_1, {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"}, "26 Jul 2024"},
    ChatStyle{"llama3.2", write_llama3_1, {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"}, "26 Jul 2024"},
    ChatStyle{"mistral-v1-old", write_mistral_v1_old, {"</s>"}},
    ChatStyle{"mistral-v1", write_mistral_v1, {"</s>"}},
    ChatStyle{"mistral-v3", write_mistral_v3, {"</s>"}},
    ChatStyle{"mistral-nemo", write_mistral_nemo, {"</s>"}},
    ChatStyle{"mistral-v7", write_mistral_v7, {"</s>"}},
    ChatStyle{"mistral-v7-tekken", write_mistral_v7_tekken, {"</s>"}},
    ChatStyle{"gemma2", write_gemma2, {"<end_of_turn>", "<eos>"}},
    ChatStyle{"gemma3", write_gemma, {"<end_of_turn>", "<eos>"}},
    ChatStyle{"phi3", write_phi3, {"<|end|>", "<|endoftext|>", "<|assistant|>"}},
    ChatStyle{"phi3-mini", write_phi3_mini, {"<|end|>", "<|endoftext|>", "<|assistant|>"}},
    ChatStyle{"phi3-medium", write_phi3_medium, {"<|end|>", "<|endoftext|>"}},
    ChatStyle{"phi4-mini", write_phi4_mini, {"<|end|>", "<|endoftext|>"}},
    ChatStyle{"phi4", write_phi4, {"<|im_end|>", "<|endoftext|>"}},
    ChatStyle{"phi4-first", write_phi4_first, {"<|im_end|>"}},
    ChatStyle{"granite3.0", write_granite3_0, {"<|end_of_text|>"}},
    ChatStyle{"granite3.1", write_granite3_1, {"<|end_of_text|>"}, "April 07, 2025", true},
    ChatStyle{"granite3.3", write_granite3_3, {"<|end_of_text|>"}, "April 07, 2025", true},
    ChatStyle{"granite4", write_granite4, {"<|end_of_text|>"}},
    ChatStyle{"granite4-nano", write_granite4_nano, {"<|end_of_text|>"}},
    ChatStyle{"olmo2", write_olmo2, {"<|endoftext|>"}},
    ChatStyle{"tulu3", write_tulu3, {"<|end_of_text|>"}},
    ChatStyle{"tinyllama", write_tinyllama, {"</s>"}},
    ChatStyle{"exaone4", write_exaone4, {"[|endofturn|]"}, {}, false, false},
    ChatStyle{"command-r7b", write_command_r7b, {"<|END_OF_TURN_TOKEN|>"}},
    ChatStyle{"glm4", write_glm4, {"<|user|>", "<|endoftext|>", "<|observation|>"}},
};

inline const ChatStyle* find_chat_style(std::string_view name) {
  for (const ChatStyle& style : chat_styles)
    if (style.name == name) return &style;
  return nullptr;
}

/// A published chat template, identified by length and hash of its text without a last newline, which files have or lack; it renders the
/// same either way.
struct ChatTemplate {
  std::size_t size;
  std::uint64_t fingerprint;
  std::string_view style;
};

/// Each template renders all golden cases of its style exactly as the style does.
inline constexpr std::array chat_templates = {
    ChatTemplate{196, 0xF893FAEEA1DA0A3C, "chatml"},             // OpenHermes-2.5-Mistral-7B and many others
    ChatTemplate{199, 0x8D8669DADE67BF95, "chatml"},             // the same, its newlines spelled \n
    ChatTemplate{291, 0x17C70A7FE68BFC13, "chatml"},             // dolphin-2.7-mixtral-8x7b
    ChatTemplate{2630, 0xD7F1FC7E05FF10C7, "chatml"},            // Qwen3-4B-Instruct-2507
    ChatTemplate{4063, 0x195D397C97807E60, "chatml"},            // cogito-v1-preview-qwen-14B
    ChatTemplate{209, 0xC672084D1869A433, "chatml"},             // Nous-Hermes-2-Mixtral-8x7B-DPO
    ChatTemplate{328, 0x53F9592DC497D80E, "qwen2"},              // Qwen2-0.5B-Instruct
    ChatTemplate{341, 0x942FA51729120B2F, "qwen2"},              // Hermes-3-Llama-3.1-70B
    ChatTemplate{1017, 0x53558FB5CD5AE1C0, "qwen2"},             // Qwen2.5-VL, text alone
    ChatTemplate{2506, 0x26B022D343A45A7C, "qwen2.5"},           // Qwen2.5-7B-Instruct, Qwen2.5-Coder-1.5B-Instruct
    ChatTemplate{2508, 0x45A19074217DB604, "qwen2.5"},           // Qwen2.5-0.5B-Instruct, first publication
    ChatTemplate{4116, 0x753C8414113AA9DA, "qwen3"},             // Qwen3-0.6B
    ChatTemplate{368, 0xFDE8BC6B06EF6AC5, "smollm2"},            // SmolLM2-135M-Instruct
    ChatTemplate{3794, 0xFE067F5FB6556763, "smollm3-unsloth"},   // unsloth/SmolLM3-3B
    ChatTemplate{815, 0x8232672B4ADF7E39, "llama2"},             // Llama-2-7b-chat-hf
    ChatTemplate{813, 0xF644A04F1877128D, "llama2"},             // Llama-2-7b-chat-hf, the other spelling
    ChatTemplate{389, 0x1C881AD6766BADC0, "llama3"},             // Meta-Llama-3-8B-Instruct
    ChatTemplate{4613, 0x15BB6B85DD4B727D, "llama3.1"},          // Llama-3.1-8B-Instruct, Llama-3.3-70B-Instruct
    ChatTemplate{3826, 0x247190AC72DAC830, "llama3.2"},          // Llama-3.2-3B-Instruct
    ChatTemplate{470, 0x2C4D042AB4BB3E8C, "mistral-v1-old"},     // Mistral-7B-Instruct-v0.2, first publication
    ChatTemplate{1057, 0x421B83D7A96AE0B4, "mistral-v1"},        // Mistral-7B-Instruct-v0.2, Mixtral-8x7B-Instruct-v0.1
    ChatTemplate{3958, 0x98B15903178BD4CC, "mistral-v3"},        // Mistral-Large-Instruct-2407
    ChatTemplate{3944, 0x8AB60FFA9690C702, "mistral-nemo"},      // Mistral-Nemo-Instruct-2407
    ChatTemplate{3777, 0x6E1F1DA5108CFFB7, "mistral-nemo"},      // Mistral-Nemo-Instruct-2407, another publication
    ChatTemplate{423, 0x5077F2E95F67F322, "mistral-v7"},         // Mistral-Large-Instruct-2411
    ChatTemplate{415, 0x18FC96551D88F28D, "mistral-v7-tekken"},  // Mistral-Small-24B-Instruct-2501
    ChatTemplate{591, 0xE34605ADADAB5ABC, "gemma2"},             // gemma-2-2b-it
    ChatTemplate{594, 0x2AF79C320289DF09, "gemma2"},             // gemma-7b-it: the same, its newlines spelled \n
    ChatTemplate{1531, 0x0AFC8801F3D8A065, "gemma3"},            // gemma-3-270m-it
    ChatTemplate{1374, 0x47495A9DE25A6210, "gemma3"},            // gemma-3-1b-it, whose system text is a list of parts
    ChatTemplate{430, 0x958596020D2B8151, "phi3"},               // Phi-3.5-mini-instruct
    ChatTemplate{407, 0xBB03FBED08056F35, "phi3-mini"},          // Phi-3-mini-4k-instruct
    ChatTemplate{254, 0xC2DC52D244135157, "phi3-medium"},        // Phi-3-medium-4k-instruct
    ChatTemplate{423, 0xF52041986DDFD2C0, "phi4-mini"},          // Phi-4-mini-instruct
    ChatTemplate{462, 0x9C7D3C7399B615A8, "phi4"},               // phi-4
    ChatTemplate{377, 0x97F47F794CE7E1BA, "phi4-first"},         // phi-4, first publication
    ChatTemplate{1185, 0x0C47EA5AAEF1D953, "granite3.0"},        // granite-3.0-8b-instruct
    ChatTemplate{3543, 0xF8D16893F0701D23, "granite3.1"},        // granite-3.1-1b-a400m-instruct
    ChatTemplate{4341, 0x0BAB5CEDB4DA058F, "granite3.1"},        // granite-3.2-8b-instruct
    ChatTemplate{4566, 0x0E2BA5B0BEA0610E, "granite3.3"},        // granite-3.3-2b-instruct
    ChatTemplate{6099, 0x96572AA20E7A2C6F, "granite4"},          // granite-4.0-micro
    ChatTemplate{6418, 0xE42FD6AD65AD6101, "granite4-nano"},     // granite-4.0-350m
    ChatTemplate{508, 0xC986F2F584C24706, "olmo2"},              // OLMo-2-1124-7B-Instruct
    ChatTemplate{493, 0x0EB2B3759D02D237, "tulu3"},              // Llama-3.1-Tulu-3-70B
    ChatTemplate{410, 0xA6A530B9C09E227D, "tinyllama"},          // TinyLlama-1.1B-Chat-v1.0
    ChatTemplate{5469, 0x306C377981C1C735, "exaone4"},           // EXAONE-4.0, without the list of tools
    ChatTemplate{12769, 0xC578099F3FBA17B1, "command-r7b"},      // c4ai-command-r7b-12-2024
};

inline const ChatStyle* find_chat_template(std::string_view text, std::span<const ChatTemplate> templates = chat_templates) {
  if (text.ends_with('\n')) text.remove_suffix(1);
  Fingerprint hash;
  hash.string(text);
  for (const ChatTemplate& known : templates)
    if (known.size == text.size() && known.fingerprint == hash.value()) return find_chat_style(known.style);
  return nullptr;
}

}}}  // namespace pith::v0::detail
