#pragma once

#include <concepts>
#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/kv/layer_scores.hpp>
#include <pith/kv/wrapped_policy.hpp>

namespace pith { inline namespace v0 {

/// A number of rows for each kv head of a layer, from a profile made beforehand: head_budgets() (LU-KV), or all rows for retrieval heads
/// and a few for streaming ones (DuoAttention).
///
///   PerHead(SnapKv{.keep = 512}, {900, 124})                                // mean: 512
///   PerHead(Protect(Newest{2112}, {.sinks = 4}), {4096, 128})               // DuoAttention: head 0 retrieves, head 1 streams
///
/// Keeps    rows[h] of head h, the best by P's scores, when a prompt ends; in memory of num_kv_heads·budget() rows
/// Needs    what P needs
/// Cost     one selection a head, once
/// Paper    DuoAttention: arXiv:2410.10819
template <class P> struct PerHead : WrappedPolicy<P> {
  std::vector<Index> rows;

  PerHead(std::same_as<P> auto policy, std::vector<Index> each) : WrappedPolicy<P>{std::move(policy)}, rows(std::move(each)) {}

  /// Throws   what P's check() throws; ShapeError for a wrong number of budgets, more rows than P's budget holds, and around a policy that
  ///          decides itself which rows stay
  void check(const AttentionShape& shape) const {
    WrappedPolicy<P>::check(shape);
    check_undecided("PerHead", WrappedPolicy<P>::traits());
    if (static_cast<Index>(rows.size()) != shape.num_kv_heads)
      raise<ShapeError>("pith::PerHead: ", rows.size(), " budgets for ", shape.num_kv_heads, " kv heads");
    Index sum = 0;
    for (const Index each : rows) {
      check_count("PerHead", "rows", each, 1);
      sum = sum_of_rows(sum, each);
    }
    if (sum > shape.num_kv_heads * this->budget())
      raise<ShapeError>("pith::PerHead: ", sum, " rows of all heads, expected at most ", shape.num_kv_heads, " times the budget of ",
                        this->budget());
  }
  bool combines() const { return true; }
  PolicyTraits traits() const {
    PolicyTraits traits = WrappedPolicy<P>::traits();
    traits.prompt_only = traits.ragged = traits.decides = traits.eager = true;
    return traits;
  }
  template <class S>
  requires ScoresRows<P, S>
  void combine(LayerScores<S>& layer) const {
    if constexpr (CombinesHeads<P, S>) this->inner.combine(layer);
    constexpr S stays = std::numeric_limits<S>::infinity();
    for (Index h = 0; h < layer.num_heads(); ++h) {
      VectorRef<S> score = layer.scores(h);
      best_rows(layer.rows(h), ConstVectorRef<S>(score), rows[static_cast<std::size_t>(h)], [&](Index r) { score[r] = stays; });
      score = (score.array() == stays).select(score, -stays);
    }
  }
};
template <class P> PerHead(P, std::vector<Index>) -> PerHead<P>;

}}  // namespace pith::v0
