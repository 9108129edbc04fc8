// Adapters over a base in four or eight bits whose activations are rounded to integers.
#include <random>
#include <type_traits>

#include <pith/nn/int4.hpp>
#include <pith/nn/int8.hpp>
#include <pith/peft/dora.hpp>
#include <pith/peft/lora.hpp>
#include <pith/peft/lora_init.hpp>
#include <pith/peft/train.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/products.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::near;
using pith_test::random_matrix;
using pith_test::random_vector;
using pith_test::same_bits;
using pith_test::times;
using pith_test::times_transposed;
using pith_test::widened;
using pith_test::with_bias;

namespace {

template <class Layer> Layer rounded_layer() {
  const Matrix<float> weight = random_matrix<float>(70, 64, 1);
  const Vector<float> bias = random_vector<float>(70, 2);
  if constexpr (std::is_same_v<Layer, Int8Linear>) {
    return Layer(weight, bias, Compute::int15);
  } else {
    return Layer(weight, bias);
  }
}

template <class Layer> struct IntegerBase {
  Layer base = rounded_layer<Layer>();
  LoraAdapter<float> adapter{random_matrix<float>(3, 64, 3), random_matrix<float>(70, 3, 4), {.alpha = 6}};
  Matrix<float> x = random_matrix<float>(5, 64, 6);
  Matrix<float> w = [this] {
    Matrix<float> rows(70, 64);
    base.copy_weight(0, rows);
    return rows;
  }();
  Matrix<double> v = widened<double>(w) + 2 * times(random_matrix<float>(70, 3, 4), random_matrix<float>(3, 64, 3));
  Matrix<double> expected(const Matrix<double>& weight) const { return with_bias(times_transposed(x, weight), base.bias()); }
  // Half a step of 1 / 16319 for each of 64 weights of at most 1, and the rounding of floats.
  static constexpr double bound = 64 * .5 / 16319 + 64 * 8 * 1.2e-7;
};

}  // namespace

TEMPLATE_TEST_CASE("integer base: LoRA, DoRA and merging", "[peft]", Int4Linear, Int8Linear) {
  const IntegerBase<TestType> c;
  const LoraLinear lora(c.base, c.adapter);
  CHECK(near(lora.forward(c.x), c.expected(c.v), c.bound));
  CHECK(near(lora.merged().weight(), c.v, 1e-6));
  CHECK(same_bits(LoraLinear(AnyLinear<float>(c.base), c.adapter).forward(c.x), lora.forward(c.x)));

  const Vector<float> magnitude = random_vector<float>(70, 5);
  const DoraLinear dora(c.base, c.adapter, magnitude);
  Matrix<double> scaled = c.v;
  for (Index o = 0; o < 70; ++o) scaled.row(o) *= double(magnitude[o]) / scaled.row(o).norm();
  CHECK(near(dora.forward(c.x), c.expected(scaled), c.bound));
  CHECK(near(dora.merged().weight(), scaled, 1e-6));
}

TEST_CASE("integer base: adapters are trained over four bits", "[peft]") {
  const IntegerBase<Int4Linear> c;
  const Matrix<float> goal = c.w + times(random_matrix<float>(70, 2, 8, .3), random_matrix<float>(2, 64, 9, .3)).cast<float>();
  std::mt19937_64 rng(4);
  LoraLinear layer(c.base, fresh_lora<float>(64, 70, 4, {.alpha = 8}, {}, rng));
  AdamW<float> adam({.learning_rate = 0.01f, .weight_decay = 0});
  Workspace ws(2 * layer.workspace_bytes(16));
  double first = 0, loss = 0;
  for (int step = 0; step < 200; ++step) {
    const Matrix<float> x = random_matrix<float>(16, 64, 100 + std::uint64_t(step));
    const Matrix<float> gap = layer.forward(x) - with_bias(times_transposed(x, goal), c.base.bias()).cast<float>();
    loss = double(gap.squaredNorm());
    if (step == 0) first = loss;
    const Matrix<float> dy = gap / 16;
    auto grads = gradients_of(layer);
    Matrix<float> dx(16, 64);
    backward(layer, x, dy, grads, MatrixRef<float>(dx), ws);
    if (step == 0) CHECK(near(dx, times(dy, c.w), 1e-5 * (1 + double(dy.cwiseAbs().maxCoeff()))));
    adam.step("layer", layer.adapter(), grads);
  }
  CHECK(loss < .05 * first);
}
