#pragma once

#include <cmath>
#include <stdexcept>

#include <pith/core/types.hpp>

#include "support/random_matrix.hpp"

// Products of matrices, in plain loops over doubles. An expression under a product (a cast, a transpose, a factor) makes the compiler
// instantiate some twenty types of Eigen, which takes it a second.
namespace pith_test {

inline pith::Matrix<double> transposed(const pith::Matrix<double>& m) {
  pith::Matrix<double> out(m.cols(), m.rows());
  for (pith::Index r = 0; r < m.rows(); ++r)
    for (pith::Index c = 0; c < m.cols(); ++c) out(c, r) = m(r, c);
  return out;
}

inline pith::Matrix<double> plain_product(const pith::Matrix<double>& a, const pith::Matrix<double>& b) {
  if (a.cols() != b.rows()) throw std::logic_error("a product of matrices that do not fit");
  pith::Matrix<double> out(a.rows(), b.cols());
  out.setZero();
  for (pith::Index i = 0; i < a.rows(); ++i)
    for (pith::Index k = 0; k < a.cols(); ++k)
      for (pith::Index j = 0; j < b.cols(); ++j) out(i, j) += a(i, k) * b(k, j);
  return out;
}

/// a b
template <class A, class B> pith::Matrix<double> times(const A& a, const B& b) {
  return plain_product(widened<double>(a), widened<double>(b));
}
/// a bᵀ
template <class A, class B> pith::Matrix<double> times_transposed(const A& a, const B& b) {
  return plain_product(widened<double>(a), transposed(widened<double>(b)));
}
/// aᵀ b
template <class A, class B> pith::Matrix<double> transposed_times(const A& a, const B& b) {
  return plain_product(transposed(widened<double>(a)), widened<double>(b));
}
/// m diag(factors)
template <class M, class V> pith::Matrix<double> with_scaled_columns(const M& m, const V& factors) {
  pith::Matrix<double> out = widened<double>(m);
  for (pith::Index r = 0; r < out.rows(); ++r)
    for (pith::Index c = 0; c < out.cols(); ++c) out(r, c) *= static_cast<double>(factors[c]);
  return out;
}
/// m, and the vector added to each row.
template <class M, class V> pith::Matrix<double> with_bias(const M& m, const V& bias) {
  pith::Matrix<double> out = widened<double>(m);
  for (pith::Index r = 0; r < out.rows(); ++r)
    for (pith::Index c = 0; c < out.cols(); ++c) out(r, c) += static_cast<double>(bias[c]);
  return out;
}
/// |m|, each entry
template <class M> pith::Matrix<double> magnitudes(const M& m) {
  pith::Matrix<double> out = widened<double>(m);
  for (pith::Index i = 0; i < out.size(); ++i) out.data()[i] = std::abs(out.data()[i]);
  return out;
}

}  // namespace pith_test
