#pragma once

#include <cstdint>

#include <pith/attention/detail/row_layout.hpp>
#include <pith/core/types.hpp>

// The rows that attention's inner loops process together.

namespace pith { inline namespace v0 { namespace detail {

inline constexpr Index attention_block = 32;  ///< rows scored, weighed and summed together: a block of keys stays in L1

/// Rows to process, and the address from which as many contiguous rows are prefetched meanwhile (`ahead`; nullptr: none).
///
/// Prefetches are spread evenly and in order of address, the fastest pattern for memory; few rows with many queries prefetch all at once.
template <class T> struct Rows {
  using Element = T;
  const T* first;
  Index stride, count;
  const T* ahead;
};

/// Rows picked from a run by their numbers; while one is read, one further down the list is prefetched.
template <class T> struct PickedRows {
  using Element = T;
  const T* first;  ///< row 0
  Index stride, count;
  const std::uint32_t* which;  ///< [count and further]
  Index listed;                ///< numbers in the list from which on: at least count

  static constexpr Index lead = 48;  ///< rows prefetched before their turn
  const T* row(Index i) const { return first + Index(which[i]) * stride; }
  /// Prefetches what column `column` on of the row `lead` behind row i holds, `units` units.
  void fetch_behind(Index i, Index column, Index units) const {
    if (i + lead >= listed) return;
    const T* const at = row(i + lead) + column;
    constexpr Index line = Index(64 / sizeof(T));
    for (Index u = 0; u + line / 4 < units; u += line) fetch(at + u);
    fetch(at + units - 1);
  }
};

}}}  // namespace pith::v0::detail
