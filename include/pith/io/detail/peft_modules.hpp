#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/detail/peft_kind.hpp>
#include <pith/io/detail/peft_names.hpp>
#include <pith/io/detail/tensor_values.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/peft_config.hpp>
#include <pith/io/safetensors.hpp>

// The modules of a PEFT folder, checked against its config as far as that goes without the base.
namespace pith { inline namespace v0 { namespace detail {

/// A tensor in bfloat16: as stored, or rounded to nearest from float.
///
/// Throws   FormatError if a number becomes infinite
inline Matrix<bfloat16> load_bf16(const Safetensors& file, const TensorInfo& tensor) {
  if (tensor.dtype == DType::bf16) return file.load_matrix<bfloat16>(tensor.name);
  Matrix<bfloat16> rounded = file.load_matrix<float>(tensor.name).template cast<bfloat16>();
  const Index bad = first_non_finite<float>(DType::bf16, reinterpret_cast<const std::byte*>(rounded.data()), rounded.size());
  if (bad >= 0)
    raise<FormatError>("pith: ", in_quotes(file.name()), ": tensor ", in_quotes(tensor.name), ": value ", bad,
                       " does not fit bfloat16: load it with FactorType::as_stored");
  return rounded;
}

/// The tensors of one module.
struct PeftTensors {
  std::array<const TensorInfo*, num_peft_parts> parts{};
  KindTensors of_kind{};  ///< where the config has a kind, in the order of its endings
  Index rank = 0;
  double alpha = 0;
  const TensorInfo*& operator[](PeftPart part) { return parts[static_cast<std::size_t>(part)]; }
  const TensorInfo* operator[](PeftPart part) const { return parts[static_cast<std::size_t>(part)]; }
  bool has_kind() const { return of_kind != KindTensors{}; }
  /// Whether its low-rank part adapts a table of embeddings: A [rank, vocabulary], B [features, rank].
  bool of_table() const { return (*this)[PeftPart::down] && (*this)[PeftPart::down]->name.find(".lora_embedding_") != std::string::npos; }
};
using PeftModules = std::map<std::string, PeftTensors, std::less<>>;

/// The config's entry for single rows of a module; nullptr: none. A head without an entry follows the table, in a tied base.
inline const PeftTokenRows* token_rows_of(const PeftConfig& config, std::string_view module) {
  for (const bool follows : {false, true})
    for (const PeftTokenRows& rows : config.token_rows)
      if (follows ? ends_in_module(module, "lm_head") && ends_in_module(rows.module, "embed_tokens") : ends_in_module(module, rows.module))
        return &rows;
  return nullptr;
}

/// Checks modules one by one. Every refusal names file, tensor or module, expected and found.
class PeftModuleChecks {
 public:
  PeftModuleChecks(const std::filesystem::path& folder, const PeftConfig& config, const Safetensors& file, const PeftModules& modules,
                   std::size_t& steps)
      : folder_(folder), config_(config), file_(file), modules_(modules), steps_left_(steps) {}

  /// Calls use(name) for every name of modules_to_save that matches the module: the module's path ends in it (not necessarily at a
  /// component), or the module lies inside it.
  template <class Use> void each_saved_as(std::string_view module, const Use& use) const {
    config_.targets.saved.each_ending(module, steps_left_, use);
    config_.targets.saved.each_within(module, steps_left_, use);
  }
  /// Whether the module is replaced as a whole: by modules_to_save, as a norm of LN_TUNING, or as the head of a table that is, if both are
  /// tied.
  bool is_saved(std::string_view module) const {
    bool saved = config_.type == PeftType::ln_tuning && config_.targets.match(module, steps_left_);
    each_saved_as(module, [&](const std::string&) { saved = true; });
    if (!saved && config_.ensure_weight_tying && ends_in_module(module, "lm_head"))
      for (const std::string& name : config_.targets.saved.names()) saved = saved || ends_in_module(name, "embed_tokens");
    return saved;
  }

  [[noreturn]] void refuse(const TensorInfo& tensor, std::string_view what) const {
    raise<FormatError>("pith: ", in_quotes(file_.name()), ": tensor ", in_quotes(tensor.name), " ", what);
  }
  [[noreturn]] void refuse(const std::string& what) const { raise<FormatError>("pith: ", in_quotes(folder_.string()), " ", what); }
  [[noreturn]] void missing(const std::string& module, std::string_view what) const {
    refuse(text("holds no ", what, " of module ", in_quotes(module)));
  }

  void expect(const TensorInfo* tensor, const std::vector<Index>& shape, std::string_view why) const {
    if (tensor != nullptr && tensor->shape != shape)
      refuse(*tensor, text("is ", shape_list(tensor->shape), ", expected ", shape_list(shape), why));
  }

  void check_module(const std::string& name, PeftTensors& module) const {
    const bool saved = is_saved(name);
    if (module.has_kind()) return check_kind(name, module, saved);
    if (saved || module[weight]) return check_replacement(name, module, saved);
    if (module[token_rows]) check_token_rows(name, module);
    if (module[base_weight] && module[base_weight]->shape.size() != 2)
      refuse(*module[base_weight], text("is ", shape_list(module[base_weight]->shape), ", expected a matrix"));
    if (!module[down] && !module[up]) {  // only a bias, a copy of the base's weight, or single rows
      for (const Part part : {up_bias, lambda, magnitude})
        if (module[part]) missing(name, "lora_A");
      if (!module[bias]) return;
      if (config_.bias != PeftBias::all) refuse(*module[bias], "is a bias, but the config's bias is not \"all\"");
      return expect(module[bias], {module[bias]->elements()}, " as a vector");
    }
    if (!module[down]) missing(name, "lora_A");
    if (!module[up]) missing(name, "lora_B");
    if (!config_.targets.match(name, steps_left_) && !follows_table(name))
      refuse(*module[down], "is of a module that the config's target_modules do not name");
    if (config_.type != PeftType::lora && config_.type != PeftType::adalora)
      refuse(*module[down], text("is of LoRA, but the config's peft_type is ", config_.type_name));
    if (module.of_table()) check_table(name, module);
    if (module[down]->shape.size() != 2) refuse(*module[down], text("is ", shape_list(module[down]->shape), ", expected a matrix"));
    if (module[up]->shape.size() != 2) refuse(*module[up], text("is ", shape_list(module[up]->shape), ", expected a matrix"));
    const Index rank = module[down]->shape[0], out = module[up]->shape[0];
    expect(module[up], {out, rank}, text(": lora_A has rank ", rank));
    module.alpha = config_.alpha_of(name, steps_left_);
    const bool adalora = config_.type == PeftType::adalora;
    if (!adalora) expect(module[down], {config_.rank_of(name, steps_left_), module[down]->shape[1]}, " by r and rank_pattern");
    check_part(name, module, lambda, "lora_E", adalora, "peft_type is ADALORA", {rank, 1});
    check_part(name, module, magnitude, "lora_magnitude_vector", config_.dora, "use_dora is true", {out});
    check_part(name, module, up_bias, "lora_B.bias", config_.lora_bias, "lora_bias is true", {out});
    if (module[bias] && config_.bias == PeftBias::none) refuse(*module[bias], "is a bias, but the config's bias is \"none\"");
    expect(module[bias], {out}, " by lora_B");
    const Index in = module[down]->shape[1];
    expect(module[base_weight], module.of_table() ? std::vector<Index>{in, out} : std::vector<Index>{out, in}, " by lora_A and lora_B");
    for (const std::string_view prefix : {std::string_view(), peft_prefix})
      if (const auto kept = config_.kept.find(text(prefix, name, ".lora_E")); kept != config_.kept.end() && kept->second != rank)
        refuse(*module[lambda], text("has ", rank, " rows, expected the ", kept->second, " that rank_pattern keeps of it"));
  }

 private:
  using Part = PeftPart;
  static constexpr Part down = Part::down, up = Part::up, up_bias = Part::up_bias, lambda = Part::lambda, magnitude = Part::magnitude,
                        token_rows = Part::token_rows, weight = Part::weight, bias = Part::bias, base_weight = Part::base_weight;

  /// Checks that a part is present exactly where the config asks for it.
  void check_part(const std::string& name, const PeftTensors& module, Part part, std::string_view what, bool wanted, std::string_view why,
                  const std::vector<Index>& shape) const {
    if (wanted && !module[part]) missing(name, text(what, ", though ", why));
    if (!wanted && module[part]) refuse(*module[part], text("is not expected: not said that ", why));
    expect(module[part], shape, " by lora_A and lora_B");
  }

  void check_kind(const std::string& name, PeftTensors& module, bool saved) const {
    const TensorInfo& any = **std::find_if(module.of_kind.begin(), module.of_kind.end(), [](const TensorInfo* t) { return t != nullptr; });
    for (const TensorInfo* part : module.parts)
      if (part != nullptr) refuse(*part, text("is of a module that ", config_.type_name, " changes, expected its own tensors alone"));
    if (saved) refuse(any, "adapts a module that is replaced as a whole");
    if (!config_.targets.match(name, steps_left_)) refuse(any, "is of a module that the config's target_modules do not name");
    module.rank = config_.rank_of(name, steps_left_);
    module.alpha = config_.alpha_of(name, steps_left_);
    config_.kind->check({file_, name, module.of_kind, module.rank, module.alpha});
  }

  void check_token_rows(const std::string& name, const PeftTensors& module) const {
    const TensorInfo& rows = *module[token_rows];
    if (!ends_in_module(name, "embed_tokens") && !ends_in_module(name, "lm_head"))
      refuse(rows, "replaces single rows of a module that is neither embed_tokens nor lm_head");
    const PeftTokenRows* wanted = token_rows_of(config_, name);
    if (wanted == nullptr) refuse(rows, "replaces single rows, but the config names no tokens for them");
    if (module[down] || module[up]) refuse(rows, "replaces single rows of a module that LoRA adapts, which is not supported");
    if (rows.shape.size() != 2 || rows.shape[0] != static_cast<Index>(wanted->ids.size()))
      refuse(rows, text("is ", shape_list(rows.shape), ", expected a row for each of ", wanted->ids.size(), " tokens of the config"));
  }

  /// Whether a head is adapted because its table is and both are tied, though the targets do not name it.
  bool follows_table(std::string_view name) const {
    if (!config_.ensure_weight_tying || !ends_in_module(name, "lm_head")) return false;
    for (const auto& [other, module] : modules_)
      if (ends_in_module(other, "embed_tokens") && module.of_table()) return true;
    return false;
  }
  void check_table(const std::string& name, const PeftTensors& module) const {
    if (!ends_in_module(name, "embed_tokens")) refuse(*module[down], "adapts a table of embeddings, which this module is not");
    if (module[up]->name.find(".lora_embedding_B") == std::string::npos) missing(name, "lora_embedding_B");
    if (config_.dora || config_.lora_bias || !config_.invocation.empty() || config_.type == PeftType::adalora)
      raise<UnsupportedError>("pith: ", in_quotes(file_.name()), ": tensor ", in_quotes(module[down]->name),
                              " adapts a table of embeddings, which plain LoRA and rsLoRA can: no DoRA, lora_bias, AdaLoRA or invocation");
  }

  void check_replacement(const std::string& name, const PeftTensors& module, bool saved) const {
    for (const Part part : {down, up, up_bias, lambda, magnitude, token_rows, base_weight})
      if (module[part]) refuse(*module[part], "adapts a module that is replaced as a whole");
    if (!saved) refuse(*module[weight], "is a whole weight, but modules_to_save does not name its module");
    if (!module[weight]) missing(name, "weight");
    if (module[weight]->shape.empty() || module[weight]->shape.size() > 2)
      refuse(*module[weight], text("is ", shape_list(module[weight]->shape), ", expected a matrix or a vector"));
    expect(module[bias], {module[weight]->shape[0]}, " by its weight");
  }

  const std::filesystem::path& folder_;
  const PeftConfig& config_;
  const Safetensors& file_;
  const PeftModules& modules_;
  std::size_t& steps_left_;
};

}}}  // namespace pith::v0::detail
