#include <limits>
#include <numeric>
#include <vector>

#include <pith/merge/merge_schedule.hpp>

#include "support/catch.hpp"

using namespace pith;
using pith_test::contains;

TEST_CASE("merge schedules: constant, falling, rising, listed, and one layer", "[merge]") {
  using Steps = std::vector<Index>;
  CHECK(MergeSchedule{.layers = 4, .r = 3}.steps() == Steps{3, 3, 3, 3});
  CHECK(MergeSchedule{.layers = 5, .r = 4, .inflection = -1}.steps() == Steps{8, 6, 4, 2, 0});
  CHECK(MergeSchedule{.layers = 5, .r = 4, .inflection = 1}.steps() == Steps{0, 2, 4, 6, 8});
  CHECK(MergeSchedule{.layers = 3, .r = 5, .inflection = .5}.steps() == Steps{2, 5, 8});
  for (const double inflection : {-1., 0., .3, 1.}) CHECK(MergeSchedule{.layers = 1, .r = 7, .inflection = inflection}.steps() == Steps{7});
  CHECK(MergeSchedule{.layers = 0, .r = 7}.steps().empty());
  CHECK(MergeSchedule{.layers = 4}.steps(Steps{5, 1}) == Steps{5, 1, 0, 0});
  CHECK(MergeSchedule{.layers = 2}.steps(Steps{}) == Steps{0, 0});
  for (const Index r : {1, 8, 13})  // fractions cut off lose less than a token a layer
    for (const double inflection : {-.7, .25, .9}) {
      const Steps steps = MergeSchedule{.layers = 12, .r = r, .inflection = inflection}.steps();
      const Index sum = std::accumulate(steps.begin(), steps.end(), Index(0));
      CHECK(sum <= 12 * r);
      CHECK(sum > 12 * r - 12);
    }
}

TEST_CASE("merge schedules: what no layer can follow is refused", "[merge]") {
  const std::vector<Index> three{1, 1, 1};
  CHECK_THROWS_WITH((MergeSchedule{.layers = 2, .r = 1, .inflection = 1.5}.steps()), contains("inflection 1.500000, expected -1 .. 1"));
  CHECK_THROWS_AS((MergeSchedule{.layers = 2, .r = 1, .inflection = std::numeric_limits<double>::quiet_NaN()}.steps()), ShapeError);
  CHECK_THROWS_WITH((MergeSchedule{.layers = 2, .r = -1}.steps()), contains("r -1 in 2 layers"));
  CHECK_THROWS_AS((MergeSchedule{.layers = -1}.steps()), ShapeError);
  CHECK_THROWS_AS((MergeSchedule{.layers = 2, .r = std::numeric_limits<Index>::max()}.steps()), ShapeError);
  CHECK_THROWS_WITH((MergeSchedule{.layers = 2}.steps(three)), contains("3 numbers for 2 layers"));
}
