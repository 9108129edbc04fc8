#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <pith/nn/norm.hpp>
#include <pith/peft/adalora.hpp>
#include <pith/peft/dylora.hpp>
#include <pith/peft/increlora.hpp>
#include <pith/peft/train.hpp>

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

/// Every gradient that an adapter's each_parameter() shows, and dx, against the quotient (L(p + h) - L(p - h)) / 2h of L = Σ dy ∘ y.
template <class L, class Each> void check_gradients(L& layer, Each&& each_parameter) {
  const Matrix<double> dy = random_matrix<double>(4, layer.out(), 21);
  Matrix<double> x = random_matrix<double>(4, layer.in(), 20), dx(4, layer.in()), numeric_dx(4, layer.in());
  const auto loss = [&] { return layer.forward(x).cwiseProduct(dy).sum(); };
  constexpr double h = 1e-5;
  const auto quotient = [&](double& p, auto&& changed) {
    const double at = p;
    p = at + h;
    changed();
    const double above = loss();
    p = at - h;
    changed();
    const double below = loss();
    p = at;
    changed();
    return (above - below) / (2 * h);
  };
  auto grads = gradients_of(layer);
  Workspace ws(2 * layer.workspace_bytes(4));
  backward(layer, x, dy, grads, dx, ws);
  int parameters = 0;
  each_parameter(layer, grads, [&](std::string_view name, MatrixRef<double> value, ConstMatrixRef<double> gradient, auto&& changed) {
    INFO(name);
    Matrix<double> numeric(value.rows(), value.cols());
    for (Index r = 0; r < value.rows(); ++r)
      for (Index c = 0; c < value.cols(); ++c) numeric(r, c) = quotient(value(r, c), changed), ++parameters;
    CHECK(near(gradient, numeric, 1e-7 * (1 + numeric.cwiseAbs().maxCoeff()), 20));
  });
  CHECK(parameters > 0);
  for (Index i = 0; i < x.size(); ++i) numeric_dx.data()[i] = quotient(x.data()[i], [] {});
  CHECK(near(dx, numeric_dx, 1e-7 * (1 + numeric_dx.cwiseAbs().maxCoeff()), 20));

  auto twice = grads;  // gradients are added to
  backward(layer, x, dy, twice, MatrixRef<double>(), ws);
  each_parameter(layer, grads, [&](std::string_view name, MatrixRef<double>, ConstMatrixRef<double> once, auto&&) {
    each_parameter(layer, twice, [&](std::string_view same, MatrixRef<double>, ConstMatrixRef<double> both, auto&&) {
      if (name == same) CHECK(near(both, 2 * once, 1e-13 * (1 + once.cwiseAbs().maxCoeff())));
    });
  });
}

/// For a layer with an adapter.
const auto adapter_parameters = [](auto& layer, const auto& grads, auto&& check) {
  layer.adapter().each_parameter(grads, [&](std::string_view name, MatrixRef<double> value, ConstMatrixRef<double> gradient) {
    check(name, value, gradient, [&] { layer.adapter().refresh(); });
  });
};

Linear<double> small_base() { return Linear<double>(random_matrix<double>(6, 5, 1), random_vector<double>(6, 2)); }
const auto small_down = [](Index rank) { return random_matrix<double>(rank, 5, 3); };
const auto small_up = [](Index rank) { return random_matrix<double>(6, rank, 4); };

}  // namespace

TEST_CASE("backward: gradients of every adapter are the difference quotients", "[peft]") {
  const Linear<double> base = small_base();
  LoraLinear lora(LinearView{base}, LoraAdapter<double>(small_down(3), small_up(3), {.alpha = 2}, random_vector<double>(6, 5)));
  check_gradients(lora, adapter_parameters);
  LoraLinear dylora(LinearView{base}, DyLoraAdapter<double>(small_down(4), small_up(4)));
  for (const Index rank : {1, 3, 4}) {
    dylora.adapter().set_rank(rank);
    check_gradients(dylora, adapter_parameters);
  }
  const Vector<double> lambda = random_vector<double>(3, 6);
  LoraLinear adalora(LinearView{base}, AdaLoraAdapter<double>(small_down(3), lambda, small_up(3)));
  check_gradients(adalora, adapter_parameters);
  LoraLinear increlora(LinearView{base}, IncreLoraAdapter<double>(small_down(3), lambda, small_up(3), {.capacity = 6, .add = 2}));
  std::mt19937_64 rng(1);
  increlora.adapter().add_reserve(rng);
  increlora.adapter().refresh();
  check_gradients(increlora, adapter_parameters);
  LoraLinear stacked(LoraLinear(LinearView{base}, lora.adapter()), LoraAdapter<double>(small_down(2), small_up(2)));
  check_gradients(stacked, adapter_parameters);
}

TEST_CASE("backward: DoRA's with its norm held, which is all that is held", "[peft]") {
  const Linear<double> base = small_base();
  DoraLinear layer(LinearView{base}, LoraAdapter<double>(small_down(3), small_up(3)), Vector<double>(random_vector<double>(6, 7)));
  const Matrix<double> x = random_matrix<double>(4, 5, 20), dy = random_matrix<double>(4, 6, 21);
  DoraGradients<double> grads = gradients_of(layer);
  Matrix<double> dx(4, 5);
  Workspace ws(layer.workspace_bytes(4));
  backward(layer, x, dy, grads, dx, ws);
  // With n held the layer is LoRA under a diagonal: its gradients are those of LoRA for dy ∘ m / n.
  const Vector<double> d = std::as_const(layer).magnitude().cwiseQuotient(layer.norm());
  const Matrix<double> scaled = pith_test::with_scaled_columns(dy, d);
  const LoraLinear plain(LinearView{base}, std::as_const(layer).adapter());
  LowRankGradients<double> expected = gradients_of(plain);
  Matrix<double> expected_dx(4, 5);
  backward(plain, x, scaled, expected, expected_dx, ws);
  CHECK(near(grads.low_rank.down_rows, expected.down_rows, 1e-13));
  CHECK(near(grads.low_rank.up_rows, expected.up_rows, 1e-13));
  CHECK(near(dx, expected_dx, 1e-13));
  for (Index i = 0; i < 6; ++i) {  // y is linear in m
    DoraLinear moved = layer;
    moved.magnitude()[i] += 1;
    moved.refresh();
    CHECK(grads.magnitude[i] == Approx((moved.forward(x) - layer.forward(x)).cwiseProduct(dy).sum()).margin(1e-12));
  }
}

TEST_CASE("backward: a FeedForward of adapted, frozen and whole layers", "[peft]") {
  Matrix<double> w1 = random_matrix<double>(7, 5, 1), w2 = random_matrix<double>(3, 7, 2);
  Vector<double> b1 = random_vector<double>(7, 3);
  FeedForward adapted(
      LoraLinear(LinearView<double>(w1, b1), LoraAdapter<double>(random_matrix<double>(2, 5, 4), random_matrix<double>(7, 2, 5))),
      LoraLinear(LinearView<double>(w2), LoraAdapter<double>(random_matrix<double>(2, 7, 6), random_matrix<double>(3, 2, 7))), GeluTanh{});
  check_gradients(adapted, [](auto& block, const auto& grads, auto&& check) {
    adapter_parameters(block.up(), grads.up, [&](std::string_view name, auto value, auto gradient, auto&& changed) {
      check("up." + std::string(name), value, gradient, changed);
    });
    adapter_parameters(block.down(), grads.down, [&](std::string_view name, auto value, auto gradient, auto&& changed) {
      check("down." + std::string(name), value, gradient, changed);
    });
  });

  // Frozen below, whole above; and whole below.
  const Matrix<double> x = random_matrix<double>(4, 5, 8), dy = random_matrix<double>(4, 3, 9);
  const FeedForward plain(LinearView<double>(w1, b1), LinearView<double>(w2), Silu{});
  FeedForwardGradients<LinearGradients<double>, LinearGradients<double>> whole{{Matrix<double>::Zero(7, 5), Vector<double>::Zero(7)},
                                                                               {Matrix<double>::Zero(3, 7), {}}};
  FeedForwardGradients<NoGradients, LinearGradients<double>> above{{}, {Matrix<double>::Zero(3, 7), {}}};
  Matrix<double> dx(4, 5), dx_again(4, 5);
  Workspace ws(backward_workspace_bytes(plain, 4));
  backward(plain, x, dy, whole, dx, ws);
  backward(plain, x, dy, above, dx_again, ws);
  CHECK(same_bits(dx, dx_again));
  CHECK(same_bits(above.down.weight, whole.down.weight));
  const auto check = [&](Matrix<double>& w, const Matrix<double>& gradient) {
    for (Index i = 0; i < w.size(); ++i) {
      const double at = w.data()[i];
      w.data()[i] = at + 1e-5;
      const double high = plain.forward(x).cwiseProduct(dy).sum();
      w.data()[i] = at - 1e-5;
      const double low = plain.forward(x).cwiseProduct(dy).sum();
      w.data()[i] = at;
      CHECK(gradient.data()[i] == Approx((high - low) / 2e-5).margin(1e-7));
    }
  };
  check(w1, whole.up.weight);
  check(w2, whole.down.weight);
}

TEST_CASE("backward: shapes that disagree are refused before a gradient changes", "[peft]") {
  const Linear<double> base = small_base();
  const LoraLinear layer(LinearView{base}, LoraAdapter<double>(small_down(3), small_up(3)));
  LowRankGradients<double> grads = gradients_of(layer), small(2, 5, 6);
  Matrix<double> x = random_matrix<double>(4, 5, 1), dy = random_matrix<double>(4, 6, 2), dx(4, 5);
  Workspace ws(layer.workspace_bytes(4));
  CHECK_THROWS_WITH(backward(layer, x, dy.leftCols(5), grads, dx, ws), contains("dy is [4, 5], expected [4, 6]"));
  CHECK_THROWS_WITH(backward(layer, x.topRows(3), dy, grads, dx, ws), contains("dy is [4, 6], expected [3, 6]"));
  CHECK_THROWS_WITH(backward(layer, x, dy, small, dx, ws), contains("gradients of 2 components for a rank of 3"));
  CHECK(grads.down_rows.isZero(0));
}

TEST_CASE("sample_rank is even, keep_last_component keeps one", "[peft]") {
  std::mt19937_64 rng(1);
  std::vector<int> count(9, 0);
  for (int i = 0; i < 6000; ++i) ++count[static_cast<std::size_t>(sample_rank(3, 8, rng))];
  for (std::size_t r = 0; r < 9; ++r) CHECK((r < 3 ? count[r] == 0 : std::abs(count[r] - 1000) < 5 * 29));  // five deviations of 6000 draws
  CHECK_THROWS_AS(sample_rank(0, 3, rng), ShapeError);
  CHECK_THROWS_AS(sample_rank(4, 3, rng), ShapeError);

  LowRankGradients<double> grads(4, 3, 2);
  grads.down_rows.setOnes();
  grads.up_rows.setOnes();
  keep_last_component(grads, 3);
  CHECK(grads.down_rows.sum() == 3);
  CHECK(grads.down_rows.row(2).sum() == 3);
  CHECK(grads.up_rows.row(2).sum() == 2);
  CHECK_THROWS_AS(keep_last_component(grads, 5), ShapeError);
}

TEST_CASE("AdamW: two steps by hand, state by name, and decay that needs no gradient", "[peft]") {
  AdamW<double> adam({.learning_rate = 0.1, .beta1 = 0.9, .beta2 = 0.99, .epsilon = 1e-8, .weight_decay = 0.5});
  Matrix<double> p = Matrix<double>::Constant(1, 2, 2), g(1, 2);
  g << 1, 0;
  adam.update("p", p, g);
  CHECK(p(0, 0) == Approx(2 * 0.95 - 0.1));  // the first step is the rate, for any gradient
  CHECK(p(0, 1) == Approx(1.9));
  g << -2, 0;
  adam.update("p", p, g);
  const double m = (0.9 * 0.1 - 0.2) / (1 - 0.81), v = (0.99 * 0.01 + 0.04) / (1 - 0.9801);
  CHECK(p(0, 0) == Approx(1.8 * 0.95 - 0.1 * m / std::sqrt(v)));
  CHECK(adam.age("p") == 2);
  CHECK(adam.age("q") == 0);
  Matrix<double> q = Matrix<double>::Constant(1, 2, 2);
  adam.update("q", q, g, 0);
  CHECK(same_bits(q, Matrix<double>::Constant(1, 2, 2).eval()));
  CHECK_THROWS_WITH(adam.update("p", p, g.leftCols(1)), contains("gradient is [1, 1], expected [1, 2]"));
  Matrix<double> other(2, 2);
  CHECK_THROWS_WITH(adam.update("p", other, other), contains("value is [2, 2], expected [1, 2]"));
}

TEST_CASE("warmup_decay: up, then down to 0, at any step", "[peft]") {
  CHECK(warmup_decay(0, 4, 12) == 0);
  CHECK(warmup_decay(2, 4, 12) == 0.5);
  CHECK(warmup_decay(4, 4, 12) == 1);
  CHECK(warmup_decay(8, 4, 12) == 0.5);
  CHECK(warmup_decay(99, 4, 12) == 0);
  CHECK(warmup_decay(0, 0, 0) == 0);
}

TEST_CASE("training: every adapter learns a delta of its rank", "[peft]") {
  const Matrix<double> w = random_matrix<double>(8, 10, 1),
                       goal = w + pith_test::times(random_matrix<double>(8, 2, 2), random_matrix<double>(2, 10, 3));
  const Linear<double> base(w);
  std::mt19937_64 rng(4);
  const auto train = [&](auto layer, auto&& before_step) {
    AdamW<double> adam({.learning_rate = 0.02, .weight_decay = 0});
    Workspace ws(2 * layer.workspace_bytes(16));
    double first = 0, loss = 0;
    for (int step = 0; step < 400; ++step) {
      before_step(layer, step);
      Matrix<double> x(16, 10);
      for (Index i = 0; i < x.size(); ++i) x.data()[i] = normal<double>(rng);
      const Matrix<double> gap = layer.forward(x) - pith_test::times_transposed(x, goal), dy = gap / 16;
      loss = gap.squaredNorm() / 32;
      if (step == 0) first = loss;
      auto grads = gradients_of(layer);
      backward(layer, x, dy, grads, MatrixRef<double>(), ws);
      if constexpr (requires { grads.low_rank; }) {
        adam.step("layer", layer, grads);
      } else {
        adam.step("layer", layer.adapter(), grads);
      }
    }
    CHECK(loss < 0.05 * first);
  };
  const auto nothing = [](auto&, int) {};
  train(LoraLinear(LinearView{base}, fresh_lora<double>(10, 8, 4, {.alpha = 8}, {}, rng)), nothing);
  train(LoraLinear(LinearView{base}, fresh_adalora<double>(10, 8, 4, {.alpha = 32}, rng)), nothing);
  train(DoraLinear(LinearView{base}, fresh_lora<double>(10, 8, 4, {.alpha = 8}, {}, rng)), nothing);
  const LoraFactors<double> f = fresh_factors<double>(10, 8, 4, {}, rng);
  train(LoraLinear(LinearView{base}, DyLoraAdapter<double>(f.down, f.up, {.alpha = 8})),
        [&](auto& layer, int step) { layer.adapter().set_rank(step < 399 ? sample_rank(2, 4, rng) : 4); });
}

TEST_CASE("AdamW and fresh factors: options that make no sense are refused", "[peft]") {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  for (const AdamWOptions& bad : {AdamWOptions{.learning_rate = nan}, AdamWOptions{.beta1 = 1}, AdamWOptions{.beta2 = -.1},
                                  AdamWOptions{.epsilon = 0}, AdamWOptions{.epsilon = inf}, AdamWOptions{.weight_decay = nan}})
    CHECK_THROWS_AS(AdamW<float>(bad), ShapeError);
  std::mt19937 rng(1);
  CHECK_THROWS_AS(fresh_factors<float>(4, 4, 2, {.start = LoraStart::normal, .sigma = inf}, rng), ShapeError);
  CHECK_THROWS_AS(RmsNorm<float>(Vector<float>::Ones(3), std::numeric_limits<float>::infinity()), ShapeError);
}
