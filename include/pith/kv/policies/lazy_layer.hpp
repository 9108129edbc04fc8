#pragma once

#include <algorithm>
#include <limits>

#include <pith/core/check.hpp>
#include <pith/kv/layer_scores.hpp>
#include <pith/kv/policy.hpp>
#include <pith/kv/query_window.hpp>

namespace pith { inline namespace v0 {

/// SimLayerKV: a layer is lazy if its last queries look only at the first and the newest tokens. Then it keeps these alone, else all rows.
///
///   lazy: mean_{heads, q ∈ last} Σ_{r ∈ first `sinks`, newest `recent` before the last} softmax(q Kᵀ/√d)_r > threshold
///
/// Keeps    all rows, up to `keep`, or the first `sinks` and the newest recent - last, when a prompt ends. A layer that is not lazy evicts
///          the oldest beyond `keep`
/// Needs    weights of the last queries
/// Cost     one store per weight of these queries; none after the prompt
/// Paper    SimLayerKV: arXiv:2410.13846
struct LazyLayer {
  Index keep = 4096;       ///< the most rows of a layer that is not lazy: the longest prompt
  Index sinks = 4;         ///< the first tokens
  Index recent = 1024;     ///< the newest tokens, the last queries' included
  Index last = 1;          ///< last queries watched
  double threshold = 0.9;  ///< weight above which a layer is lazy

  Index budget() const { return keep; }
  void check(const AttentionShape&) const {
    check_count("LazyLayer", "keep", keep, 1);
    check_count("LazyLayer", "sinks", sinks, 0, keep, "they are part of keep");
    check_count("LazyLayer", "recent", recent, 1, keep - sinks, "sinks and newest rows are part of keep");
    check_count("LazyLayer", "last", last, 1, recent, "the last queries' tokens are among the newest");
    check_share("LazyLayer", "threshold", threshold);
  }
  PolicyTraits traits() const { return {.prompt_only = true, .watches = last, .uneven = true, .decides = true, .eager = true}; }
  Index stats(const AttentionShape&) const { return last; }  // the weights of each of the last queries, summed over the group
  Index memory(const AttentionShape&) const { return QueryWindow<float>::memory_size; }
  template <class S> void observe(const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S> stats, VectorRef<S> memory) const {
    const Index group = rows.shape.group();
    QueryWindow<S> newest(last, memory);
    newest.slide(seen, rows, [](Index, Index) {});  // no sums: score() reads the slots
    for (Index q = 0; q < seen.weights.rows(); q += group) {
      auto slot = stats.row(newest.slot(seen.first_row + q / group));
      slot.setZero();
      for (Index g = 0; g < group; ++g) slot.head(seen.weights.cols()) += seen.weights.row(q + g);
    }
  }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    for (Index r = 0; r < rows.size(); ++r) out[r] = static_cast<S>(rows.positions[static_cast<std::size_t>(r)] - rows.next);
  }
  template <class S> void combine(LayerScores<S>& layer) const {
    if (!(weight_nearby(layer) > static_cast<S>(threshold))) return;
    for (Index h = 0; h < layer.num_heads(); ++h) {
      const KvRows<S> rows = layer.rows(h);
      if (rows.size() <= sinks + recent + last) return;
      for (Index r = 0; r < rows.size(); ++r)
        if (const Position p = rows.positions[static_cast<std::size_t>(r)]; p - rows.first >= sinks && p < rows.next - recent + last)
          layer.scores(h)[r] = -std::numeric_limits<S>::infinity();
    }
  }
  /// Mean weight of the last queries of this prompt on sinks and newest rows, those of these queries left out.
  template <class S> S weight_nearby(LayerScores<S>& layer) const {
    S sum = 0, weights = 0;
    for (Index h = 0; h < layer.num_heads(); ++h) {
      const KvRows<S> rows = layer.rows(h);
      const Index seen = (std::min)(QueryWindow<S>::held(rows.memory), rows.size());
      if (seen == 0) continue;
      weights += static_cast<S>(seen * rows.shape.group());
      const Position first_query = rows.positions[static_cast<std::size_t>(rows.size() - seen)];  // tokens of a prompt lie in order
      for (Index r = 0; r < rows.size(); ++r)
        if (const Position p = rows.positions[static_cast<std::size_t>(r)];
            p < first_query && (p - rows.first < sinks || p >= first_query - recent))
          sum += rows.stats.col(r).sum();
    }
    return weights == S(0) ? S(0) : sum / weights;
  }
};

}}  // namespace pith::v0
