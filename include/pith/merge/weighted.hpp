#pragma once

#include <pith/merge/merge_rule.hpp>

namespace pith { inline namespace v0 {

/// Each matched row counts by its cosine. No mean: the weights add up to less than 1, and a negative cosine subtracts.
///
/// Paper    LOOK-M's W-Merge, arXiv:2406.18139, eq. 12
struct Weighted {
  template <class S> S weight(const MergePair<S>& pair) const { return pair.cosine; }
  template <class S> MergeMix<S> mix(S, S count, S) const { return {1, 1 + count}; }
};

}}  // namespace pith::v0
