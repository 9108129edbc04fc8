#pragma once

#include <algorithm>
#include <cstdint>

#include <pith/attention/detail/attend_kernel.hpp>
#include <pith/attention/kv_view.hpp>
#include <pith/core/types.hpp>

// Which rows a query may see: causality, or the sight given to it, and the sliding window.

namespace pith { inline namespace v0 { namespace detail {

struct VisibilityLimits {
  Index window;  ///< distances must be less; 0: no limit
  Position gap;  ///< subtracted from the distances to a run's sinks
};

/// A range of queries of a tile that see at least one row of a block.
struct QueryRange {
  std::uint8_t begin = 0, end = 0;
};

/// Decides which rows row .. row + count - 1 of a run each query may see; query t of the tile is at position first + t and sees up to
/// position sight[t] (nullptr: its own).
///
/// The block's oldest and newest position decide for nearly every query; only the remaining queries test single rows.
template <class T> class VisibleRows {
 public:
  VisibleRows(const KvRun<T>& run, Index row, Index count, Position first, const Position* sight, const VisibilityLimits& limits)
      : run_(run), row_(row), count_(count), first_(first), sight_(sight), limits_(limits) {
    if (run.positions == nullptr) return;
    Position low = run.positions[row], high = low;
    for (Index i = 1; i < count; ++i) {
      low = (std::min)(low, run.positions[row + i]);
      high = (std::max)(high, run.positions[row + i]);
    }
    oldest_ = low;
    newest_ = high;
    uneven_ = limits.window > 0 && row < run.sinks;
  }

  QueryRange queries_that_see(Index queries) const {
    Index begin = 0, end = queries;
    while (begin < end && nothing(begin)) ++begin;
    while (end > begin && nothing(end - 1)) --end;
    return {static_cast<std::uint8_t>(begin), static_cast<std::uint8_t>(end)};
  }

  /// Marks the rows that a query must not see; returns false if there are none.
  bool hidden(Index query, bool (&rows)[attention_block]) const {
    if (everything(query)) return false;
    const Index end = newest_seen(query);
    for (Index i = 0; i < count_; ++i) {
      const Index distance = first_ + query - run_.positions[row_ + i];
      const Index measured = row_ + i < run_.sinks ? distance - limits_.gap : distance;
      rows[i] = run_.positions[row_ + i] > end || (limits_.window > 0 && measured >= limits_.window);
    }
    return true;
  }

  /// A bit for each row that a query sees.
  std::uint32_t seen(Index query) const {
    std::uint32_t rows = count_ < attention_block ? (std::uint32_t(1) << count_) - 1 : ~std::uint32_t(0);
    bool hidden_rows[attention_block];
    if (hidden(query, hidden_rows))
      for (Index i = 0; i < count_; ++i) rows &= ~(std::uint32_t(hidden_rows[i]) << i);
    return rows;
  }

 private:
  Index newest_seen(Index query) const { return sight_ == nullptr ? Index(first_) + query : Index(sight_[query]); }
  bool nothing(Index query) const {
    if (run_.positions == nullptr) return false;
    const Index position = first_ + query;
    return oldest_ > newest_seen(query) || (limits_.window > 0 && !uneven_ && position - newest_ >= limits_.window);
  }
  bool everything(Index query) const {
    if (run_.positions == nullptr) return true;
    const Index position = first_ + query;
    return newest_ <= newest_seen(query) && (limits_.window == 0 || (!uneven_ && position - oldest_ < limits_.window));
  }

  const KvRun<T>& run_;
  Index row_, count_, first_;
  const Position* sight_;
  VisibilityLimits limits_;
  Index oldest_ = 0, newest_ = 0;
  bool uneven_ = false;  ///< the block holds sinks, so distances are measured in two ways
};

}}}  // namespace pith::v0::detail
