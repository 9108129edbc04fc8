#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include <pith/core/executor.hpp>
#include <pith/nn/matmul.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/products.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::near;
using pith_test::random_matrix;
using pith_test::same_bits;
using pith_test::widened;

namespace {

/// The law itself: one chain per output, from the bias, in ascending order of k.
template <class S> Matrix<S> chains(const Matrix<S>& x, const Matrix<S>& w, const Vector<S>& bias) {
  Matrix<S> y(x.rows(), w.rows());
  for (Index t = 0; t < x.rows(); ++t) {
    for (Index c = 0; c < w.rows(); ++c) {
      S sum = bias.size() ? bias[c] : S(0);
      for (Index k = 0; k < x.cols(); ++k) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
        sum = std::fma(x(t, k), w(c, k), sum);
#else
        const volatile S product = x(t, k) * w(c, k);
        sum = sum + product;
#endif
      }
      y(t, c) = sum;
    }
  }
  return y;
}

template <class S> Matrix<S> garbage(Index rows, Index cols) {
  return Matrix<S>::Constant(rows, cols, std::numeric_limits<S>::quiet_NaN());
}

/// Into columns 3 … of a wider matrix, x from columns 2 … of one: nothing beside them may change.
template <class T, class W>
Matrix<arithmetic_t<T>> strided_product(const Matrix<arithmetic_t<T>>& x, const W& w, const Vector<arithmetic_t<T>>& bias, Index out,
                                        Workspace& ws) {
  using S = arithmetic_t<T>;
  Matrix<S> wide_x = garbage<S>(x.rows(), x.cols() + 5);
  wide_x.middleCols(2, x.cols()) = x;
  Matrix<S> wide_y = Matrix<S>::Constant(x.rows(), out + 4, S(77));
  matmul<T>(wide_x.middleCols(2, x.cols()), w, bias, wide_y.middleCols(3, out), ws);
  CHECK((wide_y.leftCols(3).array() == S(77)).all());
  CHECK((wide_y.rightCols(1).array() == S(77)).all());
  return wide_y.middleCols(3, out);
}

template <class T> void check_shape_of_product(Index tokens, Index out, Index in, bool with_bias) {
  using S = arithmetic_t<T>;
  INFO("tokens " << tokens << ", out " << out << ", in " << in << ", bias " << with_bias);
  const Matrix<T> w = random_matrix<T>(out, in, 1);
  const Matrix<S> x = random_matrix<S>(tokens, in, 2), wide = widened(w);
  const Vector<S> bias = with_bias ? Vector<S>(random_matrix<S>(out, 1, 3)) : Vector<S>();
  const PackedWeight<T> packed(w);
  Workspace ws(matmul_workspace_bytes<T>(tokens, in));

  Matrix<S> from_panels = garbage<S>(tokens, out), from_map = garbage<S>(tokens, out);
  matmul(x, packed, bias, from_panels, ws);
  matmul(x, ConstMatrixRef<T>(w), bias, from_map, ws);
  CHECK(ws.used() == 0);

  Matrix<double> reference = pith_test::times_transposed(x, wide), bound = pith_test::dot_bound<S>(x, wide);
  if (with_bias) {
    reference = pith_test::with_bias(reference, bias);
    bound = pith_test::with_bias(bound, (static_cast<S>(in + 2) * std::numeric_limits<S>::epsilon() * bias.cwiseAbs()).eval());
  }
  CHECK(near(from_panels, reference, bound, 2));
  CHECK(same_bits(from_panels, chains<S>(x, wide, bias)));
  CHECK(same_bits(from_map, from_panels));
  CHECK(same_bits(strided_product<T>(x, packed, bias, out, ws), from_panels));

  Matrix<T> wide_w = Matrix<T>::Constant(out, in + 9, T(55));
  wide_w.middleCols(4, in) = w;
  CHECK(same_bits(strided_product<T>(x, ConstMatrixRef<T>(wide_w.middleCols(4, in)), bias, out, ws), from_panels));
}

}  // namespace

TEMPLATE_TEST_CASE("matmul: panels and maps give the bits of one chain per output", "[nn]", float, double, bfloat16, half) {
  using T = TestType;
  for (Index tokens = 1; tokens <= 7; ++tokens) check_shape_of_product<T>(tokens, 70, 37, tokens % 2 == 0);
  for (const Index out : {1, 31, 32, 33, 160}) check_shape_of_product<T>(3, out, 19, true);
  for (const Index in : {1, 2, 8, 191, 192, 193}) check_shape_of_product<T>(13, 40, in, false);
}

TEST_CASE("matmul: beyond every block there is", "[nn]") {
  check_shape_of_product<float>(25, 70, 1100, true);  // copies of x, several depths
  check_shape_of_product<float>(131, 33, 530, true);  // two passes over the weights
  check_shape_of_product<bfloat16>(131, 33, 530, false);
  check_shape_of_product<double>(26, 33, 600, true);
  check_shape_of_product<float>(1, 300, 1100, true);  // more than L2 holds
  check_shape_of_product<bfloat16>(2, 300, 1100, true);
}

TEMPLATE_TEST_CASE("matmul: workers change no bit and no size is too large for its workspace", "[nn]", float, bfloat16) {
  using T = TestType;
  ThreadPool two(2), four(4);
  for (const Index out : {40, 150}) {
    const Matrix<T> w = random_matrix<T>(out, 600, 1);
    const PackedWeight<T> packed(w);
    for (const Index tokens : {1, 3, 4, 16, 24, 129}) {
      const Matrix<float> x = random_matrix<float>(tokens, 600, 2);
      Matrix<float> alone(tokens, out);
      Workspace serial_ws(matmul_workspace_bytes<T>(tokens, 600));
      matmul(x, packed, {}, alone, serial_ws);
      for (ThreadPool* pool : {&two, &four}) {
        INFO("out " << out << ", tokens " << tokens << ", workers " << pool->size());
        Workspace ws(matmul_workspace_bytes<T>(tokens, 600, pool->size()), *pool);
        Matrix<float> y = garbage<float>(tokens, out), mapped = y;
        matmul(x, packed, {}, y, ws);
        matmul(x, ConstMatrixRef<T>(w), {}, mapped, ws);
        CHECK(same_bits(y, alone));
        CHECK(same_bits(mapped, alone));
      }
    }
  }
}

TEST_CASE("matmul: what is not finite stays in its own row and column", "[nn]") {
  const Matrix<float> clean_w = random_matrix<float>(40, 30, 1), clean_x = random_matrix<float>(5, 30, 2);
  Matrix<float> w = clean_w, x = clean_x, y(5, 40), clean(5, 40);
  w(39, 29) = std::numeric_limits<float>::infinity();
  x(2, 7) = std::numeric_limits<float>::quiet_NaN();
  Workspace ws(matmul_workspace_bytes<float>(5, 30));
  matmul(clean_x, PackedWeight(clean_w), {}, clean, ws);
  matmul(x, PackedWeight(w), {}, y, ws);
  for (Index t = 0; t < 5; ++t) {
    for (Index c = 0; c < 40; ++c) {
      if (t == 2) {
        CHECK(std::isnan(y(t, c)));
      } else if (c == 39) {
        CHECK(std::isinf(y(t, c)));
      } else {
        CHECK(y(t, c) == clean(t, c));
      }
    }
  }
}

TEMPLATE_TEST_CASE("matmul_transposed: the product from the other side", "[nn]", float, double, bfloat16) {
  using T = TestType;
  using S = arithmetic_t<T>;
  ThreadPool pool(2);
  for (const Index tokens : {1, 5, 30}) {
    for (const Index in : {1, 33, 100}) {
      INFO("tokens " << tokens << ", in " << in);
      const Matrix<T> w = random_matrix<T>(210, in, 1);
      const Matrix<S> dy = random_matrix<S>(tokens, 210, 2), wide = widened(w), back = wide.transpose();
      Workspace ws(matmul_workspace_bytes<T>(tokens, 210, pool.size()), pool);
      Matrix<S> dx = garbage<S>(tokens, in);
      matmul_transposed(dy, ConstMatrixRef<T>(w), dx, ws);
      CHECK(near(dx, pith_test::times(dy, wide), pith_test::dot_bound<S>(dy, back), 2));
      CHECK(same_bits(dx, chains<S>(dy, back, {})));
    }
  }
}

TEST_CASE("matmul: no tokens, no outputs, no inputs", "[nn]") {
  const Matrix<float> w = random_matrix<float>(5, 4, 1);
  Workspace none;
  Matrix<float> y0(0, 5), no_columns(3, 0), y(2, 5);
  matmul(Matrix<float>(0, 4), PackedWeight(w), {}, y0, none);
  matmul(Matrix<float>(0, 4), ConstMatrixRef<float>(w), {}, y0, none);
  matmul(random_matrix<float>(3, 4, 2), ConstMatrixRef<float>(Matrix<float>(0, 4)), {}, no_columns, none);
  const Vector<float> bias = random_matrix<float>(5, 1, 3);
  y.setConstant(9);
  matmul(Matrix<float>(2, 0), PackedWeight(Matrix<float>(5, 0)), bias, y, none);
  CHECK((y.row(0).transpose() == bias));
  CHECK((y.row(1).transpose() == bias));
  matmul(Matrix<float>(2, 0), ConstMatrixRef<float>(Matrix<float>(5, 0)), {}, y, none);
  CHECK((y.array() == 0).all());
}

TEST_CASE("matmul: refuses before it writes", "[nn]") {
  const PackedWeight packed(random_matrix<float>(6, 4, 1));
  const Matrix<float> w = random_matrix<float>(6, 4, 1), x = random_matrix<float>(5, 4, 2);
  const ConstMatrixRef<float> map(w);
  Workspace ws(matmul_workspace_bytes<float>(5, 6)), none;
  Matrix<float> y = Matrix<float>::Constant(5, 6, 3.f), flipped(6, 5), short_y(4, 6), x5 = random_matrix<float>(5, 5, 3);
  const Vector<float> bias = Vector<float>::Zero(5);
  CHECK_THROWS_AS(matmul(x5, packed, {}, y, ws), ShapeError);
  CHECK_THROWS_WITH(matmul(x5, map, {}, y, ws), contains("pith::matmul: x is [5, 5], expected [*, 4]"));
  CHECK_THROWS_WITH(matmul(x, packed, {}, flipped, ws), contains("y.transpose()"));
  CHECK_THROWS_AS(matmul(x, map, {}, short_y, ws), ShapeError);
  CHECK_THROWS_WITH(matmul(x, packed, bias, y, ws), contains("bias has 5 entries, expected 6"));
  CHECK_THROWS_AS(matmul(x, map, bias, y, ws), ShapeError);
  CHECK_THROWS_AS(matmul(x, map, {}, y, none), CapacityError);
  CHECK_THROWS_AS(matmul_transposed(x, map, y, ws), ShapeError);
  CHECK_THROWS_WITH(matmul_transposed(random_matrix<float>(5, 6, 4), map, y, ws),
                    contains("pith::matmul_transposed: y is [5, 6], expected [5, 4]"));
  CHECK((y.array() == 3.f).all());
}

TEST_CASE("matmul_workspace_bytes: monotone in tokens", "[nn]") {
  std::size_t before = 0;
  for (Index tokens = 0; tokens < 300; ++tokens) {
    const std::size_t bytes = matmul_workspace_bytes<float>(tokens, 64, 3);
    CHECK(bytes >= before);
    before = bytes;
  }
}
