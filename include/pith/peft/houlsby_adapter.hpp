#pragma once
// Houlsby (bottleneck) adapters, x + up(act(down(x))) around a frozen sub-layer: sequential, Pfeiffer, parallel.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <random>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/activation.hpp>
#include <pith/nn/feed_forward.hpp>
#include <pith/nn/linear.hpp>
#include <pith/nn/norm.hpp>

namespace pith { inline namespace v0 {

/// The rows that a sequential block adds its result to.
enum class HoulsbySkip {
  hidden,  ///< the sub-layer's output
  input,   ///< the block's own input, after the model's norm if norm_before is set
  sum,     ///< the sum of the sub-layer's output and input, before the norm
};

/// The place of a bottleneck around a sub-layer with output h and input u, in a model with or without a norm LN.
///
///   sequential: o = core(z) + skip,   z = LN(h + u) or h,   y = LN(o + u) or o
///   parallel:   y = LN(core(u) + h + u)
struct HoulsbyOptions {
  bool parallel = false;
  bool norm_before = false;  ///< z = LN(h + u) (`original_ln_before`)
  bool norm_after = true;    ///< y = LN(o + u) (`original_ln_after`); false if the model adds the residual itself
  HoulsbySkip skip = HoulsbySkip::hidden;
  bool own_norm_over_skip = false;  ///< the block's own norm behind takes core + skip, not core alone (`adapter_residual_before_ln`)

  friend bool operator==(const HoulsbyOptions&, const HoulsbyOptions&) = default;
  static HoulsbyOptions houlsby() { return {}; }
  static HoulsbyOptions pfeiffer() { return {.norm_before = true}; }
  static HoulsbyOptions parallel_block() { return {.parallel = true}; }
  static HoulsbyOptions adapter_plus() { return {.norm_before = true, .norm_after = false, .skip = HoulsbySkip::input}; }
};

/// The bottleneck width c for d features: max(1, ⌊d / reduction⌋).
///
/// Throws   ShapeError unless d and the reduction are above 0
inline Index houlsby_size(Index d, double reduction) {
  if (d < 1 || !(reduction > 0) || !(double(d) / reduction < 1e15)) [[unlikely]]
    raise<ShapeError>("pith::houlsby_size: ", d, " features reduced by ", reduction, ": expected both above 0");
  return (std::max<Index>)(1, static_cast<Index>(double(d) / reduction));
}

/// The weights of a block; leave optional parts empty.
template <class S = float> struct HoulsbyWeights {
  Linear<S> down, up;                                   ///< D [c, d] and Up [d, c], with their biases
  Vector<S> scale = {};                                 ///< factor of core: [1], or [d] with one for each feature; empty: 1
  Vector<S> gate = {};                                  ///< [d] g
  S gate_bias = 0;                                      ///< g0
  std::optional<LayerNorm<S>> before = {}, after = {};  ///< the block's own norms: before D, and behind
};

/// Stands for the model's norm if the model has none at this point.
struct NoNorm {
  template <class S> void forward(ConstMatrixRef<S> x, MatrixRef<S> y) const { y = x; }
};

/// Adapter tuning: adds a small feed-forward block beside or behind a frozen sub-layer.
///
///   x + up(act(down(x))),   in full: core(z) = scale ∘ (act(z Dᵀ + b) Upᵀ + bᵤ), placed as in HoulsbyOptions
///
/// The block is not linear, so it cannot be merged. A gate multiplies core by the mean of sigmoid(z g + g0) over all rows of a call: pass
/// one sequence at a time; token by token, the results differ from those of a whole sequence.
///
/// Shapes   hidden h, residual u, y [tokens, d]; y is neither of the others
/// Heap     none in forward(), given ws of workspace_bytes(tokens, workers)
/// Throws   ShapeError if the shapes disagree
/// Law      if Up and its bias are 0 and the norm stands behind: LN(h + u), the layer without the block
/// Paper    Houlsby: arXiv:1902.00751; Pfeiffer: arXiv:2005.00247; parallel: arXiv:2110.04366
template <class S = float, Activation<S> Act = Relu> class HoulsbyAdapter {
 public:
  using Scalar = S;

  HoulsbyAdapter(HoulsbyWeights<S> weights, const HoulsbyOptions& options = {}, Act activation = {})
      : core_(std::move(weights.down), std::move(weights.up), std::move(activation)),
        scale_(std::move(weights.scale)),
        gate_(std::move(weights.gate)),
        gate_bias_(weights.gate_bias),
        before_(std::move(weights.before)),
        after_(std::move(weights.after)),
        options_(options) {
    const Index d = core_.in();
    detail::check_chain("HoulsbyAdapter", "out() of up", core_.out(), d);
    if (scale_.size() > 1) check_shape("HoulsbyAdapter", "scale", scale_, d, 1);
    if (gate_.size() > 0) check_shape("HoulsbyAdapter", "gate", gate_, d, 1);
    if (before_) detail::check_chain("HoulsbyAdapter", "size() of its norm before", before_->size(), d);
    if (after_) detail::check_chain("HoulsbyAdapter", "size() of its norm behind", after_->size(), d);
  }

  /// `norm` is the model's norm: a LayerNorm, an RmsNorm or NoNorm{}.
  template <class Norm>
  void forward(ConstMatrixRef<S> hidden, ConstMatrixRef<S> residual, const Norm& norm, MatrixRef<S> y, Workspace& ws) const {
    check_shape("HoulsbyAdapter", "hidden", hidden, any_extent, size());
    check_shape("HoulsbyAdapter", "residual", residual, hidden.rows(), size());
    check_shape("HoulsbyAdapter", "y", y, hidden.rows(), size());
    const Workspace::Scope scope(ws);
    const Index tokens = hidden.rows();
    MatrixRef<S> z = ws.matrix<S>(tokens, size()), core = ws.matrix<S>(tokens, size());
    if (options_.parallel) {
      z = residual;
    } else if (options_.norm_before) {
      core = hidden + residual;
      norm.forward(ConstMatrixRef<S>(core), z);
    } else {
      z = hidden;
    }
    if (before_) before_->forward(z, y);
    core_.forward(before_ ? ConstMatrixRef<S>(y) : ConstMatrixRef<S>(z), core, ws);
    scale_core(z, core);
    if (options_.parallel) {
      if (after_) after_->forward(core, core);
      core += hidden;
      finish(core, residual, norm, y);
      return;
    }
    if (after_ && !options_.own_norm_over_skip) after_->forward(core, core);
    if (options_.skip == HoulsbySkip::input) {
      core += z;
    } else {
      core += hidden;
      if (options_.skip == HoulsbySkip::sum) core += residual;
    }
    if (after_ && options_.own_norm_over_skip) after_->forward(core, core);
    finish(core, residual, norm, y);
  }
  Matrix<S> forward(ConstMatrixRef<S> hidden, ConstMatrixRef<S> residual) const { return forward(hidden, residual, NoNorm{}); }
  template <class Norm> Matrix<S> forward(ConstMatrixRef<S> hidden, ConstMatrixRef<S> residual, const Norm& norm) const {
    Workspace ws(workspace_bytes(hidden.rows()));
    Matrix<S> y(hidden.rows(), size());
    forward(hidden, residual, norm, y, ws);
    return y;
  }

  Index size() const { return core_.in(); }          ///< d
  Index bottleneck() const { return down().out(); }  ///< c
  const HoulsbyOptions& options() const { return options_; }
  const Linear<S>& down() const { return core_.up(); }  ///< D: in a feed-forward layer the first is the one that widens
  const Linear<S>& up() const { return core_.down(); }  ///< Up
  ConstVectorRef<S> scale() const { return scale_; }    ///< [1], [d] or empty
  ConstVectorRef<S> gate() const { return gate_; }      ///< [d] or empty
  S gate_bias() const { return gate_bias_; }
  Index parameters() const {
    Index n = down().weight().size() + down().bias().size() + up().weight().size() + up().bias().size();
    n += scale_.size() + (gate_.size() > 0 ? gate_.size() + 1 : 0);
    return n + (before_ ? 2 * size() : 0) + (after_ ? 2 * size() : 0);
  }
  std::size_t workspace_bytes(Index tokens, Index workers = 1) const {
    return 2 * Workspace::bytes_for<S>(tokens, size()) + core_.workspace_bytes(tokens, workers);
  }

 private:
  void scale_core(ConstMatrixRef<S> z, MatrixRef<S> core) const {
    S factor = scale_.size() == 1 ? scale_[0] : S(1);
    if (gate_.size() > 0 && z.rows() > 0) {
      S sum = 0;
      for (Index t = 0; t < z.rows(); ++t) sum += S(1) / (S(1) + std::exp(-(z.row(t).dot(gate_) + gate_bias_)));
      factor *= sum / static_cast<S>(z.rows());
    }
    if (factor != S(1)) core *= factor;
    if (scale_.size() > 1) core.array().rowwise() *= scale_.transpose().array();
  }

  template <class Norm> void finish(MatrixRef<S> core, ConstMatrixRef<S> residual, const Norm& norm, MatrixRef<S> y) const {
    if (!options_.norm_after) {
      y = core;
      return;
    }
    core += residual;
    norm.forward(ConstMatrixRef<S>(core), y);
  }

  FeedForward<Linear<S>, Linear<S>, Act> core_;
  Vector<S> scale_, gate_;
  S gate_bias_ = 0;
  std::optional<LayerNorm<S>> before_, after_;
  HoulsbyOptions options_;
};

}}  // namespace pith::v0
