#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <pith/core/executor.hpp>
#include <pith/nn/int4.hpp>
#include <pith/nn/linear.hpp>

#include "support/catch.hpp"
#include "support/layer_laws.hpp"
#include "support/near.hpp"
#include "support/products.hpp"
#include "support/random_matrix.hpp"
#include "support/rounded_blocks.hpp"

using namespace pith;
using pith_test::check_any_batch;
using pith_test::check_passes;
using pith_test::contains;
using pith_test::near;
using pith_test::random_matrix;
using pith_test::same_bits;
using pith_test::times_transposed;
using pith_test::with_bias;

namespace {

static_assert(DenseLinear<Int4Linear> && BackwardLinear<Int4Linear>);

/// Codes as a file holds them, and the weights they stand for.
template <class T> struct FileCodes {
  FileCodes(Index out, Index in, Index group, bool with_zeros, std::uint64_t seed) : size(group <= 0 ? in : group) {
    std::mt19937_64 rng(seed);
    const Index count = (in + size - 1) / size;
    codes = Matrix<std::uint8_t>(out, in);
    for (Index i = 0; i < codes.size(); ++i) codes.data()[i] = std::uint8_t(rng() % 16);
    scales = random_matrix<T>(out, count, seed + 1, .1);
    zeros = Matrix<std::uint8_t>(with_zeros ? out : 0, with_zeros ? count : 0);
    for (Index i = 0; i < zeros.size(); ++i) zeros.data()[i] = std::uint8_t(rng() % 17);
    groups = {.size = group, .zeros = with_zeros};
  }
  void shuffle(std::uint64_t seed) {
    groups.order.resize(std::size_t(codes.cols()));
    for (std::size_t k = 0; k < groups.order.size(); ++k) groups.order[k] = std::int32_t(k);
    std::shuffle(groups.order.begin(), groups.order.end(), std::mt19937_64(seed));
  }
  Int4Weight weight() const {
    return Int4Weight(codes.rows(), codes.cols(), groups, [&](Index first, Index n) {
      return Int4Rows<T>{codes.middleRows(first, n), scales.middleRows(first, n),
                         groups.zeros ? ConstMatrixRef<std::uint8_t>(zeros.middleRows(first, n)) : ConstMatrixRef<std::uint8_t>()};
    });
  }
  Matrix<float> decoded() const {
    Matrix<float> w(codes.rows(), codes.cols());
    for (Index o = 0; o < w.rows(); ++o) {
      for (Index place = 0; place < w.cols(); ++place) {
        const Index k = groups.order.empty() ? place : groups.order[std::size_t(place)], g = place / size;
        w(o, k) = float(int(codes(o, k)) - (groups.zeros ? int(zeros(o, g)) : 8)) * pith::detail::widen(scales(o, g));
      }
    }
    return w;
  }
  Matrix<std::uint8_t> codes, zeros;
  Matrix<T> scales;
  Index size;
  Int4Groups groups;
};

Matrix<float> shown_int4(const Int4Weight& weight) {
  Matrix<float> rows(weight.out(), weight.in());
  weight.copy_rows(0, rows);
  return rows;
}

/// The law of the product in plain loops, from the weight's records.
Matrix<float> int4_by_the_law(const Int4Weight& weight, const Matrix<float>& x, const Vector<float>& bias) {
  const Index group = weight.group();
  Matrix<float> y = Matrix<float>::Zero(x.rows(), weight.out());
  for (Index t = 0; t < x.rows(); ++t) {
    for (Index g = 0; g * group < x.cols(); ++g) {
      std::vector<float> block(std::size_t(group), 0.f);
      for (Index k = 0; k < group && g * group + k < x.cols(); ++k)
        block[std::size_t(k)] = x(t, weight.order().empty() ? g * group + k : weight.order()[std::size_t(g * group + k)]);
      const pith_test::RoundedBlock rounded(block);
      for (Index o = 0; o < weight.out(); ++o) {
        const auto record = weight.record(o / 32, g);
        long long codes = 0;
        for (Index k = 0; k < group; ++k) codes += rounded.q[std::size_t(k)] * record.code(o % 32, k);
        float total = 0;
        if (weight.shape().zeros) {
          total = std::fma(-record.zero(o % 32), float(rounded.sum), float(codes));
        } else {
          total = float(codes - 8 * rounded.sum);
        }
        const volatile float factor = record.scale(o % 32) * rounded.step;
        y(t, o) = std::fma(total, factor, y(t, o));
      }
    }
    if (bias.size()) y.row(t) += bias.transpose();
  }
  return y;
}

/// What rounding x may do: half a step a weight of each block, and float rounding of the sums.
Matrix<double> int4_bound(const Matrix<float>& x, const Matrix<float>& w, Index group, const std::vector<std::int32_t>& order) {
  Matrix<double> bound = pith_test::dot_bound<float>(x, w);
  for (Index t = 0; t < x.rows(); ++t) {
    for (Index first = 0; first < x.cols(); first += group) {
      double most = 0;
      std::vector<double> sums(std::size_t(w.rows()), 0.);
      for (Index place = first; place < std::min(x.cols(), first + group); ++place) {
        const Index k = order.empty() ? place : order[std::size_t(place)];
        most = std::max(most, std::abs(double(x(t, k))));
        for (Index o = 0; o < w.rows(); ++o) sums[std::size_t(o)] += std::abs(double(w(o, k)));
      }
      for (Index o = 0; o < w.rows(); ++o) bound(t, o) += sums[std::size_t(o)] * (most / 16319 / 2 * (1 + 1e-3));
    }
  }
  return bound;
}

}  // namespace

TEMPLATE_TEST_CASE("int4: a file's codes decode exactly", "[nn]", half, bfloat16) {
  for (const bool with_zeros : {false, true}) {
    for (const bool shuffled : {false, true}) {
      for (const auto& [in, group] : {std::pair<Index, Index>{64, 32}, {200, 64}, {40, 8}, {256, 128}, {300, -1}, {1024, 512}, {96, 48}}) {
        FileCodes<TestType> file(70, in, group, with_zeros, 1);
        if (shuffled) file.shuffle(2);
        const Int4Weight weight = file.weight();
        INFO("in " << in << ", group " << group << ", zeros " << with_zeros << ", shuffled " << shuffled);
        REQUIRE(weight.in() == in);
        REQUIRE(weight.out() == 70);
        CHECK(weight.group() <= 128);
        CHECK(same_bits(shown_int4(weight), file.decoded()));
        Matrix<float> some(3, in);
        weight.copy_rows(31, some);
        CHECK(same_bits(some, Matrix<float>(file.decoded().middleRows(31, 3))));
      }
    }
  }
}

TEST_CASE("int4: four and a half bits a weight in groups of 32", "[nn]") {
  const Int4Weight weight(random_matrix<float>(64, 256, 1));
  CHECK(weight.group() == 32);
  CHECK(weight.bytes() * 8 == std::size_t(64 * 256) * 9 / 2);
  CHECK(Int4Weight(random_matrix<float>(64, 256, 1), 128).bytes() * 8 == std::size_t(64 * 256) * 33 / 8);
  CHECK(FileCodes<half>(64, 256, 32, true, 1).weight().bytes() * 8 == std::size_t(64 * 256) * 5);
}

TEST_CASE("int4: a group gets the best of 19 roundings", "[nn]") {
  for (const double size : {1e-3, 1., 1e3}) {
    const Matrix<float> w = random_matrix<float>(33, 100, 3, size);
    const Matrix<float> back = shown_int4(Int4Weight(w));
    for (Index o = 0; o < w.rows(); ++o) {
      for (Index first = 0; first < w.cols(); first += 32) {
        const Index n = std::min<Index>(32, w.cols() - first);
        const auto group = w.row(o).segment(first, n).cast<double>().eval();
        Index at = 0;
        group.cwiseAbs().maxCoeff(&at);
        double best = std::numeric_limits<double>::infinity();
        for (int i = -9; i <= 9; ++i) {
          double with_w = 0, squares = 0, error = 0;
          const auto code = [&](Index k) { return std::clamp(std::round(-(8 + i / 10.) * group[k] / group[at]), -8., 7.); };
          for (Index k = 0; k < n; ++k) with_w += code(k) * group[k], squares += code(k) * code(k);
          const double scale = double(float(half(float(with_w / squares))));
          for (Index k = 0; k < n; ++k) error += std::pow(scale * code(k) - group[k], 2);
          best = std::min(best, error);
        }
        const double error = (back.row(o).segment(first, n).cast<double>() - group).squaredNorm();
        INFO("size " << size << ", row " << o << ", group at " << first);
        CHECK(error <= best * (1 + 1e-3) + 1e-30);
        CHECK(error >= best * (1 - 1e-3));
      }
    }
  }
}

TEST_CASE("int4: groups that scales cannot describe", "[nn]") {
  constexpr float tiny = std::numeric_limits<float>::denorm_min(), huge = std::numeric_limits<float>::max();
  Matrix<float> w = Matrix<float>::Zero(6, 64);
  w.row(1).setConstant(tiny);
  w(2, 5) = huge;
  w(3, 40) = std::numeric_limits<float>::quiet_NaN();
  w(4, 0) = -std::numeric_limits<float>::infinity();
  w(5, 3) = 1, w(5, 4) = -8;
  const Matrix<float> back = shown_int4(Int4Weight(w));
  CHECK((back.topRows(2).array() == 0).all());
  CHECK(back.row(2).head(32).array().isNaN().all());
  CHECK((back.row(2).tail(32).array() == 0).all());
  CHECK((back.row(3).head(32).array() == 0).all());
  CHECK(back.row(3).tail(32).array().isNaN().all());
  CHECK(back.row(4).head(32).array().isNaN().all());
  CHECK(same_bits(back.row(5), w.row(5)));
  CHECK(Int4Weight(Matrix<float>(0, 3)).out() == 0);
  CHECK(Int4Weight(Matrix<float>(3, 0)).in() == 0);
}

TEST_CASE("int4: exact sums of groups, added in order, for any batch", "[nn]") {
  ThreadPool pool(3);
  for (const auto& [in, group] : {std::pair<Index, Index>{256, 32}, {200, 64}, {40, 8}, {1024, 128}, {7, 32}, {176, 88}}) {
    for (const Index out : {1, 32, 70}) {
      for (const bool with_zeros : {false, true}) {
        FileCodes<half> file(out, in, group, with_zeros, 4);
        if (out == 70) file.shuffle(5);
        const Vector<float> bias = out == 32 ? Vector<float>() : Vector<float>(random_matrix<float>(out, 1, 6));
        const Int4Linear layer(file.weight(), bias);
        Matrix<float> x = random_matrix<float>(29, in, 7);
        x.row(3) *= 1e20f;
        x.row(4).setZero();
        x.row(5) *= 1e-30f;
        x.row(6) *= 1e-36f;
        const Matrix<float> expected = int4_by_the_law(layer.weight(), x, bias);
        INFO("in " << in << ", group " << group << ", out " << out << ", zeros " << with_zeros);
        check_any_batch(layer, x, expected, {1, 2, 4, 5, 7, 10, 29}, pool);
      }
    }
  }
}

TEST_CASE("int4: passes of many tokens and several workers", "[nn]") {
  const Int4Linear layer(Int4Weight(random_matrix<float>(100, 160, 1)));
  const Matrix<float> x = random_matrix<float>(300, 160, 2);
  check_passes(layer, x, int4_by_the_law(layer.weight(), x, {}));
}

TEST_CASE("int4: near the product that its weights stand for", "[nn]") {
  for (const bool with_zeros : {false, true}) {
    for (const Index group : {32, 128}) {
      FileCodes<bfloat16> file(64, 512, group, with_zeros, 1);
      file.shuffle(3);
      const Vector<float> bias = random_matrix<float>(64, 1, 3);
      const Int4Linear layer(file.weight(), bias);
      Matrix<float> x = random_matrix<float>(9, 512, 2);
      for (Index k = 0; k < x.size(); k += 64) x.data()[k] *= 30;
      const Matrix<float> w = file.decoded();
      const Matrix<double> expected = with_bias(times_transposed(x, w), bias);
      const Matrix<double> bound = with_bias(int4_bound(x, w, group, layer.weight().order()), (bias.cwiseAbs() * 1.2e-7f).eval());
      CHECK(near(layer.forward(x), expected, bound, 1));
      CHECK(same_bits(AnyLinear<float>(layer).forward(x), layer.forward(x)));
      CHECK(AnyLinear<float>(layer).bytes() == layer.weight().bytes() + 64 * sizeof(float));
    }
  }
}

TEST_CASE("int4: not-a-number and infinity make their token NaN and no other", "[nn]") {
  const Int4Linear layer(Int4Weight(random_matrix<float>(40, 96, 1)));
  Matrix<float> x = random_matrix<float>(14, 96, 2);
  const Matrix<float> before = layer.forward(x);
  x(2, 50) = std::numeric_limits<float>::quiet_NaN();
  x(9, 0) = -std::numeric_limits<float>::infinity();
  const Matrix<float> after = layer.forward(x);
  for (Index t = 0; t < 14; ++t) {
    if (t == 2 || t == 9) {
      CHECK(after.row(t).array().isNaN().all());
    } else {
      CHECK(same_bits(after.row(t), before.row(t)));
    }
  }
  Matrix<float> w = random_matrix<float>(40, 96, 1);
  w(7, 1) = std::numeric_limits<float>::quiet_NaN();
  const Matrix<float> y = Int4Linear(w).forward(random_matrix<float>(3, 96, 2));
  CHECK(y.col(7).array().isNaN().all());
  CHECK(!y.leftCols(7).array().isNaN().any());
}

TEST_CASE("int4: the gradient of the input is that of the decoded layer", "[nn]") {
  for (const auto& [in, group] : {std::pair<Index, Index>{256, 32}, {200, 64}, {44, 8}, {300, -1}, {7, 32}}) {
    for (const bool with_zeros : {false, true}) {
      for (const bool shuffled : {false, true}) {
        FileCodes<bfloat16> file(70, in, group, with_zeros, 1);
        if (shuffled) file.shuffle(2);
        const Int4Linear layer(file.weight());
        const Linear<float> decoded(file.decoded());
        for (const Index tokens : {1, 30}) {
          const Matrix<float> dy = random_matrix<float>(tokens, 70, 3);
          Matrix<float> dx(tokens, in), expected(tokens, in);
          Workspace ws(std::max(layer.workspace_bytes(tokens), decoded.workspace_bytes(tokens)));
          layer.backward(dy, dx, ws);
          decoded.backward(dy, expected, ws);
          INFO("in " << in << ", group " << group << ", zeros " << with_zeros << ", shuffled " << shuffled << ", tokens " << tokens);
          CHECK(same_bits(dx, expected));
        }
      }
    }
  }
}

TEST_CASE("int4: no inputs leave the bias, no tokens nothing", "[nn]") {
  const Vector<float> bias = random_matrix<float>(40, 1, 1);
  const Matrix<float> y = Int4Linear(Matrix<float>(40, 0), bias).forward(Matrix<float>(2, 0));
  CHECK(same_bits(y.row(0), bias.transpose()));
  CHECK(same_bits(y.row(1), bias.transpose()));
  CHECK(Int4Linear(Matrix<float>(40, 8), bias).forward(Matrix<float>(0, 8)).rows() == 0);
  CHECK(Int4Linear(Matrix<float>(0, 8)).forward(Matrix<float>(2, 8)).cols() == 0);
}

TEST_CASE("int4: what does not fit is refused", "[nn]") {
  const Matrix<float> w = random_matrix<float>(8, 16, 1);
  const Int4Linear layer(w);
  Matrix<float> y(1, 8), rows(4, 16);
  Workspace ws(layer.workspace_bytes(1));
  CHECK_THROWS_AS(Int4Linear(w, Vector<float>(7)), ShapeError);
  CHECK_THROWS_WITH(layer.forward(Matrix<float>(1, 5), y, ws), contains("x is [1, 5], expected [*, 16]"));
  CHECK_THROWS_AS(layer.weight().copy_rows(5, rows), ShapeError);
  CHECK_THROWS_AS(layer.weight().copy_rows(-1, rows), ShapeError);
  Workspace small(16);
  CHECK_THROWS_AS(layer.forward(Matrix<float>(1, 16), y, small), CapacityError);
  CHECK_THROWS_WITH(Int4Weight(w, 20), contains("groups of 20 inputs, expected a multiple of 8 up to 128"));
  CHECK_THROWS_AS(Int4Weight(w, 256), ShapeError);

  CHECK(Int4Weight::holds(1024, 256));
  CHECK(Int4Weight::holds(1024, -1));
  CHECK(Int4Weight::holds(30, 30));
  CHECK(!Int4Weight::holds(1024, 36));
  CHECK(!Int4Weight::holds(1024, 4));
  CHECK_THROWS_WITH(FileCodes<half>(8, 64, 36, false, 1).weight(), contains("groups of 36 inputs"));
  const auto refused = [](auto&& spoil, const char* message) {
    FileCodes<half> file(40, 64, 32, true, 1);
    file.shuffle(2);
    spoil(file);
    CHECK_THROWS_WITH(file.weight(), contains(message));
  };
  refused([](auto& file) { file.codes(35, 3) = 16; }, "row 35 holds a code");
  refused([](auto& file) { file.zeros(2, 1) = 17; }, "row 2 holds a code");
  refused([](auto& file) { file.scales = Matrix<half>(40, 3); }, "scales is [32, 3], expected [32, 2]");
  refused([](auto& file) { file.zeros = Matrix<std::uint8_t>::Zero(40, 3); }, "zeros is [32, 3], expected [32, 2]");
  refused([](auto& file) { file.groups.order[3] = 64; }, "no permutation of 0 to 63");
  refused([](auto& file) { file.groups.order[3] = -1; }, "no permutation");
  refused([](auto& file) { file.groups.order[3] = file.groups.order[4]; }, "no permutation");
  refused([](auto& file) { file.groups.order.pop_back(); }, "the order of 63 inputs");
}
