#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include <pith/core/detail/simd_rounding.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>

// Rows of weights rounded to bytes.

namespace pith { inline namespace v0 { namespace detail {

/// codes = round(w / scale) with scale = max |w| / 127, halves rounded away from zero. Returns the scale.
///
/// The scale is 0 if max |w| / 127 is not a normal number (zeros, or very small weights), and NaN if the row holds NaN or infinity.
template <class T> float int8_encode(const T* w, Index n, std::int8_t* codes) {
  using V = Simd<float>;
  using Packet = V::Packet;
  const auto at = [&](Index k) { return k + V::width <= n ? V::load(w + k) : V::load_part(w + k, n - k, 0.f); };
  Packet most = V::zero(), differences = V::zero();
  for (Index k = 0; k < n; k += V::width) {
    most = V::larger(most, V::abs(at(k)));
    differences = V::add(differences, V::sub(at(k), at(k)));
  }
  const float largest = V::largest(most), odd = V::sum(differences);  // odd: NaN if a weight is not finite, else 0
  float scale = largest / 127 + odd;
  if (scale * 127 > (std::numeric_limits<float>::max)()) scale = std::nextafter(scale, 0.f);  // rounded up, it would decode to infinity
  const bool usable = scale >= (std::numeric_limits<float>::min)();
  if (!usable) {
    std::fill_n(codes, n, std::int8_t(0));
    return std::isnan(scale) ? scale : 0;
  }
  const Packet inverse = V::broadcast(1 / scale), half_away = V::broadcast(.5f);
  for (Index k = 0; k < n; k += V::width) {
    Packet v = V::mul(at(k), inverse);  // at most 127 up to rounding: the casts below cannot overflow
    V::round_here(v);                   // never fused: the same bits with and without FMA
    std::int32_t integers[std::size_t(V::width)];
    truncate(V::add(v, copy_sign(half_away, v)), integers);
    const Index count = (std::min)(n - k, Index(V::width));
    if (count == V::width) {  // a constant: compilers narrow all lanes at once
      for (int i = 0; i < V::width; ++i) codes[k + i] = static_cast<std::int8_t>(integers[i]);
    } else {
      for (Index i = 0; i < count; ++i) codes[k + i] = static_cast<std::int8_t>(integers[i]);
    }
  }
  return scale;
}

}}}  // namespace pith::v0::detail
