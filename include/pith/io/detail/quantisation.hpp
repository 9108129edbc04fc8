#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/detail/name_index.hpp>
#include <pith/io/detail/pattern.hpp>

// What a config.json says of quantised weights.
namespace pith { inline namespace v0 { namespace detail {

enum class QuantMethod { none, awq, gptq, compressed_tensors, fp8, bitsandbytes };

/// Matching steps for all names and expressions of a config on all modules of a decoder: about half a second.
inline constexpr std::size_t quantisation_steps = std::size_t{1} << 27;

/// GPTQModel's `dynamic`: modules whose names begin as `names` does are quantised in another way, or not at all.
struct GptqOverride {
  Pattern names;
  bool skip = false;
  std::optional<Index> bits = {}, group = {};
};

enum class ScaleStrategy { tensor, channel, group, block };

/// How compressed-tensors stores the modules that a rule names.
struct CodeRule {
  Index bits = 8;
  bool floats = false;  ///< codes are F8_E4M3; false: whole numbers
  ScaleStrategy strategy = ScaleStrategy::channel;
  Index group = 0;                       ///< inputs of a scale (strategy group)
  Index block_rows = 0, block_cols = 0;  ///< strategy block
  bool packed = false;                   ///< format pack-quantized
};

/// A target of a rule, or an entry of `ignore`: a module's name, `re:` and the beginning of names, or a class.
class ModuleTarget {
 public:
  enum class Kind { name, expression, type };

  ModuleTarget(std::string_view said, std::string_view where) : said_(said) {
    if (said.starts_with("re:")) expression_.emplace(said.substr(3), where);
  }

  const std::string& said() const { return said_; }
  std::size_t states() const { return expression_ ? expression_->states() : 1; }
  /// How it names a linear module; empty: not at all.
  std::optional<Kind> names(std::string_view module, std::size_t& steps) const {
    spend_steps(steps, 1, module);
    if (expression_) return expression_->begins(module, steps) ? std::optional(Kind::expression) : std::nullopt;
    if (said_ == module) return Kind::name;
    return said_ == "Linear" ? std::optional(Kind::type) : std::nullopt;
  }

 private:
  std::string said_;
  std::optional<Pattern> expression_ = {};
};

/// quantization_config, read and found to be of a kind that is supported.
struct Quantisation {
  QuantMethod method = QuantMethod::none;
  std::string where = {};                ///< file and key, for messages
  Index bits = 0;                        ///< awq, gptq, bitsandbytes
  Index group = 0;                       ///< awq, gptq: inputs of a scale; -1: all
  bool zeros_minus_one = false;          ///< gptq v1
  bool act_order = false;                ///< gptq: inputs are in no order of groups, so each module has a g_idx
  Index block_rows = 0, block_cols = 0;  ///< fp8; 0: one scale for each tensor
  NameIndex skipped = {};                ///< modules left in float
  std::vector<GptqOverride> overrides = {};
  std::vector<std::pair<ModuleTarget, std::size_t>> targets = {};  ///< with the index of their rule
  std::vector<CodeRule> rules = {};
  std::vector<ModuleTarget> ignore = {};

  explicit operator bool() const { return method != QuantMethod::none; }

  /// Counts the states of one more expression.
  ///
  /// Throws   FormatError beyond a bound on all of them
  void hold(std::size_t states) {
    constexpr std::size_t most = std::size_t{1} << 18;
    states_ += states;
    if (states_ > most) raise<FormatError>(where, ": its expressions unfold to more than ", most, " states together: write simpler ones");
  }

  /// The override of a module, or nullptr.
  const GptqOverride* override_of(std::string_view module, std::size_t& steps) const {
    for (const GptqOverride& one : overrides)
      if (one.names.begins(module, steps)) return &one;
    return nullptr;
  }

  /// The rule of a module, or nullptr: of the targets that name it a name wins over an expression and that over a class, and of equals the
  /// first by their text; unless `ignore` names it.
  const CodeRule* rule_of(std::string_view module, std::size_t& steps) const {
    const std::pair<ModuleTarget, std::size_t>* best = nullptr;
    std::pair<ModuleTarget::Kind, std::string_view> rank;
    for (const auto& target : targets)
      if (const std::optional<ModuleTarget::Kind> kind = target.first.names(module, steps))
        if (const std::pair<ModuleTarget::Kind, std::string_view> its{*kind, target.first.said()}; best == nullptr || its < rank) {
          best = &target;
          rank = its;
        }
    if (best == nullptr) return nullptr;
    const bool ignored =
        std::any_of(ignore.begin(), ignore.end(), [&](const ModuleTarget& one) { return one.names(module, steps).has_value(); });
    return ignored ? nullptr : &rules[best->second];
  }

 private:
  std::size_t states_ = 0;
};

}}}  // namespace pith::v0::detail
