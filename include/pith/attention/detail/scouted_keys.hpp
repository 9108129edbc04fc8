#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include <pith/attention/detail/flat_queries.hpp>
#include <pith/attention/detail/key_bounds.hpp>
#include <pith/attention/detail/picked_rows.hpp>
#include <pith/attention/detail/tile_rows.hpp>
#include <pith/attention/detail/weight_floor.hpp>
#include <pith/attention/scout.hpp>
#include <pith/core/simd.hpp>

// Attention over the keys that scout codes cannot exclude.

namespace pith { inline namespace v0 { namespace detail {

/// Two passes over the keys of a tile. The first bounds scores by scout codes (KeyBounds). A lane reads S, all rows but U, the largest set
/// of lightest hi with Σ_U e^hi <= ε (n + Σ e^lo), so U weighs at most ε. The second pass computes the scores of what some lane reads, with
/// the bits of a dense pass. Flat queries read every row; if all of a tile are flat, the first pass ends with FlatQueries' sample.
template <class T> class ScoutedKeys {
 public:
  using Tile = TileRows<T>;
  using S = typename Tile::S;
  using V = typename Tile::V;
  using Key = typename Tile::Key;
  using Chunk = typename RowPicks<T>::Chunk;
  static constexpr bool possible = PlainStorage<Key> && std::is_same_v<S, float>;

  explicit ScoutedKeys(Tile& tile) : tile_(tile), picked_(cost(tile).break_even()) {
    worth_ = picked_ * (1 - scan_cost * static_cast<double>(scout_row_bytes(tile.m_.head_dim)) / cost(tile).bytes);
  }

  static bool wanted(const Tile& tile) {
    return tile.numbers_.skip_below > S(0) &&
           std::any_of(tile.runs_.begin(), tile.runs_.end(), [](const KvRun<T>& run) { return run.scouts != nullptr; });
  }

  /// In place of scores and weights of every row. Returns false if all keys were scored, and values are still to be read: scores are -inf
  /// where a lane does not read.
  bool run() {
    KeyBounds<T> bounds(tile_);
    std::uint32_t flat = 0;
    if (FlatQueries<T>::enough(tile_)) {
      bounds.weigh(FloorSearch<S>::sampled, FloorSearch<S>::sample);
      flat = FlatQueries<T>::find(tile_, worth_);
      tile_.reads_ = {};
    }
    if (flat == FlatQueries<T>::all(tile_.tokens_)) {
      tile_.score_all();
      return false;
    }
    bounds.weigh(EveryBlock(), 1);
    for (Index l = 0; l < tile_.lanes(); ++l)
      tile_.floors()[l] = (flat >> (l / tile_.group_) & 1) != 0
                              ? WeightFloor<S>().least
                              : FloorSearch<S>::below(static_cast<double>(tile_.spare(l)), tile_.weight(l, 0), tile_.all_blocks()).least;
    const RowPicks<T> picks(tile_);
    if (picks.more_than(picked_)) {
      score_in_order();
      return false;
    }
    score_picked(picks);
    picks.add_values([](const Chunk&) {}, [this](Index lane, const Chunk& chunk) { return tile_.weight(lane, 0) + chunk.first; },
                     tile_.m_.row_stride);
    for (Index l = 0; l < tile_.lanes(); ++l) picks.spread(l);
    for (Index l = 0; l < tile_.lanes(); ++l) tile_.check_sums(l);
    return true;
  }

 private:
  /// Time to bound a row by its codes over that to read as many bytes of keys and values.
  static constexpr double scan_cost = 2.6;
  static PickingCost cost(const Tile& tile) {
    const Index dim = tile.m_.head_dim;
    return PickingCost::of(key_units<T>(dim) * Index(sizeof(T))) + PickingCost::of(value_units<T>(dim) * Index(sizeof(T)));
  }

  static constexpr S lowest = -std::numeric_limits<S>::infinity();

  /// Scores all blocks; each lane keeps what it reads.
  void score_in_order() {
    tile_.start_scores();
    tile_.for_visible_blocks([&](const KvRun<T>& run, Index row, Index count, Index block, const auto& visible, const QueryRange& seen) {
      const Index begin = seen.begin * tile_.group_, end = seen.end * tile_.group_;
      for (Index l = begin; l < end; ++l) read_by(l) = rows_at_least(tile_.weight(l, block), tile_.floors()[l]);
      if (KeyBounds<T>::scouted(run, row)) tile_.reads_.keys += count;
      tile_.score(run, row, count, block, begin, end);
      if (tile_.numbers_.softcap > 0) tile_.cap_scores(count, block, begin, end);
      for (Index l = begin; l < end; ++l) {
        S* const w = tile_.weight(l, block);
        for (Index i = 0; i < attention_block; ++i) w[i] = (read_by(l) >> i & 1) != 0 ? w[i] : lowest;
      }
      tile_.finish_scores(run, row, count, block, visible, seen);
    });
  }
  std::uint32_t& read_by(Index lane) const { return reinterpret_cast<std::uint32_t*>(tile_.at(tile_.m_.top))[lane]; }

  /// Scores the listed rows and makes them weights, in the order of the list: 0 where a lane does not read.
  void score_picked(const RowPicks<T>& picks) {
    const Index lanes = tile_.lanes();
    tile_.start_scores();
    picks.for_chunks([&](const Chunk& chunk) {
      if (KeyBounds<T>::scouted(chunk.run, Index(chunk.which[0]))) tile_.reads_.keys += chunk.count;
      const S* const queries = tile_.at(Index(chunk.which[0]) < chunk.run.sinks ? tile_.m_.sink_queries : tile_.m_.queries);
      picks.with_rows(tile_.keys_, Tile::key_at(chunk.run, 0), Tile::key_stride(chunk.run), chunk, [&](const auto& rows) {
        for_query_groups<typename std::remove_cvref_t<decltype(rows)>::Element>(lanes, [&](Index lane, auto size) {
          Tile::template kernel_of<ScoreKernel, size()>(rows).run(queries + lane * tile_.m_.padded, tile_.m_.padded, rows, scores(lane),
                                                                  attention_block);
        });
      });
      for (Index l = 0; l < lanes; ++l) keep_read(chunk, l);
    });
    std::fill_n(tile_.at(tile_.m_.mass), lanes * attention_block, S(0));
    for (Index l = 0; l < lanes; ++l) {
      tile_.settle_top(l);
      weigh_picked(l, picks.count());
    }
    std::fill_n(tile_.at(tile_.m_.sums), lanes * tile_.m_.padded, S(0));
    std::fill_n(tile_.floors(), lanes, WeightFloor<S>().least);
  }
  S* scores(Index lane) const { return tile_.at(tile_.m_.mass) + lane * attention_block; }

  /// Moves a chunk's scores to their places in the list, over weights of bounds that were asked for the last time.
  void keep_read(const Chunk& chunk, Index lane) {
    S* const score = scores(lane);
    if (tile_.numbers_.softcap > 0) {
      const typename V::Packet cap = V::broadcast(tile_.numbers_.softcap), per_cap = V::broadcast(S(1) / tile_.numbers_.softcap);
      for (Index i = 0; i < chunk.count; i += V::width) V::store(score + i, soft_cap<S>(V::load(score + i), cap, per_cap));
    }
    S bounds[std::size_t(attention_block)];
    const S *const of_run = tile_.weight(lane, 0) + chunk.place, floor = tile_.floors()[lane];
    for (Index i = 0; i < chunk.count; ++i) bounds[i] = of_run[chunk.which[i]];
    if (chunk.run.log_mass != nullptr)
      for (Index i = 0; i < chunk.count; ++i) score[i] += static_cast<S>(chunk.run.log_mass[chunk.which[i]]);
    S* const to = tile_.weight(lane, 0) + chunk.first;
    S largest = lowest;
    for (Index i = 0; i < chunk.count; ++i) {
      to[i] = bounds[i] < floor ? lowest : score[i];
      largest = to[i] > largest ? to[i] : largest;
    }
    S* const most = tile_.at(tile_.m_.largest) + lane * V::width;
    most[0] = (std::max)(most[0], largest);
  }

  /// Makes a lane's scores weights. Masses are summed where all rows' are, in an order that other lanes' rows do not change.
  void weigh_picked(Index lane, Index count) {
    S *const w = tile_.weight(lane, 0), *const mass = tile_.at(tile_.m_.mass) + lane * attention_block;
    const typename V::Packet top = V::broadcast(tile_.at(tile_.m_.top)[lane]);
    for (Index i = 0; i < count; i += V::width) V::store(w + i, V::exp_down(V::sub(V::load(w + i), top)));
    for (Index i = 0; i < count; ++i) mass[tile_.picked()[i] % attention_block] += w[i];
    tile_.add_masses(lane);
  }

  Tile& tile_;
  double picked_;  ///< the largest share of rows that are worth picking once bounds are known
  double worth_;   ///< and the largest for which bounds are worth knowing
};

}}}  // namespace pith::v0::detail
