// expect: pith takes [tokens, features] row-major: pass x.transpose(), or evaluate first
// expect: pith: the scalar differs; cast and evaluate first, pith never converts a matrix silently
// expect: pith: this is an expression without memory of its own; evaluate it into a pith::Matrix first
// expect: pith: a vector is expected here
// expect: pith writes here: pass a matrix, map or block that is not const
// expect: pith writes here: a temporary would be lost
// expect: pith takes [tokens, features] row-major: swap_layout() of the tensor, or evaluate first
// expect: pith: the tensor's scalar differs; cast and evaluate first
#include <unsupported/Eigen/CXX11/Tensor>

#include <pith/core.hpp>

float sum(pith::ConstMatrixRef<float> x) { return x.sum(); }
float sum_vector(pith::ConstVectorRef<float> x) { return x.sum(); }
void fill(pith::MatrixRef<float> x) { x.setOnes(); }

void mistakes(const pith::Matrix<float>& x, const pith::Matrix<double>& precise, const Eigen::MatrixXf& column_major,
              const Eigen::Tensor<float, 2>& tensor, const Eigen::Tensor<double, 2, Eigen::RowMajor>& precise_tensor) {
#ifndef PITH_CONTROL
  sum(column_major);
  sum(precise);
  sum(2 * x);
  sum_vector(x);
  fill(x);
  fill(pith::Matrix<float>(2, 2));
  sum(tensor);
  sum(precise_tensor);
#else
  sum(column_major.transpose());
  sum(precise.cast<float>().eval());
  sum((2 * x).eval());
  sum_vector(x.row(0));
  pith::Matrix<float> copy = x;
  fill(copy);
  fill(copy.topRows(1));
  sum(Eigen::Tensor<float, 2, Eigen::RowMajor>(tensor.swap_layout()));
  sum(Eigen::Tensor<float, 2, Eigen::RowMajor>(precise_tensor.cast<float>()));
#endif
}
