#pragma once

#include <algorithm>
#include <cstdint>

#include <pith/attention/detail/picked_rows.hpp>
#include <pith/attention/detail/tile_rows.hpp>
#include <pith/attention/detail/weight_floor.hpp>

// Reading some rows of a tile and not others.

namespace pith { inline namespace v0 { namespace detail {

/// Leaves the values of the lightest rows of every lane unread: scores become weights, then values are summed where some lane needs them.
/// Elsewhere a lane counts them as weight 0, so its bits depend on its own weights alone.
template <class T> class SkippedValues {
 public:
  using Tile = TileRows<T>;
  using S = typename Tile::S;
  using V = typename Tile::V;
  using Value = typename Tile::Value;

  explicit SkippedValues(Tile& tile) : tile_(tile) {}

  void run() {
    weigh();
    for (Index l = 0; l < tile_.lanes(); ++l) {
      const WeightFloor<S> floor = FloorSearch<S>::run(tile_.numbers_.skip_below, tile_.weight(l, 0), tile_.all_blocks());
      tile_.floors()[l] = floor.least;
      tile_.add_masses(l);
      if (floor.skipped > S(0)) tile_.at(tile_.m_.inverse_of_read)[l] = S(1) / (tile_.at(tile_.m_.total)[l] - floor.skipped);
    }
    read();
  }

  /// The same for scores of -inf where a lane does not read (ScoutedKeys).
  void run_scouted() {
    weigh();
    for (Index l = 0; l < tile_.lanes(); ++l) tile_.add_masses(l);
    read();
  }

  /// Sums the values of all rows that are not below the floor of some lane.
  void read() {
    const RowPicks<T> picks(tile_);
    tile_.reads_.rows += picks.of();
    if (picks.most()) {
      read_blocks();
    } else {
      Index first = 0, place = 0;
      for (const KvRun<T>& run : tile_.runs_) {
        read_picked(run, tile_.picked() + first, picks.end_of(run) - first, place);
        place += Tile::blocks_of(run) * attention_block;
        first = picks.end_of(run);
      }
      tile_.reads_.values += picks.count();
    }
    for (Index l = 0; l < tile_.lanes(); ++l) tile_.check_sums(l);
  }

 private:
  void weigh() {
    tile_.for_blocks(
        [this](const KvRun<T>&, Index, Index, Index block) { tile_.for_lanes(block, [&](Index l) { tile_.weigh(l, block); }); });
  }

  /// In place, block by block: what a lane does not read has weight 0.
  void read_blocks() {
    tile_.for_seen_blocks([this](const KvRun<T>& run, Index row, Index count, Index block, const QueryRange& seen) {
      const Index begin = seen.begin * tile_.group_, end = seen.end * tile_.group_;
      for (Index l = begin; l < end; ++l) mask(tile_.weight(l, block), l);
      tile_.reads_.values += count;
      tile_.add_rows(
          run, row, count, begin, end, [this](Index lane) { return masked(lane); }, attention_block);
    });
  }

  /// The listed rows of a run whose weights begin at `place`.
  void read_picked(const KvRun<T>& run, const std::uint32_t* rows, Index listed, Index place) {
    const Index lanes = tile_.lanes();
    for (Index done = 0; done < listed; done += attention_block) {
      const Index count = (std::min)(attention_block, listed - done);
      const std::uint32_t* const which = rows + done;
      for (Index l = 0; l < lanes; ++l) {
        const S* const weights = tile_.weight(l, 0) + place;
        for (Index i = 0; i < count; ++i) masked(l)[i] = weights[which[i]];
        mask(masked(l), l);
      }
      const auto add = [&](const auto& picked) {
        for_query_groups(lanes, [&](Index lane, auto size) {
          Tile::template kernel_of<ValueKernel, size()>(picked).run(masked(lane), attention_block, picked,
                                                                    tile_.at(tile_.m_.sums) + lane * tile_.m_.padded, tile_.m_.padded);
        });
      };
      if (RowLayout<Value>::in_registers && tile_.values_.whole) {
        if constexpr (RowLayout<Value>::in_registers)
          add(PickedRows<Value>{Tile::value_at(run, 0), Tile::value_stride(run), count, which, listed - done});
      } else {
        S* const stage = tile_.at(tile_.m_.stage);
        for (Index i = 0; i < count; ++i) tile_.values_.stage(Tile::value_at(run, which[i]), 0, 1, stage + i * tile_.m_.padded);
        add(Rows<S>{stage, tile_.m_.padded, count, nullptr});
      }
    }
  }

  /// Weights of some rows as a lane reads them, where the masses were.
  S* masked(Index lane) const { return tile_.at(tile_.m_.mass) + lane * attention_block; }

  /// Writes a block of weights to masked(), 0 where they are below the floor.
  void mask(const S* weights, Index lane) {
    const typename V::Packet floor = V::broadcast(tile_.floors()[lane]);
    for (Index i = 0; i < attention_block; i += V::width) {
      const typename V::Packet e = V::load(weights + i);
      V::store(masked(lane) + i, V::select(V::less(e, floor), V::zero(), e));
    }
  }

  Tile& tile_;
};

}}}  // namespace pith::v0::detail
