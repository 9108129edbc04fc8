#pragma once

#include <pith/merge/merge_rule.hpp>

namespace pith { inline namespace v0 {

/// Pivotal merging: averages each matched row e with the kept row x first, then takes the mean; x' lies half way from x to Averaged.
///
///   x' = (x + Σ (x + e)/2) / (1 + n) = ((1 + n/2) x + Σ e/2) / (1 + n)
///
/// Paper    LOOK-M's P-Merge, arXiv:2406.18139, eq. 11
struct Pivotal {
  template <class S> S weight(const MergePair<S>&) const { return S(.5); }                        // of each e
  template <class S> MergeMix<S> mix(S, S count, S) const { return {1 + count / 2, 1 + count}; }  // factor of x, divisor
};

}}  // namespace pith::v0
