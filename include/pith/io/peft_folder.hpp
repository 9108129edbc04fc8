#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
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
#include <pith/io/detail/peft_modules.hpp>
#include <pith/io/detail/peft_names.hpp>
#include <pith/io/detail/system_error.hpp>
#include <pith/io/detail/tensor_values.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/peft_config.hpp>
#include <pith/io/peft_type.hpp>
#include <pith/io/safetensors.hpp>

// Opens and checks an adapter folder as PEFT saves it.
namespace pith { inline namespace v0 {

/// One module of a PEFT folder: y = x Wᵀ + ((x downᵀ) ∘ gain) upᵀ, and its other trained parts.
template <class S = float> struct PeftModule {
  Matrix<S> down = {};                                ///< [rank, in] A; no rows: no low-rank part
  Matrix<S> up = {};                                  ///< [out, rank] B
  Matrix<bfloat16> narrow_down = {}, narrow_up = {};  ///< A and B in bfloat16, in place of down and up, or empty
  Vector<S> gain = {};                                ///< [rank] scale, times AdaLoRA's λ
  Vector<S> up_bias = {};                             ///< [out] scale·β, or empty
  Vector<S> magnitude = {};                           ///< [out] DoRA's m, or empty
  Matrix<S> weight = {};                              ///< [out, in] replaces the base's, or empty; a norm's is [features, 1]
  Vector<S> bias = {};                                ///< [out] replaces the base's, or empty
  /// [out, in] the base's own table or head, saved by PEFT because it was adapted or resized, or empty. Not a delta: if it differs from
  /// the base's, it replaces it.
  Matrix<S> base_weight = {};
  bool unnamed = false;  ///< base_weight is saved as a whole weight that nothing in the config asks for: only the base's own numbers fit
  Matrix<S> token_rows = {};  ///< rows that replace those of PeftFolder::token_ids(), or empty

  Index in() const { return (std::max)(down.cols(), narrow_down.cols()); }  ///< of the low-rank part; 0: there is none
  Index out() const { return (std::max)(up.rows(), narrow_up.rows()); }
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
  template <class S = float> PeftModule<S> load(std::string_view name, FactorType factors = FactorType::wide) const {
    const auto found = modules_.find(name);
    if (found == modules_.end()) refuse(detail::text("changes no module ", detail::in_quotes(name)));
    const Module& module = found->second;
    PeftModule<S> out;
    if (module[down]) {
      const bool stored = module[down]->dtype == DType::bf16 && module[up]->dtype == DType::bf16;
      if (factors == FactorType::bf16 || (factors == FactorType::as_stored && stored)) {
        out.narrow_down = detail::load_bf16(file_, *module[down]);
        out.narrow_up = detail::load_bf16(file_, *module[up]);
      } else {
        out.down = file_.load_matrix<S>(module[down]->name);
        out.up = file_.load_matrix<S>(module[up]->name);
      }
      const Index rank = module[down]->shape[0];
      const S scale = this->scale<S>(name, module.alpha, rank);
      out.gain = Vector<S>::Constant(rank, scale);
      if (module[lambda]) out.gain.array() *= file_.load_values<S>(module[lambda]->name).array();
      if (module[up_bias]) out.up_bias = scale * file_.load_values<S>(module[up_bias]->name);
      if (module[magnitude]) out.magnitude = file_.load_values<S>(module[magnitude]->name);
    }
    if (const TensorInfo* tensor = module[weight]) {
      out.weight.resize(tensor->shape[0], tensor->shape.size() == 2 ? tensor->shape[1] : 1);
      file_.copy_values(*tensor, out.weight.data());
    }
    if (module[base_weight]) {
      out.base_weight = file_.load_matrix<S>(module[base_weight]->name);
      out.unnamed = !module[base_weight]->name.ends_with(".base_layer.weight");
    }
    if (module[Part::token_rows]) out.token_rows = file_.load_matrix<S>(module[Part::token_rows]->name);
    if (const TensorInfo* tensor = module[bias]) out.bias = file_.load_values<S>(tensor->name);
    return out;
  }

  /// Whether the kind of the config changes this module.
  bool has_kind(std::string_view module) const {
    const auto found = modules_.find(module);
    return found != modules_.end() && found->second.has_kind();
  }
  /// A module that the kind of the config changes.
  detail::KindModule kind_module(std::string_view name) const {
    const auto found = modules_.find(name);
    if (found == modules_.end() || !found->second.has_kind()) refuse(detail::text("changes no module ", detail::in_quotes(name)));
    return {file_, found->first, found->second.of_kind, found->second.rank, found->second.alpha};
  }
  const detail::KindTensors& shared_tensors() const { return shared_; }
  /// Whether the module's low-rank part is of a table of embeddings: down [rank, vocabulary], up [features, rank].
  bool adapts_table(std::string_view module) const {
    const auto found = modules_.find(module);
    return found != modules_.end() && found->second.of_table();
  }
  /// The tokens whose rows a module's token_rows replace.
  const std::vector<Token>& token_ids(std::string_view module) const { return detail::token_rows_of(config_, module)->ids; }

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
  using Module = detail::PeftTensors;
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

  detail::PeftModuleChecks checks() { return {folder_, config_, file_, modules_, steps_left_}; }

  void place(const TensorInfo& tensor) {
    if (!is_floating(tensor.dtype))
      raise<UnsupportedError>("pith: ", detail::in_quotes(file_.name()), ": tensor ", detail::in_quotes(tensor.name), " is ",
                              dtype_name(tensor.dtype), ", expected F32, F16, BF16 or F64");
    const Index bad = detail::first_non_finite<float>(tensor.dtype, file_.bytes(tensor).data(), tensor.elements());
    if (bad >= 0) checks().refuse(tensor, detail::text("has NaN or infinity as value ", bad, ", expected finite numbers"));
    if (config_.kind != nullptr && place_in_kind(tensor)) return;
    detail::PeftName name = detail::parse_peft_name(tensor.name, file_.name());
    if (prompt_tuned() != (name.part == Part::prompt))
      checks().refuse(tensor, prompt_tuned() ? "is no prompt_embeddings, expected nothing else"
                                             : "is a prompt, which the config's peft_type has none of");
    if (name.part == Part::base_bias) name.part = bias;
    if (name.part == weight && (detail::ends_in_module(name.module, "embed_tokens") || detail::ends_in_module(name.module, "lm_head")) &&
        !checks().is_saved(name.module))
      name.part = base_weight;
    if (detail::heads_a_classifier(name.module))
      raise<UnsupportedError>("pith: ", detail::in_quotes(file_.name()), ": tensor ", detail::in_quotes(tensor.name),
                              " is of a classifier: adapters of classifiers and reward models are not supported");
    const TensorInfo*& slot = prompt_tuned() ? prompt_ : modules_[name.module].parts[static_cast<std::size_t>(name.part)];
    if (slot != nullptr) checks().refuse(tensor, detail::text("is the same part as ", detail::in_quotes(slot->name)));
    slot = &tensor;
  }

  /// Whether the tensor is one of the config's kind, of one module or of all.
  bool place_in_kind(const TensorInfo& tensor) {
    const auto put = [&](const TensorInfo*& slot) {
      if (slot != nullptr) checks().refuse(tensor, detail::text("is the same part as ", detail::in_quotes(slot->name)));
      slot = &tensor;
      return true;
    };
    const auto shared = config_.kind->shared_names(), endings = config_.kind->endings();
    std::string name = detail::without_adapter_name(tensor.name);
    for (std::size_t i = 0; i < shared.size(); ++i)
      if (name == detail::text("base_model.", shared[i])) return put(shared_[i]);
    if (name.starts_with(detail::peft_prefix)) name.erase(0, detail::peft_prefix.size());
    for (std::size_t i = 0; i < endings.size(); ++i) {
      const std::size_t length = endings[i].size() + 1;
      if (name.size() <= length || !name.ends_with(endings[i]) || name[name.size() - length] != '.') continue;
      name.erase(name.size() - length);
      if (!detail::is_module_path(name)) checks().refuse(tensor, "is of no module path");
      return put(modules_[name].of_kind[i]);
    }
    return false;
  }

  void check_modules() {
    if (modules_.empty()) refuse("holds no tensor");
    if (modules_.size() > max_peft_modules)
      refuse(detail::text("changes ", modules_.size(), " modules, expected at most ", max_peft_modules));
    for (auto& [name, module] : modules_) checks().check_module(name, module);
    if (config_.kind != nullptr) config_.kind->check_shared(file_, shared_);
    check_saved();
    check_tokens();
  }

  /// PEFT lets modules_to_save name modules that the model does not have, as long as it has one of them.
  void check_saved() {
    const std::vector<std::string>& names = config_.targets.saved.names();
    std::set<std::string_view> held;
    for (const auto& [name, module] : modules_) checks().each_saved_as(name, [&](const std::string& saved) { held.insert(saved); });
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

  /// Every entry of the config's tokens has its rows, or those of an equal list: in a tied base these are stored once.
  void check_tokens() const {
    for (const detail::PeftTokenRows& wanted : config_.token_rows) {
      bool found = false;
      for (const auto& [name, module] : modules_)
        found = found || (module[Part::token_rows] &&
                          (detail::ends_in_module(name, wanted.module) || detail::token_rows_of(config_, name)->ids == wanted.ids));
      if (!found) refuse(detail::text("holds no rows of single tokens of module ", detail::in_quotes(wanted.module)));
      for (const std::string& saved : config_.targets.saved.names())
        if (detail::ends_in_module(saved, wanted.module) || detail::ends_in_module(wanted.module, saved))
          refuse(detail::text("replaces module ", detail::in_quotes(saved), " as a whole and single rows of it, expected one of both"));
    }
  }

  void check_prompt() {
    if (prompt_ == nullptr) refuse("holds no tensor 'prompt_embeddings'");
    const Index dim = config_.token_dim, layers = config_.num_layers;
    const bool prefix = config_.type == PeftType::prefix_tuning;
    Index width = prompt_->shape.size() == 2 ? prompt_->shape[1] : 0;
    if (dim > 0 && !prefix) width = dim;
    if (dim > 0 && layers > 0 && prefix) width = detail::checked_product("PeftFolder", 2 * layers, dim);
    checks().expect(prompt_, {config_.num_virtual_tokens, width}, " by num_virtual_tokens, token_dim and num_layers");
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
  detail::PeftModules modules_;
  detail::KindTensors shared_{};  ///< of the config's kind
  const TensorInfo* prompt_ = nullptr;
  std::size_t steps_left_ = detail::max_pattern_steps;
};

}}  // namespace pith::v0
