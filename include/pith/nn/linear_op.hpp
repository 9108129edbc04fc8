#pragma once
// The concept of a linear layer, y = x Wᵀ + bias, which all other layers and adapters take.

#include <concepts>
#include <cstddef>
#include <string_view>

#include <pith/core/check.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>

namespace pith { inline namespace v0 {

/// A linear layer: forward() computes y = x Wᵀ + bias. Optional members: backward(dy, dx, ws), workspace_bytes(tokens, workers), bytes().
template <class L>
concept LinearOp = requires(const L l, ConstMatrixRef<typename L::Scalar> x, MatrixRef<typename L::Scalar> y, Workspace& ws) {
  { l.in() } -> std::convertible_to<Index>;
  { l.out() } -> std::convertible_to<Index>;
  l.forward(x, y, ws);
};

/// A linear layer whose weight and bias can be read: for merging adapters, for DoRA's norm and for writing files.
template <class L>
concept DenseLinear = LinearOp<L> && requires(const L l, Index first_row, MatrixRef<typename L::Scalar> rows) {
  l.copy_weight(first_row, rows);
  { l.bias() } -> std::convertible_to<ConstVectorRef<typename L::Scalar>>;
};

/// A linear layer that gradients pass through: dx = dy W.
template <class L>
concept BackwardLinear = LinearOp<L> &&
    requires(const L l, ConstMatrixRef<typename L::Scalar> dy, MatrixRef<typename L::Scalar> dx, Workspace& ws) {
  l.backward(dy, dx, ws);
};

namespace detail {

template <LinearOp L> std::size_t workspace_bytes_of(const L& l, Index tokens, Index workers) {
  if constexpr (requires { l.workspace_bytes(tokens, workers); }) {
    return l.workspace_bytes(tokens, workers);
  } else {
    return 0;
  }
}

template <LinearOp L> std::size_t bytes_of(const L& l) {
  if constexpr (requires { l.bytes(); }) {
    return l.bytes();
  } else {
    return 0;
  }
}

/// The short form of every layer's forward(): allocates the result and a workspace.
template <class L> Matrix<typename L::Scalar> forward_alone(const L& l, ConstMatrixRef<typename L::Scalar> x) {
  Workspace ws(workspace_bytes_of(l, x.rows(), 1));
  Matrix<typename L::Scalar> y(x.rows(), l.out());
  l.forward(x, y, ws);
  return y;
}

inline void check_bias(std::string_view where, Index out, Index bias) {
  if (bias != 0 && bias != out) [[unlikely]]
    raise<ShapeError>("pith::", where, ": bias has ", bias, " entries, expected ", out, " or none: one for each row of the weight");
}

/// Rows first_row … of a weight, widened.
template <class T> void copy_rows(std::string_view where, ConstMatrixRef<T> weight, Index first_row, MatrixRef<arithmetic_t<T>> rows) {
  check_shape(text(where, "::copy_weight"), "rows", rows, any_extent, weight.cols());
  if (first_row < 0 || first_row > weight.rows() - rows.rows()) [[unlikely]]
    raise<ShapeError>("pith::", where, "::copy_weight: rows ", first_row, " to ", first_row + rows.rows(), " of a weight with ",
                      weight.rows(), " rows: ask for rows within it");
  for (Index r = 0; r < rows.rows(); ++r) {
    const T* from = weight.data() + (first_row + r) * weight.outerStride();
    for (Index k = 0; k < weight.cols(); ++k) rows(r, k) = widen(from[k]);
  }
}

}  // namespace detail

}}  // namespace pith::v0
