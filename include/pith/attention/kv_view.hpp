#pragma once

#include <cstddef>
#include <span>

#include <pith/attention/kv_storage.hpp>
#include <pith/attention/shape.hpp>
#include <pith/core/types.hpp>

namespace pith { inline namespace v0 {

// The interface between caches and attention kernels: rows in memory, described by pointers, strides and positions.

/// Rows of one kv head that lie together in memory. A head has one run, or two if it starts with a shared prefix; a proxy pass adds one.
template <class T> struct KvRun {
  const T* keys = nullptr;              ///< row r at r*stride, head_dim numbers
  const T* values = nullptr;            ///< row r at r*value_stride, head_dim numbers
  Index rows = 0;                       ///< in no particular order
  Index stride = 0;                     ///< units of T from one row to the next: at least head_dim numbers, or the bytes of their codes
  const Position* positions = nullptr;  ///< [rows]; nullptr: visible to every query (a prefix)
  const float* log_mass = nullptr;      ///< [rows] added to the logit; nullptr: all 0; -inf hides a row
  Index sinks = 0;                      ///< number of first rows that AttendOptions::q_sinks reads
  Index value_stride = 0;               ///< units of T from one row of values to the next; 0: stride
  /// [rows] scout codes of the keys, scout_row_bytes(head_dim) each; nullptr: none. Of number types with float arithmetic alone.
  const std::byte* scouts = nullptr;

  Index steps_of_values() const { return value_stride == 0 ? stride : value_stride; }
};

/// Everything an attention kernel needs to know about a cache; it owns nothing. Your own cache or kernel can plug in here.
template <class T> struct KvView {
  AttentionShape shape;
  Position next = 0;               ///< position of the next token
  std::span<const KvRun<T>> runs;  ///< [num_kv_heads][1 .. 3]: the runs of head 0, then of head 1, …; a head's last run holds its own rows
};

}}  // namespace pith::v0
