#pragma once

#include <algorithm>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/attention/attend.hpp>
#include <pith/attention/rope.hpp>
#include <pith/core/workspace.hpp>
#include <pith/kv/kv_cache.hpp>
#include <pith/model/config.hpp>
#include <pith/model/detail/decoder_model.hpp>
#include <pith/model/session_options.hpp>
#include <pith/model/weights.hpp>
#include <pith/nn/feed_forward.hpp>
#include <pith/nn/norm.hpp>
#include <pith/peft/detail/rows_by_adapter.hpp>
#include <pith/peft/linear_adapter.hpp>
#include <pith/peft/model_adapter.hpp>

// One decoder layer over a KV cache: prefill, decode, evict.
namespace pith { inline namespace v0 { namespace detail {

/// Tokens projected together: enough to reuse each weight in cache, few enough to stay in cache themselves.
inline constexpr Index prefill_tile = 64;
struct NoProbe {
  template <class S> void operator()(Index, const ConstMatrixRef<S>&) const {}
};

/// One decoder layer, in place: LayerSpec says what it computes; h: hidden [tokens, hidden_size]. Every switch is asked once a call.
template <class S> struct LayerPass {
  const DecoderModel<S>& model;
  Index layer;
  Workspace& ws;
  RowsByAdapter<S> adapters = {};  ///< adapter runs over the rows of hidden; empty: the base model
  bool beyond = false;             ///< the text is longer than DecoderModel::switch_length

  /// Prompt: appends the keys and values of all tokens, then attends tile by tile; the caller evicts.
  /// `rope_length`: the length that dynamic rope scales by, the same for all tokens of the call. `marks`: passed to append(). The last
  /// layer computes only the last token and the queries that the policy observes; the other rows of hidden stay as they were.
  /// `sight`: for each of the last tokens, the last of them that it sees; empty: itself. `queries`: is shown the queries that are computed.
  /// `places`: where each row stands behind the first token of the prompt, if some were left out; sight then counts in places as well.
  template <class Cache>
  void prefill(Cache& cache, MatrixRef<S> hidden, const AppendOptions& marks, Position rope_length, bool last_layer = false,
               std::span<const Position> sight = {}, const QueryCallback* queries = nullptr, std::span<const Position> places = {}) const {
    const Index n = hidden.rows();
    const Position start = cache.next_position(), angle = cache.query_position();
    const std::span<const Position> angles = cache.reindexes() ? std::span<const Position>() : places;
    for (Index t = 0; t < n; t += prefill_tile) {
      const Index tile = (std::min)(prefill_tile, n - t);
      const Workspace::Scope scope(ws);
      const LayerPass here = from(t);
      const MatrixRef<S> x = here.normed(hidden.middleRows(t, tile));
      const MatrixRef<S> k = here.project(Projection::k, x), v = here.project(Projection::v, x);
      here.norm_heads(NormPlace::k, k);
      rope(beyond).rotate(k, positions_of(angles, angle, t, tile), rope_length);
      const auto part = [&](auto all) {
        return all.empty() ? all : all.subspan(static_cast<std::size_t>(t), static_cast<std::size_t>(tile));
      };
      cache.append(k, v,
                   {.phase = Phase::prefill,
                    .more = marks.more,
                    .kinds = part(marks.kinds),
                    .positions = places.empty() ? std::span<const Position>() : positions_of(places, start, t, tile),
                    .masses = part(marks.masses)});
    }
    const Index watched = watched_queries(cache, n);
    for (Index t = last_layer ? n - (std::max)(Index(1), watched) : 0; t < n; t += prefill_tile) {
      const Index tile = (std::min)(prefill_tile, n - t);
      const MatrixRef<S> rows = hidden.middleRows(t, tile);
      const Workspace::Scope scope(ws);
      const LayerPass here = from(t);
      const MatrixRef<S> x = here.normed(rows);
      MatrixRef<S> q = here.project(Projection::q, x);
      if constexpr (requires { cache.see_inputs(x); }) cache.see_inputs(x);
      here.norm_heads(NormPlace::q, q);
      MatrixRef<S> out = ws.matrix<S>(tile, q.cols());
      const std::span<const Position> seen = positions_seen(sight, start, n, t, tile);
      for (Index first = 0, count = 0; first < tile; first += count) {  // queries without a gap between them: all, if none was left out
        const Index place = place_of(places, t + first);
        for (count = 1; first + count < tile && place_of(places, t + first + count) == place + count;) ++count;
        const MatrixRef<S> some = q.middleRows(first, count);
        look(cache, rope(beyond), some, out.middleRows(first, count), static_cast<Position>(start + place),
             angle + place_of(angles, t + first), cache.gap(), rope_length, (std::max)(Index(0), watched - (n - t - first - count)),
             seen.empty() ? seen : seen.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count)));
        if (queries != nullptr) (*queries)(LayerQueries<S>{layer, some, static_cast<Position>(start + place)});
      }
      here.finish(rows, out);
    }
  }

  /// Next tokens: reads every weight once for all of them, but appends, attends and evicts token by token.
  template <class Cache> void decode(Cache& cache, MatrixRef<S> hidden) const {
    decode(
        hidden, [&](Index) -> Cache& { return cache; },
        [](Index, auto&& verbs) {
          verbs();
          return true;
        },
        [this](Index) { return beyond; });
  }
  /// Overload for tokens of several sessions: token t goes into cache_of(t), whose text is longer than switch_length if beyond_of(t).
  /// attempt(t, verbs) calls verbs() and returns whether it succeeded; a token that failed is zeroed and leaves the others unaffected.
  template <class CacheOf, class Attempt, class BeyondOf>
  void decode(MatrixRef<S> hidden, CacheOf&& cache_of, Attempt&& attempt, BeyondOf&& beyond_of) const {
    const Index n = hidden.rows();
    const Workspace::Scope scope(ws);
    const MatrixRef<S> x = normed(hidden);
    MatrixRef<S> q = project(Projection::q, x), k = project(Projection::k, x), v = project(Projection::v, x);
    MatrixRef<S> out = ws.matrix<S>(n, q.cols());
    norm_heads(NormPlace::q, q);
    norm_heads(NormPlace::k, k);
    for (Index t = 0; t < n; ++t) {
      const bool done = attempt(t, [&] {
        auto& cache = cache_of(t);
        const Rope<S>& turner = rope(beyond_of(t));
        const Workspace::Scope token(ws);
        const Position position = cache.next_position(), angle = cache.query_position();
        turner.rotate(k.middleRows(t, 1), positions(angle, 1), position + 1);
        cache.append(k.middleRows(t, 1), v.middleRows(t, 1));
        look(cache, turner, q.middleRows(t, 1), out.middleRows(t, 1), position, angle, cache.gap(), position + 1,
             watched_queries(cache, 1));
        evict(cache, 0, turner);
      });
      if (!done) out.row(t).setZero();
    }
    finish(hidden, out);
  }

  template <class Cache> Index evict(Cache& cache, Index coming = 0) const { return evict(cache, coming, rope(beyond)); }

 private:
  template <class Cache> static Index evict(Cache& cache, Index coming, const Rope<S>& rope) {
    const Index dropped = cache.evict(coming);
    if constexpr (requires { cache.reindex(rope); }) cache.reindex(rope);
    return dropped;
  }

  LayerPass from(Index row) const { return {model, layer, ws, adapters.from(row), beyond}; }  ///< over the rows from `row` on
  const LayerWeights<S>& weights() const { return model.weights.layers[static_cast<std::size_t>(layer)]; }
  const typename DecoderModel<S>::Layer& derived() const { return model.layers[static_cast<std::size_t>(layer)]; }
  const LayerSpec& spec() const { return derived().spec; }
  const Rope<S>& rope(bool beyond_switch) const { return beyond_switch ? *derived().rope_beyond : *derived().rope; }

  /// y = norm(x) with the layer's norm of this place; y may be x.
  void norm(NormPlace place, const MatrixRef<S>& x, const MatrixRef<S>& y, Index parts = 1) const {
    norm_runs(
        derived().norms[static_cast<std::size_t>(place)], adapters,
        [this, place](const ModelAdapter<S>& adapter) {
          const auto& layers = adapter.parts().layers;
          return layers.empty() ? nullptr : &layers[static_cast<std::size_t>(layer)][place];
        },
        x, y, parts);
  }
  /// What a block reads: hidden itself, or its norm in memory of the workspace.
  MatrixRef<S> read(NormPlace place, bool present, const MatrixRef<S>& hidden) const {
    if (!present) return hidden;
    const MatrixRef<S> x = ws.matrix<S>(hidden.rows(), hidden.cols());
    norm(place, hidden, x);
    return x;
  }
  MatrixRef<S> normed(const MatrixRef<S>& hidden) const { return read(NormPlace::pre_attention, spec().pre_attention, hidden); }
  /// The norm of queries or keys, in place.
  void norm_heads(NormPlace place, const MatrixRef<S>& x) const {
    if (spec().qk_norm != QkNorm::none) norm(place, x, x, spec().qk_norm == QkNorm::head ? x.cols() / model.config.head_dim : 1);
  }
  /// hidden += residual_scale · y
  void add(const MatrixRef<S>& y, MatrixRef<S> hidden) const {
    if (spec().residual_scale == 1)
      hidden += y;
    else
      hidden += static_cast<S>(spec().residual_scale) * y;
  }
  AdaptedLinear<S> overlaid(Projection p, RowsByAdapter<S> rows) const { return {projection_of(weights(), p), rows, layer, p}; }
  MatrixRef<S> project(Projection p, const MatrixRef<S>& x) const {
    const AnyLinear<S>& base = projection_of(weights(), p);
    const MatrixRef<S> y = ws.matrix<S>(x.rows(), base.out());
    if (adapters.empty())
      base.forward(x, y, ws);
    else
      overlaid(p, adapters).forward(x, y, ws);
    return y;
  }
  /// Feed-forward block, with adapters in tiles of the size that it uses itself.
  void feed_forward(const MatrixRef<S>& x, MatrixRef<S> y) const {
    if (adapters.empty()) return derived().mlp.forward(x, y, ws);
    for (Index t = 0; t < x.rows(); t += feed_forward_tile) {
      const Index tile = (std::min)(feed_forward_tile, x.rows() - t);
      const auto part = [&](Projection p) { return overlaid(p, adapters.from(t)); };
      SwiGlu<AdaptedLinear<S>>(part(Projection::gate), part(Projection::up), part(Projection::down), model.config.activation)
          .forward(x.middleRows(t, tile), y.middleRows(t, tile), ws);
    }
  }
  std::span<const Position> positions(Index first, Index n) const { return positions_of({}, first, 0, n); }

  static Index place_of(std::span<const Position> places, Index row) {
    return places.empty() ? row : places[static_cast<std::size_t>(row)];
  }
  /// The positions of the rows of a tile of a prompt that begins at `start`.
  std::span<const Position> positions_of(std::span<const Position> places, Index start, Index first, Index tile) const {
    Position* p = ws.take<Position>(tile);
    for (Index i = 0; i < tile; ++i) p[i] = static_cast<Position>(start + place_of(places, first + i));
    return {p, static_cast<std::size_t>(tile)};
  }

  /// The newest position that each token of a tile sees: `sight` is of the last tokens of n, the first of which is at `start`.
  std::span<const Position> positions_seen(std::span<const Position> sight, Position start, Index n, Index first, Index tile) const {
    if (sight.empty()) return {};
    Position* p = ws.take<Position>(tile);
    const Index before = n - static_cast<Index>(sight.size());
    for (Index i = 0; i < tile; ++i) {
      const Index t = first + i;
      p[i] = static_cast<Position>(start + (t < before ? t : before + sight[static_cast<std::size_t>(t - before)]));
    }
    return {p, static_cast<std::size_t>(tile)};
  }

  /// The number of queries, at the end of n, that the policy observes.
  template <class Cache> static Index watched_queries(const Cache& cache, Index n) {
    return cache.watching() ? (std::min)(n, cache.facts().traits.watches) : 0;
  }

  /// Rotates the queries and attends. At cache positions, sinks are read by a second copy of the queries, rotated as if the `gap` evicted
  /// tokens had never been there.
  template <class Cache>
  void look(Cache& cache, const Rope<S>& turner, const MatrixRef<S>& q, const MatrixRef<S>& out, Position first, Index angle, Position gap,
            Position rope_length, Index watched, std::span<const Position> sight = {}) const {
    const Workspace::Scope scope(ws);
    MatrixRef<S> sinks = gap > 0 ? ws.matrix<S>(q.rows(), q.cols()) : MatrixRef<S>();
    if (gap > 0) {
      sinks = q;
      turner.rotate(sinks, positions(angle - gap, q.rows()), rope_length);
    }
    turner.rotate(q, positions(angle, q.rows()), rope_length);
    if (spec().query_scale.on()) scale_queries(q, sinks, angle - gap);
    AttendOptions<S> options{.first_query = first,
                             .scale = static_cast<S>(spec().attention_scale),
                             .softcap = static_cast<S>(spec().attention_softcap),
                             .window = spec().window,
                             .q_sinks = sinks,
                             .gap = gap,
                             .observe_last = watched,
                             .sight = sight};
    if constexpr (requires { cache.attend_options(options); }) options = cache.attend_options(options);
    if constexpr (requires { cache.observer(); }) {
      if (watched > 0) return attend(q, cache.view(), out, ws, cache.observer(), options);
    }
    attend(q, cache.view(), out, ws, NoObserver{}, options);
  }

  /// Both copies of a query take the scale of the place that the cache gives it: the position less the gap.
  void scale_queries(MatrixRef<S> q, MatrixRef<S> sinks, Index first) const {
    for (Index t = 0; t < q.rows(); ++t) {
      const S scale = static_cast<S>(spec().query_scale.at(first + t));
      if (scale == S(1)) continue;
      q.row(t) *= scale;
      if (sinks.rows() > 0) sinks.row(t) *= scale;
    }
  }

  /// The rest of the layer after attention: output projection and feed-forward block, each normed where the layer says so and added.
  void finish(MatrixRef<S> hidden, const MatrixRef<S>& attended) const {
    const Workspace::Scope scope(ws);
    const MatrixRef<S> y = project(Projection::o, attended);
    if (spec().post_attention) norm(NormPlace::post_attention, y, y);
    if (spec().parallel) {
      const MatrixRef<S> x = normed(hidden), z = ws.matrix<S>(hidden.rows(), hidden.cols());
      feed_forward(x, z);
      if (spec().post_mlp) norm(NormPlace::post_mlp, z, z);
      add(y, hidden);
      return add(z, hidden);
    }
    add(y, hidden);
    feed_forward(read(NormPlace::pre_mlp, spec().pre_mlp, hidden), y);
    if (spec().post_mlp) norm(NormPlace::post_mlp, y, y);
    add(y, hidden);
  }
};

/// Workspace of a LayerPass over tiles of `tokens`, kernels included, with up to `rows` cached rows per head.
template <class S> std::size_t layer_workspace_bytes(const DecoderModel<S>& model, Index tokens, Index rows, Index workers) {
  const DecoderConfig& c = model.config;
  const Index q = c.num_attention_heads * c.head_dim, kv = c.num_key_value_heads * c.head_dim;
  const auto bytes = [&](Index width) { return Workspace::bytes_for<S>(tokens, width); };
  std::size_t kernels = attend_workspace_bytes<S>(c.attention(), rows, workers, tokens);
  for (std::size_t l = 0; l < model.layers.size(); ++l) {
    const LayerWeights<S>& w = model.weights.layers[l];
    for (const AnyLinear<S>* linear : {&w.q_proj, &w.k_proj, &w.v_proj, &w.o_proj})
      kernels = (std::max)(kernels, linear->workspace_bytes(tokens, workers));
    kernels = (std::max)(kernels, model.layers[l].mlp.workspace_bytes(tokens, workers));
  }
  kernels =
      (std::max)(kernels, model.weights.lm_head.workspace_bytes(tokens, workers)) + linear_adapter_workspace_bytes<S>(tokens, workers);
  const bool parallel = std::any_of(model.layers.begin(), model.layers.end(), [](const auto& layer) { return layer.spec.parallel; });
  return kernels + (parallel ? 4 : 3) * bytes(c.hidden_size) + 3 * bytes(q) + 2 * bytes(kv) + 4 * Workspace::bytes_for<Position>(tokens);
}

}}}  // namespace pith::v0::detail
