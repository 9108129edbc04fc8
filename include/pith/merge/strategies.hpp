#pragma once

#include <algorithm>
#include <concepts>

#include <pith/core/types.hpp>

namespace pith::inline v0 {

/// A row that leaves and the kept row nearest to it.
template <class S> struct MergePair {
  S cosine;                   ///< of their keys
  S kept_mass, evicted_mass;  ///< tokens that each stands for
  S kept_norm, evicted_norm;  ///< of their values
};

/// What becomes of a kept row: x' = (a x + Σ b_e x_e) / z over the rows e that were matched to it.
template <class S> struct MergeMix { S a, z; };

/// Evicted rows leave nothing behind.
struct Drop {};

/// weight(pair) is b_e; mix(mass, count, sum) is a and z of a kept row that got `count` rows whose weights add up to `sum`.
template <class M, class S>
concept MergeRule = std::copyable<M> && requires(const M m, const MergePair<S>& pair, S x) {
  { m.weight(pair) } -> std::convertible_to<S>;
  { m.mix(x, x, x) } -> std::same_as<MergeMix<S>>;
};
/// What a cache does with the rows its policy evicts: any rule merges them into those it keeps.
template <class M, class S>
concept MergeStrategy = std::same_as<M, Drop> || MergeRule<M, S>;
// Optional members of a rule:
//   bool merges_keys() const  false: values only, keys stay as they are
//   void gate(LayerMatches<S>&, VectorRef<S> memory) const  in a cache: sees the pairs of all heads and may reject or re-pair them
//   (gates.hpp) Index memory() const  numbers that the gate keeps for each layer, 0 at first

namespace detail {
template <class M> bool merges_keys(const M& rule) {
  if constexpr (requires { rule.merges_keys(); }) {
    return rule.merges_keys();
  } else {
    return true;
  }
}
}  // namespace detail

/// The mean of the kept row and all that were matched to it.
///
/// Paper    LOOK-M's A-Merge, arXiv:2406.18139, eq. 10
struct Averaged {
  template <class S> S weight(const MergePair<S>&) const { return 1; }
  template <class S> MergeMix<S> mix(S, S count, S) const { return {1, 1 + count}; }
};

/// Each matched row is averaged with the kept one first: half way from the kept row to Averaged.
///
/// Paper    LOOK-M's P-Merge, arXiv:2406.18139, eq. 11
struct Pivotal {
  template <class S> S weight(const MergePair<S>&) const { return S(.5); }
  template <class S> MergeMix<S> mix(S, S count, S) const { return {1 + count / 2, 1 + count}; }
};

/// Each matched row counts by its cosine. No mean: the weights add up to less than 1, and a negative cosine subtracts.
///
/// Paper    LOOK-M's W-Merge, arXiv:2406.18139, eq. 12
struct Weighted {
  template <class S> S weight(const MergePair<S>& pair) const { return pair.cosine; }
  template <class S> MergeMix<S> mix(S, S count, S) const { return {1, 1 + count}; }
};

/// A mean weighted by cosines moved to 0 .. 1.
struct Normalized {
  template <class S> S weight(const MergePair<S>& pair) const { return (std::max)((1 + pair.cosine) / 2, S(1e-6)); }
  template <class S> MergeMix<S> mix(S, S, S sum) const { return {1, 1 + sum}; }
};

/// The mean of all tokens that the rows stand for; the kept row stands for them from now on.
///
/// Paper    ToMe's weighted average, arXiv:2210.09461
struct SizeWeighted {
  template <class S> S weight(const MergePair<S>& pair) const { return pair.evicted_mass; }
  template <class S> MergeMix<S> mix(S mass, S, S sum) const { return {mass, mass + sum}; }
};

/// Values only, by cosine and by what share of the two values' norms is the evicted one's; keys keep their rotation.
struct ValuesOnly {
  template <class S> S weight(const MergePair<S>& pair) const {
    return (std::max)(pair.cosine, S(0)) * pair.evicted_norm / (pair.evicted_norm + pair.kept_norm + S(1e-6));
  }
  template <class S> MergeMix<S> mix(S, S, S sum) const { return {1, 1 + sum}; }
  bool merges_keys() const { return false; }
};

}  // namespace pith::inline v0
