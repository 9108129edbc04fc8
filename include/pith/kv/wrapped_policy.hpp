#pragma once
// What wrappers are made of: policies that change another policy's scores.

#include <concepts>
#include <string_view>

#include <pith/core/check.hpp>
#include <pith/kv/detail/policy_facts.hpp>
#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// Whether P has score(): around any other policy a wrapper must not have it either.
template <class P, class S>
concept ScoresRows = detail::has_score<P, S>;
/// Whether P has combine(), which decides for all heads together.
template <class P, class S>
concept CombinesHeads = detail::combines_heads<P, S>;

/// The base of policies that change another scoring policy: it forwards every member to `inner`, and a wrapper overrides some.
///
/// Constructors of wrappers take exactly a P (std::same_as<P> auto). A wrapper around AnyPolicy, which every policy converts to, would
/// otherwise have to know whether it converts itself before it is complete.
template <class P> struct WrappedPolicy {
  using Inner = P;
  P inner;

  Index budget() const { return inner.budget(); }
  Index retain() const { return detail::retain_of(inner); }
  PolicyTraits traits() const { return detail::traits_of(inner); }
  /// Throws   what P's check() throws; ShapeError around a policy chosen at run time that does not score
  void check(const AttentionShape& shape) const {
    if constexpr (requires { inner.check(shape); }) inner.check(shape);
    if constexpr (requires { inner.facts(shape); })
      if (inner.facts(shape).eviction != Eviction::by_score)
        raise<ShapeError>("pith::WrappedPolicy: around a policy that does not score its rows: wrappers change scores");
  }
  // A policy chosen at run time has every member and states here which ones it uses.
  bool observes() const requires requires { inner.observes(); }
  { return inner.observes(); }
  bool admits() const requires requires { inner.admits(); }
  { return inner.admits(); }
  bool combines() const requires requires { inner.combines(); }
  { return inner.combines(); }
  Index stats(const AttentionShape& shape) const requires detail::has_stats<P> { return inner.stats(shape); }
  Index memory(const AttentionShape& shape) const requires requires { inner.memory(shape); }
  { return inner.memory(shape); }

  template <class S>
  requires detail::admits_rows<P, S>
  void admit(const KvRows<S>& fresh, MatrixRef<S> stats) const { inner.admit(fresh, stats); }
  template <class S>
  requires(detail::has_stats<P>&& detail::has_observe<P, S>) void observe(const AttentionBlock<S>& seen, const KvRows<S>& rows,
                                                                          MatrixRef<S> stats) const {
    inner.observe(seen, rows, stats);
  }
  template <class S>
  requires detail::remembers<P, S>
  void observe(const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S> stats, VectorRef<S> memory) const {
    inner.observe(seen, rows, stats, memory);
  }
  template <class S>
  requires ScoresRows<P, S>
  void score(const KvRows<S>& rows, VectorRef<S> out) const { inner.score(rows, out); }
  template <class S>
  requires CombinesHeads<P, S>
  void combine(LayerScores<S>& layer) const { inner.combine(layer); }
};

/// Checks that the policy inside leaves scores for a wrapper to change; `inside`: its traits.
///
/// Throws   ShapeError around a policy whose decision a wrapper would undo
inline void check_undecided(std::string_view wrapper, const PolicyTraits& inside) {
  if (inside.decides)
    raise<ShapeError>("pith::", wrapper, ": around a policy that decides itself which rows stay (Adaptive, Chunkwise, Csp): it ",
                      "leaves no scores to share out or average; put one of the two around a policy that scores");
}

}}  // namespace pith::v0
