#include <cstdint>
#include <limits>
#include <type_traits>

#include <pith/nn/packed.hpp>

#include "support/catch.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::random_matrix;
using pith_test::same_bits;

TEMPLATE_TEST_CASE("packed: panels of 32 outputs, padded with zeros", "[nn]", float, double, bfloat16, half) {
  using T = TestType;
  for (const Index out : {1, 31, 32, 33, 70}) {
    for (const Index in : {1, 5, 32, 67, 650}) {
      const Matrix<T> w = random_matrix<T>(out, in, 1);
      const PackedWeight<T> packed(w);
      INFO("out " << out << ", in " << in);
      REQUIRE(packed.in() == in);
      REQUIRE(packed.out() == out);
      REQUIRE(packed.panels() == (out + 31) / 32);
      CHECK(packed.bytes() == static_cast<std::size_t>((out + 31) / 32 * 32 * in) * sizeof(T));
      CHECK(reinterpret_cast<std::uintptr_t>(packed.panel(0)) % 64 == 0);
      Index wrong = 0;
      for (Index p = 0; p < packed.panels(); ++p) {
        for (Index k = 0; k < in; ++k) {
          for (Index c = 0; c < 32; ++c) {
            const Index row = 32 * p + c;
            const Index slot = std::is_same_v<T, bfloat16> ? (c < 16 ? 2 * c : 2 * (c - 16) + 1) : c;
            wrong += !(packed.panel(p)[k * 32 + slot] == (row < out ? w(row, k) : T(0)));
          }
        }
      }
      CHECK(wrong == 0);
    }
  }
}

TEMPLATE_TEST_CASE("packed: copy_rows() gives back every bit", "[nn]", float, double, bfloat16, half) {
  using T = TestType;
  using S = arithmetic_t<T>;
  Matrix<T> w = random_matrix<T>(45, 9, 2, 1000);
  w(3, 4) = std::numeric_limits<T>::infinity();
  w(40, 0) = std::numeric_limits<T>::denorm_min();
  w(44, 8) = T(-0.f);
  Matrix<S> wide(45, 9);
  for (Index i = 0; i < w.size(); ++i) wide.data()[i] = detail::widen(w.data()[i]);
  const PackedWeight<T> packed(w);
  for (const Index first : {0, 1, 30, 44, 45}) {
    for (const Index rows : {0, 1, 15}) {
      if (first + rows > 45) continue;
      Matrix<S> room = Matrix<S>::Constant(rows + 1, 12, S(8));
      packed.copy_rows(first, room.block(0, 1, rows, 9));
      CHECK(same_bits(room.block(0, 1, rows, 9), wide.middleRows(first, rows)));
      CHECK((room.col(0).array() == S(8)).all());
      CHECK((room.rightCols(2).array() == S(8)).all());
      CHECK((room.row(rows).array() == S(8)).all());
    }
  }
}

TEST_CASE("packed: takes blocks of a larger matrix, and copies share the panels", "[nn]") {
  const Matrix<float> large = random_matrix<float>(50, 20, 3);
  const PackedWeight packed(large.block(4, 5, 40, 11));
  Matrix<float> rows(40, 11);
  packed.copy_rows(0, rows);
  CHECK(same_bits(rows, large.block(4, 5, 40, 11)));
  const PackedWeight<float> copy = packed;
  CHECK(copy.panel(1) == packed.panel(1));
}

TEST_CASE("packed: nothing is a weight too, and what is not there cannot be copied", "[nn]") {
  const PackedWeight<float> none, no_inputs(Matrix<float>(3, 0)), no_outputs(Matrix<float>(0, 3));
  CHECK(none.bytes() == 0);
  CHECK(no_inputs.panels() == 1);
  CHECK(no_outputs.panels() == 0);
  Matrix<float> empty(0, 0);
  none.copy_rows(0, empty);

  const PackedWeight<float> packed(random_matrix<float>(10, 4, 4));
  Matrix<float> rows(3, 4), wrong(3, 5);
  CHECK_THROWS_AS(packed.copy_rows(8, rows), ShapeError);
  CHECK_THROWS_AS(packed.copy_rows(-1, rows), ShapeError);
  CHECK_THROWS_AS(packed.copy_rows(std::numeric_limits<Index>::max(), rows), ShapeError);
  CHECK_THROWS_WITH(packed.copy_rows(8, rows), contains("3 rows from row 8 on of a weight with 10 rows"));
  CHECK_THROWS_AS(packed.copy_rows(0, wrong), ShapeError);
  const float number = 0;
  CHECK_THROWS_AS(PackedWeight<float>(ConstMatrixRef<float>(&number, Index(1) << 40, Index(1) << 40, 0)), CapacityError);
}
