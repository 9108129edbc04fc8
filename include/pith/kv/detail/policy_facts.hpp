#pragma once

#include <string>

#include <pith/core/check.hpp>
#include <pith/kv/detail/policy_members.hpp>
#include <pith/kv/policy.hpp>
#include <pith/kv/policy_facts.hpp>

// Reads the constant answers of a policy, whichever optional members it has.

namespace pith { inline namespace v0 { namespace detail {

template <class P> Index retain_of(const P& policy) {
  if constexpr (has_retain<P>) {
    return policy.retain();
  } else {
    return policy.budget();
  }
}
template <class P> PolicyTraits traits_of(const P& policy) {
  if constexpr (has_traits<P>) {
    return policy.traits();
  } else {
    return {};
  }
}

// Whether a policy uses its member. A wrapper around a policy chosen at run time has every member and asks the policy inside.
template <class S, class P> bool observes(const P& policy) {
  if constexpr (requires { policy.observes(); }) {
    return watches<P, S> && policy.observes();
  } else {
    return watches<P, S>;
  }
}
template <class S, class P> bool admits(const P& policy) {
  if constexpr (requires { policy.admits(); }) {
    return admits_rows<P, S> && policy.admits();
  } else {
    return admits_rows<P, S>;
  }
}
template <class S, class P> bool combines(const P& policy) {
  if constexpr (requires { policy.combines(); }) {
    return combines_heads<P, S> && policy.combines();
  } else {
    return combines_heads<P, S>;
  }
}

template <class S, class P> PolicyFacts policy_facts(const P& policy, const AttentionShape& shape) {
  shape.check("KvCache");
  if constexpr (has_check<P>) policy.check(shape);
  PolicyFacts facts;
  facts.budget = policy.budget();
  if constexpr (has_initial<P>) {
    facts.eviction = Eviction::by_age;
    facts.initial = policy.initial();
  } else if constexpr (has_score<P, S>) {
    facts.eviction = Eviction::by_score;
  }
  facts.retain = retain_of(policy);
  facts.traits = traits_of(policy);
  if constexpr (has_stats<P>) facts.stats = policy.stats(shape);
  if constexpr (remembers<P, S>) facts.memory = policy.memory(shape);
  facts.observes = observes<S>(policy);
  facts.admits = admits<S>(policy);
  facts.combines = combines<S>(policy);
  return facts;
}

inline void check_policy(const PolicyFacts& facts) {
  const auto refuse = [](const std::string& what) { raise<ShapeError>("pith::KvCache: " + what); };
  if (facts.budget < 1) refuse(text("the policy's budget() is ", facts.budget, ", expected at least 1 row"));
  if (facts.retain < 1 || facts.retain > facts.budget)
    refuse(text("the policy's retain() is ", facts.retain, ", expected 1 .. budget() = ", facts.budget));
  if (facts.eviction == Eviction::by_age && (facts.initial < 0 || facts.initial >= facts.retain))
    refuse(text("the policy keeps ", facts.initial, " initial tokens of ", facts.retain,
                " rows: at least one row must be left for the newest token; raise the window"));
  if (facts.memory < 0) refuse(text("the policy's memory() is ", facts.memory, ", expected 0 or more numbers a head"));
  if (facts.stats < 0) refuse(text("the policy's stats() is ", facts.stats, ", expected 0 or more numbers a row"));
  if (facts.traits.ragged && !(facts.traits.prompt_only && facts.combines))
    refuse("traits().ragged is for prompt-only policies that combine() the scores of all heads");
  if (facts.traits.watches < 0) refuse(text("the policy's traits().watches is ", facts.traits.watches, ", expected 0 or more queries"));
  if (facts.traits.positions == RopePositions::cache && (facts.traits.ragged || facts.traits.uneven))
    refuse("heads that keep different numbers of rows cannot be read at cache positions; use RopePositions::text");
  if (facts.traits.positions == RopePositions::cache && facts.eviction == Eviction::never)
    refuse("a policy that never evicts has no cache positions; use RopePositions::text");
}

}}}  // namespace pith::v0::detail
