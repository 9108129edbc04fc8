#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <type_traits>

#include <pith/attention/detail/picked_rows.hpp>
#include <pith/attention/detail/tile_rows.hpp>
#include <pith/attention/detail/weight_floor.hpp>
#include <pith/attention/scout.hpp>
#include <pith/core/simd.hpp>

// Scores of the keys that scout codes cannot exclude.

namespace pith { inline namespace v0 { namespace detail {

/// Two passes over the keys of a tile. The first reads scout codes: mid_r = q·k'_r (scaled, capped, with log_mass), and
///
///   lo_r = mid_r - δ_r <= x_r <= mid_r + δ_r = hi_r,   δ_r = |q|₂ margin_r + 2^-20 (|mid_r| + |log_mass_r| + cap)
///
/// for the score x_r that attention would compute: a cap never widens a difference, and the last term covers the roundings of scale, cap
/// and mass. A lane reads S, all rows but U, the largest set of lightest hi with Σ_U e^hi <= ε (n + Σ e^lo); as the softmax's denominator
/// is at least n + Σ e^lo, U weighs at most ε. The second pass computes x_r of what some lane reads, with the bits of a dense pass, and
/// leaves -inf in the scores of every lane where it does not read.
///
/// Exponentials and sums are off by less than 2^-13 of themselves; the comparison allows for 2^-12. Where bounds say nothing (a margin or
/// code that is not finite, lower bounds more than 2^60 below the highest upper one), the lane reads every row.
template <class T> class ScoutedKeys {
 public:
  using Tile = TileRows<T>;
  using S = typename Tile::S;
  using V = typename Tile::V;
  using Key = typename Tile::Key;
  static constexpr bool possible = PlainStorage<Key> && std::is_same_v<S, float>;

  explicit ScoutedKeys(Tile& tile) : tile_(tile), codes_(tile.m_.head_dim) {}

  static bool wanted(const Tile& tile) {
    return tile.numbers_.skip_below > S(0) &&
           std::any_of(tile.runs_.begin(), tile.runs_.end(), [](const KvRun<T>& run) { return run.scouts != nullptr; });
  }

  /// In place of TileRows::score_all().
  void score() {
    load_queries();
    tile_.start_scores();
    std::fill_n(tile_.at(tile_.m_.total), tile_.lanes(), S(0));
    for (Index l = 0; l < tile_.lanes(); ++l) reference(l) = -std::numeric_limits<S>::infinity();
    tile_.for_visible_blocks([this](const KvRun<T>& run, Index row, Index count, Index block, const auto& visible, const QueryRange& seen) {
      bound(run, row, count, block, seen);
      tile_.finish_scores(run, row, count, block, visible, seen);
      for (Index l = seen.begin * tile_.group_; l < seen.end * tile_.group_; ++l) add_lower(l, block);
    });
    find_floors();
    const RowPicks<T> picks(tile_);
    const std::uint32_t* which = tile_.picked();
    tile_.start_scores();
    tile_.for_visible_blocks([&](const KvRun<T>& run, Index row, Index count, Index block, const auto& visible, const QueryRange& seen) {
      const Index begin = seen.begin * tile_.group_, end = seen.end * tile_.group_, listed = tile_.picked() + picks.end_of(run) - which;
      Index size = 0;
      while (size < listed && Index(which[size]) < row + count) ++size;
      for (Index l = begin; l < end; ++l) read_by(l) = rows_at_least(tile_.weight(l, block), tile_.floors()[l]);
      if (scouted(run, row)) tile_.reads_.keys += picks.most() ? count : size;
      if (picks.most() || row < run.sinks) {
        score_block(run, row, count, block, begin, end);
      } else {
        score_picked(row, block, begin, end, {Tile::key_at(run, 0), Tile::key_stride(run), size, which, listed});
      }
      which += size;
      tile_.finish_scores(run, row, count, block, visible, seen);
    });
  }

 private:
  /// Of each lane: its query in the order of codes, and a bound of the query's norm.
  void load_queries() {
    S* const features = tile_.at(tile_.m_.shown);
    for (Index l = 0; l < tile_.lanes(); ++l) {
      tile_.keys_.restore(tile_.at(tile_.m_.queries) + l * tile_.m_.padded, S(1), features);
      codes_.arrange(features, S(1), query(l));
      double sum = 0;
      for (Index i = 0; i < tile_.m_.head_dim; ++i) sum += static_cast<double>(features[i]) * static_cast<double>(features[i]);
      norm(l) = static_cast<S>(std::sqrt(sum) * (1 + 0x1p-20));
    }
  }
  S* query(Index lane) const { return tile_.at(tile_.m_.sums) + lane * tile_.m_.padded; }  // sums begin after scoring
  S& norm(Index lane) const { return tile_.at(tile_.m_.log_sum)[lane]; }
  std::uint32_t& read_by(Index lane) const { return reinterpret_cast<std::uint32_t*>(tile_.at(tile_.m_.top))[lane]; }

  static const std::byte* scout_at(const KvRun<T>& run, Index r, Index dim) { return run.scouts + r * scout_row_bytes(dim); }
  /// Rows that sinks' queries read are scored by their keys.
  static bool scouted(const KvRun<T>& run, Index row) { return run.scouts != nullptr && row >= run.sinks; }

  /// The margins of a block's rows; 0 for rows that were scored by their keys.
  void load_margins(const KvRun<T>& run, Index row, Index count, S (&margin)[std::size_t(attention_block)]) const {
    half stored[std::size_t(attention_block)] = {};
    if (scouted(run, row)) {
      const Index dim = tile_.m_.head_dim, stride = scout_row_bytes(dim);
      const std::byte* at = scout_at(run, row, dim) + q8_row_bytes(dim);
      for (Index i = 0; i < count; ++i, at += stride) std::memcpy(stored + i, at, sizeof(half));
    }
    for (Index i = 0; i < attention_block; i += V::width) V::store(margin + i, V::load(stored + i));
  }
  /// Sizes of masses and cap.
  void load_offsets(const KvRun<T>& run, Index row, Index count, S (&offset)[std::size_t(attention_block)]) const {
    std::fill(std::begin(offset), std::end(offset), tile_.numbers_.softcap);
    for (Index i = 0; run.log_mass != nullptr && i < count; ++i)
      if (const S mass = std::abs(static_cast<S>(run.log_mass[row + i])); mass <= (std::numeric_limits<S>::max)()) offset[i] += mass;
  }
  /// δ of a block's rows, until its lower bounds are added.
  S* deltas(Index lane) const { return tile_.at(tile_.m_.mass) + lane * attention_block; }
  S& reference(Index lane) const { return tile_.at(tile_.m_.top)[lane]; }

  /// Upper bounds of a block's scores, without masses.
  void bound(const KvRun<T>& run, Index row, Index count, Index block, const QueryRange& seen) {
    const Index begin = seen.begin * tile_.group_, end = seen.end * tile_.group_;
    if (scouted(run, row)) {
      const Index stride = scout_row_bytes(tile_.m_.head_dim);
      const auto* const first = reinterpret_cast<const Q8*>(scout_at(run, row, tile_.m_.head_dim));
      const auto* const ahead = row + attention_block < run.rows ? first + attention_block * stride : nullptr;
      tile_.with_rows(codes_, Rows<Q8>{first, stride, count, ahead}, end - begin, [&](auto rows) {
        for_query_groups(end - begin, [&](Index group, auto size) {
          const Index lane = begin + group;
          Tile::template kernel_of<ScoreKernel, size()>(rows).run(query(lane), tile_.m_.padded, rows, tile_.weight(lane, block),
                                                                  tile_.m_.row_stride);
          rows.ahead = nullptr;
        });
      });
    } else {
      tile_.reads_.keys += count;
      tile_.score(run, row, count, block, begin, end);
    }
    if (tile_.numbers_.softcap > 0) tile_.cap_scores(count, block, begin, end);
    S margin[std::size_t(attention_block)], offset[std::size_t(attention_block)];
    load_margins(run, row, count, margin);
    load_offsets(run, row, count, offset);
    for (Index l = begin; l < end; ++l) {
      const typename V::Packet size = V::broadcast(norm(l)), share = V::broadcast(slack);
      S* const w = tile_.weight(l, block);
      for (Index i = 0; i < attention_block; i += V::width) {
        const typename V::Packet mid = V::load(w + i);
        const typename V::Packet delta = V::madd(share, V::add(V::abs(mid), V::load(offset + i)), V::mul(size, V::load(margin + i)));
        V::store(deltas(l) + i, delta);
        V::store(w + i, V::add(mid, delta));
      }
    }
  }
  static constexpr S slack = S(0x1p-20);

  /// Adds e^(lo - reference) of a block to a lane's total; the reference is the highest upper bound so far.
  void add_lower(Index lane, Index block) {
    const S* const hi = tile_.weight(lane, block);
    typename V::Packet most = V::load(hi);
    for (Index i = V::width; i < attention_block; i += V::width) most = V::larger(V::load(hi + i), most);
    S& total = tile_.at(tile_.m_.total)[lane];
    if (const S top = V::largest(most); top > reference(lane)) {
      total *= std::exp(reference(lane) - top);
      reference(lane) = top;
    }
    const typename V::Packet down = V::broadcast(S(-2) * (1 + 4 * slack)), from = V::broadcast(reference(lane));
    typename V::Packet sum = V::zero();
    for (Index i = 0; i < attention_block; i += V::width) {
      const typename V::Packet high = V::load(hi + i), low = V::madd(down, V::load(deltas(lane) + i), high);
      sum =
          V::add(sum, V::select(V::less(high, V::broadcast(-(std::numeric_limits<S>::max)())), V::zero(), V::exp_down(V::sub(low, from))));
    }
    total += V::sum(sum);
  }

  /// Turns bounds into weights e^(hi - top) and finds what each lane need not read.
  void find_floors() {
    const Index lanes = tile_.lanes();
    for (Index l = 0; l < lanes; ++l) {
      const S before = reference(l);
      tile_.settle_top(l);
      const S top = tile_.at(tile_.m_.top)[l];
      double least = before > -std::numeric_limits<S>::infinity() ? static_cast<double>(tile_.at(tile_.m_.total)[l]) *
                                                                        std::exp(static_cast<double>(before) - static_cast<double>(top))
                                                                  : 0;
      if (tile_.numbers_.n > 0) least += static_cast<double>(tile_.numbers_.n) * std::exp(-static_cast<double>(top));
      tile_.at(tile_.m_.total)[l] = static_cast<S>(least);
    }
    std::fill_n(tile_.at(tile_.m_.mass), lanes * attention_block, S(0));
    tile_.for_blocks(
        [this](const KvRun<T>&, Index, Index, Index block) { tile_.for_lanes(block, [&](Index l) { tile_.weigh(l, block); }); });
    for (Index l = 0; l < lanes; ++l) {
      const double spare =
          static_cast<double>(tile_.numbers_.skip_below) * static_cast<double>(tile_.at(tile_.m_.total)[l]) * (1 - 0x1p-12);
      tile_.floors()[l] = std::isfinite(tile_.at(tile_.m_.top)[l]) && spare > 0x1p-60
                              ? FloorSearch<S>::below(spare, tile_.weight(l, 0), tile_.all_blocks()).least
                              : S(0);
    }
  }

  static constexpr S lowest = -std::numeric_limits<S>::infinity();

  /// Scores a whole block; each lane keeps what it reads.
  void score_block(const KvRun<T>& run, Index row, Index count, Index block, Index begin, Index end) {
    tile_.score(run, row, count, block, begin, end);
    if (tile_.numbers_.softcap > 0) tile_.cap_scores(count, block, begin, end);
    for (Index l = begin; l < end; ++l) {
      S* const w = tile_.weight(l, block);
      const std::uint32_t bits = read_by(l);
      for (Index i = 0; i < attention_block; ++i) w[i] = (bits >> i & 1) != 0 ? w[i] : lowest;
    }
  }

  /// Scores the picked rows of a block, which begins at `row` of its run.
  void score_picked(Index row, Index block, Index begin, Index end, const PickedRows<Key>& picked) {
    if (picked.count > 0) {
      const auto run_kernels = [&](const auto& rows) {
        for_query_groups(end - begin, [&](Index group, auto size) {
          const Index lane = begin + group;
          Tile::template kernel_of<ScoreKernel, size()>(rows).run(tile_.at(tile_.m_.queries) + lane * tile_.m_.padded, tile_.m_.padded,
                                                                  rows, tile_.weight(lane, block), tile_.m_.row_stride);
        });
      };
      if (tile_.keys_.whole) {
        run_kernels(picked);
      } else {
        S* const stage = tile_.at(tile_.m_.stage);
        for (Index i = 0; i < picked.count; ++i) tile_.keys_.stage(picked.row(i), 0, 1, stage + i * tile_.m_.padded);
        run_kernels(Rows<S>{stage, tile_.m_.padded, picked.count, nullptr});
      }
      if (tile_.numbers_.softcap > 0) tile_.cap_scores(picked.count, block, begin, end);
    }
    for (Index l = begin; l < end; ++l) {  // from the front of the block, where they were written, to their places
      S spread[std::size_t(attention_block)];
      std::fill(std::begin(spread), std::end(spread), lowest);
      S* const w = tile_.weight(l, block);
      const std::uint32_t bits = read_by(l);
      for (Index i = 0; i < picked.count; ++i) {
        const std::uint32_t at = picked.which[i] - static_cast<std::uint32_t>(row);
        spread[at] = (bits >> at & 1) != 0 ? w[i] : lowest;
      }
      std::copy(std::begin(spread), std::end(spread), w);
    }
  }

  Tile& tile_;
  RowLayout<Q8> codes_;
};

}}}  // namespace pith::v0::detail
