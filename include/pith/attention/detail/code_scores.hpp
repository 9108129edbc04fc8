#pragma once
// Scores of rows of Q8 by products of bytes, where the processor has them.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include <pith/attention/detail/attend_kernel.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>

namespace pith { inline namespace v0 { namespace detail {

#if defined(EIGEN_VECTORIZE_AVX512) && defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__F16C__)
inline constexpr bool has_code_scores = true;
#else
inline constexpr bool has_code_scores = false;
#endif

/// Scores of rows of Q8 by the processor's products of bytes, for heads of whole 64 numbers: a query is rounded to 16 bits, in two planes
/// of bytes, and each block's sum of integers is exact.
///
///   score = s Σ_b scale_b Σ_i (256 high_i + low_i - 2^15) code_i,   s = max |q| / 32767
///
/// What rounding the query loses is known: |q - q'|₂ |k'|₂, where |k'|₂ <= 127 √32 Σ_b scale_b.
struct CodeScores {
  static bool possible(Index dim) { return has_code_scores && dim % 64 == 0; }

  static constexpr double norm_of_scale = 127 * 5.656854249492381;  ///< of a block, per scale

  /// Writes a query's planes [dim] and [dim], then s as a float; returns |q - q'|₂, rounded up.
  static float encode(const float* q, Index dim, std::byte* to) {
    float largest = 0, odd = 0;  // odd becomes NaN if any number is not finite
    for (Index i = 0; i < dim; ++i) {
      largest = (std::max)(largest, std::abs(q[i]));
      odd += q[i] - q[i];
    }
    const float s = largest / 32767 + odd, inverse = s >= (std::numeric_limits<float>::min)() ? 1 / s : 0;
    double lost = 0;
    for (Index i = 0; i < dim; ++i) {
      const std::int32_t steps = inverse > 0 ? static_cast<std::int32_t>(q[i] * inverse + std::copysign(.5f, q[i])) : 0;
      const double off = static_cast<double>(q[i]) - static_cast<double>(s) * steps;
      lost += off * off;
      to[i] = static_cast<std::byte>((steps + 32768) >> 8);
      to[dim + i] = static_cast<std::byte>((steps + 32768) & 255);
    }
    std::memcpy(to + 2 * dim, &s, sizeof(s));
    return static_cast<float>(std::sqrt(lost) * (1 + 0x1p-20));
  }

  /// score[q, r] for Q queries, `padded` floats from one to the next, over rows of codes.
  template <int Q>
  static void run([[maybe_unused]] const float* query, [[maybe_unused]] Index padded, [[maybe_unused]] Index dim,
                  [[maybe_unused]] const std::byte* rows, [[maybe_unused]] Index stride, [[maybe_unused]] Index count,
                  [[maybe_unused]] float* score, [[maybe_unused]] Index score_stride) {
#if defined(EIGEN_VECTORIZE_AVX512) && defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__F16C__)
    using V = Simd<float>;
    constexpr int together = 16 / Q;
    const __m512i ones = _mm512_set1_epi8(1), halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    float step[std::size_t(Q)];
    for (int j = 0; j < Q; ++j) std::memcpy(&step[j], reinterpret_cast<const std::byte*>(query + j * padded) + 2 * dim, sizeof(float));
    for (Index r = 0; r < count; r += together) {
      __m512 sum[16];
      if constexpr (Q * together < 16) sum[15] = _mm512_setzero_ps();
#pragma GCC unroll 16
      for (int i = 0; i < together; ++i) {
        const std::byte* at = rows + (std::min)(r + i, count - 1) * stride;
        fetch(at + attention_block * stride);
        __m512 of_row[std::size_t(Q)];
#pragma GCC unroll 4
        for (int j = 0; j < Q; ++j) of_row[j] = _mm512_setzero_ps();
        for (Index c = 0; c < dim; c += 64, at += 68) {
          std::uint16_t scale[2];
          std::memcpy(&scale[0], at, 2);
          std::memcpy(&scale[1], at + 34, 2);
          const __m512i codes = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 2))),
                                                   _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 36)), 1);
          const __m128 both = _mm_cvtph_ps(_mm_cvtsi32_si128(static_cast<int>(scale[0] | std::uint32_t(scale[1]) << 16)));
          const __m512 scales = _mm512_permutexvar_ps(halves, _mm512_castps128_ps512(both));
          const __m512i shift = _mm512_slli_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, codes), 15);
#pragma GCC unroll 4
          for (int j = 0; j < Q; ++j) {
            const auto* const planes = reinterpret_cast<const std::byte*>(query + j * padded) + c;
            __m512i total = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_loadu_si512(planes), codes);
            total = _mm512_dpbusd_epi32(_mm512_slli_epi32(total, 8), _mm512_loadu_si512(planes + dim), codes);
            of_row[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(total, shift)), scales, of_row[j]);
          }
        }
#pragma GCC unroll 4
        for (int j = 0; j < Q; ++j) sum[j * together + i] = of_row[j];
      }
      float lanes[16];
      V::store(lanes, V::sum_each(sum));
      const Index some = (std::min<Index>)(together, count - r);
      for (int j = 0; j < Q; ++j)
        for (Index i = 0; i < some; ++i) score[j * score_stride + r + i] = lanes[j * together + i] * step[j];
    }
#endif
  }
};

}}}  // namespace pith::v0::detail
