#pragma once
// The constants that a cache asks of its policy once, when it is constructed.

#include <cstdint>

#include <pith/core/types.hpp>
#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// When a cache evicts, and how it chooses the rows.
enum class Eviction : std::uint8_t { never, by_age, by_score };

/// The constant answers of a policy to a cache of one layer, read once when the cache is constructed: AnyPolicy::facts().
struct PolicyFacts {
  Eviction eviction = Eviction::never;
  Index budget = unlimited;  ///< rows a head keeps
  Index retain = unlimited;  ///< rows left by one eviction
  Index initial = 0;         ///< by age: tokens at the start that never leave
  Index stats = 0;           ///< numbers kept for each row
  Index memory = 0;          ///< numbers kept for each head
  PolicyTraits traits;
  bool observes = false;  ///< watches attention
  bool admits = false;    ///< sees every appended row
  bool combines = false;  ///< scores all heads together
};

}}  // namespace pith::v0
