#pragma once

#include <cstddef>
#include <cstdint>

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
  void check(const AttentionShape&) const { detail::check_count("Random", "keep", keep, 1); }
  Index stats(const AttentionShape&) const { return 1; }
  template <class S> void admit(const KvRows<S>& fresh, MatrixRef<S> stats) const {
    for (Index r = 0; r < fresh.size(); ++r) {
      const auto token = static_cast<std::uint64_t>(fresh.positions[static_cast<std::size_t>(r)]);
      const std::uint64_t bits = mixed(seed + mixed(token + mixed(static_cast<std::uint64_t>(fresh.kv_head))));
      stats(0, r) = static_cast<S>(bits >> 41);  // 23 bits: exact in a float
    }
  }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const { out = rows.stats.row(0); }

 private:
  static std::uint64_t mixed(std::uint64_t x) {  // every bit of x changes half of the result's bits
    x = (x + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 30)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }
};

}}  // namespace pith::v0
