#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstring>
#include <limits>

#include <pith/attention/kv_storage.hpp>
#include <pith/attention/q8.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>

namespace pith { inline namespace v0 {

// Scout codes: a short copy of each key that bounds the logit of every query, so that most keys need not be read.

/// Bytes of the scout codes of a key of n numbers: a row of Q8 and a half.
///
/// Throws   CapacityError if n is negative or far too large
inline Index scout_row_bytes(Index n) { return q8_row_bytes(n) + Index(sizeof(half)); }

/// Writes the scout codes of a key k as it is stored: Q8's codes of a key k', and a margin for which
///
///   |q·k' - q·k| <= |q|₂ margin,   margin = r + n 2^-24 (2 |k|₂ + r), r = |k - k'|₂, rounded up
///
/// holds for any q and any order of the two sums in float: r bounds q·(k' - k) (Cauchy-Schwarz), the rest what n products and additions
/// lose to rounding in either sum. A key that 8 bits cannot hold (not finite, or beyond Q8's range) has codes of NaN and is always read.
///
/// Shapes   key [n] · out [scout_row_bytes(n)]
/// Heap     none
/// Law      the bytes depend on the key alone
template <PlainStorage T>
requires std::same_as < arithmetic_t<T>,
float > void scout_encode(const T* key, Index n, std::byte* out) {
  double residual = 0, norm = 0;
  for (Index i = 0; i < n; i += q8_block) {
    const Index size = (std::min)(n - i, q8_block);
    float x[std::size_t(q8_block)], x_of_codes[std::size_t(q8_block)];
    for (Index j = 0; j < size; ++j) x[j] = detail::widen(key[i + j]);
    q8_encode(x, size, out);
    q8_decode(out, size, x_of_codes);
    for (Index j = 0; j < size; ++j) {
      const double full = static_cast<double>(x[j]), off = full - static_cast<double>(x_of_codes[j]);
      residual += off * off;
      norm += full * full;
    }
    out += q8_row_bytes(size);
  }
  const double r = std::sqrt(residual), margin = r + static_cast<double>(n) * 0x1p-24 * (2 * std::sqrt(norm) + r);
  half up(static_cast<float>(margin * (1 + 0x1p-9)));
  if (static_cast<double>(static_cast<float>(up)) < margin) up = std::numeric_limits<half>::denorm_min() + up;  // below the smallest normal
  std::memcpy(out, &up, sizeof(half));
}

}}  // namespace pith::v0
