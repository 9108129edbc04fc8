#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <pith/core/detail/nibbles.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>

#if defined(EIGEN_VECTORIZE_SSE2)

// Lanes of integers in SSE2, without a fused multiply-add or halves in hardware.

namespace pith { inline namespace v0 { namespace detail {

struct Pairs128 {
  static constexpr int width = 4, parts = 4, tile_tokens = 4, tile_registers = 2;
  using Floats = __m128;
  using Words = __m128i;
  using Part = __m128i;
  using Inputs = __m128i;
  using Sum = __m128i;

  static void arrange(const std::int32_t* q, std::int16_t* slot) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q)),
                  high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + 4));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(slot), _mm_packs_epi32(low, high));
  }
  static Words words(const std::uint32_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static Part unpack(Words w, int part) { return _mm_and_si128(_mm_srli_epi32(w, nibble_shift(2 * part)), _mm_set1_epi32(0x000f000f)); }
  static Part pairs(const std::int8_t* even, const std::int8_t* odd) {
    const auto four = [](const std::int8_t* p) {
      int word;
      std::memcpy(&word, p, sizeof(word));
      return _mm_cvtsi32_si128(word);
    };
    const __m128i wide = _mm_unpacklo_epi8(_mm_unpacklo_epi8(four(even), four(odd)), _mm_setzero_si128());
    return _mm_xor_si128(wide, _mm_set1_epi16(128));
  }
  static Inputs inputs(const std::int16_t* slot, int part) { return _mm_set1_epi32(word_at(slot + 2 * part)); }
  static Sum start(std::int32_t v) { return _mm_set1_epi32(v); }
  static void add(Sum& sum, Part codes, Inputs x) {
    sum = _mm_add_epi32(sum, _mm_madd_epi16(codes, x));
    add_in_order(sum);
  }
  static Floats total(Sum sum) { return _mm_cvtepi32_ps(sum); }

  static Floats load(const float* p) { return _mm_loadu_ps(p); }
  static void store(float* p, Floats f) { _mm_storeu_ps(p, f); }
  static Floats broadcast(float v) { return _mm_set1_ps(v); }
  static Floats widen_half(const std::uint16_t* bits) {
    const __m128i h = _mm_unpacklo_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bits)), _mm_setzero_si128());
    const __m128i sign = _mm_slli_epi32(_mm_and_si128(h, _mm_set1_epi32(0x8000)), 16), rest = _mm_and_si128(h, _mm_set1_epi32(0x7fff));
    const __m128i shifted = _mm_slli_epi32(rest, 13);
    const __m128i odd = _mm_cmpgt_epi32(rest, _mm_set1_epi32(0x7bff));        // infinity, NaN: the largest exponent
    const __m128i subnormal = _mm_cmplt_epi32(rest, _mm_set1_epi32(0x0400));  // below the normal numbers: by a subtraction
    __m128i wide = _mm_add_epi32(shifted, _mm_set1_epi32(112 << 23));
    wide = _mm_add_epi32(wide, _mm_and_si128(odd, _mm_set1_epi32(112 << 23)));
    const __m128 least = _mm_castsi128_ps(_mm_set1_epi32(113 << 23));
    const __m128i tiny = _mm_castps_si128(_mm_sub_ps(_mm_castsi128_ps(_mm_add_epi32(shifted, _mm_set1_epi32(113 << 23))), least));
    wide = _mm_or_si128(_mm_and_si128(subnormal, tiny), _mm_andnot_si128(subnormal, wide));
    return _mm_castsi128_ps(_mm_or_si128(wide, sign));
  }
  static Floats widen_bfloat16(const std::uint16_t* bits) {
    return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bits))));
  }
  static Floats times(Floats a, Floats b) { return _mm_mul_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) {
#if defined(__FMA__)
    return _mm_fmadd_ps(a, b, c);
#else
    const auto upper = [](__m128 v) { return _mm_movehl_ps(v, v); };
    return _mm_movelh_ps(half_of_fma(a, b, c), half_of_fma(upper(a), upper(b), upper(c)));
#endif
  }

 private:
  /// The lower two of a · b + c. The product is exact in double; the sum is rounded to odd, so that rounding it once more, to float, is as
  /// good as rounding once.
  static __m128 half_of_fma(__m128 a, __m128 b, __m128 c) {
    const auto kept = [](__m128d v) {  // as it is rounded here: no compiler may cancel an addition against its subtraction
#if defined(__GNUC__)
      asm("" : "+x"(v));
#endif
      return v;
    };
    const __m128d product = kept(_mm_mul_pd(_mm_cvtps_pd(a), _mm_cvtps_pd(b))), plus = _mm_cvtps_pd(c);
    const __m128d sum = kept(_mm_add_pd(product, plus)), back = kept(_mm_sub_pd(sum, product));
    const __m128d lost = kept(_mm_add_pd(kept(_mm_sub_pd(product, kept(_mm_sub_pd(sum, back)))), kept(_mm_sub_pd(plus, back))));
    const __m128d zero = _mm_setzero_pd();
    const __m128i more = _mm_castpd_si128(_mm_cmpgt_pd(lost, zero)), less = _mm_castpd_si128(_mm_cmplt_pd(lost, zero));
    const __m128i negative = _mm_castpd_si128(_mm_cmplt_pd(sum, zero)), bits = _mm_castpd_si128(sum), one = _mm_set1_epi64x(1);
    // An even sum that lost something moves by one towards what it lost: away from 0 if that has its sign.
    const __m128i inexact = _mm_or_si128(more, less);
    const __m128i even = _mm_xor_si128(_mm_and_si128(bits, one), one), moves = _mm_and_si128(even, inexact);
    const __m128i away = _mm_xor_si128(more, negative);  // of lanes that are inexact
    const __m128i step = _mm_sub_epi64(_mm_and_si128(moves, away), _mm_andnot_si128(away, moves));
    return _mm_cvtpd_ps(_mm_castsi128_pd(_mm_add_epi64(bits, step)));
  }
};

}}}  // namespace pith::v0::detail

#endif
