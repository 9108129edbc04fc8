#pragma once

#include <pith/merge/merge_rule.hpp>

namespace pith { inline namespace v0 {

/// Averaged merging: a kept row becomes the mean of itself and the n evicted rows e matched to it.
///
///   x' = (x + Σ e) / (1 + n)
///
/// Paper    LOOK-M's A-Merge, arXiv:2406.18139, eq. 10
struct Averaged {
  template <class S> S weight(const MergePair<S>&) const { return 1; }                // of each e
  template <class S> MergeMix<S> mix(S, S count, S) const { return {1, 1 + count}; }  // factor of x, divisor
};

}}  // namespace pith::v0
