#pragma once

#include <algorithm>

#include <pith/merge/merge_rule.hpp>

namespace pith { inline namespace v0 {

/// Values only, by cosine and by what share of the two values' norms is the evicted one's; keys keep their rotation.
struct ValuesOnly {
  template <class S> S weight(const MergePair<S>& pair) const {
    return (std::max)(pair.cosine, S(0)) * pair.evicted_norm / (pair.evicted_norm + pair.kept_norm + S(1e-6));
  }
  template <class S> MergeMix<S> mix(S, S, S sum) const { return {1, 1 + sum}; }
  bool merges_keys() const { return false; }
};

}}  // namespace pith::v0
