#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <pith/attention/attend.hpp>
#include <pith/kv.hpp>
#include <pith/merge.hpp>

#include "golden/support/golden_file.hpp"
#include "golden/support/parity.hpp"

// A cache that merges, as the replays of published merging code look at it.
namespace pith_test {

using MergingCache = pith::KvCache<>;

/// What one eviction matched, head by head: rows that left by age, the positions they went to, and the cosines.
struct SeenMatches {
  struct Head {
    std::vector<std::int32_t> rows;
    std::vector<float> cosines;
  };
  std::vector<Head> before, after;  ///< the gate
};

/// M, observed.
template <class M> struct Watched : pith::WrappedRule<M> {
  std::shared_ptr<SeenMatches> seen;
  Watched(M rule, std::shared_ptr<SeenMatches> s) : pith::WrappedRule<M>{std::move(rule)}, seen(std::move(s)) {}
  template <class S> void gate(pith::LayerMatches<S>& matches, pith::VectorRef<S> memory) const {
    const auto picture = [&] {
      std::vector<SeenMatches::Head> heads;
      for (pith::Index h = 0; h < matches.num_heads(); ++h) {
        const auto& head = matches.head(h);
        heads.push_back({{head.rows.begin(), head.rows.end()}, {head.cosines.data(), head.cosines.data() + head.cosines.size()}});
      }
      return heads;
    };
    seen->before = picture();
    pith::detail::gate_matches(this->inner, matches, memory);
    seen->after = picture();
  }
};

/// The row of each token that a head holds, the oldest first.
inline std::vector<pith::Index> rows_by_age(const MergingCache& cache, pith::Index h) {
  const auto positions = cache.positions(h);
  std::vector<pith::Index> rows(positions.size());
  for (std::size_t r = 0; r < rows.size(); ++r) rows[r] = static_cast<pith::Index>(r);
  std::sort(rows.begin(), rows.end(),
            [&](pith::Index a, pith::Index b) { return positions[static_cast<std::size_t>(a)] < positions[static_cast<std::size_t>(b)]; });
  return rows;
}

/// Keys or values of a head, the oldest first.
inline pith::Matrix<float> by_age(const MergingCache& cache, pith::Index h, bool keys) {
  const std::vector<pith::Index> rows = rows_by_age(cache, h);
  pith::Matrix<float> out(cache.size(h), cache.shape().head_dim);
  for (std::size_t i = 0; i < rows.size(); ++i)
    out.row(static_cast<pith::Index>(i)) = keys ? cache.keys(h, cache.rope_positions()).row(rows[i]) : cache.values(h).row(rows[i]);
  return out;
}

/// Shows a policy that adds up attention these sums, as if the prompt's first query had given all of it.
inline void show_sums(MergingCache& cache, pith::Index h, std::span<const double> sums, pith::Index queries) {
  pith::Matrix<float> weights = pith::Matrix<float>::Zero(queries, cache.size(h));
  for (pith::Index r = 0; r < cache.size(h); ++r) weights(0, r) = static_cast<float>(sums[static_cast<std::size_t>(r)]);
  cache.observe({.kv_head = h, .weights = weights});
}

}  // namespace pith_test
