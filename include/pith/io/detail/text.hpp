#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>

// Text of files in messages and JSON: quoting, UTF-8 checks, escapes.
namespace pith { inline namespace v0 { namespace detail {

/// At most `longest` bytes of UTF-8 text, cut between characters.
inline std::string_view whole_letters(std::string_view s, std::size_t longest) {
  if (s.size() <= longest) return s;
  while (longest > 0 && (static_cast<unsigned char>(s[longest]) & 0xC0) == 0x80) --longest;
  return s.substr(0, longest);
}

/// A name from a file as a message shows it: short, on one line.
inline std::string in_quotes(std::string_view name) {
  constexpr std::size_t longest = 120;
  std::string out = "'";
  for (const char c : whole_letters(name, longest)) out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  return out += name.size() > longest ? "…'" : "'";
}

inline std::string shape_list(std::span<const Index> shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) out += text(i == 0 ? "" : ", ", shape[i]);
  return out += "]";
}

/// Refuses text that is not UTF-8, including overlong forms, surrogates and values beyond Unicode.
inline void check_utf8(std::string_view what, std::string_view s) {
  for (std::size_t i = 0; i < s.size();) {
    const auto byte = [&](std::size_t at) { return at < s.size() ? static_cast<unsigned char>(s[at]) : 0u; };
    const unsigned lead = byte(i);
    const std::size_t length = lead < 0x80                   ? 1
                               : lead >= 0xC2 && lead < 0xE0 ? 2
                               : lead >= 0xE0 && lead < 0xF0 ? 3
                               : lead >= 0xF0 && lead < 0xF5 ? 4
                                                             : 0;
    bool good = length != 0;
    for (std::size_t k = 1; good && k < length; ++k) good = (byte(i + k) & 0xC0) == 0x80;
    const unsigned second = byte(i + 1);
    good = good && !(lead == 0xE0 && second < 0xA0) && !(lead == 0xED && second > 0x9F) && !(lead == 0xF0 && second < 0x90) &&
           !(lead == 0xF4 && second > 0x8F);
    if (!good) raise<FormatError>("pith: ", what, " is not UTF-8 at byte ", i);
    i += length;
  }
}

/// Appends UTF-8 as a JSON string, with reserved characters escaped.
inline void append_json_text(std::string& out, std::string_view s) {
  constexpr char hex[] = "0123456789abcdef";
  out += '"';
  for (const char c : s) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      (out += '\\') += c;
    } else if (byte < 0x20) {
      ((out += "\\u00") += hex[byte >> 4]) += hex[byte & 15];
    } else {
      out += c;
    }
  }
  out += '"';
}

}}}  // namespace pith::v0::detail
