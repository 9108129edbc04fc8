#pragma once
// AdaKV: the heads of a layer share one budget.

#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <utility>

#include <pith/kv/layer_scores.hpp>
#include <pith/kv/wrapped_policy.hpp>

namespace pith { inline namespace v0 {

/// How Adaptive divides the budget of a layer among its heads.
struct AdaptiveOptions {
  enum class Rule : std::uint8_t {
    blended,  ///< as released: count·(1 - floor) + share·floor, rounded to even; the sum may miss the total by a few
    exact,    ///< each head keeps its best floor·share rows, the best rows of all heads fill up the total
  };
  double floor = 0.2;  ///< share of an equal budget that every head keeps
  Rule rule = Rule::exact;
};

/// AdaKV: the heads of a layer share one budget; a head keeps as many rows as it has scores among the best of all heads.
///
///   kept_h = #{top num_kv_heads·budget scores of all heads, in h}, at least floor·budget
///
///   Adaptive(SnapKv{.keep = 1024}, {.floor = 0.5})
///
/// Each head stores only its own rows: memory is that of num_kv_heads·budget() rows, regardless of how they are divided.
///
/// Keeps    num_kv_heads·budget() rows of a layer by P's scores, when a prompt ends; no head less than `floor` of its equal share
/// Needs    what P needs
/// Cost     one selection among the rows of all heads, once
/// Paper    AdaKV: arXiv:2407.11550
template <class P> struct Adaptive : WrappedPolicy<P> {
  AdaptiveOptions options;

  Adaptive(std::same_as<P> auto policy, const AdaptiveOptions& o = {}) : WrappedPolicy<P>{std::move(policy)}, options(o) {}

  /// Throws   what P's check() throws; ShapeError for a share outside 0 .. 1, and around a policy that decides itself which rows stay
  void check(const AttentionShape& shape) const {
    WrappedPolicy<P>::check(shape);
    check_share("Adaptive", "floor", options.floor);
    check_undecided("Adaptive", WrappedPolicy<P>::traits());
  }
  bool combines() const { return true; }
  PolicyTraits traits() const {
    PolicyTraits traits = WrappedPolicy<P>::traits();
    traits.prompt_only = traits.ragged = traits.decides = true;
    return traits;
  }
  template <class S>
  requires ScoresRows<P, S>
  void combine(LayerScores<S>& layer) const {
    if constexpr (CombinesHeads<P, S>) this->inner.combine(layer);
    options.rule == AdaptiveOptions::Rule::exact ? fill(layer) : blend(layer);
  }

 private:
  template <class S> static constexpr S stays = std::numeric_limits<S>::infinity();

  /// Drops every row whose score is not +inf.
  template <class S> static void drop_unmarked(LayerScores<S>& layer) {
    for (Index h = 0; h < layer.num_heads(); ++h)
      layer.scores(h) = (layer.scores(h).array() == stays<S>).select(layer.scores(h), -stays<S>);
  }

  template <class S> void fill(LayerScores<S>& layer) const {
    const Index safe = static_cast<Index>(static_cast<double>(layer.retain()) * options.floor);
    for (Index h = 0; h < layer.num_heads(); ++h) {
      VectorRef<S> score = layer.scores(h);
      best_rows(layer.rows(h), ConstVectorRef<S>(score), safe, [&](Index r) { score[r] = stays<S>; });
    }
    layer.best_of_all(layer.num_heads() * layer.retain(), [&](Index h, Index r) { layer.scores(h)[r] = stays<S>; });
    drop_unmarked(layer);
  }

  template <class S> void blend(LayerScores<S>& layer) const {
    const auto marked = [&](Index h) { return (layer.scores(h).array() == stays<S>).count(); };
    const Index share = layer.retain() - marked(0);
    Index total = 0;
    for (Index h = 0; h < layer.num_heads(); ++h) total += layer.retain();
    // count(h) = number of the best rows of all heads that lie in head h; protected rows are among them and are subtracted below.
    layer.best_of_all(total, [&](Index h, Index) { layer.count(h) += 1; });
    for (Index h = 0; h < layer.num_heads(); ++h) {
      VectorRef<S> score = layer.scores(h);
      const double stands_out = static_cast<double>(layer.count(h) - marked(h));
      const double rows = std::nearbyint(stands_out * (1 - options.floor) + std::floor(static_cast<double>(share) * options.floor));
      best_rows(layer.rows(h), ConstVectorRef<S>(score), marked(h) + static_cast<Index>(rows), [&](Index r) { score[r] = stays<S>; });
    }
    drop_unmarked(layer);
  }
};

template <class P> Adaptive(P, const AdaptiveOptions& = {}) -> Adaptive<P>;

}}  // namespace pith::v0
