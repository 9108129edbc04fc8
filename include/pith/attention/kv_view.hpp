#pragma once

#include <concepts>
#include <span>

#include <pith/attention/q8.hpp>
#include <pith/attention/shape.hpp>
#include <pith/core/types.hpp>

namespace pith { inline namespace v0 {

// The interface between caches and attention kernels: rows in memory, described by pointers, strides and positions.

/// Number types that keys and values may be stored as; kernels widen 16-bit ones when they read them.
template <class T>
concept PlainStorage = std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, bfloat16> || std::same_as<T, half>;

/// Storage types for the rows of a cache.
template <class T>
concept KvStorage = PlainStorage<T> || std::same_as<T, Q8>;

namespace detail {
/// Units of T in a row of head_dim numbers: head_dim, or the bytes of a Q8 row.
template <KvStorage T> Index row_units(Index head_dim) {
  if constexpr (PlainStorage<T>) {
    return head_dim;
  } else {
    return q8_row_bytes(head_dim);
  }
}
}  // namespace detail

/// Rows of one kv head that lie together in memory. A head has one run, or two if it starts with a shared prefix; a proxy pass adds one.
template <class T> struct KvRun {
  const T* keys = nullptr;              ///< row r at r*stride, head_dim numbers
  const T* values = nullptr;            ///< row r at r*stride, head_dim numbers
  Index rows = 0;                       ///< in no particular order
  Index stride = 0;                     ///< units of T from one row to the next: at least head_dim numbers, or the bytes of a Q8 row
  const Position* positions = nullptr;  ///< [rows]; nullptr: visible to every query (a prefix)
  const float* log_mass = nullptr;      ///< [rows] added to the logit; nullptr: all 0; -inf hides a row
  Index sinks = 0;                      ///< number of first rows that AttendOptions::q_sinks reads
};

/// Everything an attention kernel needs to know about a cache; it owns nothing. Your own cache or kernel can plug in here.
template <class T> struct KvView {
  AttentionShape shape;
  Position next = 0;               ///< position of the next token
  std::span<const KvRun<T>> runs;  ///< [num_kv_heads][1 .. 3]: the runs of head 0, then of head 1, …; a head's last run holds its own rows
};

}}  // namespace pith::v0
