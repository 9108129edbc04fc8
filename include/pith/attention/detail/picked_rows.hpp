#pragma once

#include <array>
#include <cstdint>

#include <pith/attention/detail/tile_rows.hpp>
#include <pith/attention/detail/weight_floor.hpp>
#include <pith/attention/kv_view.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// The rows whose weights are not below the floor of some lane, listed in TileRows::picked() run by run.
template <class T> class RowPicks {
 public:
  explicit RowPicks(const TileRows<T>& tile) : runs_(tile.runs_.data()) {
    std::size_t r = 0;
    tile.for_blocks([&](const KvRun<T>& run, Index row, Index rows, Index block) {
      for (; &run != &tile.runs_[r]; ++r) ends_[r] = count_;
      const QueryRange seen = tile.queries_that_see()[block];
      if (seen.begin == seen.end) return;
      of_ += rows;
      std::uint32_t bits = 0;
      for (Index l = seen.begin * tile.group_; l < seen.end * tile.group_; ++l)
        bits |= rows_at_least(tile.weight(l, block), tile.floors()[l]);
      if (rows < attention_block) bits &= (std::uint32_t(1) << rows) - 1;
      count_ += list_rows(bits, static_cast<std::uint32_t>(row), tile.picked() + count_);
    });
    for (; r < tile.runs_.size(); ++r) ends_[r] = count_;
  }

  Index count() const { return count_; }
  Index of() const { return of_; }                                                      ///< rows that some query sees
  bool most() const { return count_ > of_ - of_ / 8; }                                  ///< so many that reading all in order is faster
  Index end_of(const KvRun<T>& run) const { return ends_[std::size_t(&run - runs_)]; }  ///< numbers listed when a run ends

 private:
  const KvRun<T>* runs_;
  std::array<Index, 3> ends_{};
  Index count_ = 0, of_ = 0;
};

}}}  // namespace pith::v0::detail
