#pragma once

#include <algorithm>

#include <pith/merge/merge_rule.hpp>

namespace pith { inline namespace v0 {

/// Normalized merging: a mean weighted by the cosines, shifted to 0 .. 1.
///
///   x' = (x + Σ w e) / (1 + Σ w),   w = max((1 + cos) / 2, 1e-6)
struct Normalized {
  template <class S> S weight(const MergePair<S>& pair) const { return (std::max)((1 + pair.cosine) / 2, S(1e-6)); }
  template <class S> MergeMix<S> mix(S, S, S sum) const { return {1, 1 + sum}; }
};

}}  // namespace pith::v0
