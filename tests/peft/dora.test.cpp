#include <cmath>
#include <utility>

#include <pith/peft/adalora.hpp>
#include <pith/peft/dora.hpp>

#include "laws/adapter_laws.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::near;
using pith_test::random_matrix;
using pith_test::random_vector;
using pith_test::same_bits;

namespace {

struct DoraCase {
  Linear<double> base{random_matrix<double>(70, 12, 1), random_vector<double>(70, 2)};
  LoraAdapter<double> adapter{random_matrix<double>(3, 12, 3), random_matrix<double>(70, 3, 4), {.alpha = 6}};
  Vector<double> magnitude = random_vector<double>(70, 5);
  Matrix<double> x = random_matrix<double>(5, 12, 6);
  Eigen::MatrixXd v = base.weight() + pith_test::delta_of(adapter);
};

}  // namespace

TEST_CASE("DoraLinear: y = bias + m / n ∘ x (W + ΔW)ᵀ", "[peft]") {
  const DoraCase c;
  const DoraLinear layer(LinearView{c.base}, c.adapter, c.magnitude);
  const Eigen::VectorXd d = c.magnitude.cwiseQuotient(c.v.rowwise().norm());
  const Eigen::MatrixXd scaled = d.asDiagonal() * c.v;
  const Eigen::MatrixXd expected = (c.x * scaled.transpose()).rowwise() + c.base.bias().transpose();
  CHECK(near(layer.norm(), c.v.rowwise().norm(), 1e-14 * c.v.norm()));
  const double bound = 40 * 2.3e-16 * (1 + d.cwiseAbs().maxCoeff()) * 12 * c.v.cwiseAbs().maxCoeff();  // 12 + 3 products, norm and quotient
  CHECK(near(layer.forward(c.x), expected, bound));
  CHECK(near(layer.merged().forward(c.x), expected, bound));
  CHECK(near(layer.merged().weight(), scaled, 1e-15 * scaled.cwiseAbs().maxCoeff()));

  const Matrix<double> dy = random_matrix<double>(5, 70, 7);
  Matrix<double> dx(5, 12);
  Workspace ws(layer.workspace_bytes(5));
  layer.backward(dy, dx, ws);
  CHECK(near(dx, dy * scaled, 70 * bound));
}

TEST_CASE("DoraLinear: where the magnitude is the norm, the bits of LoRA; fresh, the bits of the base", "[peft]") {
  const DoraCase c;
  const DoraLinear layer(LinearView{c.base}, c.adapter);
  CHECK(same_bits(layer.forward(c.x), LoraLinear(LinearView{c.base}, c.adapter).forward(c.x)));
  LoraAdapter<double> fresh = c.adapter;
  fresh.up().setZero();
  CHECK(same_bits(DoraLinear(LinearView{c.base}, fresh).forward(c.x), c.base.forward(c.x)));
}

TEST_CASE("DoraLinear: a norm that is out of date is noticed, and made anew", "[peft]") {
  const DoraCase c;
  DoraLinear layer(LinearView{c.base}, c.adapter, c.magnitude);
  const Matrix<double> before = layer.forward(c.x);
  layer.adapter().set_scale(-1);
  CHECK_THROWS_AS(layer.forward(c.x), pith_test::BrokenInvariant);
  CHECK_THROWS_AS(layer.merged(), pith_test::BrokenInvariant);
  layer.refresh();
  LoraAdapter<double> turned = c.adapter;
  turned.set_scale(-1);
  CHECK(same_bits(layer.forward(c.x), DoraLinear(LinearView{c.base}, turned, c.magnitude).forward(c.x)));
  layer.magnitude()[3] = 9;
  CHECK_THROWS_AS(layer.forward(c.x), pith_test::BrokenInvariant);
  layer.refresh();
  layer.forward(c.x);
  CHECK(std::as_const(layer).magnitude()[3] == 9);
  CHECK(same_bits(DoraLinear(LinearView{c.base}, c.adapter, c.magnitude).forward(c.x), before));
}

TEST_CASE("DoraLinear: a row of zeros stays one", "[peft]") {
  Matrix<double> w = random_matrix<double>(4, 5, 1), b = random_matrix<double>(4, 2, 2);
  w.row(2).setZero();
  b.row(2).setZero();
  const LoraAdapter<double> adapter(random_matrix<double>(2, 5, 3), b);
  const DoraLinear layer(Linear<double>(w), adapter, Vector<double>::Ones(4).eval());
  const Matrix<double> y = layer.forward(random_matrix<double>(3, 5, 4));
  CHECK(y.allFinite());
  CHECK(y.col(2).isZero(0));
  CHECK(layer.merged().weight().row(2).isZero(0));
}

TEST_CASE("DoraLinear: wraps any low rank and any dense base", "[peft]") {
  const DoraCase c;
  const DoraLinear layer(
      PackedLinear{c.base},
      AdaLoraAdapter<double>(c.adapter.down(), Vector<double>::Ones(3).eval(), Matrix<double>(c.adapter.up().transpose())), c.magnitude);
  static_assert(DenseLinear<std::remove_cvref_t<decltype(layer)>>);
  const DoraLinear plain(
      LinearView{c.base},
      LoraAdapter<double>(c.adapter.down(), Matrix<double>(c.adapter.up().transpose()), {.alpha = 3 * double(layer.adapter().scale())}),
      c.magnitude);
  CHECK(near(layer.forward(c.x), plain.forward(c.x), 1e-12 * plain.forward(c.x).cwiseAbs().maxCoeff()));
}

TEST_CASE("DoraLinear: what does not fit is refused", "[peft]") {
  const DoraCase c;
  CHECK_THROWS_WITH(DoraLinear(LinearView{c.base}, c.adapter, Vector<double>::Ones(69).eval()),
                    contains("magnitude is [69, 1], expected [70, 1]"));
  const LoraAdapter<double> biased(c.adapter.down(), Matrix<double>(c.adapter.up().transpose()), {}, c.magnitude),
      wide(random_matrix<double>(3, 13, 1), random_matrix<double>(70, 3, 1));
  CHECK_THROWS_AS(DoraLinear(LinearView{c.base}, biased), UnsupportedError);
  CHECK_THROWS_WITH(DoraLinear(LinearView{c.base}, wide), contains("down is [3, 13], expected [*, 12]"));
}
