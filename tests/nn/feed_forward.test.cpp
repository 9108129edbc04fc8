#include <cmath>

#include <pith/nn/feed_forward.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/products.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::random_matrix;

TEST_CASE("FeedForward and SwiGlu equal their formulas in double, in tiles or not", "[nn]") {
  const Index tokens = GENERATE(1, 5, 64, 150), in = 24, hidden = 40;
  const Matrix<double> x = random_matrix<double>(tokens, in, 1), gate = random_matrix<double>(hidden, in, 2),
                       up = random_matrix<double>(hidden, in, 3), down = random_matrix<double>(in, hidden, 4);
  const Vector<double> b = random_matrix<double>(hidden, 1, 5);
  const Matrix<double> g = pith_test::times_transposed(x, gate), u = pith_test::times_transposed(x, up),
                       shifted = pith_test::with_bias(u, b);
  const auto silu = [](double z) { return z / (1 + std::exp(-z)); };
  const auto gelu = [](double z) { return 0.5 * z * std::erfc(-z / std::sqrt(2.0)); };
  const double bound = 1e-15 * 24 * 40 * 64;  // two sums of that length over numbers of that size
  const SwiGlu swiglu{Linear<double>{gate}, Linear<double>{up}, Linear<double>{down}};
  CHECK(pith_test::near(swiglu.forward(x), pith_test::times_transposed(g.unaryExpr(silu).cwiseProduct(u), down), bound));
  const SwiGlu geglu{Linear<double>{gate}, Linear<double>{up}, Linear<double>{down}, GateActivation::gelu};
  CHECK(geglu.activation() == GateActivation::gelu);
  CHECK(pith_test::near(geglu.forward(x), pith_test::times_transposed(g.unaryExpr(gelu).cwiseProduct(u), down), bound));
  const FeedForward plain{Linear<double>{up, b}, Linear<double>{down}};
  CHECK(pith_test::near(plain.forward(x), pith_test::times_transposed(shifted.unaryExpr(gelu), down), bound));
}

TEST_CASE("blocks of layers take any LinearOp and check that they fit", "[nn]") {
  const Matrix<float> gate = random_matrix<float>(40, 24, 1), up = random_matrix<float>(40, 24, 2), down = random_matrix<float>(24, 40, 3),
                      x = random_matrix<float>(7, 24, 4);
  const SwiGlu owned{Linear<float>{gate}, Linear<float>{up}, Linear<float>{down}};
  const SwiGlu<AnyLinear<float>> erased{PackedLinear{gate}, LinearView{up}, PackedLinear{down}};
  CHECK(pith_test::same_bits(owned.forward(x), erased.forward(x)));
  CHECK_THROWS_AS((SwiGlu{Linear<float>{gate}, Linear<float>{down}, Linear<float>{down}}), ShapeError);
  CHECK_THROWS_AS((FeedForward{Linear<float>{up}, Linear<float>{up}}), ShapeError);
  Matrix<float> y(7, 24), wrong(7, 23);
  Workspace ws(owned.workspace_bytes(7));
  CHECK_NOTHROW(owned.forward(x, y, ws));
  CHECK_THROWS_AS(owned.forward(x, wrong, ws), ShapeError);
  CHECK_THROWS_AS(owned.forward(wrong, y, ws), ShapeError);
}
