#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <pith/core/detail/nibbles.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && defined(EIGEN_VECTORIZE_AVX2)

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // registers as template arguments keep their alignment
#endif

// Lanes of integers in AVX2 and AVX-512, with their dot products where there are any.

namespace pith { inline namespace v0 { namespace detail {

/// Writes eight integers as 16-bit ones.
inline void arrange_pairs(const std::int32_t* q, std::int16_t* slot) {
  const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(slot), _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
}

/// Writes eight integers as their high bytes and their low bytes, in the order in which masks of bytes find codes.
inline void arrange_bytes(const std::int32_t* q, std::int16_t* slot) {
  const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q));
  const __m256i high = _mm256_srai_epi32(_mm256_add_epi32(v, _mm256_set1_epi32(64)), 7);
  const __m256i low = _mm256_sub_epi32(v, _mm256_slli_epi32(high, 7));
  const __m256i words = _mm256_packs_epi32(high, low);  // high 0-3, low 0-3, high 4-7, low 4-7
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  const __m128i order = _mm_setr_epi8(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(slot), _mm_shuffle_epi8(bytes, order));
}

/// Registers of 256 bits.
struct Lanes256 {
  static constexpr int width = 8;
  using Floats = __m256;
  using Words = __m256i;
  using Part = __m256i;

  static Words words(const std::uint32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Floats load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Floats f) { _mm256_storeu_ps(p, f); }
  static Floats broadcast(float v) { return _mm256_set1_ps(v); }
  static Floats widen_half(const std::uint16_t* bits) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bits))); }
  static Floats widen_bfloat16(const std::uint16_t* bits) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bits)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static Floats times(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
};

struct Pairs256 : Lanes256 {
  static constexpr int parts = 4, tile_tokens = 6, tile_registers = 2;
  using Inputs = __m256i;
  using Sum = __m256i;

  static void arrange(const std::int32_t* q, std::int16_t* slot) { arrange_pairs(q, slot); }
  static Part unpack(Words w, int part) {
    return _mm256_and_si256(_mm256_srli_epi32(w, nibble_shift(2 * part)), _mm256_set1_epi32(0x000f000f));
  }
  static Part pairs(const std::int8_t* even, const std::int8_t* odd) {
    const auto both = [](const std::int8_t* p) {
      long long eight;
      std::memcpy(&eight, p, sizeof(eight));
      return _mm256_set1_epi64x(eight);
    };
    const __m256i order = _mm256_setr_epi8(0, -1, 1, -1, 2, -1, 3, -1, 4, -1, 5, -1, 6, -1, 7, -1,  //
                                           8, -1, 9, -1, 10, -1, 11, -1, 12, -1, 13, -1, 14, -1, 15, -1);
    const __m256i wide = _mm256_shuffle_epi8(_mm256_unpacklo_epi8(both(even), both(odd)), order);  // cheaper than _mm256_cvtepi8_epi16
    return _mm256_xor_si256(wide, _mm256_set1_epi16(128));
  }
  static Inputs inputs(const std::int16_t* slot, int part) { return _mm256_set1_epi32(word_at(slot + 2 * part)); }
  static Sum start(std::int32_t v) { return _mm256_set1_epi32(v); }
  static void add(Sum& sum, Part codes, Inputs x) {
#if defined(__AVXVNNI__)
    sum = _mm256_dpwssd_avx_epi32(sum, codes, x);
#else
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(codes, x));
    add_in_order(sum);
#endif
  }
  static Floats total(Sum sum) { return _mm256_cvtepi32_ps(sum); }
};

#if defined(__AVXVNNI__)
struct Bytes256 : Lanes256 {
  static constexpr int parts = 2, tile_tokens = 4, tile_registers = 1;
  struct Inputs {
    __m256i high, low;
  };
  using Sum = Inputs;

  static void arrange(const std::int32_t* q, std::int16_t* slot) { arrange_bytes(q, slot); }
  static Part unpack(Words w, int part) { return _mm256_and_si256(part == 0 ? w : _mm256_srli_epi32(w, 4), _mm256_set1_epi8(0x0f)); }
  static Inputs inputs(const std::int16_t* slot, int part) {
    return {_mm256_set1_epi32(word_at(slot + 2 * part)), _mm256_set1_epi32(word_at(slot + 4 + 2 * part))};
  }
  static Sum start(std::int32_t v) { return {_mm256_setzero_si256(), _mm256_set1_epi32(v)}; }
  static void add(Sum& sum, Part codes, const Inputs& x) {
    sum.high = _mm256_dpbusd_avx_epi32(sum.high, codes, x.high);
    sum.low = _mm256_dpbusd_avx_epi32(sum.low, codes, x.low);
  }
  static Floats total(const Sum& sum) { return _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(sum.high, 7), sum.low)); }
};
#endif

#if defined(__AVX512BW__) && defined(EIGEN_VECTORIZE_AVX512)

/// Registers of 512 bits. Their dot products are written in assembly: from intrinsics g++ 12 copies every sum, once a step.
struct Lanes512 {
  static constexpr int width = 16;
  using Floats = __m512;
  using Words = __m512i;
  using Part = __m512i;

  static Words words(const std::uint32_t* p) {
    Words w = _mm512_loadu_si512(p);
    asm("" : "+v"(w));  // read once, rather than by each instruction that unpacks it
    return w;
  }
  static Floats load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Floats f) { _mm512_storeu_ps(p, f); }
  static Floats broadcast(float v) { return _mm512_set1_ps(v); }
  static Floats widen_half(const std::uint16_t* bits) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits)));
  }
  static Floats widen_bfloat16(const std::uint16_t* bits) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
};

struct Pairs512 : Lanes512 {
  static constexpr int parts = 4, tile_tokens = 12, tile_registers = 2;
  using Inputs = __m512i;
  using Sum = __m512i;

  static void arrange(const std::int32_t* q, std::int16_t* slot) { arrange_pairs(q, slot); }
  static Part unpack(Words w, int part) {
    return _mm512_and_si512(_mm512_srli_epi32(w, static_cast<unsigned>(nibble_shift(2 * part))), _mm512_set1_epi32(0x000f000f));
  }
  static Part pairs(const std::int8_t* even, const std::int8_t* odd) {
    const __m512i first = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(even))),
                  second = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(odd)));
    constexpr int or_xor = 0x56;  // (a | b) ^ c
    return _mm512_ternarylogic_epi32(first, _mm512_slli_epi32(second, 16), _mm512_set1_epi16(128), or_xor);
  }
  static Inputs inputs(const std::int16_t* slot, int part) { return _mm512_set1_epi32(word_at(slot + 2 * part)); }
  static Sum start(std::int32_t v) { return _mm512_set1_epi32(v); }
  static void add(Sum& sum, Part codes, Inputs x) {
#if defined(__AVX512VNNI__)
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(x));
#else
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(codes, x));
    add_in_order(sum);
#endif
  }
  static Floats total(Sum sum) { return _mm512_cvtepi32_ps(sum); }
};

#if defined(__AVX512VNNI__)
struct Bytes512 : Lanes512 {
  static constexpr int parts = 2, tile_tokens = 4, tile_registers = 2;
  struct Inputs {
    __m512i high, low;
  };
  using Sum = Inputs;

  static void arrange(const std::int32_t* q, std::int16_t* slot) { arrange_bytes(q, slot); }
  static Part unpack(Words w, int part) { return _mm512_and_si512(part == 0 ? w : _mm512_srli_epi32(w, 4), _mm512_set1_epi8(0x0f)); }
  static Inputs inputs(const std::int16_t* slot, int part) {
    return {_mm512_set1_epi32(word_at(slot + 2 * part)), _mm512_set1_epi32(word_at(slot + 4 + 2 * part))};
  }
  static Sum start(std::int32_t v) { return {_mm512_setzero_si512(), _mm512_set1_epi32(v)}; }
  static void add(Sum& sum, Part codes, const Inputs& x) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum.high) : "v"(codes), "v"(x.high));
    asm("vpdpbusd %2, %1, %0" : "+v"(sum.low) : "v"(codes), "v"(x.low));
  }
  static Floats total(const Sum& sum) { return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(sum.high, 7), sum.low)); }
};
#endif
#endif

}}}  // namespace pith::v0::detail

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#endif
