#include <cmath>
#include <cstdint>
#include <limits>

#include <pith/core/executor.hpp>
#include <pith/nn/int8.hpp>
#include <pith/nn/linear.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/products.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::magnitudes;
using pith_test::near;
using pith_test::random_matrix;
using pith_test::same_bits;
using pith_test::times_transposed;
using pith_test::with_bias;

namespace {

static_assert(DenseLinear<Int8Linear> && !BackwardLinear<Int8Linear>);

Matrix<float> decoded(const Int8Weight& weight) {
  Matrix<float> rows(weight.out(), weight.in());
  weight.copy_rows(0, rows);
  return rows;
}

/// scale · (the product with the codes, which has laws of its own) + bias, each rounded once.
Matrix<float> by_the_law(const Int8Weight& weight, const Matrix<float>& x, const Vector<float>& bias) {
  Matrix<float> codes(weight.out(), weight.in());
  weight.codes().copy_rows(0, codes);
  Matrix<float> y = Linear<float>(codes).forward(x);
  for (Index t = 0; t < y.rows(); ++t) {
    for (Index o = 0; o < y.cols(); ++o) {
      const volatile float scaled = y(t, o) * weight.scales()[o];  // rounded before the bias comes
      y(t, o) = bias.size() ? scaled + bias[o] : scaled;
    }
  }
  return y;
}

}  // namespace

TEMPLATE_TEST_CASE("int8: each weight is off by at most half its row's scale", "[nn]", float, bfloat16, half) {
  for (const double size : {1e-4, 1., 1e4}) {
    const Matrix<TestType> w = random_matrix<TestType>(70, 45, 1, size);
    const Matrix<float> wide = pith_test::widened(w);
    const Int8Weight weight(w);
    REQUIRE(weight.out() == 70);
    REQUIRE(weight.in() == 45);
    CHECK(weight.bytes() == std::size_t(96 * 45) + 70 * sizeof(float));
    const Matrix<float> back = decoded(weight);
    for (Index o = 0; o < 70; ++o) {
      const double largest = double(wide.row(o).cwiseAbs().maxCoeff());
      INFO("size " << size << ", row " << o);
      CHECK(near(back.row(o), wide.row(o), largest / 254 * (1 + 1e-5)));
      CHECK(std::abs(double(back.row(o).cwiseAbs().maxCoeff()) - largest) <= 1e-6 * largest);
    }
  }
}

TEST_CASE("int8: rows that scales cannot describe", "[nn]") {
  constexpr float tiny = std::numeric_limits<float>::denorm_min(), huge = std::numeric_limits<float>::max();
  Matrix<float> w(6, 3);
  w << 0, 0, 0,                                       //
      tiny, -tiny, 0,                                 //
      huge, -huge, huge / 2,                          //
      1, std::numeric_limits<float>::quiet_NaN(), 2,  //
      1, -std::numeric_limits<float>::infinity(), 2,  //
      -127, 126.6f, 0.5f;
  const Matrix<float> back = decoded(Int8Weight(w));
  CHECK((back.row(0).array() == 0).all());
  CHECK((back.row(1).array() == 0).all());
  CHECK(back.row(2).allFinite());
  CHECK(back(2, 0) >= huge * (1 - 1e-6f));
  CHECK(back(2, 1) == -back(2, 0));
  CHECK(back.row(3).array().isNaN().all());
  CHECK(back.row(4).array().isNaN().all());
  CHECK((back.row(5).array() == Eigen::Array3f(-127, 127, 1).transpose()).all());  // halves away from zero
  CHECK(Int8Weight(Matrix<float>(0, 3)).out() == 0);
  CHECK(Int8Weight(Matrix<float>(3, 0)).in() == 0);
}

TEST_CASE("int8: a sum over codes, scaled once, for any batch", "[nn]") {
  ThreadPool pool(3);
  for (const Index out : {1, 31, 64, 129, 300}) {
    for (const Index in : {1, 7, 260}) {
      for (const bool with_bias : {false, true}) {
        const Matrix<float> w = random_matrix<float>(out, in, 1), x = random_matrix<float>(50, in, 2);
        const Vector<float> bias = with_bias ? Vector<float>(random_matrix<float>(out, 1, 3)) : Vector<float>();
        const Int8Linear layer(w, bias);
        const Matrix<float> expected = by_the_law(layer.weight(), x, bias);
        INFO("out " << out << ", in " << in << ", bias " << with_bias);
        for (const Index tokens : {1, 2, 5, 13, 50}) {
          Matrix<float> wide = Matrix<float>::Constant(tokens, out + 3, 77.f), y(tokens, out);
          Workspace ws(layer.workspace_bytes(tokens)), parallel(layer.workspace_bytes(tokens, 3), pool);
          layer.forward(x.topRows(tokens), wide.middleCols(1, out), ws);
          CHECK(same_bits(wide.middleCols(1, out), expected.topRows(tokens)));
          CHECK((wide.col(0).array() == 77.f).all());
          CHECK((wide.rightCols(2).array() == 77.f).all());
          layer.forward(x.topRows(tokens), y, parallel);
          CHECK(same_bits(y, expected.topRows(tokens)));
        }
      }
    }
  }
}

TEST_CASE("int8: the layer is one over what it decodes to", "[nn]") {
  const Matrix<float> w = random_matrix<float>(100, 60, 1), x = random_matrix<float>(9, 60, 2);
  const Vector<float> bias = random_matrix<float>(100, 1, 3);
  const Int8Linear layer(w, bias);
  Matrix<float> shown(100, 60);
  layer.copy_weight(0, shown);
  const Matrix<double> expected = with_bias(times_transposed(x, shown), bias);
  const Matrix<double> bound = with_bias(pith_test::dot_bound<float>(x, shown), (bias.cwiseAbs() * 2.4e-7f).eval());
  CHECK(near(layer.forward(x), expected, bound, 1));
  CHECK(same_bits(AnyLinear<float>(layer).forward(x), layer.forward(x)));
  CHECK(AnyLinear<float>(layer).bytes() == layer.weight().bytes() + 100 * sizeof(float));

  // Against the weights as they were: each product is off by at most half a scale times |x|.
  Matrix<double> off = bound;
  const Matrix<double> sizes = magnitudes(x), weights = magnitudes(w);
  for (Index t = 0; t < x.rows(); ++t)
    for (Index o = 0; o < w.rows(); ++o) off(t, o) += sizes.row(t).sum() * weights.row(o).maxCoeff() / 254 * (1 + 1e-5);
  CHECK(near(layer.forward(x), with_bias(times_transposed(x, w), bias), off, 1));
}

TEST_CASE("int8: no inputs leave the bias", "[nn]") {
  const Vector<float> bias = random_matrix<float>(40, 1, 1);
  const Matrix<float> y = Int8Linear(Matrix<float>(40, 0), bias).forward(Matrix<float>(2, 0));
  CHECK(same_bits(y.row(0), bias.transpose()));
  CHECK(same_bits(y.row(1), bias.transpose()));
}

TEST_CASE("int8: what does not fit is refused", "[nn]") {
  const Matrix<float> w = random_matrix<float>(8, 4, 1);
  const Int8Linear layer(w);
  Matrix<float> y(1, 8);
  Workspace ws(layer.workspace_bytes(1));
  CHECK_THROWS_AS(Int8Linear(w, Vector<float>(7)), ShapeError);
  CHECK_THROWS_WITH(layer.forward(Matrix<float>(1, 5), y, ws), contains("x is [1, 5], expected [*, 4]"));
  CHECK_THROWS_AS(layer.weight().copy_rows(5, MatrixRef<float>(y)), ShapeError);
}
