#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/pattern.hpp>
#include <pith/io/text.hpp>

namespace pith::inline v0::detail {

/// Names of modules as adapter configs give them: a list of last components (or whole paths), or one expression for the whole path.
struct ModuleNames {
  std::vector<std::string> list = {};
  std::optional<Pattern> expression = {};

  bool empty() const { return list.empty() && !expression; }
  bool matches(std::string_view path, std::size_t& steps) const {
    if (expression) return expression->matches(path, steps);
    return std::any_of(list.begin(), list.end(), [&](const std::string& name) { return ends_in(path, name); });
  }
  bool names_exactly(std::string_view path) const { return std::find(list.begin(), list.end(), path) != list.end(); }

  /// The last components of path are name.
  static bool ends_in(std::string_view path, std::string_view name) {
    return path.ends_with(name) && (path.size() == name.size() || path[path.size() - name.size() - 1] == '.');
  }
  /// path is name or lies in it, at any depth.
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

/// Heads that transformers and TRL put on a decoder instead of its own.
inline bool heads_a_classifier(std::string_view module) {
  constexpr std::string_view heads[] = {"score", "classifier", "qa_outputs", "v_head", "value_head", "reward_head", "summary"};
  return std::any_of(std::begin(heads), std::end(heads), [&](std::string_view head) { return ModuleNames::lies_in(module, head); });
}

/// A name of modules_to_save that a module of a llama, mistral or qwen2 decoder may end in, or lie in; the others no such decoder has.
inline bool may_be_of_a_decoder(std::string_view saved) {
  constexpr std::string_view parts[] = {
      "model",     "layers",  "self_attn", "mlp",          "q_proj",          "k_proj",  "v_proj",    "o_proj",
      "gate_proj", "up_proj", "norm",      "embed_tokens", "input_layernorm", "lm_head", "down_proj", "post_attention_layernorm"};
  const std::string_view last = last_of(saved);
  const bool number = !last.empty() && std::all_of(last.begin(), last.end(), [](char c) { return c >= '0' && c <= '9'; });
  return number || std::any_of(std::begin(parts), std::end(parts), [&](std::string_view part) { return part.ends_with(last); });
}

/// Which modules of a model an adapter config asks for.
struct TargetModules {
  bool said = false;        ///< false: the tensors alone tell
  bool all_linear = false;  ///< every projection but the head
  ModuleNames names = {}, excluded = {};
  std::vector<std::string> saved = {};        ///< modules_to_save: whole modules, never wrapped
  std::vector<Index> layers = {};             ///< layers_to_transform; empty: all
  std::vector<Pattern> layers_patterns = {};  ///< what must stand before a layer's number, as `.*\.(name)`; empty: anything

  bool match(std::string_view path, std::size_t& steps) const {
    if (excluded.matches(path, steps)) return false;
    if (std::any_of(saved.begin(), saved.end(), [&](const std::string& name) { return ModuleNames::lies_in(path, name); })) return false;
    if (!said) return true;
    if (all_linear) return !ModuleNames::ends_in(path, "lm_head");
    if (names.names_exactly(path)) return true;  // a whole path passes by the layers, as in the reference
    if (!names.matches(path, steps)) return false;
    if (layers.empty()) return true;
    const std::optional<Index> layer = layer_of(path, steps);
    return layer && std::find(layers.begin(), layers.end(), *layer) != layers.end();
  }

 private:
  /// The number after the first `.name.number.`; the leading dot must be there.
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

/// Numbers by module: the first key that matches wins, in the order of the file. Keys are expressions of the end of a path.
template <class N> class ModuleNumbers {
 public:
  void add(std::string_view key, std::string_view where, N value) {
    const bool plain = std::all_of(key.begin(), key.end(), [](char c) { return PatternProgram::is_word(c) || c == '.' || c == '-'; });
    entries_.push_back({plain ? std::string(key) : std::string(), value, {}});
    if (plain) return;
    static_cast<void>(Pattern(key, where));  // alone: no parenthesis may leak out of the group around it
    entries_.back().pattern.emplace(text("(.*\\.)?(", key, ")$"), where);
    states_ += entries_.back().pattern->states();
    if (states_ > most_states)
      raise<FormatError>(text(where, ": its expressions unfold to more than ", most_states, " states together: write simpler ones"));
  }

  bool empty() const { return entries_.empty(); }
  N of(std::string_view path, N otherwise, std::size_t& steps) const {
    for (const Entry& entry : entries_)
      if (entry.pattern ? entry.pattern->matches(path, steps) : ends_like(path, entry.plain)) return entry.value;
    return otherwise;
  }

 private:
  struct Entry {
    std::string plain;
    N value;
    std::optional<Pattern> pattern;
  };

  /// Most keys are names, whose dots stand for any letter: no need to walk.
  static bool ends_like(std::string_view path, std::string_view name) {
    if (path.size() < name.size()) return false;
    const std::size_t first = path.size() - name.size();
    if (first > 0 && path[first - 1] != '.') return false;
    for (std::size_t i = 0; i < name.size(); ++i)
      if (name[i] != '.' && name[i] != path[first + i]) return false;
    return true;
  }

  static constexpr std::size_t most_states = std::size_t{1} << 20;
  std::vector<Entry> entries_;
  std::size_t states_ = 0;
};

}  // namespace pith::inline v0::detail
