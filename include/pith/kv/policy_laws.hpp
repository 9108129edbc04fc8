#pragma once

#include <type_traits>
#include <utility>

#include <pith/kv/any_policy.hpp>
#include <pith/kv/detail/policy_laws.hpp>
#include <pith/kv/policy_law_options.hpp>

// The laws that every policy of pith obeys, for the tests of your own policy. No umbrella includes this header.

namespace pith { inline namespace v0 {

/// Law: a prompt in pieces keeps the rows of the whole, wherever it is cut; unless prompt-only, with one evict() behind all pieces.
///
/// Throws   BrokenLaw
template <KvStorage T = float>
void prompt_laws(std::type_identity_t<AnyPolicy<arithmetic_t<T>>> policy, const PolicyLawOptions& options = {}) {
  detail::PolicyLaws<T>(std::move(policy), options).prompts();
}

/// Runs a policy through the laws that every policy of pith obeys, over random tokens stored as T: who stays is what its scores say,
/// budgets hold, rows that stay are unchanged, attention within the budget is exact, evict() is idempotent, crop() and snapshots restore
/// everything, and a prompt may come in pieces.
///
///   policy_laws(YourPolicy{.keep = 12});   // in a test of yours
///
/// Budgets of about 4 to 40 rows test most. Prompt-only policies read a prompt at every step, and decode inside journals.
///
/// Cost     about 500 tokens through small caches
/// Throws   BrokenLaw, and what the cache throws for an invalid policy
template <KvStorage T = float>
void policy_laws(std::type_identity_t<AnyPolicy<arithmetic_t<T>>> policy, const PolicyLawOptions& options = {}) {
  detail::PolicyLaws<T> laws(std::move(policy), options);
  laws.within_budget();
  laws.stream();
  if (laws.facts().eviction == Eviction::by_score)
    for (const bool few : {false, true}) laws.selection(few);
  laws.prompts();
}

}}  // namespace pith::v0
