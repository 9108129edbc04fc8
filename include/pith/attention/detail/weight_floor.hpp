#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include <pith/attention/detail/attend_kernel.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>

// Which rows the softmax of a query can do without.

namespace pith { inline namespace v0 { namespace detail {

/// Rows of weight below `least`, which sum to `skipped`, need not be read. As it stands: only rows of weight 0.
template <class S> struct WeightFloor { S least = (std::numeric_limits<S>::min)(), skipped = 0; };

/// Searches for the highest floor for which the weights below it sum to at most a given number. Floors are powers of 2^(1/16), so that a
/// lower number never skips a row that a higher one reads.
///
/// Weights are numbers e = exp(x - top), attention_block of them a block. Sums run in packets over 64 numbers of blocks at a time, then in
/// double: they are off by less than 2^-16 of themselves. Sums grow with floors also as rounded, so the answer is the same wherever the
/// search begins: it begins where every sixteenth block has it.
///
/// Cost     two or three sweeps of the weights, eight compares and additions a packet
template <class S> class FloorSearch {
 public:
  using V = Simd<S>;
  using Packet = typename V::Packet;
  static constexpr Index sample = 16;  ///< the first search reads one block in 16
  static bool sampled(Index block) { return block % sample == sample / 2; }

  /// Σ e
  static double total(const S* weights, Index blocks) { return sums<1>({std::numeric_limits<S>::infinity()}, weights, blocks, 1)[0]; }

  /// The highest floor for which the weights below it sum to at most `spare`, as computed.
  static WeightFloor<S> below(double spare, const S* weights, Index blocks) {
    if (!(spare > 0)) return {};
    const Index from = blocks < 4 * sample ? -1 : search(spare / double(sample), weights, blocks, sample, bracket(spare, blocks), -1).low;
    return search_all(spare, weights, blocks, 1, from);
  }
  /// below() where in_sample() found `guess` for a sixteenth of `spare`.
  static WeightFloor<S> below(double spare, const S* weights, Index blocks, S guess) {
    if (!(spare > 0)) return {};
    return search_all(spare, weights, blocks, 1, number(static_cast<double>(guess)));
  }
  /// The same of the sampled blocks alone.
  static WeightFloor<S> in_sample(double spare, const S* weights, Index blocks) {
    if (!(spare > 0)) return {};
    return search_all(spare, weights, blocks, sample, -1);
  }

 private:
  static constexpr double per_octave = 16;
  static constexpr Index tried = 8;                                                   ///< floors compared in one sweep
  static constexpr Index lowest = -16 * Index(std::numeric_limits<S>::min_exponent);  ///< below it weights are 0
  static S floor(Index number) {
    if (number < 0) return static_cast<S>(std::exp2(-static_cast<double>(number) / per_octave));
    constexpr double part[16] = {1.0,
                                 0.9576032806985737,
                                 0.9170040432046712,
                                 0.8781260801866497,
                                 0.8408964152537145,
                                 0.8052451659746271,
                                 0.7711054127039704,
                                 0.7384130729697497,
                                 0.7071067811865476,
                                 0.6771277734684463,
                                 0.6484197773255048,
                                 0.620928906036742,
                                 0.5946035575013605,
                                 0.5693943173783458,
                                 0.5452538663326288,
                                 0.5221368912137069};
    return static_cast<S>(part[number % 16] * bits_as<double>(static_cast<std::uint64_t>(1023 - number / 16) << 52));
  }
  static Index number(double floor) {
    return floor >= 1                                                      ? 0
           : floor <= std::exp2(-static_cast<double>(lowest) / per_octave) ? lowest
                                                                           : static_cast<Index>(-per_octave * std::log2(floor));
  }

  /// The higher the number, the lower the floor: the rows below floor `low` sum to at most `spare`, those below `high` may not.
  struct Bracket {
    Index high, low;
    double skipped = -1;  ///< Σ below floor `low`, if known
  };

  /// Over every step-th block.
  static WeightFloor<S> search_all(double spare, const S* weights, Index blocks, Index step, Index guess) {
    const Bracket found = search(spare, weights, blocks, step, bracket(spare, blocks), guess);
    const double skipped = found.skipped < 0 ? sums<1>({floor(found.low)}, weights, blocks, step)[0] : found.skipped;
    if (skipped == 0) return {};
    return {floor(found.low), static_cast<S>(skipped)};
  }

  static Bracket bracket(double spare, Index blocks) {
    return {-1, (std::min)(number(spare / static_cast<double>(blocks * attention_block)) + 1, lowest)};
  }

  /// Narrows a bracket to neighbours, over every step-th block. `guess`: the floor that is tried first, with its neighbours; -1: none.
  static Bracket search(double spare, const S* weights, Index blocks, Index step, Bracket b, Index guess) {
    const auto try_from = [&](Index from, Index distance) {
      std::array<Index, tried> numbers;
      std::array<S, tried> limits;
      for (Index i = 0; i < tried; ++i) {
        numbers[std::size_t(i)] = (std::min)(from + distance * (i + 1), b.low);
        limits[std::size_t(i)] = floor(numbers[std::size_t(i)]);
      }
      const std::array<double, tried> sum = sums<tried>(limits, weights, blocks, step);
      for (std::size_t i = sum.size(); i-- > 0;) {
        if (sum[i] <= spare) {
          b.low = numbers[i];
          b.skipped = sum[i];
        } else {
          b.high = (std::max)(b.high, numbers[i]);
          break;
        }
      }
    };
    const Index first = guess < 0 ? number(spare) - 1 : guess - tried / 2 - 1;
    try_from(std::clamp(first, b.high, (std::max)(b.high, b.low - 2)), guess < 0 ? wide_step(b, first) : 1);
    while (b.low - b.high > 1) try_from(b.high, wide_step(b, b.high));
    return b;
  }
  static Index wide_step(const Bracket& b, Index from) { return (b.low - (std::max)(from, b.high) + tried) / (tried + 1); }

  /// sum + e where e is below the limit.
  static Packet add_below(Packet sum, Packet e, Packet limit) {
#if defined(EIGEN_VECTORIZE_AVX512)
    if constexpr (std::is_same_v<S, float>) return _mm512_mask_add_ps(sum, _mm512_cmp_ps_mask(e, limit, _CMP_LT_OQ), sum, e);
#elif defined(EIGEN_VECTORIZE_AVX)
    if constexpr (std::is_same_v<S, float>) return _mm256_add_ps(sum, _mm256_and_ps(_mm256_cmp_ps(e, limit, _CMP_LT_OQ), e));
#endif
    return V::add(sum, V::select(V::less(e, limit), e, V::zero()));
  }

  /// Σ e over the weights below each limit, in every step-th block.
  template <std::size_t N> static std::array<double, N> sums(const std::array<S, N>& limits, const S* weights, Index blocks, Index step) {
    std::array<double, N> total{};
    Packet limit[N], sum[N];
    for (std::size_t k = 0; k < limits.size(); ++k) limit[k] = V::broadcast(limits[k]);
    for (Index first = 0; first < blocks; first += 64) {
      for (std::size_t k = 0; k < limits.size(); ++k) sum[k] = V::zero();
      for (Index block = first + step / 2; block < (std::min)(first + 64, blocks); block += step)
        for (Index i = block * attention_block; i < (block + 1) * attention_block; i += V::width) {
          const Packet e = V::load(weights + i);
#pragma GCC unroll 8
          for (std::size_t k = 0; k < std::size_t(N); ++k) sum[k] = add_below(sum[k], e, limit[k]);
        }
      for (std::size_t k = 0; k < limits.size(); ++k) total[k] += static_cast<double>(V::sum(sum[k]));
    }
    return total;
  }
};

/// A bit for each row of a block whose weight is not below the floor.
template <class S> std::uint32_t rows_at_least(const S* weights, S floor) {
  std::uint32_t rows = 0;
#if defined(EIGEN_VECTORIZE_AVX512)
  if constexpr (std::is_same_v<S, float>) {
    for (int i = 0; i < int(attention_block); i += 16)
      rows |= static_cast<std::uint32_t>(_mm512_cmp_ps_mask(_mm512_loadu_ps(weights + i), _mm512_set1_ps(floor), _CMP_NLT_UQ)) << i;
    return rows;
  }
#elif defined(EIGEN_VECTORIZE_AVX)
  if constexpr (std::is_same_v<S, float>) {
    for (int i = 0; i < int(attention_block); i += 8)
      rows |=
          static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(weights + i), _mm256_set1_ps(floor), _CMP_NLT_UQ)))
          << i;
    return rows;
  }
#endif
  for (std::uint32_t i = 0; i < std::uint32_t(attention_block); ++i) rows |= std::uint32_t(!(weights[i] < floor)) << i;
  return rows;
}

/// Writes the numbers of the rows whose bits are set, counted from `first`; returns how many. There must be room for a block of them.
inline Index list_rows(std::uint32_t bits, std::uint32_t first, std::uint32_t* to) {
#if defined(EIGEN_VECTORIZE_AVX512)
  const __m512i ascending = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i low = _mm512_add_epi32(ascending, _mm512_set1_epi32(static_cast<int>(first)));
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), low));
  _mm512_storeu_si512(to + std::popcount(bits & 0xFFFF),
                      _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits >> 16), _mm512_add_epi32(low, _mm512_set1_epi32(16))));
  return std::popcount(bits);
#else
  Index count = 0;
  for (; bits != 0; bits &= bits - 1) to[count++] = first + static_cast<std::uint32_t>(std::countr_zero(bits));
  return count;
#endif
}

}}}  // namespace pith::v0::detail
