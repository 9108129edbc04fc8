#pragma once

#include <concepts>

#include <pith/core/types.hpp>

namespace pith { inline namespace v0 {

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

}}  // namespace pith::v0
