#pragma once

#include <concepts>
#include <span>

#include <pith/attention/q8.hpp>
#include <pith/attention/shape.hpp>
#include <pith/core/types.hpp>

namespace pith { inline namespace v0 {

/// Numbers that keys and values may be stored as, one after the other; 16-bit ones are widened where they are used.
template <class T>
concept PlainStorage = std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, bfloat16> || std::same_as<T, half>;

/// What the rows of a cache may be made of.
template <class T>
concept KvStorage = PlainStorage<T> || std::same_as<T, Q8>;

namespace detail {
/// Units of T that a row of head_dim numbers takes: as many, or bytes of Q8.
template <KvStorage T> Index row_units(Index head_dim) {
  if constexpr (PlainStorage<T>) {
    return head_dim;
  } else {
    return q8_row_bytes(head_dim);
  }
}
}  // namespace detail

/// Rows of one kv head that lie together in memory. A head offers one run, or two when it starts with a shared prefix.
template <class T> struct KvRun {
  const T* keys = nullptr;              ///< row r at r*stride, head_dim numbers
  const T* values = nullptr;            ///< row r at r*stride, head_dim numbers
  Index rows = 0;                       ///< in no particular order
  Index stride = 0;                     ///< units of T from one row to the next: numbers, at least head_dim, or bytes of Q8
  const Position* positions = nullptr;  ///< [rows]; nullptr: visible to every query (a prefix)
  const float* log_mass = nullptr;      ///< [rows] added to the logit; nullptr: all 0; -inf hides a row
  Index sinks = 0;                      ///< the first rows are read with AttendOptions::q_sinks
};

/// All an attention kernel needs to know of a cache, and owns none of it: where foreign caches and foreign kernels meet.
template <class T> struct KvView {
  AttentionShape shape;
  Position next = 0;               ///< position of the token to come
  std::span<const KvRun<T>> runs;  ///< [num_kv_heads][1 or 2]: the runs of head 0, then of head 1, …; the last of a head are its own rows
};

}}  // namespace pith::v0
