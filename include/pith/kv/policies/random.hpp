#pragma once

#include <cstddef>
#include <cstdint>

#include <pith/core/random.hpp>
#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// Random rows, the baseline that any other policy must beat.
///
///   score_r = hash(seed, position_r, head)
///
/// Keeps    `keep` rows drawn at random, and the newest row
/// Needs    nothing
/// Cost     one hash per appended row, one read of every score when evicting
struct Random {
  Index keep = 1024;       ///< rows kept
  std::uint64_t seed = 1;  ///< the same seed gives the same numbers on every machine
  Index budget() const { return keep; }
  void check(const AttentionShape&) const { check_count("Random", "keep", keep, 1); }
  Index stats(const AttentionShape&) const { return 1; }
  template <class S> void admit(const KvRows<S>& fresh, MatrixRef<S> stats) const {
    for (Index r = 0; r < fresh.size(); ++r) {
      const auto token = static_cast<std::uint64_t>(fresh.positions[static_cast<std::size_t>(r)]);
      const std::uint64_t bits = detail::mixed(seed + detail::mixed(token + detail::mixed(static_cast<std::uint64_t>(fresh.kv_head))));
      stats(0, r) = static_cast<S>(bits >> 41);  // 23 bits: exact in a float
    }
  }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const { out = rows.stats.row(0); }
};

}}  // namespace pith::v0
