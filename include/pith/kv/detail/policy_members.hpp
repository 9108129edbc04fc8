#pragma once

#include <concepts>
#include <type_traits>

#include <pith/attention/shape.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/kv/policy.hpp>

// Finds out which members a policy has, and says at compile time which of them a cache could not call.

namespace pith { inline namespace v0 { namespace detail {

// Members that can be called.
template <class P>
concept has_budget = requires(const P p) {
  { p.budget() } -> std::convertible_to<Index>;
};
template <class P>
concept has_retain = requires(const P p) {
  { p.retain() } -> std::convertible_to<Index>;
};
template <class P>
concept has_traits = requires(const P p) {
  { p.traits() } -> std::convertible_to<PolicyTraits>;
};
template <class P>
concept has_initial = requires(const P p) {
  { p.initial() } -> std::convertible_to<Index>;
};
template <class P>
concept has_check = requires(const P p, const AttentionShape& shape) {
  p.check(shape);
};
template <class P>
concept has_stats = requires(const P p, const AttentionShape& shape) {
  { p.stats(shape) } -> std::convertible_to<Index>;
};
template <class P>
concept has_memory = requires(const P p, const AttentionShape& shape) {
  { p.memory(shape) } -> std::convertible_to<Index>;
};
template <class P, class S>
concept has_score = requires(const P p, const KvRows<S>& rows, VectorRef<S> out) {
  p.score(rows, out);
};
template <class P, class S>
concept has_admit = requires(const P p, const KvRows<S>& fresh, MatrixRef<S> stats) {
  p.admit(fresh, stats);
};
template <class P, class S>
concept has_combine = requires(const P p, LayerScores<S>& layer) {
  p.combine(layer);
};
template <class P, class S>
concept has_observe = requires(const P p, const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S> stats) {
  p.observe(seen, rows, stats);
};
template <class P, class S>
concept has_remembering_observe = requires(const P p, const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S> stats,
                                           VectorRef<S> memory) {
  p.observe(seen, rows, stats, memory);
};
/// Keeps every row: neither evicts by age nor scores.
template <class P>
concept never_evicts = has_budget<P> && requires {
  requires P::budget()
  == unlimited;
};

// What a policy does with them. A policy chosen at run time has every member, and says by facts() which of them it uses.
template <class P, class S> inline constexpr bool remembers = has_score<P, S>&& has_memory<P>&& has_remembering_observe<P, S>;
template <class P, class S> inline constexpr bool watches = remembers<P, S> || (has_score<P, S> && has_stats<P> && has_observe<P, S>);
template <class P, class S> inline constexpr bool admits_rows = has_score<P, S>&& has_stats<P>&& has_admit<P, S>;
template <class P, class S> inline constexpr bool combines_heads = has_score<P, S>&& has_combine<P, S>;
template <class P, class S>
inline constexpr bool whole_policy = std::copyable<P>&& has_budget<P> &&
                                     (never_evicts<P> || has_initial<P> || has_score<P, S>)&&(!has_stats<P> || watches<P, S> ||
                                                                                              admits_rows<P, S>);

// Whether P has a member of this name, with any signature: in a class that also inherits the name from elsewhere it is ambiguous.
#define PITH_NAMES(name)                                                          \
  struct Named_##name {                                                           \
    int name;                                                                     \
  };                                                                              \
  template <class P> struct BothNamed_##name : P, Named_##name {};                \
  template <class P>                                                              \
  concept names_##name = std::is_class_v<P> && !std::is_final_v<P> && !requires { \
    &BothNamed_##name<P>::name;                                                   \
  };
PITH_NAMES(budget)
PITH_NAMES(retain)
PITH_NAMES(traits)
PITH_NAMES(initial)
PITH_NAMES(check)
PITH_NAMES(stats)
PITH_NAMES(memory)
PITH_NAMES(score)
PITH_NAMES(admit)
PITH_NAMES(observe)
PITH_NAMES(combine)
// Likely slips.
PITH_NAMES(trait)
PITH_NAMES(triats)
PITH_NAMES(tratis)
PITH_NAMES(traist)
PITH_NAMES(Traits)
PITH_NAMES(get_traits)
PITH_NAMES(policy_traits)
PITH_NAMES(on_attention)
PITH_NAMES(observed)
PITH_NAMES(Observe)
PITH_NAMES(admitted)
PITH_NAMES(Admit)
PITH_NAMES(combined)
PITH_NAMES(Combine)
PITH_NAMES(stat)
PITH_NAMES(statistics)
PITH_NAMES(retained)
PITH_NAMES(retains)
#undef PITH_NAMES

/// Whether P is meant to be a policy: it has one of the names that every policy has.
template <class P>
concept policy_like = has_budget<P> || names_budget<P> || names_score<P> || names_initial<P>;

/// Says which member of P a cache of S could not call, one sentence a mistake.
template <class P, class S> constexpr void check_policy_members() {
  static_assert(std::copyable<P>, "pith: a policy is a value that can be copied");
  static_assert(has_budget<P>, "pith: a policy needs `Index budget() const`, the number of rows that a head keeps");
  static_assert(has_score<P, S> || !names_score<P>,
                "pith: the policy's score() cannot be called: "
                "`template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const` is expected");
  static_assert(has_initial<P> || !names_initial<P>, "pith: the policy's initial() cannot be called: `Index initial() const` is expected");
  static_assert(!has_budget<P> || has_score<P, S> || has_initial<P> || names_score<P> || names_initial<P> || never_evicts<P>,
                "pith: the policy has no way to evict: it needs `score(const KvRows<S>&, VectorRef<S>) const` (is the name misspelt?), or "
                "`Index initial() const` to evict by age, or a static constexpr budget() of pith::unlimited to keep every row");
  static_assert(has_traits<P> || !names_traits<P>,
                "pith: the policy's traits() cannot be called: `PolicyTraits traits() const` is expected");
  static_assert(!(names_trait<P> || names_triats<P> || names_tratis<P> || names_traist<P> || names_Traits<P> || names_get_traits<P> ||
                  names_policy_traits<P>),
                "pith: is the policy's traits() misspelt? `PolicyTraits traits() const` is what a cache reads");
  static_assert(has_retain<P> || !names_retain<P>, "pith: the policy's retain() cannot be called: `Index retain() const` is expected");
  static_assert(!(names_retained<P> || names_retains<P>),
                "pith: is the policy's retain() misspelt? `Index retain() const` is what a cache reads");
  static_assert(has_check<P> || !names_check<P>,
                "pith: the policy's check() cannot be called: `void check(const AttentionShape&) const` is expected");
  static_assert(has_stats<P> || !names_stats<P>,
                "pith: the policy's stats() cannot be called: `Index stats(const AttentionShape&) const` is expected");
  static_assert(!(names_stat<P> || names_statistics<P>),
                "pith: is the policy's stats() misspelt? `Index stats(const AttentionShape&) const` is what a cache reads");
  static_assert(has_memory<P> || !names_memory<P>,
                "pith: the policy's memory() cannot be called: `Index memory(const AttentionShape&) const` is expected");
  static_assert(has_observe<P, S> || has_remembering_observe<P, S> || !names_observe<P>,
                "pith: the policy's observe() cannot be called: `template <class S> void observe(const AttentionBlock<S>& seen, "
                "const KvRows<S>& rows, MatrixRef<S> stats) const` is expected, with `VectorRef<S> memory` at the end beside memory()");
  static_assert(!(names_observed<P> || names_Observe<P> || names_on_attention<P>),
                "pith: is the policy's observe() misspelt? a cache calls observe(seen, rows, stats)");
  static_assert(has_admit<P, S> || !names_admit<P>,
                "pith: the policy's admit() cannot be called: "
                "`template <class S> void admit(const KvRows<S>& fresh, MatrixRef<S> stats) const` is expected");
  static_assert(!(names_admitted<P> || names_Admit<P>), "pith: is the policy's admit() misspelt? a cache calls admit(fresh, stats)");
  static_assert(
      has_combine<P, S> || !names_combine<P>,
      "pith: the policy's combine() cannot be called: `template <class S> void combine(LayerScores<S>& layer) const` is expected");
  static_assert(!(names_combined<P> || names_Combine<P>), "pith: is the policy's combine() misspelt? a cache calls combine(layer)");
  static_assert(
      !has_observe<P, S> || has_stats<P> || remembers<P, S>,
      "pith: the policy has observe() but keeps nothing: it needs `Index stats(const AttentionShape&) const`, numbers for each row");
  static_assert(
      !has_admit<P, S> || has_stats<P>,
      "pith: the policy has admit() but keeps nothing: it needs `Index stats(const AttentionShape&) const`, numbers for each row");
  static_assert(!has_stats<P> || watches<P, S> || admits_rows<P, S> || names_observe<P> || names_admit<P>,
                "pith: the policy has stats() but nothing that fills them: it needs observe(seen, rows, stats) or admit(fresh, stats)");
  static_assert(!has_memory<P> || has_remembering_observe<P, S> || names_observe<P>,
                "pith: the policy has memory() but nothing that fills it: it needs observe(seen, rows, stats, memory)");
}

/// The same for a policy that may wrap another one: a wrapper has every name, and forwards what the inner policy has.
template <class P, class S> constexpr void check_policy_type() {
  if constexpr (requires { typename P::Inner; }) {
    check_policy_type<typename P::Inner, S>();
    static_assert(!whole_policy<typename P::Inner, S> || has_score<typename P::Inner, S>,
                  "pith: a wrapper changes scores: the policy inside needs score(), which policies by age and Dense do not have");
  } else {
    check_policy_members<P, S>();
  }
}

}}}  // namespace pith::v0::detail
