#pragma once

#include <pith/merge/merge_rule.hpp>

namespace pith { inline namespace v0 {

/// Merging by mass: a row's mass m is the number of tokens it stands for, and the kept row becomes the mean over all these tokens.
///
///   x' = (m x + Σ mₑ e) / (m + Σ mₑ),   m' = m + Σ mₑ
///
/// Paper    ToMe's weighted average, arXiv:2210.09461
struct MassWeighted {
  template <class S> S weight(const MergePair<S>& pair) const { return pair.evicted_mass; }
  template <class S> MergeMix<S> mix(S mass, S, S sum) const { return {mass, mass + sum}; }
};

}}  // namespace pith::v0
