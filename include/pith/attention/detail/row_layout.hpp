#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include <pith/attention/kv_storage.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>

// How rows of keys and values are read into SIMD packets.

namespace pith { inline namespace v0 { namespace detail {

/// Prefetches a cache line into L1, or into L2. Any address is allowed, also one beyond the end of the rows.
inline void fetch(const void* line) { __builtin_prefetch(line); }
inline void fetch_into_l2(const void* line) { __builtin_prefetch(line, 0, 2); }

/// Whether the target widens a block of codes in registers for less than it costs to write it out as floats and read it back.
#if defined(EIGEN_VECTORIZE_AVX2) && defined(__F16C__)
inline constexpr bool q8_in_registers = true;
#else
inline constexpr bool q8_in_registers = false;
#endif

/// The order of the features of a row stored as T once it is loaded in packets; queries and sums are kept in this order.
///
/// A shift and a mask split pairs of bfloat16, even features to one packet, odd ones to the next. Codes are loaded a block at a time:
/// code · scale is exact in float. Rows that are no whole number of packets or blocks are first copied and padded with zeros.
template <class T> struct RowLayout {
  using S = arithmetic_t<T>;
  using V = Simd<S>;
  static constexpr bool coded = !PlainStorage<T>, four_bits = std::is_same_v<T, Q4>;
  static constexpr bool in_registers = !coded || q8_in_registers;
  static constexpr int step = std::is_same_v<T, bfloat16>  ? 2
                              : !coded || !q8_in_registers ? 1
                                                           : int(q8_block) / V::width;  ///< packets per load

  explicit RowLayout(Index dim)
      : head_dim(dim), packets((dim + V::width - 1) / V::width), whole(in_registers && dim % (step * V::width) == 0) {}

  Index head_dim;
  Index packets;  ///< packets in a padded row
  bool whole;     ///< rows can be read in place
  Index padded() const { return packets * V::width; }

  /// arrange() writes a head's features times scale in the order of loaded rows, padded with zeros; restore() is its inverse.
  void arrange(const S* features, S scale, S* to) const {
    each_place([=](Index feature, Index place) { to[place] = features[feature] * scale; });
    for (Index i = head_dim; i < padded(); ++i) to[i] = S(0);
  }
  void restore(const S* arranged, S scale, S* features) const {
    each_place([=](Index feature, Index place) { features[feature] = arranged[place] * scale; });
  }

  /// Copies and widens rows to [rows, padded()], features in the order of loaded rows. Codes prefetch as many rows from `ahead` on.
  void stage(const T* rows, Index stride, Index count, S* to, [[maybe_unused]] const T* ahead = nullptr) const {
    for (Index r = 0; r < count; ++r, rows += stride, to += padded()) {
      if constexpr (coded) {
        for (Index i = 0; ahead != nullptr && i < stride; i += 64) fetch(ahead + r * stride + i);
        if constexpr (four_bits) q4_decode(reinterpret_cast<const std::byte*>(rows), head_dim, to);
        if constexpr (!four_bits) q8_decode(reinterpret_cast<const std::byte*>(rows), head_dim, to);
        std::fill(to + head_dim, to + padded(), S(0));
      } else if (whole) {
        for (Index i = 0; i < packets; i += step)
          for (int s = 0; s < step; ++s) V::store(to + (i + s) * V::width, load(rows + i * V::width, s));
      } else {
        for (Index i = 0; i < padded(); ++i) to[i] = i < head_dim ? widen(rows[i]) : S(0);
      }
    }
  }

  /// Where feature i of a row lies in units of T, if i is a multiple of step · V::width.
  static constexpr Index unit(Index i) {
    if constexpr (!coded) return i;
    if constexpr (four_bits) return i / q4_block * Index(2 * sizeof(half) + 16);
    return i / q8_block * (q8_block + Index(sizeof(half)));
  }

  /// Loads packet i of a padded row into a register for all its uses.
  static typename V::Packet load(const T* row, Index i) {
    typename V::Packet loaded;
    if constexpr (std::is_same_v<T, bfloat16>) {
      loaded = i % 2 ? V::load_odd(row + (i - 1) * V::width) : V::load_even(row + i * V::width);
    } else if constexpr (four_bits) {
      loaded = load_nibbles(row + unit(i / step * step * V::width), int(i % step));
      V::pin(loaded);
    } else if constexpr (coded) {
      const auto* const block = reinterpret_cast<const std::byte*>(row) + unit(i / step * step * V::width);
      half scale;
      std::memcpy(&scale, block, sizeof(half));
      const auto* const codes = reinterpret_cast<const std::int8_t*>(block + sizeof(half)) + i % step * V::width;
      loaded = V::mul(V::load(codes), V::broadcast(widen(scale)));
      V::pin(loaded);
    } else {
      loaded = V::load(row + i * V::width);
      V::pin(loaded);
    }
    return loaded;
  }

 private:
  /// Packet i of a block of Q4: code · scale + minimum, rounded once. With 16 lanes, all values of a code lie in a register.
  static typename V::Packet load_nibbles([[maybe_unused]] const T* block, [[maybe_unused]] int i) requires four_bits {
#if defined(EIGEN_VECTORIZE_AVX512) && defined(__F16C__)
    const auto [scale, low] = block_numbers(block);
    const __m512 value_of = _mm512_fmadd_ps(_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), scale, low);
    const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 2 * sizeof(half))));
    return _mm512_permutexvar_ps(i == 0 ? bytes : _mm512_srli_epi32(bytes, 4), value_of);  // reads the low four bits of its indices
#elif defined(EIGEN_VECTORIZE_AVX2) && defined(__F16C__)
    const auto [scale, low] = block_numbers(block);
    const __m256i bytes =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(block + 2 * sizeof(half) + i % 2 * V::width)));
    const __m256i code = i < 2 ? _mm256_and_si256(bytes, _mm256_set1_epi32(15)) : _mm256_srli_epi32(bytes, 4);
    return V::madd(_mm256_cvtepi32_ps(code), scale, low);
#else
    return V::zero();  // never read in registers
#endif
  }
#if defined(EIGEN_VECTORIZE_AVX2) && defined(__F16C__)
  /// Scale and minimum of a block: both are converted at once, then even and odd lanes are doubled.
  static std::pair<typename V::Packet, typename V::Packet> block_numbers(const T* block) {
    int both;
    std::memcpy(&both, block, sizeof(both));
#if defined(EIGEN_VECTORIZE_AVX512)
    const __m512 numbers = _mm512_cvtph_ps(_mm256_set1_epi32(both));
    return {_mm512_moveldup_ps(numbers), _mm512_movehdup_ps(numbers)};
#else
    const __m256 numbers = _mm256_cvtph_ps(_mm_set1_epi32(both));
    return {_mm256_moveldup_ps(numbers), _mm256_movehdup_ps(numbers)};
#endif
  }
#endif

  template <class F> void each_place(F&& f) const {
    if (std::is_same_v<T, bfloat16> && whole) {
      for (Index i = 0; i < head_dim; i += 2 * V::width)
        for (Index j = 0; j < V::width; ++j) f(i + 2 * j, i + j), f(i + 2 * j + 1, i + V::width + j);
    } else {
      for (Index i = 0; i < head_dim; ++i) f(i, i);
    }
  }
};

}}}  // namespace pith::v0::detail
