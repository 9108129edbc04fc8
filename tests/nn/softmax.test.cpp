#include <cmath>
#include <limits>

#include <pith/nn/softmax.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::random_matrix;

namespace {

template <class M> Eigen::MatrixXd reference(const M& x, double n) {
  Eigen::MatrixXd y(x.rows(), x.cols());
  for (Index r = 0; r < x.rows(); ++r) {
    double most = n > 0 ? 0 : -std::numeric_limits<double>::infinity(), sum = 0;
    for (Index c = 0; c < x.cols(); ++c) most = std::max(most, double(x(r, c)));
    for (Index c = 0; c < x.cols(); ++c) sum += y(r, c) = std::exp(double(x(r, c)) - most);
    y.row(r) /= sum + (n > 0 ? n * std::exp(-most) : 0);
  }
  return y;
}

}  // namespace

TEMPLATE_TEST_CASE("softmax and softmax_n equal their formulas", "[nn]", float, double) {
  using S = TestType;
  constexpr S inf = std::numeric_limits<S>::infinity();
  const Index cols = GENERATE(1, 3, 8, 17, 200);
  Matrix<S> x = random_matrix<S>(5, cols, 1, 30);
  x(0, 0) = S(1e4);
  if (cols > 2) x(1, 2) = -inf;
  const double bound = (double(cols) + 64) * double(std::numeric_limits<S>::epsilon());  // arguments of up to 60 are rounded before exp
  Matrix<S> y(5, cols), in_place = x;
  softmax(ConstMatrixRef<S>(x), y);
  CHECK(pith_test::near(y, reference(x, 0), bound));
  softmax(MatrixRef<S>(in_place));
  CHECK(pith_test::same_bits(in_place, y));
  CHECK(pith_test::same_bits(softmax_rows(x), y));
  for (const S n : {S(0.5), S(3)}) {
    in_place = x;
    softmax_n(MatrixRef<S>(in_place), n);
    CHECK(pith_test::near(in_place, reference(x, double(n)), bound));
  }
  in_place = x;
  softmax_n(MatrixRef<S>(in_place), S(0));
  CHECK(pith_test::same_bits(in_place, y));
}

TEST_CASE("softmax at its ends", "[nn]") {
  constexpr float inf = std::numeric_limits<float>::infinity();
  Matrix<float> none = Matrix<float>::Constant(2, 11, -inf);
  softmax(MatrixRef<float>(none));
  CHECK((none.array() == 0).all());  // nothing to choose from is nothing, not NaN
  Matrix<float> odd = Matrix<float>::Zero(1, 11);
  odd(0, 7) = std::numeric_limits<float>::quiet_NaN();
  softmax(MatrixRef<float>(odd));
  CHECK(std::isnan(odd.sum()));
  Matrix<float> x(1, 3);
  CHECK_THROWS_AS(softmax_n(MatrixRef<float>(x), -1.f), ShapeError);
  CHECK_THROWS_AS(softmax(ConstMatrixRef<float>(x), Matrix<float>(1, 4).block(0, 0, 1, 4)), ShapeError);
}

TEST_CASE("-inf entries at the end of a row change no bit of the others", "[nn]") {
  const Matrix<float> x = random_matrix<float>(1, 21, 1, 10);
  for (Index more = 1; more < 40; ++more) {
    Matrix<float> longer = Matrix<float>::Constant(1, 21 + more, -std::numeric_limits<float>::infinity());
    longer.leftCols(21) = x;
    CHECK(pith_test::same_bits(Matrix<float>(softmax_rows(longer).leftCols(21)), softmax_rows(x)));
  }
}
