#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include <pith/core/types.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// A 64-bit FNV-1a hash, equal on every machine: identifies weights and prefixes.
class Fingerprint {
 public:
  void bytes(std::span<const std::byte> data) {
    for (const std::byte b : data) hash_ = (hash_ ^ std::to_integer<std::uint64_t>(b)) * 0x100000001B3u;
  }
  void number(std::uint64_t n) {
    for (int shift = 0; shift < 64; shift += 8) hash_ = (hash_ ^ ((n >> shift) & 0xFF)) * 0x100000001B3u;
  }
  void number(double n) { number(detail::bits_as<std::uint64_t>(n)); }
  template <std::integral N> void number(N n) { number(static_cast<std::uint64_t>(n)); }
  void string(std::string_view s) {
    number(s.size());
    bytes(std::as_bytes(std::span(s.data(), s.size())));
  }
  std::uint64_t value() const { return hash_; }

 private:
  std::uint64_t hash_ = 0xCBF29CE484222325u;
};

}}}  // namespace pith::v0::detail
