#include <Eigen/Core>

#include <array>
#include <span>
#include <type_traits>
#include <unsupported/Eigen/CXX11/Tensor>
#include <vector>

#include <pith/core/view.hpp>

#include "support/catch.hpp"

namespace {

using pith::ConstMatrixRef;
using pith::ConstVectorRef;
using pith::Index;
using pith::Matrix;
using pith::MatrixRef;
using pith::ShapeError;
using pith::Vector;
using pith::VectorRef;
using pith_test::contains;

// Entry (r, c) of everything below is 10 r + c, so a sum over wrong strides cannot come out right.
template <class M> void number(M&& m) {
  for (Index r = 0; r < m.rows(); ++r)
    for (Index c = 0; c < m.cols(); ++c) m(r, c) = static_cast<float>(10 * r + c);
}

bool numbered(ConstMatrixRef<float> x, Index rows, Index cols, float origin = 0) {
  if (x.rows() != rows || x.cols() != cols) return false;
  for (Index r = 0; r < rows; ++r)
    for (Index c = 0; c < cols; ++c)
      if (x(r, c) != origin + static_cast<float>(10 * r + c)) return false;
  return true;
}

const float* where(ConstMatrixRef<float> x) { return x.data(); }

}  // namespace

TEST_CASE("a read-only view shows what it is given, without a copy") {
  Matrix<float> m(4, 6);
  number(m);

  SECTION("matrix, map, block, reference") {
    CHECK(numbered(m, 4, 6));
    CHECK(where(ConstMatrixRef<float>(m)) == m.data());
    const Eigen::Map<const Matrix<float>> map(m.data(), 4, 6);
    CHECK(numbered(map, 4, 6));
    CHECK(numbered(m.middleCols(2, 3), 4, 3, 2));
    CHECK(numbered(m.middleRows(1, 2), 2, 6, 10));
    CHECK(numbered(m.block(1, 2, 2, 3), 2, 3, 12));
    CHECK(numbered(m.block(1, 2, 1, 3), 1, 3, 12));
    const Eigen::Ref<const Matrix<float>, 0, Eigen::OuterStride<>> ref(m.middleCols(1, 4));
    CHECK(numbered(ref, 4, 4, 1));
    const Eigen::Matrix<float, 2, 3, Eigen::RowMajor> fixed{{0, 1, 2}, {10, 11, 12}};
    CHECK(numbered(fixed, 2, 3));
  }
  SECTION("views of views, and of writable ones") {
    const ConstMatrixRef<float> inner = m.middleCols(1, 4);
    CHECK(numbered(inner.topRows(2), 2, 4, 1));
    const MatrixRef<float> writable = m;
    CHECK(numbered(writable, 4, 6));
    CHECK(numbered(writable.rightCols(2), 4, 2, 4));
  }
  SECTION("rows and columns") {
    CHECK(numbered(m.row(2), 1, 6, 20));
    CHECK(numbered(m.col(3), 4, 1, 3));
    CHECK(numbered(m.col(3).segment(1, 2), 2, 1, 13));
    const Eigen::RowVectorXf row = m.row(1);
    CHECK(numbered(row, 1, 6, 10));
  }
  SECTION("column-major columns are tokens: the transpose is free") {
    Eigen::MatrixXf columns = m.transpose();
    CHECK(where(ConstMatrixRef<float>(columns.transpose())) == columns.data());
    CHECK(numbered(columns.transpose(), 4, 6));
    CHECK(numbered(columns.middleRows(1, 3).transpose(), 4, 3, 1));
  }
  SECTION("nothing at all") {
    CHECK(numbered(ConstMatrixRef<float>(), 0, 0));
    CHECK(numbered(Matrix<float>(0, 6), 0, 6));
    CHECK(numbered(m.middleCols(3, 0), 4, 0));
    CHECK(numbered(m.middleRows(4, 0), 0, 6));
  }
}

TEST_CASE("a row-major Eigen tensor binds, and one head of a rank-3 tensor") {
  Eigen::Tensor<float, 2, Eigen::RowMajor> t(3, 5);
  for (Index r = 0; r < 3; ++r)
    for (Index c = 0; c < 5; ++c) t(r, c) = static_cast<float>(10 * r + c);
  CHECK(numbered(t, 3, 5));
  const Eigen::TensorMap<Eigen::Tensor<float, 2, Eigen::RowMajor>> map(t.data(), 3, 5);
  CHECK(numbered(map, 3, 5));
  const Eigen::TensorMap<Eigen::Tensor<const float, 2, Eigen::RowMajor>> const_map(t.data(), 3, 5);
  CHECK(numbered(const_map, 3, 5));
  const auto write = [](MatrixRef<float> x) { x(2, 4) = -1; };
  write(t);
  CHECK(t(2, 4) == -1);

  Eigen::Tensor<float, 3, Eigen::RowMajor> heads(2, 3, 5);
  for (Index h = 0; h < 2; ++h)
    for (Index r = 0; r < 3; ++r)
      for (Index c = 0; c < 5; ++c) heads(h, r, c) = static_cast<float>(100 * h + 10 * r + c);
  CHECK(numbered(pith::head(heads, 1), 3, 5, 100));
  CHECK(numbered(pith::head(std::as_const(heads), 0), 3, 5));
  pith::head(heads, 1)(0, 0) = 7;
  CHECK(heads(1, 0, 0) == 7);
  CHECK_THROWS_AS(pith::head(heads, 2), ShapeError);
  CHECK_THROWS_WITH(pith::head(heads, -1), contains("head -1 of a tensor with 2 heads"));
}

TEST_CASE("a writable view writes through") {
  Matrix<float> m = Matrix<float>::Zero(4, 6);
  const auto write = [](MatrixRef<float> x) { number(x); };

  SECTION("whole, block, transposed column-major") {
    write(m);
    CHECK(numbered(m, 4, 6));
    m.setZero();
    write(m.block(1, 2, 2, 3));
    CHECK(numbered(m.block(1, 2, 2, 3), 2, 3));
    CHECK(m.sum() == 0 + 1 + 2 + 10 + 11 + 12);
    Eigen::MatrixXf columns = Eigen::MatrixXf::Zero(6, 4);
    write(columns.transpose());
    CHECK(numbered(columns.transpose(), 4, 6));
  }
  SECTION("assignment copies numbers, into a view of a view as well") {
    Matrix<float> source(4, 6);
    number(source);
    MatrixRef<float> all = m;
    const MatrixRef<float> from = source;
    all = from;
    CHECK(numbered(m, 4, 6));
    m.setZero();
    all = 2 * source;
    CHECK(m(3, 5) == 70);
    MatrixRef<float> left = all.leftCols(2);
    left = source.rightCols(2);
    CHECK(m(0, 0) == 4);
  }
}

TEST_CASE("a read-only view is rebound by assignment") {
  Matrix<float> m(4, 6), other(2, 3);
  number(m);
  number(other);
  ConstMatrixRef<float> x = m;
  x = other;
  CHECK(x.data() == other.data());
  CHECK(numbered(x, 2, 3));
  x = m.leftCols(2);
  CHECK(numbered(x, 4, 2));
  CHECK(numbered(m, 4, 6));  // nothing was written

  const Vector<float> ones = Vector<float>::Ones(3), twos = Vector<float>::Constant(5, 2);
  ConstVectorRef<float> v = ones;
  v = twos;
  CHECK(v.data() == twos.data());
  CHECK(v.size() == 5);
}

TEST_CASE("vector views take either orientation, and standard containers") {
  Matrix<float> m(3, 4);
  number(m);
  const auto sum = [](ConstVectorRef<float> v) { return v.sum(); };
  const auto fill = [](VectorRef<float> v) { v.setConstant(5); };
  CHECK(sum(m.row(1)) == 46);
  CHECK(sum(m.row(1).segment(1, 2)) == 23);
  CHECK(sum(Vector<float>::Ones(7).eval()) == 7);
  CHECK(sum(Eigen::RowVector3f(1, 2, 3)) == 6);
  CHECK(sum(std::vector<float>{1, 2, 3}) == 6);
  CHECK(sum(std::array<float, 2>{4, 5}) == 9);
  CHECK(ConstVectorRef<float>().size() == 0);

  std::vector<float> numbers(3);
  fill(numbers);
  CHECK(numbers == std::vector<float>{5, 5, 5});
  fill(std::span<float>(numbers).first(1));
  fill(m.row(0));
  CHECK(m.row(0).sum() == 20);
  CHECK(m.row(1).sum() == 46);
  static_assert(!std::is_convertible_v<const std::vector<float>&, VectorRef<float>>);
  static_assert(!std::is_convertible_v<std::vector<float>, VectorRef<float>>, "a temporary would be lost");
}

TEST_CASE("features that do not lie together are refused at run time") {
  std::vector<float> memory(64);
  const Eigen::Map<Matrix<float>, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>> apart(memory.data(), 3, 4, {8, 2});
  CHECK_THROWS_AS(ConstMatrixRef<float>(apart), ShapeError);
  CHECK_THROWS_WITH(ConstMatrixRef<float>(apart), contains("lie 2 apart") && contains("evaluate first"));
  const Eigen::Map<Matrix<float>, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>> together(memory.data(), 3, 4, {8, 1});
  CHECK(ConstMatrixRef<float>(together).outerStride() == 8);

  const Eigen::MatrixXf columns = Eigen::MatrixXf::Zero(3, 4);
  CHECK_THROWS_AS(ConstMatrixRef<float>(columns.row(1)), ShapeError);
  CHECK_THROWS_AS(ConstVectorRef<float>(columns.row(1)), ShapeError);
  CHECK_THROWS_WITH(ConstVectorRef<float>(Matrix<float>::Zero(3, 4).eval().col(0)), contains("lie 4 apart"));
  CHECK(ConstVectorRef<float>(columns.col(1)).size() == 3);
}

TEST_CASE("views: negative sizes and numbers at a null pointer are refused") {
  float x[6] = {};
  CHECK_THROWS_AS(ConstMatrixRef<float>(x, -1, 2), ShapeError);
  CHECK_THROWS_AS(ConstMatrixRef<float>(x, 2, -3), ShapeError);
  CHECK_THROWS_AS(MatrixRef<float>(x, -1, 2, 2), ShapeError);
  CHECK_THROWS_AS(ConstVectorRef<float>(x, -6), ShapeError);
  CHECK_THROWS_AS(VectorRef<float>(x, -6), ShapeError);
  CHECK_THROWS_AS(ConstMatrixRef<float>(nullptr, 2, 3), ShapeError);
  CHECK_THROWS_AS(MatrixRef<float>(nullptr, 2, 3), ShapeError);
  CHECK_THROWS_AS(ConstVectorRef<float>(nullptr, 1), ShapeError);
  CHECK_THROWS_WITH(VectorRef<float>(nullptr, 7), pith_test::contains("view of [7, 1] numbers at a null pointer"));
  CHECK(ConstMatrixRef<float>(nullptr, 0, 3).size() == 0);
  CHECK(MatrixRef<float>(nullptr, 3, 0).size() == 0);
  CHECK(VectorRef<float>(nullptr, 0).size() == 0);
}
