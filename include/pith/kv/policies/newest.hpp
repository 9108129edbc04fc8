#pragma once

#include <cstddef>

#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// The newest rows, by score: what wrappers may change, unlike Window, which evicts by age.
///
/// Keeps    `keep` newest rows
/// Needs    nothing
/// Cost     one look at each score
struct Newest {
  Index keep = 1024;  ///< rows kept
  Index budget() const { return keep; }
  void check(const AttentionShape&) const { check_count("Newest", "keep", keep, 1); }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    for (Index r = 0; r < rows.size(); ++r) out[r] = static_cast<S>(rows.positions[static_cast<std::size_t>(r)] - rows.next);
  }
};

}}  // namespace pith::v0
