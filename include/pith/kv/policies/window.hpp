#pragma once

#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// Sliding window: keeps only the newest tokens.
///
///   kept = [n - window, n)
///
/// Keeps    the newest `window` tokens
/// Needs    nothing
/// Cost     one row moved per token, for any number of rows
/// Paper    Longformer: arXiv:2004.05150
struct Window {
  Index window = 1024;  ///< rows kept
  Index budget() const { return window; }
  void check(const AttentionShape&) const { check_count("Window", "window", window, 1); }
  Index initial() const { return 0; }
};

}}  // namespace pith::v0
