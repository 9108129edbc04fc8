#include <cmath>
#include <limits>
#include <type_traits>

#include <pith/nn/activation.hpp>

#include "support/catch.hpp"
#include "support/random_matrix.hpp"

using namespace pith;

namespace {

double exact(Silu, double z) { return z / (1 + std::exp(-z)); }
double exact(Gelu, double z) { return 0.5 * z * std::erfc(-z / std::sqrt(2.0)); }
double exact(GeluTanh, double z) { return 0.5 * z * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (z + 0.044715 * z * z * z))); }
double exact(Tanh, double z) { return std::tanh(z); }
double exact(Relu, double z) { return z > 0 ? z : 0; }

template <class A, class S> void check(const A& activation) {
  constexpr double eps = double(std::numeric_limits<S>::epsilon());
  for (int i = -4000; i <= 4000; ++i) {
    const S z = S(i) / S(200);
    INFO("z = " << z);
    // A few roundings of an argument of up to 20 go through an exponential: 32 units of the larger of value and argument.
    CHECK(std::abs(double(activation(z)) - exact(A{}, double(z))) <=
          32 * eps * std::max(std::abs(exact(A{}, double(z))), std::abs(double(z))));
    const double h = 1e-5, slope = (exact(A{}, double(z) + h) - exact(A{}, double(z) - h)) / (2 * h);
    if (i != 0) CHECK(std::abs(double(activation.derivative(z)) - slope) <= 1e-8 + 64 * eps * (1 + std::abs(double(z))));
  }
  constexpr S inf = std::numeric_limits<S>::infinity();
  CHECK(activation(S(0)) == S(0));
  CHECK(std::isnan(activation(std::numeric_limits<S>::quiet_NaN())));
  if constexpr (std::is_same_v<A, Tanh>) {
    CHECK(activation(inf) == S(1));
    CHECK(activation(-inf) == S(-1));
    return;
  }
  CHECK(activation(S(2000)) == S(2000));
  CHECK(std::abs(activation(S(-2000))) == S(0));
  CHECK(activation(inf) == inf);
}

}  // namespace

TEMPLATE_TEST_CASE("activations are their formulas, and derivatives their slopes", "[nn]", float, double) {
  check<Silu, TestType>({});
  check<Gelu, TestType>({});
  check<GeluTanh, TestType>({});
  check<Relu, TestType>({});
  check<Tanh, TestType>({});
}

TEMPLATE_TEST_CASE("an activation's bits do not depend on place or company", "[nn]", Silu, Gelu, GeluTanh, Relu, Tanh) {
  Matrix<float> all = pith_test::random_matrix<float>(3, 37, 1, 8), out = all;
  activate(TestType{}, MatrixRef<float>(out));
  for (Index i = 0; i < all.size(); ++i) {
    const float alone = TestType{}(all.data()[i]);
    CHECK(pith_test::same_bits(Vector<float>{{alone}}, Vector<float>{{out.data()[i]}}));
  }
}

TEST_CASE("silu_mul gates, in place or not", "[nn]") {
  Matrix<float> gate = pith_test::random_matrix<float>(2, 19, 1, 5), out(2, 19), wrong(2, 18);
  const Matrix<float> up = pith_test::random_matrix<float>(2, 19, 2);
  silu_mul(ConstMatrixRef<float>(gate), up, out);
  for (Index i = 0; i < gate.size(); ++i) CHECK(out.data()[i] == Silu{}(gate.data()[i]) * up.data()[i]);
  silu_mul(ConstMatrixRef<float>(gate), up, gate);
  CHECK(gate == out);
  CHECK_THROWS_AS(silu_mul(ConstMatrixRef<float>(gate), up, wrong), ShapeError);
}
