#include <cmath>
#include <utility>

#include <pith/peft/adalora.hpp>
#include <pith/peft/dora.hpp>
#include <pith/peft/dylora.hpp>

#include "laws/adapter_laws.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/products.hpp"
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
  Matrix<double> v = base.weight() + pith_test::delta_of(adapter);
};

}  // namespace

TEST_CASE("DoraLinear: y = bias + m / n ∘ x (W + ΔW)ᵀ", "[peft]") {
  const DoraCase c;
  const DoraLinear layer(LinearView{c.base}, c.adapter, c.magnitude);
  const Vector<double> norms = c.v.rowwise().norm(), d = c.magnitude.cwiseQuotient(norms);
  const Matrix<double> scaled = pith_test::transposed(pith_test::with_scaled_columns(pith_test::transposed(c.v), d));
  const Matrix<double> expected = pith_test::with_bias(pith_test::times_transposed(c.x, scaled), c.base.bias());
  CHECK(near(layer.norm(), norms, 1e-14 * c.v.norm()));
  const double bound = 40 * 2.3e-16 * (1 + d.cwiseAbs().maxCoeff()) * 12 * c.v.cwiseAbs().maxCoeff();  // 12 + 3 products, norm and quotient
  CHECK(near(layer.forward(c.x), expected, bound));
  CHECK(near(layer.merged().forward(c.x), expected, bound));
  CHECK(near(layer.merged().weight(), scaled, 1e-15 * scaled.cwiseAbs().maxCoeff()));

  const Matrix<double> dy = random_matrix<double>(5, 70, 7);
  Matrix<double> dx(5, 12);
  Workspace ws(layer.workspace_bytes(5));
  layer.backward(dy, dx, ws);
  CHECK(near(dx, pith_test::times(dy, scaled), 70 * bound));
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
  CHECK_THROWS_AS(layer.forward(c.x), StateError);
  CHECK_THROWS_AS(layer.merged(), StateError);
  layer.refresh();
  LoraAdapter<double> turned = c.adapter;
  turned.set_scale(-1);
  CHECK(same_bits(layer.forward(c.x), DoraLinear(LinearView{c.base}, turned, c.magnitude).forward(c.x)));
  layer.magnitude()[3] = 9;
  CHECK_THROWS_AS(layer.forward(c.x), StateError);
  layer.refresh();
  layer.forward(c.x);
  CHECK(std::as_const(layer).magnitude()[3] == 9);
  CHECK(same_bits(DoraLinear(LinearView{c.base}, c.adapter, c.magnitude).forward(c.x), before));
}

TEST_CASE("DoraLinear: a change behind a reference from before refresh() is noticed in Release as well", "[peft]") {
  // One output, one feature: W = 3, B A = 2 · 1, m = 10; n = |3 + scale · 2|.
  const Linear<double> base(Matrix<double>::Constant(1, 1, 3));
  const Matrix<double> one = Matrix<double>::Ones(1, 1), two = 2 * one, pair = Matrix<double>::Ones(2, 1);
  DoraLinear layer(LinearView{base}, LoraAdapter<double>(one, two, {.alpha = 1}), Vector<double>::Constant(1, 10).eval());
  const Matrix<double> x = Matrix<double>::Constant(1, 1, 7);
  Matrix<double> y = Matrix<double>::Constant(1, 1, -1), dx = y;
  Workspace ws(layer.workspace_bytes(1));
  LoraAdapter<double>& adapter = layer.adapter();
  layer.refresh();
  const auto refused = [&] {
    CHECK_THROWS_WITH(layer.forward(x, y, ws), contains("call refresh() first"));
    CHECK_THROWS_AS(layer.backward(x, dx, ws), StateError);
    CHECK_THROWS_AS(layer.scale_rows(x, dx), StateError);
    CHECK_THROWS_AS(layer.norm(), StateError);
    CHECK_THROWS_AS(layer.merged(), StateError);
    CHECK(y(0, 0) == -1);
    CHECK(dx(0, 0) == -1);
  };
  adapter.set_scale(-4);  // 3 - 8 = -5: m / n = 2, and -5 · 2 · 7
  refused();
  layer.refresh();
  CHECK(layer.forward(x)(0, 0) == -70);
  adapter.down()(0, 0) = .5;  // 3 - 4 = -1: m / n = 10
  refused();
  layer.refresh();
  CHECK(layer.forward(x)(0, 0) == -70);
  adapter.up().setZero();  // 3: 10 · 7
  refused();
  layer.refresh();
  CHECK(std::abs(layer.forward(x)(0, 0) - 70) < 1e-13);

  DoraLinear triplets(LinearView{base}, AdaLoraAdapter<double>(one, Vector<double>::Ones(1).eval(), one));
  AdaLoraAdapter<double>& held = triplets.adapter();
  triplets.refresh();
  held.lambda()[0] = 2;
  CHECK_THROWS_AS(triplets.forward(x), StateError);
  held.refresh();
  CHECK_THROWS_AS(triplets.forward(x), StateError);
  triplets.refresh();
  triplets.forward(x);

  DoraLinear ranks(LinearView{base}, DyLoraAdapter<double>(pair, Matrix<double>(pair.transpose())));
  DyLoraAdapter<double>& of_two = ranks.adapter();
  ranks.refresh();
  of_two.set_rank(1);
  CHECK_THROWS_AS(ranks.forward(x), StateError);
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
  const DoraLinear layer(PackedLinear{c.base},
                         AdaLoraAdapter<double>(c.adapter.down(), Vector<double>::Ones(3).eval(), Matrix<double>(c.adapter.up())),
                         c.magnitude);
  static_assert(DenseLinear<std::remove_cvref_t<decltype(layer)>>);
  const DoraLinear plain(
      LinearView{c.base},
      LoraAdapter<double>(c.adapter.down(), Matrix<double>(c.adapter.up()), {.alpha = 3 * double(layer.adapter().scale())}), c.magnitude);
  CHECK(near(layer.forward(c.x), plain.forward(c.x), 1e-12 * plain.forward(c.x).cwiseAbs().maxCoeff()));
}

TEST_CASE("DoraLinear: what does not fit is refused", "[peft]") {
  const DoraCase c;
  CHECK_THROWS_WITH(DoraLinear(LinearView{c.base}, c.adapter, Vector<double>::Ones(69).eval()),
                    contains("magnitude is [69, 1], expected [70, 1]"));
  const LoraAdapter<double> biased(c.adapter.down(), Matrix<double>(c.adapter.up()), {}, c.magnitude),
      wide(random_matrix<double>(3, 13, 1), random_matrix<double>(70, 3, 1));
  CHECK_THROWS_AS(DoraLinear(LinearView{c.base}, biased), UnsupportedError);
  CHECK_THROWS_WITH(DoraLinear(LinearView{c.base}, wide), contains("down is [3, 13], expected [*, 12]"));
}
