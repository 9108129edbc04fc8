#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include <pith/attention/detail/tile_memory.hpp>
#include <pith/attention/detail/tile_rows.hpp>
#include <pith/attention/detail/visible_rows.hpp>
#include <pith/attention/detail/weight_floor.hpp>
#include <pith/attention/kv_view.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Queries whose softmax is so flat that leaving rows out does not pay: they read every row, which is exact.
///
/// A sixteenth of the rows decides, those of every sixteenth block: a query is flat if its heads in the group need more than `worth` of
/// them together, where each head may lose its share of the sampled weights. A query that sees fewer than `least` sampled rows (some 2000
/// in all) is not flat, so that its rows are chosen one by one.
///
/// The decision is made from a sample of this call, not from the share read in the last step: such a share would be state, which rollback,
/// snapshots and copies would have to carry, and a rejected draft would change it. The sample depends only on the query and on the rows it
/// sees, so results stay bit-identical for any threads, tiles and batch. Floors of the sample fall with the share: a query that is flat for
/// one share is flat for every lower one, and a lower share still reads every row that a higher one reads.
template <class T> class FlatQueries {
 public:
  using Tile = TileRows<T>;
  using S = typename Tile::S;
  static constexpr Index least = 128;

  static constexpr std::uint32_t all(Index queries) { return (std::uint32_t(1) << queries) - 1; }
  static bool enough(const Tile& tile) { return tile.all_blocks() * attention_block >= least * FloorSearch<S>::sample; }

  /// A bit for each flat query of a tile whose sampled blocks hold weights, of which those of unread rows may sum to spare(lane). Leaves
  /// the sample's floors in floors().
  static std::uint32_t find(const Tile& tile, double worth) {
    for (Index l = 0; l < tile.lanes(); ++l)
      tile.floors()[l] = FloorSearch<S>::in_sample(static_cast<double>(tile.spare(l)), tile.weight(l, 0), tile.all_blocks()).least;
    std::array<Index, std::size_t(attention_tile)> rows{}, read{};
    tile.for_blocks([&](const KvRun<T>& run, Index row, Index count, Index block) {
      if (!FloorSearch<S>::sampled(block)) return;
      const VisibleRows<T> visible(run, row, count, tile.first_, tile.sight_, tile.limits_);
      for (Index t = 0; t < tile.tokens_; ++t) {
        const std::uint32_t seen = visible.seen(t);
        std::uint32_t some = 0;
        for (Index l = t * tile.group_; l < (t + 1) * tile.group_; ++l) some |= rows_at_least(tile.weight(l, block), tile.floors()[l]);
        rows[std::size_t(t)] += std::popcount(seen);
        read[std::size_t(t)] += std::popcount(seen & some);
      }
    });
    std::uint32_t flat = 0;
    for (std::size_t t = 0; t < std::size_t(tile.tokens_); ++t)
      if (rows[t] >= least && static_cast<double>(read[t]) > worth * static_cast<double>(rows[t])) flat |= std::uint32_t(1) << t;
    return flat;
  }
};

}}}  // namespace pith::v0::detail
