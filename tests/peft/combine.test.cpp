#include <limits>
#include <memory>
#include <random>
#include <vector>

#include <pith/peft/combine.hpp>
#include <pith/peft/decompose.hpp>
#include <pith/peft/kronecker_change.hpp>

#include "laws/adapter_laws.hpp"
#include "support/catch.hpp"
#include "support/decompositions.hpp"
#include "support/near.hpp"
#include "support/products.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::delta_of;
using pith_test::near;
using pith_test::random_matrix;
using pith_test::random_vector;
using pith_test::same_bits;

namespace {

struct Terms {
  LoraAdapter<double> a{random_matrix<double>(3, 12, 1), random_matrix<double>(10, 3, 2), {.alpha = 6}},
      b{random_matrix<double>(3, 12, 3), random_matrix<double>(10, 3, 4), {.alpha = 4, .rslora = true}},
      c{random_matrix<double>(5, 12, 5), random_matrix<double>(10, 5, 6), {.alpha = 5}};
  std::vector<WeightedLora<double>> all{{&a, 0.5}, {&b, -2}, {&c, 0.25}}, equal{{&a, 0.5}, {&b, -2}};
  Matrix<double> sum() const { return 0.5 * delta_of(a) - 2 * delta_of(b) + 0.25 * delta_of(c); }
};

}  // namespace

TEST_CASE("combine_cat: exactly the weighted sum of the deltas", "[peft]") {
  const Terms t;
  const LoraAdapter<double> made = combine_cat<double>(t.all);
  CHECK(made.rank() == 11);
  CHECK(made.scale() == 1);
  CHECK(near(delta_of(made), t.sum(), 1e-13));
}

TEST_CASE("combine_svd: the best of its rank; the whole sum where the rank suffices", "[peft]") {
  const Terms t;
  CHECK(near(delta_of(combine_svd<double>(t.all, {.rank = 10})), t.sum(), 1e-12));
  const LoraAdapter<double> cut = combine_svd<double>(t.all);
  CHECK(cut.rank() == 5);
  const Eigen::BDCSVD<Eigen::MatrixXd> svd(t.sum());
  CHECK((delta_of(cut) - t.sum()).norm() == Approx(svd.singularValues().tail(5).norm()));  // Eckart and Young
  const LoraAdapter<double> clamped = combine_svd<double>(t.all, {.rank = 4, .clamp = 0.9}),
                            plain = combine_svd<double>(t.all, {.rank = 4});
  const double most = std::max(clamped.down().cwiseAbs().maxCoeff(), clamped.up().cwiseAbs().maxCoeff());
  CHECK(most < plain.up().cwiseAbs().maxCoeff());
  CHECK(near(clamped.down(), plain.down().cwiseMin(most).cwiseMax(-most), 1e-12));
}

TEST_CASE("combine_factors: DARE keeps a share of the numbers and the mean of all", "[peft]") {
  const LoraAdapter<double> ones(Matrix<double>::Ones(40, 100).eval(), Matrix<double>::Ones(100, 40).eval(), {.alpha = 40});
  const std::vector<WeightedLora<double>> two{{&ones, 1}, {&ones, 1}};
  std::mt19937_64 rng(1);
  for (const CombineMethod method : {CombineMethod::dare_linear, CombineMethod::dare_ties}) {
    const LoraAdapter<double> made = combine_factors<double>(two, {.method = method, .density = 0.25}, rng);
    // Each number is 4 with probability 1/4 and 0 otherwise, twice; linear adds them, ties averages those that are left.
    const double expected = method == CombineMethod::dare_linear ? 2 : 4 * (1 - 0.75 * 0.75);
    CHECK(made.down().mean() == Approx(expected).epsilon(5 * 2.5 / std::sqrt(4000.)));
    CHECK((made.down().array() == 0).cast<double>().mean() == Approx(0.5625).epsilon(5 / std::sqrt(4000.)));
  }
  CHECK(same_bits(combine_factors<double>(std::span(two).first(1), {.method = CombineMethod::dare_ties, .density = 0.1}, rng).down(),
                  ones.down()));
}

TEST_CASE("combine_factors: signs elected by sum or by number", "[peft]") {
  const auto one = [](double value) {
    return LoraAdapter<double>(Matrix<double>(Matrix<double>::Constant(1, 1, value)), Matrix<double>(Matrix<double>::Ones(1, 1)),
                               {.alpha = 1});
  };
  const LoraAdapter<double> up = one(5), down = one(-1), also = one(-2);
  const std::vector<WeightedLora<double>> three{{&up, 1}, {&down, 1}, {&also, 1}};
  CHECK(combine_factors<double>(three, {.method = CombineMethod::ties}).down()(0, 0) == 5);
  CHECK(combine_factors<double>(three, {.method = CombineMethod::ties, .count_signs = true}).down()(0, 0) == -1.5);
  CHECK(combine_factors<double>(three, {.method = CombineMethod::magnitude_prune, .density = 0.5}).down()(0, 0) == 0);
}

TEST_CASE("pissa and olora: the residual and the adapter are the weight again; mica leaves it", "[peft]") {
  const Matrix<float> w = random_matrix<float>(14, 9, 1);
  for (const auto& made : {pissa<float>(ConstMatrixRef<float>(w), 4, {.alpha = 8}), olora<float>(w, 4, {.alpha = 8})})
    CHECK(near(made.residual.cast<double>() + delta_of(made.adapter), w.cast<double>(), 4 * 1.2e-7 * w.cwiseAbs().maxCoeff() * 4));
  const Eigen::BDCSVD<Eigen::MatrixXd> svd(w.cast<double>());
  CHECK(double(pissa<float>(w, 4).residual.norm()) == Approx(svd.singularValues().tail(5).norm()).epsilon(1e-5));
  const LoraAdapter<float> smallest = mica<float>(w, 2);
  CHECK(smallest.down().isZero(0));
  CHECK(double(pith_test::times(smallest.up_rows(), w).norm()) == Approx(svd.singularValues().tail(2).norm()).epsilon(1e-5));
}

TEST_CASE("combinations and decompositions: what makes no sense is refused", "[peft]") {
  const Terms t;
  const LoraAdapter<double> wide(random_matrix<double>(3, 13, 1), random_matrix<double>(10, 3, 2)),
      biased(random_matrix<double>(3, 12, 1), random_matrix<double>(10, 3, 2), {}, random_vector<double>(10, 3));
  using Span = std::vector<WeightedLora<double>>;
  CHECK_THROWS_WITH(combine_cat<double>(Span{}), contains("nothing to combine"));
  CHECK_THROWS_AS(combine_cat<double>(Span{{nullptr, 1}}), ShapeError);
  CHECK_THROWS_AS(combine_cat<double>(Span{{&t.a, std::numeric_limits<double>::quiet_NaN()}}), ShapeError);
  CHECK_THROWS_WITH(combine_cat<double>(Span{{&t.a, 1}, {&wide, 1}}), contains("down is [3, 13], expected [*, 12]"));
  CHECK_THROWS_AS(combine_cat<double>(Span{{&biased, 1}}), UnsupportedError);
  CHECK_THROWS_WITH(combine_factors<double>(t.all), contains("down is [5, 12], expected [3, 12]"));
  CHECK_THROWS_WITH(combine_factors<double>(t.equal, {.density = -0.1}), contains("expected 0 or more"));
  CHECK_THROWS_WITH(combine_factors<double>(t.equal, {.method = CombineMethod::dare_ties}), contains("give it a generator"));
  CHECK_THROWS_AS(combine_svd<double>(t.all, {.rank = 11}), ShapeError);
  CHECK_THROWS_AS(combine_svd<double>(t.all, {.clamp = 0}), ShapeError);
  CHECK_THROWS_AS(combine_svd<double>(t.all, {.deltas = {.method = CombineMethod::dare_linear}}), UnsupportedError);
  const Matrix<double> w = random_matrix<double>(5, 4, 1), bad = Matrix<double>::Constant(5, 4, std::numeric_limits<double>::quiet_NaN());
  CHECK_THROWS_AS(pissa<double>(w, 5), ShapeError);
  CHECK_THROWS_AS(pissa<double>(w, 0), ShapeError);
  CHECK_THROWS_WITH(pissa<double>(w, 2, {.alpha = -1}), contains("expected above 0"));
  CHECK_THROWS_WITH(olora<double>(bad, 2), contains("not finite"));
}

TEST_CASE("closest_lora: the best of its rank for scales, rotations, Kronecker products and whole weights", "[peft]") {
  constexpr Index out = 12, in = 8;
  const Matrix<double> w = random_matrix<double>(out, in, 1);
  const AnyLinear<double> base{Linear<double>(w, Vector<double>(random_matrix<double>(out, 1, 2).col(0)))};
  const Matrix<double> x = random_matrix<double>(4, in, 3);
  std::vector<LinearAdapter<double>> changes(4);
  changes[0].out_scale = random_matrix<double>(out, 1, 4).col(0);
  changes[1].turns.push_back({.blocks = random_matrix<double>(in, 2, 5)});
  changes[2].more.push_back(
      std::make_shared<const KroneckerChange<double>>(random_matrix<double>(4, 2, 6), random_matrix<double>(3, 4, 7)));
  changes[2].bias = random_matrix<double>(out, 1, 8).col(0);
  changes[3].replacement = AnyLinear<double>(Linear<double>(random_matrix<double>(out, in, 9)));
  for (const LinearAdapter<double>& change : changes) {
    const auto computed = [&](const LinearAdapter<double>& by) {
      Matrix<double> y(x.rows(), out);
      Workspace ws(1 << 16);
      forward_adapted(base, &by, x, y, ws);
      return y;
    };
    // ΔW by unit inputs
    Matrix<double> delta(out, in);
    for (Index i = 0; i < in; ++i) {
      Matrix<double> unit = Matrix<double>::Zero(2, in), y(2, out), plain(2, out);
      unit(0, i) = 1;
      Workspace ws(1 << 16);
      forward_adapted(base, &change, unit, y, ws);
      base.forward(unit, plain, ws);
      delta.col(i) = ((y.row(0) - y.row(1)) - (plain.row(0) - plain.row(1))).transpose();
    }
    const Eigen::VectorXd s = Eigen::BDCSVD<Eigen::MatrixXd>(delta).singularValues();
    for (const Index rank : {1, 3, 8}) {
      const ClosestLora<double> closest = closest_lora<double>(base, change, rank);
      CHECK(closest.adapter.rank() == rank);
      CHECK(std::abs(closest.error - s.tail(in - rank).norm() / s.norm()) <= 1e-9);
      if (rank < in) continue;
      LinearAdapter<double> as_lora;
      as_lora.terms.push_back(LowRankTerm<double>::of(closest.adapter));
      as_lora.bias = closest.adapter.scaled_bias();
      CHECK((computed(as_lora) - computed(change)).cwiseAbs().maxCoeff() <= 1e-9);
    }
    CHECK_THROWS_AS(closest_lora<double>(base, change, in + 1), ShapeError);
    CHECK_THROWS_AS(closest_lora<double>(base, change, 0), ShapeError);
  }
  CHECK(closest_lora<double>(base, LinearAdapter<double>(), 1).error == 0);
}
