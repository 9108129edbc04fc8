#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <type_traits>

#include <pith/attention/detail/scouted_keys.hpp>
#include <pith/attention/detail/skipped_values.hpp>
#include <pith/attention/detail/tile_rows.hpp>
#include <pith/attention/kv_view.hpp>
#include <pith/attention/reads.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>

// Attention of one tile of queries to one kv head, on top of the kernels.

namespace pith { inline namespace v0 { namespace detail {

/// Attention of up to attention_tile queries to one kv head: scores of all rows, then weights and values block by block.
///
///   out = Σ_r exp(x_r - top) v_r / (n exp(-top) + Σ_r exp(x_r - top)), x_r = q·k_r/√d (scaled and capped) + log_mass_r, top = max x
template <class T> class AttendTile : TileRows<T> {
  using Rows = TileRows<T>;
  using Rows::lanes, Rows::at, Rows::weight, Rows::queries_that_see, Rows::blocks_of;
  using Rows::m_, Rows::runs_, Rows::group_, Rows::numbers_, Rows::keys_, Rows::values_, Rows::tokens_, Rows::first_, Rows::sight_;
  using Rows::turns_keys, Rows::turns_values;

 public:
  using S = typename Rows::S;
  using V = typename Rows::V;
  using Rows::TileRows;

  /// Loads the queries of the head: [tokens] rows of q, each with `group` queries of head_dim numbers one after the other. `sight`: the
  /// newest position that each token sees; nullptr: its own.
  void load_queries(const S* q, Index q_stride, const S* sinks, Index sinks_stride, Index tokens, Position first, const Position* sight) {
    tokens_ = tokens;
    first_ = first;
    sight_ = sight;
    scale_queries(q, q_stride, at(m_.queries));
    if (sinks != nullptr) scale_queries(sinks, sinks_stride, at(m_.sink_queries));
  }

  /// Computes the tile; `next` is the address of the rows that will be read after this head.
  void run(const T* next);

  void store_output(S* out, Index out_stride) const {
    for (Index l = 0; l < lanes(); ++l) {
      S* const features = out + l / group_ * out_stride + l % group_ * m_.head_dim;
      values_.restore(at(m_.sums) + l * m_.padded, at(m_.inverse_of_read)[l], features);
      if constexpr (turns_values) rotate_row(features, m_.head_dim, rotation_block(m_.head_dim));
    }
  }

  /// Softmax rows of the last run, from query `first` of the tile on: [(tokens - first)*group, rows].
  ConstMatrixRef<S> weights(Index first) {
    Index begin = 0;  // first block of the last run
    for (const KvRun<T>& run : runs_.first(runs_.size() - 1)) begin += blocks_of(run);
    const Index end = begin + blocks_of(runs_.back());
    for (Index l = first * group_; l < lanes(); ++l) {
      const Index t = l / group_;
      const typename V::Packet scale = V::broadcast(at(m_.inverse)[l]);
      for (Index block = begin; block < end; ++block) {
        S* const w = weight(l, block);
        if (const QueryRange seen = queries_that_see()[block]; t < seen.begin || t >= seen.end) {
          std::fill_n(w, attention_block, S(0));
        } else {
          for (Index i = 0; i < attention_block; i += V::width) V::store(w + i, V::mul(V::load(w + i), scale));
        }
      }
    }
    return {weight(first * group_, begin), lanes() - first * group_, runs_.back().rows, m_.row_stride};
  }

  /// Rows that at least one query of the tile saw, and those whose values were read.
  const AttentionReads& reads() const { return this->reads_; }

  ConstVectorRef<S> log_sums(Index first) {
    for (Index l = first * group_; l < lanes(); ++l) at(m_.log_sum)[l] = at(m_.top)[l] + std::log(at(m_.total)[l]);
    return {at(m_.log_sum) + first * group_, lanes() - first * group_};
  }

  ConstMatrixRef<S> shown_queries(const S* q, Index q_stride, Index first) {
    for (Index t = first; t < tokens_; ++t) std::copy_n(q + t * q_stride, group_ * m_.head_dim, at(m_.shown) + t * group_ * m_.head_dim);
    return {at(m_.shown) + first * group_ * m_.head_dim, (tokens_ - first) * group_, m_.head_dim};
  }

 private:
  void scale_queries(const S* q, Index stride, S* to) const {
    const S scale = numbers_.scale > 0 ? numbers_.scale : S(1) / std::sqrt(static_cast<S>(m_.head_dim));
    for (Index l = 0; l < lanes(); ++l) {
      const S* features = q + l / group_ * stride + l % group_ * m_.head_dim;
      if constexpr (turns_keys) {
        std::copy_n(features, m_.head_dim, at(m_.shown));
        rotate_row(at(m_.shown), m_.head_dim, rotation_block(m_.head_dim));
        features = at(m_.shown);
      }
      keys_.arrange(features, scale, to + l * m_.padded);
    }
  }
};

// Out of the class, so that a program which compiles it once (extern template) compiles nothing of it elsewhere.
template <class T> void AttendTile<T>::run(const T* next) {
  this->next_ = next;
  this->reads_ = {};
  bool skips = numbers_.skip_below > 0, scored = false;
  if constexpr (ScoutedKeys<T>::possible)
    if (ScoutedKeys<T>::wanted(*this)) {
      if (ScoutedKeys<T>(*this).run()) return;
      skips = false;
      scored = true;
    }
  if (!scored) this->score_all();
  this->start_weights();
  if (skips) return SkippedValues<T>(*this).run();
  this->for_seen_blocks([this](const KvRun<T>& run, Index row, Index count, Index block, const QueryRange& seen) {
    this->reads_.rows += count;
    this->reads_.values += count;
    for (Index l = seen.begin * group_; l < seen.end * group_; ++l) this->weigh(l, block);
    this->add_values(run, row, count, block, seen.begin * group_, seen.end * group_);
  });
  if (this->reads_.needed == 0) this->reads_.needed = this->reads_.values;
  for (Index l = 0; l < lanes(); ++l) {
    this->add_masses(l);
    this->check_sums(l);
  }
}

}}}  // namespace pith::v0::detail
