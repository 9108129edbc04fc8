#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/detail/families.hpp>
#include <pith/io/detail/json.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/name_index.hpp>
#include <pith/io/detail/pattern.hpp>
#include <pith/io/detail/peft_names.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/peft_type.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Module names in an adapter config: a list of last components or whole paths, or one expression for the whole path.
struct ModuleNames {
  NameIndex list = {};
  std::optional<Pattern> expression = {};

  bool empty() const { return list.empty() && !expression; }
  bool matches(std::string_view path, std::size_t& steps) const {
    return expression ? expression->matches(path, steps) : list.ends(path, steps);
  }
  bool names_exactly(std::string_view path) const { return list.contains(path); }

  /// Whether path is `name` or lies inside it, at any depth.
  static bool lies_in(std::string_view path, std::string_view name) {
    for (std::size_t at = path.find(name); at != std::string_view::npos && !name.empty(); at = path.find(name, at + 1)) {
      const std::size_t end = at + name.size();
      if ((at == 0 || path[at - 1] == '.') && (end == path.size() || path[end] == '.')) return true;
    }
    return false;
  }
};

/// The last component of a module's path.
inline std::string_view last_of(std::string_view path) { return path.substr(path.rfind('.') + 1); }  // npos + 1: all of it

/// Whether the module is a classification head that transformers or TRL put in place of the lm_head.
inline bool heads_a_classifier(std::string_view module) {
  constexpr std::string_view heads[] = {"score", "classifier", "qa_outputs", "v_head", "value_head", "reward_head", "summary"};
  return std::any_of(std::begin(heads), std::end(heads), [&](std::string_view head) { return ModuleNames::lies_in(module, head); });
}

/// Whether a module of some decoder can end in this modules_to_save name, or lie in it.
inline bool may_be_of_a_decoder(std::string_view saved) {
  const std::string_view last = last_of(saved);
  const auto ends = [&](std::string_view part) { return part.ends_with(last); };
  if (!last.empty() && std::all_of(last.begin(), last.end(), [](char c) { return c >= '0' && c <= '9'; })) return true;
  for (const std::string_view part :
       {"language_model", "text_model", "model", "layers", "self_attn", "mlp", "norm", "embed_tokens", "lm_head"})
    if (ends(part)) return true;
  for (const Family& family : families) {
    bool found = false;
    for_each_module(family, [&](const LayerModule& module) { found = found || ends(module.name); });
    for (const char* norm : family.norms) found = found || (norm != nullptr && ends(norm));
    if (found) return true;
  }
  return false;
}

/// The modules that an adapter config asks for.
struct TargetModules {
  bool said = false;        ///< false: the config names no targets, the tensors decide
  bool all_linear = false;  ///< every projection except the head
  ModuleNames names = {}, excluded = {};
  NameIndex saved = {};                       ///< modules_to_save: modules replaced as a whole
  std::vector<Index> layers = {};             ///< layers_to_transform, sorted; empty: all
  std::vector<Pattern> layers_patterns = {};  ///< must precede a layer's number, as `.*\.(name)`; empty: anything

  bool match(std::string_view path, std::size_t& steps) const {
    if (excluded.matches(path, steps)) return false;
    if (saved.within(path, steps)) return false;
    if (!said) return true;
    if (all_linear) return !ends_in_module(path, "lm_head");
    if (names.names_exactly(path)) return true;  // a whole path is not filtered by layer, as in PEFT
    if (!names.matches(path, steps)) return false;
    if (layers.empty()) return true;
    const std::optional<Index> layer = layer_of(path, steps);
    return layer && std::binary_search(layers.begin(), layers.end(), *layer);
  }

 private:
  /// The number in the first `.name.number.`; the leading dot is required.
  std::optional<Index> layer_of(std::string_view path, std::size_t& steps) const {
    for (std::size_t dot = path.find('.'); dot != std::string_view::npos; dot = path.find('.', dot + 1)) {
      std::size_t end = dot + 1;
      Index number = 0;
      for (; end < path.size() && end - dot < 10 && path[end] >= '0' && path[end] <= '9'; ++end) number = 10 * number + (path[end] - '0');
      if (end == dot + 1 || end == path.size() || path[end] != '.') continue;
      const std::string_view before = path.substr(0, dot);
      const bool named = layers_patterns.empty() ? before.find('.') != std::string_view::npos
                                                 : std::any_of(layers_patterns.begin(), layers_patterns.end(),
                                                               [&](const Pattern& pattern) { return pattern.matches(before, steps); });
      if (named) return number;
    }
    return {};
  }
};

/// A key of the config as messages name it.
inline std::string of_key(const JsonFields& c, std::string_view key) { return text("pith: ", in_quotes(c.file()), ": key '", key, "'"); }

/// A list of names, or one name.
inline std::vector<std::string> name_list(const JsonFields& c, const char* key) {
  const auto* list = c.find(key);
  std::vector<std::string> out;
  if (list == nullptr) return out;
  if (list->is_string()) return {list->get<std::string>()};
  if (!list->is_array() || list->size() > max_peft_names) c.refuse(key, text("a list of names, at most ", max_peft_names));
  for (const auto& name : *list) {
    if (!name.is_string() || name.get<std::string_view>().empty()) c.refuse(key, "a list of names");
    out.push_back(name.get<std::string>());
  }
  return out;
}

/// target_modules, exclude_modules, modules_to_save, layers_to_transform and layers_pattern.
inline TargetModules read_target_modules(const JsonFields& c) {
  TargetModules targets;
  const auto module_names = [&](const char* key) {
    const auto* names = c.find(key);
    ModuleNames out;
    if (names != nullptr && names->is_string())
      out.expression.emplace(names->get<std::string_view>(), of_key(c, key));
    else
      out.list = name_list(c, key);
    return out;
  };
  const auto* names = c.find("target_modules");
  targets.said = names != nullptr;
  targets.all_linear = names != nullptr && *names == "all-linear";
  if (!targets.all_linear) targets.names = module_names("target_modules");
  targets.excluded = module_names("exclude_modules");
  targets.saved = name_list(c, "modules_to_save");
  const auto* layers = c.find("layers_to_transform");
  const auto layer = [&](const Json& n) {
    targets.layers.push_back(c.whole("layers_to_transform", n, 0, (std::numeric_limits<Token>::max)()));
  };
  if (layers != nullptr && layers->is_array())
    for (const auto& n : *layers) layer(n);
  else if (layers != nullptr)
    layer(*layers);
  std::sort(targets.layers.begin(), targets.layers.end());
  if (!targets.layers.empty() && targets.names.list.empty()) c.refuse("layers_to_transform", "nothing unless target_modules is a list");
  const std::vector<std::string> patterns = name_list(c, "layers_pattern");
  if (patterns.size() > 64) c.refuse("layers_pattern", "at most 64 names");
  for (const std::string& name : patterns) {
    if (targets.layers.empty()) c.refuse("layers_pattern", "nothing unless layers_to_transform is given");
    static_cast<void>(Pattern(name, of_key(c, "layers_pattern")));
    targets.layers_patterns.emplace_back(text(".*\\.(", name, ")"), of_key(c, "layers_pattern"));
  }
  return targets;
}

}}}  // namespace pith::v0::detail
