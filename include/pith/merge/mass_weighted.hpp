#pragma once

#include <pith/merge/merge_rule.hpp>

namespace pith { inline namespace v0 {

/// The mean of all tokens that the rows stand for; the kept row stands for them from now on.
///
/// Paper    ToMe's weighted average, arXiv:2210.09461
struct MassWeighted {
  template <class S> S weight(const MergePair<S>& pair) const { return pair.evicted_mass; }
  template <class S> MergeMix<S> mix(S mass, S, S sum) const { return {mass, mass + sum}; }
};

}}  // namespace pith::v0
