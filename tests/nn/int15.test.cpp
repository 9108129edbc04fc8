// 8-bit weights over activations rounded to integers of 15 bits.
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <tuple>
#include <vector>

#include <pith/core/detail/integer_lanes.hpp>
#include <pith/core/executor.hpp>
#include <pith/nn/int8.hpp>
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

using EveryByteLanes = std::tuple<detail::PlainLanes, detail::WholeRows<detail::PlainLanes>, detail::PairLanes
#if defined(EIGEN_VECTORIZE_SSE2)
                                  ,
                                  detail::Pairs128, detail::WholeRows<detail::Pairs128>
#endif
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && defined(EIGEN_VECTORIZE_AVX2)
                                  ,
                                  detail::Pairs256, detail::WholeRows<detail::Pairs256>
#endif
#if defined(__aarch64__) && defined(EIGEN_VECTORIZE_NEON)
                                  ,
                                  detail::PairsNeon, detail::WholeRows<detail::PairsNeon>
#endif
                                  >;

/// Codes of all kinds, -128 too, the same on every machine.
Int8Weight any_bytes(Index out, Index in) {
  std::mt19937_64 rng(7);
  Matrix<std::int8_t> codes(out, in);
  for (Index i = 0; i < codes.size(); ++i) codes.data()[i] = static_cast<std::int8_t>(static_cast<int>(rng() % 256) - 128);
  return Int8Weight::of_codes(
      out, in, [&](Index first, Index n) { return codes.middleRows(first, n); }, Vector<float>(random_matrix<float>(out, 1, 8, .1)));
}

Matrix<float> codes_of(const Int8Weight& weight) {
  Matrix<float> codes(weight.out(), weight.in());
  weight.codes().copy_rows(0, codes);
  return codes;
}

/// Activations of all sizes.
Matrix<float> activations_of_all_sizes(Index tokens, Index in) {
  Matrix<float> x = random_matrix<float>(tokens, in, 9);
  for (Index t = 0; t < tokens; ++t) x.row(t) *= std::ldexp(1.f, int(t * 37 % 61) - 30);
  x.row(tokens - 1).tail(1) *= 1e8f;
  x.row(0).setZero();
  x.row(2) *= 1e-30f;
  return x;
}

/// The law of the product in plain loops.
Matrix<float> int15_by_the_law(const Int8Weight& weight, const Matrix<float>& x, const Vector<float>& bias) {
  constexpr Index block = 128;
  const Matrix<float> codes = codes_of(weight);
  Matrix<float> y = Matrix<float>::Zero(x.rows(), weight.out());
  for (Index t = 0; t < x.rows(); ++t) {
    for (Index first = 0; first < x.cols(); first += block) {
      const Index n = std::min(block, x.cols() - first);
      const float* from = x.data() + t * x.cols() + first;
      const pith_test::RoundedBlock rounded(std::vector<float>(from, from + n));
      for (Index o = 0; o < weight.out(); ++o) {
        long long sum = 0;
        for (Index k = 0; k < n; ++k) sum += rounded.q[std::size_t(k)] * static_cast<long long>(codes(o, first + k));
        y(t, o) = std::fma(float(sum), rounded.step, y(t, o));
      }
    }
    for (Index o = 0; o < weight.out(); ++o) y(t, o) = std::fma(y(t, o), weight.scales()[o], bias.size() ? bias[o] : 0.f);
  }
  return y;
}

/// What rounding x may do: half a step a weight of each block, and float rounding of the sums.
Matrix<double> int15_bound(const Matrix<float>& x, const Matrix<float>& w) {
  Matrix<double> bound = pith_test::dot_bound<float>(x, w);
  for (Index t = 0; t < x.rows(); ++t) {
    for (Index first = 0; first < x.cols(); first += 128) {
      const Index n = std::min<Index>(128, x.cols() - first);
      const double step = double(x.row(t).segment(first, n).cwiseAbs().maxCoeff()) / 16319;
      for (Index o = 0; o < w.rows(); ++o)
        for (Index k = first; k < first + n; ++k) bound(t, o) += std::abs(double(w(o, k))) * (step / 2 * (1 + 1e-3));
    }
  }
  return bound;
}

}  // namespace

TEST_CASE("int15: exact sums of blocks, added in order, for any batch", "[nn]") {
  ThreadPool pool(3);
  for (const Index in : {1, 7, 40, 128, 130, 260, 515}) {
    for (const Index out : {1, 32, 70}) {
      const Vector<float> bias = out == 32 ? Vector<float>() : Vector<float>(random_matrix<float>(out, 1, 6));
      const Int8Linear layer(any_bytes(out, in), bias, Compute::int15);
      const Matrix<float> x = activations_of_all_sizes(29, in);
      const Matrix<float> expected = int15_by_the_law(layer.weight(), x, bias);
      INFO("in " << in << ", out " << out);
      check_any_batch(layer, x, expected, {1, 2, 3, 4, 6, 7, 12, 13, 25, 29}, pool);
    }
  }
}

TEST_CASE("int15: passes of many tokens and several workers", "[nn]") {
  const Int8Linear layer(any_bytes(100, 160), {}, Compute::int15);
  const Matrix<float> x = random_matrix<float>(300, 160, 2);
  check_passes(layer, x, int15_by_the_law(layer.weight(), x, {}));
}

TEST_CASE("int15: sums of the largest codes and activations are exact", "[nn]") {
  for (const int code : {-128, 127}) {
    for (const float v : {1.f, -1.f}) {
      const Matrix<std::int8_t> codes = Matrix<std::int8_t>::Constant(33, 256, static_cast<std::int8_t>(code));
      const Int8Weight weight = Int8Weight::of_codes(
          33, 256, [&](Index first, Index n) { return codes.middleRows(first, n); }, Vector<float>::Ones(33));
      const Matrix<float> x = Matrix<float>::Constant(14, 256, v);
      const auto block = float(16319LL * 128 * code * int(v));  // one of two, as integers
      const float y = std::fma(block, 1 / 16319.f, std::fma(block, 1 / 16319.f, 0.f));
      const Int8Linear layer(weight, {}, Compute::int15);
      CHECK((layer.forward(x).array() == y).all());
      CHECK((layer.forward(x.topRows(1)).array() == y).all());
    }
  }
}

TEST_CASE("int15: near the product that its weights stand for", "[nn]") {
  const Vector<float> bias = random_matrix<float>(64, 1, 3);
  const Int8Linear layer(random_matrix<float>(64, 2048, 1), bias, Compute::int15);
  Matrix<float> w(64, 2048), x = random_matrix<float>(9, 2048, 2);
  layer.copy_weight(0, w);
  const auto product = [&] { return times_transposed(x, w); };
  const Int8Linear no_bias(layer.weight(), {}, Compute::int15);
  CHECK((pith_test::widened<double>(no_bias.forward(x)) - product()).norm() < 6e-5 * product().norm());
  for (Index k = 0; k < x.size(); k += 64) x.data()[k] *= 30;
  const Matrix<double> bound = with_bias(int15_bound(x, w), (bias.cwiseAbs() * 1.2e-7f).eval());
  CHECK(near(layer.forward(x), with_bias(product(), bias), bound, 1));
  CHECK(same_bits(AnyLinear<float>(layer).forward(x), layer.forward(x)));
  CHECK(!same_bits(Int8Linear(layer.weight(), bias).forward(x), layer.forward(x)));
}

TEST_CASE("int15: not-a-number and infinity make their token NaN and no other", "[nn]") {
  const Int8Linear layer(random_matrix<float>(40, 300, 1), {}, Compute::int15);
  Matrix<float> x = random_matrix<float>(14, 300, 2);
  const Matrix<float> before = layer.forward(x);
  x(2, 150) = std::numeric_limits<float>::quiet_NaN();
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
  const Matrix<float> y = Int8Linear(w, {}, Compute::int15).forward(random_matrix<float>(3, 96, 2));
  CHECK(y.col(7).array().isNaN().all());
  CHECK(!y.leftCols(7).array().isNaN().any());
}

TEST_CASE("int15: no inputs leave the bias, no tokens nothing", "[nn]") {
  const Vector<float> bias = random_matrix<float>(40, 1, 1);
  const Matrix<float> y = Int8Linear(Matrix<float>(40, 0), bias, Compute::int15).forward(Matrix<float>(2, 0));
  CHECK(same_bits(y.row(0), bias.transpose()));
  CHECK(same_bits(y.row(1), bias.transpose()));
  CHECK(Int8Linear(Matrix<float>(40, 8), bias, Compute::int15).forward(Matrix<float>(0, 8)).rows() == 0);
  CHECK(Int8Linear(Matrix<float>(0, 8), {}, Compute::int15).forward(Matrix<float>(2, 8)).cols() == 0);
}

TEST_CASE("int15: what does not fit is refused", "[nn]") {
  const Matrix<float> w = random_matrix<float>(8, 4, 1), x(1, 4);
  CHECK_THROWS_AS(Int8Linear(w, {}, Compute::bf16), UnsupportedError);
  CHECK_THROWS_WITH(Int8Linear(w, {}, Compute::bf16), contains("Compute::bf16 is for bfloat16 weights"));
  CHECK(Int8Linear(w).compute() == Compute::exact);
  const Int8Linear layer(w, {}, Compute::int15);
  CHECK(layer.compute() == Compute::int15);
  Matrix<float> y(1, 8);
  Workspace ws(layer.workspace_bytes(1));
  CHECK_THROWS_WITH(layer.forward(Matrix<float>(1, 5), y, ws), contains("x is [1, 5], expected [*, 4]"));
  CHECK_THROWS_AS(matmul(x, layer.weight(), {}, y, ws, Compute::bf16), UnsupportedError);
}

TEMPLATE_LIST_TEST_CASE("int15 lanes: the bits of plain C++", "[nn]", EveryByteLanes) {
  const Int8Weight w = any_bytes(70, 261);
  const Matrix<float> x = activations_of_all_sizes(29, 261), expected = int15_by_the_law(w, x, {});
  const auto product_of = [&](Index first, Index tokens) {
    const detail::IntegerProduct<detail::Int8Source, TestType, TestType> product{{w.codes(), w.scales().data()}};
    Matrix<float> y(tokens, 70);
    Workspace ws(product.workspace_bytes(tokens, 1));
    product.run(x.middleRows(first, tokens), {}, y, ws);
    return y;
  };
  for (const Index tokens : {1, 2, 3, 4, 5, 7, 8, 10, 13, 17, 29}) {
    for (Index first = 0; first + tokens <= 29; first += tokens)
      CHECK(same_bits(product_of(first, tokens), expected.middleRows(first, tokens)));
  }
}

// The same numbers on every machine that this test runs on: the instruction set changes no bit.
TEST_CASE("int15: products are the same on every machine", "[nn]") {
  const Matrix<float> y = Int8Linear(any_bytes(70, 261), {}, Compute::int15).forward(activations_of_all_sizes(29, 261));
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (Index i = 0; i < y.size(); ++i) hash = (hash ^ detail::bits_as<std::uint32_t>(y.data()[i])) * 0x100000001b3u;
  CHECK(hash == 0x66802eedd46266e9u);
}
