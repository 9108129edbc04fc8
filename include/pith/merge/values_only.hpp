#pragma once

#include <algorithm>

#include <pith/merge/merge_rule.hpp>

namespace pith { inline namespace v0 {

/// Merges values only, weighted by cosine and by the evicted value's share of the two norms; keys stay as they are, rotation included.
///
///   v' = (v + Σ w vₑ) / (1 + Σ w),   w = max(cos, 0) · |vₑ| / (|vₑ| + |v| + 1e-6)
struct ValuesOnly {
  template <class S> S weight(const MergePair<S>& pair) const {
    return (std::max)(pair.cosine, S(0)) * pair.evicted_norm / (pair.evicted_norm + pair.kept_norm + S(1e-6));
  }
  template <class S> MergeMix<S> mix(S, S, S sum) const { return {1, 1 + sum}; }
  bool merges_keys() const { return false; }
};

}}  // namespace pith::v0
