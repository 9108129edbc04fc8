#include <cmath>
#include <limits>
#include <stdexcept>

#include <pith/core/executor.hpp>
#include <pith/nn/bf16.hpp>
#include <pith/nn/linear.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/products.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::near;
using pith_test::random_matrix;
using pith_test::same_bits;

namespace {

static_assert(DenseLinear<Bf16Linear>);

Matrix<float> through_bfloat16(const Matrix<float>& x) { return x.cast<bfloat16>().cast<float>(); }

/// A chain of multiply-adds in plain code; `tiny_as_zero`: one that takes numbers below the smallest normal float for 0.
float plain_chain(const Matrix<float>& x, Index t, const Matrix<float>& w, Index o, float bias, bool tiny_as_zero) {
  const auto taken = [&](float v) { return tiny_as_zero && std::abs(v) < std::numeric_limits<float>::min() ? std::copysign(0.f, v) : v; };
  float sum = bias;
  for (Index k = 0; k < x.cols(); ++k) {
    const float a = taken(x(t, k)), b = taken(w(o, k));
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__FP_FAST_FMAF)
    sum = taken(std::fma(a, b, taken(sum)));
#else
    const float product = a * b;
    sum = taken(product + taken(sum));
#endif
  }
  return sum;
}

}  // namespace

TEST_CASE("bf16: the bits of the exact layer over rounded activations, for any number of tokens", "[nn]") {
  ThreadPool pool(3);
  for (const Index out : {1, 32, 70, 300}) {
    for (const Index in : {2, 7, 260, 1100}) {
      const Matrix<bfloat16> w = random_matrix<bfloat16>(out, in, 1);
      const Vector<float> bias = out == 70 ? Vector<float>() : Vector<float>(random_matrix<float>(out, 1, 2));
      const Matrix<float> x = random_matrix<float>(140, in, 3);
      const Bf16Linear layer(w, bias);
      const Matrix<float> expected = PackedLinear<float, bfloat16>(w, bias).forward(through_bfloat16(x));
      INFO("out " << out << ", in " << in);
      for (const Index tokens : {1, 2, 12, 13, 31, 140}) {
        Matrix<float> wide = Matrix<float>::Constant(tokens, out + 2, 77.f), y(tokens, out);
        Workspace ws(layer.workspace_bytes(tokens)), parallel(layer.workspace_bytes(tokens, 3), pool);
        layer.forward(x.topRows(tokens), wide.leftCols(out), ws);
        CHECK(same_bits(wide.leftCols(out), expected.topRows(tokens)));
        CHECK((wide.rightCols(2).array() == 77.f).all());
        layer.forward(x.topRows(tokens), y, parallel);
        CHECK(same_bits(y, expected.topRows(tokens)));
        if (!detail::has_bf16_pairs || in % 2 != 0) continue;  // the processor's dot product, whether it is fast or not
        y.setZero();
        detail::bf16_product(x.topRows(tokens), layer.weight(), layer.bias(), y, parallel, detail::Bf16Kernel::pairs);
        CHECK(same_bits(y, expected.topRows(tokens)));
      }
    }
  }
}

TEST_CASE("bf16: numbers below the smallest normal float count the same for any number of tokens", "[nn]") {
  constexpr Index most = 40, out = 70;
  const float tiny = std::numeric_limits<float>::min();
  ThreadPool pool(3);
  bool counted = false;
  for (const Index in : {6, 7, 258}) {
    const bool as_zero = detail::bf16_pairs_pay() && in % 2 == 0;  // elsewhere they count
    // Exponents of all kinds: tiny inputs, tiny weights, and products and sums that are tiny though neither factor is.
    Matrix<float> x = random_matrix<float>(most, in, 1), w = random_matrix<float>(out, in, 2);
    for (Index t = 0; t < most; ++t)
      for (Index k = 0; k < in; ++k) x(t, k) *= t % 4 == 0 ? tiny : t % 4 == 1 ? std::ldexp(1.f, -100 + int(k % 90)) : 1e-19f;
    for (Index o = 0; o < out; ++o)
      for (Index k = 0; k < in; ++k) w(o, k) *= o % 3 == 0 ? 1e-19f : o % 3 == 1 ? tiny : 1e37f;
    const Matrix<bfloat16> narrow = w.cast<bfloat16>();
    const Matrix<float> wide = pith_test::widened(narrow), rounded = through_bfloat16(x);
    Vector<float> bias = Vector<float>(out);
    for (Index o = 0; o < out; ++o) bias(o) = o % 2 == 0 ? tiny / 4 : 3 * tiny;
    const Bf16Linear layer(narrow, bias);
    Matrix<float> expected(most, out);
    for (Index t = 0; t < most; ++t)
      for (Index o = 0; o < out; ++o) {
        expected(t, o) = plain_chain(rounded, t, wide, o, bias(o), as_zero);
        counted = counted || expected(t, o) != plain_chain(rounded, t, wide, o, bias(o), !as_zero);
      }
    INFO("in " << in);
    for (const Index tokens : {1, 2, 12, 13, 40}) {
      Matrix<float> y(tokens, out);
      Workspace ws(layer.workspace_bytes(tokens, 3), pool);
      layer.forward(x.topRows(tokens), y, ws);
      CHECK(same_bits(y, expected.topRows(tokens)));
    }
    Matrix<float> alone(1, out);
    for (Index t = 0; t < most; ++t) {
      Workspace ws(layer.workspace_bytes(1));
      layer.forward(x.row(t), alone, ws);
      CHECK(same_bits(alone, expected.row(t)));
    }
  }
  CHECK(counted);
  const volatile float half_of = tiny;
  CHECK(half_of / 2 > 0);  // tiny numbers count in everything else, on this thread and the others
  pool(3, [&](Index) {
    if (!(half_of / 2 > 0)) throw std::logic_error("tiny numbers are taken for 0 behind a product");
  });
}

TEST_CASE("bf16: activations are rounded to nearest, halves to even, and stay what they are beyond numbers", "[nn]") {
  constexpr float inf = std::numeric_limits<float>::infinity();
  Matrix<bfloat16> one = Matrix<bfloat16>::Constant(1, 1, bfloat16(1.f));
  const Bf16Linear layer(one);
  const auto rounded = [&](float v) { return layer.forward(Matrix<float>(Matrix<float>::Constant(1, 1, v)))(0, 0); };
  CHECK(rounded(1.f + 1.f / 512) == 1.f);  // below the half of a step
  CHECK(rounded(1.f + 1.f / 256) == 1.f);  // a half, to even
  CHECK(rounded(1.f + 3.f / 256) == 1.f + 1.f / 64);
  CHECK(rounded(-1.f - 1.01f / 256) == -1.f - 1.f / 128);
  CHECK(rounded(inf) == inf);
  CHECK(rounded(std::numeric_limits<float>::max()) == inf);
  CHECK(std::isnan(rounded(std::numeric_limits<float>::quiet_NaN())));
  Matrix<float> x = random_matrix<float>(20, 64, 1);
  x(3, 5) = std::numeric_limits<float>::quiet_NaN();
  const Matrix<float> y = Bf16Linear(random_matrix<bfloat16>(40, 64, 2)).forward(x);
  CHECK(y.row(3).array().isNaN().all());
  CHECK(!y.topRows(3).array().isNaN().any());
}

TEST_CASE("bf16: within the rounding of the activations", "[nn]") {
  const Matrix<bfloat16> w = random_matrix<bfloat16>(100, 512, 1);
  const Matrix<float> x = random_matrix<float>(30, 512, 2);
  const Matrix<double> expected = pith_test::times_transposed(x, w);
  const Matrix<double> bound =
      pith_test::times_transposed(pith_test::magnitudes(x), pith_test::magnitudes(w)) * (1. / 256 / 2 + 600 * 1.2e-7);
  const Bf16Linear layer(w);
  CHECK(near(layer.forward(x), expected, bound, 1));
  CHECK((pith_test::widened<double>(layer.forward(x)) - expected).norm() > 1e-4 * expected.norm());
  CHECK(same_bits(AnyLinear<float>(layer).forward(x), layer.forward(x)));
}

TEST_CASE("bf16: what does not fit is refused", "[nn]") {
  const Matrix<bfloat16> w = random_matrix<bfloat16>(8, 4, 1);
  const Bf16Linear layer(w);
  Matrix<float> y(1, 8);
  Workspace ws(layer.workspace_bytes(1));
  CHECK_THROWS_AS(Bf16Linear(w, Vector<float>(7)), ShapeError);
  CHECK_THROWS_WITH(layer.forward(Matrix<float>(1, 5), y, ws), contains("x is [1, 5], expected [*, 4]"));
  CHECK(Bf16Linear(Matrix<bfloat16>(8, 0)).forward(Matrix<float>(2, 0)).isZero());
}
