#pragma once
// Products of whole matrices, away from the decode path: training, decompositions, changes read from files.

#include <type_traits>

#include <pith/core/view.hpp>

// They are functions because every further expression under a product of Eigen's (a cast, a transpose, a factor) costs compilers some
// twenty types, which is half a second.
namespace pith { inline namespace v0 { namespace detail {

/// to = a b, which do not overlap
template <class S>
void write_times(std::type_identity_t<ConstMatrixRef<S>> a, std::type_identity_t<ConstMatrixRef<S>> b,
                 std::type_identity_t<MatrixRef<S>> to) {
  to.noalias() = a * b;
}

/// to = a bᵀ, which do not overlap
template <class S>
void write_times_transposed(std::type_identity_t<ConstMatrixRef<S>> a, std::type_identity_t<ConstMatrixRef<S>> b,
                            std::type_identity_t<MatrixRef<S>> to) {
  to.noalias() = a * b.transpose();
}

/// a b
template <class S> Matrix<S> times(std::type_identity_t<ConstMatrixRef<S>> a, std::type_identity_t<ConstMatrixRef<S>> b) {
  Matrix<S> out(a.rows(), b.cols());
  write_times<S>(a, b, out);
  return out;
}

/// a bᵀ
template <class S> Matrix<S> times_transposed(std::type_identity_t<ConstMatrixRef<S>> a, std::type_identity_t<ConstMatrixRef<S>> b) {
  Matrix<S> out(a.rows(), b.rows());
  write_times_transposed<S>(a, b, out);
  return out;
}

/// to += aᵀ b
template <class S>
void add_transposed_times(std::type_identity_t<ConstMatrixRef<S>> a, std::type_identity_t<ConstMatrixRef<S>> b,
                          std::type_identity_t<MatrixRef<S>> to) {
  to.noalias() += a.transpose() * b;
}

/// aᵀ b
template <class S> Matrix<S> transposed_times(std::type_identity_t<ConstMatrixRef<S>> a, std::type_identity_t<ConstMatrixRef<S>> b) {
  Matrix<S> out(a.cols(), b.cols());
  out.setZero();
  add_transposed_times<S>(a, b, out);
  return out;
}

/// diag(factors) m
template <class S> Matrix<S> with_scaled_rows(Matrix<S> m, std::type_identity_t<ConstVectorRef<S>> factors) {
  for (Index r = 0; r < m.rows(); ++r) m.row(r) *= factors[r];
  return m;
}

/// m diag(factors)
template <class S> Matrix<S> with_scaled_columns(Matrix<S> m, std::type_identity_t<ConstVectorRef<S>> factors) {
  for (Index r = 0; r < m.rows(); ++r)
    for (Index c = 0; c < m.cols(); ++c) m(r, c) *= factors[c];
  return m;
}

template <class S> Matrix<double> in_double(std::type_identity_t<ConstMatrixRef<S>> m) { return m.template cast<double>(); }

}}}  // namespace pith::v0::detail
