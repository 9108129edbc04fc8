#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <type_traits>

#include <pith/attention/kv_storage.hpp>
#include <pith/attention/kv_view.hpp>
#include <pith/core/types.hpp>

// Rows of numbers to rows as they are stored, and back.

namespace pith { inline namespace v0 { namespace detail {

/// Stores the n numbers of a row as T, rounded once. A finite number beyond the range of T becomes the largest of its sign; infinities and
/// NaNs stay what they are.
template <PartStorage T> void narrow(const arithmetic_t<T>* from, T* to, Index n) {
  using S = arithmetic_t<T>;
  if constexpr (Coded<T>::rotated) {
    using C = coded_t<T>;
    const Index block = rotation_block(n);
    for (Index i = 0; i < n; i += rotation_most) {
      S part[std::size_t(rotation_most)];
      const Index size = (std::min)(rotation_most, n - i);
      std::copy_n(from + i, size, part);
      rotate_row(part, size, block);
      narrow<C>(part, reinterpret_cast<C*>(to) + part_units<C>(i), size);
    }
  } else if constexpr (std::is_same_v<T, Q8>) {
    q8_encode(from, n, reinterpret_cast<std::byte*>(to));
  } else if constexpr (std::is_same_v<T, Q4>) {
    q4_encode(from, n, reinterpret_cast<std::byte*>(to));
  } else if constexpr (std::is_same_v<T, S>) {
    std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(T));
  } else {
    const S most = static_cast<S>((std::numeric_limits<T>::max)());
    for (Index i = 0; i < n; ++i) {
      const S x = from[i];
      to[i] = static_cast<T>(std::abs(x) <= (std::numeric_limits<S>::max)() ? std::clamp(x, -most, most) : x);
    }
  }
}

/// Loads the n stored numbers of a row in the arithmetic type.
template <PartStorage T> void widen(const T* from, arithmetic_t<T>* to, Index n) {
  if constexpr (Coded<T>::rotated) {
    widen<coded_t<T>>(reinterpret_cast<const coded_t<T>*>(from), to, n);
    rotate_row(to, n, rotation_block(n));
  } else if constexpr (std::is_same_v<T, Q8>) {
    q8_decode(reinterpret_cast<const std::byte*>(from), n, to);
  } else if constexpr (std::is_same_v<T, Q4>) {
    q4_decode(reinterpret_cast<const std::byte*>(from), n, to);
  } else {
    for (Index i = 0; i < n; ++i) to[i] = static_cast<arithmetic_t<T>>(from[i]);
  }
}

/// A row of a cache of T as its part is stored.
template <class Part, KvStorage T> Part* as_part(T* row) { return reinterpret_cast<Part*>(row); }
template <class Part, KvStorage T> const Part* as_part(const T* row) { return reinterpret_cast<const Part*>(row); }

template <KvStorage T> void narrow_key(const arithmetic_t<T>* from, T* to, Index n) {
  using Key = typename KvParts<T>::Key;
  narrow<Key>(from, as_part<Key>(to), n);
}
template <KvStorage T> void narrow_value(const arithmetic_t<T>* from, T* to, Index n) {
  using Value = typename KvParts<T>::Value;
  narrow<Value>(from, as_part<Value>(to), n);
}
template <KvStorage T> void widen_key(const T* from, arithmetic_t<T>* to, Index n) {
  using Key = typename KvParts<T>::Key;
  widen<Key>(as_part<Key>(from), to, n);
}
template <KvStorage T> void widen_value(const T* from, arithmetic_t<T>* to, Index n) {
  using Value = typename KvParts<T>::Value;
  widen<Value>(as_part<Value>(from), to, n);
}

/// Row r of a run, as stored in the cache.
template <KvStorage T> const T* key_of(const KvRun<T>& run, Index r) { return run.keys + r * run.stride; }
template <KvStorage T> const T* value_of(const KvRun<T>& run, Index r) { return run.values + r * run.steps_of_values(); }

}}}  // namespace pith::v0::detail
