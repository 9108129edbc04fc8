#pragma once
// Activations as blocks of 15-bit integers.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include <pith/core/detail/simd_rounding.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/view.hpp>

namespace pith { inline namespace v0 { namespace detail {

inline constexpr Index longest_block = 128;

/// A block of activations beside its integers q: x ≈ step · q.
struct BlockFacts {
  float step;          // NaN if the block holds NaN or infinity
  std::int32_t start;  // -zero · Σ q for a zero that all weights share
  float sum;           // Σ q
};

/// q = trunc(x / step + copysign(.5, x)) with step = max |x| / 16319, so that |q| <= 16319 = 127 · 128 + 63 and two signed bytes hold it:
/// q = 128 hi + lo. q is 0 in a block whose numbers are all below 2^-112 (step 0) or one of whose is not finite (step NaN).
///
/// Shapes   x [size], zeros behind it up to the next multiple of 16 · slots [size / 8] of 8 in the order of L::arrange(), `stride` apart
template <class L> BlockFacts encode_block(const float* x, Index size, std::int32_t zero, std::int16_t* slots, Index stride) {
  using V = Simd<float>;
  using Packet = V::Packet;
  constexpr float largest = 16319;
  Packet most = V::zero(), odd = V::zero();
  for (Index k = 0; k < size; k += V::width) {
    const Packet v = V::load(x + k);
    most = V::larger(most, V::abs(v));
    odd = V::add(odd, V::sub(v, v));
  }
  const float m = V::largest(most), bad = V::sum(odd);
  if (!(bad == 0) || m < 0x1p-112f) {
    for (Index k = 0; k < size; k += 8, slots += stride) std::memset(slots, 0, 8 * sizeof(*slots));
    return {bad == 0 ? 0 : std::numeric_limits<float>::quiet_NaN(), 0, 0};
  }
  alignas(64) std::int32_t q[std::size_t(longest_block)];
  const Packet inverse = V::broadcast(largest / m);
  std::int32_t sum = 0;
  for (Index k = 0; k < size; k += V::width) {
    const Packet v = V::load(x + k);
    Packet scaled = V::mul(v, inverse);
    V::round_here(scaled);  // never fused: the same bits with and without FMA
    truncate(V::add(scaled, copy_sign(V::broadcast(.5f), v)), q + k);
  }
  for (Index k = 0; k < size; ++k) sum += q[k];
  for (Index k = 0; k < size; k += 8, slots += stride) L::arrange(q + k, slots);
  return {m / largest, -zero * sum, static_cast<float>(sum)};
}

/// Some tokens in blocks: slots [blocks][size / 8][tokens] of eight numbers, facts [blocks][tokens].
struct EncodedRows {
  std::int16_t* slots;
  BlockFacts* facts;
  Index tokens, in, size;
  std::int32_t zero;          // that all weights share, or 0
  const std::int32_t* order;  // the input at each place; nullptr: as they come

  Index blocks() const { return (in + size - 1) / size; }
  std::int16_t* slot(Index block, Index t) const { return slots + (block * size / 8 * tokens + t) * 8; }
  Index stride() const { return 8 * tokens; }
  BlockFacts* fact(Index block, Index t) const { return facts + block * tokens + t; }

  template <class L> void encode(Index t, const float* x) const {
    alignas(64) float copy[std::size_t(longest_block)] = {};
    for (Index block = 0; block < blocks(); ++block) {
      const Index first = block * size, n = (std::min)(size, in - first);
      const float* from = x + first;
      if (order != nullptr || n != size || size % 16 != 0) {
        for (Index k = 0; k < n; ++k) copy[k] = order != nullptr ? x[order[first + k]] : from[k];
        std::fill(copy + n, copy + longest_block, 0.f);
        from = copy;
      }
      *fact(block, t) = encode_block<L>(from, size, zero, slot(block, t), stride());
    }
  }
};

}}}  // namespace pith::v0::detail
