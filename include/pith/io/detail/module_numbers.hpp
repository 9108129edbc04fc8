#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/io/detail/name_index.hpp>
#include <pith/io/detail/pattern.hpp>
#include <pith/io/detail/text.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Numbers by module: the first matching key wins, in file order. Keys are expressions that match the end of a path.
///
/// Nearly all keys are names, whose dots match any character, or whole paths with escaped dots: those with equal length and wildcards are
/// looked up together.
template <class N> class ModuleNumbers {
 public:
  void add(std::string_view key, std::string_view where, N value) {
    const std::size_t index = values_.size();
    values_.push_back(value);
    if (std::optional<Literal> literal = Literal::read(key)) {
      Group& group = groups_[{literal->letters.size(), literal->whole, std::move(literal->wild)}];
      group.emplace(std::move(literal->letters), index);  // of equal keys the first wins
      return;
    }
    static_cast<void>(Pattern(key, where));  // checked alone, since its parentheses must not affect the group around it
    patterns_.emplace_back(index, Pattern(text("(.*\\.)?(", key, ")$"), where));
    states_ += patterns_.back().second.states();
    if (states_ > most_states)
      raise<FormatError>(where, ": its expressions unfold to more than ", most_states, " states together: write simpler ones");
  }

  bool empty() const { return values_.empty(); }

  N of(std::string_view path, N otherwise, std::size_t& steps) const {
    std::size_t best = values_.size();
    std::string letters;
    for (const auto& [shape, group] : groups_) {
      spend_steps(steps, 4, path);
      if (shape.length > path.size()) break;  // the rest are longer
      const std::size_t first = path.size() - shape.length;
      if (first > 0 && (shape.whole || path[first - 1] != '.')) continue;
      spend_steps(steps, NameIndex::look_up + shape.length / 8, path);
      letters = path.substr(first);
      for (const std::size_t place : shape.wild) letters[place] = '.';
      if (const auto found = group.find(letters); found != group.end()) best = (std::min)(best, found->second);
    }
    for (const auto& [index, pattern] : patterns_) {
      if (index > best) break;
      if (pattern.matches(path, steps)) best = index;
    }
    return best == values_.size() ? otherwise : values_[best];
  }

 private:
  /// A key of letters and dots only: `a.b` with a wild dot, `a\.b`, `^a\.b`.
  struct Literal {
    std::string letters = {};
    std::vector<std::size_t> wild = {};  ///< places of dots that match any character
    bool whole = false;                  ///< matches the whole path, not its end

    static std::optional<Literal> read(std::string_view key) {
      Literal out{.whole = key.starts_with('^')};
      for (std::size_t i = out.whole; i < key.size(); ++i) {
        const bool escaped = key[i] == '\\' && i + 1 < key.size() && key[i + 1] == '.';
        if (!escaped && !PatternProgram::is_word(key[i]) && key[i] != '.' && key[i] != '-') return {};
        if (!escaped && key[i] == '.') out.wild.push_back(out.letters.size());
        i += escaped;
        out.letters += key[i];
      }
      return out;
    }
  };
  struct Shape {
    std::size_t length;
    bool whole;
    std::vector<std::size_t> wild;
    auto operator<=>(const Shape&) const = default;
  };
  using Group = std::map<std::string, std::size_t, std::less<>>;

  static constexpr std::size_t most_states = std::size_t{1} << 18;
  std::vector<N> values_;
  std::map<Shape, Group> groups_;
  std::vector<std::pair<std::size_t, Pattern>> patterns_;
  std::size_t states_ = 0;
};

}}}  // namespace pith::v0::detail
