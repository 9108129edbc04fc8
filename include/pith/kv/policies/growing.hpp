#pragma once
// A budget that grows with the text.

#include <algorithm>
#include <concepts>
#include <limits>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/kv/wrapped_policy.hpp>

namespace pith { inline namespace v0 {

/// The share that Growing evicts, and how often.
struct GrowingOptions {
  double ratio = 0.5;  ///< share of the tokens that are evicted
  Index interval = 1;  ///< tokens between two evictions
};

/// A budget that grows with the text: a share of all tokens seen so far stays. P's budget is the most rows that a head may hold.
///
///   rows = max(1, (1 - ratio)·tokens seen), brought about every `interval` tokens
///
///   Growing(Tova{4096}, {.ratio = 0.5, .interval = 64})
///
/// Keeps    that many rows by P's scores
/// Needs    what P needs
/// Cost     P's scores and a selection, every `interval` tokens
template <class P> struct Growing : WrappedPolicy<P> {
  GrowingOptions options;

  Growing(std::same_as<P> auto policy, const GrowingOptions& o) : WrappedPolicy<P>{std::move(policy)}, options(o) {}
  /// Throws   what P's check() throws; ShapeError for numbers out of range, and around a policy that decides itself which rows stay
  void check(const AttentionShape& shape) const {
    WrappedPolicy<P>::check(shape);
    check_undecided("Growing", WrappedPolicy<P>::traits());
    check_share("Growing", "ratio", options.ratio);
    check_count("Growing", "interval", options.interval, 1);
  }
  PolicyTraits traits() const {
    PolicyTraits traits = WrappedPolicy<P>::traits();
    traits.uneven = traits.eager = true;
    return traits;
  }
  template <class S>
  requires ScoresRows<P, S>
  void score(const KvRows<S>& rows, VectorRef<S> out) const {
    this->inner.score(rows, out);
    const Index seen = rows.next - rows.first;
    if (seen % options.interval != 0) return;
    const auto stay = (std::max)(Index(1), static_cast<Index>(static_cast<double>(seen) * (1 - options.ratio)));
    for (Index r = 0; r < rows.size(); ++r) rows.scratch[r] = S(0);
    best_rows(rows, ConstVectorRef<S>(out), stay, [&](Index r) { rows.scratch[r] = S(1); });
    for (Index r = 0; r < rows.size(); ++r)
      if (rows.scratch[r] == S(0) && out[r] != std::numeric_limits<S>::infinity()) out[r] = -std::numeric_limits<S>::infinity();
  }
};
template <class P> Growing(P, const GrowingOptions&) -> Growing<P>;

}}  // namespace pith::v0
