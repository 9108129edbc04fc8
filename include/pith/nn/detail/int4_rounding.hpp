#pragma once
// Rounds floats to four bits.

#include <cstddef>
#include <cstdint>
#include <limits>

#include <pith/core/detail/simd_rounding.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/view.hpp>
#include <pith/nn/packed.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Rounds `group` inputs of 32 outputs: w[o, k] ≈ scale[o] · (code[o, k] - 8).
///
/// m being the weight of largest magnitude of an output, each f of -.9, -.8 … .9 gives codes c = clamp(round(-(8 + f) w / m), -8, 7) and
/// the scale f16(Σ c w / Σ c²); the f whose scale · c is nearest to w in the sum of squares is taken, the first of equals. The scale is NaN
/// if a weight is NaN or infinite or no scale of 16 bits is large enough. Outputs lie in the lanes of packets: their bits depend on no
/// width.
///
/// Shapes   w, codes [group, 32] · scales [32]
inline void round_to_int4(const float* w, Index group, std::uint8_t* codes, half* scales) {
  using V = Simd<float>;
  using Packet = V::Packet;
  // -c, by the factor (8 + f) / m: one subtraction a weight is saved where -c is summed with its sign turned.
  const auto turned_code = [&](Packet v, Packet factor) {
    return V::smaller(V::larger(to_integers(V::mul(v, factor)), V::broadcast(-7)), V::broadcast(8));
  };
  for (Index first = 0; first < panel_width; first += V::width) {
    Packet most = V::zero(), odd = V::zero();  // odd: NaN once any weight is not finite
    for (Index k = 0; k < group; ++k) {
      const Packet v = V::load(w + k * panel_width + first);
      most = V::select(V::less(V::abs(most), V::abs(v)), v, most);
      odd = V::add(odd, V::sub(v, v));
    }
    Packet best = V::broadcast(-std::numeric_limits<float>::infinity()), best_factor = V::zero();
    Packet best_scale = V::broadcast(std::numeric_limits<float>::quiet_NaN());
    for (int i = -9; i <= 9; ++i) {
      const Packet factor = V::div(V::broadcast(8 + float(i) / 10), most);  // of -w, whose codes run to 8
      Packet with_w = V::zero(), squares = V::zero();
      for (Index k = 0; k < group; ++k) {
        const Packet v = V::load(w + k * panel_width + first);
        const Packet c = turned_code(v, factor);
        Packet product = V::mul(c, v);
        V::round_here(product);  // never fused: the same bits with and without FMA
        with_w = V::sub(with_w, product);
        squares = V::madd(c, c, squares);  // an integer: exact, fused or not
      }
      const Packet scale = through_half(V::div(with_w, squares));
      // Σ (scale c - w)² is Σ w² less this.
      Packet remainder = V::mul(scale, squares);
      V::round_here(remainder);
      const Packet gain = V::mul(scale, V::sub(V::add(with_w, with_w), remainder));
      const Packet better = V::less(best, gain);
      best = V::select(better, gain, best);
      best_factor = V::select(better, factor, best_factor);
      best_scale = V::select(better, scale, best_scale);
    }
    // Weights so small that no scale of 16 bits but 0 serves, where the factors may overflow.
    const Packet none = V::less(V::abs(most), V::broadcast(1e-8f));
    best_scale = V::add(V::select(none, V::zero(), best_scale), odd);
    const Packet usable = V::less(V::zero(), V::abs(best_scale));
    float lanes[std::size_t(V::width)];
    V::store(lanes, best_scale);
    for (int j = 0; j < V::width; ++j) scales[first + j] = static_cast<half>(lanes[j]);
    for (Index k = 0; k < group; ++k) {
      V::store(lanes, V::select(usable, turned_code(V::load(w + k * panel_width + first), best_factor), V::zero()));
      for (int j = 0; j < V::width; ++j) codes[k * panel_width + first + j] = static_cast<std::uint8_t>(8 - static_cast<int>(lanes[j]));
    }
  }
}

}}}  // namespace pith::v0::detail
