#pragma once

#include <concepts>
#include <utility>

#include <pith/kv/wrapped_policy.hpp>

namespace pith { inline namespace v0 {

/// Evicts by P's rule when a prompt ends, never while decoding.
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

}}  // namespace pith::v0
