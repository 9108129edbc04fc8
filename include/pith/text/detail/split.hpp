#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include <pith/text/detail/unicode.hpp>

// Cuts text into words as byte-level tokenizers do.
namespace pith { inline namespace v0 { namespace detail {

/// The patterns by which byte-level tokenizers cut text into words. A folder's pattern is recognised by its text and scanned by the code
/// below, in one pass without a regex engine.
enum class SplitPattern : std::uint8_t { gpt2, qwen, cl100k, o200k, tekken };

namespace split_text {
#define PITH_SPLIT_CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define PITH_SPLIT_CASED_1 "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
#define PITH_SPLIT_CASED_2 "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*"
#define PITH_SPLIT_SPACES "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
inline constexpr std::string_view gpt2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
inline constexpr std::string_view qwen =
    PITH_SPLIT_CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" PITH_SPLIT_SPACES;
inline constexpr std::string_view cl100k =
    PITH_SPLIT_CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" PITH_SPLIT_SPACES;
inline constexpr std::string_view o200k = PITH_SPLIT_CASED_1 PITH_SPLIT_CONTRACTIONS
    "?|" PITH_SPLIT_CASED_2 PITH_SPLIT_CONTRACTIONS "?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" PITH_SPLIT_SPACES;
inline constexpr std::string_view tekken =
    PITH_SPLIT_CASED_1 "|" PITH_SPLIT_CASED_2 "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" PITH_SPLIT_SPACES;
#undef PITH_SPLIT_CONTRACTIONS
#undef PITH_SPLIT_CASED_1
#undef PITH_SPLIT_CASED_2
#undef PITH_SPLIT_SPACES
}  // namespace split_text

/// Returns the pattern with this text, if it is known.
inline std::optional<SplitPattern> split_pattern(std::string_view regex) {
  if (regex == split_text::gpt2) return SplitPattern::gpt2;
  if (regex == split_text::qwen) return SplitPattern::qwen;
  if (regex == split_text::cl100k) return SplitPattern::cl100k;
  if (regex == split_text::o200k) return SplitPattern::o200k;
  if (regex == split_text::tekken) return SplitPattern::tekken;
  return std::nullopt;
}

/// Finds the end of the word that begins at a byte. Every character of a text belongs to a word.
///
/// Cost     linear in the text: backtracking stays within the last run
class SplitScanner {
 public:
  SplitScanner(SplitPattern pattern, std::string_view text) : pattern_(pattern), text_(text), classes_(CharClasses::table()) {}

  std::size_t word_end(std::size_t i) const {
    switch (pattern_) {
      case SplitPattern::gpt2:
        return gpt2(i);
      case SplitPattern::qwen:
        return cl100k(i, 1);
      case SplitPattern::cl100k:
        return cl100k(i, 3);
      case SplitPattern::o200k:
        return cased(i, true, 3);
      default:
        return cased(i, false, 1);
    }
  }

 private:
  struct Char {
    char32_t value = 0;
    std::uint8_t classes = 0;
    std::size_t size = 0;  // 0: past the end
    bool is(std::uint8_t mask) const { return (classes & mask) != 0; }
  };
  Char at(std::size_t i) const {
    if (i >= text_.size()) return {};
    const CodePoint c = code_point(text_, i);
    return {c.value, classes_[c.value], c.size};
  }
  // End of the run of characters in `mask`.
  std::size_t run(std::size_t i, std::uint8_t mask) const {
    for (Char c = at(i); c.is(mask); c = at(i)) i += c.size;
    return i;
  }
  static bool is_other(const Char& c) { return c.size != 0 && !c.is(char_class::space | char_class::letter | char_class::number); }
  std::size_t run_of_others(std::size_t i) const {
    for (Char c = at(i); is_other(c); c = at(i)) i += c.size;
    return i;
  }
  std::size_t up_to(std::size_t i, std::uint8_t mask, int most) const {
    for (Char c = at(i); most > 0 && c.is(mask); c = at(i), --most) i += c.size;
    return i;
  }

  // 's 't 're 've 'm 'll 'd; i if there is none. With `fold`, U+017F counts as s.
  std::size_t contraction(std::size_t i, bool fold) const {
    if (i >= text_.size() || text_[i] != '\'') return i;
    const auto letter = [&](std::size_t k) {
      const char c = k < text_.size() ? text_[k] : '\0';
      return fold && c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c;
    };
    const char a = letter(i + 1), b = letter(i + 2);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return i + 2;
    if (fold && text_.substr(i + 1, 2) == "\xC5\xBF") return i + 3;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return i + 3;
    return i;
  }

  // \s+(?!\S)|\s+
  std::size_t spaces(std::size_t i) const {
    const std::size_t end = run(i, char_class::space);
    if (end == text_.size()) return end;
    const std::size_t last = before(text_, end);
    return last == i ? end : last;
  }
  // \s*[\r\n]+; i if no line ends here.
  std::size_t line_ends(std::size_t i) const {
    std::size_t end = i;
    for (Char c = at(i); c.is(char_class::space); c = at(i)) {
      i += c.size;
      if (c.is(char_class::ending)) end = i;
    }
    return end;
  }
  // End of ` ?[^\s\p{L}\p{N}]+` and the line ends (and slashes) after it; i if there is none.
  std::size_t others(std::size_t i, bool slashes) const {
    const std::size_t begin = i + (text_[i] == ' ' ? 1 : 0);
    std::size_t end = run_of_others(begin);
    if (end == begin) return i;
    while (end < text_.size() && (text_[end] == '\r' || text_[end] == '\n' || (slashes && text_[end] == '/'))) ++end;
    return end;
  }
  std::size_t other_or_spaces(std::size_t i, bool slashes) const {
    if (const std::size_t end = others(i, slashes); end != i) return end;
    if (const std::size_t end = line_ends(i); end != i) return end;
    return spaces(i);
  }
  bool may_lead(const Char& c) const { return c.size != 0 && !c.is(char_class::ending | char_class::letter | char_class::number); }

  std::size_t gpt2(std::size_t i) const {
    if (const std::size_t end = contraction(i, false); end != i) return end;
    const std::size_t j = i + (text_[i] == ' ' ? 1 : 0);
    const Char c = at(j);
    if (c.is(char_class::letter)) return run(j, char_class::letter);
    if (c.is(char_class::number)) return run(j, char_class::number);
    if (is_other(c)) return run_of_others(j);
    return spaces(i);
  }

  std::size_t cl100k(std::size_t i, int digits) const {
    if (const std::size_t end = contraction(i, true); end != i) return end;
    const Char c = at(i);
    if (c.is(char_class::letter)) return run(i, char_class::letter);
    if (may_lead(c) && at(i + c.size).is(char_class::letter)) return run(i + c.size, char_class::letter);
    if (c.is(char_class::number)) return up_to(i, char_class::number, digits);
    return other_or_spaces(i, false);
  }

  // [upper]*[lower]+ from i: greedy, then back to the last character that is both; i if there is none.
  std::size_t ends_lower(std::size_t i) const {
    std::size_t end = i, both = i;
    for (Char c = at(end); c.is(char_class::upper); c = at(end)) {
      end += c.size;
      if (c.is(char_class::lower)) both = end;
    }
    const std::size_t lower = run(end, char_class::lower);
    return lower != end ? lower : both;
  }
  // [upper]+[lower]* from i; i if there is none.
  std::size_t begins_upper(std::size_t i) const {
    const std::size_t end = run(i, char_class::upper);
    return end == i ? i : run(end, char_class::lower);
  }
  std::size_t cased(std::size_t i, bool contractions, int digits) const {
    const Char c = at(i);
    const std::size_t behind = i + (may_lead(c) ? c.size : 0);  // the pattern prefers a leading non-letter
    for (const bool lower : {true, false}) {
      for (const std::size_t from : {behind, i}) {
        const std::size_t end = lower ? ends_lower(from) : begins_upper(from);
        if (end != from) return contractions ? contraction(end, true) : end;
        if (behind == i) break;
      }
    }
    if (c.is(char_class::number)) return up_to(i, char_class::number, digits);
    return other_or_spaces(i, true);
  }

  SplitPattern pattern_;
  std::string_view text_;
  const CharClasses& classes_;
};

}}}  // namespace pith::v0::detail
