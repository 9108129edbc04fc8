#include <cmath>
#include <limits>
#include <random>

#include <pith/merge/cam.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::near;
using pith_test::random_matrix;
using pith_test::same_bits;

TEMPLATE_TEST_CASE("CaM spreads a value over the rows behind it, and drops the rest", "[merge]", float, double) {
  const Matrix<TestType> before = random_matrix<TestType>(10, 6, 1);
  const double bound = 16 * static_cast<double>(std::numeric_limits<TestType>::epsilon());
  for (const Index row : {0, 3, 8, 9})
    for (const Index followers : {1, 4, 32})
      for (const bool whole_sum : {false, true}) {
        INFO("row " << row << ", " << followers << " followers");
        Matrix<TestType> values = before;
        const Index took = cam_spread<TestType>(values, {.row = row, .followers = followers, .whole_sum = whole_sum});
        CHECK(took == std::min(followers, 9 - row));
        const double share = took == 0 ? 0 : 1. / static_cast<double>(whole_sum ? took : followers);
        Matrix<double> expected = before.template cast<double>();
        for (Index r = row + 1; r <= row + took; ++r) expected.row(r) += share * before.row(row).template cast<double>();
        CHECK(near(values, expected, bound));
        CHECK(same_bits(values.topRows(row + 1), before.topRows(row + 1)));
        CHECK(same_bits(values.bottomRows(9 - row - took), before.bottomRows(9 - row - took)));
        const Matrix<double> grown = (values.template cast<double>() - before.template cast<double>()).colwise().sum();
        CHECK(near(grown, (share * static_cast<double>(took) * before.row(row).template cast<double>()).eval(), 10 * bound));
      }
}

TEST_CASE("CaM: attention of the leaving row over the mean of the others", "[merge]") {
  Vector<double> attention(6);
  attention << .1, .3, .2, .1, .1, .2;
  CHECK(std::abs(cam_ratio<double>(attention, {.row = 2, .sinks = 1, .from = 2}) - .2 / (.7 / 5)) < 1e-15);
  CHECK(std::abs(cam_ratio<double>(attention, {.row = 3, .from = 4}) - .1 / (.3 / 2)) < 1e-15);
  attention.setZero();
  CHECK(cam_ratio<double>(attention, {.row = 3, .from = 4}) == 0);
  CHECK(cam_ratio<double>(attention, {.row = 5, .from = 6}) == 0);  // nothing to compare with
  attention[3] = .5;
  CHECK(cam_ratio<double>(attention, {.row = 3, .from = 4}) == std::numeric_limits<double>::infinity());
  CHECK_THROWS_WITH((cam_ratio<double>(attention, {.row = 6, .from = 6})), contains("row 6 beside 0 sinks and rows from 6 on, of 6"));
  CHECK_THROWS_AS((cam_ratio<double>(attention, {.row = -1, .from = 4})), ShapeError);
  CHECK_THROWS_AS((cam_ratio<double>(attention, {.row = 0, .sinks = -1, .from = 4})), ShapeError);
  CHECK_THROWS_AS((cam_ratio<double>(attention, {.row = 0, .sinks = 5, .from = 4})), ShapeError);
  CHECK_THROWS_AS((cam_ratio<double>(attention, {.row = 0, .from = 7})), ShapeError);
}

TEST_CASE("CaM merges with the probability that the ratio is", "[merge]") {
  CHECK(cam_merges(.5, .4999));
  CHECK(!cam_merges(.5, .5));
  CHECK(cam_merges(std::numeric_limits<double>::infinity(), .9999));
  CHECK(!cam_merges(0., 0.));
  CHECK(!cam_merges(-1., 0.));
  std::mt19937_64 rng(7), same(7);
  int merged = 0;
  constexpr int draws = 4000;
  for (int i = 0; i < draws; ++i) {
    const bool merges = cam_merges(.3f, rng);
    CHECK(merges == cam_merges(.3f, canonical<float>(same)));
    merged += merges;
  }
  CHECK(std::abs(merged - .3 * draws) < 4 * std::sqrt(draws * .3 * .7));  // four standard deviations
  CHECK(cam_merges(2.f, rng));
}

TEST_CASE("CaM: what has no meaning is refused", "[merge]") {
  Matrix<float> values = random_matrix<float>(4, 3, 1);
  const Matrix<float> before = values;
  CHECK_THROWS_WITH((cam_spread<float>(values, {.row = 4})), contains("row 4, expected 0 .. 3"));
  CHECK_THROWS_AS((cam_spread<float>(values, {.row = -1})), ShapeError);
  CHECK_THROWS_WITH((cam_spread<float>(values, {.row = 1, .followers = 0})), contains("0 followers, expected 1 or more"));
  CHECK(same_bits(values, before));
}
