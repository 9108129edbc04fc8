#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include <pith/nn/embedding.hpp>

#include "support/catch.hpp"
#include "support/random_matrix.hpp"

namespace {

using namespace pith;
using pith_test::contains;

template <class T> Matrix<T> numbers(Index rows, Index cols) {
  Matrix<T> m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = static_cast<T>(static_cast<float>(i % 97) / 8 - 6);  // exact in every type
  return m;
}

template <class S, class T> void check_table() {
  const Matrix<T> rows = numbers<T>(11, 7);
  const Embedding<S> owned(Matrix<T>{rows}), mapped{ConstMatrixRef<T>(rows)};
  const std::vector<Token> tokens{10, 0, 3, 3};
  for (const Embedding<S>& table : {owned, mapped}) {
    CHECK(table.rows() == 11);
    CHECK(table.cols() == 7);
    CHECK(table.bytes() == 77 * sizeof(T));
    Matrix<S> out(4, 7), all(11, 7);
    table.gather(tokens, out);
    table.copy_rows(0, all);
    bool same = true;
    for (Index i = 0; i < 77; ++i) same = same && all.data()[i] == static_cast<S>(static_cast<double>(static_cast<float>(rows.data()[i])));
    CHECK(same);
    for (std::size_t i = 0; i < 4; ++i) CHECK((out.row(static_cast<Index>(i)) == all.row(tokens[i])));
  }
}

TEST_CASE("embedding: rows of every storage, owned and mapped", "[nn]") {
  check_table<float, float>();
  check_table<float, bfloat16>();
  check_table<float, half>();
  check_table<float, double>();
  check_table<double, double>();
  check_table<double, float>();
  check_table<double, bfloat16>();
  check_table<double, half>();
}

TEST_CASE("embedding: every bfloat16 and half is widened exactly", "[nn]") {
  Matrix<bfloat16> b(256, 256);
  Matrix<half> h(256, 256);
  for (Index i = 0; i < b.size(); ++i) {
    b.data()[i] = Eigen::bfloat16_impl::raw_uint16_to_bfloat16(static_cast<std::uint16_t>(i));
    h.data()[i] = Eigen::half_impl::raw_uint16_to_half(static_cast<std::uint16_t>(i));
  }
  Matrix<float> wide(256, 256);
  Index wrong = 0;
  Embedding<float>(Matrix<bfloat16>{b}).copy_rows(0, wide);
  for (Index i = 0; i < b.size(); ++i) wrong += std::bit_cast<std::uint32_t>(wide.data()[i]) != static_cast<std::uint32_t>(i) << 16;
  CHECK(wrong == 0);
  Embedding<float>(Matrix<half>{h}).copy_rows(0, wide);
  for (Index i = 0; i < h.size(); ++i) {
    const int exponent = static_cast<int>(i >> 10) & 31, mantissa = static_cast<int>(i) & 1023;
    double expected = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    if (exponent == 31) expected = mantissa == 0 ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
    if (i >= 32768) expected = -expected;
    wrong += std::isnan(expected) ? !std::isnan(wide.data()[i]) : static_cast<double>(wide.data()[i]) != expected;
  }
  CHECK(wrong == 0);
}

TEST_CASE("embedding: strided tables and targets", "[nn]") {
  const Matrix<float> wide = numbers<float>(9, 12);
  const Embedding<float> table(ConstMatrixRef<float>(wide.middleCols(3, 5)));
  Matrix<float> out = Matrix<float>::Zero(2, 9);
  table.gather(std::vector<Token>{8, 1}, out.middleCols(2, 5));
  CHECK((out.middleCols(2, 5).row(0) == wide.row(8).segment(3, 5)));
  CHECK((out.middleCols(2, 5).row(1) == wide.row(1).segment(3, 5)));
  CHECK((out.leftCols(2).isZero() && out.rightCols(2).isZero()));
}

TEST_CASE("embedding: what it maps stays alive", "[nn]") {
  auto rows = std::make_shared<Matrix<float>>(numbers<float>(3, 2));
  const std::weak_ptr<Matrix<float>> watch = rows;
  auto table = std::make_unique<Embedding<float>>(ConstMatrixRef<float>(*rows), rows);
  rows.reset();
  Embedding<float> copy = *table;
  table.reset();
  REQUIRE_FALSE(watch.expired());
  Matrix<float> out(3, 2);
  copy.copy_rows(0, out);
  CHECK((out == numbers<float>(3, 2)));
  copy = {};
  CHECK(watch.expired());
}

TEST_CASE("embedding: refusals touch nothing", "[nn]") {
  const Embedding<float> table(numbers<float>(256, 4));
  Matrix<float> out = Matrix<float>::Constant(6, 4, 9);
  const Matrix<float> before = out;
  CHECK_THROWS_AS(table.gather(std::vector<Token>{1, 2, 3, 4, 5, 300}, out), ShapeError);
  CHECK_THROWS_WITH(table.gather(std::vector<Token>{1, 2, 3, 4, 5, 300}, out),
                    contains("token 300 at index 5 is outside the vocabulary of 256"));
  CHECK_THROWS_WITH(table.gather(std::vector<Token>{1, 2, -200, 4, 5, 6}, out), contains("token -200 at index 2"));
  CHECK_THROWS_WITH(table.gather(std::vector<Token>{1}, out), contains("out is [6, 4], expected [1, 4]"));
  CHECK_THROWS_AS(table.gather(std::vector<Token>{1, 2, 3, 4, 5, 6}, out.leftCols(3)), ShapeError);
  CHECK_THROWS_AS(table.copy_rows(251, out), ShapeError);
  CHECK_THROWS_AS(table.copy_rows(-1, out), ShapeError);
  CHECK_THROWS_AS(table.copy_rows(std::numeric_limits<Index>::max(), out), ShapeError);
  CHECK_THROWS_AS(table.copy_rows(0, out.leftCols(3)), ShapeError);
  CHECK_THROWS_AS(Embedding<float>().gather(std::vector<Token>{0}, out.topRows(1)), ShapeError);
  CHECK((out == before));
  CHECK_NOTHROW(table.copy_rows(250, out));
  Matrix<float> none(0, 4);
  CHECK_NOTHROW(table.gather({}, none));
}

TEST_CASE("embedding: a scale multiplies lookups, not the table", "[nn]") {
  const Matrix<float> rows = pith_test::random_matrix<float>(5, 7, 3);
  const Embedding<float> table(rows), scaled = table.scaled(2.5f);
  const std::vector<Token> tokens{4, 0};
  Matrix<float> out(2, 7), all(5, 7);
  scaled.gather(tokens, out);
  CHECK((out.row(0) == 2.5f * rows.row(4) && out.row(1) == 2.5f * rows.row(0)));
  scaled.copy_rows(0, all);
  CHECK(all == rows);
  table.gather(tokens, out);
  CHECK(out.row(0) == rows.row(4));
  CHECK((scaled.scale() == 2.5f && table.scale() == 1));
}

TEST_CASE("embedding: a soft prompt goes in front", "[nn]") {
  const Embedding<float> table(numbers<bfloat16>(10, 4));
  const Matrix<float> soft = Matrix<float>::Random(3, 4);
  const std::vector<Token> tokens{7, 2};
  Matrix<float> rows(2, 4), out(5, 4), again(5, 4);
  table.gather(tokens, rows);
  prepend(soft, table, tokens, out);
  CHECK((out.topRows(3) == soft));
  CHECK((out.bottomRows(2) == rows));
  prepend(soft, rows, again);
  CHECK((again == out));
  prepend(soft.topRows(0), table, tokens, rows);
  CHECK((rows == out.bottomRows(2)));

  const Matrix<float> before = out;
  CHECK_THROWS_AS(prepend(soft, table, std::vector<Token>{7, 10}, out), ShapeError);
  CHECK_THROWS_WITH(prepend(soft, table, std::vector<Token>{7}, out), contains("out is [5, 4], expected [4, 4]"));
  CHECK_THROWS_AS(prepend(Matrix<float>(Matrix<float>::Zero(3, 5)), table, tokens, out), ShapeError);
  CHECK_THROWS_AS(prepend(soft, rows, Matrix<float>(4, 4).topRows(4)), ShapeError);
  CHECK((out == before));
}

}  // namespace
