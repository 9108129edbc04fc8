#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include <pith/kv/policies/leverage.hpp>
#include <pith/kv/policies/non_causal.hpp>
#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// Compactor: leverage of keys and attention without a causal mask, each in deviations from its mean in the head.
///
///   score_r = blend · z(leverage_r) + z(non-causal_r)
///
/// Released code takes the deviations over all heads together, where its comments say head by head.
///
/// Keeps    `keep` rows, the first `sinks` and the newest `recent` among them, when a prompt ends
/// Needs    queries, keys and values
/// Cost     of both
/// Paper    Compactor: arXiv:2507.08143
template <class S = float> struct Compactor {
  Leverage<S> leverage;
  NonCausal attention = {};
  double blend = 0.35;  ///< weight of the leverage
  Index recent = 4;     ///< newest tokens, always kept

  Index budget() const { return leverage.keep; }
  void check(const AttentionShape& shape) const {
    leverage.check(shape);
    attention.check(shape);
    check_amount("Compactor", "blend", blend);
    check_count("Compactor", "recent", recent, 0, leverage.keep - leverage.sinks, "sinks and newest rows are part of keep");
  }
  PolicyTraits traits() const { return attention.traits(); }
  Index stats(const AttentionShape& shape) const { return attention.stats(shape); }
  void observe(const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S> stats) const { attention.observe(seen, rows, stats); }
  void score(const KvRows<S>& rows, VectorRef<S> out) const {
    Index first = 0, end = rows.size();
    while (first < end && rows.positions[static_cast<std::size_t>(first)] - rows.first < leverage.sinks) ++first;
    while (end > first && rows.positions[static_cast<std::size_t>(end - 1)] >= rows.next - recent) --end;
    out.setConstant(std::numeric_limits<S>::infinity());
    if (end - first < 2) {
      out.segment(first, end - first).setZero();
      return;
    }
    const auto spread = [&](S* x) {
      VectorRef<S> v(x + first, end - first);
      const S mean = v.mean();
      const S deviation = std::sqrt((v.array() - mean).square().sum() / static_cast<S>(end - first - 1));
      v = (v.array() - mean) / (std::max)(deviation, (std::numeric_limits<S>::min)());
    };
    attention.raw(rows, first, end, out.data(), rows.scratch);
    spread(out.data());
    leverage.raw(rows, first, end, rows.scratch);
    spread(rows.scratch);
    for (Index r = first; r < end; ++r) out[r] += static_cast<S>(blend) * rows.scratch[r];
  }
};

}}  // namespace pith::v0
