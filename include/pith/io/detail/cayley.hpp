#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// The Cayley transform (I + Q)⁻¹ (I - Q) of a skew matrix Q, by elimination with pivots: I + Q is never singular.
template <class T> Matrix<T> cayley(const Matrix<T>& q) {
  const Index n = q.rows();
  Matrix<T> left = Matrix<T>::Identity(n, n) + q, right = Matrix<T>::Identity(n, n) - q;
  for (Index k = 0; k < n; ++k) {
    Index pivot = k;
    for (Index i = k + 1; i < n; ++i)
      if (std::abs(left(i, k)) > std::abs(left(pivot, k))) pivot = i;
    if (pivot != k) left.row(k).swap(left.row(pivot)), right.row(k).swap(right.row(pivot));
    for (Index i = k + 1; i < n; ++i) {
      const T factor = left(i, k) / left(k, k);
      left.row(i) -= factor * left.row(k);
      right.row(i) -= factor * right.row(k);
    }
  }
  for (Index k = n - 1; k >= 0; --k) {
    for (Index i = k + 1; i < n; ++i) right.row(k) -= left(k, i) * right.row(i);
    right.row(k) /= left(k, k);
  }
  return right;
}

}}}  // namespace pith::v0::detail
