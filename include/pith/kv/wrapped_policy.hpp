#pragma once

#include <utility>

#include <pith/kv/policy.hpp>

namespace pith::inline v0 {

/// A scoring policy inside another one: everything as it is, until the wrapper changes a member.
template <class P> struct WrappedPolicy {
  P inner;

  Index budget() const { return inner.budget(); }
  Index retain() const {
    if constexpr (requires { inner.retain(); }) {
      return inner.retain();
    } else {
      return inner.budget();
    }
  }
  PolicyTraits traits() const {
    if constexpr (requires { inner.traits(); }) {
      return inner.traits();
    } else {
      return {};
    }
  }
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
  explicit AtCachePositions(P policy) : WrappedPolicy<P>{std::move(policy)} {}
  PolicyTraits traits() const {
    PolicyTraits traits = WrappedPolicy<P>::traits();
    traits.reading = Reading::cache;
    return traits;
  }
};

/// Evicts with P when a prompt ends, and never while decoding.
///
///   PromptOnly(HeavyHitter{.heavy = 256, .recent = 256})
template <class P> struct PromptOnly : WrappedPolicy<P> {
  explicit PromptOnly(P policy) : WrappedPolicy<P>{std::move(policy)} {}
  PolicyTraits traits() const {
    PolicyTraits traits = WrappedPolicy<P>::traits();
    traits.prompt_only = true;
    return traits;
  }
};

}  // namespace pith::inline v0
