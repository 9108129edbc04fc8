#pragma once

#include <pith/merge/merge_rule.hpp>

namespace pith { inline namespace v0 {

/// The mean of the kept row and all that were matched to it.
///
/// Paper    LOOK-M's A-Merge, arXiv:2406.18139, eq. 10
struct Averaged {
  template <class S> S weight(const MergePair<S>&) const { return 1; }
  template <class S> MergeMix<S> mix(S, S count, S) const { return {1, 1 + count}; }
};

}}  // namespace pith::v0
