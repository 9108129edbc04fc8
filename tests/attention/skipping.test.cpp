// attend() with skip_below: what is not read, what that costs, and that nothing else changes.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include <pith/attention/attend.hpp>
#include <pith/core/executor.hpp>

#include "support/attention_rows.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::AttentionRows;
using pith_test::in_order;
using pith_test::near;
using pith_test::same_bits;

namespace {

template <class T> struct Skipped {
  Matrix<arithmetic_t<T>> out;
  AttentionReads reads;
};

template <class T>
Skipped<T> skipping(const KvView<T>& view, const Matrix<arithmetic_t<T>>& q, AttendOptions<arithmetic_t<T>> options, double share,
                    Index workers = 1) {
  using S = arithmetic_t<T>;
  Index rows = 0;
  for (const KvRun<T>& run : view.runs) rows += run.rows;
  ThreadPool pool(workers);
  Workspace ws(attend_workspace_bytes<S>(view.shape, rows, workers, q.rows()), pool);
  Skipped<T> result;
  result.out.setConstant(q.rows(), q.cols(), S(99));
  options.skip_below = static_cast<S>(share);
  options.reads = &result.reads;
  attend(q, view, result.out, ws, {}, options);
  return result;
}

/// The largest norm of a value.
template <class T> double largest_value(const KvView<T>& view) {
  double most = 0;
  for (const KvRun<T>& run : view.runs)
    for (Index r = 0; r < run.rows; ++r) {
      double sum = 0;
      for (Index i = 0; i < view.shape.head_dim; ++i)
        sum += std::pow(static_cast<double>(static_cast<arithmetic_t<T>>(run.values[r * run.stride + i])), 2);
      most = std::max(most, std::sqrt(sum));
    }
  return most;
}

}  // namespace

TEMPLATE_TEST_CASE("skipped rows move the output by at most twice their share", "[attend][skip]", float, double, bfloat16) {
  using S = arithmetic_t<TestType>;
  const AttentionShape shape{4, 2, GENERATE(16, 20)};
  const Index tokens = GENERATE(1, 5);
  const double sharpness = GENERATE(1e-3, 1., 4., 1e3);
  CAPTURE(shape.head_dim, tokens, sharpness);
  AttentionRows<TestType> rows(shape, 8);
  rows.add_run(40, {}, true);
  rows.add_run(400, in_order(400), true);
  const Matrix<S> q = static_cast<S>(sharpness) * rows.queries(tokens);
  const auto first = static_cast<Position>(400 - tokens);
  const KvView<TestType> view = rows.view(400);
  for (const S n : {S(0), S(3)}) {
    const AttendOptions<S> options{.first_query = first, .n = n};
    const auto exact = rows.expected(q, first, options);
    const auto dense = skipping(view, q, options, 0);
    CHECK(dense.reads.rows == dense.reads.values);
    Index read = dense.reads.values;
    for (const double share : {1e-3, .01, .1, .5}) {
      CAPTURE(share);
      const auto some = skipping(view, q, options, share);
      CHECK(some.reads.rows == dense.reads.rows);
      CHECK(some.reads.values <= read);  // what a lower share skips, a higher one skips
      read = some.reads.values;
      const double most = 2 * share * largest_value(view);
      for (Index t = 0; t < tokens; ++t)
        for (Index h = 0; h < shape.num_heads; ++h) {
          const auto part = [&](const auto& m) { return m.row(t).segment(h * shape.head_dim, shape.head_dim).template cast<double>(); };
          CHECK((part(some.out) - part(exact.out)).norm() <= most + part(exact.bound).norm());
        }
      CHECK(same_bits(skipping(view, q, options, share, 2).out, some.out));
      for (Index t = 0; t < tokens; ++t) {  // alone, a query skips what it skips in a batch
        const AttendOptions<S> one{.first_query = static_cast<Position>(first + t), .n = n};
        CHECK(same_bits(skipping(view, Matrix<S>(q.row(t)), one, share).out, Matrix<S>(some.out.row(t))));
      }
    }
    if (sharpness == 4.) CHECK(read < dense.reads.values / 4);
  }
}

TEST_CASE("where no weight is small enough, skipping changes no bit", "[attend][skip]") {
  const AttentionShape shape{2, 1, 32};
  AttentionRows<float> rows(shape, 3);
  rows.add_run(90, in_order(90));
  const Matrix<float> q = .01f * rows.queries(3);  // all weights about 1/90
  const auto dense = skipping(rows.view(90), q, {}, 0), some = skipping(rows.view(90), q, {}, .005);
  CHECK(same_bits(some.out, dense.out));
  CHECK(some.reads.values == dense.reads.values);
}

TEST_CASE("skipping under windows, masks and rows that count for nothing", "[attend][skip]") {
  const AttentionShape shape{2, 2, 32};
  AttentionRows<float> rows(shape, 11);
  rows.add_run(200, in_order(200), true);
  const Matrix<float> q = 3 * rows.queries(2);
  SECTION("a window") {
    const AttendOptions<float> options{.window = 40};
    const auto some = skipping(rows.view(200), q, options, .05);
    CHECK(near(some.out, rows.expected(q, 198, options).out, Matrix<double>::Constant(2, q.cols(), .1 * largest_value(rows.view(200)))));
    CHECK(some.reads.rows <= 2 * 96);
  }
  SECTION("all rows but one hidden by their masses") {
    std::vector<float> mass(200, -std::numeric_limits<float>::infinity());
    mass[70] = 0;
    for (KvRun<float>& run : rows.runs()) run.log_mass = mass.data();
    const auto one = skipping(rows.view(200), q, {}, .5);
    CHECK(one.reads.values == 2);
    for (Index h = 0; h < 2; ++h)
      for (Index i = 0; i < 32; ++i) CHECK(one.out(1, h * 32 + i) == rows.runs()[std::size_t(h)].values[70 * 32 + i]);
  }
  SECTION("no row at all") {
    for (KvRun<float>& run : rows.runs()) run.rows = 0;
    CHECK(skipping(rows.view(200), q, {}, .5).out.isZero(0));
  }
}

TEST_CASE("values that are not finite are skipped, or reach the output", "[attend][skip]") {
  const AttentionShape shape{1, 1, 16};
  const float infinity = std::numeric_limits<float>::infinity();
  Matrix<float> keys = Matrix<float>::Zero(100, 16), values = Matrix<float>::Ones(100, 16);
  keys(40, 0) = 10;  // logit 10 in front of zeros: a share of .995
  values(3, 5) = infinity;
  const std::vector<Position> positions = in_order(100);
  const std::vector<KvRun<float>> runs{{keys.data(), values.data(), 100, 16, positions.data()}};
  const KvView<float> view{shape, 100, runs};
  Matrix<float> q = Matrix<float>::Zero(1, 16);
  q(0, 0) = 4;
  const auto far = skipping(view, q, {}, .01);
  CHECK(far.reads.values == 1);
  CHECK((far.out.array() - 1).abs().maxCoeff() < 1e-6f);
  CHECK(skipping(view, q, {}, .001).out(0, 5) == infinity);
  keys(7, 3) = std::numeric_limits<float>::quiet_NaN();
  CHECK(std::isnan(skipping(view, q, {}, .01).out(0, 0)));
}

TEST_CASE("8-bit rows: a row that is skipped is not touched", "[attend][skip]") {
  const AttentionShape shape{4, 2, GENERATE(32, 40, 64)};
  const Index n = 300, units = q8_row_bytes(shape.head_dim);
  const Matrix<float> k = pith_test::random_matrix<float>(2 * n, shape.head_dim, 1);
  const Matrix<float> v = pith_test::random_matrix<float>(2 * n, shape.head_dim, 2);
  const Matrix<float> q = 30 * pith_test::random_matrix<float>(1, 4 * shape.head_dim, 3);
  std::vector<Q8> keys(static_cast<std::size_t>(2 * n * units)), values(keys.size());
  for (Index r = 0; r < 2 * n; ++r) {
    q8_encode(k.row(r).data(), shape.head_dim, &keys[std::size_t(r * units)].byte);
    q8_encode(v.row(r).data(), shape.head_dim, &values[std::size_t(r * units)].byte);
  }
  const std::vector<KvRun<Q8>> runs{{keys.data(), values.data(), n, units}, {keys.data() + n * units, values.data() + n * units, n, units}};
  const KvView<Q8> view{shape, Position(n), runs};
  const auto some = skipping(view, q, {}, .02);
  CHECK(some.reads.rows == 2 * n);
  CHECK(some.reads.values < n);
  // A row of NaN changes the output if and only if it is read.
  Index found = 0;
  for (Index r = 0; r < 2 * n; ++r) {
    const std::vector<Q8> before = values;
    std::memset(&values[std::size_t(r * units)], 0xFF, 2);  // the scale
    found += !skipping(view, q, {}, .02).out.allFinite();
    values = before;
  }
  CHECK(found == some.reads.values);
}

TEST_CASE("of flat queries every value is read, whoever is with them", "[attend][skip]") {
  const AttentionShape shape{2, 1, 16};
  AttentionRows<bfloat16> rows(shape, 21);
  rows.add_run(2600, in_order(2600), true);
  const KvView<bfloat16> view = rows.view(2600);
  Matrix<float> q = rows.queries(2);
  q.row(1) *= 6;
  const AttendOptions<float> first{.first_query = 2598};
  const auto dense = skipping(view, q, first, 0), both = skipping(view, q, first, .1);
  const auto flat = skipping(view, Matrix<float>(q.row(0)), first, .1), sharp = skipping(view, Matrix<float>(q.row(1)), {}, .1);
  CHECK(same_bits(flat.out, dense.out.row(0).eval()));
  CHECK(flat.reads.needed == flat.reads.rows);
  CHECK(sharp.reads.values < sharp.reads.rows / 8);
  CHECK(same_bits(both.out.row(0).eval(), flat.out));
  CHECK(same_bits(both.out.row(1).eval(), sharp.out));
}

TEST_CASE("shares that are no share are refused", "[attend][skip]") {
  AttentionRows<float> rows({1, 1, 16}, 1);
  rows.add_run(5, in_order(5));
  const Matrix<float> q = rows.queries(1);
  for (const double share : {-.1, 1., std::numeric_limits<double>::quiet_NaN()})
    CHECK_THROWS_WITH(skipping(rows.view(5), q, {}, share), Catch::Contains("skip_below"));
}
