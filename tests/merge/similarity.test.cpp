#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <pith/core/executor.hpp>
#include <pith/merge/similarity.hpp>

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

template <class S> struct Nearest {
  std::vector<std::int32_t> match;
  Vector<S> cosine;
};

template <class S> Nearest<S> nearest(const Matrix<S>& rows, const Matrix<S>& kept, ExecutorRef executor = serial) {
  Nearest<S> out{std::vector<std::int32_t>(static_cast<std::size_t>(rows.rows())), Vector<S>(rows.rows())};
  Workspace ws(nearest_workspace_bytes<S>(kept.rows(), kept.cols(), executor.size()), executor);
  nearest_rows<S>(rows, kept, out.match, out.cosine, ws);
  return out;
}

Matrix<double> cosines(const Matrix<double>& rows, const Matrix<double>& kept) {
  Matrix<double> out = pith_test::times_transposed(rows, kept);
  for (Index e = 0; e < out.rows(); ++e)
    for (Index c = 0; c < out.cols(); ++c) {
      const double norms = rows.row(e).norm() * kept.row(c).norm();
      out(e, c) = norms == 0 ? 0 : out(e, c) / norms;
    }
  return out;
}

/// What rounding may do to a cosine: a product, two norms, two divisions.
template <class S> double cosine_bound(Index dim) {
  return (2 * static_cast<double>(dim) + 8) * static_cast<double>(std::numeric_limits<S>::epsilon());
}

}  // namespace

TEMPLATE_TEST_CASE("nearest rows are those of the whole matrix in double, across blocks of every side", "[merge]", float, double) {
  for (const auto& [n, m, dim] :
       {std::array<Index, 3>{1, 1, 1}, {5, 3, 7}, {129, 40, 16}, {130, 1030, 24}, {3, 2050, 128}, {121, 33, 500}, {240, 64, 1100}}) {
    const Matrix<TestType> rows = random_matrix<TestType>(n, dim, 1), kept = random_matrix<TestType>(m, dim, 2);
    const Matrix<double> expected = cosines(rows.template cast<double>(), kept.template cast<double>());
    const double bound = cosine_bound<TestType>(dim);
    const Nearest<TestType> found = nearest(rows, kept);
    for (Index e = 0; e < n; ++e) {
      const Index c = found.match[static_cast<std::size_t>(e)];
      REQUIRE(c >= 0);
      REQUIRE(c < m);
      CHECK(std::abs(double(found.cosine[e]) - expected(e, c)) <= bound);
      CHECK(expected(e, c) >= expected.row(e).maxCoeff() - 2 * bound);
    }
    Matrix<TestType> whole(n, m);
    Workspace ws(nearest_workspace_bytes<TestType>(n + m, dim));
    similarity_matrix<TestType>(rows, kept, whole, ws);
    CHECK(near(whole, expected, bound));
  }
}

TEST_CASE("matches depend on no worker, no other row and no scale", "[merge]") {
  const Matrix<float> rows = random_matrix<float>(200, 32, 3), kept = random_matrix<float>(1500, 32, 4);
  const Nearest<float> alone = nearest(rows, kept);
  ThreadPool pool(3);
  const Nearest<float> together = nearest(rows, kept, pool);
  CHECK(alone.match == together.match);
  CHECK(same_bits(alone.cosine, together.cosine));
  Matrix<float> scaled_rows = rows, scaled_kept = kept;
  for (Index r = 0; r < rows.rows(); ++r) scaled_rows.row(r) *= std::ldexp(1.f, int(r % 9) - 4);
  for (Index r = 0; r < kept.rows(); ++r) scaled_kept.row(r) *= std::ldexp(1.f, int(r % 7) - 3);
  const Nearest<float> scaled = nearest(scaled_rows, scaled_kept);
  CHECK(alone.match == scaled.match);
  CHECK(same_bits(alone.cosine, scaled.cosine));
  // At the bounds that nearest_rows() names: numbers of 2^-60 and more, of 2^60 and less, and rows of both.
  enum class Bound { least, most, both };
  const auto at_bound = [](Matrix<float> m, Bound bound) {
    for (Index r = 0; r < m.rows(); ++r) {
      const auto sizes = m.row(r).cwiseAbs();
      const bool most = bound == Bound::most || (bound == Bound::both && r % 2 == 0);
      m.row(r) *= std::ldexp(1.f, most ? 59 - std::ilogb(sizes.maxCoeff()) : -60 - std::ilogb(sizes.minCoeff()));
      REQUIRE((sizes.minCoeff() >= 0x1p-60f && sizes.maxCoeff() <= 0x1p60f));
      REQUIRE((most ? sizes.maxCoeff() >= 0x1p59f : sizes.minCoeff() < 0x1p-59f));
    }
    return m;
  };
  for (const Bound of_rows : {Bound::least, Bound::most, Bound::both})
    for (const Bound of_kept : {Bound::least, Bound::most, Bound::both}) {
      const Nearest<float> extreme = nearest(at_bound(rows, of_rows), at_bound(kept, of_kept));
      CHECK(alone.match == extreme.match);
      CHECK(same_bits(alone.cosine, extreme.cosine));
    }
  const Nearest<float> last = nearest<float>(rows.bottomRows(1), kept);
  CHECK(last.match[0] == alone.match[199]);
  CHECK(last.cosine[0] == alone.cosine[199]);
}

TEST_CASE("few rows or many, near or far apart, by any workers: the same bits, and those of the whole matrix", "[merge]") {
  const Matrix<double> wide_rows = random_matrix<double>(260, 400, 7), wide_kept = random_matrix<double>(300, 300, 8);
  const ConstMatrixRef<double> rows(wide_rows.data(), 130, 200, 800), kept(wide_kept.data(), 300, 200, 300);  // every other row, part of it
  ThreadPool pool(3);
  std::vector<std::int32_t> match(130), other(130);
  Vector<double> cosine(130), other_cosine(130);
  Matrix<double> whole(130, 300);
  Workspace ws(nearest_workspace_bytes<double>(430, 200, 3), pool), alone(nearest_workspace_bytes<double>(300, 200));
  nearest_rows<double>(rows, kept, match, cosine, ws);
  similarity_matrix<double>(rows, kept, whole, ws);
  for (const Index together : {1, 3, 50, 120, 130})
    for (Index first = 0; first < 130; first += together) {
      const Index count = std::min(together, 130 - first);
      const auto part = std::span(other).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
      nearest_rows<double>(rows.middleRows(first, count), kept, part, other_cosine.segment(first, count), together == 50 ? ws : alone);
      CHECK(std::equal(part.begin(), part.end(), match.begin() + first));
      CHECK(same_bits(other_cosine.segment(first, count), cosine.segment(first, count)));
    }
  for (Index e = 0; e < 130; ++e) {
    CHECK(whole(e, match[static_cast<std::size_t>(e)]) == cosine[e]);
    CHECK(whole.row(e).maxCoeff() == cosine[e]);
  }
}

TEST_CASE("of equal cosines the first, wherever in a packet they lie", "[merge]") {
  for (const Index m : {2, 16, 31, 32, 33, 64, 65, 100})
    for (Index first = 0; first < m; ++first) {
      Matrix<float> kept = Matrix<float>::Constant(m, 3, -1);
      for (Index c = first; c < m; c += 7) kept.row(c).setConstant(static_cast<float>(1 + c % 3));
      CHECK(nearest<float>(Matrix<float>::Ones(2, 3), kept).match == std::vector<std::int32_t>(2, static_cast<std::int32_t>(first)));
    }
  const Nearest<float> narrow = nearest<float>(Matrix<float>(130, 0), Matrix<float>(70, 0));  // no numbers: all alike
  CHECK(std::all_of(narrow.match.begin(), narrow.match.end(), [](std::int32_t c) { return c == 0; }));
  CHECK(narrow.cosine.isZero());
  CHECK(nearest<float>(Matrix<float>(0, 4), Matrix<float>::Ones(3, 4)).match.empty());
}

TEST_CASE("what nearest_rows() needs is no number for sizes that are none", "[merge]") {
  for (const Index wrong : {Index(-1), Index(-16), std::numeric_limits<Index>::min(), std::numeric_limits<Index>::max()}) {
    CHECK_THROWS_AS(nearest_workspace_bytes<float>(wrong, 4), CapacityError);
    CHECK_THROWS_AS(nearest_workspace_bytes<float>(4, wrong), CapacityError);
    CHECK_THROWS_AS(nearest_workspace_bytes<float>(4, 4, wrong), CapacityError);
  }
}

TEST_CASE("equal cosines take the first, zeros are near to nothing, and what is not a number matches nothing", "[merge]") {
  constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  Matrix<float> kept(5, 2), rows(5, 2);
  kept << 0, 0, 0, 2, 3, 0, 3, 0, nan, 1;
  rows << 1, 0, 0, 0, -1, -1, nan, 0, 0, 5;
  const Nearest<float> found = nearest(rows, kept);
  CHECK(found.match == std::vector<std::int32_t>{2, 0, 0, -1, 1});
  CHECK(found.cosine[0] == 1);
  CHECK(found.cosine[1] == 0);
  CHECK(found.cosine[2] == 0);  // the row of zeros is nearer than those behind
  CHECK(found.cosine[3] == -inf);
  CHECK(found.cosine[4] == 1);
}

TEST_CASE("similarity: shapes that disagree are refused", "[merge]") {
  const Matrix<float> rows = random_matrix<float>(3, 4, 1);
  Matrix<float> whole(3, 2);
  std::vector<std::int32_t> match(3);
  Vector<float> cosine(3);
  Workspace ws(nearest_workspace_bytes<float>(8, 4));
  CHECK_THROWS_WITH(nearest_rows<float>(rows, Matrix<float>(0, 4), match, cosine, ws), contains("no kept rows"));
  CHECK_THROWS_AS(nearest_rows<float>(rows, Matrix<float>(2, 5), match, cosine, ws), ShapeError);
  match.pop_back();
  CHECK_THROWS_WITH(nearest_rows<float>(rows, rows, match, cosine, ws), contains("2 matches and 3 cosines for 3 rows"));
  CHECK_THROWS_AS(similarity_matrix<float>(rows, rows, whole, ws), ShapeError);
}

TEST_CASE("of equal cosines the kept row of lowest position wins, wherever it lies", "[merge]") {
  std::mt19937_64 rng(12);
  for (const Index m : {1, 5, 40, 200})
    for (const Index n : {1, 3, 150}) {
      Matrix<float> kept = random_matrix<float>(m, 8, 21);
      std::vector<Position> positions(static_cast<std::size_t>(m));
      for (Index c = 0; c < m; ++c) {
        kept.row(c) = kept.row(c % 4) * static_cast<float>(1 << (c % 3));  // four directions; scaling by these changes no bit of a cosine
        positions[static_cast<std::size_t>(c)] = static_cast<Position>(3 * c + 7);
      }
      std::shuffle(positions.begin(), positions.end(), rng);
      const Matrix<float> rows = random_matrix<float>(n, 8, 22);
      std::vector<std::int32_t> first(static_cast<std::size_t>(n)), oldest = first;
      Vector<float> cosine(n), same(n);
      Workspace ws(nearest_workspace_bytes<float>(m, 8, 1, n));
      nearest_rows<float>(rows, kept, first, cosine, ws);
      nearest_rows<float>(rows, kept, oldest, same, ws, positions);
      CHECK(cosine == same);
      for (std::size_t r = 0; r < first.size(); ++r) {
        CHECK(first[r] < 4);
        std::int32_t expected = first[r];
        for (std::int32_t c = first[r]; c < m; c += 4)
          if (positions[static_cast<std::size_t>(c)] < positions[static_cast<std::size_t>(expected)]) expected = c;
        CHECK(oldest[r] == expected);
      }
    }
  const Matrix<float> rows = random_matrix<float>(2, 8, 1);
  std::vector<std::int32_t> match(2);
  Vector<float> cosine(2);
  const std::vector<Position> one{3};
  Workspace ws(nearest_workspace_bytes<float>(2, 8));
  CHECK_THROWS_WITH(nearest_rows<float>(rows, rows, match, cosine, ws, one), pith_test::contains("1 positions for 2 kept rows"));
}

TEST_CASE("nearest_rows: equals by position behind a cosine of -inf", "[merge]") {
  // 1e30 · -1e10 overflows where the norm does not; the two others are equal, and the later one has the lower position.
  const Matrix<float> row = Matrix<float>::Constant(1, 2, 1e30f);
  Matrix<float> kept(3, 2);
  kept << -1e10f, -1e10f, 1e-5f, 0, 1e-5f, 0;
  const std::vector<Position> positions{5, 9, 3};
  std::vector<std::int32_t> match{7};
  Vector<float> cosine(1);
  Workspace ws(nearest_workspace_bytes<float>(3, 2));
  nearest_rows<float>(row, kept, match, cosine, ws, positions);
  CHECK(match[0] == 2);
}

TEST_CASE("similarity: the forms with memory of their own are the others", "[merge]") {
  const Matrix<float> rows = random_matrix<float>(9, 6, 1), kept = random_matrix<float>(5, 6, 2);
  const std::vector<Position> positions{4, 3, 2, 1, 0};
  Matrix<float> matrix(9, 5);
  std::vector<std::int32_t> match(9);
  Vector<float> cosine(9);
  Workspace ws(nearest_workspace_bytes<float>(14, 6));
  similarity_matrix<float>(rows, kept, matrix, ws);
  CHECK(similarity_matrix(rows, kept) == matrix);
  CHECK(similarity_matrix(ConstMatrixRef<float>(rows), kept) == matrix);
  nearest_rows<float>(rows, kept, match, cosine, ws, positions);
  const NearestMatches<float> found = nearest_rows(rows, kept, positions);
  CHECK(found.row == match);
  CHECK(found.cosine == cosine);
  CHECK_THROWS_AS(similarity_matrix(rows, kept.leftCols(3)), ShapeError);
  CHECK_THROWS_WITH(nearest_rows(rows, kept.topRows(0)), pith_test::contains("expected at least one to compare with"));
}
