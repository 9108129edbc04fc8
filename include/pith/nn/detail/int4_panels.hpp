#pragma once
// Panels of 4-bit weights: how they lie in memory.

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/detail/nibbles.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/view.hpp>
#include <pith/nn/packed.hpp>

namespace pith { inline namespace v0 { namespace detail {

inline constexpr Index largest_group = 128;  // sums of this many codes and activations fit a 32-bit integer

/// The inputs that share a stored scale where a file has one for each `group` (0 or less: for all): the largest multiple of 8 up to 128
/// that divides it. 0: none does.
inline Index stored_group(Index in, Index group) {
  if (group <= 0 || group >= in) return (std::min)(largest_group, (in + 7) / 8 * 8);
  for (Index stored = largest_group; stored > 0; stored -= 8)
    if (group % stored == 0) return stored;
  return 0;
}

/// Throws   ShapeError unless `order` is empty or names each of `in` inputs once
inline void check_order(const std::vector<std::int32_t>& order, Index in) {
  if (order.empty()) return;
  std::vector<bool> seen(static_cast<std::size_t>((std::max)(in, Index(0))));
  bool once = order.size() == seen.size();
  for (std::size_t place = 0; once && place < order.size(); ++place) {
    const std::int32_t k = order[place];
    once = 0 <= k && k < in && !seen[static_cast<std::size_t>(k)];
    if (once) seen[static_cast<std::size_t>(k)] = true;
  }
  if (!once) [[unlikely]]
    raise<ShapeError>("pith::Int4Weight: the order of ", order.size(), " inputs is no permutation of 0 to ", in - 1);
}

/// The shape of 4-bit panels: one record for each group of each panel of 32 outputs,
/// { scales [32] of 16 bits | zeros [32] as halves, unless all are 8 | codes [group / 8][32] of 32-bit words }.
struct Int4Shape {
  Index in = 0, out = 0, group = 8;
  bool zeros = false, half_scales = true;  // scales are halves, else bfloat16

  Index panels() const { return (out + panel_width - 1) / panel_width; }
  Index groups() const { return (in + group - 1) / group; }
  Index codes_at() const { return zeros ? 128 : 64; }
  Index record_bytes() const { return codes_at() + group / 8 * panel_width * 4; }
  Index bytes() const { return checked_product("Int4Weight", checked_product("Int4Weight", panels(), groups()), record_bytes()); }
};

/// One record.
struct Int4Record {
  const Int4Shape& shape;
  const std::byte* data;

  const std::uint16_t* scales() const { return reinterpret_cast<const std::uint16_t*>(data); }
  const std::uint16_t* zeros() const { return scales() + panel_width; }
  const std::uint32_t* words() const { return reinterpret_cast<const std::uint32_t*>(data + shape.codes_at()); }

  float scale(Index o) const { return shape.half_scales ? widen(bits_as<half>(scales()[o])) : widen(bits_as<bfloat16>(scales()[o])); }
  float zero(Index o) const { return shape.zeros ? widen(bits_as<half>(zeros()[o])) : 8; }
  int code(Index o, Index k) const { return static_cast<int>(words()[k / 8 * panel_width + o] >> nibble_shift(k % 8) & 15); }
  /// Input k of the group, of output o of the panel: exact.
  float weight(Index o, Index k) const { return (static_cast<float>(code(o, k)) - zero(o)) * scale(o); }
};

/// Eight codes of an output as a word of a record.
inline std::uint32_t int4_word(const std::uint8_t* codes) {
  if constexpr (std::endian::native == std::endian::little) {
    std::uint64_t bytes;
    std::memcpy(&bytes, codes, sizeof(bytes));
    const std::uint32_t pairs = static_cast<std::uint32_t>(bytes) | static_cast<std::uint32_t>(bytes >> 32) << 4;
    return (pairs & 0xff0000ff) | (pairs & 0xff00) << 8 | (pairs >> 8 & 0xff00);  // as nibble_shift() has it
  } else {
    std::uint32_t word = 0;
    for (Index j = 0; j < 8; ++j) word |= std::uint32_t(codes[j]) << nibble_shift(j);
    return word;
  }
}

/// The scales and zeros of a group, as they are written.
struct Int4Scales {
  std::array<std::uint16_t, std::size_t(panel_width)> scales{};
  std::array<std::uint8_t, std::size_t(panel_width)> zeros{};

  void write(const Int4Shape& shape, std::byte* record) const {
    std::memcpy(record, scales.data(), sizeof(scales));
    if (!shape.zeros) return;
    std::uint16_t wide[std::size_t(panel_width)];
    for (std::size_t o = 0; o < std::size_t(panel_width); ++o) wide[o] = bits_as<std::uint16_t>(static_cast<half>(float(zeros[o])));
    std::memcpy(record + 64, wide, sizeof(wide));
  }
};

/// A group as it is written: codes [group][32].
struct Int4Group : Int4Scales {
  std::array<std::uint8_t, std::size_t(panel_width* largest_group)> codes{};

  void write(const Int4Shape& shape, std::byte* record) const {
    Int4Scales::write(shape, record);
    std::byte* to = record + shape.codes_at();
    for (Index b = 0; b < shape.group; b += 8, to += panel_width * 4) {
      std::uint32_t words[std::size_t(panel_width)];
      const std::uint8_t* from = codes.data() + b * panel_width;
      for (Index o = 0; o < panel_width; ++o) {
        std::uint32_t word = 0;
        for (Index j = 0; j < 8; ++j) word |= std::uint32_t(from[j * panel_width + o]) << nibble_shift(j);
        words[o] = word;
      }
      std::memcpy(to, words, sizeof(words));
    }
  }
};

}}}  // namespace pith::v0::detail
