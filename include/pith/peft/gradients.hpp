#pragma once
// Gradients of a low-rank adapter.

#include <pith/core/check.hpp>
#include <pith/core/products.hpp>
#include <pith/core/view.hpp>
#include <pith/peft/low_rank.hpp>

namespace pith { inline namespace v0 {

/// The gradients of an adapter's parameters, which each_parameter() visits by name. Parameters that it does not have keep 0.
template <class S> struct LowRankGradients {
  Matrix<S> down_rows, up_rows;  ///< dA [rank, in], dBᵀ [rank, out]
  Vector<S> lambda;              ///< [rank] of AdaLoRA's and IncreLoRA's λ
  Vector<S> bias;                ///< [out] of β

  LowRankGradients() = default;
  LowRankGradients(Index rank, Index in, Index out) : down_rows(rank, in), up_rows(rank, out), lambda(rank), bias(out) { set_zero(); }
  void set_zero() {
    down_rows.setZero();
    up_rows.setZero();
    lambda.setZero();
    bias.setZero();
  }
};

/// Adds the gradients of one batch; the base is frozen.
///
///   t = x Aᵀ,   u = dy B,   dA += diag(gain) uᵀ x,   dBᵀ += diag(gain) tᵀ dy,   dλ += scale · Σ t ∘ u,   dβ += scale · Σ dy
///
/// Shapes   x [tokens, in] · dy [tokens, out] · of the gradients the first rank rows change
/// Cost     6·tokens·rank·(in + out) flops
/// Heap     t, u, both again, and Eigen's temporaries
/// Throws   ShapeError if the shapes disagree, before any gradient changes
template <LowRankAdapter A>
void low_rank_backward(ConstMatrixRef<typename A::Scalar> x, const A& adapter, ConstMatrixRef<typename A::Scalar> dy,
                       LowRankGradients<typename A::Scalar>& grads) {
  using S = typename A::Scalar;
  const ConstMatrixRef<S> down = adapter.down_rows(), up = adapter.up_rows();
  const ConstVectorRef<S> gain = adapter.gain();
  const Index rank = down.rows();
  check_shape("low_rank_backward", "x", x, any_extent, down.cols());
  check_shape("low_rank_backward", "dy", dy, x.rows(), up.cols());
  check_shape("low_rank_backward", "grads.down_rows", grads.down_rows, any_extent, down.cols());
  check_shape("low_rank_backward", "grads.up_rows", grads.up_rows, grads.down_rows.rows(), up.cols());
  check_shape("low_rank_backward", "grads.lambda", grads.lambda, grads.down_rows.rows(), 1);
  check_shape("low_rank_backward", "grads.bias", grads.bias, up.cols(), 1);
  if (rank > grads.down_rows.rows()) [[unlikely]]
    raise<ShapeError>("pith::low_rank_backward: gradients of ", grads.down_rows.rows(), " components for a rank of ", rank);
  const Matrix<S> t = detail::times_transposed<S>(x, down), u = detail::times_transposed<S>(dy, up);
  detail::add_transposed_times<S>(detail::with_scaled_columns<S>(u, gain), x, grads.down_rows.topRows(rank));
  detail::add_transposed_times<S>(detail::with_scaled_columns<S>(t, gain), dy, grads.up_rows.topRows(rank));
  if constexpr (requires { adapter.lambda(); }) grads.lambda.head(rank) += adapter.scale() * t.cwiseProduct(u).colwise().sum().transpose();
  if constexpr (requires { adapter.scaled_bias(), adapter.scale(); })
    if (adapter.scaled_bias().size() > 0) grads.bias += adapter.scale() * dy.colwise().sum().transpose();
}

namespace detail {
/// A vector as a matrix of one row.
template <class S> MatrixRef<S> as_row(Vector<S>& v) { return {v.data(), 1, v.size()}; }
template <class S> ConstMatrixRef<S> as_row(const Vector<S>& v) { return {v.data(), 1, v.size()}; }
}  // namespace detail

}}  // namespace pith::v0
