// expect: pith takes [tokens, features] row-major: pass x.transpose(), or evaluate first
// expect GNU: use of deleted function
// expect Clang: call to deleted constructor
#include <pith/nn.hpp>
#include <pith/peft.hpp>

template <class... A> void use(const A&...) {}

void mistakes(const Eigen::MatrixXf& column_major, const pith::Matrix<float>& weight, const pith::Vector<float>& bias) {
#ifndef PITH_CONTROL
  use(pith::Linear<float>(column_major));
  use(pith::Linear<float>(column_major, bias));
  use(pith::LinearView<float>(pith::Matrix<float>(weight)));
  use(pith::LinearView<float>(weight, pith::Vector<float>(bias)));
  use(pith::LowRankView<float>(pith::LoraAdapter<float>(weight, weight)));
#else
  const Eigen::MatrixXf in_columns = column_major.transpose();
  const pith::LoraAdapter<float> adapter(weight, weight);
  use(pith::Linear<float>(in_columns.transpose()), pith::Linear<float>(weight, bias), pith::Linear<float>(2 * weight));
  use(pith::LinearView<float>(weight), pith::LinearView(weight, bias), pith::LinearView<float>(weight.topRows(2)));
  use(pith::LowRankView<float>(adapter));
#endif
}
