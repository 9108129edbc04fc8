#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <utility>

#include <pith/nn/feed_forward.hpp>
#include <pith/peft/adalora.hpp>
#include <pith/peft/dylora.hpp>
#include <pith/peft/increlora.hpp>
#include <pith/peft/lora.hpp>
#include <pith/peft/lora_init.hpp>

#include "laws/adapter_laws.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/products.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::check_adapter_laws;
using pith_test::contains;
using pith_test::near;
using pith_test::random_matrix;
using pith_test::random_vector;
using pith_test::same_bits;

namespace {

template <class S> LoraAdapter<S> some_lora(Index in, Index out, Index rank, std::uint64_t seed, const LoraOptions& options = {}) {
  return LoraAdapter<S>(random_matrix<S>(rank, in, seed), random_matrix<S>(out, rank, seed + 1), options);
}

/// A layer of the user's own that shows its numbers.
struct OwnLayer {
  using Scalar = float;
  Matrix<float> w;
  Index in() const { return w.cols(); }
  Index out() const { return w.rows(); }
  void forward(ConstMatrixRef<float> x, MatrixRef<float> y, Workspace&) const { y = detail::times_transposed<float>(x, w); }
};

}  // namespace

TEST_CASE("accessors of an adapter return what its constructor takes") {
  const Matrix<float> a = random_matrix<float>(3, 5, 1), b = random_matrix<float>(3, 3, 2);  // rank = out: a transposed B would fit as well
  const LoraAdapter<float> lora(a, b, {.alpha = 6});
  CHECK(same_bits(Matrix<float>(lora.down()), a));
  CHECK(same_bits(Matrix<float>(lora.up()), b));
  CHECK(same_bits(Matrix<float>(lora.up_rows()), Matrix<float>(b.transpose())));
  const DyLoraAdapter<float> dylora(a, b, {.alpha = 6});
  CHECK(same_bits(Matrix<float>(dylora.up()), b));
  const Vector<float> lambda = random_matrix<float>(3, 1, 3);
  AdaLoraAdapter<float> adalora(a, lambda, b);
  CHECK(same_bits(Matrix<float>(std::as_const(adalora).up()), b));
  adalora.up()(2, 0) = 7;
  CHECK(std::as_const(adalora).up_rows()(0, 2) == 7);
}

TEMPLATE_TEST_CASE("every adapter keeps the laws of low rank", "[peft][laws]", float, double) {
  using S = TestType;
  const Matrix<S> a = random_matrix<S>(6, 20, 1), b = random_matrix<S>(33, 6, 2);
  Vector<S> lambda = random_vector<S>(6, 3);
  check_adapter_laws(LoraAdapter<S>(a, b, {.alpha = 3}), 10);
  check_adapter_laws(LoraAdapter<S>(a, b, {.alpha = 3, .rslora = true}, random_vector<S>(33, 9)), 11);
  check_adapter_laws(LoraAdapter<S>(Matrix<S>(0, 20), Matrix<S>(33, 0)), 12);
  check_adapter_laws(LoraAdapter<S>(random_matrix<S>(12, 20, 1), random_matrix<S>(5, 12, 2)), 13);  // rank above out
  DyLoraAdapter<S> dylora(a, b);
  for (const Index rank : {1, 4, 6}) {
    dylora.set_rank(rank);
    check_adapter_laws(dylora, 14);
  }
  check_adapter_laws(AdaLoraAdapter<S>(a, lambda, b), 15);
  lambda[2] = lambda[5] = 0;
  check_adapter_laws(AdaLoraAdapter<S>(a, lambda, b), 16);
  IncreLoraAdapter<S> increlora(a, lambda, b, {.capacity = 9, .add = 3});
  increlora.add_reserve(random_matrix<S>(3, 20, 7), random_matrix<S>(33, 3, 8));
  check_adapter_laws(increlora, 17);
}

TEST_CASE("LoraAdapter: scales", "[peft]") {
  CHECK(lora_scale({.alpha = 16}, 8) == 2);
  CHECK(lora_scale({.alpha = 16, .rslora = true}, 16) == 4);
  CHECK(lora_scale({.alpha = -0.5}, 2) == -0.25);
  CHECK(lora_scale({}, 0) == 0);
  CHECK_THROWS_WITH(lora_scale({.alpha = std::nan("")}, 1), contains("expected a finite alpha"));
  CHECK_THROWS_AS(lora_scale({}, -1), ShapeError);

  LoraAdapter<float> adapter = some_lora<float>(4, 5, 2, 1);
  CHECK(adapter.scale() == 4);
  adapter.set_scale(-0.5f);
  CHECK(adapter.gain()[1] == -0.5f);
  CHECK_THROWS_WITH(adapter.set_scale(std::numeric_limits<float>::infinity()), contains("expected a finite number"));
  CHECK(adapter.scale() == -0.5f);
}

TEST_CASE("LoraLinear: a fresh adapter and one that is switched off leave the bits of the base", "[peft]") {
  std::mt19937_64 rng(1);
  const Linear<float> base(random_matrix<float>(40, 30, 1), random_vector<float>(40, 2));
  for (const Index tokens : {1, 2, 9}) {
    const Matrix<float> x = random_matrix<float>(tokens, 30, 3), y = base.forward(x);
    for (const LoraStart start : {LoraStart::normal, LoraStart::kaiming, LoraStart::gaussian}) {
      const LoraLinear layer(LinearView{base}, fresh_lora<float>(30, 40, 4, {}, {.start = start}, rng));
      CHECK(layer.adapter().down().cwiseAbs().maxCoeff() > 0);
      CHECK(same_bits(layer.forward(x), y));
      CHECK(same_bits(layer.merged().weight(), base.weight()));
    }
    CHECK(same_bits(LoraLinear(LinearView{base}, fresh_adalora<float>(30, 40, 4, {}, rng)).forward(x), y));
    LoraLinear off(LinearView{base},
                   LoraAdapter<float>(random_matrix<float>(4, 30, 5), random_matrix<float>(40, 4, 6), {}, random_vector<float>(40, 7)));
    CHECK(!same_bits(off.forward(x), y));
    off.adapter().set_scale(0);
    CHECK(same_bits(off.forward(x), y));
    CHECK(same_bits(off.merged().weight(), base.weight()));
    CHECK(same_bits(off.bias(), base.bias()));
  }
}

TEST_CASE("LoraLinear: any base can be wrapped, and adapters stack", "[peft]") {
  const Matrix<float> w = random_matrix<float>(24, 17, 1), x = random_matrix<float>(5, 17, 2);
  const Vector<float> bias = random_vector<float>(24, 3);
  const Linear<float> owned(w, bias);
  const LoraAdapter<float> one = some_lora<float>(17, 24, 3, 4), two = some_lora<float>(17, 24, 5, 6);
  const Matrix<float> y = LoraLinear(LoraLinear(owned, one), two).forward(x);
  CHECK(same_bits(LoraLinear(LoraLinear(LinearView{owned}, one), two).forward(x), y));
  CHECK(same_bits(LoraLinear(LoraLinear(PackedLinear{owned}, one), two).forward(x), y));
  CHECK(same_bits(LoraLinear(AnyLinear<float>(LoraLinear(AnyLinear<float>(owned), one)), two).forward(x), y));

  static_assert(LinearOp<LoraLinear<OwnLayer>> && !DenseLinear<LoraLinear<OwnLayer>> && !BackwardLinear<LoraLinear<OwnLayer>>);
  static_assert(DenseLinear<LoraLinear<LoraLinear<Linear<float>>>> && BackwardLinear<LoraLinear<LoraLinear<Linear<float>>>>);
  const Matrix<double> expected = pith_test::times_transposed(x, pith_test::widened<double>(w) + pith_test::delta_of(one));
  CHECK(near(LoraLinear(OwnLayer{w}, one).forward(x), expected,
             pith_test::adapted_bound(pith_test::widened<double>(x), pith_test::widened<double>(w), {}, pith_test::shown(one)), 2));
}

TEST_CASE("LoraLinear: merging rounds once, however many adapters are stacked", "[peft]") {
  const Linear<float> base(random_matrix<float>(70, 17, 1), random_vector<float>(70, 2));
  const LoraAdapter<float> one = some_lora<float>(17, 70, 3, 4);
  const LoraAdapter<float> two(random_matrix<float>(2, 17, 6), random_matrix<float>(70, 2, 7), {.alpha = 5}, random_vector<float>(70, 8));
  const LoraLinear layer(LoraLinear(LinearView{base}, one), two);
  const Eigen::MatrixXd exact = base.weight().cast<double>() + pith_test::delta_of(one) + pith_test::delta_of(two);
  const Linear<float> merged = layer.merged();
  const Eigen::MatrixXd half_ulp = exact.cwiseAbs() * (0.5 * double(std::numeric_limits<float>::epsilon()) * (1 + 1e-6));
  CHECK(near(merged.weight(), exact, half_ulp, 1));
  CHECK(same_bits(Vector<float>(merged.bias()), Vector<float>(base.bias() + two.scaled_bias())));

  Matrix<float> rows(66, 17);
  layer.copy_weight(3, rows);
  CHECK(same_bits(rows, merged.weight().middleRows(3, 66)));
  CHECK_THROWS_WITH(layer.copy_weight(5, rows), contains("rows 5 to 71 of a weight with 70 rows"));
  CHECK_THROWS_WITH(layer.bias(), contains("ask merged() for their sum"));
  CHECK_THROWS_AS(layer.bias(), StateError);

  const Matrix<bfloat16> narrow = random_matrix<bfloat16>(70, 17, 1);
  const Eigen::MatrixXd wide = pith_test::widened<double>(narrow) + pith_test::delta_of(one);
  CHECK(near(LoraLinear(LinearView{narrow}, one).merged().weight(), wide,
             Eigen::MatrixXd(wide.cwiseAbs() * (0.5 * double(std::numeric_limits<float>::epsilon()) * (1 + 1e-6))), 1));
}

TEST_CASE("LoraLinear: a thousand adapters come and go and the base keeps its bits", "[peft]") {
  const Linear<float> base(random_matrix<float>(20, 20, 1));
  const Matrix<float> before = base.weight(), x = random_matrix<float>(2, 20, 2), y = base.forward(x);
  LoraLinear layer(LinearView{base}, some_lora<float>(20, 20, 4, 3));
  const Matrix<float> adapted = layer.forward(x);
  const float scale = layer.adapter().scale();
  for (int i = 0; i < 1000; ++i) {
    layer.adapter().set_scale(0);
    if (i % 100 == 0) CHECK(same_bits(layer.forward(x), y));
    layer.adapter().set_scale(scale);
  }
  CHECK(same_bits(layer.forward(x), adapted));
  CHECK(same_bits(base.weight(), before));
}

TEST_CASE("LoraLinear: a FeedForward with every layer wrapped is a FeedForward of merged layers", "[peft]") {
  const Linear<double> up(random_matrix<double>(50, 12, 1), random_vector<double>(50, 2)), down(random_matrix<double>(12, 50, 3));
  const FeedForward wrapped(LoraLinear(LinearView{up}, some_lora<double>(12, 50, 3, 4)),
                            LoraLinear(LinearView{down}, some_lora<double>(50, 12, 3, 6)), Silu{});
  const FeedForward merged(wrapped.up().merged(), wrapped.down().merged(), Silu{});
  for (const Index tokens : {1, 70}) {
    const Matrix<double> x = random_matrix<double>(tokens, 12, 8), y = merged.forward(x);
    CHECK(
        near(wrapped.forward(x), y, 1e-10 * y.cwiseAbs().maxCoeff(), 8));  // 62 roundings of 1e-16, thrice, with room for the slope of silu
  }
}

TEST_CASE("LoraAdapter and LoraLinear: what does not fit is refused", "[peft]") {
  const Matrix<float> a = random_matrix<float>(3, 10, 1), b = random_matrix<float>(8, 3, 2);
  CHECK_THROWS_WITH(LoraAdapter<float>(a, Matrix<float>(b.transpose())), contains("LoraAdapter: up is [3, 8], expected [*, 3]"));
  CHECK_THROWS_WITH(LoraAdapter<float>(a, b, {}, Vector<float>::Zero(7).eval()), contains("bias has 7 entries, expected 8"));
  CHECK_THROWS_AS(LoraAdapter<float>(a, b, {.alpha = std::numeric_limits<double>::infinity()}), ShapeError);
  CHECK_THROWS_WITH(LoraLinear(Linear<float>(random_matrix<float>(8, 9, 1)), LoraAdapter{a, b}),
                    contains("down is [3, 10], expected [3, 9]"));
  CHECK_THROWS_WITH(LoraLinear(Linear<float>(random_matrix<float>(9, 10, 1)), LoraAdapter{a, b}),
                    contains("up is [3, 8], expected [3, 9]"));
  static_assert(std::is_same_v<decltype(LoraAdapter{a, b, {.alpha = 16}}), LoraAdapter<float>>);
  static_assert(std::is_same_v<decltype(LoraAdapter{a, b}), LoraAdapter<float>>);
}

TEST_CASE("fresh adapters start as their names say", "[peft]") {
  std::mt19937_64 rng(3);
  const Index in = 400, out = 300, rank = 16;
  const auto start = [&](LoraStart kind, double sigma = 0.02) { return fresh_factors<double>(in, out, rank, {kind, sigma}, rng); };
  const auto deviation = [](const Matrix<double>& m) { return std::sqrt(m.squaredNorm() / double(m.size())); };
  const double room = 5 / std::sqrt(2. * double(rank * out));  // five standard errors of a standard deviation
  const LoraFactors<double> normal = start(LoraStart::normal, 0.5), kaiming = start(LoraStart::kaiming),
                            gaussian = start(LoraStart::gaussian), uniform = start(LoraStart::uniform), bert = start(LoraStart::bert);
  CHECK(deviation(normal.down) == Approx(0.5).epsilon(room));
  CHECK(normal.up.isZero(0));
  CHECK(kaiming.down.cwiseAbs().maxCoeff() <= 0.05);
  CHECK(deviation(kaiming.down) == Approx(0.05 / std::sqrt(3.)).epsilon(room));
  CHECK(kaiming.up.isZero(0));
  CHECK(deviation(gaussian.down) == Approx(1. / 16).epsilon(room));
  CHECK(gaussian.up.isZero(0));
  CHECK(uniform.up.cwiseAbs().maxCoeff() <= 0.25);
  CHECK(deviation(uniform.up) == Approx(0.25 / std::sqrt(3.)).epsilon(room));
  CHECK(deviation(bert.down) == Approx(0.02).epsilon(room));
  CHECK(deviation(bert.up) == Approx(0.02).epsilon(room));

  const LoraFactors<double> orthogonal = start(LoraStart::orthogonal);
  CHECK(deviation(orthogonal.down) > 0.01);
  CHECK(deviation(orthogonal.up) > 0.01);
  CHECK(pith_test::times(orthogonal.up, orthogonal.down).cwiseAbs().maxCoeff() < 1e-14);
  CHECK_THROWS_WITH(fresh_factors<float>(4, 4, 3, {LoraStart::orthogonal}, rng), contains("3 is odd"));
  CHECK_THROWS_AS(fresh_factors<float>(-1, 4, 3, {}, rng), ShapeError);
  CHECK_THROWS_AS(fresh_factors<float>(4, 4, 3, {LoraStart::normal, -1}, rng), ShapeError);
  CHECK_THROWS_AS(fresh_factors<float>(std::numeric_limits<Index>::max(), 4, 3, {}, rng), CapacityError);

  std::mt19937_64 first(9), second(9);
  CHECK(same_bits(fresh_factors<float>(8, 8, 4, {}, first).down, fresh_factors<float>(8, 8, 4, {}, second).down));
}

TEST_CASE("DyLoraAdapter: rank b is the LoraAdapter of the first b components, bit for bit and without a copy", "[peft]") {
  const Matrix<float> a = random_matrix<float>(8, 30, 1), b = random_matrix<float>(20, 8, 2), x = random_matrix<float>(4, 30, 3);
  const Linear<float> base(random_matrix<float>(20, 30, 4));
  LoraLinear layer{LinearView{base}, DyLoraAdapter{a, b, {.alpha = 16}}};
  CHECK(layer.adapter().rank() == 8);
  const std::size_t bytes = layer.workspace_bytes(4);
  const float* numbers = std::as_const(layer).adapter().down().data();
  for (const Index rank : {1, 3, 8, 2}) {
    layer.adapter().set_rank(rank);
    CHECK(std::as_const(layer).adapter().down().data() == numbers);
    CHECK(layer.adapter().scale() == 16.f / float(rank));
    CHECK(layer.workspace_bytes(4) == bytes);
    const LoraAdapter cut{a.topRows(rank).eval(), b.leftCols(rank).eval(), {.alpha = 16}};
    CHECK(same_bits(layer.forward(x), LoraLinear(LinearView{base}, cut).forward(x)));
    CHECK(same_bits(layer.merged().weight(), LoraLinear(LinearView{base}, cut).merged().weight()));
  }
  for (const Index rank : {0, -1, 9}) CHECK_THROWS_WITH(layer.adapter().set_rank(rank), contains("expected 1 .. 8"));
  CHECK(layer.adapter().rank() == 2);
  CHECK_THROWS_AS(DyLoraAdapter(Matrix<float>(0, 3), Matrix<float>(3, 0)), ShapeError);
}

TEST_CASE("adapters: what λ and the bias are multiplied by is never out of date", "[peft]") {
  const Linear<double> base(Matrix<double>::Zero(1, 1));
  const Matrix<double> one = Matrix<double>::Ones(1, 1), x = Matrix<double>::Constant(1, 1, 7);
  const Vector<double> two = Vector<double>::Constant(1, 2);
  const auto refuses = [&](auto& layer, auto&& change, double expected) {
    Matrix<double> y = Matrix<double>::Constant(1, 1, -1);
    Workspace ws(layer.workspace_bytes(1));
    change(layer.adapter());
    CHECK_THROWS_AS(layer.forward(x, y, ws), StateError);
    CHECK(y(0, 0) == -1);
    layer.adapter().refresh();
    CHECK(std::abs(layer.forward(x)(0, 0) - expected) < 1e-3);  // the scale of triplets is alpha / (rank + 1e-5)
  };
  LoraLinear ada(LinearView{base}, AdaLoraAdapter<double>(one, two, one, {.alpha = 1}));
  refuses(
      ada, [](auto& a) { a.lambda()[0] = 3; }, 21);
  LoraLinear incre(LinearView{base}, IncreLoraAdapter<double>(one, two, one, {.alpha = 1}));
  refuses(
      incre, [](auto& a) { a.lambda()[0] = 3; }, 21);
  LoraLinear biased(LinearView{base}, LoraAdapter<double>(one, one, {.alpha = 1}, two));
  refuses(
      biased, [](auto& a) { a.bias()[0] = 5; }, 12);
  VectorRef<double> held = biased.adapter().bias();
  biased.adapter().refresh();
  held[0] = 6;
  CHECK_THROWS_AS(biased.forward(x), StateError);
}

TEST_CASE("adapters: what the accessors return makes the same adapter again", "[peft]") {
  const Index n = 6;  // rank, in and out, so that a factor turned round would fit
  const Matrix<float> a = random_matrix<float>(n, n, 1), b = random_matrix<float>(n, n, 2), x = random_matrix<float>(3, n, 3);
  const Vector<float> bias = random_vector<float>(n, 4), lambda = random_vector<float>(n, 5);
  const Linear<float> base(random_matrix<float>(n, n, 6));
  const auto same = [&](const auto& adapter, const auto& again) {
    CHECK(same_bits(LoraLinear(LinearView{base}, again).forward(x), LoraLinear(LinearView{base}, adapter).forward(x)));
  };
  for (const bool rslora : {false, true}) {
    LoraAdapter<float> lora(a, b, {.alpha = 5, .rslora = rslora}, bias);
    for (const float scale : {0.f, 0.3f, 0.f}) {
      const LoraAdapter<float>& seen = lora;
      CHECK(same_bits(Matrix<float>(seen.up()), b));
      CHECK(same_bits(seen.bias(), bias));
      CHECK(same_bits(Vector<float>(seen.scaled_bias()), seen.scale() == 0 ? Vector<float>() : Vector<float>(seen.scale() * bias)));
      same(seen, LoraAdapter<float>(seen.down(), Matrix<float>(seen.up()), seen.options(), seen.bias()));
      lora.set_scale(scale);
    }
  }
  DyLoraAdapter<float> dylora(a, b, {.alpha = 5});
  dylora.set_rank(4);
  same(dylora, DyLoraAdapter<float>(std::as_const(dylora).down(), Matrix<float>(std::as_const(dylora).up()), dylora.options()));
  const AdaLoraAdapter<float> ada(a, lambda, b, {.alpha = 5, .initial_rank = 9});
  same(ada, AdaLoraAdapter<float>(ada.down(), ada.lambda(), Matrix<float>(ada.up()), ada.options()));
  const IncreLoraAdapter<float> incre(a, lambda, b, {.alpha = 5, .capacity = 8});
  same(incre, IncreLoraAdapter<float>(incre.down(), incre.lambda(), Matrix<float>(incre.up()), incre.options()));
}
