// Compiled with -Ofast -fno-finite-math-only, for the baseline of the processor family and for this processor: softmax, attention, norms,
// activations and rounded weights are what they are without, and infinities and NaN keep their meaning.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include <pith/attention.hpp>
#include <pith/kv.hpp>
#include <pith/nn.hpp>

#include "fast_math/reference.hpp"
#include "support/catch.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::Numbers;
using pith_test::random_matrix;

namespace {

template <class M> Numbers numbers(const M& m) {
  Numbers out;
  for (Index i = 0; i < m.rows(); ++i)
    for (Index j = 0; j < m.cols(); ++j) out.push_back(double(m(i, j)));
  return out;
}

template <class S> void check_near(const Numbers& ours, const Numbers& theirs, double relative, double absolute = 0) {
  REQUIRE(ours.size() == theirs.size());
  for (std::size_t i = 0; i < ours.size(); ++i) {
    CAPTURE(i, ours[i], theirs[i]);
    CHECK(std::abs(ours[i] - theirs[i]) <= relative * std::abs(theirs[i]) + absolute);
  }
}

/// Scores by hand: the first of all kept, the second gone, the third not a number, then falling.
struct Sentinels {
  Index keep = 3;
  Index budget() const { return keep; }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    for (Index r = 0; r < rows.size(); ++r) out[r] = S(-rows.positions[static_cast<std::size_t>(r)]);
    out[0] = S(-pith_test::infinity());
    out[1] = S(pith_test::not_a_number());
    out[rows.size() - 1] = S(pith_test::infinity());
  }
};

}  // namespace

TEMPLATE_TEST_CASE("fast math: softmax is that of double, far tails included", "[fast_math]", float, double) {
  using S = TestType;
  // A few units of e^x (Eigen's double loses some hundred where its reduction is regrouped), and the rounding of its argument.
  const double eps = double(std::numeric_limits<S>::epsilon()), units = std::is_same_v<S, float> ? 10 : 500;
  for (Index n : {1, 2, 3, 7, 8, 31, 100})
    for (double scale : {.1, 5., 20.}) {
      Matrix<S> x = S(scale) * random_matrix<S>(1, n, static_cast<unsigned>(n)), y = x, with_one = x;
      const double bound = eps * (units + double(x.maxCoeff() - x.minCoeff()));
      softmax(MatrixRef<S>(y));
      check_near<S>(numbers(y), pith_test::softmax_reference(numbers(x)), bound, 1e-30);
      softmax_n(MatrixRef<S>(with_one), S(1));
      check_near<S>(numbers(with_one), pith_test::softmax_reference(numbers(x), 1), bound, 1e-30);
    }
}

TEST_CASE("fast math: attention and norms are those of double", "[fast_math]") {
  const Index d = 64, rows = 131;
  const Matrix<float> q = 4 * random_matrix<float>(1, d, 1), k = random_matrix<float>(rows, d, 2), v = random_matrix<float>(rows, d, 3);
  Matrix<float> out(1, d);
  KvCache<> cache({1, 1, d}, {}, {.max_chunk = rows, .max_tokens = rows});
  cache.append(k, v);
  Workspace ws(attend_workspace_bytes<float>(cache.shape(), rows, 1, 1));
  attend(q, cache.view(), out, ws);
  check_near<float>(numbers(out), pith_test::attention_reference(numbers(q), numbers(k), numbers(v), static_cast<std::size_t>(rows)), 0,
                    2e-6);

  const Matrix<float> x = random_matrix<float>(1, 77, 4);
  const Vector<float> weight = random_matrix<float>(77, 1, 5), bias = random_matrix<float>(77, 1, 6);
  check_near<float>(numbers(RmsNorm<float>(weight, 1e-5f).forward(x)),
                    pith_test::rms_norm_reference(numbers(x), numbers(weight), double(1e-5f)), 2e-6);
  check_near<float>(numbers(LayerNorm<float>(weight, bias, 1e-5f).forward(x)),
                    pith_test::layer_norm_reference(numbers(x), numbers(weight), numbers(bias), double(1e-5f)), 2e-6, 2e-6);
}

TEMPLATE_TEST_CASE("fast math: activations are those of double", "[fast_math]", float, double) {
  using S = TestType;
  // What is lost near 0 by 1 + e^-z or 1 + tanh counts in units of z; e^-z loses its argument's rounding.
  const double eps = 20 * double(std::numeric_limits<S>::epsilon());
  for (double at = -30; at <= 30; at += .37) {
    const S z = S(at);
    const double x = double(z), bound = eps * std::abs(x) * (1 + std::abs(x));
    CAPTURE(x);
    CHECK(std::abs(double(Silu{}(z)) - pith_test::silu_reference(x)) <= bound);
    CHECK(std::abs(double(Gelu{}(z)) - pith_test::gelu_reference(x)) <= bound);
    CHECK(std::abs(double(GeluTanh{}(z)) - pith_test::gelu_tanh_reference(x)) <= bound);
    CHECK(std::abs(double(QuickGelu{}(z)) - pith_test::quick_gelu_reference(x)) <= bound);
  }
}

TEST_CASE("fast math: weights are rounded to the nearest code", "[fast_math]") {
  const Index in = 64, out = 37;
  const Matrix<float> weight = random_matrix<float>(out, in, 1), one = Matrix<float>::Identity(in, in);  // a product reads each code alone
  // Rounding to the nearest loses at most half a step and a quarter on average; rounding down a whole one and a half.
  const auto check = [&](const Matrix<float>& codes, double most, auto&& step) {
    double lost = 0, steps = 0;
    for (Index o = 0; o < out; ++o)
      for (Index k = 0; k < in; ++k) {
        CAPTURE(o, k);
        const double error = std::abs(double(codes(k, o)) - double(weight(o, k)));
        CHECK(error <= most * step(o, k));
        lost += error;
        steps += step(o, k);
      }
    CHECK(lost < .3 * steps);
  };
  for (const Compute compute : {Compute::exact, Compute::int15})
    check(Int8Linear(weight, {}, compute).forward(one), .50001,
          [&](Index o, Index) { return double(weight.row(o).cwiseAbs().maxCoeff()) / 127; });
  // The largest of a group may have code -8; then its opposite is as much as a step beyond code 7.
  check(Int4Linear(weight).forward(one), 1.00001,
        [&](Index o, Index k) { return double(weight.row(o).segment(k / 32 * 32, 32).cwiseAbs().maxCoeff()) / 7; });
}

TEST_CASE("fast math: infinities and NaN keep their meaning", "[fast_math]") {
  const float inf = float(pith_test::infinity()), nan = float(pith_test::not_a_number());
  Matrix<float> x(3, 5);
  x << 1, -inf, 2, -inf, 3, -inf, -inf, -inf, -inf, -inf, 1, nan, 2, 3, 4;
  const Numbers first = pith_test::softmax_reference({1, 2, 3});
  softmax(MatrixRef<float>(x));
  check_near<float>(numbers(x.row(0)), {first[0], 0, first[1], 0, first[2]}, 8e-7);
  check_near<float>(numbers(x.row(1)), {0, 0, 0, 0, 0}, 0);
  for (Index i = 0; i < 5; ++i) CHECK(pith_test::is_nan(double(x(2, i))));

  KvCache cache({1, 1, 2}, Sentinels{}, {.max_chunk = 8});
  const Matrix<float> rows = random_matrix<float>(8, 2, 1);
  cache.append(rows, rows);
  cache.evict();
  std::vector<Position> kept(cache.positions(0).begin(), cache.positions(0).end());
  std::sort(kept.begin(), kept.end());
  CHECK(kept == std::vector<Position>{2, 3, 7});

  CHECK_THROWS_AS(softmax_n(MatrixRef<float>(x), nan), ShapeError);
  CHECK_THROWS_AS(softmax_n(MatrixRef<float>(x), inf), ShapeError);
  CHECK_THROWS_AS(RmsNorm<float>(Vector<float>::Ones(3), nan), ShapeError);
  CHECK_THROWS_AS(Rope<float>({.head_dim = 4, .theta = double(nan)}), ShapeError);
}
