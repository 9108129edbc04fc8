#pragma once

#include <pith/kv/layer_scores.hpp>
#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// TOVA: drops the row that the newest query attends to least, the same in all heads of a layer; even the newest row can be dropped.
///
///   score_r = Σ_heads softmax(q_last Kᵀ / √d)_r
///
/// Keeps    `keep` rows by the last query's attention, averaged over all heads
/// Needs    attention weights of the last query
/// Cost     one add per weight of one query; one read of every score when evicting
/// Paper    TOVA: arXiv:2401.06104
struct Tova {
  Index keep = 1024;  ///< rows kept
  Index budget() const { return keep; }
  void check(const AttentionShape&) const { check_count("Tova", "keep", keep, 1); }
  PolicyTraits traits() const { return {.keeps_newest = false, .watches = 1}; }
  Index stats(const AttentionShape&) const { return 1; }
  template <class S> void observe(const AttentionBlock<S>& seen, const KvRows<S>&, MatrixRef<S> stats) const {
    stats.row(0).setZero();
    add_rows<S>(seen.weights, stats.topRows(1));
  }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const { out = rows.stats.row(0); }
  /// All heads drop the same rows, so all hold the same tokens in the same order.
  template <class S> void combine(LayerScores<S>& layer) const {
    for (Index h = 1; h < layer.num_heads(); ++h) layer.scores(0) += layer.scores(h);
    for (Index h = 1; h < layer.num_heads(); ++h) layer.scores(h) = layer.scores(0);
  }
};

}}  // namespace pith::v0
