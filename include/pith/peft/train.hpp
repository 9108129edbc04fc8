#pragma once
// Training of adapters: backward passes over a frozen base, and AdamW.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/products.hpp>
#include <pith/core/random.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/feed_forward.hpp>
#include <pith/nn/linear.hpp>
#include <pith/peft/dora.hpp>
#include <pith/peft/gradients.hpp>
#include <pith/peft/lora.hpp>

namespace pith { inline namespace v0 {

/// The gradients of a frozen layer: none.
struct NoGradients {
  void set_zero() {}
};

template <class S> struct DoraGradients {
  LowRankGradients<S> low_rank;
  Vector<S> magnitude;  ///< [out]
  void set_zero() {
    low_rank.set_zero();
    magnitude.setZero();
  }
};

/// The gradients of a layer that is trained as a whole.
template <class S> struct LinearGradients {
  Matrix<S> weight;  ///< [out, in]
  Vector<S> bias;    ///< [out]
  void set_zero() {
    weight.setZero();
    bias.setZero();
  }
};

template <class Up, class Down> struct FeedForwardGradients {
  Up up;
  Down down;
  void set_zero() {
    up.set_zero();
    down.set_zero();
  }
};

/// Zero gradients for all parameters that are trained in a layer.
template <LinearOp Base, LowRankAdapter Adapter>
LowRankGradients<typename Base::Scalar> gradients_of(const LoraLinear<Base, Adapter>& layer) {
  return {detail::most_rank(layer.adapter()), layer.in(), layer.out()};
}
template <DenseLinear Base, LowRankAdapter Adapter>
DoraGradients<typename Base::Scalar> gradients_of(const DoraLinear<Base, Adapter>& layer) {
  using S = typename Base::Scalar;
  return {{detail::most_rank(layer.adapter()), layer.in(), layer.out()}, Vector<S>::Zero(layer.out())};
}
template <LinearOp Up, LinearOp Down, class Act> auto gradients_of(const FeedForward<Up, Down, Act>& block) {
  using Ups = decltype(gradients_of(block.up()));
  using Downs = decltype(gradients_of(block.down()));
  return FeedForwardGradients<Ups, Downs>{gradients_of(block.up()), gradients_of(block.down())};
}
/// Overload for a layer without an adapter, which is frozen.
template <LinearOp L> NoGradients gradients_of(const L&) { return {}; }

/// Backward pass of a layer: adds the adapter's gradients of one batch to grads and writes dx = dL/dx. The base is frozen.
///
/// Shapes   x, dx [tokens, in] · dy [tokens, out]; dx may be [0, 0] if not needed
/// Heap     as low_rank_backward(); ws as for forward()
/// Throws   ShapeError if the shapes disagree
template <LinearOp L>
void backward(const L& layer, ConstMatrixRef<typename L::Scalar> x, ConstMatrixRef<typename L::Scalar> dy, NoGradients&,
              MatrixRef<typename L::Scalar> dx, Workspace& ws) requires BackwardLinear<L> {
  check_shape("backward", "dy", dy, x.rows(), layer.out());
  if (dx.size() > 0) layer.backward(dy, dx, ws);
}

template <LinearOp Base, LowRankAdapter Adapter>
void backward(const LoraLinear<Base, Adapter>& layer, ConstMatrixRef<typename Base::Scalar> x, ConstMatrixRef<typename Base::Scalar> dy,
              LowRankGradients<typename Base::Scalar>& grads, MatrixRef<typename Base::Scalar> dx,
              Workspace& ws) requires BackwardLinear<Base> {
  low_rank_backward(x, layer.adapter(), dy, grads);
  if (dx.size() > 0) layer.backward(dy, dx, ws);
}

/// Backward pass of DoRA, with the norms n held constant: dm += Σ dy ∘ (x (W + ΔW)ᵀ) / n.
template <DenseLinear Base, LowRankAdapter Adapter>
void backward(const DoraLinear<Base, Adapter>& layer, ConstMatrixRef<typename Base::Scalar> x, ConstMatrixRef<typename Base::Scalar> dy,
              DoraGradients<typename Base::Scalar>& grads, MatrixRef<typename Base::Scalar> dx,
              Workspace& ws) requires BackwardLinear<Base> {
  using S = typename Base::Scalar;
  check_shape("backward", "dy", dy, x.rows(), layer.out());
  check_shape("backward", "grads.magnitude", grads.magnitude, layer.out(), 1);
  Matrix<S> unscaled(x.rows(), layer.out()), scaled(x.rows(), layer.out());
  layer.base().forward(x, unscaled, ws);
  add_low_rank(x, layer.adapter(), MatrixRef<S>(unscaled), ws);
  if (layer.bias().size() > 0) unscaled.rowwise() -= layer.bias().transpose();
  layer.scale_rows(dy, scaled);
  low_rank_backward<Adapter>(x, layer.adapter(), scaled, grads.low_rank);
  const Vector<S> sum = dy.cwiseProduct(unscaled).colwise().sum().transpose();
  grads.magnitude += (layer.norm().array() == S(0)).select(S(0), sum.array() / layer.norm().array()).matrix();
  if (dx.size() > 0) layer.backward(dy, dx, ws);
}

/// Backward pass of a layer that is trained as a whole: dW += dyᵀ x. The caller owns the weight and updates it.
template <class S>
void backward(const LinearView<S, S>& layer, std::type_identity_t<ConstMatrixRef<S>> x, std::type_identity_t<ConstMatrixRef<S>> dy,
              LinearGradients<S>& grads, std::type_identity_t<MatrixRef<S>> dx, Workspace& ws) {
  check_shape("backward", "x", x, any_extent, layer.in());
  check_shape("backward", "dy", dy, x.rows(), layer.out());
  check_shape("backward", "grads.weight", grads.weight, layer.out(), layer.in());
  detail::add_transposed_times<S>(dy, x, grads.weight);
  if (grads.bias.size() > 0) grads.bias += dy.colwise().sum().transpose();
  if (dx.size() > 0) layer.backward(dy, dx, ws);
}

/// Backward pass through both layers and the activation between them; the hidden rows are recomputed.
template <LinearOp Up, LinearOp Down, class Act, class Ups, class Downs>
void backward(const FeedForward<Up, Down, Act>& block, ConstMatrixRef<typename Up::Scalar> x, ConstMatrixRef<typename Up::Scalar> dy,
              FeedForwardGradients<Ups, Downs>& grads, MatrixRef<typename Up::Scalar> dx, Workspace& ws) {
  using S = typename Up::Scalar;
  check_shape("backward", "x", x, any_extent, block.in());
  check_shape("backward", "dy", dy, x.rows(), block.out());
  Matrix<S> z(x.rows(), block.up().out()), hidden, dz(x.rows(), block.up().out());
  block.up().forward(x, z, ws);
  hidden = z;
  activate(block.activation(), MatrixRef<S>(hidden));
  backward(block.down(), hidden, dy, grads.down, dz, ws);
  for (Index i = 0; i < dz.size(); ++i) dz.data()[i] *= block.activation().derivative(z.data()[i]);
  backward(block.up(), x, dz, grads.up, dx, ws);
}

/// Bytes of workspace that backward() of this block needs. They may exceed those of forward(), because the hidden rows are not tiled.
template <LinearOp Up, LinearOp Down, class Act>
std::size_t backward_workspace_bytes(const FeedForward<Up, Down, Act>& block, Index tokens, Index workers = 1) {
  return (std::max)(detail::workspace_bytes_of(block.up(), tokens, workers), detail::workspace_bytes_of(block.down(), tokens, workers));
}

/// DyLoRA's rank b for the next step, drawn uniformly from first … last; use the same b for all layers.
///
/// Throws   ShapeError unless 1 <= first <= last
template <std::uniform_random_bit_generator Rng> Index sample_rank(Index first, Index last, Rng& rng) {
  if (first < 1 || last < first) [[unlikely]]
    raise<ShapeError>("pith::sample_rank: from ", first, " to ", last, ", expected 1 <= first <= last");
  return first + static_cast<Index>(canonical<double>(rng) * double(last - first + 1));
}

/// DyLoRA's frozen mode, which its published script uses: only component rank − 1 keeps its gradient.
///
/// Throws   ShapeError if there is no such component
template <class S> void keep_last_component(LowRankGradients<S>& grads, Index rank) {
  if (rank < 1 || rank > grads.down_rows.rows()) [[unlikely]]
    raise<ShapeError>("pith::keep_last_component: rank ", rank, ", expected 1 .. ", grads.down_rows.rows());
  grads.down_rows.topRows(rank - 1).setZero();
  grads.down_rows.bottomRows(grads.down_rows.rows() - rank).setZero();
  grads.up_rows.topRows(rank - 1).setZero();
  grads.up_rows.bottomRows(grads.up_rows.rows() - rank).setZero();
}

struct AdamWOptions {
  double learning_rate = 1e-3;
  double beta1 = 0.9, beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.01;
};

/// A learning-rate factor: rises from 0 to 1 in `warmup` steps, then falls to 0 at `total`.
///
/// A component that IncreLoRA adds starts over: pass its own age as `step`, and the steps that were left when it was added as `total`.
inline double warmup_decay(Index step, Index warmup, Index total) {
  if (step < warmup) return double(step) / double((std::max<Index>)(1, warmup));
  return (std::max)(0.0, double(total - step) / double((std::max<Index>)(1, total - warmup)));
}

/// AdamW: Adam with decoupled weight decay, for step t of a parameter p with gradient g.
///
///   m = β₁ m + (1 - β₁) g,   v = β₂ v + (1 - β₂) g²,   p = (1 - η λ) p - η m̂ / (√v̂ + ε),   m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ)
///
/// The state of a parameter is found by its name, so that parameters may come and go.
///
/// Heap     when a name is new
/// Throws   ShapeError if a gradient and its parameter differ in shape, a known name comes with another shape, or an option is out of range
/// Paper    arXiv:1711.05101
template <class S = float> class AdamW {
 public:
  explicit AdamW(const AdamWOptions& options = {}) : options_(options) {
    const auto share = [](double x) { return x >= 0 && x < 1; };
    if (!std::isfinite(options.learning_rate) || !share(options.beta1) || !share(options.beta2) || !(options.epsilon > 0) ||
        !std::isfinite(options.epsilon) || !std::isfinite(options.weight_decay)) [[unlikely]]
      raise<ShapeError>("pith::AdamW: learning rate ", options.learning_rate, ", betas ", options.beta1, " and ", options.beta2,
                        ", epsilon ", options.epsilon, ", weight decay ", options.weight_decay,
                        ": expected finite numbers, betas in [0, 1) and an epsilon above 0");
  }

  /// Updates one parameter; `factor` scales the learning rate.
  void update(std::string_view name, MatrixRef<S> value, ConstMatrixRef<S> gradient, double factor = 1) {
    check_shape("AdamW::update", "gradient", gradient, value.rows(), value.cols());
    State& state = states_.try_emplace(std::string(name), State{value.rows(), value.cols()}).first->second;
    check_shape("AdamW::update", "value", value, state.mean.rows(), state.mean.cols());
    const AdamWOptions& o = options_;
    const double rate = factor * o.learning_rate, t = double(++state.steps);
    const S first = static_cast<S>(rate / (1 - std::pow(o.beta1, t))), second = static_cast<S>(1 / (1 - std::pow(o.beta2, t)));
    state.mean = S(o.beta1) * state.mean + S(1 - o.beta1) * gradient;
    state.square = S(o.beta2) * state.square + S(1 - o.beta2) * gradient.cwiseAbs2();
    value *= static_cast<S>(1 - rate * o.weight_decay);
    value.array() -= first * state.mean.array() / ((second * state.square.array()).sqrt() + S(o.epsilon));
  }

  /// Updates all trained parameters of an adapter and calls its refresh().
  template <class Adapter> void step(std::string_view name, Adapter& adapter, const LowRankGradients<S>& grads, double factor = 1) {
    adapter.each_parameter(grads, [&](std::string_view part, MatrixRef<S> value, ConstMatrixRef<S> gradient) {
      update(std::string(name) + "." + std::string(part), value, gradient, factor);
    });
    adapter.refresh();
  }
  template <DenseLinear Base, LowRankAdapter Adapter>
  void step(std::string_view name, DoraLinear<Base, Adapter>& layer, const DoraGradients<S>& grads, double factor = 1) {
    step(name, layer.adapter(), grads.low_rank, factor);
    VectorRef<S> m = layer.magnitude();
    update(std::string(name) + ".lora_magnitude_vector", MatrixRef<S>(m.data(), 1, m.size()), detail::as_row(grads.magnitude), factor);
    layer.refresh();
  }

  Index age(std::string_view name) const {  ///< number of updates of a parameter
    const auto found = states_.find(name);
    return found == states_.end() ? 0 : found->second.steps;
  }

 private:
  struct State {
    State(Index rows, Index cols) : mean(Matrix<S>::Zero(rows, cols)), square(Matrix<S>::Zero(rows, cols)) {}
    Matrix<S> mean, square;
    Index steps = 0;
  };

  struct ByText {
    using is_transparent = void;
    bool operator()(std::string_view a, std::string_view b) const { return a < b; }
  };

  AdamWOptions options_;
  std::map<std::string, State, ByText> states_;
};

}}  // namespace pith::v0
