#include <cmath>

#include <pith/nn/norm.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::random_matrix;

TEMPLATE_TEST_CASE("norms equal their formulas, eps inside the root", "[nn]", float, double) {
  using S = TestType;
  const Index n = GENERATE(1, 2, 15, 64, 129);
  const Matrix<S> x = random_matrix<S>(4, n, 1, 3);
  const Vector<S> w = random_matrix<S>(n, 1, 2), b = random_matrix<S>(n, 1, 3);
  const S eps = S(0.01);
  Eigen::MatrixXd rms(4, n), layer(4, n);
  for (Index t = 0; t < 4; ++t) {
    double mean = 0, squares = 0, variance = 0;
    for (Index i = 0; i < n; ++i) mean += double(x(t, i)) / double(n), squares += double(x(t, i)) * double(x(t, i)) / double(n);
    for (Index i = 0; i < n; ++i) variance += (double(x(t, i)) - mean) * (double(x(t, i)) - mean) / double(n);
    for (Index i = 0; i < n; ++i) {
      rms(t, i) = double(w[i]) * double(x(t, i)) / std::sqrt(squares + double(eps));
      layer(t, i) = double(w[i]) * (double(x(t, i)) - mean) / std::sqrt(variance + double(eps)) + double(b[i]);
    }
  }
  // n additions and a handful of roundings of numbers of size 3; the mean's error is stretched by 1 / sqrt(eps) where all entries agree.
  const double bound = (double(n) + 8) * double(std::numeric_limits<S>::epsilon()) * 3 / std::sqrt(double(eps));
  CHECK(pith_test::near(RmsNorm<S>(w, eps).forward(x), rms, bound));
  CHECK(pith_test::near(LayerNorm<S>(w, b, eps).forward(x), layer, bound));
}

TEST_CASE("a row's norm does not depend on other rows, and may be written in place", "[nn]") {
  Matrix<float> x = random_matrix<float>(9, 50, 1);
  const RmsNorm<float> norm(random_matrix<float>(45, 1, 2));
  const Matrix<float> all = norm.forward(x.middleCols(2, 45));
  for (Index t = 0; t < 9; ++t) CHECK(pith_test::same_bits(norm.forward(x.block(t, 2, 1, 45)), Matrix<float>(all.row(t))));
  norm.forward(x.middleCols(2, 45), x.middleCols(2, 45));
  CHECK(pith_test::same_bits(Matrix<float>(x.middleCols(2, 45)), all));
}

TEST_CASE("norms refuse what has no meaning", "[nn]") {
  const RmsNorm<float> norm(Vector<float>::Ones(4));
  Matrix<float> x(2, 5), y(2, 4);
  CHECK_THROWS_AS(norm.forward(x, y), ShapeError);
  CHECK_THROWS_AS(norm.forward(y, x), ShapeError);
  CHECK_THROWS_AS(RmsNorm<float>(Vector<float>()), ShapeError);
  CHECK_THROWS_AS(RmsNorm<float>(Vector<float>::Ones(4), -1.f), ShapeError);
  CHECK_THROWS_AS(LayerNorm<float>(Vector<float>::Ones(4), Vector<float>::Ones(3)), ShapeError);
}

TEST_CASE("a norm of either kind is the norm it holds", "[nn]") {
  const Matrix<float> x = pith_test::random_matrix<float>(3, 21, 1);
  const Vector<float> w = Vector<float>(pith_test::random_matrix<float>(21, 1, 2).col(0));
  const AnyNorm<float> rms(NormKind::rms, w, 1e-5f), layer(NormKind::layer, w, 1e-5f), none;
  Matrix<float> y(3, 21);
  rms.forward(x, y);
  CHECK(y == RmsNorm<float>(w, 1e-5f).forward(x));
  layer.forward(x, y);
  CHECK(y == LayerNorm<float>(w, {}, 1e-5f).forward(x));
  CHECK((rms.kind() == NormKind::rms && layer.kind() == NormKind::layer && none.size() == 0));
  for (const AnyNorm<float>* norm : {&rms, &layer}) CHECK((norm->weight() == w && norm->eps() == 1e-5f && norm->bytes() == 84));
  CHECK_THROWS_AS(AnyNorm<float>(NormKind::layer, Vector<float>(), 1e-5f), ShapeError);
  CHECK_THROWS_AS(AnyNorm<float>(NormKind::rms, w, -1.f), ShapeError);
}
