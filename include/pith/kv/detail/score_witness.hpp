#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/kv/any_policy.hpp>
#include <pith/kv/layer_scores.hpp>
#include <pith/kv/policy.hpp>
#include <pith/kv/wrapped_policy.hpp>

// Writes down the scores that a cache decides by, and says which rows should stay by them.

namespace pith { inline namespace v0 { namespace detail {

/// The scores of each head that the cache last decided by, by position.
using ScoresSeen = std::map<Index, std::map<Position, double>>;

/// A policy whose scores are written down. `few`: finite scores become 0, 1 or not-a-number, so that many rows tie.
template <class S> struct ScoreWitness : WrappedPolicy<AnyPolicy<S>> {
  std::shared_ptr<ScoresSeen> seen;
  bool few;

  ScoreWitness(AnyPolicy<S> policy, std::shared_ptr<ScoresSeen> scores, bool ties)
      : WrappedPolicy<AnyPolicy<S>>{std::move(policy)}, seen(std::move(scores)), few(ties) {}

  void score(const KvRows<S>& rows, VectorRef<S> out) const {
    this->inner.score(rows, out);
    if (!this->inner.combines()) note(rows, out);
  }
  void combine(LayerScores<S>& layer) const {
    this->inner.combine(layer);
    for (Index h = 0; h < layer.num_heads(); ++h) note(layer.rows(h), layer.scores(h));
  }

 private:
  void note(const KvRows<S>& rows, VectorRef<S> out) const {
    auto& head = (*seen)[rows.kv_head];
    head.clear();
    for (Index r = 0; r < rows.size(); ++r) {
      const Position p = rows.positions[static_cast<std::size_t>(r)];
      if (few && !std::isinf(out[r])) out[r] = p % 5 == 0 ? std::numeric_limits<S>::quiet_NaN() : S(p % 3 == 0);
      head[p] = static_cast<double>(out[r]);
    }
  }
};

/// The rows of a head that stay by these scores: +inf always, -inf never, of the rest the best; NaN ranks below all numbers, and of equals
/// the older leaves.
inline std::set<Position> survivors(const std::map<Position, double>& scores, Index retain, std::optional<Position> newest) {
  constexpr double inf = std::numeric_limits<double>::infinity();
  std::vector<std::tuple<int, double, Position>> ranked;  // the first to leave first
  Index gone = 0, safe = 0;
  for (const auto& [p, given] : scores) {
    const double score = newest == p ? inf : given;
    gone += score == -inf;
    safe += score == inf;
    ranked.emplace_back(score == -inf ? 0 : std::isnan(score) ? 1 : 2, std::isnan(score) ? 0 : score, p);
  }
  std::sort(ranked.begin(), ranked.end());
  const Index n = static_cast<Index>(ranked.size()), leave = (std::min)((std::max)(n - retain, gone), n - safe);
  std::set<Position> stay;
  for (Index i = (std::max)(leave, Index(0)); i < n; ++i) stay.insert(std::get<2>(ranked[static_cast<std::size_t>(i)]));
  return stay;
}

}}}  // namespace pith::v0::detail
