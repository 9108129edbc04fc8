#pragma once

#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// KNorm: keeps keys of small norm, as rows that receive much attention tend to have one. Rotation changes no norm.
/// Models that normalise keys (LayerSpec::qk_norm) leave little to rank: KeyDiff does not depend on norms.
///
///   score_r = -‖k_r‖
///
/// Keeps    `keep` rows of smallest key norm, and the newest row
/// Needs    keys, once each
/// Cost     one norm per appended row, one read of every score when evicting
/// Paper    KNorm: arXiv:2406.11430
struct KeyNorm {
  Index keep = 1024;  ///< rows kept
  Index budget() const { return keep; }
  void check(const AttentionShape&) const { check_count("KeyNorm", "keep", keep, 1); }
  Index stats(const AttentionShape&) const { return 1; }
  template <class S> void admit(const KvRows<S>& fresh, MatrixRef<S> stats) const {
    for (Index r = 0; r < fresh.size(); ++r) stats(0, r) = -fresh.keys.row(r).norm();
  }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const { out = rows.stats.row(0); }
};

}}  // namespace pith::v0
