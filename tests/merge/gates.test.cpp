#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <pith/merge.hpp>

#include "support/catch.hpp"

using namespace pith;

namespace {

/// Which of these rows are left by a rule, all of them going to row 0 of one head.
template <class Rule> std::vector<Index> merged(const Rule& rule, const std::vector<float>& cosines) {
  std::vector<std::int32_t> rows(cosines.size(), 0);
  const LayerMatches<float>::Head head{rows, ConstVectorRef<float>(cosines), 1};
  LayerMatches<float> matches(std::span(&head, 1));
  rule.gate(matches, VectorRef<float>());
  std::vector<Index> left;
  for (std::size_t e = 0; e < rows.size(); ++e)
    if (rows[e] >= 0) left.push_back(static_cast<Index>(e));
  return left;
}

using Rows = std::vector<Index>;

}  // namespace

TEST_CASE("BestShare: of n rows n - ceil((1 - f)(n - 1)), the most similar", "[merge]") {
  const std::vector<float> five{.1f, .9f, -.2f, .5f, .3f};
  for (const ShareOf of : {ShareOf::passing, ShareOf::evicted}) {
    CHECK(merged(BestShare(Averaged{}, 1, of), five) == Rows{0, 1, 2, 3, 4});
    CHECK(merged(BestShare(Averaged{}, .75, of), five) == Rows{0, 1, 3, 4});
    CHECK(merged(BestShare(Averaged{}, .5, of), five) == Rows{1, 3, 4});
    CHECK(merged(BestShare(Averaged{}, .49, of), five) == Rows{1, 3});
    CHECK(merged(BestShare(Averaged{}, .25, of), five) == Rows{1, 3});
    CHECK(merged(BestShare(Averaged{}, 0, of), five) == Rows{1});
    CHECK(merged(BestShare(Averaged{}, .5, of), {-1}) == Rows{0});
    CHECK(merged(BestShare(Averaged{}, .5, of), {}) == Rows{});
    CHECK(merged(BestShare(Averaged{}, .1, of), {.5f, .5f, .5f}) == Rows{0, 1, 2});  // equals together
  }
  std::vector<float> eleven;
  for (int i = 0; i < 11; ++i) eleven.push_back(float(i) / 16);
  CHECK(merged(BestShare(Averaged{}, .9), eleven).size() == 10);  // 1 - .9 is a little less than a tenth
  CHECK(merged(BestShare(Averaged{}, .1), eleven).size() == 2);
}

TEST_CASE("BestShare: over rows that a gate has dropped", "[merge]") {
  const std::vector<float> cosines{.9f, .1f, .8f, .2f, .7f, .6f, .0f, .5f};  // with a least of .55 rows 0, 2, 4 and 5 pass
  const auto rule = [](double fraction, ShareOf of) { return BestShare(Gated(ValuesOnly{}, .55), fraction, of); };
  CHECK(merged(rule(.5, ShareOf::passing), cosines) == Rows{0, 2});  // .75 is half way between .7 and .8
  CHECK(merged(rule(1. / 3, ShareOf::passing), cosines) == Rows{0, 2});
  CHECK(merged(rule(.34, ShareOf::evicted), cosines) == Rows{0, 2, 4});  // place 4.62: between .6 and .7
  CHECK(merged(rule(.2, ShareOf::evicted), cosines) == Rows{0, 2});      // place 5.6
  CHECK(merged(rule(.1, ShareOf::evicted), cosines) == Rows{0});         // place 6.3: above .8
  // Place 3.5 lies between -inf and .6, 2.1 between two -inf: as published, and not a number below half way.
  CHECK(merged(rule(.6, ShareOf::evicted), cosines) == Rows{});             // place 2.8
  CHECK(merged(rule(.7, ShareOf::evicted), cosines) == Rows{});             // place 2.1
  CHECK(merged(rule(.52, ShareOf::evicted), cosines) == Rows{});            // place 3.36
  CHECK(merged(rule(.49, ShareOf::evicted), cosines) == Rows{0, 2, 4, 5});  // place 3.57: from above half way it is -inf
  CHECK(merged(rule(.7, ShareOf::passing), {.1f, .2f}) == Rows{});
}

TEST_CASE("gates: numbers that make no sense are refused", "[merge]") {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  CHECK_THROWS_AS(BestShare(Averaged{}, 1.01), ShapeError);
  CHECK_THROWS_AS(BestShare(Averaged{}, -.01), ShapeError);
  CHECK_THROWS_AS(BestShare(Averaged{}, nan), ShapeError);
  CHECK_THROWS_AS(Gated(Averaged{}, nan), ShapeError);
  CHECK_THROWS_AS(MovingThreshold(Averaged{}, nan), ShapeError);
  CHECK_THROWS_AS(MovingThreshold(Averaged{}, .5, inf), ShapeError);
}

TEST_CASE("a quantile is that of a sorted list", "[merge]") {
  std::vector<double> numbers{3, -0., 1e-300, -7, 3, 0., 12.5, -1e-3, -std::numeric_limits<double>::infinity()};
  std::vector<double> sorted = numbers;
  std::sort(sorted.begin(), sorted.end());
  const auto n = static_cast<Index>(numbers.size());
  for (Index k = 0; k < n; ++k)
    CHECK(detail::kth_smallest<double>(n, k, [&](Index i) { return numbers[static_cast<std::size_t>(i)]; }) ==
          sorted[static_cast<std::size_t>(k)]);
}
