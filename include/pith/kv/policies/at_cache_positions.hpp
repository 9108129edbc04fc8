#pragma once

#include <concepts>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/kv/wrapped_policy.hpp>

namespace pith { inline namespace v0 {

/// P at cache positions: kept rows count as neighbours, so distances never exceed the cache and a stream may run past the trained length.
///
///   k_r ← R(i_r - p_r) k_r, i_r = the rank of row r by age, p_r = the position its key was rotated at
///
/// KvCache::reindex() rotates keys when a gap closes; a Session calls it after every eviction.
///
///   AtCachePositions(HeavyHitter{.heavy = 64, .recent = 64})   // H2O's streaming form
///
/// Cost     a rotation of each key behind the evicted row
template <class P> struct AtCachePositions : WrappedPolicy<P> {
  explicit AtCachePositions(std::same_as<P> auto policy) : WrappedPolicy<P>{std::move(policy)} {}
  /// Throws   ShapeError around a policy whose heads keep different numbers of rows, or that undoes the rotation of queries
  void check(const AttentionShape& shape) const {
    WrappedPolicy<P>::check(shape);
    const PolicyTraits inside = WrappedPolicy<P>::traits();
    if (inside.ragged || inside.uneven)
      raise<ShapeError>("pith::AtCachePositions: around a policy whose heads may keep different numbers of rows: use it at text positions");
    if (inside.needs_queries)
      raise<ShapeError>("pith::AtCachePositions: around a policy that looks at queries as rotated at text positions: use it there");
  }
  PolicyTraits traits() const {
    PolicyTraits traits = WrappedPolicy<P>::traits();
    traits.positions = RopePositions::cache;
    return traits;
  }
};

template <class P> AtCachePositions(P) -> AtCachePositions<P>;

}}  // namespace pith::v0
