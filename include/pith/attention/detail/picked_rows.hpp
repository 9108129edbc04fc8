#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>

#include <pith/attention/detail/tile_rows.hpp>
#include <pith/attention/detail/weight_floor.hpp>
#include <pith/attention/kv_view.hpp>

// The rows of a tile that some lane reads: which they are, and sums of their values.

namespace pith { inline namespace v0 { namespace detail {

/// What it costs to read some rows here and there instead of all in order.
///
/// A row read alone takes whole cache lines, and a line read alone takes 2.2 times as long as in order: measured on a Zen 5 (rows of 128
/// and 256 bytes, shares of .03 to .3, whether they are prefetched or not: 10 GB/s; all in order: 25), and about that on a Xeon. So picking
/// rows saves time below .45 of them, where they are whole lines, below .24 of 8-bit values of 64 numbers.
struct PickingCost {
  double bytes, lines;  ///< of a row, or of its key and its value

  /// The share of rows from which on reading all in order is faster.
  double break_even() const { return bytes / (lines * 64 * 2.2); }
  /// A row of this many bytes, at any address unless it is whole lines.
  static PickingCost of(Index bytes) {
    const double b = static_cast<double>(bytes);
    return {b, bytes % 64 == 0 ? b / 64 : (b - 1) / 64 + 1};
  }
  PickingCost operator+(const PickingCost& other) const { return {bytes + other.bytes, lines + other.lines}; }
};

/// Lists the rows whose weights are not below the floor of some lane, run by run, in TileRows::picked().
template <class T> class RowPicks {
 public:
  using Tile = TileRows<T>;
  using S = typename Tile::S;
  using Value = typename Tile::Value;

  explicit RowPicks(Tile& tile) : tile_(tile) {
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
    tile.reads_.needed = count_;
  }

  Index count() const { return count_; }
  Index of() const { return of_; }  ///< rows that some query sees
  bool more_than(double share) const { return static_cast<double>(count_) > share * static_cast<double>(of_); }

  /// Listed rows of a run, at most attention_block.
  struct Chunk {
    const KvRun<T>& run;
    Index place;   ///< of the weight of the run's row 0
    Index first;   ///< of the chunk's numbers in the list
    Index count;   ///< rows
    Index listed;  ///< numbers of the run from `first` on
    const std::uint32_t* which;
  };

  /// Calls f(chunk) for all listed rows in turn. Rows of sinks and others never share a chunk.
  template <class F> void for_chunks(F&& f) const {
    Index first = 0, place = 0;
    for (std::size_t r = 0; r < tile_.runs_.size(); ++r) {
      const KvRun<T>& run = tile_.runs_[r];
      for (Index count = 0; first < ends_[r]; first += count) {
        count = (std::min)(attention_block, ends_[r] - first);
        const std::uint32_t* const which = tile_.picked() + first;
        if (Index(which[0]) < run.sinks) count = std::lower_bound(which, which + count, static_cast<std::uint32_t>(run.sinks)) - which;
        f(Chunk{run, place, first, count, ends_[r] - first, which});
      }
      place += Tile::blocks_of(run) * attention_block;
    }
  }

  /// Sums the values of the listed rows: load(chunk) makes their weights, which then are at(lane, chunk), `stride` from lane to lane.
  template <class Load, class At> void add_values(Load&& load, At&& at, Index stride) const {
    tile_.reads_.rows += of_;
    tile_.reads_.values += count_;
    for_chunks([&](const Chunk& chunk) {
      load(chunk);
      with_rows(tile_.values_, Tile::value_at(chunk.run, 0), Tile::value_stride(chunk.run), chunk, [&](const auto& rows) {
        for_query_groups<typename std::remove_cvref_t<decltype(rows)>::Element>(tile_.lanes(), [&](Index lane, auto size) {
          Tile::template kernel_of<ValueKernel, size()>(rows).run(at(lane, chunk), stride, rows,
                                                                  tile_.at(tile_.m_.sums) + lane * tile_.m_.padded, tile_.m_.padded);
        });
      });
    });
  }

  /// Calls f with the rows of a chunk, of a run whose row 0 is `rows`: in place where that is possible.
  template <class E, class F> void with_rows(const RowLayout<E>& layout, const E* rows, Index stride, const Chunk& chunk, F&& f) const {
    if constexpr (RowLayout<E>::in_registers)
      if (layout.whole) return f(PickedRows<E>{rows, stride, chunk.count, chunk.which, chunk.listed});
    S* const stage = tile_.at(tile_.m_.stage);
    for (Index i = 0; i < chunk.count; ++i) layout.stage(rows + Index(chunk.which[i]) * stride, 0, 1, stage + i * tile_.m_.padded);
    f(Rows<S>{stage, tile_.m_.padded, chunk.count, nullptr});
  }

  /// Moves a lane's weights from the order of the list to their places, with 0 between them.
  void spread(Index lane) const {
    S* const w = tile_.weight(lane, 0);
    Index next = tile_.all_blocks() * attention_block, place = next, listed = count_;
    for (std::size_t r = tile_.runs_.size(); r-- > 0;) {
      place -= Tile::blocks_of(tile_.runs_[r]) * attention_block;
      for (const Index begin = r == 0 ? 0 : ends_[r - 1]; listed > begin;) {  // from the end: a place never precedes its number in the list
        const S e = w[--listed];
        const Index at = place + Index(tile_.picked()[listed]);
        std::fill(w + at + 1, w + next, S(0));
        w[at] = e;
        next = at;
      }
    }
    std::fill(w, w + next, S(0));
  }

 private:
  Tile& tile_;
  std::array<Index, 3> ends_{};  ///< numbers listed when each run ends
  Index count_ = 0, of_ = 0;
};

}}}  // namespace pith::v0::detail
