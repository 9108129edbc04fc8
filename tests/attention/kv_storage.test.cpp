// Storage of rows: four-bit blocks, rotations, keys and values apart, and attention over them.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include <pith/attention/attend.hpp>
#include <pith/attention/detail/attend_kernel.hpp>
#include <pith/attention/detail/stored_rows.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/products.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::near;
using pith_test::same_bits;

namespace {

static_assert(KvStorage<Q4> && KvStorage<Rotated<Q4>> && KvStorage<Rotated<float>> && KvStorage<Kv<Q8, Rotated<Q4>>>);
static_assert(!KvStorage<Kv<double, Q4>> && !KvStorage<Rotated<Rotated<Q4>>> && !KvStorage<Kv<Kv<Q8, Q8>, Q8>> &&
              !PlainStorage<Rotated<float>>);

std::vector<std::byte> four_bits(const std::vector<float>& x) {
  std::vector<std::byte> out(static_cast<std::size_t>(q4_row_bytes(static_cast<Index>(x.size()))));
  q4_encode(x.data(), static_cast<Index>(x.size()), out.data());
  return out;
}

std::vector<float> decoded(const std::vector<std::byte>& row, Index n) {
  std::vector<float> out(static_cast<std::size_t>(n));
  q4_decode(row.data(), n, out.data());
  return out;
}

float half_at(const std::byte* p) {
  half h;
  std::memcpy(&h, p, 2);
  return static_cast<float>(h);
}

/// A row after a Sylvester Hadamard transform in blocks of n, by its definition: entry (i, j) is -1 to the bits that i and j share.
template <class S> Matrix<double> rotated(const Matrix<S>& rows, Index n) {
  Matrix<double> out = Matrix<double>::Zero(rows.rows(), rows.cols());
  for (Index r = 0; r < rows.rows(); ++r)
    for (Index i = 0; i < rows.cols(); ++i)
      for (Index j = 0; j < n; ++j)
        out(r, i) += (__builtin_popcountll(static_cast<unsigned long long>(i % n & j)) % 2 == 0 ? 1 : -1) *
                     static_cast<double>(rows(r, i / n * n + j)) / std::sqrt(static_cast<double>(n));
  return out;
}

/// Random rows of every kv head as a cache of T stores them, with the numbers that its codes decode to.
template <class T> struct StoredRows {
  using S = arithmetic_t<T>;
  StoredRows(const AttentionShape& s, Index n) : shape(s), rows(n), k(s.num_kv_heads * n, s.head_dim), v(k.rows(), k.cols()) {
    const Index key = detail::key_units<T>(s.head_dim), value = detail::value_units<T>(s.head_dim);
    const Matrix<S> keys = pith_test::random_matrix<S>(k.rows(), s.head_dim, 1),
                    values = pith_test::random_matrix<S>(k.rows(), s.head_dim, 2);
    coded_keys.resize(static_cast<std::size_t>(k.rows() * key));
    coded_values.resize(static_cast<std::size_t>(k.rows() * value));
    for (Index r = 0; r < k.rows(); ++r) {
      detail::narrow_key<T>(keys.row(r).data(), coded_keys.data() + r * key, s.head_dim);
      detail::narrow_value<T>(values.row(r).data(), coded_values.data() + r * value, s.head_dim);
      detail::widen_key<T>(coded_keys.data() + r * key, k.row(r).data(), s.head_dim);
      detail::widen_value<T>(coded_values.data() + r * value, v.row(r).data(), s.head_dim);
    }
    for (Index h = 0; h < s.num_kv_heads; ++h)
      runs.push_back({.keys = coded_keys.data() + h * n * key,
                      .values = coded_values.data() + h * n * value,
                      .rows = n,
                      .stride = key,
                      .value_stride = value});
  }
  KvView<T> view() const { return {shape, static_cast<Position>(rows), runs}; }
  Matrix<S> attended(const Matrix<S>& q, double skip = 0) const {
    Workspace ws(attend_workspace_bytes<S>(shape, rows, 1, q.rows()));
    Matrix<S> out(q.rows(), q.cols());
    attend(q, view(), out, ws, {}, {.first_query = 0, .skip_below = static_cast<S>(skip)});
    return out;
  }
  /// softmax(q kᵀ/√d) v over the decoded rows, in double.
  Matrix<double> expected(const Matrix<S>& q) const {
    const Index d = shape.head_dim;
    Matrix<double> out(q.rows(), q.cols());
    for (Index t = 0; t < q.rows(); ++t)
      for (Index h = 0; h < shape.num_heads; ++h) {
        const auto of_head = [&](const Matrix<S>& m) { return m.middleRows(h / shape.group() * rows, rows); };
        Vector<double> p = pith_test::times_transposed(of_head(k), q.row(t).segment(h * d, d)).col(0) / std::sqrt(static_cast<double>(d));
        p = (p.array() - p.maxCoeff()).exp().matrix().eval();
        out.row(t).segment(h * d, d) = pith_test::transposed_times(p, of_head(v)) / p.sum();
      }
    return out;
  }

  AttentionShape shape;
  Index rows;
  Matrix<S> k, v;
  std::vector<T> coded_keys, coded_values;
  std::vector<KvRun<T>> runs;
};

}  // namespace

TEST_CASE("a Q4 row is 20 bytes for each 32 numbers and 4 more than its rest, of which two share a byte from 16 on", "[q4]") {
  CHECK(q4_row_bytes(0) == 0);
  CHECK(q4_row_bytes(1) == 5);
  CHECK(q4_row_bytes(16) == 20);
  CHECK(q4_row_bytes(20) == 20);
  CHECK(q4_row_bytes(32) == 20);
  CHECK(q4_row_bytes(33) == 25);
  CHECK(q4_row_bytes(128) == 80);
  CHECK_THROWS_AS(q4_row_bytes(-1), CapacityError);
  CHECK_THROWS_AS(q4_row_bytes(std::numeric_limits<Index>::max()), CapacityError);
}

TEST_CASE("a Q4 block is a scale, a minimum and codes of its numbers alone", "[q4]") {
  const Index n = GENERATE(1, 5, 16, 21, 32, 40, 64);
  const Matrix<float> x = pith_test::random_matrix<float>(1, n, 7);
  const std::vector<std::byte> row = four_bits({x.data(), x.data() + n});
  const std::vector<float> back = decoded(row, n);
  const std::byte* block = row.data();
  for (Index first = 0; first < n; first += 32) {
    const Index size = std::min<Index>(32, n - first);
    const auto part = x.middleCols(first, size);
    const float low = part.minCoeff(), d = (part.maxCoeff() - low) / 15;
    CHECK(half_at(block) == static_cast<float>(half(d)));
    CHECK(half_at(block + 2) == static_cast<float>(half(low)));
    for (Index i = 0; i < size; ++i) {
      const int pair = std::to_integer<int>(block[4 + i % 16]), code = i < 16 ? pair & 15 : pair >> 4;
      CHECK(back[std::size_t(first + i)] == static_cast<float>(code) * half_at(block) + half_at(block + 2));
      const double error = std::abs(static_cast<double>(back[std::size_t(first + i)]) - static_cast<double>(part(0, i)));
      CHECK(error <= static_cast<double>(d) * (.5 + 15 * 0x1p-11) + std::abs(static_cast<double>(low)) * 0x1p-11 + 1e-7);
    }
    block += 4 + std::min<Index>(size, 16);
  }
}

TEST_CASE("Q4 at the ends of its range", "[q4]") {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (const float odd : {inf, -inf, nan, 1e6f, -1e6f, std::numeric_limits<float>::max()}) {
    std::vector<float> x(64, 1);
    x[40] = odd;
    const std::vector<float> back = decoded(four_bits(x), 64);
    CHECK(std::all_of(back.begin(), back.begin() + 32, [](float b) { return b == 1; }));
    CHECK(std::all_of(back.begin() + 32, back.end(), [](float b) { return std::isnan(b); }));
  }
  for (const float same : {0.f, 2.5f, -7.f, 1e-40f})
    CHECK(decoded(four_bits(std::vector<float>(32, same)), 32)[9] == static_cast<float>(half(same)));
  const std::vector<float> tiny = decoded(four_bits({0, 1e-41f, 3e-39f}), 3);
  CHECK(std::all_of(tiny.begin(), tiny.end(), [](float b) { return std::abs(b) < 1e-7f; }));
}

TEMPLATE_TEST_CASE("a rotation is the Hadamard transform of the largest power of two in a head, and its own inverse", "[q4]", float,
                   double) {
  const auto [d, block] = GENERATE(table<Index, Index>({{1, 1}, {7, 1}, {20, 4}, {64, 64}, {80, 16}, {96, 32}, {128, 128}, {512, 256}}));
  CHECK(detail::rotation_block(d) == block);
  const Matrix<TestType> x = pith_test::random_matrix<TestType>(3, d, 4);
  Matrix<TestType> y = x;
  for (Index r = 0; r < 3; ++r) detail::rotate_row(y.row(r).data(), d, block);
  const double eps = static_cast<double>(std::numeric_limits<TestType>::epsilon());
  CHECK((y.template cast<double>() - rotated(x, block)).cwiseAbs().maxCoeff() <= 40 * eps);
  CHECK(std::abs(static_cast<double>(y.norm() / x.norm()) - 1) <= 20 * eps);
  for (Index r = 0; r < 3; ++r) detail::rotate_row(y.row(r).data(), d, block);
  CHECK((y - x).cwiseAbs().maxCoeff() <= TestType(20 * eps));
  // Stored and read back: rows are as they were.
  std::vector<Rotated<TestType>> stored(static_cast<std::size_t>(d));
  detail::narrow<Rotated<TestType>>(x.data(), stored.data(), d);
  detail::widen<Rotated<TestType>>(stored.data(), y.data(), d);
  CHECK((y.row(0) - x.row(0)).cwiseAbs().maxCoeff() <= TestType(20 * eps));
}

TEST_CASE("kernels give the same bits for 4-bit rows in registers and written out", "[q4][attend_kernel]") {
  const Index dim = GENERATE(20, 32, 64, 96, 128), count = GENERATE(1, 31, 32), bytes = q4_row_bytes(dim), stride = bytes + 3;
  CAPTURE(dim, count);
  const detail::RowLayout<Q4> layout(dim);
  const Matrix<float> numbers = pith_test::random_matrix<float>(count, dim, 1), queries = pith_test::random_matrix<float>(4, dim, 2);
  const Matrix<float> weights = pith_test::random_matrix<float>(4, count, 3);
  std::vector<Q4> rows(static_cast<std::size_t>(count * stride));
  Matrix<float> back(count, dim), arranged(4, layout.padded()), staged(count, layout.padded());
  for (Index r = 0; r < count; ++r) {
    detail::narrow<Q4>(numbers.row(r).data(), &rows[std::size_t(r * stride)], dim);
    detail::widen<Q4>(&rows[std::size_t(r * stride)], back.row(r).data(), dim);
  }
  for (Index q = 0; q < 4; ++q) layout.arrange(queries.row(q).data(), 1, arranged.row(q).data());
  layout.stage(rows.data(), stride, count, staged.data());
  CHECK(same_bits(Matrix<float>(staged.leftCols(dim)), back));
  CHECK(layout.whole == (detail::q8_in_registers && dim % 32 == 0));
  if (!layout.whole) return;
  Matrix<float> a(4, count), b(4, count), c = Matrix<float>::Zero(4, dim), e = c;
  const detail::Rows<float> copied{staged.data(), layout.padded(), count, nullptr};
  const detail::Rows<Q4> there{rows.data(), stride, count, rows.data()};
  detail::ScoreKernel<float, 4>::run(arranged.data(), dim, copied, a.data(), count);
  detail::ScoreKernel<Q4, 4>::run(arranged.data(), dim, there, b.data(), count);
  CHECK(same_bits(a, b));
  for (Index q = 0; q < 4; ++q) detail::ScoreKernel<Q4, 1>::run(arranged.row(q).data(), dim, there, b.row(q).data(), count);
  CHECK(same_bits(a, b));
  b.topRows(3).setZero();
  detail::ScoreKernel<Q4, 3>::run(arranged.data(), dim, there, b.data(), count);
  CHECK(same_bits(a, b));
  detail::ValueKernel<float, 4>::run(weights.data(), count, copied, c.data(), dim);
  detail::ValueKernel<Q4, 4>::run(weights.data(), count, there, e.data(), dim);
  CHECK(same_bits(c, e));
  e.topRows(3).setZero();
  detail::ValueKernel<Q4, 3>::run(weights.data(), count, there, e.data(), dim);
  CHECK(same_bits(c, e));
}

TEMPLATE_TEST_CASE("attention over any storage is attention over what it decodes to", "[q4][attend]", Q4, Rotated<Q4>, Rotated<float>,
                   Rotated<bfloat16>, (Kv<Q8, Rotated<Q4>>), (Kv<Rotated<Q4>, bfloat16>), (Kv<bfloat16, Q4>),
                   (Kv<double, Rotated<double>>)) {
  using S = arithmetic_t<TestType>;
  const auto [heads, kv_heads] = GENERATE(table<Index, Index>({{4, 2}, {3, 1}}));
  const AttentionShape shape{heads, kv_heads, GENERATE(20, 64, 96)};
  const Index tokens = GENERATE(1, 3, 17);
  CAPTURE(shape.head_dim, tokens);
  const StoredRows<TestType> rows(shape, 90);
  const Matrix<S> q = 3 * pith_test::random_matrix<S>(tokens, heads * shape.head_dim, 5);
  const Matrix<double> expected = rows.expected(q);
  const Matrix<S> out = rows.attended(q);
  CHECK((out.template cast<double>() - expected).cwiseAbs().maxCoeff() <= 1e-5);
  for (Index t = 0; t < tokens; ++t) CHECK(same_bits(rows.attended(Matrix<S>(q.row(t))), Matrix<S>(out.row(t))));
  CHECK((rows.attended(q, .01).template cast<double>() - expected).cwiseAbs().maxCoeff() <= .02 * 2 * std::sqrt(double(shape.head_dim)));
}

TEMPLATE_TEST_CASE("keys and values of one storage give the bits of that storage", "[q4][attend]", float, Q8, Rotated<Q4>, bfloat16) {
  const AttentionShape shape{4, 2, 64};
  const Matrix<float> q = pith_test::random_matrix<float>(2, 4 * 64, 5);
  CHECK(same_bits(StoredRows<Kv<TestType, TestType>>(shape, 70).attended(q), StoredRows<TestType>(shape, 70).attended(q)));
}

TEST_CASE("rows that overlap or lie between numbers are refused", "[q4][attend]") {
  StoredRows<Kv<float, Q4>> rows({2, 1, 32}, 5);
  const Matrix<float> q = Matrix<float>::Zero(1, 64);
  rows.runs[0].stride = 130;
  CHECK_THROWS_WITH(rows.attended(q), Catch::Contains("stride 130, expected whole numbers of 4 bytes"));
  rows.runs[0].stride = 124;
  CHECK_THROWS_WITH(rows.attended(q), Catch::Contains("stride 124, expected at least the bytes of a row, which are 128"));
  rows.runs[0].stride = 128;
  rows.runs[0].value_stride = 19;
  CHECK_THROWS_WITH(rows.attended(q), Catch::Contains("value_stride 19, expected at least the bytes of a row, which are 20"));
}
