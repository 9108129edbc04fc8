#pragma once

#include <algorithm>
#include <concepts>
#include <limits>
#include <utility>

#include <pith/kv/layer_scores.hpp>
#include <pith/kv/wrapped_policy.hpp>

namespace pith { inline namespace v0 {

/// ChunkKV: keeps or evicts whole chunks of neighbouring tokens, the same ones in all heads.
///
///   score_chunk = mean_{r ∈ chunk} Σ_heads score_{head, r}
///
///   Chunkwise(KeyNorm{.keep = 1024}, 20)
///
/// Keeps    a share of the chunks equal to P's budget as a share of the rows, at least one chunk, when a prompt ends
/// Needs    what P needs
/// Cost     one read of every score, one selection among chunks
/// Paper    ChunkKV: arXiv:2502.00299
template <class P> struct Chunkwise : WrappedPolicy<P> {
  Index chunk = 20;  ///< tokens of a chunk; the last one may be shorter

  explicit Chunkwise(std::same_as<P> auto policy, Index tokens = 20) : WrappedPolicy<P>{std::move(policy)}, chunk(tokens) {}

  /// Throws   what P's check() throws; ShapeError for a chunk length below 1, and around a policy that decides itself which rows stay
  void check(const AttentionShape& shape) const {
    WrappedPolicy<P>::check(shape);
    check_count("Chunkwise", "chunk", chunk, 1);
    check_undecided("Chunkwise", WrappedPolicy<P>::traits());
  }
  bool combines() const { return true; }
  PolicyTraits traits() const {
    PolicyTraits traits = WrappedPolicy<P>::traits();
    traits.prompt_only = traits.ordered = traits.decides = true;
    return traits;
  }
  template <class S>
  requires ScoresRows<P, S>
  void combine(LayerScores<S>& layer) const {
    if constexpr (CombinesHeads<P, S>) this->inner.combine(layer);
    constexpr S inf = std::numeric_limits<S>::infinity();
    const Index n = layer.size(0), length = chunk, chunks = (n + length - 1) / length;
    VectorRef<S> total = layer.scores(0);
    for (Index h = 1; h < layer.num_heads(); ++h) total += layer.scores(h);
    for (Index c = 0; c < chunks; ++c) {
      auto part = total.segment(c * length, (std::min)(length, n - c * length));
      const S mean = part.mean();
      part.setConstant(-inf);
      part[0] = mean;  // the first row represents its chunk
    }
    best_rows(layer.rows(0), ConstVectorRef<S>(total), (std::max)(Index(1), chunks * layer.retain() / n),
              [&](Index r) { total.segment(r, (std::min)(length, n - r)).setConstant(inf); });
    for (Index r = 0; r < n; ++r) total[r] = total[r] == inf ? inf : -inf;
    for (Index h = 1; h < layer.num_heads(); ++h) layer.scores(h) = total;
  }
};
template <class P> Chunkwise(P, Index = 20) -> Chunkwise<P>;

}}  // namespace pith::v0
