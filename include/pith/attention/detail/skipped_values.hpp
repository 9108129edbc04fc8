#pragma once

#include <algorithm>
#include <cstdint>

#include <pith/attention/detail/flat_queries.hpp>
#include <pith/attention/detail/picked_rows.hpp>
#include <pith/attention/detail/tile_rows.hpp>
#include <pith/attention/detail/weight_floor.hpp>
#include <pith/attention/kv_view.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Leaves the values of the lightest rows of every lane unread: scores become weights, then values are summed where some lane needs them.
/// Elsewhere a lane counts them as weight 0, so its bits depend on its own weights alone.
///
/// The floor's sums are off by less than 2^-16 of themselves; the comparison allows for twice that, so the bound holds for the weights as
/// computed, and zeros between them change no bit.
template <class T> class SkippedValues {
 public:
  using Tile = TileRows<T>;
  using S = typename Tile::S;
  using V = typename Tile::V;

  explicit SkippedValues(Tile& tile) : tile_(tile), worth_(PickingCost::of(bytes_of_value(tile)).break_even()) {}

  void run() {
    tile_.for_blocks(
        [this](const KvRun<T>&, Index, Index, Index block) { tile_.for_lanes(block, [&](Index l) { tile_.weigh(l, block); }); });
    const Index blocks = tile_.all_blocks();
    for (Index l = 0; l < tile_.lanes(); ++l) {
      tile_.add_masses(l);
      tile_.spare(l) = static_cast<S>(static_cast<double>(tile_.numbers_.skip_below) * FloorSearch<S>::total(tile_.weight(l, 0), blocks) *
                                      (1 - 0x1p-15) / FloorSearch<S>::sample);
    }
    const std::uint32_t flat = find_flat();
    for (Index l = 0; l < tile_.lanes(); ++l) {
      WeightFloor<S> floor;
      if ((flat >> (l / tile_.group_) & 1) == 0) floor = floor_of(l);
      tile_.floors()[l] = floor.least;
      if (floor.skipped > S(0)) tile_.at(tile_.m_.inverse_of_read)[l] = S(1) / (tile_.at(tile_.m_.total)[l] - floor.skipped);
    }
    if (flat == FlatQueries<T>::all(tile_.tokens_)) {
      tile_.add_all_values();
    } else if (const RowPicks<T> picks(tile_); picks.more_than(worth_)) {
      read_in_order();
    } else {
      picks.add_values(
          [this](const auto& chunk) {
            for (Index l = 0; l < tile_.lanes(); ++l) {
              const S* const weights = tile_.weight(l, 0) + chunk.place;
              for (Index i = 0; i < chunk.count; ++i) masked(l)[i] = weights[chunk.which[i]];
              mask(masked(l), l);
            }
          },
          [this](Index lane, const auto&) { return masked(lane); }, attention_block);
    }
    for (Index l = 0; l < tile_.lanes(); ++l) tile_.check_sums(l);
  }

 private:
  static Index bytes_of_value(const Tile& tile) { return value_units<T>(tile.m_.head_dim) * Index(sizeof(T)); }

  std::uint32_t find_flat() {
    sampled_ = FlatQueries<T>::enough(tile_);
    return sampled_ ? FlatQueries<T>::find(tile_, worth_) : 0;
  }
  WeightFloor<S> floor_of(Index lane) const {
    const auto spare = static_cast<double>(tile_.spare(lane)) * FloorSearch<S>::sample;
    const S* const weights = tile_.weight(lane, 0);
    return sampled_ ? FloorSearch<S>::below(spare, weights, tile_.all_blocks(), tile_.floors()[lane])
                    : FloorSearch<S>::below(spare, weights, tile_.all_blocks());
  }

  /// All rows, block by block: what a lane does not read has weight 0.
  void read_in_order() {
    tile_.for_seen_blocks([this](const KvRun<T>& run, Index row, Index count, Index block, const QueryRange& seen) {
      const Index begin = seen.begin * tile_.group_, end = seen.end * tile_.group_;
      for (Index l = begin; l < end; ++l) {
        std::copy_n(tile_.weight(l, block), attention_block, masked(l));
        mask(masked(l), l);
      }
      tile_.reads_.rows += count;
      tile_.reads_.values += count;
      tile_.add_rows(
          run, row, count, begin, end, [this](Index lane) { return masked(lane); }, attention_block);
    });
  }

  /// Weights of some rows as a lane reads them, where the masses were.
  S* masked(Index lane) const { return tile_.at(tile_.m_.mass) + lane * attention_block; }

  /// Makes weights below the floor 0.
  void mask(S* weights, Index lane) const {
    const typename V::Packet floor = V::broadcast(tile_.floors()[lane]);
    for (Index i = 0; i < attention_block; i += V::width) {
      const typename V::Packet e = V::load(weights + i);
      V::store(weights + i, V::select(V::less(e, floor), V::zero(), e));
    }
  }

  Tile& tile_;
  double worth_;
  bool sampled_ = false;
};

}}}  // namespace pith::v0::detail
