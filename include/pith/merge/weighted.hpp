#pragma once

#include <pith/merge/merge_rule.hpp>

namespace pith { inline namespace v0 {

/// Weighted merging: each matched row e counts by the cosine of its key and the kept row's key.
///
///   x' = (x + Σ cos·e) / (1 + n)
///
/// This is not a mean: the weights add up to less than 1, and a row with a negative cosine is subtracted.
///
/// Paper    LOOK-M's W-Merge, arXiv:2406.18139, eq. 12
struct Weighted {
  template <class S> S weight(const MergePair<S>& pair) const { return pair.cosine; }  // of each e
  template <class S> MergeMix<S> mix(S, S count, S) const { return {1, 1 + count}; }   // factor of x, divisor
};

}}  // namespace pith::v0
