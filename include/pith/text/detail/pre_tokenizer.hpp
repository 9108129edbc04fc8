#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/text/detail/split.hpp>
#include <pith/text/detail/unicode.hpp>
#include <pith/text/detail/utf8.hpp>

// Cuts text into words before byte pair encoding.
namespace pith { inline namespace v0 { namespace detail {

/// When text gets a leading space.
enum class PrependScheme : std::uint8_t { always, first, never };

/// Cuts text into words, which the model encodes one by one.
class PreTokenizer {
 public:
  struct Step {
    enum class Kind : std::uint8_t { split, split_spaces, digits, byte_level, metaspace } kind;
    SplitPattern pattern = SplitPattern::gpt2;             ///< split
    bool one_by_one = false;                               ///< digits: each digit alone, else runs of digits
    bool add_prefix_space = false;                         ///< byte_level
    bool use_regex = true;                                 ///< byte_level: cut by GPT-2's pattern
    std::string replacement = {};                          ///< metaspace: replaces a space
    PrependScheme prepend_scheme = PrependScheme::always;  ///< metaspace
    bool cut = true;                                       ///< metaspace: a word begins at each replacement
  };

  PreTokenizer() = default;
  explicit PreTokenizer(std::vector<Step> steps) : steps_(std::move(steps)) {}

  /// Whether words are bytes, which the model spells by GPT-2's map.
  bool byte_level() const {
    return std::any_of(steps_.begin(), steps_.end(), [](const Step& s) { return s.kind == Step::Kind::byte_level; });
  }

  /// Calls take(word) for each word of a piece; `at_start`: the piece begins the text.
  template <class Take> void operator()(std::string_view piece, bool at_start, Take&& take) const { run(0, piece, at_start, take); }

 private:
  template <class Take> void run(std::size_t k, std::string_view piece, bool at_start, Take& take) const {
    if (piece.empty()) return;
    if (k == steps_.size()) return take(piece);
    const Step& step = steps_[k];
    // Passes on the words between the ends that end_of(begin) returns.
    const auto cut = [&](std::string_view s, auto&& end_of) {
      for (std::size_t begin = 0; begin < s.size();) {
        const std::size_t end = end_of(begin);
        run(k + 1, s.substr(begin, end - begin), at_start && begin == 0, take);
        begin = end;
      }
    };
    const auto cut_by = [&](SplitPattern pattern, std::string_view s) {
      const SplitScanner scanner(pattern, s);
      cut(s, [&](std::size_t begin) { return scanner.word_end(begin); });
    };
    switch (step.kind) {
      case Step::Kind::split:
        return cut_by(step.pattern, piece);
      case Step::Kind::split_spaces:  // a space ends the word before it
        return cut(piece, [&](std::size_t begin) { return (std::min)(piece.find(' ', begin), piece.size() - 1) + 1; });
      case Step::Kind::digits:
        return cut(piece, [&](std::size_t begin) { return digits_end(piece, begin, step.one_by_one); });
      case Step::Kind::byte_level: {
        std::string prefixed;
        if (step.add_prefix_space && piece.front() != ' ') piece = prefixed.append(1, ' ').append(piece);
        return step.use_regex ? cut_by(SplitPattern::gpt2, piece) : run(k + 1, piece, at_start, take);
      }
      case Step::Kind::metaspace: {
        std::string marked = replaced(piece, " ", step.replacement);
        const bool prepends = step.prepend_scheme == PrependScheme::always || (step.prepend_scheme == PrependScheme::first && at_start);
        if (prepends && !marked.starts_with(step.replacement)) marked.insert(0, step.replacement);
        if (!step.cut) return run(k + 1, marked, at_start, take);
        return cut(marked, [&](std::size_t begin) { return (std::min)(marked.size(), marked.find(step.replacement, begin + 1)); });
      }
    }
  }

  static std::size_t digits_end(std::string_view s, std::size_t i, bool one_by_one) {
    const auto is_digit = [&](std::size_t k) { return (CharClasses::table()[code_point(s, k).value] & char_class::number) != 0; };
    const bool digits = is_digit(i);
    do i += code_point(s, i).size;
    while (i < s.size() && is_digit(i) == digits && !(digits && one_by_one));
    return i;
  }

  std::vector<Step> steps_;
};

}}}  // namespace pith::v0::detail
