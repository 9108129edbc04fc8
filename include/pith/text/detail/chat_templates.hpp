#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include <pith/core/fingerprint.hpp>
#include <pith/text/detail/chat_styles.hpp>

namespace pith::inline v0::detail {

/// A published chat format.
struct ChatStyle {
  std::string_view name;
  void (*write)(ChatWriter&, const ChatInput&);
  std::array<std::string_view, 3> stop;  ///< tokens that end an answer
  std::string_view date = {};            ///< the format's own default, or an example if needs_date
  bool needs_date = false;               ///< the format has no default
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
    ChatStyle{"gemma2", write_gemma2, {"<end_of_turn>", "<eos>"}},
    ChatStyle{"gemma3", write_gemma, {"<end_of_turn>", "<eos>"}},
    ChatStyle{"phi3", write_phi3, {"<|end|>", "<|endoftext|>", "<|assistant|>"}},
    ChatStyle{"phi4", write_phi4, {"<|im_end|>", "<|endoftext|>"}},
    ChatStyle{"phi4-first", write_phi4_first, {"<|im_end|>"}},
    ChatStyle{"granite3.0", write_granite3_0, {"<|end_of_text|>"}},
    ChatStyle{"granite3.3", write_granite3_3, {"<|end_of_text|>"}, "April 07, 2025", true},
    ChatStyle{"olmo2", write_olmo2, {"<|endoftext|>"}},
    ChatStyle{"glm4", write_glm4, {"<|user|>", "<|endoftext|>", "<|observation|>"}},
};

inline const ChatStyle* find_chat_style(std::string_view name) {
  for (const ChatStyle& style : chat_styles)
    if (style.name == name) return &style;
  return nullptr;
}

/// A published chat template by length and fingerprint of its text.
struct ChatTemplate {
  std::size_t size;
  std::uint64_t fingerprint;
  std::string_view style;
};
inline constexpr std::array<ChatTemplate, 1> chat_templates = {{{0, 0, "chatml"}}};

inline const ChatStyle* find_chat_template(std::string_view text) {
  Fingerprint hash;
  hash.string(text);
  for (const ChatTemplate& known : chat_templates)
    if (known.size == text.size() && known.fingerprint == hash.value()) return find_chat_style(known.style);
  return nullptr;
}

}  // namespace pith::inline v0::detail
