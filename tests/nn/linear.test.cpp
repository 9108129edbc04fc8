#include <cmath>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>

#include <pith/core/executor.hpp>
#include <pith/nn/linear.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/products.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::near;
using pith_test::random_matrix;
using pith_test::same_bits;

namespace {

/// A layer that shows nothing of itself and has none of the optional members.
struct Doubling {
  using Scalar = float;
  Index in() const { return 4; }
  Index out() const { return 4; }
  void forward(ConstMatrixRef<float> x, MatrixRef<float> y, Workspace&) const { y = 2.f * x; }
};

struct NoForward {
  using Scalar = float;
  Index in() const { return 4; }
  Index out() const { return 4; }
};

static_assert(LinearOp<Doubling> && !DenseLinear<Doubling> && !LinearOp<NoForward>);
static_assert(DenseLinear<Linear<float>> && DenseLinear<Linear<double>>);
static_assert(DenseLinear<LinearView<float, bfloat16>> && DenseLinear<PackedLinear<float, half>> && DenseLinear<AnyLinear<float>>);
static_assert(!std::is_constructible_v<LinearView<float>, Linear<float>&&>, "a view of a temporary");

template <class L> void check_forms_agree(const L& layer, const Matrix<float>& w, const Vector<float>& bias) {
  CHECK(layer.in() == w.cols());
  CHECK(layer.out() == w.rows());
  CHECK(layer.bytes() > 0);
  CHECK(layer.bias().size() == bias.size());
  Matrix<float> rows(7, w.cols());
  layer.copy_weight(11, rows);
  CHECK(same_bits(rows, w.middleRows(11, 7)));

  const Linear<float> linear(w, bias);
  for (const Index tokens : {1, 2, 30}) {
    const Matrix<float> x = random_matrix<float>(tokens, w.cols(), 5);
    Matrix<float> y(tokens, w.rows());
    Workspace ws(layer.workspace_bytes(tokens));
    layer.forward(x, y, ws);
    CHECK(same_bits(y, linear.forward(x)));
    CHECK(same_bits(y, layer.forward(x)));
  }
}

template <class T> void check_forms(bool with_bias) {
  const Matrix<T> w = random_matrix<T>(40, 25, 1);
  const Matrix<float> wide = pith_test::widened(w);
  const Vector<float> bias = with_bias ? Vector<float>(random_matrix<float>(40, 1, 2)) : Vector<float>();
  check_forms_agree(LinearView<float, T>(w, bias), wide, bias);
  check_forms_agree(PackedLinear<float, T>(w, bias), wide, bias);
  check_forms_agree(PackedLinear<float, T>(PackedWeight<T>(w), bias), wide, bias);
  check_forms_agree(AnyLinear<float>(LinearView<float, T>(w, bias)), wide, bias);
  check_forms_agree(AnyLinear<float>(PackedLinear<float, T>(w, bias)), wide, bias);
}

}  // namespace

TEST_CASE("linear: y = x Wᵀ + bias", "[nn]") {
  const Matrix<double> w = random_matrix<double>(35, 20, 1), x = random_matrix<double>(6, 20, 2);
  const Vector<double> bias = random_matrix<double>(35, 1, 3);
  const Linear<double> linear(w, bias);
  Matrix<double> expected(6, 35), bound(6, 35);
  for (Index t = 0; t < 6; ++t) {
    for (Index c = 0; c < 35; ++c) {
      double sum = bias[c], size = std::abs(bias[c]);
      for (Index k = 0; k < 20; ++k) sum += x(t, k) * w(c, k), size += std::abs(x(t, k) * w(c, k));
      expected(t, c) = sum;
      bound(t, c) = 22 * std::numeric_limits<double>::epsilon() * size;
    }
  }
  CHECK(near(linear.forward(x), expected, bound, 2));
}

TEST_CASE("linear: owned, mapped, packed and erased layers give the same bits", "[nn]") {
  for (const bool with_bias : {false, true}) {
    check_forms<float>(with_bias);
    check_forms<bfloat16>(with_bias);
    check_forms<half>(with_bias);
  }
}

TEST_CASE("linear: the types follow from the operands", "[nn]") {
  const Linear<float> linear(random_matrix<float>(3, 2, 1), random_matrix<float>(3, 1, 2));
  const Matrix<bfloat16> narrow = random_matrix<bfloat16>(3, 2, 1);
  const Matrix<double> wide = random_matrix<double>(3, 2, 1);
  const Vector<float> bias = Vector<float>::Zero(3);
  static_assert(std::is_same_v<decltype(LinearView{linear}), LinearView<float, float>>);
  static_assert(std::is_same_v<decltype(LinearView{narrow, bias}), LinearView<float, bfloat16>>);
  static_assert(std::is_same_v<decltype(LinearView{wide}), LinearView<double, double>>);
  static_assert(std::is_same_v<decltype(PackedLinear{linear}), PackedLinear<float, float>>);
  static_assert(std::is_same_v<decltype(PackedLinear{narrow, bias}), PackedLinear<float, bfloat16>>);
  static_assert(std::is_same_v<decltype(PackedLinear{PackedWeight{narrow}}), PackedLinear<float, bfloat16>>);
  static_assert(std::is_same_v<decltype(AnyLinear{linear}), AnyLinear<float>>);
  CHECK(LinearView{linear}.weight().data() == linear.weight().data());
  CHECK(PackedLinear{linear}.bias()[2] == linear.bias()[2]);
}

TEST_CASE("linear: assigning a view shows the other weight and writes to neither", "[nn]") {
  const Matrix<float> a = Matrix<float>::Constant(2, 2, 1.f), b = Matrix<float>::Constant(3, 2, 2.f);
  LinearView<float> view(a);
  view = LinearView<float>(b);
  CHECK(view.weight().data() == b.data());
  CHECK(view.out() == 3);
  CHECK((a.array() == 1.f).all());
}

TEST_CASE("linear: backward is the product with W, whoever holds it", "[nn]") {
  const Matrix<float> w = random_matrix<float>(50, 33, 1), dy = random_matrix<float>(9, 50, 2), back = w.transpose();
  const Linear<float> linear(w);
  Matrix<float> owned(9, 33), mapped(9, 33), erased(9, 33);
  Workspace ws(linear.workspace_bytes(9));
  linear.backward(dy, owned, ws);
  LinearView{linear}.backward(dy, mapped, ws);
  AnyLinear<float>(linear).backward(dy, erased, ws);
  CHECK(near(owned, pith_test::times(dy, w), pith_test::dot_bound<float>(dy, back), 2));
  CHECK(same_bits(mapped, owned));
  CHECK(same_bits(erased, owned));

  Matrix<float> dx(9, 33);
  const AnyLinear<float> packed = PackedLinear{linear};
  CHECK_THROWS_AS(packed.backward(dy, dx, ws), UnsupportedError);
}

TEST_CASE("AnyLinear: an empty one says so", "[nn]") {
  const AnyLinear<float> empty;
  CHECK(empty.empty());
  Matrix<float> x(1, 1);
  Workspace ws;
  CHECK_THROWS_AS(empty.in(), StateError);
  CHECK_THROWS_AS(empty.forward(x, x, ws), StateError);
  CHECK_THROWS_WITH(empty.workspace_bytes(1), contains("empty; assign a Linear"));
  CHECK_THROWS_AS(empty.bias(), StateError);
}

TEST_CASE("AnyLinear: any layer will do, but shows only what it has", "[nn]") {
  const AnyLinear<float> any = Doubling{};
  const Matrix<float> x = random_matrix<float>(3, 4, 1);
  CHECK(same_bits(any.forward(x), Matrix<float>(2.f * x)));
  CHECK(any.workspace_bytes(100) == 0);
  CHECK(any.bytes() == 0);
  Matrix<float> rows(1, 4);
  Workspace ws;
  CHECK_THROWS_AS(any.copy_weight(0, rows), UnsupportedError);
  CHECK_THROWS_AS(any.bias(), UnsupportedError);
  CHECK_THROWS_AS(any.backward(x, rows, ws), UnsupportedError);
}

TEST_CASE("AnyLinear: copies share the layer, and the memory it looks into lives as long", "[nn]") {
  auto numbers = std::make_shared<const Matrix<float>>(random_matrix<float>(5, 4, 1));
  const std::weak_ptr<const Matrix<float>> watched = numbers;
  const Matrix<float> x = random_matrix<float>(2, 4, 2), expected = Linear<float>(*numbers).forward(x);
  {
    AnyLinear<float> copy;
    {
      const AnyLinear<float> any(LinearView<float>(*numbers), numbers);
      copy = any;
    }
    numbers.reset();
    REQUIRE(!watched.expired());
    CHECK(same_bits(copy.forward(x), expected));
  }
  CHECK(watched.expired());
}

TEST_CASE("linear: refuses what does not belong together", "[nn]") {
  const Matrix<float> w = random_matrix<float>(3, 2, 1);
  const Vector<float> two = Vector<float>::Zero(2);
  CHECK_THROWS_AS(Linear<float>(w, two), ShapeError);
  CHECK_THROWS_AS(LinearView<float>(w, two), ShapeError);
  CHECK_THROWS_AS(PackedLinear<float>(w, two), ShapeError);
  CHECK_THROWS_WITH(Linear<float>(w, two), contains("pith::Linear: bias has 2 entries, expected 3 or none"));

  const Linear<float> linear(w);
  const AnyLinear<float> any = PackedLinear{linear};
  Matrix<float> y = Matrix<float>::Constant(4, 3, 8.f), rows(2, 2), wide_rows(2, 3);
  Workspace ws(linear.workspace_bytes(4)), none;
  CHECK_THROWS_AS(linear.forward(random_matrix<float>(4, 3, 2), y, ws), ShapeError);
  CHECK_THROWS_AS(any.forward(random_matrix<float>(3, 2, 2), y, ws), ShapeError);
  CHECK_THROWS_AS(linear.forward(random_matrix<float>(4, 2, 2), y, none), CapacityError);
  CHECK_THROWS_AS(linear.copy_weight(2, rows), ShapeError);
  CHECK_THROWS_AS(linear.copy_weight(-1, rows), ShapeError);
  CHECK_THROWS_AS(LinearView{linear}.copy_weight(0, wide_rows), ShapeError);
  CHECK_THROWS_AS(any.copy_weight(2, rows), ShapeError);
  CHECK((y.array() == 8.f).all());
}

TEST_CASE("linear: the workspace it asks for is enough, with workers too", "[nn]") {
  ThreadPool pool(3);
  const Linear<float> linear(random_matrix<float>(70, 40, 1));
  for (const Index tokens : {1, 4, 23, 24, 129}) {
    Workspace ws(linear.workspace_bytes(tokens, pool.size()), pool);
    Matrix<float> y(tokens, 70), dx(tokens, 40);
    linear.forward(random_matrix<float>(tokens, 40, 2), y, ws);
    linear.backward(y, dx, ws);
    CHECK(ws.used() == 0);
  }
}
