#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <pith/text/detail/utf8.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// GPT-2's spelling of bytes: printable Latin-1 is itself, the other 68 bytes are U+0100, U+0101, … in order.
class ByteMap {
 public:
  static const ByteMap& table() {
    static const ByteMap map;
    return map;
  }

  void append_name(std::string& out, unsigned char byte) const { append_code_point(out, names_[byte]); }

  /// The bytes that a string spells; nullopt if one of its characters spells no byte.
  std::optional<std::string> bytes(std::string_view names) const {
    std::string out;
    out.reserve(names.size());
    for (std::size_t i = 0; i < names.size();) {
      const CodePoint c = code_point(names, i);
      if (c.value >= bytes_.size() || bytes_[c.value] < 0) return std::nullopt;
      out.push_back(static_cast<char>(bytes_[c.value]));
      i += c.size;
    }
    return out;
  }

  std::string names(std::string_view bytes) const {
    std::string out;
    for (const char b : bytes) append_name(out, static_cast<unsigned char>(b));
    return out;
  }

 private:
  ByteMap() {
    bytes_.fill(-1);
    char32_t next = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      const char32_t name = printable ? byte : next++;
      names_[byte] = name;
      bytes_[name] = static_cast<std::int16_t>(byte);
    }
  }
  std::array<char32_t, 256> names_{};
  std::array<std::int16_t, 0x144> bytes_{};
};

}}}  // namespace pith::v0::detail
