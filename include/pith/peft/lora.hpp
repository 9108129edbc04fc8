#pragma once
// LoRA: a trained low-rank product beside a frozen linear layer, h = W₀x + (α/r) B A x.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/linear.hpp>
#include <pith/peft/detail/dense.hpp>
#include <pith/peft/detail/factors.hpp>
#include <pith/peft/detail/fresh.hpp>
#include <pith/peft/gradients.hpp>
#include <pith/peft/low_rank.hpp>

namespace pith { inline namespace v0 {

/// The scaling of LoRA.
struct LoraOptions {
  double alpha = 8;     ///< the scale is alpha / rank
  bool rslora = false;  ///< the scale is alpha / √rank   arXiv:2312.03732
};

/// The scale of B A: alpha / rank, or alpha / √rank for rsLoRA; 0 at rank 0.
inline double lora_scale(const LoraOptions& options, Index rank) {
  if (!std::isfinite(options.alpha) || rank < 0) [[unlikely]]
    raise<ShapeError>("pith::lora_scale: alpha ", options.alpha, " at rank ", rank, ": expected a finite alpha and rank >= 0");
  if (rank == 0) return 0;
  return options.rslora ? options.alpha / std::sqrt(double(rank)) : options.alpha / double(rank);
}

/// The trained factors of LoRA: ΔW = (α/r) B A. lora_init.hpp makes fresh adapters: B = 0, A ~ N(0, σ²).
///
/// Shapes   down A [rank, in] and up B [out, rank], as in PEFT; B is stored transposed · bias β of B (`lora_bias`), [out] or empty
/// Heap     at construction only
/// Throws   ShapeError if the shapes disagree or alpha is not finite
/// Paper    LoRA: arXiv:2106.09685
template <class S = float> class LoraAdapter {
 public:
  using Scalar = S;

  LoraAdapter() = default;
  LoraAdapter(ConstMatrixRef<S> down, ConstMatrixRef<S> up, const LoraOptions& options = {}, ConstVectorRef<S> bias = {})
      : factors_("LoraAdapter", down, up), bias_(bias), options_(options), scale_(static_cast<S>(lora_scale(options, down.rows()))) {
    detail::check_bias("LoraAdapter", out(), bias.size());
    refresh();
  }

  Index rank() const { return factors_.down.rows(); }
  Index in() const { return factors_.down.cols(); }
  Index out() const { return factors_.up.cols(); }
  ConstMatrixRef<S> down() const { return factors_.down; }       ///< A [rank, in]
  auto up() const { return factors_.up.transpose(); }            ///< B [out, rank]
  ConstMatrixRef<S> down_rows() const { return factors_.down; }  ///< A, a row a component
  ConstMatrixRef<S> up_rows() const { return factors_.up; }      ///< Bᵀ, a row a component [rank, out]
  ConstVectorRef<S> gain() const { return gain_; }               ///< [rank] scale
  ConstVectorRef<S> bias() const { return bias_; }               ///< β [out] as trained, or empty
  /// [out] scale · β, what is added to y; empty without a bias or at scale 0.
  ///
  /// Throws   StateError if β changed after the last refresh()
  ConstVectorRef<S> scaled_bias() const {
    fresh_bias_.check("LoraAdapter", "bias", bias_);
    return {scaled_bias_.data(), scale_ == S(0) ? 0 : scaled_bias_.size()};
  }
  /// Makes an adapter of the same bits with down(), up() and bias().
  const LoraOptions& options() const { return options_; }

  S scale() const { return scale_; }
  /// Sets the scale of B A; 0 switches the adapter off, bit for bit.
  void set_scale(S scale) {
    if (!std::isfinite(scale)) [[unlikely]]
      raise<ShapeError>("pith::LoraAdapter::set_scale: scale is ", scale, ", expected a finite number");
    scale_ = scale;
    options_ = {.alpha = double(scale) * double((std::max<Index>)(rank(), 1))};
    refresh();
  }

  /// The numbers themselves, for training; refresh() after the bias has changed.
  MatrixRef<S> down() { return ++changes_, factors_.down; }
  auto up() { return ++changes_, factors_.up.transpose(); }
  MatrixRef<S> down_rows() { return down(); }
  MatrixRef<S> up_rows() { return ++changes_, factors_.up; }
  VectorRef<S> bias() { return bias_; }
  void refresh() {
    ++changes_;
    gain_ = Vector<S>::Constant(rank(), scale_);
    scaled_bias_ = scale_ * bias_;
    fresh_bias_.set(bias_);
  }
  std::uint64_t changes() const { return changes_; }

  /// Calls f(name, numbers, gradient) for each trained parameter.
  template <class F> void each_parameter(const LowRankGradients<S>& g, F&& f) {
    f("lora_A", down_rows(), ConstMatrixRef<S>(g.down_rows));
    f("lora_B", up_rows(), ConstMatrixRef<S>(g.up_rows));
    if (bias_.size() > 0) f("lora_B.bias", detail::as_row(bias_), detail::as_row(g.bias));
  }
  Index parameters() const { return factors_.size() + bias_.size(); }  ///< number of trained numbers
  std::size_t bytes() const { return static_cast<std::size_t>(parameters()) * sizeof(S); }

 private:
  detail::Factors<S> factors_;
  Vector<S> bias_, scaled_bias_, gain_;
  detail::Fresh<S> fresh_bias_;
  LoraOptions options_;
  S scale_ = 0;
  std::uint64_t changes_ = 0;
};

template <detail::EigenDense A, class... Rest> LoraAdapter(const A&, const Rest&...) -> LoraAdapter<detail::scalar_t<A>>;
template <detail::EigenDense A, class B> LoraAdapter(const A&, const B&, const LoraOptions&) -> LoraAdapter<detail::scalar_t<A>>;
template <detail::EigenDense A, class B, class V>
LoraAdapter(const A&, const B&, const LoraOptions&, const V&) -> LoraAdapter<detail::scalar_t<A>>;

/// LoRA around a linear layer: y = base(x) + (x Aᵀ) diag(gain) Bᵀ. It wraps any LinearOp and is one itself, so that adapters stack.
///
/// Shapes   x [tokens, in] · y [tokens, out]
/// Cost     2·tokens·rank·(in + out) flops in addition to the base
/// Heap     none in forward(x, y, ws) and backward(dy, dx, ws), given ws of workspace_bytes(tokens, workers)
/// Throws   ShapeError if the adapter does not fit the base; StateError if its λ or β changed after its last refresh()
/// Law      at rank 0, or if every gain is 0, y has the bits of the base; merged() is the same layer up to rounding
/// Paper    LoRA: arXiv:2106.09685
template <LinearOp Base, LowRankAdapter Adapter = LoraAdapter<typename Base::Scalar>>
requires std::same_as<typename Base::Scalar, typename Adapter::Scalar>
class LoraLinear {
 public:
  using Scalar = typename Base::Scalar;

  LoraLinear(Base base, Adapter adapter) : base_(std::move(base)), adapter_(std::move(adapter)) { check(); }

  void forward(ConstMatrixRef<Scalar> x, MatrixRef<Scalar> y, Workspace& ws) const {
    detail::check_ready(adapter_);
    base_.forward(x, y, ws);           // y = x W₀ᵀ + bias
    add_low_rank(x, adapter_, y, ws);  // y += (x Aᵀ) diag(gain) Bᵀ, gain = α/r
  }
  Matrix<Scalar> forward(ConstMatrixRef<Scalar> x) const { return detail::forward_alone(*this, x); }
  /// dx = dy W + (dy B) diag(gain) A: the gradient of the input. Shapes: dy [tokens, out] · dx [tokens, in]
  void backward(ConstMatrixRef<Scalar> dy, MatrixRef<Scalar> dx, Workspace& ws) const requires BackwardLinear<Base> {
    detail::check_ready(adapter_);
    base_.backward(dy, dx, ws);
    add_low_rank<Scalar>(dy, adapter_.up_rows(), adapter_.down_rows(), adapter_.gain(), dx, ws);
  }

  /// A new layer with the weight W + B diag(gain) A; each number is rounded once. This layer and its base stay unchanged.
  ///
  /// Cost     2·rank·in·out flops
  Linear<Scalar> merged() const requires DenseLinear<Base> { return detail::merged(*this); }
  /// Writes rows first_row … of merged()'s weight, before rounding.
  void merged_rows(Index first_row, MatrixRef<double> rows) const requires DenseLinear<Base> {
    detail::wide_rows(base_, first_row, rows);
    detail::add_delta_rows(adapter_, first_row, rows);
  }
  Vector<Scalar> merged_bias() const requires DenseLinear<Base> {
    return detail::bias_sum(detail::wide_bias(base_), detail::scaled_bias_of(adapter_));
  }

  void copy_weight(Index first_row, MatrixRef<Scalar> rows) const requires DenseLinear<Base> {
    detail::copy_merged_rows(*this, first_row, rows);
  }
  /// The bias of the base.
  ///
  /// Throws   StateError if the adapter has its own bias: only merged() holds the sum
  ConstVectorRef<Scalar> bias() const requires DenseLinear<Base> {
    if (detail::scaled_bias_of(adapter_).size() > 0) [[unlikely]]
      raise<StateError>("pith::LoraLinear::bias: the adapter adds a bias of its own; ask merged() for their sum");
    return base_.bias();
  }

  Index in() const { return base_.in(); }
  Index out() const { return base_.out(); }
  std::size_t bytes() const { return detail::bytes_of(base_) + adapter_bytes(); }
  std::size_t workspace_bytes(Index tokens, Index workers = 1) const {
    return (std::max)(detail::workspace_bytes_of(base_, tokens, workers),
                      low_rank_workspace_bytes<Scalar>(tokens, detail::most_rank(adapter_), workers));
  }

  const Base& base() const { return base_; }
  const Adapter& adapter() const { return adapter_; }
  Adapter& adapter() { return adapter_; }

 private:
  void check() const {
    check_shape("LoraLinear", "down", ConstMatrixRef<Scalar>(adapter_.down_rows()), adapter_.rank(), base_.in());
    check_shape("LoraLinear", "up", ConstMatrixRef<Scalar>(adapter_.up_rows()), adapter_.rank(), base_.out());
    check_shape("LoraLinear", "gain", ConstVectorRef<Scalar>(adapter_.gain()), adapter_.rank(), 1);
    detail::check_bias("LoraLinear", base_.out(), detail::scaled_bias_of(adapter_).size());
  }
  std::size_t adapter_bytes() const { return static_cast<std::size_t>(adapter_.rank() * (in() + out() + 1)) * sizeof(Scalar); }

  Base base_;
  Adapter adapter_;
};

}}  // namespace pith::v0
