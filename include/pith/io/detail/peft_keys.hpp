#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <string_view>

#include <pith/io/detail/json_value.hpp>
#include <pith/io/detail/peft_kinds.hpp>
#include <pith/io/peft_type.hpp>

// Sorts the keys of adapter_config.json into known, inert and foreign ones.
namespace pith { inline namespace v0 { namespace detail {

inline bool one_of(std::string_view key, std::initializer_list<std::string_view> keys) {
  return std::find(keys.begin(), keys.end(), key) != keys.end();
}

/// A value under which any key has no effect.
inline bool is_inert(const Json& value) {
  return value.is_null() || value == false || (value.is_string() && value.get<std::string_view>().empty()) ||
         (value.is_number() && value.get<double>() == 0) || (value.is_structured() && value.empty());
}

/// A PEFT key that is read, or that changes no number of a trained adapter. `kind`: where type is other.
inline bool is_peft_key(PeftType type, const PeftKindEntry* kind, std::string_view key) {
  if (one_of(key, {"peft_type", "base_model_name_or_path", "task_type", "inference_mode", "auto_mapping", "revision", "peft_version",
                   "runtime_config", "modules_to_save"}))
    return true;
  if (type == PeftType::lora || type == PeftType::adalora) {
    if (one_of(key, {"r",
                     "lora_alpha",
                     "use_rslora",
                     "use_dora",
                     "lora_bias",
                     "fan_in_fan_out",
                     "bias",
                     "init_lora_weights",
                     "target_modules",
                     "exclude_modules",
                     "layers_to_transform",
                     "layers_pattern",
                     "rank_pattern",
                     "alpha_pattern",
                     "ensure_weight_tying",
                     "alora_invocation_tokens",
                     "trainable_token_indices",
                     "lora_dropout",
                     "loftq_config",
                     "eva_config",
                     "corda_config",
                     "lora_ga_config",
                     "velora_config",
                     "megatron_core",
                     "qalora_group_size",
                     "merge_weights"}))  // of PEFT before 0.3: affects only its own forward pass
      return true;
    return type == PeftType::adalora &&
           one_of(key, {"init_r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"});
  }
  if (type == PeftType::trainable_tokens) return one_of(key, {"token_indices", "target_modules", "init_weights"});
  if (type == PeftType::ln_tuning || type == PeftType::other)
    return one_of(key, {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"}) ||
           (kind != nullptr && (key == "bias" || kind->has_key(key) || key.find("dropout") != std::string_view::npos));
  if (one_of(key, {"num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers", "num_transformer_submodules"})) return true;
  return type == PeftType::prompt_tuning
             ? one_of(key, {"prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"})
             : one_of(key, {"encoder_hidden_size", "prefix_projection", "init_weights", "num_frozen_tokens"});
}

/// A key that is not PEFT's and names no method, as trainers and users add: PEFT passes over it.
inline bool is_foreign_key(std::string_view key, bool has_text) {
  if (key.starts_with("_") || key.starts_with("unsloth_")) return true;
  constexpr std::string_view of_methods[] = {"lora",  "alora", "adalora", "dora", "invocation", "use_",  "init",   "target", "trainable",
                                             "layer", "rank",  "alpha",   "scal", "module",     "peft_", "weight", "merge",  "bias"};
  return has_text && !key.ends_with("_config") && !key.ends_with("_pattern") &&
         std::none_of(std::begin(of_methods), std::end(of_methods), [&](std::string_view start) { return key.starts_with(start); });
}

}}}  // namespace pith::v0::detail
