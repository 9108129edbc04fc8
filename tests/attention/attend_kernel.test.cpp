#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include <pith/attention/detail/attend_kernel.hpp>
#include <pith/attention/detail/score_columns.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/products.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using namespace pith::detail;
using pith_test::near;
using pith_test::same_bits;
using pith_test::times;
using pith_test::times_transposed;
using pith_test::transposed;

namespace {

/// Scores of all queries by kernels of Q queries.
template <int Q, class T> Matrix<arithmetic_t<T>> scores(const Matrix<arithmetic_t<T>>& arranged, const Rows<T>& rows) {
  using S = arithmetic_t<T>;
  Matrix<S> out(arranged.rows(), rows.count);
  for (Index q = 0; q < arranged.rows(); q += Q)
    ScoreKernel<T, Q>::run(arranged.data() + q * arranged.cols(), arranged.cols(), rows, out.data() + q * rows.count, rows.count);
  return out;
}

template <int Q, class T> Matrix<arithmetic_t<T>> sums(const Matrix<arithmetic_t<T>>& weights, const Rows<T>& rows, Index padded) {
  using S = arithmetic_t<T>;
  Matrix<S> out = Matrix<S>::Zero(weights.rows(), padded);
  for (Index q = 0; q < weights.rows(); q += Q)
    ValueKernel<T, Q>::run(weights.data() + q * weights.cols(), weights.cols(), rows, out.data() + q * padded, padded);
  return out;
}

}  // namespace

TEMPLATE_TEST_CASE("kernels give the same bits for every group of queries, in place or staged", "[attend_kernel]", float, double, bfloat16,
                   half) {
  using T = TestType;
  using S = arithmetic_t<T>;
  const Index dim = GENERATE(1, 12, 16, 32, 64, 72, 128), count = GENERATE(1, 3, 8, 31, 32);
  CAPTURE(dim, count);
  const RowLayout<T> layout(dim);
  CHECK(layout.padded() >= dim);
  CHECK(layout.padded() < dim + Simd<S>::width);
  const Matrix<T> rows = pith_test::random_matrix<T>(count, dim, 1);
  const Matrix<S> queries = pith_test::random_matrix<S>(12, dim, 2), weights = pith_test::random_matrix<S>(12, count, 3);
  Matrix<S> arranged(12, layout.padded()), staged = Matrix<S>::Constant(count, layout.padded(), S(9)), back(12, dim);
  for (Index q = 0; q < 12; ++q) layout.arrange(queries.data() + q * dim, S(.5), arranged.data() + q * layout.padded());
  layout.stage(rows.data(), dim, count, staged.data());

  const Rows<S> copied{staged.data(), layout.padded(), count, nullptr};
  const Matrix<S> score = scores<4>(arranged, copied), sum = sums<4>(weights, copied, layout.padded());
  CHECK(near(score, .5 * times_transposed(queries, rows), pith_test::dot_bound<S>(queries, rows)));
  for (Index q = 0; q < 12; ++q) layout.restore(sum.data() + q * layout.padded(), S(2), back.data() + q * dim);
  CHECK(near(back, 2 * times(weights, rows), 2 * pith_test::dot_bound<S>(weights, transposed(pith_test::widened<double>(rows)))));

  CHECK(near(scores<1>(arranged, copied), score, 0));
  CHECK(near(scores<2>(arranged, copied), score, 0));
  CHECK(near(scores<3>(arranged, copied), score, 0));
  CHECK(near(sums<1>(weights, copied, layout.padded()), sum, 0));
  CHECK(near(sums<2>(weights, copied, layout.padded()), sum, 0));
  CHECK(near(sums<3>(weights, copied, layout.padded()), sum, 0));
  if (!layout.whole) return;
  for (const T* ahead : {static_cast<const T*>(nullptr), rows.data()}) {
    const Rows<T> there{rows.data(), dim, count, ahead};
    CHECK(near(scores<1>(arranged, there), score, 0));
    CHECK(near(scores<2>(arranged, there), score, 0));
    CHECK(near(scores<3>(arranged, there), score, 0));
    CHECK(near(scores<4>(arranged, there), score, 0));
    CHECK(near(sums<1>(weights, there, layout.padded()), sum, 0));
    CHECK(near(sums<2>(weights, there, layout.padded()), sum, 0));
    CHECK(near(sums<3>(weights, there, layout.padded()), sum, 0));
    CHECK(near(sums<4>(weights, there, layout.padded()), sum, 0));
  }
}

TEST_CASE("kernels give the same bits for 8-bit rows in registers and written out", "[attend_kernel]") {
  const Index dim = GENERATE(1, 32, 33, 64, 96, 128), count = GENERATE(1, 3, 31, 32);
  CAPTURE(dim, count);
  const RowLayout<Q8> layout(dim);
  CHECK(layout.whole == (q8_in_registers && dim % q8_block == 0));
  const Index bytes = q8_row_bytes(dim), stride = bytes + 5;
  const Matrix<float> numbers = pith_test::random_matrix<float>(count, dim, 1), queries = pith_test::random_matrix<float>(12, dim, 2);
  const Matrix<float> weights = pith_test::random_matrix<float>(12, count, 3);
  std::vector<Q8> rows(static_cast<std::size_t>(count * stride));
  Matrix<double> decoded(count, dim);
  for (Index r = 0; r < count; ++r) {
    std::byte* const row = &rows[static_cast<std::size_t>(r * stride)].byte;
    q8_encode(numbers.data() + r * dim, dim, row);
    for (Index i = 0; i < dim; ++i) {  // a block is a half and its codes
      const std::byte* const block = row + i / 32 * 34;
      half scale;
      std::memcpy(&scale, block, 2);
      decoded(r, i) = static_cast<double>(static_cast<float>(scale)) * static_cast<int>(static_cast<std::int8_t>(block[2 + i % 32]));
    }
  }
  Matrix<float> arranged(12, layout.padded()), staged(count, layout.padded());
  for (Index q = 0; q < 12; ++q) layout.arrange(queries.data() + q * dim, 1, arranged.data() + q * layout.padded());
  layout.stage(rows.data(), stride, count, staged.data());
  CHECK(same_bits(Matrix<float>(staged.leftCols(dim)), Matrix<float>(decoded.cast<float>())));
  const Rows<float> copied{staged.data(), layout.padded(), count, nullptr};
  const Matrix<float> score = scores<4>(arranged, copied), sum = sums<4>(weights, copied, layout.padded());
  CHECK(near(score, times_transposed(queries, decoded), pith_test::dot_bound<float>(queries, decoded)));
  if (!layout.whole) return;
  for (const Q8* ahead : {static_cast<const Q8*>(nullptr), static_cast<const Q8*>(rows.data())}) {
    const Rows<Q8> there{rows.data(), stride, count, ahead};
    CHECK(same_bits(scores<1>(arranged, there), score));
    CHECK(same_bits(scores<2>(arranged, there), score));
    CHECK(same_bits(scores<3>(arranged, there), score));
    CHECK(same_bits(scores<4>(arranged, there), score));
    CHECK(same_bits(sums<1>(weights, there, layout.padded()), sum));
    CHECK(same_bits(sums<2>(weights, there, layout.padded()), sum));
    CHECK(same_bits(sums<3>(weights, there, layout.padded()), sum));
    CHECK(same_bits(sums<4>(weights, there, layout.padded()), sum));
  }
}

TEMPLATE_TEST_CASE("rows in lanes give the same scores, bit for bit", "[attend_kernel]", float, double) {
  using S = TestType;
  const Index dim = GENERATE(1, 12, 16, 32, 64, 72, 128), count = GENERATE(1, 3, 16, 31, 32);
  CAPTURE(dim, count);
  const Index padded = RowLayout<S>(dim).padded();
  Matrix<S> rows = Matrix<S>::Zero(count, padded + 3), queries = Matrix<S>::Zero(7, padded), columns(padded, attention_block);
  rows.leftCols(dim) = pith_test::random_matrix<S>(count, dim, 1);
  queries.leftCols(dim) = pith_test::random_matrix<S>(7, dim, 2);
  const Rows<S> there{rows.data(), padded + 3, count, nullptr};
  ColumnScores<S>::turn(there, padded, columns.data());
  Matrix<S> score = Matrix<S>::Constant(7, attention_block + 1, S(9));
  ColumnScores<S>::score(queries.data(), padded, 7, columns.data(), score.data(), attention_block + 1);
  CHECK(same_bits(score.leftCols(count), scores<1>(queries, there)));
  for (Index r = count; r < attention_block; ++r) CHECK(same_bits(score.col(r), score.col(count - 1)));
  CHECK((score.rightCols(1).array() == S(9)).all());
}

TEMPLATE_TEST_CASE("lanes are summed each on its own", "[attend_kernel]", float, double) {
  using V = Simd<TestType>;
  typename V::Packet rows[V::width];
  TestType lanes[V::width];
  for (int r = 0; r < V::width; ++r) {
    for (int i = 0; i < V::width; ++i) lanes[i] = static_cast<TestType>(100 * r + i * i);
    rows[r] = V::load(lanes);
  }
  V::store(lanes, V::sum_each(rows));
  for (int r = 0; r < V::width; ++r) {
    int expected = 0;
    for (int i = 0; i < V::width; ++i) expected += 100 * r + i * i;
    CHECK(lanes[r] == static_cast<TestType>(expected));
  }
}

TEMPLATE_TEST_CASE("exp of what is not positive", "[attend_kernel]", float, double) {
  using S = TestType;
  using V = Simd<S>;
  const auto exp_down = [](S x) { return V::first(V::exp_down(V::broadcast(x))); };
  const S inf = std::numeric_limits<S>::infinity();
  CHECK(exp_down(S(0)) == S(1));
  CHECK(exp_down(-S(0)) == S(1));
  CHECK(exp_down(-inf) == S(0));
  CHECK(exp_down(std::numeric_limits<S>::lowest()) == S(0));
  CHECK(exp_down(S(-1e5)) == S(0));
  CHECK(std::isnan(exp_down(std::numeric_limits<S>::quiet_NaN())));
  const double smallest = std::is_same_v<S, float> ? -87.3 : -708.3, eps = static_cast<double>(std::numeric_limits<S>::epsilon());
  double worst = 0;
  for (int i = 0; i <= 20000; ++i) {
    const S x = static_cast<S>(smallest * i / 20000);
    worst = std::max(worst, std::abs(static_cast<double>(exp_down(x)) / static_cast<double>(std::exp(static_cast<long double>(x))) - 1));
  }
  CAPTURE(worst / eps);
  CHECK(worst <= 2 * eps);
}
