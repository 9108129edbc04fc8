#pragma once

#include <algorithm>
#include <iterator>
#include <string>
#include <string_view>

#include <pith/io/detail/family.hpp>
#include <pith/io/detail/family_fields.hpp>

// The families of decoders whose folders are read, one row each.
namespace pith { inline namespace v0 { namespace detail {

// clang-format off
inline constexpr Family families[] = {
    {.model_type = "llama", .people = "Llama 1 to 3, SmolLM 2, TinyLlama", .eos = {2}, .bos = 1, .attention_bias = Biases::qkvo, .mlp_bias = true},
    {.model_type = "mistral", .people = "Mistral 7B, Nemo, Small", .intermediate = 14336, .kv_heads = 8, .positions = 131072, .eos = {2}, .bos = 1,
     .windows = Windows::every, .window = 4096},
    {.model_type = "qwen2", .people = "Qwen 2 and 2.5", .intermediate = 22016, .kv_heads = 32, .positions = 32768,
     .windows = Windows::late, .window = 4096, .attention_bias = Biases::qkv_always},
    {.model_type = "qwen2_5_vl_text", .people = "the text model of Qwen 2.5 VL", .hidden = 8192, .intermediate = 29568, .layers = 80,
     .heads = 64, .kv_heads = 8, .positions = 32768, .eps = 1e-5, .theta = 1e6, .windows = Windows::late, .window = 4096,
     .first_windowed = 80, .mrope = true, .attention_bias = Biases::qkv_always},
    {.model_type = "qwen3", .people = "Qwen 3", .intermediate = 22016, .kv_heads = 32, .head_dim = 128, .positions = 32768,
     .norms = norms_before_and_qk, .qk_norm = QkNorm::head, .windows = Windows::late, .window = 4096, .attention_bias = Biases::qkvo},
    {.model_type = "smollm3", .people = "SmolLM 3", .hidden = 2048, .layers = 36, .heads = 16, .kv_heads = 4, .positions = 32768,
     .theta = 2e6, .tied = true, .eos = {128001}, .bos = 128000, .windows = Windows::without_rope, .ropeless = Ropeless::listed,
     .attention_bias = Biases::qkvo, .mlp_bias = true},
    {.model_type = "phi3", .people = "Phi 3, 3.5 and 4 mini", .hidden = 3072, .intermediate = 8192, .positions = 4096, .eps = 1e-5,
     .eos = {32000}, .bos = 1, .windows = Windows::every, .partial = true, .longrope = true, .fused_qkv = true, .fused_gate_up = true},
    {.model_type = "granite", .people = "Granite 3, dense", .eos = {2}, .bos = 1, .attention_bias = Biases::qkvo, .mlp_bias = true,
     .more = read_granite},
    {.model_type = "granitemoehybrid", .people = "Granite 4, dense", .intermediate = 1024, .intermediate_key = "shared_intermediate_size",
     .eos = {2}, .bos = 1, .attention_bias = Biases::qkvo, .fused_gate_up = true, .gate_up_name = "shared_mlp.input_linear",
     .down_name = "shared_mlp.output_linear", .inert_key = "mamba_d_state", .more = read_granite4},
    {.model_type = "ministral3", .people = "Ministral 3", .intermediate = 14336, .layers = 34, .kv_heads = 8, .head_dim = 128,
     .positions = 262144, .eps = 1e-5, .theta = 1e6, .eos = {2}, .bos = 1, .windows = Windows::every, .more = read_ministral3},
    {.model_type = "olmo2", .people = "OLMo 2", .eps = 1e-5, .eos = {50279}, .norms = norms_after_and_qk, .qk_norm = QkNorm::projection,
     .attention_bias = Biases::qkvo},
    {.model_type = "olmo3", .people = "OLMo 3", .eps = 1e-5, .theta = 0, .eos = {50279}, .norms = norms_after_and_qk,
     .qk_norm = QkNorm::projection, .windows = Windows::pattern, .window = 4096, .period = 4, .period_by_key = false, .two_ropes = true,
     .attention_bias = Biases::qkvo},
    {.model_type = "exaone4", .people = "EXAONE 4", .intermediate = 16384, .kv_heads = 32, .eps = 1e-5, .null_kv_heads = false,
     .eos = {2}, .bos = 0, .norms = norms_after_and_qk, .qk_norm = QkNorm::head, .windows = Windows::pattern, .window = 4096, .period = 4,
     .ropeless = Ropeless::full_beside},
    {.model_type = "gemma", .people = "Gemma 1", .hidden = 3072, .intermediate = 24576, .layers = 28, .heads = 16, .kv_heads = 16,
     .head_dim = 256, .positions = 8192, .null_kv_heads = false, .tied = true, .eos = {1}, .bos = 2, .norm_plus_one = true,
     .activation = GateActivation::gelu_tanh, .attention_bias = Biases::qkvo, .more = read_gemma},
    {.model_type = "gemma2", .people = "Gemma 2", .hidden = 2304, .intermediate = 9216, .layers = 26, .heads = 8, .kv_heads = 4,
     .head_dim = 256, .positions = 8192, .null_kv_heads = false, .tied = true, .eos = {1}, .bos = 2,
     .norms = {"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm", nullptr, nullptr},
     .norm_plus_one = true, .activation_key = "hidden_activation", .activation = GateActivation::gelu_tanh, .windows = Windows::pattern,
     .window = 4096, .period = 2, .period_by_key = false, .attention_bias = Biases::qkvo, .more = read_gemma2},
    {.model_type = "gemma3_text", .people = "Gemma 3", .hidden = 2304, .intermediate = 9216, .layers = 26, .heads = 8, .kv_heads = 4,
     .head_dim = 256, .positions = 131072, .theta = 1e6, .null_kv_heads = false, .tied = true, .eos = {1}, .bos = 2,
     .norms = {"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm", q_norm_name, k_norm_name},
     .qk_norm = QkNorm::head, .norm_plus_one = true, .activation_key = "hidden_activation", .activation = GateActivation::gelu_tanh,
     .windows = Windows::pattern, .window = 4096, .period = 6, .two_ropes = true, .local_theta_key = "rope_local_base_freq",
     .attention_bias = Biases::qkvo, .more = read_gemma3},
    {.model_type = "glm", .people = "GLM 4 9B of 2024", .intermediate = 13696, .layers = 40, .kv_heads = 2, .head_dim = 128,
     .positions = 131072, .eps = 1.5625e-7, .null_kv_heads = false, .eos = {151329, 151336, 151338}, .interleaved = true, .rotating = 0.5,
     .partial = true, .attention_bias = Biases::qkv, .attention_bias_default = true, .fused_gate_up = true},
    {.model_type = "glm4", .people = "GLM 4 0414", .intermediate = 13696, .layers = 40, .kv_heads = 2, .head_dim = 128,
     .positions = 131072, .eps = 1.5625e-7, .null_kv_heads = false, .eos = {151329, 151336, 151338},
     .norms = {"input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm", nullptr, nullptr},
     .interleaved = true, .rotating = 0.5, .partial = true, .attention_bias = Biases::qkv, .attention_bias_default = true,
     .fused_gate_up = true},
    {.model_type = "cohere2", .people = "Command R7B, Command A", .hidden = 8192, .intermediate = 22528, .layers = 40, .heads = 64,
     .positions = 8192, .eps = 1e-5, .tied = true, .eos = {255001}, .bos = 5,
     .norms = {"input_layernorm", nullptr, nullptr, nullptr, nullptr, nullptr}, .norm = NormKind::layer, .parallel = true,
     .windows = Windows::pattern, .window = 4096, .period = 4, .ropeless = Ropeless::full, .interleaved = true,
     .attention_bias = Biases::qkvo, .more = read_cohere2},
};
// clang-format on

/// The row of a model_type, or nullptr.
inline const Family* find_family(std::string_view model_type) {
  const auto* at = std::find_if(std::begin(families), std::end(families), [&](const Family& f) { return f.model_type == model_type; });
  return at == std::end(families) ? nullptr : at;
}

/// A model of several kinds of input, whose config.json holds the decoder's keys in text_config.
struct WrapperFamily {
  std::string_view model_type, text_type;  ///< text_type: the decoder's, where text_config names none
  std::string_view people;
  bool flat = false;                ///< without a text_config, the decoder's keys stand at top level
  std::string_view inert_key = {};  ///< a key of text_config that says what vision_prompt() does
};
inline constexpr WrapperFamily wrapper_families[] = {
    {"llava", "llama", "LLaVA 1.5"},
    {"llava_onevision", "qwen2", "LLaVA-OneVision"},
    {"idefics3", "llama", "Idefics 3"},
    {"smolvlm", "llama", "SmolVLM"},
    {"gemma3", "gemma3_text", "Gemma 3"},
    {"paligemma", "gemma", "PaliGemma", false, "use_bidirectional_attention"},
    {"mistral3", "mistral", "Mistral Small 3.1, Ministral 3"},
    {"qwen2_5_vl", "qwen2_5_vl_text", "Qwen 2.5 VL", true},
};
inline const WrapperFamily* find_wrapper(std::string_view model_type) {
  const auto* at = std::find_if(std::begin(wrapper_families), std::end(wrapper_families),
                                [&](const WrapperFamily& f) { return f.model_type == model_type; });
  return at == std::end(wrapper_families) ? nullptr : at;
}

/// The model types of all rows, for messages: "llama, mistral and qwen2".
inline std::string family_list() {
  std::string out;
  for (const Family& family : families) {
    if (!out.empty()) out += &family == std::end(families) - 1 ? " and " : ", ";
    out += family.model_type;
  }
  return out;
}

}}}  // namespace pith::v0::detail
