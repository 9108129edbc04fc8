#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <limits>
#include <type_traits>

#include <pith/attention/detail/code_scores.hpp>
#include <pith/attention/detail/tile_rows.hpp>
#include <pith/attention/detail/weight_floor.hpp>
#include <pith/attention/scout.hpp>
#include <pith/core/simd.hpp>

// Bounds of scores, from scout codes.

namespace pith { inline namespace v0 { namespace detail {

/// Bounds of the scores of a tile: scout codes give mid_r = q·k'_r (scaled, capped, with log_mass), and
///
///   lo_r = mid_r - δ_r <= x_r <= mid_r + δ_r = hi_r,   δ_r = |q|₂ margin_r + 2^-20 (|mid_r| + |log_mass_r| + cap)
///
/// and more where CodeScores rounds the query, for the score x_r that attention would compute: a cap never widens a difference, and the
/// last term covers the roundings of scale, cap and mass. The softmax's denominator is at least n + Σ e^lo, so rows whose e^hi sum to ε
/// times as much weigh at most ε.
///
/// Exponentials and sums are off by less than 2^-13 of themselves; the comparison allows for 2^-12. Where bounds say nothing (a margin or
/// code that is not finite, lower bounds more than 2^60 below the highest upper one), nothing is spared.
template <class T> class KeyBounds {
 public:
  using Tile = TileRows<T>;
  using S = typename Tile::S;
  using V = typename Tile::V;

  explicit KeyBounds(Tile& tile) : tile_(tile), codes_(tile.m_.head_dim), by_bytes_(CodeScores::possible(tile.m_.head_dim)) {
    load_queries();
  }

  /// Rows that sinks' queries read are scored by their keys.
  static bool scouted(const KvRun<T>& run, Index row) { return run.scouts != nullptr && row >= run.sinks; }

  /// Makes the weights of the blocks for which wanted(block) e^(hi - top), 0 for hidden rows alone, so that the lowest floor reads all
  /// others; TileRows::spare() is told what those of unread rows may sum to. If these are one block in `of`, so is Σ e^lo; the first block
  /// then counts for one in `of` as well: the first tokens often outweigh thousands of others.
  template <class Wanted> void weigh(Wanted&& wanted, Index of) {
    scan(wanted, of);
    for (Index l = 0; l < tile_.lanes(); ++l) settle(l, of);
    tile_.for_blocks([&](const KvRun<T>&, Index, Index, Index block) {
      if (wanted(block)) tile_.for_lanes(block, [&](Index l) { weigh_bounds(l, block); });
    });
  }

 private:
  /// Upper bounds of scores, and Σ e^lo of each lane.
  template <class Wanted> void scan(Wanted&& wanted, Index of) {
    tile_.start_scores();
    std::fill_n(tile_.at(tile_.m_.total), tile_.lanes(), S(0));
    for (Index l = 0; l < tile_.lanes(); ++l) reference(l) = -std::numeric_limits<S>::infinity();
    tile_.for_visible_blocks(
        [&](const KvRun<T>& run, Index row, Index count, Index block, const auto& visible, const QueryRange& seen) {
          bound(run, row, count, block, seen);
          tile_.finish_scores(run, row, count, block, visible, seen);
          for (Index l = seen.begin * tile_.group_; l < seen.end * tile_.group_; ++l) {
            add_lower(l, block);
            if (!wanted(block)) tile_.at(tile_.m_.total)[l] /= static_cast<S>(of);
          }
        },
        [&](Index block) { return block == 0 || wanted(block); });
  }

  /// Of each lane: its query in the order of codes, and a bound of the query's norm.
  void load_queries() {
    S* const features = tile_.at(tile_.m_.shown);
    for (Index l = 0; l < tile_.lanes(); ++l) {
      tile_.keys_.restore(tile_.at(tile_.m_.queries) + l * tile_.m_.padded, S(1), features);
      if (by_bytes_)
        lost(l) = CodeScores::encode(features, tile_.m_.head_dim, reinterpret_cast<std::byte*>(query(l)));
      else
        codes_.arrange(features, S(1), query(l));
      double sum = 0;
      for (Index i = 0; i < tile_.m_.head_dim; ++i) sum += static_cast<double>(features[i]) * static_cast<double>(features[i]);
      norm(l) = static_cast<S>(std::sqrt(sum) * (1 + 0x1p-20));
    }
  }
  S* query(Index lane) const { return tile_.at(tile_.m_.sums) + lane * tile_.m_.padded; }  // sums begin after scoring
  S& norm(Index lane) const { return tile_.at(tile_.m_.inverse)[lane]; }
  S& lost(Index lane) const { return tile_.at(tile_.m_.inverse_of_read)[lane]; }  ///< what rounding the query to bytes changes it by

  static const std::byte* scout_at(const KvRun<T>& run, Index r, Index dim) { return run.scouts + r * scout_row_bytes(dim); }

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
  /// Bounds of the norms of a block's codes, which a query rounded to bytes needs.
  void load_norms(const KvRun<T>& run, Index row, Index count, S (&norms)[std::size_t(attention_block)]) const {
    std::fill(std::begin(norms), std::end(norms), S(0));
    if (!by_bytes_ || !scouted(run, row)) return;
    const Index dim = tile_.m_.head_dim, stride = scout_row_bytes(dim);
    for (Index block = 0; block < dim / q8_block; ++block) {
      half scale[std::size_t(attention_block)] = {};
      const std::byte* at = scout_at(run, row, dim) + block * q8_row_bytes(q8_block);
      for (Index i = 0; i < count; ++i, at += stride) std::memcpy(scale + i, at, sizeof(half));
      const typename V::Packet size = V::broadcast(static_cast<S>(CodeScores::norm_of_scale));
      for (Index i = 0; i < attention_block; i += V::width) V::store(norms + i, V::madd(size, V::load(scale + i), V::load(norms + i)));
    }
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

  void score_codes(const std::byte* rows, Index count, bool more, Index block, Index begin, Index end) {
    const Index dim = tile_.m_.head_dim, stride = scout_row_bytes(dim), padded = tile_.m_.padded;
    if (by_bytes_)
      return for_query_groups<Q8>(end - begin, [&](Index group, auto size) {
        const Index lane = begin + group;
        CodeScores::run<size()>(query(lane), padded, dim, rows, stride, count, tile_.weight(lane, block), tile_.m_.row_stride);
      });
    const auto* const first = reinterpret_cast<const Q8*>(rows);
    tile_.with_rows(codes_, Rows<Q8>{first, stride, count, more ? first + attention_block * stride : nullptr}, end - begin, [&](auto all) {
      for_query_groups<typename decltype(all)::Element>(end - begin, [&](Index group, auto size) {
        const Index lane = begin + group;
        Tile::template kernel_of<ScoreKernel, size()>(all).run(query(lane), padded, all, tile_.weight(lane, block), tile_.m_.row_stride);
        all.ahead = nullptr;
      });
    });
  }

  /// Upper bounds of a block's scores, without masses.
  void bound(const KvRun<T>& run, Index row, Index count, Index block, const QueryRange& seen) {
    const Index begin = seen.begin * tile_.group_, end = seen.end * tile_.group_;
    if (scouted(run, row)) {
      score_codes(scout_at(run, row, tile_.m_.head_dim), count, row + attention_block < run.rows, block, begin, end);
    } else {
      tile_.reads_.keys += count;
      tile_.score(run, row, count, block, begin, end);
    }
    if (tile_.numbers_.softcap > 0) tile_.cap_scores(count, block, begin, end);
    S margin[std::size_t(attention_block)], offset[std::size_t(attention_block)], norms[std::size_t(attention_block)];
    load_margins(run, row, count, margin);
    load_norms(run, row, count, norms);
    load_offsets(run, row, count, offset);
    for (Index l = begin; l < end; ++l) {
      const typename V::Packet size = V::broadcast(norm(l)), share = V::broadcast(slack),
                               rounded = V::broadcast(by_bytes_ ? lost(l) : S(0));
      S* const w = tile_.weight(l, block);
      for (Index i = 0; i < attention_block; i += V::width) {
        const typename V::Packet mid = V::load(w + i);
        const typename V::Packet codes = V::madd(rounded, V::load(norms + i), V::mul(size, V::load(margin + i)));
        const typename V::Packet delta = V::madd(share, V::add(V::abs(mid), V::load(offset + i)), codes);
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

  /// From Σ e^lo, of one row in `of`, to what the weights e^(hi - top) of unread rows may sum to.
  void settle(Index lane, Index of) {
    const S before = reference(lane);
    tile_.settle_top(lane);
    const auto top = static_cast<double>(tile_.at(tile_.m_.top)[lane]);
    double least = 0;
    if (before > -std::numeric_limits<S>::infinity())
      least = static_cast<double>(tile_.at(tile_.m_.total)[lane]) * std::exp(static_cast<double>(before) - top);
    if (tile_.numbers_.n > 0) least += static_cast<double>(tile_.numbers_.n) / static_cast<double>(of) * std::exp(-top);
    const double spare = static_cast<double>(tile_.numbers_.skip_below) * least * (1 - 0x1p-12);
    tile_.spare(lane) = std::isfinite(top) && spare > 0x1p-60 ? static_cast<S>(spare) : S(0);
  }

  void weigh_bounds(Index lane, Index block) {
    const typename V::Packet top = V::broadcast(tile_.at(tile_.m_.top)[lane]), least = V::broadcast(WeightFloor<S>().least),
                             hidden = V::broadcast(-std::numeric_limits<S>::infinity());
    S* const w = tile_.weight(lane, block);
    for (Index i = 0; i < attention_block; i += V::width) {
      const typename V::Packet hi = V::load(w + i), e = V::exp_down(V::sub(hi, top));
      V::store(w + i, V::select(V::equal(hi, hidden), V::zero(), V::select(V::less(e, least), least, e)));
    }
  }

  Tile& tile_;
  RowLayout<Q8> codes_;
  bool by_bytes_;
};

}}}  // namespace pith::v0::detail
