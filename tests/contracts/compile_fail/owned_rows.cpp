// Each mistake has a type of its own, since a compiler refuses a type once.
// expect: pith takes [tokens, features] row-major: pass x.transpose(), or evaluate first
// expect GNU: Embedding<S>::Embedding(const M&)
// expect GNU: PromptTuning<S>::PromptTuning(const M&)
// expect GNU: PrefixEncoder<S>::PrefixEncoder(const M&,
// expect Clang: ::Embedding<Eigen::Matrix<float, -1, -1
// expect Clang: ::PromptTuning<Eigen::Matrix<double, -1, -1
// expect Clang: ::PrefixEncoder<Eigen::Matrix<float, 4, 4
#include <pith/nn.hpp>
#include <pith/peft.hpp>

template <class... A> void use(const A&...) {}

void mistakes(const Eigen::MatrixXf& columns, const Eigen::MatrixXd& wide_columns, const Eigen::Matrix4f& four_columns,
              const pith::Matrix<float>& rows, const pith::Linear<float>& linear) {
#ifndef PITH_CONTROL
  use(pith::Embedding<float>(columns));
  use(pith::PromptTuning<double>(wide_columns));
  use(pith::PrefixEncoder<float>(four_columns, linear, linear), rows);
#else
  const pith::Matrix<pith::bfloat16> narrow = rows.cast<pith::bfloat16>();
  use(pith::Embedding<float>(rows), pith::Embedding(rows), pith::Embedding<float>(narrow), pith::Embedding(pith::Matrix<float>(2 * rows)));
  use(pith::Embedding<float>(pith::ConstMatrixRef<float>(columns.transpose())));
  use(pith::PromptTuning<double>(wide_columns.transpose()), pith::PromptTuning<float>(rows), pith::PromptTuning<float>(2 * rows));
  use(pith::PrefixEncoder<float>(four_columns.transpose(), linear, linear), pith::PrefixEncoder<float>(rows, linear, linear));
#endif
}
