#pragma once

#include <pith/merge/merge_rule.hpp>

namespace pith { inline namespace v0 {

/// Each matched row is averaged with the kept one first: half way from the kept row to Averaged.
///
/// Paper    LOOK-M's P-Merge, arXiv:2406.18139, eq. 11
struct Pivotal {
  template <class S> S weight(const MergePair<S>&) const { return S(.5); }
  template <class S> MergeMix<S> mix(S, S count, S) const { return {1 + count / 2, 1 + count}; }
};

}}  // namespace pith::v0
