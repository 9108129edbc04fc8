#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utf8proc.h>
#include <vector>

#include <pith/text/detail/utf8.hpp>

// Character classes and normalisation.
namespace pith { inline namespace v0 { namespace detail {

/// Character classes of the split patterns, as bits. Categories are utf8proc's; white space is Unicode's White_Space.
namespace char_class {
inline constexpr std::uint8_t letter = 1;   // \p{L}
inline constexpr std::uint8_t number = 2;   // \p{N}
inline constexpr std::uint8_t space = 4;    // \s
inline constexpr std::uint8_t upper = 8;    // [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]
inline constexpr std::uint8_t lower = 16;   // [\p{Ll}\p{Lm}\p{Lo}\p{M}]
inline constexpr std::uint8_t word = 32;    // \w
inline constexpr std::uint8_t ending = 64;  // [\r\n]
}  // namespace char_class

inline bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

inline std::uint8_t classify(char32_t c) {
  using namespace char_class;
  const std::uint8_t white = is_white_space(c) ? space : std::uint8_t(0);
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LT:
      return letter | upper | word;
    case UTF8PROC_CATEGORY_LL:
      return letter | lower | word;
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return letter | upper | lower | word;
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
      return upper | lower | word;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
      return number | word;
    case UTF8PROC_CATEGORY_NO:
      return number;
    case UTF8PROC_CATEGORY_PC:
      return word;
    case UTF8PROC_CATEGORY_CF:
      return c == 0x200C || c == 0x200D ? word : std::uint8_t(0);
    default:
      return c == '\r' || c == '\n' ? std::uint8_t(white | ending) : white;
  }
}

/// Classes of all characters: pages of 256, each distinct page stored once.
class CharClasses {
 public:
  static const CharClasses& table() {
    static const CharClasses classes;
    return classes;
  }
  std::uint8_t operator[](char32_t c) const { return pages_[page_[c >> 8]][c & 0xFF]; }

 private:
  using Page = std::array<std::uint8_t, 256>;
  CharClasses() {
    for (std::size_t p = 0; p < page_.size(); ++p) {
      Page page;
      for (std::size_t i = 0; i < page.size(); ++i) page[i] = classify(static_cast<char32_t>(p << 8 | i));
      const auto at = std::find(pages_.begin(), pages_.end(), page);
      page_[p] = static_cast<std::uint16_t>(at - pages_.begin());
      if (at == pages_.end()) pages_.push_back(page);
    }
  }
  std::array<std::uint16_t, 0x1100> page_{};
  std::vector<Page> pages_;
};

/// Normal form NFC of UTF-8.
///
/// Cost     n log n for any number of marks in a row: they are sorted here, since utf8proc's own loop sorts by insertion
inline std::string nfc(std::string_view s) {
  // Characters below U+0300 compose with nothing.
  if (std::none_of(s.begin(), s.end(), [](char c) { return static_cast<unsigned char>(c) >= 0xCC; })) return std::string(s);
  std::vector<utf8proc_int32_t> points;
  points.reserve(s.size() + 8);
  for (std::size_t i = 0; i < s.size();) {
    const CodePoint c = code_point(s, i);
    i += c.size;
    std::array<utf8proc_int32_t, 32> parts;  // the longest decomposition has 18 characters under NFKD, 4 under NFD
    int last_class = 0;
    const utf8proc_ssize_t n = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c.value), parts.data(),
                                                       static_cast<utf8proc_ssize_t>(parts.size()), UTF8PROC_DECOMPOSE, &last_class);
    points.insert(points.end(), parts.begin(), parts.begin() + std::max<utf8proc_ssize_t>(n, 0));
  }
  const auto combining = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  for (auto run = points.begin(); run != points.end();) {
    run = std::find_if(run, points.end(), [&](auto c) { return combining(c) != 0; });
    const auto end = std::find_if(run, points.end(), [&](auto c) { return combining(c) == 0; });
    std::stable_sort(run, end, [&](auto a, auto b) { return combining(a) < combining(b); });
    run = end;
  }
  const utf8proc_ssize_t composed = utf8proc_normalize_utf32(points.data(), static_cast<utf8proc_ssize_t>(points.size()),
                                                             static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  std::string out;
  out.reserve(s.size());
  for (utf8proc_ssize_t i = 0; i < composed; ++i) append_code_point(out, static_cast<char32_t>(points[static_cast<std::size_t>(i)]));
  return out;
}

}}}  // namespace pith::v0::detail
