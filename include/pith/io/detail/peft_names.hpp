#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/io/detail/text.hpp>

// Parses tensor names of adapter files.
namespace pith { inline namespace v0 { namespace detail {

/// The part of a module that an adapter tensor holds. base_weight: a saved copy of the base's own weight; token_rows: single rows of a
/// table.
enum class PeftPart : std::uint8_t {
  down,
  up,
  up_bias,
  lambda,
  magnitude,
  token_rows,
  base_bias,
  base_weight,
  weight,
  bias,
  prompt,
  count
};
inline constexpr std::size_t num_peft_parts = static_cast<std::size_t>(PeftPart::count);

/// The components of a tensor name.
struct PeftName {
  std::string module = {};  ///< path inside the base model; empty for the rows of a prompt
  PeftPart part = PeftPart::prompt;
};

inline constexpr std::string_view peft_prefix = "base_model.model.";
inline constexpr std::string_view prompt_tensor = "prompt_embeddings";
inline constexpr std::size_t longest_module = 512;

struct PeftSuffix {
  std::string_view ending;
  PeftPart part;
};
/// LoRA's suffixes have `.weight`; those of AdaLoRA and the magnitude do not.
inline constexpr std::array<PeftSuffix, 16> peft_suffixes{{{".lora_A.weight", PeftPart::down},
                                                           {".lora_embedding_A", PeftPart::down},
                                                           {".lora_embedding_B", PeftPart::up},
                                                           {".token_adapter.trainable_tokens_delta", PeftPart::token_rows},
                                                           {".trainable_tokens_delta", PeftPart::token_rows},
                                                           {".ln_tuning_layers.weight", PeftPart::weight},
                                                           {".lora_A", PeftPart::down},
                                                           {".lora_B.weight", PeftPart::up},
                                                           {".lora_B.bias", PeftPart::up_bias},
                                                           {".lora_B", PeftPart::up},
                                                           {".lora_E", PeftPart::lambda},
                                                           {".lora_magnitude_vector", PeftPart::magnitude},
                                                           {".lora_magnitude_vector.weight", PeftPart::magnitude},
                                                           {".base_layer.bias", PeftPart::base_bias},
                                                           {".base_layer.weight", PeftPart::base_weight},
                                                           {".weight", PeftPart::weight}}};

/// Whether text is a dotted path such as model.layers.0.mlp.up_proj.
inline bool is_module_path(std::string_view path) {
  const auto letter = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  };
  if (path.empty() || path.size() > longest_module || path.front() == '.' || path.back() == '.') return false;
  for (std::size_t i = 0; i < path.size(); ++i)
    if (!letter(path[i]) && (path[i] != '.' || path[i - 1] == '.')) return false;
  return true;
}

/// Whether `name` is the last components of `path`.
inline bool ends_in_module(std::string_view path, std::string_view name) {
  return path.ends_with(name) && (path.size() == name.size() || path[path.size() - name.size() - 1] == '.');
}

/// Removes the adapter's own name, which PEFT omits but other writers may leave in.
inline std::string without_adapter_name(std::string name) {
  constexpr std::string_view own = ".default";
  for (const std::string_view ending : {".weight", ".bias", ""})
    if (const std::string marked = text(own, ending); name.ends_with(marked)) return name.erase(name.size() - marked.size(), own.size());
  return name;
}

/// Throws   FormatError for a name that is no part of an adapter; UnsupportedError for unsupported parts
inline PeftName parse_peft_name(std::string_view tensor, std::string_view file) {
  const auto of_tensor = [&](std::string_view why) { return text("pith: ", in_quotes(file), ": tensor ", in_quotes(tensor), why); };
  std::string name(tensor);
  if (name.starts_with(peft_prefix)) name.erase(0, peft_prefix.size());
  name = without_adapter_name(std::move(name));
  if (name == prompt_tensor) return {};
  if (name.find(".lora_diag") != std::string::npos) raise<UnsupportedError>(of_tensor(" belongs to KaSA, which is not supported"));
  PeftName out{.part = PeftPart::count};
  for (const PeftSuffix& suffix : peft_suffixes)
    if (out.part == PeftPart::count && name.ends_with(suffix.ending))
      out = {name.substr(0, name.size() - suffix.ending.size()), suffix.part};
  if (out.part == PeftPart::count && name.ends_with(".bias")) out = {name.substr(0, name.size() - 5), PeftPart::bias};
  if (out.part == PeftPart::count || out.module.find(".lora_") != std::string::npos || !is_module_path(out.module))
    raise<FormatError>(of_tensor(text(" is no part of an adapter: expected ", peft_prefix, "<module>.lora_A.weight, lora_B.weight, ",
                                      "lora_magnitude_vector, base_layer.bias, weight or bias, or ", prompt_tensor)));
  if (out.part == PeftPart::base_weight && !ends_in_module(out.module, "lm_head") && !ends_in_module(out.module, "embed_tokens"))
    raise<UnsupportedError>(of_tensor(
        " changes the base itself, which is not supported: save the adapter with save_embedding_layers=False if the base is as it was"));
  return out;
}

}}}  // namespace pith::v0::detail
