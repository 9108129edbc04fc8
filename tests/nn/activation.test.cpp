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
double exact(QuickGelu, double z) { return z / (1 + std::exp(-1.702 * z)); }
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
  check<QuickGelu, TestType>({});
  check<Relu, TestType>({});
  check<Tanh, TestType>({});
}

TEMPLATE_TEST_CASE("an activation's bits do not depend on place or batch", "[nn]", Silu, Gelu, GeluTanh, QuickGelu, Relu, Tanh) {
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

TEMPLATE_TEST_CASE("every gate is its activation times the other half", "[nn]", float, double) {
  using S = TestType;
  const Matrix<S> gate = pith_test::random_matrix<S>(2, 19, 1, 5), up = pith_test::random_matrix<S>(2, 19, 2);
  Matrix<S> out(2, 19), place = gate, wrong(2, 18);
  for (const GateActivation kind : {GateActivation::silu, GateActivation::gelu_tanh, GateActivation::gelu}) {
    gate_mul(kind, ConstMatrixRef<S>(gate), up, out);
    for (Index i = 0; i < gate.size(); ++i) {
      const S z = gate.data()[i];
      CHECK(out.data()[i] == (kind == GateActivation::silu   ? Silu{}(z)
                              : kind == GateActivation::gelu ? Gelu{}(z)
                                                             : GeluTanh{}(z)) *
                                 up.data()[i]);
    }
    place = gate;
    gate_mul(kind, ConstMatrixRef<S>(place), up, place);
    CHECK(place == out);
    CHECK_THROWS_AS(gate_mul(kind, ConstMatrixRef<S>(gate), up, wrong), ShapeError);
  }
}

TEMPLATE_TEST_CASE("a soft cap is cap tanh(z / cap), place by place", "[nn]", float, double) {
  using S = TestType;
  const S inf = std::numeric_limits<S>::infinity();
  const Matrix<S> before = pith_test::random_matrix<S>(3, 21, 4, 40);
  for (const S cap : {S(0.5), S(30)}) {
    Matrix<S> x = before;
    soft_cap(cap, MatrixRef<S>(x));
    for (Index i = 0; i < x.size(); ++i) {
      const double expected = double(cap) * std::tanh(double(before.data()[i]) / double(cap));
      CHECK(std::abs(double(x.data()[i]) - expected) <= 4 * double(std::numeric_limits<S>::epsilon()) * double(cap));
    }
    Matrix<S> ends{{0, inf, -inf, std::numeric_limits<S>::quiet_NaN(), before(1, 3)}};
    soft_cap(cap, MatrixRef<S>(ends));
    CHECK((ends(0, 0) == 0 && ends(0, 1) == cap && ends(0, 2) == -cap && std::isnan(ends(0, 3)) && ends(0, 4) == x(1, 3)));
  }
  Matrix<S> x = before;
  for (const S cap : {S(0), S(-1), inf}) CHECK_THROWS_AS(soft_cap(cap, MatrixRef<S>(x)), ShapeError);
  CHECK(x == before);
}
