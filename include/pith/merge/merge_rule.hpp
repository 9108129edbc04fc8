#pragma once
// The protocol of a merge strategy: what a cache does with the rows that its policy evicts.

#include <concepts>

#include <pith/core/types.hpp>

namespace pith { inline namespace v0 {

/// An evicted row and the kept row nearest to it.
template <class S> struct MergePair {
  S cosine;                   ///< of their keys
  S kept_mass, evicted_mass;  ///< number of tokens that each row stands for
  S kept_norm, evicted_norm;  ///< norms of their values
};

/// The coefficients of an update: a kept row becomes x' = (a x + Σ b_e x_e) / z, summed over the evicted rows e matched to it.
template <class S> struct MergeMix { S a, z; };

/// Merges nothing: evicted rows are lost.
struct Drop {};

/// A merge rule: weight(pair) returns b_e; mix(mass, count, sum) returns a and z for a kept row with `count` matched rows, whose weights
/// add up to `sum`.
template <class M, class S>
concept MergeRule = std::copyable<M> && requires(const M m, const MergePair<S>& pair, S x) {
  { m.weight(pair) } -> std::convertible_to<S>;
  { m.mix(x, x, x) } -> std::same_as<MergeMix<S>>;
};
// Optional members of a rule:
//   bool merges_keys() const  false: merges values only, keys stay as they are
//   void gate(LayerMatches<S>&, VectorRef<S> memory) const  in a cache: sees the pairs of all heads, may reject or re-pair them (gates.hpp)
//   Index memory() const  how many numbers the gate keeps for each layer; they start at 0

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
