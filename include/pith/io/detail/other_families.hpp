#pragma once

#include <algorithm>
#include <iterator>
#include <string>
#include <string_view>

// Families that are not read, and what they would need.
namespace pith { inline namespace v0 { namespace detail {

struct OtherFamily {
  std::string_view model_type, missing;
};
inline constexpr std::string_view needs_experts = "mixtures of experts are missing", needs_recurrence = "recurrent layers are missing",
                                  needs_recurrence_and_experts = "recurrent layers and mixtures of experts are missing",
                                  needs_latents = "attention over latents (MLA) is missing",
                                  needs_latents_and_experts = "attention over latents (MLA) and mixtures of experts are missing",
                                  needs_layer_embeddings = "embeddings of each layer are missing",
                                  needs_mrope = "M-RoPE, three positions a token, is missing",
                                  needs_both_sides = "attention to later tokens is missing";

inline constexpr OtherFamily other_families[] = {
    {"mixtral", needs_experts},
    {"qwen2_moe", needs_experts},
    {"qwen3_moe", needs_experts},
    {"olmoe", needs_experts},
    {"flex_olmo", needs_experts},
    {"phimoe", needs_experts},
    {"granitemoe", needs_experts},
    {"granitemoeshared", needs_experts},
    {"gpt_oss", needs_experts},
    {"glm4_moe", needs_experts},
    {"ernie4_5_moe", needs_experts},
    {"dbrx", needs_experts},
    {"dots1", needs_experts},
    {"hunyuan_v1_moe", needs_experts},
    {"llama4", needs_experts},
    {"llama4_text", needs_experts},
    {"smallthinker", needs_experts},
    {"qwen3_next", needs_recurrence_and_experts},
    {"qwen3_5_moe", needs_recurrence_and_experts},
    {"qwen3_5_moe_text", needs_recurrence_and_experts},
    {"jamba", needs_recurrence_and_experts},
    {"lfm2_moe", needs_recurrence_and_experts},
    {"qwen3_5", needs_recurrence},
    {"qwen3_5_text", needs_recurrence},
    {"lfm2", needs_recurrence},
    {"lfm2_vl", needs_recurrence},
    {"mamba", needs_recurrence},
    {"mamba2", needs_recurrence},
    {"falcon_mamba", needs_recurrence},
    {"falcon_h1", needs_recurrence},
    {"bamba", needs_recurrence},
    {"zamba2", needs_recurrence},
    {"nemotron_h", needs_recurrence},
    {"recurrent_gemma", needs_recurrence},
    {"minicpm3", needs_latents},
    {"deepseek_v2", needs_latents_and_experts},
    {"deepseek_v3", needs_latents_and_experts},
    {"kimi_k2", needs_latents_and_experts},
    {"gemma3n", needs_layer_embeddings},
    {"gemma3n_text", needs_layer_embeddings},
    {"gemma4", needs_layer_embeddings},
    {"gemma4_text", needs_layer_embeddings},
    {"qwen2_vl", needs_mrope},
    {"qwen2_vl_text", needs_mrope},
    {"qwen3_vl", needs_mrope},
    {"qwen3_vl_text", needs_mrope},
    {"glm4v", needs_mrope},
    {"glm4v_text", needs_mrope},
};

/// What a model_type would need, or nothing if it is not known.
inline std::string_view missing_for(std::string_view model_type) {
  const auto* at =
      std::find_if(std::begin(other_families), std::end(other_families), [&](const OtherFamily& f) { return f.model_type == model_type; });
  return at == std::end(other_families) ? std::string_view() : at->missing;
}

/// Keys that only such models have; 0, null, false and an empty list mean that this one is none.
struct OtherKey {
  const char* key;
  std::string_view missing;
};
inline constexpr OtherKey other_keys[] = {
    {"num_experts", needs_experts},
    {"num_local_experts", needs_experts},
    {"n_routed_experts", needs_experts},
    {"moe_intermediate_size", needs_experts},
    {"kv_lora_rank", needs_latents},
    {"hidden_size_per_layer_input", needs_layer_embeddings},
    {"vocab_size_per_layer_input", needs_layer_embeddings},
    {"num_kv_shared_layers", "keys and values shared by layers are missing"},
    {"linear_num_value_heads", needs_recurrence},
    {"mamba_d_state", needs_recurrence},
    {"attn_output_gate", "a gate of the attention's output is missing"},
    {"use_qk_norm", "norms of queries and keys are missing in this family"},
    {"qk_layer_norms", "norms of queries and keys are missing in this family"},
    {"lm_head_bias", "a bias of the head is missing"},
    {"use_bidirectional_attention", needs_both_sides},
    {"is_encoder_decoder", "encoders are missing"},
    {"add_cross_attention", "attention to an encoder is missing"},
};

}}}  // namespace pith::v0::detail
