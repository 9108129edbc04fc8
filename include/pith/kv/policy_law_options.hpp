#pragma once

#include <cstdint>
#include <stdexcept>

#include <pith/attention/shape.hpp>

// What policy_laws() takes and throws.

namespace pith { inline namespace v0 {

/// A policy breaks a law: says which, after how many random tokens, and in which head.
struct BrokenLaw : std::logic_error {
  using std::logic_error::logic_error;
};

/// Options of policy_laws() and prompt_laws().
struct PolicyLawOptions {
  AttentionShape shape = {4, 2, 8};
  std::uint64_t seed = 1;
  Index beyond = 0;  ///< rows that a head may keep over its budget because the policy, with traits().overfills, scores them +inf
};

}}  // namespace pith::v0
