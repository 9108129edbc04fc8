#pragma once
// softmax, exp(x) / Σ exp(x), and softmax_n, exp(x) / (n + Σ exp(x)).

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include <pith/core/check.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/view.hpp>

namespace pith { inline namespace v0 {

namespace detail {

/// out = exp(x - m) / (n exp(-m) + Σ exp(x - m)) with m = max(x, 0 if n > 0), for one row; out may be x. Returns log(n + Σ exp(x)).
///
/// It returns -inf for a row without entries above -inf. Number i is added in lane i % width, and lanes past the end add 0: entries of -inf
/// at the end change no bit.
template <class S> S softmax_row(const S* x, S* out, Index size, S n = S(0)) {
  using V = Simd<S>;
  using Packet = typename V::Packet;
  constexpr S lowest = -std::numeric_limits<S>::infinity();
  Packet most = V::broadcast(n > S(0) ? S(0) : lowest);  // the n extra keys have logit 0
  Index i = 0;
  for (; i + V::width <= size; i += V::width) most = V::larger(most, V::load(x + i));
  if (i < size) most = V::larger(most, V::load_part(x + i, size - i, lowest));
  const S max = V::largest(most);
  if (max == lowest) [[unlikely]] {
    bool empty = true;  // the maximum may have dropped a NaN
    for (i = 0; i < size; ++i) empty = empty && x[i] == lowest;
    std::fill_n(out, size, empty ? S(0) : std::numeric_limits<S>::quiet_NaN());
    return empty ? lowest : std::numeric_limits<S>::quiet_NaN();
  }
  const Packet shift = V::broadcast(max);
  Packet sum = V::zero();
  for (i = 0; i + V::width <= size; i += V::width) {
    const Packet e = V::exp_down(V::sub(V::load(x + i), shift));
    V::store(out + i, e);
    sum = V::add(sum, e);
  }
  if (i < size) {
    const Packet e = V::exp_down(V::sub(V::load_part(x + i, size - i, lowest), shift));
    V::store_part(out + i, size - i, e);
    sum = V::add(sum, e);
  }
  const S total = V::sum(sum) + (n > S(0) ? n * std::exp(-max) : S(0));
  const Packet scale = V::broadcast(S(1) / total);
  map_packets(static_cast<const S*>(out), out, size, [=](Packet e) { return V::mul(e, scale); });
  return max + std::log(total);
}

}  // namespace detail

/// softmax(x) = exp(x) / Σ exp(x) of each row, in place. Entries of -inf become 0; a row of -inf alone becomes zeros, never NaN.
///
/// Shapes   x [rows, cols], any row stride
/// Heap     none
/// Law      a row's result depends on that row alone, and -inf entries at its end change no bit of the others
template <class S> void softmax(MatrixRef<S> x) {
  for (Index r = 0; r < x.rows(); ++r) detail::softmax_row<S>(x.data() + r * x.outerStride(), x.data() + r * x.outerStride(), x.cols());
}

/// softmax of each row, into another matrix.
///
/// Shapes   x, out [rows, cols]
/// Throws   ShapeError if they disagree
template <class S> void softmax(ConstMatrixRef<S> x, std::type_identity_t<MatrixRef<S>> out) {
  check_shape("softmax", "out", out, x.rows(), x.cols());
  for (Index r = 0; r < x.rows(); ++r) detail::softmax_row<S>(x.data() + r * x.outerStride(), out.data() + r * out.outerStride(), x.cols());
}

/// softmax_n(x) = exp(x) / (n + Σ exp(x)) of each row, in place: as if there were n more keys of logit 0 and value 0.
///
/// Shapes   x [rows, cols]
/// Throws   ShapeError if n is negative, infinite or NaN
template <class S> void softmax_n(MatrixRef<S> x, std::type_identity_t<S> n) {
  if (!(n >= S(0)) || n > (std::numeric_limits<S>::max)()) [[unlikely]]
    raise<ShapeError>("pith::softmax_n: n is ", n, ", expected a finite number >= 0");
  for (Index r = 0; r < x.rows(); ++r) detail::softmax_row<S>(x.data() + r * x.outerStride(), x.data() + r * x.outerStride(), x.cols(), n);
}

/// softmax of each row of any expression, as a new matrix.
///
/// Heap     the result
template <class D> Matrix<typename D::Scalar> softmax_rows(const Eigen::MatrixBase<D>& x) {
  Matrix<typename D::Scalar> out = x;
  softmax(MatrixRef<typename D::Scalar>(out));
  return out;
}

}}  // namespace pith::v0
