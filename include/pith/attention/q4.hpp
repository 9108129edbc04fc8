#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/widen.hpp>

namespace pith { inline namespace v0 {

/// Q4 stores rows as 4-bit codes, in blocks of up to 32 numbers that share a scale and a minimum; pointers and strides count its bytes.
///
/// A block is its scale and its minimum, a half each, then one byte for each two codes: code j in the low bits of byte j, code j + 16 in
/// the high ones. A whole block has the bytes of ggml's q4_1; the last one of a row is shorter if 32 does not divide its length.
struct Q4 {
  std::byte byte;
};

namespace detail {
template <> struct Arithmetic<Q4> { using type = float; };
}  // namespace detail

inline constexpr Index q4_block = 32;  ///< numbers that share a scale and a minimum

/// Bytes in a row of n numbers: 20 per block of 32.
///
/// Throws   CapacityError if n is negative or far too large
inline Index q4_row_bytes(Index n) {
  detail::checked_product("q4_row_bytes", n, 2);
  const Index rest = n % q4_block;
  return 20 * (n / q4_block) + (rest == 0 ? 0 : 4 + (std::min)(rest, q4_block / 2));
}

/// Rounds n numbers to out [q4_row_bytes(n)]: scale = (max - min) / 15 over the block, code = round((x - min) / scale), halves up.
///
/// A block with a number that is not finite, or whose scale or minimum a half cannot hold (beyond 65504), decodes to NaN as a whole.
///
/// Heap     none
/// Law      decoded numbers are off by at most half a scale, plus what scale (15 times) and minimum lose as halves
/// Law      a block's bytes depend on its own numbers alone
inline void q4_encode(const float* x, Index n, std::byte* out) {
  for (Index size; n > 0; n -= size, x += size) {
    size = (std::min)(n, q4_block);
    float low = x[0], high = x[0], odd = 0;  // odd becomes NaN if any number is not finite
    for (Index i = 0; i < size; ++i) {
      low = (std::min)(low, x[i]);
      high = (std::max)(high, x[i]);
      odd += x[i] - x[i];
    }
    const float d = (high - low) / 15;
    half stored[2] = {half(d + odd), half(low)};
    const bool finite = std::isfinite(static_cast<float>(stored[0])) && std::isfinite(static_cast<float>(stored[1]));
    if (!finite) stored[0] = stored[1] = std::numeric_limits<half>::quiet_NaN();
    std::memcpy(out, stored, sizeof(stored));
    out += sizeof(stored);
    // Codes use scale and minimum before their rounding to half. The inverse of a subnormal scale might not be finite.
    const float inverse = finite && d >= (std::numeric_limits<float>::min)() ? 1 / d : 0;
    const auto code = [&](Index i) {
      const auto steps = static_cast<float>(static_cast<double>(x[i] - low) * static_cast<double>(inverse));  // no product is fused with .5
      return inverse == 0 ? 0U : (std::min)(15U, static_cast<unsigned>(steps + .5F));
    };
    for (Index j = 0; j < (std::min)(size, q4_block / 2); ++j)
      *out++ = static_cast<std::byte>(code(j) | (j + q4_block / 2 < size ? code(j + q4_block / 2) << 4 : 0U));
  }
}

/// Decodes the n numbers of a row [q4_row_bytes(n)] from q4_encode(): x = code · scale + minimum; the product is exact.
///
/// Heap     none
inline void q4_decode(const std::byte* row, Index n, float* out) {
  for (Index size; n > 0; n -= size, out += size) {
    size = (std::min)(n, q4_block);
    half stored[2];
    std::memcpy(stored, row, sizeof(stored));
    row += sizeof(stored);
    const float scale = detail::widen(stored[0]), low = detail::widen(stored[1]);
    const auto* const codes = reinterpret_cast<const std::uint8_t*>(row);
    if (size == q4_block) {
      for (int j = 0; j < 16; ++j) out[j] = static_cast<float>(codes[j] & 15) * scale + low;
      for (int j = 0; j < 16; ++j) out[j + 16] = static_cast<float>(codes[j] >> 4) * scale + low;
    } else {
      for (Index i = 0; i < size; ++i) out[i] = static_cast<float>(i < 16 ? codes[i] & 15 : codes[i - 16] >> 4) * scale + low;
    }
    row += (std::min)(size, q4_block / 2);
  }
}

}}  // namespace pith::v0
