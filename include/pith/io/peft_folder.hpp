#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/detail/other_formats.hpp>
#include <pith/io/detail/peft_names.hpp>
#include <pith/io/detail/system_error.hpp>
#include <pith/io/detail/tensor_values.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/peft_config.hpp>
#include <pith/io/safetensors.hpp>

// Opens and checks an adapter folder as PEFT saves it.
namespace pith { inline namespace v0 {

/// One module of a PEFT folder: y = x Wᵀ + ((x downᵀ) ∘ gain) upᵀ, and its other trained parts.
template <class S = float> struct PeftModule {
  Matrix<S> down = {};       ///< [rank, in] A; no rows: no low-rank part
  Matrix<S> up = {};         ///< [out, rank] B
  Vector<S> gain = {};       ///< [rank] scale, times AdaLoRA's λ
  Vector<S> up_bias = {};    ///< [out] scale·β, or empty
  Vector<S> magnitude = {};  ///< [out] DoRA's m, or empty
  Matrix<S> weight = {};     ///< [out, in] replaces the base's, or empty; a norm's is [features, 1]
  Vector<S> bias = {};       ///< [out] replaces the base's, or empty
  /// [out, in] the base's own table or head, saved by PEFT because it was adapted or resized, or empty. Not a delta: if it differs from
  /// the base's, it replaces it.
  Matrix<S> base_weight = {};
};

/// A PEFT folder (adapter_config.json and adapter_model.safetensors), opened and checked as far as possible without its base.
///
/// Every tensor belongs to a module that the config asks for and has the config's rank; every module has all its tensors.
///
/// Cost     one pass over all numbers
/// Throws   FormatError naming file, tensor or key, expected and found; UnsupportedError naming the unsupported feature
class PeftFolder {
 public:
  explicit PeftFolder(const std::filesystem::path& folder) : PeftFolder{folder, read_peft_config(config_file(folder)), open(folder)} {}
  /// Overload for files that are already open; messages name `folder`.
  PeftFolder(std::filesystem::path folder, PeftConfig config, Safetensors file)
      : folder_(std::move(folder)), config_(std::move(config)), file_(std::move(file)) {
    for (const TensorInfo& tensor : file_.tensors()) place(tensor);
    if (prompt_tuned())
      check_prompt();
    else
      check_modules();
  }

  const std::filesystem::path& folder() const { return folder_; }
  const PeftConfig& config() const { return config_; }
  const Safetensors& file() const { return file_; }
  bool prompt_tuned() const { return config_.type == PeftType::prompt_tuning || config_.type == PeftType::prefix_tuning; }

  /// Paths of all modules that it changes, sorted.
  std::vector<std::string> modules() const {
    std::vector<std::string> names;
    for (const auto& [name, module] : modules_) names.push_back(name);
    return names;
  }
  /// Matching steps left after opening the folder; later matching continues with them.
  std::size_t steps_left() const { return steps_left_; }
  bool contains(std::string_view module) const { return modules_.find(module) != modules_.end(); }

  /// Throws   FormatError if there is no such module, or its scale does not fit in S
  template <class S = float> PeftModule<S> load(std::string_view name) const {
    const auto found = modules_.find(name);
    if (found == modules_.end()) refuse(detail::text("changes no module ", detail::in_quotes(name)));
    const Module& module = found->second;
    PeftModule<S> out;
    if (module[down]) {
      out.down = file_.load_matrix<S>(module[down]->name);
      out.up = file_.load_matrix<S>(module[up]->name);
      const S scale = this->scale<S>(name, module.alpha, out.down.rows());
      out.gain = Vector<S>::Constant(out.down.rows(), scale);
      if (module[lambda]) out.gain.array() *= file_.load_values<S>(module[lambda]->name).array();
      if (module[up_bias]) out.up_bias = scale * file_.load_values<S>(module[up_bias]->name);
      if (module[magnitude]) out.magnitude = file_.load_values<S>(module[magnitude]->name);
    }
    if (const TensorInfo* tensor = module[weight]) {
      out.weight.resize(tensor->shape[0], tensor->shape.size() == 2 ? tensor->shape[1] : 1);
      file_.copy_values(*tensor, out.weight.data());
    }
    if (module[base_weight]) out.base_weight = file_.load_matrix<S>(module[base_weight]->name);
    if (const TensorInfo* tensor = module[bias]) out.bias = file_.load_values<S>(tensor->name);
    return out;
  }

  /// The rows of prompt or prefix tuning: [num_virtual_tokens, features] or [num_virtual_tokens, 2·layers·kv heads·head_dim].
  template <class S = float> Matrix<S> load_prompt() const {
    if (!prompt_tuned()) refuse("is no prompt: it changes modules");
    return file_.load_matrix<S>(prompt_->name);
  }

  [[noreturn]] void refuse(const std::string& what) const { raise<FormatError>("pith: ", detail::in_quotes(folder_.string()), " ", what); }

 private:
  using Part = detail::PeftPart;
  static constexpr Part down = Part::down, up = Part::up, up_bias = Part::up_bias, lambda = Part::lambda, magnitude = Part::magnitude,
                        weight = Part::weight, bias = Part::bias, base_weight = Part::base_weight;
  struct Module {
    std::array<const TensorInfo*, detail::num_peft_parts> parts{};
    double alpha = 0;
    const TensorInfo* operator[](Part part) const { return parts[static_cast<std::size_t>(part)]; }
  };

  static std::filesystem::path config_file(const std::filesystem::path& folder) {
    const std::filesystem::path path = folder / "adapter_config.json";
    if (!detail::present(path))
      if (const std::string shown = detail::shown_format(folder, detail::other_adapters); !shown.empty())
        raise<FormatError>("pith: ", detail::in_quotes(folder.string()), " holds no adapter_config.json", shown);
    return path;
  }

  static Safetensors open(const std::filesystem::path& folder) {
    const std::filesystem::path path = folder / "adapter_model.safetensors";
    if (!detail::present(path))
      raise<FormatError>("pith: ", detail::in_quotes(folder.string()), " holds no adapter_model.safetensors",
                         detail::shown_format(folder, detail::other_adapters));
    return Safetensors::map(path);
  }

  [[noreturn]] void refuse(const TensorInfo& tensor, std::string_view what) const {
    raise<FormatError>("pith: ", detail::in_quotes(file_.name()), ": tensor ", detail::in_quotes(tensor.name), " ", what);
  }
  [[noreturn]] void missing(const std::string& module, std::string_view what) const {
    refuse(detail::text("holds no ", what, " of module ", detail::in_quotes(module)));
  }

  /// Calls use(name) for every name of modules_to_save that matches the module: the module's path ends in it (not necessarily at a
  /// component), or the module lies inside it.
  template <class Use> void each_saved_as(std::string_view module, const Use& use) {
    config_.targets.saved.each_ending(module, steps_left_, use);
    config_.targets.saved.each_within(module, steps_left_, use);
  }
  bool is_saved(std::string_view module) {
    bool saved = false;
    each_saved_as(module, [&](const std::string&) { saved = true; });
    return saved;
  }

  void place(const TensorInfo& tensor) {
    detail::PeftName name = detail::parse_peft_name(tensor.name, file_.name());
    if (!is_floating(tensor.dtype))
      raise<UnsupportedError>("pith: ", detail::in_quotes(file_.name()), ": tensor ", detail::in_quotes(tensor.name), " is ",
                              dtype_name(tensor.dtype), ", expected F32, F16, BF16 or F64");
    const Index bad = detail::first_non_finite<float>(tensor.dtype, file_.bytes(tensor).data(), tensor.elements());
    if (bad >= 0) refuse(tensor, detail::text("has NaN or infinity as value ", bad, ", expected finite numbers"));
    if (prompt_tuned() != (name.part == Part::prompt))
      refuse(tensor,
             prompt_tuned() ? "is no prompt_embeddings, expected nothing else" : "is a prompt, which the config's peft_type has none of");
    if (name.part == Part::base_bias) name.part = bias;
    if (name.part == weight && (detail::ends_in_module(name.module, "embed_tokens") || detail::ends_in_module(name.module, "lm_head")) &&
        !is_saved(name.module))
      name.part = base_weight;
    if (detail::heads_a_classifier(name.module))
      raise<UnsupportedError>("pith: ", detail::in_quotes(file_.name()), ": tensor ", detail::in_quotes(tensor.name),
                              " is of a classifier: adapters of classifiers and reward models are not supported");
    const TensorInfo*& slot = prompt_tuned() ? prompt_ : modules_[name.module].parts[static_cast<std::size_t>(name.part)];
    if (slot != nullptr) refuse(tensor, detail::text("is the same part as ", detail::in_quotes(slot->name)));
    slot = &tensor;
  }

  void check_modules() {
    if (modules_.empty()) refuse("holds no tensor");
    if (modules_.size() > max_peft_modules)
      refuse(detail::text("changes ", modules_.size(), " modules, expected at most ", max_peft_modules));
    for (auto& [name, module] : modules_) check_module(name, module);
    check_saved();
  }

  /// PEFT lets modules_to_save name modules that the model does not have, as long as it has one of them.
  void check_saved() {
    const std::vector<std::string>& names = config_.targets.saved.names();
    std::set<std::string_view> held;
    for (const auto& [name, module] : modules_) each_saved_as(name, [&](const std::string& saved) { held.insert(saved); });
    std::vector<std::string> missing;
    std::copy_if(names.begin(), names.end(), std::back_inserter(missing), [&](const std::string& saved) { return !held.contains(saved); });
    for (const std::string& saved : missing) {
      if (missing.size() == names.size() && detail::heads_a_classifier(saved))
        raise<UnsupportedError>("pith: ", detail::in_quotes(folder_.string()), " is of a classifier, as its modules_to_save (", saved,
                                ") says: adapters of classifiers and reward models are not supported");
      if (missing.size() == names.size() || detail::may_be_of_a_decoder(saved))
        refuse(detail::text("holds no tensor of ", detail::in_quotes(saved), ", which modules_to_save names"));
    }
  }

  void expect(const TensorInfo* tensor, const std::vector<Index>& shape, std::string_view why) const {
    if (tensor != nullptr && tensor->shape != shape)
      refuse(*tensor, detail::text("is ", detail::shape_list(tensor->shape), ", expected ", detail::shape_list(shape), why));
  }

  void check_prompt() const {
    if (prompt_ == nullptr) refuse("holds no tensor 'prompt_embeddings'");
    const Index dim = config_.token_dim, layers = config_.num_layers;
    const bool prefix = config_.type == PeftType::prefix_tuning;
    Index width = prompt_->shape.size() == 2 ? prompt_->shape[1] : 0;
    if (dim > 0 && !prefix) width = dim;
    if (dim > 0 && layers > 0 && prefix) width = detail::checked_product("PeftFolder", 2 * layers, dim);
    expect(prompt_, {config_.num_virtual_tokens, width}, " by num_virtual_tokens, token_dim and num_layers");
  }

  void check_module(const std::string& name, Module& module) {
    const bool saved = is_saved(name);
    if (saved || module[weight]) return check_replacement(name, module, saved);
    if (module[base_weight] && module[base_weight]->shape.size() != 2)
      refuse(*module[base_weight], detail::text("is ", detail::shape_list(module[base_weight]->shape), ", expected a matrix"));
    if (!module[down] && !module[up]) {  // only a bias, or only a copy of the base's weight
      for (const Part part : {up_bias, lambda, magnitude})
        if (module[part]) missing(name, "lora_A");
      if (!module[bias]) return;
      if (config_.bias != PeftBias::all) refuse(*module[bias], "is a bias, but the config's bias is not \"all\"");
      return expect(module[bias], {module[bias]->elements()}, " as a vector");
    }
    if (!module[down]) missing(name, "lora_A");
    if (!module[up]) missing(name, "lora_B");
    if (!config_.targets.match(name, steps_left_)) refuse(*module[down], "is of a module that the config's target_modules do not name");
    if (module[down]->shape.size() != 2)
      refuse(*module[down], detail::text("is ", detail::shape_list(module[down]->shape), ", expected a matrix"));
    if (module[up]->shape.size() != 2)
      refuse(*module[up], detail::text("is ", detail::shape_list(module[up]->shape), ", expected a matrix"));
    const Index rank = module[down]->shape[0], out = module[up]->shape[0];
    expect(module[up], {out, rank}, detail::text(": lora_A has rank ", rank));
    module.alpha = config_.alpha_of(name, steps_left_);
    const bool adalora = config_.type == PeftType::adalora;
    if (!adalora) expect(module[down], {config_.rank_of(name, steps_left_), module[down]->shape[1]}, " by r and rank_pattern");
    check_part(name, module, lambda, "lora_E", adalora, "peft_type is ADALORA", {rank, 1});
    check_part(name, module, magnitude, "lora_magnitude_vector", config_.dora, "use_dora is true", {out});
    check_part(name, module, up_bias, "lora_B.bias", config_.lora_bias, "lora_bias is true", {out});
    if (module[bias] && config_.bias == PeftBias::none) refuse(*module[bias], "is a bias, but the config's bias is \"none\"");
    expect(module[bias], {out}, " by lora_B");
    expect(module[base_weight], {out, module[down]->shape[1]}, " by lora_A and lora_B");
    for (const std::string_view prefix : {std::string_view(), detail::peft_prefix})
      if (const auto kept = config_.kept.find(detail::text(prefix, name, ".lora_E")); kept != config_.kept.end() && kept->second != rank)
        refuse(*module[lambda], detail::text("has ", rank, " rows, expected the ", kept->second, " that rank_pattern keeps of it"));
  }

  /// Checks that a part is present exactly where the config asks for it.
  void check_part(const std::string& name, const Module& module, Part part, std::string_view what, bool wanted, std::string_view why,
                  const std::vector<Index>& shape) const {
    if (wanted && !module[part]) missing(name, detail::text(what, ", though ", why));
    if (!wanted && module[part]) refuse(*module[part], detail::text("is not expected: not said that ", why));
    expect(module[part], shape, " by lora_A and lora_B");
  }

  void check_replacement(const std::string& name, const Module& module, bool saved) const {
    for (const Part part : {down, up, up_bias, lambda, magnitude, base_weight})
      if (module[part]) refuse(*module[part], "adapts a module that is replaced as a whole");
    if (!saved) refuse(*module[weight], "is a whole weight, but modules_to_save does not name its module");
    if (!module[weight]) missing(name, "weight");
    if (module[weight]->shape.empty() || module[weight]->shape.size() > 2)
      refuse(*module[weight], detail::text("is ", detail::shape_list(module[weight]->shape), ", expected a matrix or a vector"));
    expect(module[bias], {module[weight]->shape[0]}, " by its weight");
  }

  template <class S> S scale(std::string_view name, double alpha, Index rank) const {
    const double r = static_cast<double>(rank), initial = static_cast<double>(config_.rank);
    const double exact = config_.type == PeftType::adalora ? (alpha > 0 ? alpha : initial) / (initial + 1e-5)
                         : config_.rslora                  ? alpha / std::sqrt(r)
                                                           : alpha / r;
    const S scale = static_cast<S>(exact);
    if (!std::isfinite(scale))
      refuse(detail::text("scales module ", detail::in_quotes(name), " by an alpha of ", alpha, ", which is not a number any more"));
    return scale;
  }

  std::filesystem::path folder_;
  PeftConfig config_;
  Safetensors file_;
  std::map<std::string, Module, std::less<>> modules_;
  const TensorInfo* prompt_ = nullptr;
  std::size_t steps_left_ = detail::max_pattern_steps;
};

}}  // namespace pith::v0
