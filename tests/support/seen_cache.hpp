#pragma once

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include <pith/attention/rope.hpp>
#include <pith/kv/detail/cache_rules.hpp>
#include <pith/kv/policy.hpp>
#include <pith/merge/any_merge.hpp>

#include "kv_stream.hpp"

namespace pith_test {

/// A law that does not hold.
struct Violation : std::logic_error {
  using std::logic_error::logic_error;
};
inline void demand(bool holds, const char* law) {
  if (!holds) throw Violation(law);
}

enum class Refusal { none, shape, capacity, state };

/// Everything of a cache that can be seen, in row order.
struct SeenCache {
  struct Head {
    std::vector<pith::Position> positions;
    std::vector<pith::TokenKind> kinds;
    std::vector<float> stats, keys, values;  ///< [stats, rows], [rows, head_dim], [rows, head_dim]
    std::vector<float> masses, log_masses;   ///< [rows], or none
  };
  std::vector<Head> heads;
  pith::Position next = 0, angle = 0, gap = 0;

  friend bool operator==(const SeenCache& a, const SeenCache& b) {
    const auto bits = [](const std::vector<float>& x, const std::vector<float>& y) {
      return x.size() == y.size() && (x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0);
    };
    const auto same = [&](const Head& x, const Head& y) {
      return x.positions == y.positions && x.kinds == y.kinds && bits(x.stats, y.stats) && bits(x.keys, y.keys) &&
             bits(x.values, y.values) && bits(x.masses, y.masses) && bits(x.log_masses, y.log_masses);
    };
    return a.next == b.next && a.angle == b.angle && a.gap == b.gap &&
           std::equal(a.heads.begin(), a.heads.end(), b.heads.begin(), b.heads.end(), same);
  }
};

/// What the oracle is told of a cache.
struct KvSetting {
  using AsStored = pith::Matrix<float> (*)(const float* row, pith::Index n);
  std::string policy;  ///< its name, for what only some promise
  pith::Index rows;    ///< the budget it was made with
  pith::AttentionShape shape;
  pith::KvCacheOptions options;
  pith::PolicyFacts facts;
  pith::Index capacity;                     ///< rows a head can hold at home
  AsStored key_as_stored, value_as_stored;  ///< the one rounding
  const pith::Rope<float>* rope;            ///< of policies at cache positions
  pith::AnyMerge<double> merge;             ///< what becomes of evicted rows
};

template <class Cache> SeenCache snapshot_of(const Cache& cache) {
  SeenCache seen{.heads = {}, .next = cache.next_position(), .angle = cache.query_position(), .gap = cache.gap()};
  const auto numbers = [](const pith::Matrix<float>& m) { return std::vector<float>(m.data(), m.data() + m.size()); };
  for (pith::Index h = 0; h < cache.shape().num_kv_heads; ++h) {
    const pith::ConstVectorRef<float> masses = cache.masses(h);
    const std::size_t runs = cache.view().runs.size() / static_cast<std::size_t>(cache.shape().num_kv_heads);
    // of each head the prefix comes first, then its own rows
    const float* const log_masses = cache.view().runs[runs * (static_cast<std::size_t>(h) + 1) - 1].log_mass;
    seen.heads.push_back({.positions = {cache.positions(h).begin(), cache.positions(h).end()},
                          .kinds = {cache.kinds(h).begin(), cache.kinds(h).end()},
                          .stats = numbers(cache.stats(h)),
                          .keys = numbers(keys_of(cache, h)),
                          .values = numbers(values_of(cache, h)),
                          .masses = {masses.data(), masses.data() + masses.size()},
                          .log_masses = {log_masses, log_masses == nullptr ? nullptr : log_masses + cache.size(h)}});
  }
  return seen;
}

}  // namespace pith_test
