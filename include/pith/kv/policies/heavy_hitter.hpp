#pragma once

#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// H2O: keeps the rows that received most attention so far, plus the newest.
///
///   score_r = Σ_q softmax(q Kᵀ / √d)_r
///
/// The sum runs over all queries since row r was appended, its own included, in all query heads that share the kv head. It never decays, so
/// rows that a long prompt favoured stay for long.
///
/// Keeps    `heavy` rows by accumulated attention and the newest `recent`
/// Needs    attention weights
/// Cost     one add per weight while watching, one read of every score when evicting
/// Paper    H2O: arXiv:2306.14048
struct HeavyHitter {
  Index heavy = 512;   ///< rows kept for their accumulated attention (k in the paper)
  Index recent = 512;  ///< newest rows, always kept
  Index budget() const { return sum_of_rows(heavy, recent); }
  void check(const AttentionShape&) const {
    check_count("HeavyHitter", "heavy", heavy, 0);
    check_count("HeavyHitter", "recent", recent, 0, max_head_rows - heavy);
    check_count("HeavyHitter", "heavy + recent", heavy + recent, 1);
  }
  Index stats(const AttentionShape&) const { return 1; }
  template <class S> void observe(const AttentionBlock<S>& seen, const KvRows<S>&, MatrixRef<S> stats) const {
    add_rows<S>(seen.weights, stats.topRows(1));
  }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    keep_newest<S>(rows, recent, rows.stats.row(0).data(), out);
  }
};

}}  // namespace pith::v0
