#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include <pith/core/check.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>
#include <pith/core/widen.hpp>

namespace pith { inline namespace v0 {

/// Q8 stores rows as 8-bit codes, in blocks of up to 32 numbers that share a 16-bit scale; pointers and strides count its bytes.
///
/// A block is its scale as a half, then one signed byte per number. A whole block has the bytes of ggml's q8_0; the last one of a row is
/// shorter if 32 does not divide its length.
struct Q8 {
  std::byte byte;
};

namespace detail {
template <> struct Arithmetic<Q8> { using type = float; };
}  // namespace detail

inline constexpr Index q8_block = 32;  ///< numbers that share a scale

/// Bytes in a row of n numbers: 34 per block of 32.
///
/// Throws   CapacityError if n is negative or far too large
inline Index q8_row_bytes(Index n) {
  detail::checked_product("q8_row_bytes", n, 2);
  return n + Index(sizeof(half)) * (n / q8_block + (n % q8_block != 0));
}

/// Rounds n numbers to out [q8_row_bytes(n)]: scale = max |x| / 127 over the block, code = round(x / scale), halves away from zero.
///
/// A block with a number that is not finite, or too large for the scale (beyond 127 * 65504), decodes to NaN as a whole. Magnitudes up to
/// 3e-6 decode to 0 if their block holds no larger one.
///
/// Heap     none
/// Law      decoded numbers are off by at most half a scale, plus 127 times what the scale loses as a half
/// Law      a block's bytes depend on its own numbers alone
inline void q8_encode(const float* x, Index n, std::byte* out) {
  for (Index size; n > 0; n -= size, x += size) {
    size = (std::min)(n, q8_block);
    float largest = 0, odd = 0;  // odd becomes NaN if any number is not finite
    for (Index i = 0; i < size; ++i) {
      largest = (std::max)(largest, std::abs(x[i]));
      odd += x[i] - x[i];
    }
    const float d = largest / 127;
    half scale(d + odd);
    const bool finite = std::isfinite(static_cast<float>(scale));
    if (!finite) scale = std::numeric_limits<half>::quiet_NaN();
    std::memcpy(out, &scale, sizeof(half));
    out += sizeof(half);
    // Codes use the scale before its rounding to half. The inverse of a subnormal scale might not be finite.
    const float inverse = finite && d >= (std::numeric_limits<float>::min)() ? 1 / d : 0;
    for (Index i = 0; i < size; ++i)
      *out++ = static_cast<std::byte>(inverse == 0 ? 0 : static_cast<std::int32_t>(std::round(x[i] * inverse)));
  }
}

/// Decodes the n numbers of a row [q8_row_bytes(n)] from q8_encode(): x = code · scale.
///
/// Heap     none
inline void q8_decode(const std::byte* row, Index n, float* out) {
  for (Index size; n > 0; n -= size, out += size) {
    size = (std::min)(n, q8_block);
    half stored;
    std::memcpy(&stored, row, sizeof(half));
    row += sizeof(half);
    const float scale = detail::widen(stored);
    const auto* const codes = reinterpret_cast<const std::int8_t*>(row);
    if (size == q8_block) {
      using V = detail::Simd<float>;
#pragma GCC unroll 32
      for (int i = 0; i < int(q8_block); i += V::width) V::store(out + i, V::mul(V::load(codes + i), V::broadcast(scale)));
    } else {
      for (Index i = 0; i < size; ++i) out[i] = static_cast<float>(codes[i]) * scale;
    }
    row += size;
  }
}

}}  // namespace pith::v0
