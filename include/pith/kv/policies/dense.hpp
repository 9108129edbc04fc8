#pragma once

#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// Dense: keeps every row; a full cache refuses the next token.
///
/// Keeps    kept = [0, n): all n tokens, up to KvCacheOptions::max_tokens
/// Needs    nothing
/// Cost     nothing per step; attention and memory grow with the text
struct Dense {
  static constexpr Index budget() { return unlimited; }
};

}}  // namespace pith::v0
