#pragma once
// DoRA: weight-decomposed LoRA, which learns magnitude and direction separately.

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/linear.hpp>
#include <pith/peft/detail/dense.hpp>
#include <pith/peft/detail/fresh.hpp>
#include <pith/peft/lora.hpp>
#include <pith/peft/low_rank.hpp>

namespace pith { inline namespace v0 {

/// The norm of each row, n = ‖W + ΔW‖ with ΔW = B diag(gain) A: DoRA's divisor and its initial magnitude.
///
/// Shapes   returns [out]
/// Cost     2·rank·in·out flops, in double; 64 rows of the weight are held at the same time
/// Throws   ShapeError if the adapter does not fit
template <DenseLinear L, LowRankFactors A>
requires std::same_as<typename L::Scalar, typename A::Scalar> Vector<typename L::Scalar> dora_norm(const L& layer, const A& adapter) {
  using S = typename L::Scalar;
  check_shape("dora_norm", "down", ConstMatrixRef<factor_t<A>>(adapter.down_rows()), any_extent, layer.in());
  check_shape("dora_norm", "up", ConstMatrixRef<factor_t<A>>(adapter.up_rows()), any_extent, layer.out());
  Vector<S> norm(layer.out());
  Matrix<double> rows((std::min)(layer.out(), detail::merged_at_once), layer.in());
  for (Index r = 0; r < layer.out(); r += detail::merged_at_once) {
    const Index n = (std::min)(detail::merged_at_once, layer.out() - r);
    detail::wide_rows(layer, r, rows.topRows(n));
    detail::add_delta_rows(adapter, r, rows.topRows(n));
    norm.segment(r, n) = rows.topRows(n).rowwise().norm().template cast<S>();
  }
  return norm;
}

/// DoRA around a linear layer: scales each row of W + ΔW to a learned magnitude m.
///
///   W' = m · (W + ΔW) / ‖W + ΔW‖ row by row,   y = bias + (x (W + ΔW)ᵀ) diag(m / n),   n = ‖W + ΔW‖
///
/// The constructor and refresh() compute n, which depends on the weight, the adapter and its scale only. A row with n = 0 stays as it is.
/// A changed adapter or magnitude without a refresh() is refused. Two changes are not detected: writes after a refresh() through a view
/// taken before it, and writes to the base by its owner.
///
/// Shapes   magnitude m [out]; empty: n, so that the layer starts as plain LoRA · x [tokens, in] · y [tokens, out]
/// Heap     none in forward(x, y, ws) and backward(dy, dx, ws), given ws of workspace_bytes(tokens, workers)
/// Throws   ShapeError if the parts do not fit, UnsupportedError if the adapter has a bias, which DoRA excludes; StateError from members
///          that use n if the adapter or the magnitude changed after n was computed
/// Law      where m = n, the bits of LoraLinear; over a base that has its own adapters, the result depends on their order
/// Paper    DoRA: arXiv:2402.09353
template <DenseLinear Base, LowRankAdapter Adapter = LoraAdapter<typename Base::Scalar>>
requires std::same_as<typename Base::Scalar, typename Adapter::Scalar>
class DoraLinear {
 public:
  using Scalar = typename Base::Scalar;

  DoraLinear(Base base, Adapter adapter, Vector<Scalar> magnitude = {})
      : base_(std::move(base)), adapter_(std::move(adapter)), magnitude_(std::move(magnitude)), bias_(detail::wide_bias(base_)) {
    if (magnitude_.size() > 0) check_shape("DoraLinear", "magnitude", magnitude_, base_.out(), 1);
    if (detail::scaled_bias_of(adapter_).size() > 0) [[unlikely]]
      raise<UnsupportedError>("pith::DoraLinear: the adapter has a bias, which DoRA has no place for: leave it out");
    refresh();
  }

  void forward(ConstMatrixRef<Scalar> x, MatrixRef<Scalar> y, Workspace& ws) const {
    check_fresh();
    base_.forward(x, y, ws);
    add_low_rank(x, adapter_, y, ws);       // y = x (W + ΔW)ᵀ + bias
    for (Index t = 0; t < y.rows(); ++t) {  // y += (m / n - 1) ∘ (y - bias)
      Scalar* row = y.data() + t * y.outerStride();
      const Scalar* excess = excess_.data();
      if (bias_.size() > 0) {
        for (Index c = 0; c < y.cols(); ++c) row[c] += excess[c] * (row[c] - bias_[c]);
      } else {
        for (Index c = 0; c < y.cols(); ++c) row[c] += excess[c] * row[c];
      }
    }
  }
  Matrix<Scalar> forward(ConstMatrixRef<Scalar> x) const { return detail::forward_alone(*this, x); }
  /// dx = dy diag(m / n) (W + ΔW), with n held constant. Shapes: dy [tokens, out] · dx [tokens, in]
  void backward(ConstMatrixRef<Scalar> dy, MatrixRef<Scalar> dx, Workspace& ws) const requires BackwardLinear<Base> {
    check_fresh();
    check_shape("DoraLinear", "dy", dy, any_extent, out());
    const Workspace::Scope scope(ws);
    const MatrixRef<Scalar> scaled = ws.matrix<Scalar>(dy.rows(), dy.cols());
    scale_rows(dy, scaled);
    base_.backward(scaled, dx, ws);
    add_low_rank<Scalar>(scaled, adapter_.up_rows(), adapter_.down_rows(), adapter_.gain(), dx, ws);
  }

  /// scaled = dy diag(m / n): the gradient of x (W + ΔW)ᵀ. Shapes: dy, scaled [tokens, out]
  void scale_rows(ConstMatrixRef<Scalar> dy, MatrixRef<Scalar> scaled) const {
    check_fresh();
    check_shape("DoraLinear::scale_rows", "dy", dy, any_extent, out());
    check_shape("DoraLinear::scale_rows", "scaled", scaled, dy.rows(), out());
    for (Index t = 0; t < dy.rows(); ++t)  // row by row: for a whole replicated expression Eigen would allocate a row on the heap
      scaled.row(t) = (dy.row(t).array() * (excess_.array() + Scalar(1)).transpose()).matrix();
  }

  /// Recomputes n, from `weight` if given: the norm then ignores the adapters between `weight` and this layer, as PEFT does in a list of
  /// adapters.
  void refresh() { refresh(base_); }
  template <DenseLinear Weight> void refresh(const Weight& weight) {
    norm_ = dora_norm(weight, adapter_);
    if (magnitude_.size() == 0) magnitude_ = norm_;
    excess_ = (norm_.array() == Scalar(0)).select(Scalar(0), magnitude_.array() / norm_.array() - Scalar(1)).matrix();
    fresh_gain_.set(adapter_.gain());
    changes_ = detail::changes_of(adapter_);
    fresh_ = true;
  }

  /// A new layer with the weight diag(m / n) (W + ΔW); each number is rounded once. This layer and its base stay unchanged.
  Linear<Scalar> merged() const { return detail::merged(*this); }
  void merged_rows(Index first_row, MatrixRef<double> rows) const {
    check_fresh();
    detail::wide_rows(base_, first_row, rows);
    detail::add_delta_rows(adapter_, first_row, rows);
    for (Index r = 0; r < rows.rows(); ++r)
      if (const double n = double(norm_[first_row + r]); n != 0) rows.row(r) *= double(magnitude_[first_row + r]) / n;
  }
  void copy_weight(Index first_row, MatrixRef<Scalar> rows) const { detail::copy_merged_rows(*this, first_row, rows); }
  ConstVectorRef<Scalar> bias() const { return bias_; }

  Index in() const { return base_.in(); }
  Index out() const { return base_.out(); }
  std::size_t workspace_bytes(Index tokens, Index workers = 1) const {
    return Workspace::bytes_for<Scalar>(tokens, out()) +
           (std::max)(detail::workspace_bytes_of(base_, tokens, workers),
                      low_rank_workspace_bytes<Scalar>(tokens, detail::most_rank(adapter_), workers));
  }

  const Base& base() const { return base_; }
  const Adapter& adapter() const { return adapter_; }
  const Vector<Scalar>& magnitude() const { return magnitude_; }
  const Vector<Scalar>& norm() const {
    check_fresh();
    return norm_;
  }
  /// For writing; call refresh() before the next forward().
  Adapter& adapter() {
    fresh_ = false;
    return adapter_;
  }
  VectorRef<Scalar> magnitude() {
    fresh_ = false;
    return magnitude_;
  }

 private:
  void check_fresh() const {
    if (!fresh_ || changes_ != detail::changes_of(adapter_)) [[unlikely]]
      raise<StateError>(
          "pith::DoraLinear: the adapter or the magnitude may have changed after the norms were computed: call refresh() first");
    fresh_gain_.check("DoraLinear", "the adapter's gain", adapter_.gain());
  }

  Base base_;
  Adapter adapter_;
  Vector<Scalar> magnitude_, bias_, norm_, excess_;  // excess: m / n - 1
  detail::Fresh<Scalar> fresh_gain_;
  std::uint64_t changes_ = 0;
  bool fresh_ = false;
};

template <DenseLinear Base, LowRankAdapter Adapter> DoraLinear(Base, Adapter) -> DoraLinear<Base, Adapter>;
template <DenseLinear Base, LowRankAdapter Adapter, class M> DoraLinear(Base, Adapter, const M&) -> DoraLinear<Base, Adapter>;

}}  // namespace pith::v0
