#pragma once

#include <concepts>
#include <utility>

#include <pith/kv/policy.hpp>

namespace pith::inline v0 {

// Constructors of wrappers take exactly a P, nothing that converts to it: one around an AnyPolicy, into which every policy converts, would
// otherwise have to know whether it converts itself before it is complete.

/// A scoring policy inside another one: everything as it is, until the wrapper changes a member.
template <class P> struct WrappedPolicy {
  P inner;

  Index budget() const { return inner.budget(); }
  Index retain() const { return detail::retain_of(inner); }
  PolicyTraits traits() const { return detail::traits_of(inner); }
  /// Throws   what P's check() throws; ShapeError around a policy chosen at run time that does not score
  void check(const AttentionShape& shape) const {
    if constexpr (requires { inner.check(shape); }) inner.check(shape);
    if constexpr (requires { inner.facts(shape); })
      if (inner.facts(shape).eviction != detail::Eviction::by_score)
        raise<ShapeError>("pith::WrappedPolicy: around a policy that does not score its rows: wrappers change scores");
  }
  // Of a policy chosen at run time: whether it does what it could.
  bool observes() const requires requires { inner.observes(); }
  { return inner.observes(); }
  bool admits() const requires requires { inner.admits(); }
  { return inner.admits(); }
  bool combines() const requires requires { inner.combines(); }
  { return inner.combines(); }
  Index stats(const AttentionShape& shape) const requires HasStats<P> { return inner.stats(shape); }
  Index memory(const AttentionShape& shape) const requires requires { inner.memory(shape); }
  { return inner.memory(shape); }

  template <class S>
  requires AdmittingPolicy<P, S>
  void admit(const KvRows<S>& fresh, MatrixRef<S> stats) const { inner.admit(fresh, stats); }
  template <class S>
  requires ObservingPolicy<P, S>
  void observe(const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S> stats) const { inner.observe(seen, rows, stats); }
  template <class S>
  requires RememberingPolicy<P, S>
  void observe(const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S> stats, VectorRef<S> memory) const {
    inner.observe(seen, rows, stats, memory);
  }
  template <class S>
  requires ScoringPolicy<P, S>
  void score(const KvRows<S>& rows, VectorRef<S> out) const { inner.score(rows, out); }
  template <class S>
  requires CombiningPolicy<P, S>
  void combine(LayerScores<S>& layer) const { inner.combine(layer); }
};

/// P, read at cache positions: what is kept counts as neighbours, so distances never exceed the cache and a stream may run past the trained
/// length. Keys are turned when a gap closes (KvCache::reindex()); a Session does it after every eviction.
///
///   AtCachePositions(HeavyHitter{.heavy = 64, .recent = 64})   // H2O's streaming form
///
/// Cost     a turn of each key behind the row that left
template <class P> struct AtCachePositions : WrappedPolicy<P> {
  explicit AtCachePositions(std::same_as<P> auto policy) : WrappedPolicy<P>{std::move(policy)} {}
  /// Throws   ShapeError around heads that keep different numbers of rows, and around a policy that undoes the rotation of queries
  void check(const AttentionShape& shape) const {
    WrappedPolicy<P>::check(shape);
    const PolicyTraits inside = WrappedPolicy<P>::traits();
    if (inside.ragged || inside.uneven)
      raise<ShapeError>(
          "pith::AtCachePositions: around a policy whose heads may keep different numbers of rows: use it at stream positions");
    if (inside.needs_queries)
      raise<ShapeError>("pith::AtCachePositions: around a policy that looks at queries as rotated at stream positions: use it there");
  }
  PolicyTraits traits() const {
    PolicyTraits traits = WrappedPolicy<P>::traits();
    traits.reading = Reading::cache;
    return traits;
  }
};

template <class P> AtCachePositions(P) -> AtCachePositions<P>;

/// Evicts with P when a prompt ends, and never while decoding.
///
///   PromptOnly(HeavyHitter{.heavy = 256, .recent = 256})
template <class P> struct PromptOnly : WrappedPolicy<P> {
  explicit PromptOnly(std::same_as<P> auto policy) : WrappedPolicy<P>{std::move(policy)} {}
  PolicyTraits traits() const {
    PolicyTraits traits = WrappedPolicy<P>::traits();
    traits.prompt_only = true;
    return traits;
  }
};
template <class P> PromptOnly(P) -> PromptOnly<P>;

}  // namespace pith::inline v0
