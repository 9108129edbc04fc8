#pragma once
// The image tower: tiles of pixels to rows of features.

#include <algorithm>
#include <cstddef>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>

#include <pith/attention/attend.hpp>
#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/merge/tome.hpp>
#include <pith/vision/tower_config.hpp>

namespace pith { inline namespace v0 {

/// What forward() writes besides the features, for methods that drop or merge patches: in each view that has memory. It is taken from the
/// layer that makes the last feature, while that layer runs.
template <class S = float> struct TowerTaps {
  MatrixRef<S> class_attention = {};     ///< [heads, tokens] softmax row of the class token in each head
  VectorRef<S> attention_received = {};  ///< [tokens] attention of all tokens, averaged over them and the heads
  MatrixRef<S> key_mean = {};            ///< [tokens, head_dim] keys, averaged over the heads
  VectorRef<S> last_class_query = {};    ///< [hidden_size] the class token's query in the last layer of all, for PruMerge
  MatrixRef<S> last_keys = {};           ///< [tokens, hidden_size] keys of the last layer of all
};

/// The part of a tile that shows a picture, in patches from the upper left corner; the rest is padding, which no patch attends to.
struct TileExtent {
  Index height = 0, width = 0;  ///< 0: the whole tile
};

/// Called with each hidden state: what the first layer reads is 0, what layer l gives is l + 1, none of them normed.
struct NoTowerProbe {
  template <class S> void operator()(Index, const ConstMatrixRef<S>&) const {}
};

/// The row of the position table for each patch of a tile: floor(i g/h) g + floor(j g/w) for patch (i, j) of an extent of h x w patches, in
/// whole numbers; row 0 for padding. A whole tile has its patches' own rows.
///
/// Shapes   returns [grid*grid]
inline std::vector<Index> tile_positions(Index grid, const TileExtent& extent) {
  std::vector<Index> out(static_cast<std::size_t>(grid * grid));
  for (Index i = 0; i < extent.height; ++i)
    for (Index j = 0; j < extent.width; ++j)
      out[static_cast<std::size_t>(i * grid + j)] = i * grid / extent.height * grid + j * grid / extent.width;
  return out;
}

/// A vision transformer of CLIP or SigLIP: patches, learned positions, layers with full attention.
///
///   x = W patches (+ b); [class; x]; x += positions; CLIP: x = norm(x)
///   each layer: x += out(softmax(q Kᵀ/√d) V), q, K, V of norm1(x);  x += fc2(act(fc1(norm2(x))))
///
/// It computes tile by tile: rows of 128 tokens for products, 16 queries for attention, never tokens² numbers. Immutable; copies share the
/// weights, and any number of threads may use one.
///
/// Cost     2·tokens·(4·hidden² + 2·hidden·intermediate) + 4·tokens²·hidden flops a layer, and patches·hidden·3·patch² twice
/// Heap     none in forward(), given ws of workspace_bytes(workers)
/// Law      the same bits for any number of workers; taps and probes change none
template <class S = float> class VisionTower {
 public:
  using Scalar = S;

  VisionTower() = default;
  /// Throws   ShapeError if config and weights do not match
  VisionTower(VisionConfig config, VisionWeights<S> weights)
      : config_((config.check(), std::move(config))), weights_(std::make_shared<const VisionWeights<S>>(std::move(weights))) {
    weights_->check(config_);
  }
  /// The same weights under another config, such as one that takes another feature.
  VisionTower(VisionConfig config, const VisionTower& other) : config_((config.check(), std::move(config))), weights_(other.weights_) {
    if (weights_) weights_->check(config_);
  }

  const VisionConfig& config() const { return config_; }
  const VisionWeights<S>& weights() const { return *weights_; }
  std::size_t bytes() const { return weights_->bytes(); }

  /// Computes the features of one tile.
  ///
  /// Shapes   planes [3*image_size, image_size]: red, green, blue, as ImageTiles::planes() · out [tokens, feature_size]
  /// Throws   ShapeError if shapes disagree, for a tap that this tower has not (a class token's of a tower without one, a layer's of one
  ///          that takes state 0), and an extent outside the tile; CapacityError if ws is too small
  template <class Probe = NoTowerProbe>
  void forward(ConstMatrixRef<float> planes, std::type_identity_t<MatrixRef<S>> out, Workspace& ws, const TowerTaps<S>& taps = {},
               const TileExtent& extent = {}, Probe&& probe = {}) const {
    check(planes, out, taps, extent);
    const Workspace::Scope scope(ws);
    const Index last = *std::max_element(config_.features.begin(), config_.features.end()), layers = config_.num_hidden_layers;
    const bool to_the_end = taps.last_keys.size() > 0 || taps.last_class_query.size() > 0;
    Pass pass{*this, taps, extent, ws, ws.matrix<S>(config_.tokens(), config_.hidden_size)};
    pass.embed(planes);
    const auto give = [&](Index state) {
      for (std::size_t f = 0; f < config_.features.size(); ++f)
        if (config_.features[f] == state) {
          MatrixRef<S> part = out.middleCols(static_cast<Index>(f) * config_.hidden_size, config_.hidden_size);
          if (config_.post_norm)
            weights_->post_norm.forward(pass.x, part);
          else
            part = pass.x;
        }
      probe(state, ConstMatrixRef<S>(pass.x));
    };
    give(0);
    for (Index l = 0; l < (to_the_end ? (std::max)(last, layers - 1) : last); ++l) {
      pass.layer(l, l + 1 == config_.features.back());
      give(l + 1);
    }
    if (to_the_end && last < layers) pass.last_taps();
  }
  /// The same with memory of its own.
  Matrix<S> forward(ConstMatrixRef<float> planes, const TowerTaps<S>& taps = {}, ExecutorRef executor = serial) const {
    Matrix<S> out(config_.tokens(), config_.feature_size());
    Workspace ws(workspace_bytes(executor.size()), executor);
    forward(planes, out, ws, taps);
    return out;
  }

  std::size_t workspace_bytes(Index workers = 1) const {
    const Index n = config_.tokens(), d = config_.hidden_size, rows = (std::min)(tile, n);
    const auto bytes = [](Index a, Index b) { return Workspace::bytes_for<S>(a, b); };
    std::size_t kernels = (std::max)(attend_workspace_bytes<S>(shape(), n, workers, n) + bytes(shape().num_heads, n),
                                     bytes(rows, config_.patch_values()) + weights_->patch.workspace_bytes(rows, workers));
    for (const VisionLayer<S>& l : weights_->layers)
      for (const AnyLinear<S>* linear : {&l.q, &l.k, &l.v, &l.out, &l.fc1, &l.fc2})
        kernels = (std::max)(kernels, linear->workspace_bytes(rows, workers) + bytes(rows, d) + bytes(rows, config_.intermediate_size));
    return kernels + 4 * bytes(n, d) + Workspace::bytes_for<KvRun<S>>(shape().num_heads) + 2 * Workspace::bytes_for<float>(n) +
           2 * bytes(rows, d);
  }

  static constexpr Index tile = 128;  ///< tokens whose products are computed together: one pass over each weight

 private:
  AttentionShape shape() const { return {config_.num_attention_heads, config_.num_attention_heads, config_.head_dim()}; }

  void check(const ConstMatrixRef<float>& planes, const MatrixRef<S>& out, const TowerTaps<S>& taps, const TileExtent& extent) const {
    if (!weights_) raise<StateError>("pith::VisionTower: empty; construct it with a config and weights");
    const Index n = config_.tokens(), d = config_.hidden_size;
    check_shape("VisionTower", "planes", planes, 3 * config_.image_size, config_.image_size);
    check_shape("VisionTower", "out", out, n, config_.feature_size());
    const auto check_tap = [&](const char* name, const auto& tap, Index rows, Index cols, bool of_class) {
      if (tap.size() == 0) return;
      check_shape("VisionTower", name, tap, rows, cols);
      if (of_class && !config_.class_token) raise<ShapeError>("pith::VisionTower: ", name, " of a tower without a class token");
    };
    check_tap("class_attention", taps.class_attention, config_.num_attention_heads, n, true);
    check_tap("attention_received", taps.attention_received, n, 1, false);
    check_tap("key_mean", taps.key_mean, n, config_.head_dim(), false);
    check_tap("last_class_query", taps.last_class_query, d, 1, true);
    check_tap("last_keys", taps.last_keys, n, d, false);
    const bool of_layer = taps.class_attention.size() > 0 || taps.attention_received.size() > 0 || taps.key_mean.size() > 0;
    if (of_layer && config_.features.back() == 0)
      raise<ShapeError>("pith::VisionTower: no layer makes hidden state 0, so it has no attention and no keys to give");
    const bool to_the_end = taps.last_keys.size() > 0 || taps.last_class_query.size() > 0;
    if (to_the_end && static_cast<Index>(weights_->layers.size()) < config_.num_hidden_layers)
      raise<ShapeError>("pith::VisionTower: ", weights_->layers.size(), " layers of ", config_.num_hidden_layers,
                        " are there, and keys of the last one are asked for");
    const Index grid = config_.grid();
    const bool whole = extent.height == 0 && extent.width == 0;
    if (!whole && (extent.height < 1 || extent.width < 1 || extent.height > grid || extent.width > grid || config_.class_token))
      raise<ShapeError>("pith::VisionTower: an extent of ", extent.height, " x ", extent.width, " patches in a tile of ", grid, " x ", grid,
                        config_.class_token ? " of a tower with a class token, whose tiles are whole" : "");
  }

  /// One tile on its way through the tower.
  struct Pass {
    const VisionTower& tower;
    const TowerTaps<S>& taps;
    const TileExtent& extent;
    Workspace& ws;
    MatrixRef<S> x;  ///< [tokens, hidden_size]

    const VisionConfig& config() const { return tower.config_; }
    const VisionWeights<S>& weights() const { return *tower.weights_; }
    bool partial() const { return extent.height > 0; }
    bool padding(Index patch) const {
      return partial() && (patch / config().grid() >= extent.height || patch % config().grid() >= extent.width);
    }
    Index position_of(Index patch) const {
      if (!partial()) return patch;
      const Index g = config().grid();
      return padding(patch) ? 0 : patch / g * g / extent.height * g + patch % g * g / extent.width;
    }

    /// Calls each(first, rows) for the tokens of one tile after another.
    template <class F> static void in_tiles(Index n, F&& each) {
      for (Index t = 0; t < n; t += tile) each(t, (std::min)(tile, n - t));
    }

    void embed(const ConstMatrixRef<float>& planes) {
      const Index before = config().class_token ? 1 : 0;
      if (before > 0) x.row(0) = weights().class_token.transpose() + weights().positions.row(0);
      in_tiles(config().patches(), [&](Index first, Index rows) {
        const Workspace::Scope scope(ws);
        MatrixRef<S> patches = ws.matrix<S>(rows, config().patch_values());
        for (Index p = 0; p < rows; ++p) gather(planes, first + p, patches.data() + p * patches.cols());
        weights().patch.forward(patches, x.middleRows(before + first, rows), ws);
        for (Index p = 0; p < rows; ++p) x.row(before + first + p) += weights().positions.row(before + position_of(first + p));
      });
      if (config().pre_norm) weights().pre_norm.forward(x, x);
    }
    /// The pixels of a patch: channel, row, column.
    void gather(const ConstMatrixRef<float>& planes, Index patch, S* to) const {
      const Index side = config().patch_size, y = patch / config().grid() * side, left = patch % config().grid() * side;
      for (Index c = 0; c < 3; ++c)
        for (Index r = 0; r < side; ++r, to += side) {
          const float* from = planes.data() + (c * config().image_size + y + r) * planes.outerStride() + left;
          for (Index i = 0; i < side; ++i) to[i] = static_cast<S>(from[i]);
        }
    }

    void layer(Index index, bool tapped) {
      const VisionLayer<S>& w = weights().layers[static_cast<std::size_t>(index)];
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
      if (index + 1 == config().num_hidden_layers) tap_last(q, k);
      attend_all(q, k, v, tapped);
      in_tiles(n, [&](Index first, Index rows) {
        const Workspace::Scope of_tile(ws);
        const MatrixRef<S> y = ws.matrix<S>(rows, d), hidden = ws.matrix<S>(rows, config().intermediate_size);
        MatrixRef<S> to = x.middleRows(first, rows);
        w.out.forward(q.middleRows(first, rows), y, ws);
        to += y;
        w.norm2.forward(to, y);
        w.fc1.forward(y, hidden, ws);
        activate<S>(config().activation, hidden);
        w.fc2.forward(hidden, y, ws);
        to += y;
      });
    }

    /// Attention of all tokens to all tokens, written over their queries.
    void attend_all(const MatrixRef<S>& q, const MatrixRef<S>& k, const MatrixRef<S>& v, bool tapped) {
      const AttentionShape shape = tower.shape();
      const Index n = q.rows(), heads = shape.num_heads, dim = shape.head_dim;
      float* log_mass = nullptr;
      if (partial()) {
        log_mass = ws.take<float>(n);
        for (Index i = 0; i < n; ++i) log_mass[i] = padding(i) ? -std::numeric_limits<float>::infinity() : 0.f;
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
      const VisionLayer<S>& w = weights().layers.back();
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

  VisionConfig config_;
  std::shared_ptr<const VisionWeights<S>> weights_;
};

}}  // namespace pith::v0
