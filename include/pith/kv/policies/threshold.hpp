#pragma once
// DMS: a threshold in place of a budget.

#include <cmath>
#include <concepts>
#include <cstddef>
#include <limits>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/kv/wrapped_policy.hpp>

namespace pith { inline namespace v0 {

/// The threshold and the window of Threshold.
struct ThresholdOptions {
  double least = 0;    ///< rows that score less leave
  Index window = 128;  ///< newest rows that stay
};

/// A threshold in place of a budget (DMS): a row leaves as soon as it is older than the window, if it scores less. P's budget is the most
/// rows that a head may hold.
///
///   Threshold(KeyNorm{4096}, {.least = -9, .window = 128})
///
/// Meant for policies that score a row once, when it is appended (KeyNorm and others with admit()): scores that change are asked again, and
/// a row may leave later.
///
/// Keeps    the newest `window` rows and older ones that score `least` or more
/// Needs    what P needs
/// Cost     one look at each score per token
/// Paper    DMS: arXiv:2506.05345, without its trained evictor
template <class P> struct Threshold : WrappedPolicy<P> {
  ThresholdOptions options;

  Threshold(std::same_as<P> auto policy, const ThresholdOptions& o) : WrappedPolicy<P>{std::move(policy)}, options(o) {}
  /// Throws   what P's check() throws; ShapeError for numbers out of range, and around a policy that decides itself which rows stay
  void check(const AttentionShape& shape) const {
    WrappedPolicy<P>::check(shape);
    check_undecided("Threshold", WrappedPolicy<P>::traits());
    check_count("Threshold", "window", options.window, 0, this->budget(), "the window is part of P's budget");
    if (std::isnan(options.least)) raise<ShapeError>("pith::Threshold: least is not a number");
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
    for (Index r = 0; r < rows.size(); ++r)
      if (Index(rows.next) - rows.positions[static_cast<std::size_t>(r)] <= options.window)
        out[r] = std::numeric_limits<S>::infinity();
      else if (!(out[r] >= static_cast<S>(options.least)))
        out[r] = -std::numeric_limits<S>::infinity();
  }
};
template <class P> Threshold(P, const ThresholdOptions&) -> Threshold<P>;

}}  // namespace pith::v0
