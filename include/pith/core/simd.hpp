#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include <pith/core/types.hpp>
#include <pith/core/widen.hpp>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // packets as template arguments of Eigen's functions keep their alignment
#endif

// SIMD packets, for all kernels.

namespace pith { inline namespace v0 { namespace detail {

/// SIMD operations on the widest packet of S in this build (one number if vectorisation is off): the only place that uses Eigen's packet
/// internals. Every lane of an elementwise function computes the same bits from the same input.
///
/// Law      madd rounds once if the target has FMA and twice if not, never a mixture
template <class S> struct Simd {
  static_assert(std::is_same_v<S, float> || std::is_same_v<S, double>);
  using Packet = typename Eigen::internal::packet_traits<S>::type;
  static constexpr int width = Eigen::internal::unpacket_traits<Packet>::size;
#if defined(EIGEN_VECTORIZE_AVX512) || (defined(__aarch64__) && defined(EIGEN_VECTORIZE_NEON))
  static constexpr int registers = 32;
#else
  static constexpr int registers = 16;
#endif

  static Packet load(const S* p) { return Eigen::internal::ploadu<Packet>(p); }
  static void store(S* p, Packet a) { Eigen::internal::pstoreu(p, a); }
  static Packet broadcast(S v) { return Eigen::internal::pset1<Packet>(v); }
  static Packet zero() { return broadcast(S(0)); }

  static Packet add(Packet a, Packet b) { return in_order(Eigen::internal::padd(a, b)); }
  static Packet sub(Packet a, Packet b) { return in_order(Eigen::internal::psub(a, b)); }
  static Packet mul(Packet a, Packet b) { return in_order(Eigen::internal::pmul(a, b)); }
  static Packet div(Packet a, Packet b) { return Eigen::internal::pdiv(a, b); }
  static Packet larger(Packet a, Packet b) { return Eigen::internal::pmax(a, b); }
  static Packet smaller(Packet a, Packet b) { return Eigen::internal::pmin(a, b); }
  static Packet abs(Packet a) { return Eigen::internal::pabs(a); }
  static Packet select(Packet mask, Packet yes, Packet no) { return Eigen::internal::pselect(mask, yes, no); }
  static Packet less(Packet a, Packet b) { return Eigen::internal::pcmp_lt(a, b); }
  static Packet equal(Packet a, Packet b) { return Eigen::internal::pcmp_eq(a, b); }

  /// a * b + c
  static Packet madd(Packet a, Packet b, Packet c) {
    if constexpr (width > 1) {
      return in_order(Eigen::internal::pmadd(a, b, c));
    } else {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__FP_FAST_FMAF)
      return std::fma(a, b, c);  // explicit, because compilers contract a * b + c in some loops and not in others
#else
      return in_order(a * b + c);
#endif
    }
  }

  /// e^a for a <= 0, the range that softmax and the gates need: to 3 units in the last place of a float (the series' remainder
  /// r^7/5040 at |r| <= ln(2)/2 is half of that) and 4 of a double. Exactly 1 at 0, exactly 0 below the smallest normal
  /// number and at -inf, NaN stays NaN.
  static Packet exp_down(Packet a) {
    constexpr S smallest = std::is_same_v<S, float> ? S(-87.33654) : S(-708.39641);
    Packet e;
    if constexpr (std::is_same_v<S, float> && width > 1) {
      using Words = typename Eigen::internal::unpacket_traits<Packet>::integer_packet;
      const Packet magic = broadcast(S(12582912));  // adding it rounds to an integer, in the lowest bits
      Packet shifted = madd(a, broadcast(S(1.44269504)), magic);
      round_here(shifted);
      const Packet n = sub(shifted, magic);
      Packet r = madd(n, broadcast(S(-0.693359375)), a);  // ln 2 in two parts: n times the first is exact
      round_here(r);
      r = madd(n, broadcast(S(2.12194440e-4)), r);
      Packet p = broadcast(S(1.38888889e-3));
      p = madd(p, r, broadcast(S(8.33333333e-3)));
      p = madd(p, r, broadcast(S(4.16666667e-2)));
      p = madd(p, r, broadcast(S(1.66666667e-1)));
      p = madd(p, r, broadcast(S(.5)));
      p = madd(p, r, broadcast(S(1)));
      p = madd(p, r, broadcast(S(1)));
      const Words power = Eigen::internal::plogical_shift_left<23>(Eigen::internal::preinterpret<Words>(shifted));
      e = Eigen::internal::preinterpret<Packet>(Eigen::internal::padd(Eigen::internal::preinterpret<Words>(p), power));
    } else {
      e = Eigen::internal::pexp(a);
    }
    return select(less(a, broadcast(smallest)), zero(), select(equal(a, a), e, a));
  }

  static S sum(Packet a) { return Eigen::internal::predux(a); }
  static S largest(Packet a) { return Eigen::internal::predux_max(a); }
  static S first(Packet a) { return Eigen::internal::pfirst(a); }

  /// Loads the first n numbers at p, widened, and fills the other lanes with `fill`, so that tails run through the same code as whole
  /// packets.
  template <class T> static Packet load_part(const T* p, Index n, S fill) {
    S lanes[std::size_t(width)];
    for (Index i = 0; i < width; ++i) lanes[i] = i < n ? S(widen(p[i])) : fill;
    return load(lanes);
  }
  static void store_part(S* p, Index n, Packet a) {
    S lanes[std::size_t(width)];
    store(lanes, a);
    for (Index i = 0; i < n; ++i) p[i] = lanes[i];
  }

  /// Loads `width` consecutive numbers of a narrower type, widened.
  static Packet load(const bfloat16* p) requires std::is_same_v<S, float>;
  static Packet load(const half* p) requires std::is_same_v<S, float>;
  static Packet load(const std::int8_t* p) requires std::is_same_v<S, float>;

  /// Loads 2 * width bfloat16, the even ones by a shift, the odd ones by a mask: half the cost of load().
  static Packet load_even(const bfloat16* p) requires std::is_same_v<S, float>;
  static Packet load_odd(const bfloat16* p) requires std::is_same_v<S, float>;

  /// Every step-th of some numbers, widened one by one.
  template <class T> static Packet load_each(const T* p, int step = 1) {
    S lanes[std::size_t(width)];
    for (int i = 0; i < width; ++i) lanes[i] = widen(p[i * step]);
    return load(lanes);
  }

  /// Makes the compiler keep a packet in a register instead of reloading it at every use.
  static void pin([[maybe_unused]] Packet& a) {
#if defined(__GNUC__) && defined(EIGEN_VECTORIZE_AVX512)
    asm("" : "+v"(a));
#elif defined(__GNUC__) && defined(EIGEN_VECTORIZE_SSE2)
    asm("" : "+x"(a));
#elif defined(__GNUC__) && defined(__aarch64__) && defined(EIGEN_VECTORIZE_NEON)
    asm("" : "+w"(a));
#endif
  }

  /// Makes the compiler round a packet at this point: -fassociative-math would cancel an addition against its subtraction.
  static void round_here(Packet& a) {
#if defined(__GNUC__) && (defined(EIGEN_VECTORIZE_SSE2) || (defined(__aarch64__) && defined(EIGEN_VECTORIZE_NEON)))
    pin(a);
#elif defined(__GNUC__)
    asm("" : "+m"(a));
#endif
  }

  /// Keeps the compiler from regrouping a result with others: under -ffast-math the same sum could have different bits in each kernel.
  static Packet in_order(Packet a) {
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || (defined(__clang__) && defined(__NO_MATH_ERRNO__))
    round_here(a);
#endif
    return a;
  }

  /// Transposes width packets in place.
  static void transpose(Packet (&rows)[std::size_t(width)]) {
    Eigen::internal::PacketBlock<Packet, width> block;
    for (int i = 0; i < width; ++i) block.packet[i] = rows[i];
    Eigen::internal::ptranspose(block);
    for (int i = 0; i < width; ++i) rows[i] = block.packet[i];
  }

  /// Whether sum_each() adds neighbouring lanes first, then pairs of them, and so on; otherwise it adds halves.
#if defined(EIGEN_VECTORIZE_AVX) && !defined(EIGEN_VECTORIZE_AVX512)
  static constexpr bool sums_neighbours = std::is_same_v<S, float>;
#else
  static constexpr bool sums_neighbours = false;
#endif

  /// Lane i of the result is the sum of the lanes of rows[i], always added in the same order; overwrites rows.
  static Packet sum_each(Packet (&rows)[std::size_t(width)]) {
#if defined(EIGEN_VECTORIZE_AVX) && !defined(EIGEN_VECTORIZE_AVX512)
    if constexpr (sums_neighbours) {
      const auto pairs = [](Packet a, Packet b) { return add(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xDD)); };
      const Packet low = pairs(pairs(rows[0], rows[1]), pairs(rows[2], rows[3]));
      const Packet high = pairs(pairs(rows[4], rows[5]), pairs(rows[6], rows[7]));
      return add(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
    }
#elif defined(EIGEN_VECTORIZE_AVX512)
    if constexpr (std::is_same_v<S, float>) return folded(rows);
#endif
    transpose(rows);
    for (int half = width / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) rows[i] = add(rows[i], rows[i + half]);
    return rows[0];
  }

#if defined(EIGEN_VECTORIZE_AVX512)
 private:
  /// sum_each() by halves without transposing: 15 shuffles, 30 blends and 15 additions in place of 64 shuffles and 15 additions.
  ///
  /// Each level adds the halves of two packets at once, one sum in the lower halves of the result's groups, one in the upper; so the rows
  /// enter with the bits of their numbers reversed.
  static Packet folded(const Packet (&rows)[16]) requires std::is_same_v<S, float> {
    const auto halves = [](__mmask16 upper, auto swapped) {
      return [=](Packet a, Packet b) { return add(_mm512_mask_blend_ps(upper, a, b), swapped(_mm512_mask_blend_ps(upper, b, a))); };
    };
    const auto eights = halves(0xFF00, [](Packet a) { return Packet(_mm512_shuffle_f32x4(a, a, 0x4E)); });
    const auto fours = halves(0xF0F0, [](Packet a) { return Packet(_mm512_shuffle_f32x4(a, a, 0xB1)); });
    const auto twos = halves(0xCCCC, [](Packet a) { return Packet(_mm512_permute_ps(a, 0x4E)); });
    const auto ones = halves(0xAAAA, [](Packet a) { return Packet(_mm512_permute_ps(a, 0xB1)); });
    const auto four = [&](int i) { return fours(eights(rows[i], rows[i + 8]), eights(rows[i + 4], rows[i + 12])); };
    return ones(twos(four(0), four(2)), twos(four(1), four(3)));
  }
#endif
};

template <class S> typename Simd<S>::Packet Simd<S>::load(const bfloat16* p) requires std::is_same_v<S, float> {
#if defined(EIGEN_VECTORIZE_AVX512)
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
#elif defined(EIGEN_VECTORIZE_AVX2)
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
#elif defined(EIGEN_VECTORIZE_AVX)
  const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), none = _mm_setzero_si128();
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_castsi128_ps(_mm_unpacklo_epi16(none, words))),
                              _mm_castsi128_ps(_mm_unpackhi_epi16(none, words)), 1);
#elif defined(EIGEN_VECTORIZE_SSE2)
  return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#elif defined(__aarch64__) && defined(EIGEN_VECTORIZE_NEON)
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&p->value), 16));
#else
  return load_each(p);
#endif
}

template <class S> typename Simd<S>::Packet Simd<S>::load(const half* p) requires std::is_same_v<S, float> {
#if defined(EIGEN_VECTORIZE_AVX512)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(EIGEN_VECTORIZE_AVX) && defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__aarch64__) && defined(EIGEN_VECTORIZE_NEON)
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p))));
#else
  return load_each(p);
#endif
}

template <class S> typename Simd<S>::Packet Simd<S>::load(const std::int8_t* p) requires std::is_same_v<S, float> {
#if defined(EIGEN_VECTORIZE_AVX512)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(EIGEN_VECTORIZE_AVX2)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#elif defined(EIGEN_VECTORIZE_SSE2) && !defined(EIGEN_VECTORIZE_AVX)
  int bytes;
  std::memcpy(&bytes, p, sizeof(bytes));
  __m128i words = _mm_cvtsi32_si128(bytes);  // moves each byte to the top of a word, then shifts it down with its sign
  words = _mm_unpacklo_epi8(words, words);
  return _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(words, words), 24));
#elif defined(__aarch64__) && defined(EIGEN_VECTORIZE_NEON)
  std::int32_t bytes;
  std::memcpy(&bytes, p, sizeof(bytes));
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(bytes))))));
#else
  return load_each(p);
#endif
}

template <class S> typename Simd<S>::Packet Simd<S>::load_even(const bfloat16* p) requires std::is_same_v<S, float> {
  if constexpr (width > 1 && std::endian::native == std::endian::little) {
    using Words = typename Eigen::internal::unpacket_traits<Packet>::integer_packet;
    const Words words = Eigen::internal::preinterpret<Words>(load(reinterpret_cast<const S*>(p)));
    return Eigen::internal::preinterpret<Packet>(Eigen::internal::plogical_shift_left<16>(words));
  } else {
    return load_each(p, 2);
  }
}

template <class S> typename Simd<S>::Packet Simd<S>::load_odd(const bfloat16* p) requires std::is_same_v<S, float> {
  if constexpr (width > 1 && std::endian::native == std::endian::little)
    return Eigen::internal::pand(load(reinterpret_cast<const S*>(p)), Eigen::internal::pset1frombits<Packet>(0xFFFF0000u));
  else
    return load_each(p + 1, 2);
}

/// out[i] = f(in[i]) packet by packet, with a padded tail: a number's result does not depend on its index.
template <class S, class F> void map_packets(const S* in, S* out, Index n, F&& f) {
  using V = Simd<S>;
  Index i = 0;
  for (; i + V::width <= n; i += V::width) V::store(out + i, f(V::load(in + i)));
  if (i < n) V::store_part(out + i, n - i, f(V::load_part(in + i, n - i, S(0))));
}

/// out[i] = f(a[i], b[i]) in the same way.
template <class S, class F> void map_packets(const S* a, const S* b, S* out, Index n, F&& f) {
  using V = Simd<S>;
  Index i = 0;
  for (; i + V::width <= n; i += V::width) V::store(out + i, f(V::load(a + i), V::load(b + i)));
  if (i < n) V::store_part(out + i, n - i, f(V::load_part(a + i, n - i, S(0)), V::load_part(b + i, n - i, S(0))));
}

}}}  // namespace pith::v0::detail

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
