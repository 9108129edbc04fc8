#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

// Decodes, checks and repairs UTF-8.
namespace pith { inline namespace v0 { namespace detail {

/// U+FFFD, which replaces invalid bytes.
inline constexpr std::string_view replacement_character = "\xEF\xBF\xBD";

inline unsigned byte_of(std::string_view s, std::size_t i) { return static_cast<unsigned char>(s[i]); }

/// The front of a non-empty `s`.
struct Utf8Front {
  std::size_t size;  ///< bytes of the character, or of the longest part that could begin one (Unicode 3.9: maximal subpart)
  bool valid;        ///< a complete character
  bool cut;          ///< incomplete: more bytes could complete it
};

inline Utf8Front utf8_front(std::string_view s) {
  const unsigned lead = byte_of(s, 0);
  if (lead < 0x80) return {1, true, false};
  const std::size_t length = lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
  if (length == 0) return {1, false, false};
  // The second byte excludes overlong forms, surrogates and values beyond Unicode.
  const unsigned least = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80, most = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  std::size_t n = 1;
  while (n < length && n < s.size()) {
    const unsigned next = byte_of(s, n);
    if (next < (n == 1 ? least : 0x80) || next > (n == 1 ? most : 0xBF)) break;
    ++n;
  }
  return {n, n == length, n < length && n == s.size()};
}

/// Length of the longest valid prefix.
inline std::size_t valid_utf8(std::string_view s) {
  std::size_t i = 0;
  while (i < s.size()) {
    if (byte_of(s, i) < 0x80) {
      ++i;
      continue;
    }
    const Utf8Front front = utf8_front(s.substr(i));
    if (!front.valid) break;
    i += front.size;
  }
  return i;
}

/// Appends `s` with U+FFFD for each maximal invalid part.
inline void append_utf8(std::string& out, std::string_view s) {
  while (!s.empty()) {
    const std::size_t good = valid_utf8(s);
    out.append(s.substr(0, good));
    s.remove_prefix(good);
    if (s.empty()) return;
    out.append(replacement_character);
    s.remove_prefix(utf8_front(s).size);
  }
}

struct CodePoint {
  char32_t value;
  std::size_t size;  ///< bytes
};

/// The character at byte i of valid UTF-8.
inline CodePoint code_point(std::string_view s, std::size_t i) {
  const unsigned lead = byte_of(s, i);
  const auto tail = [&](std::size_t k) { return static_cast<char32_t>(byte_of(s, i + k) & 0x3F); };
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {static_cast<char32_t>((lead & 0x1F) << 6) | tail(1), 2};
  if (lead < 0xF0) return {static_cast<char32_t>((lead & 0x0F) << 12) | tail(1) << 6 | tail(2), 3};
  return {static_cast<char32_t>((lead & 0x07) << 18) | tail(1) << 12 | tail(2) << 6 | tail(3), 4};
}

inline void append_code_point(std::string& out, char32_t c) {
  const auto put = [&](char32_t bits) { out.push_back(static_cast<char>(bits)); };
  if (c < 0x80) return put(c);
  if (c < 0x800) {
    put(0xC0 | c >> 6);
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3F));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F));
  }
  put(0x80 | (c & 0x3F));
}

/// First byte of the character before byte i > 0 of valid UTF-8.
inline std::size_t before(std::string_view s, std::size_t i) {
  do --i;
  while (i > 0 && (byte_of(s, i) & 0xC0) == 0x80);
  return i;
}

/// `s` with every `from` replaced by `to`, left to right.
inline std::string replaced(std::string_view s, std::string_view from, std::string_view to) {
  std::string out;
  out.reserve(s.size());
  for (std::size_t at = s.find(from); at != std::string_view::npos; at = s.find(from)) {
    out.append(s.substr(0, at)).append(to);
    s.remove_prefix(at + from.size());
  }
  return out.append(s);
}

}}}  // namespace pith::v0::detail
