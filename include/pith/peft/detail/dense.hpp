#pragma once

#include <algorithm>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/nn/linear.hpp>
#include <pith/nn/linear_op.hpp>
#include <pith/peft/low_rank.hpp>

// Merging adapters into weights, in double: each number is rounded once, for any number of stacked adapters.
namespace pith { inline namespace v0 { namespace detail {

inline constexpr Index merged_at_once = 64;  // rows held in double at the same time

template <class L>
concept MergesRows = requires(const L& l, MatrixRef<double> rows) {
  l.merged_rows(Index{0}, rows);
};

template <DenseLinear L> void wide_rows(const L& layer, Index first_row, MatrixRef<double> rows) {
  if constexpr (MergesRows<L>) {
    layer.merged_rows(first_row, rows);
  } else {
    Matrix<typename L::Scalar> narrow(rows.rows(), rows.cols());
    layer.copy_weight(first_row, narrow);
    rows = narrow.template cast<double>();
  }
}

/// rows += rows first_row … of ΔW = B diag(gain) A
template <LowRankFactors A> void add_delta_rows(const A& adapter, Index first_row, MatrixRef<double> rows) {
  using S = typename A::Scalar;
  const ConstMatrixRef<factor_t<A>> down = adapter.down_rows(), up = adapter.up_rows();
  const ConstVectorRef<S> gain = adapter.gain();
  for (Index r = 0; r < down.rows(); ++r) {
    if (gain[r] == S(0)) continue;
    for (Index i = 0; i < rows.rows(); ++i)
      rows.row(i) += double(gain[r]) * double(widen(up(r, first_row + i))) * down.row(r).template cast<double>();
  }
}

template <DenseLinear L> Vector<typename L::Scalar> wide_bias(const L& layer) {
  if constexpr (requires { layer.merged_bias(); }) {
    return layer.merged_bias();
  } else {
    return ConstVectorRef<typename L::Scalar>(layer.bias());
  }
}

template <LowRankAdapter A> ConstVectorRef<typename A::Scalar> scaled_bias_of(const A& adapter) {
  if constexpr (requires { adapter.scaled_bias(); }) {
    return adapter.scaled_bias();
  } else {
    return {};
  }
}

/// The largest rank that the adapter can have without being rebuilt.
template <LowRankAdapter A> Index most_rank(const A& adapter) {
  if constexpr (requires { adapter.max_rank(); }) {
    return adapter.max_rank();
  } else {
    return adapter.rank();
  }
}

template <class S> Vector<S> bias_sum(Vector<S> base, ConstVectorRef<S> more) {
  if (base.size() == 0) return more;
  if (more.size() > 0) base += more;
  return base;
}

template <class L> void copy_merged_rows(const L& layer, Index first_row, MatrixRef<typename L::Scalar> rows) {
  check_shape("copy_weight", "rows", rows, any_extent, layer.in());
  if (first_row < 0 || first_row > layer.out() - rows.rows()) [[unlikely]]
    raise<ShapeError>("pith::copy_weight: rows ", first_row, " to ", first_row + rows.rows(), " of a weight with ", layer.out(),
                      " rows: ask for rows within it");
  Matrix<double> wide((std::min)(rows.rows(), merged_at_once), rows.cols());
  for (Index r = 0; r < rows.rows(); r += merged_at_once) {
    const Index n = (std::min)(merged_at_once, rows.rows() - r);
    layer.merged_rows(first_row + r, wide.topRows(n));
    rows.middleRows(r, n) = wide.topRows(n).template cast<typename L::Scalar>();
  }
}

template <class L> Linear<typename L::Scalar> merged(const L& layer) {
  Matrix<typename L::Scalar> weight(layer.out(), layer.in());
  copy_merged_rows(layer, 0, MatrixRef<typename L::Scalar>(weight));
  return Linear<typename L::Scalar>(std::move(weight), wide_bias(layer));
}

}}}  // namespace pith::v0::detail
