#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/kv/layer_scores.hpp>
#include <pith/kv/wrapped_policy.hpp>

namespace pith::inline v0 {

/// Rows left of `tokens` when a share of them, `ratio`, is removed: tokens·(1 - ratio), truncated in double precision, so 1000 at .9
/// are 99.
inline Index rows_kept(Index tokens, double ratio) {
  if (tokens < 0 || !(ratio >= 0 && ratio <= 1))
    raise<ShapeError>(detail::text("pith::rows_kept: ", tokens, " tokens at ratio ", ratio, ", expected 0 or more at 0 .. 1"));
  return static_cast<Index>(static_cast<double>(tokens) * (1 - ratio));
}

/// PyramidKV's budgets: more rows for the first layers, fewer for the last, the same on average.
///
/// Shapes   returns a budget per layer, the window included
/// Throws   ShapeError for options that make no sense
/// Paper    PyramidKV: arXiv:2406.02069
struct Pyramid {
  Index layers = 1;
  Index window = 32;  ///< rows of each budget that are the last queries'
  Index beta = 20;    ///< how steep: the last layer keeps about 1/beta of the average besides the window

  /// As released: whole numbers, for `rows` rows per layer on average and a prompt of `tokens`.
  std::vector<Index> budgets(Index rows, Index tokens) const {
    check(rows, tokens);
    const Index beside = rows - window, most = (std::max)(Index(0), tokens - window);
    Index low = beside / beta, high = 2 * beside - low;
    if (high >= most) {
      high = most;
      low = 2 * beside - high;
    }
    const Index step = layers > 1 ? (high - low) / (layers - 1) : 0;
    std::vector<Index> out;
    for (Index l = 0; l < layers; ++l) out.push_back(window + high - l * step);
    return out;
  }

  /// The other published formula: real numbers, for a share `ratio` of `tokens` removed. Every layer alike where the pyramid does not fit.
  std::vector<Index> budgets_at(double ratio, Index tokens) const {
    check(window, tokens);
    detail::check_share("Pyramid", "ratio", ratio);
    const double length = static_cast<double>(tokens), rows = length * (1 - ratio), most = length - static_cast<double>(window);
    double low = rows / static_cast<double>(beta), high = 2 * rows - low;
    if (high >= most) {
      high = most;
      low = 2 * rows - high;
    }
    if (!(length >= high && high >= low && low >= static_cast<double>(window))) low = high = rows;
    const double step = layers > 1 ? (high - low) / static_cast<double>(layers - 1) : 0;
    std::vector<Index> out;
    for (Index l = 0; l < layers; ++l) out.push_back(static_cast<Index>(std::nearbyint(high - static_cast<double>(l) * step)));
    return out;
  }

 private:
  void check(Index rows, Index tokens) const {
    constexpr Index most = detail::most_rows;
    if (layers < 1 || layers > most || window < 0 || beta < 1 || rows < window || rows > most || tokens < 0 || tokens > most)
      raise<ShapeError>(detail::text("pith::Pyramid: ", layers, " layers, window ", window, ", beta ", beta, ", ", rows, " rows of ",
                                     tokens, " tokens: expected at least 1 layer, beta 1 and a window's rows"));
  }
};

namespace detail {
/// Throws   ShapeError around a policy whose decision a wrapper would undo
inline void check_undecided(std::string_view wrapper, const PolicyTraits& inside) {
  if (inside.decides)
    raise<ShapeError>(text("pith::", wrapper, ": around a policy that decides itself which rows stay (Adaptive, Chunkwise, CrossSelf): it ",
                           "leaves no scores to share out or average; put one of the two around a policy that scores"));
}
}  // namespace detail

/// AdaKV: the heads of a layer share one budget; a head gets rows for each of its scores that stands out among all.
///
///   Adaptive(SnapKv{.keep = 1024}, {.floor = 0.5})
///
/// Each head's rows are really its own: memory is that of num_kv_heads·budget() rows, however they are divided.
///
/// Keeps    num_kv_heads·budget() rows of a layer by P's scores, when a prompt ends; no head less than `floor` of its equal share
/// Needs    what P needs
/// Cost     one selection among the rows of all heads, once
/// Paper    AdaKV: arXiv:2407.11550
struct AdaptiveOptions {
  enum class Rule : std::uint8_t {
    blended,  ///< as released: count·(1 - floor) + share·floor, rounded to even; the sum may miss the total by a few
    exact,    ///< each head's best floor·share are safe, the best of all fill up the total
  };
  double floor = 0.2;
  Rule rule = Rule::exact;
};

template <class P> struct Adaptive : WrappedPolicy<P> {
  AdaptiveOptions options;

  Adaptive(std::same_as<P> auto policy, const AdaptiveOptions& o = {}) : WrappedPolicy<P>{std::move(policy)}, options(o) {}

  /// Throws   what P's check() throws; ShapeError for a share outside 0 .. 1, and around a policy that decides itself which rows stay
  void check(const AttentionShape& shape) const {
    WrappedPolicy<P>::check(shape);
    detail::check_share("Adaptive", "floor", options.floor);
    detail::check_undecided("Adaptive", WrappedPolicy<P>::traits());
  }
  bool combines() const { return true; }
  PolicyTraits traits() const {
    PolicyTraits traits = WrappedPolicy<P>::traits();
    traits.prompt_only = traits.ragged = traits.decides = true;
    return traits;
  }
  template <class S>
  requires ScoringPolicy<P, S>
  void combine(LayerScores<S>& layer) const {
    if constexpr (CombiningPolicy<P, S>) this->inner.combine(layer);
    options.rule == AdaptiveOptions::Rule::exact ? fill(layer) : blend(layer);
  }

 private:
  template <class S> static constexpr S stays = std::numeric_limits<S>::infinity();

  /// Of these scores the finite ones go; +inf stays.
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
    // How many of the best of all are a head's, counted in its memory of the race; the protected rows are among them and taken off again.
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

/// ChunkKV: whole chunks of neighbouring tokens stay or go, the same for all heads: scores are summed over heads and averaged over a chunk.
///
///   Chunkwise(KeyNorm{.keep = 1024}, 20)
///
/// Keeps    as many whole chunks as P's budget is a share of the rows, at least one, when a prompt ends
/// Needs    what P needs
/// Cost     one look at every score, one selection among chunks
/// Paper    ChunkKV: arXiv:2502.00299
template <class P> struct Chunkwise : WrappedPolicy<P> {
  Index chunk = 20;  ///< tokens of a chunk; the last one may be shorter

  explicit Chunkwise(std::same_as<P> auto policy, Index tokens = 20) : WrappedPolicy<P>{std::move(policy)}, chunk(tokens) {}

  /// Throws   what P's check() throws; ShapeError for chunks of no token, and around a policy that decides itself which rows stay
  void check(const AttentionShape& shape) const {
    WrappedPolicy<P>::check(shape);
    detail::check_count("Chunkwise", "chunk", chunk, 1);
    detail::check_undecided("Chunkwise", WrappedPolicy<P>::traits());
  }
  bool combines() const { return true; }
  PolicyTraits traits() const {
    PolicyTraits traits = WrappedPolicy<P>::traits();
    traits.prompt_only = traits.ordered = traits.decides = true;
    return traits;
  }
  template <class S>
  requires ScoringPolicy<P, S>
  void combine(LayerScores<S>& layer) const {
    if constexpr (CombiningPolicy<P, S>) this->inner.combine(layer);
    constexpr S inf = std::numeric_limits<S>::infinity();
    const Index n = layer.size(0), length = chunk, chunks = (n + length - 1) / length;
    VectorRef<S> total = layer.scores(0);
    for (Index h = 1; h < layer.num_heads(); ++h) total += layer.scores(h);
    for (Index c = 0; c < chunks; ++c) {
      auto part = total.segment(c * length, (std::min)(length, n - c * length));
      const S mean = part.mean();
      part.setConstant(-inf);
      part[0] = mean;  // the first row of a chunk stands for it
    }
    best_rows(layer.rows(0), ConstVectorRef<S>(total), (std::max)(Index(1), chunks * layer.retain() / n),
              [&](Index r) { total.segment(r, (std::min)(length, n - r)).setConstant(inf); });
    for (Index r = 0; r < n; ++r) total[r] = total[r] == inf ? inf : -inf;
    for (Index h = 1; h < layer.num_heads(); ++h) layer.scores(h) = total;
  }
};
template <class P> Chunkwise(P, Index = 20) -> Chunkwise<P>;

}  // namespace pith::inline v0
