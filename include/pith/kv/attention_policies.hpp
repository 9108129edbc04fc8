#pragma once

#include <pith/kv/policy.hpp>

namespace pith::inline v0 {

/// H2O: keeps the rows that attracted most attention so far, plus the newest.
///
/// A row's score is the softmax weight it received from every query since it was appended, its own included, summed over the query heads
/// that share the kv head; it never decays, so a long prompt's favourites stay for long.
///
/// Keeps    `heavy` rows by accumulated attention and the newest `recent`
/// Needs    attention weights
/// Cost     one add per weight while watching, one look at every score when evicting
/// Paper    H2O: arXiv:2306.14048
struct HeavyHitter {
  Index heavy = 512;   ///< rows kept for their accumulated attention (k of the paper's H2 set)
  Index recent = 512;  ///< newest rows, always kept
  Index budget() const { return heavy + recent; }
  Index stats(const AttentionShape&) const { return 1; }
  template <class S> void observe(const AttentionBlock<S>& seen, const KvRows<S>&, MatrixRef<S> stats) const {
    for (Index q = 0; q < seen.weights.rows(); ++q) stats.row(0) += seen.weights.row(q);
  }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    out = rows.stats.row(0);
    keep_newest(rows, recent, out);
  }
};

}  // namespace pith::inline v0
