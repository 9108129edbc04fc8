#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>

#include <pith/attention/attend.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/merge/tome.hpp>
#include <pith/vision/tower_config.hpp>
#include <pith/vision/tower_merge.hpp>
#include <pith/vision/tower_taps.hpp>

// The layers of an image tower, over one tile.
namespace pith { inline namespace v0 { namespace detail {

/// Tokens whose products are computed together: one pass over each weight.
inline constexpr Index tower_tile = 128;

/// One tile on its way through the tower.
template <class S> struct TowerPass {
  const VisionConfig& config;
  const VisionWeights<S>& weights;
  const TowerTaps<S>& taps;
  const TileExtent& extent;
  TowerMerge<S>* merge;  ///< or nullptr
  Workspace& ws;
  MatrixRef<S> memory;  ///< [tokens, hidden_size]

  /// The rows that are left: all tokens, until some are merged.
  MatrixRef<S> rows() { return memory.topRows(merge != nullptr ? merge->rows() : memory.rows()); }
  bool partial() const { return extent.height > 0; }
  bool padding(Index patch) const { return partial() && (patch / config.grid() >= extent.height || patch % config.grid() >= extent.width); }
  Index position_of(Index patch) const {
    if (!partial()) return patch;
    const Index g = config.grid();
    return padding(patch) ? 0 : patch / g * g / extent.height * g + patch % g * g / extent.width;
  }

  /// Calls each(first, rows) for the tokens of one tile after another.
  template <class F> static void in_tiles(Index n, F&& each) {
    for (Index t = 0; t < n; t += tower_tile) each(t, (std::min)(tower_tile, n - t));
  }

  void embed(const ConstMatrixRef<float>& planes) {
    MatrixRef<S> x = rows();
    const Index before = config.class_token ? 1 : 0;
    if (before > 0) x.row(0) = weights.class_token.transpose() + weights.positions.row(0);
    in_tiles(config.patches(), [&](Index first, Index rows) {
      const Workspace::Scope scope(ws);
      MatrixRef<S> patches = ws.matrix<S>(rows, config.patch_values());
      for (Index p = 0; p < rows; ++p) gather(planes, first + p, patches.data() + p * patches.cols());
      weights.patch.forward(patches, x.middleRows(before + first, rows), ws);
      for (Index p = 0; p < rows; ++p) x.row(before + first + p) += weights.positions.row(before + position_of(first + p));
    });
    if (config.pre_norm) weights.pre_norm.forward(x, x);
  }
  /// The pixels of a patch: channel, row, column.
  void gather(const ConstMatrixRef<float>& planes, Index patch, S* to) const {
    const Index side = config.patch_size, y = patch / config.grid() * side, left = patch % config.grid() * side;
    for (Index c = 0; c < 3; ++c)
      for (Index r = 0; r < side; ++r, to += side) {
        const float* from = planes.data() + (c * config.image_size + y + r) * planes.outerStride() + left;
        for (Index i = 0; i < side; ++i) to[i] = static_cast<S>(from[i]);
      }
  }

  void layer(Index index, bool tapped) {
    const VisionLayer<S>& w = weights.layers[static_cast<std::size_t>(index)];
    MatrixRef<S> x = rows();
    const Index n = x.rows(), d = x.cols();
    const Workspace::Scope scope(ws);
    MatrixRef<S> q = ws.matrix<S>(n, d), k = ws.matrix<S>(n, d), v = ws.matrix<S>(n, d);
    in_tiles(n, [&](Index first, Index rows) {
      const Workspace::Scope of_tile(ws);
      const MatrixRef<S> a = ws.matrix<S>(rows, d);
      w.norm1.forward(x.middleRows(first, rows), a);
      w.q.forward(a, q.middleRows(first, rows), ws);
      w.k.forward(a, k.middleRows(first, rows), ws);
      w.v.forward(a, v.middleRows(first, rows), ws);
    });
    if (index + 1 == config.num_hidden_layers) tap_last(q, k);
    attend_all(q, k, v, tapped);
    in_tiles(n, [&](Index first, Index rows) {
      const Workspace::Scope of_tile(ws);
      const MatrixRef<S> y = ws.matrix<S>(rows, d);
      w.out.forward(q.middleRows(first, rows), y, ws);
      x.middleRows(first, rows) += y;
    });
    if (merge != nullptr) merge->merge(index, k, v.leftCols(config.head_dim()), q, x, ws);
    in_tiles(this->rows().rows(), [&](Index first, Index rows) {
      const Workspace::Scope of_tile(ws);
      const MatrixRef<S> y = ws.matrix<S>(rows, d), hidden = ws.matrix<S>(rows, config.intermediate_size);
      MatrixRef<S> to = x.middleRows(first, rows);
      w.norm2.forward(to, y);
      w.fc1.forward(y, hidden, ws);
      activate<S>(config.activation, hidden);
      w.fc2.forward(hidden, y, ws);
      to += y;
    });
  }

  /// Attention of all tokens to all tokens, written over their queries.
  void attend_all(const MatrixRef<S>& q, const MatrixRef<S>& k, const MatrixRef<S>& v, bool tapped) {
    const Index n = q.rows(), heads = config.num_attention_heads, dim = config.head_dim();
    const AttentionShape shape{heads, heads, dim};
    const float* log_mass = merge != nullptr ? merge->log_masses() : nullptr;
    if (partial()) {
      float* const of_padding = ws.take<float>(n);
      for (Index i = 0; i < n; ++i) of_padding[i] = padding(i) ? -std::numeric_limits<float>::infinity() : 0.f;
      log_mass = of_padding;
    }
    KvRun<S>* runs = ws.take<KvRun<S>>(heads);
    for (Index h = 0; h < heads; ++h)
      runs[h] = {.keys = k.data() + h * dim, .values = v.data() + h * dim, .rows = n, .stride = k.outerStride(), .log_mass = log_mass};
    const KvView<S> view{shape, static_cast<Position>(n), {runs, static_cast<std::size_t>(heads)}};
    if (tapped && taps.key_mean.size() > 0) mean_over_heads<S>(k, taps.key_mean);
    const bool received = tapped && taps.attention_received.size() > 0, of_class = tapped && taps.class_attention.size() > 0;
    if (!received && !of_class) return attend(q, view, q, ws, NoObserver{}, {.first_query = 0});
    MatrixRef<S> sums = ws.matrix<S>(heads, n);  // a row for each head: heads are attended by several threads
    sums.setZero();
    attend(q, view, q, ws,
           [&](const AttentionTile<S>& seen) {
             if (received) sums.row(seen.kv_head) += seen.weights.colwise().sum();
             if (of_class && seen.first_query_index == 0) row_of(taps.class_attention, seen.kv_head) = seen.weights.row(0);
           },
           {.first_query = 0, .observe_last = received ? Index(-1) : n});
    if (received) VectorRef<S>(taps.attention_received) = sums.colwise().sum().transpose() / static_cast<S>(heads * n);
  }

  void tap_last(const MatrixRef<S>& q, const MatrixRef<S>& k) const {
    if (taps.last_class_query.size() > 0) VectorRef<S>(taps.last_class_query) = q.row(0).transpose();
    if (taps.last_keys.size() > 0) MatrixRef<S>(taps.last_keys) = k;
  }
  /// Query and keys of a last layer that is not run otherwise.
  void last_taps() {
    const VisionLayer<S>& w = weights.layers.back();
    const MatrixRef<S> x = rows();
    in_tiles(x.rows(), [&](Index first, Index rows) {
      const Workspace::Scope scope(ws);
      const MatrixRef<S> a = ws.matrix<S>(rows, x.cols()), y = ws.matrix<S>(1, x.cols());
      w.norm1.forward(x.middleRows(first, rows), a);
      if (taps.last_keys.size() > 0) w.k.forward(a, MatrixRef<S>(taps.last_keys).middleRows(first, rows), ws);
      if (first > 0 || taps.last_class_query.size() == 0) return;
      w.q.forward(a.topRows(1), y, ws);
      VectorRef<S>(taps.last_class_query) = y.row(0).transpose();
    });
  }
  static auto row_of(MatrixRef<S> m, Index row) { return MatrixRef<S>(m.middleRows(row, 1)); }
};

}}}  // namespace pith::v0::detail
