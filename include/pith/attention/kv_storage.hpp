#pragma once

#include <cmath>
#include <concepts>
#include <cstddef>
#include <type_traits>

#include <pith/attention/q4.hpp>
#include <pith/attention/q8.hpp>
#include <pith/core/types.hpp>

namespace pith { inline namespace v0 {

// How the rows of a cache are stored: number types, codes, rotations, and pairs of them for keys and values.

/// Number types that keys and values may be stored as; kernels widen 16-bit ones when they read them.
template <class T>
concept PlainStorage = std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, bfloat16> || std::same_as<T, half>;

/// Rows stored as T after a Hadamard rotation: outliers of single channels spread over the head, so that codes lose less. Attention rotates
/// its queries and turns its output back; reading a cache's rows returns them unrotated.
///
/// x is stored as H x, in blocks of the largest power of two, at most 256, that divides head_dim: H = Hᵀ = H⁻¹. One number that is not
/// finite spoils its block of H.
///
/// Paper    QuaRot: arXiv:2404.00456
template <class T> struct Rotated { T unit; };

/// Keys stored as K, values as V, each a number type, Q8, Q4 or a rotation of one: Kv<Q8, Rotated<Q4>>. Pointers and strides count bytes.
template <class K, class V> struct Kv { std::byte byte; };

namespace detail {

template <class T> struct Arithmetic<Rotated<T>> : Arithmetic<T> {};
template <class K, class V> struct Arithmetic<Kv<K, V>> : Arithmetic<K> {};

/// The codes of rows, apart from their rotation.
template <class T> struct Coded {
  using type = T;
  static constexpr bool rotated = false;
};
template <class T> struct Coded<Rotated<T>> {
  using type = T;
  static constexpr bool rotated = true;
};
template <class T> using coded_t = typename Coded<T>::type;

/// How keys and values are stored in a cache of T.
template <class T> struct KvParts {
  using Key = T;
  using Value = T;
};
template <class K, class V> struct KvParts<Kv<K, V>> {
  using Key = K;
  using Value = V;
};

template <class T>
concept RowStorage = PlainStorage<T> || std::same_as<T, Q8> || std::same_as<T, Q4>;

template <class T>
concept PartStorage = RowStorage<coded_t<T>>;

template <class T> inline constexpr bool is_kv = false;
template <class K, class V>
inline constexpr bool is_kv<Kv<K, V>> = PartStorage<K>&& PartStorage<V>&& std::same_as<arithmetic_t<K>, arithmetic_t<V>>;

}  // namespace detail

/// Storage types for the rows of a cache.
template <class T>
concept KvStorage = detail::PartStorage<T> || detail::is_kv<T>;

namespace detail {

/// Units of T in a row of head_dim numbers: numbers, or the bytes of codes.
template <PartStorage T> Index part_units(Index head_dim) {
  if constexpr (std::same_as<coded_t<T>, Q8>) return q8_row_bytes(head_dim);
  if constexpr (std::same_as<coded_t<T>, Q4>) return q4_row_bytes(head_dim);
  return head_dim;
}

/// Units of T in a row of keys, or of values.
template <KvStorage T> Index key_units(Index head_dim) {
  using Key = typename KvParts<T>::Key;
  return part_units<Key>(head_dim) * Index(sizeof(Key) / sizeof(T));
}
template <KvStorage T> Index value_units(Index head_dim) {
  using Value = typename KvParts<T>::Value;
  return part_units<Value>(head_dim) * Index(sizeof(Value) / sizeof(T));
}

inline constexpr Index rotation_most = 256;  ///< numbers that one block of a rotation mixes at most

/// The numbers that a block of the rotation of head_dim numbers mixes.
inline Index rotation_block(Index head_dim) {
  Index block = 1;
  while (block < rotation_most && head_dim % (2 * block) == 0) block *= 2;
  return block;
}

/// x = H x in blocks of `block` of its n numbers: log2(block) additions a number and one product.
template <class S> void rotate_row(S* x, Index n, Index block) {
  const S scale = S(1) / std::sqrt(static_cast<S>(block));
  for (S* const end = x + n; x < end; x += block) {
    for (Index half = 1; half < block; half *= 2)
      for (Index i = 0; i < block; i += 2 * half)
        for (Index j = i; j < i + half; ++j) {
          const S a = x[j], b = x[j + half];
          x[j] = a + b;
          x[j + half] = a - b;
        }
    for (Index i = 0; i < block; ++i) x[i] *= scale;
  }
}

}  // namespace detail

}}  // namespace pith::v0
