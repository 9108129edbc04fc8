#pragma once
// The image tower: tiles of pixels to rows of features.

#include <algorithm>
#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>

#include <pith/attention/attend.hpp>
#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/vision/detail/tower_pass.hpp>
#include <pith/vision/tower_config.hpp>
#include <pith/vision/tower_merge.hpp>
#include <pith/vision/tower_taps.hpp>

namespace pith { inline namespace v0 {

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
    run(planes, out, ws, taps, extent, nullptr, probe);
  }
  /// The same while layers merge tokens; `merge`, which was made for this config, then says which token is in which row.
  ///
  /// Shapes   out [tokens, feature_size], of which the first merge.rows() are written
  /// Throws   ShapeError if shapes or configs disagree; CapacityError if ws is too small
  /// Law      without steps the bits of the features above
  template <class Probe = NoTowerProbe>
  void forward(ConstMatrixRef<float> planes, std::type_identity_t<MatrixRef<S>> out, Workspace& ws, TowerMerge<S>& merge,
               Probe&& probe = {}) const {
    check(planes, out, {}, {});
    merge.check_tower(config_);
    merge.start();
    run(planes, out, ws, {}, {}, &merge, probe);
  }
  /// The same with memory of its own.
  Matrix<S> forward(ConstMatrixRef<float> planes, const TowerTaps<S>& taps = {}, ExecutorRef executor = serial) const {
    Matrix<S> out(config_.tokens(), config_.feature_size());
    Workspace ws(workspace_bytes(executor.size()), executor);
    forward(planes, out, ws, taps);
    return out;
  }

  std::size_t workspace_bytes(Index workers = 1) const {
    const Index n = config_.tokens(), d = config_.hidden_size, rows = (std::min)(detail::tower_tile, n);
    const auto bytes = [](Index a, Index b) { return Workspace::bytes_for<S>(a, b); };
    std::size_t kernels = (std::max)(attend_workspace_bytes<S>(shape(), n, workers, n) + bytes(shape().num_heads, n),
                                     bytes(rows, config_.patch_values()) + weights_->patch.workspace_bytes(rows, workers));
    kernels = (std::max)(kernels, TowerMerge<S>::workspace_bytes(config_, workers));
    for (const VisionLayer<S>& l : weights_->layers)
      for (const AnyLinear<S>* linear : {&l.q, &l.k, &l.v, &l.out, &l.fc1, &l.fc2})
        kernels = (std::max)(kernels, linear->workspace_bytes(rows, workers) + bytes(rows, d) + bytes(rows, config_.intermediate_size));
    return kernels + 4 * bytes(n, d) + Workspace::bytes_for<KvRun<S>>(shape().num_heads) + 2 * Workspace::bytes_for<float>(n) +
           2 * bytes(rows, d);
  }

 private:
  AttentionShape shape() const { return {config_.num_attention_heads, config_.num_attention_heads, config_.head_dim()}; }

  template <class Probe>
  void run(const ConstMatrixRef<float>& planes, MatrixRef<S>& out, Workspace& ws, const TowerTaps<S>& taps, const TileExtent& extent,
           TowerMerge<S>* merge, Probe&& probe) const {
    const Workspace::Scope scope(ws);
    const Index last = *std::max_element(config_.features.begin(), config_.features.end()), layers = config_.num_hidden_layers;
    const bool to_the_end = taps.last_keys.size() > 0 || taps.last_class_query.size() > 0;
    detail::TowerPass<S> pass{config_, *weights_, taps, extent, merge, ws, ws.matrix<S>(config_.tokens(), config_.hidden_size)};
    pass.embed(planes);
    const auto give = [&](Index state) {
      for (std::size_t f = 0; f < config_.features.size(); ++f)
        if (config_.features[f] == state) {
          MatrixRef<S> part = out.topRows(pass.rows().rows()).middleCols(static_cast<Index>(f) * config_.hidden_size, config_.hidden_size);
          if (config_.post_norm)
            weights_->post_norm.forward(pass.rows(), part);
          else
            part = pass.rows();
        }
      probe(state, ConstMatrixRef<S>(pass.rows()));
    };
    give(0);
    for (Index l = 0; l < (to_the_end ? (std::max)(last, layers - 1) : last); ++l) {
      pass.layer(l, l + 1 == config_.features.back());
      give(l + 1);
    }
    if (to_the_end && last < layers) pass.last_taps();
  }

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

  VisionConfig config_;
  std::shared_ptr<const VisionWeights<S>> weights_;
};

}}  // namespace pith::v0
