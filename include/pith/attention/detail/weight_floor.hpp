#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>

#include <pith/attention/detail/attend_kernel.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>

// Which rows the softmax of a query can do without.

namespace pith { inline namespace v0 { namespace detail {

/// Rows of weight below `least`, which sum to `skipped`, need not be read. As it stands: only rows of weight 0.
template <class S> struct WeightFloor { S least = (std::numeric_limits<S>::min)(), skipped = 0; };

/// The highest floor for which the weights below it sum to at most `share` of all. Floors are powers of 2^(1/16), so that a lower share
/// never skips a row that a higher one reads.
///
/// Weights are numbers e = exp(x - top) in blocks of attention_block; each_block(f) calls f(block, its number) in ascending order. Sums run
/// in packets over 64 numbers of blocks at a time, then in double: they are off by less than 2^-16 of themselves. The comparison allows for
/// that, so the bound holds for the weights as computed, and what is not seen changes no bit.
///
/// Cost     four or five sweeps of the weights, eight compares and additions a packet
template <class S> class FloorSearch {
 public:
  using V = Simd<S>;
  using Packet = typename V::Packet;

  template <class Blocks> static WeightFloor<S> run(S share, Index rows, Blocks&& each_block) {
    const double all = sums<1>({std::numeric_limits<S>::infinity()}, each_block)[0],
                 spare = static_cast<double>(share) * all * (1 - 0x1p-15);
    if (!(spare > 0)) return {};
    // The higher the number, the lower the floor: the rows below floor `low` sum to at most `spare`, those below `high` may not.
    Index high = -1, low = (std::min)(number(spare / static_cast<double>(rows)) + 1, lowest);
    double skipped = -1;
    for (Index from = std::clamp(number(spare) - 1, high, (std::max)(high, low - 2)); low - high > 1; from = high) {
      const Index step = (low - from + tried) / (tried + 1);
      std::array<Index, tried> numbers;
      std::array<S, tried> limits;
      for (Index i = 0; i < tried; ++i) {
        numbers[std::size_t(i)] = (std::min)(from + step * (i + 1), low);
        limits[std::size_t(i)] = floor(numbers[std::size_t(i)]);
      }
      const std::array<double, tried> sum = sums<tried>(limits, each_block);
      for (std::size_t i = sum.size(); i-- > 0;) {
        if (sum[i] <= spare) {
          low = numbers[i];
          skipped = sum[i];
        } else {
          high = (std::max)(high, numbers[i]);
          break;
        }
      }
    }
    if (skipped < 0) skipped = sums<1>({floor(low)}, each_block)[0];
    if (skipped == 0) return {};
    return {floor(low), static_cast<S>(skipped)};
  }

 private:
  static constexpr double per_octave = 16;
  static constexpr Index tried = 8;                                                   ///< floors compared in one sweep
  static constexpr Index lowest = -16 * Index(std::numeric_limits<S>::min_exponent);  ///< below it weights are 0
  static S floor(Index number) { return static_cast<S>(std::exp2(-static_cast<double>(number) / per_octave)); }
  static Index number(double floor) {
    return floor >= 1                                                      ? 0
           : floor <= std::exp2(-static_cast<double>(lowest) / per_octave) ? lowest
                                                                           : static_cast<Index>(-per_octave * std::log2(floor));
  }

  /// Σ e over the weights below each limit.
  template <Index N, class Blocks> static std::array<double, N> sums(const std::array<S, N>& limits, Blocks&& each_block) {
    std::array<double, N> total{};
    Packet limit[std::size_t(N)], sum[std::size_t(N)];
    for (std::size_t k = 0; k < limits.size(); ++k) limit[k] = V::broadcast(limits[k]), sum[k] = V::zero();
    const auto flush = [&] {
      for (std::size_t k = 0; k < limits.size(); ++k) total[k] += static_cast<double>(V::sum(sum[k])), sum[k] = V::zero();
    };
    Index part = 0;
    each_block([&](const S* block, Index number) {
      if (number / 64 != part) flush();
      part = number / 64;
      for (Index i = 0; i < attention_block; i += V::width) {
        const Packet e = V::load(block + i);
#pragma GCC unroll 8
        for (std::size_t k = 0; k < std::size_t(N); ++k) sum[k] = V::add(sum[k], V::select(V::less(e, limit[k]), e, V::zero()));
      }
    });
    flush();
    return total;
  }
};

}}}  // namespace pith::v0::detail
