#include <cstdint>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <pith/merge/catalogue.hpp>

#include "support/catch.hpp"

using namespace pith;

TEST_CASE("a strategy is found by name, and a wrong name is told the right ones", "[merge]") {
  CHECK_FALSE(make_merge("drop").facts().merges);
  CHECK(make_merge("pivotal").weight({.5f, 1, 1, 1, 1}) == .5f);
  CHECK(make_merge<double>("d2o").facts().memory == 2);
  const MergePair<float> pair{.5f, 2, 3, 1, 1};
  for (const char* name : {"mass-weighted", "size-weighted"}) CHECK(make_merge(name).weight(pair) == MassWeighted{}.weight(pair));
  CHECK_THROWS_WITH(make_merge("pivot"), pith_test::contains("no strategy 'pivot': drop, averaged, pivotal"));
}

TEST_CASE("values-only-half merges values of the more similar half of a head's evicted rows", "[merge]") {
  const AnyMerge<float> half = make_merge("values-only-half"), all = make_merge("values-only");
  CHECK(half.facts().merges);
  CHECK_FALSE(half.merges_keys());
  const MergePair<float> pair{.5f, 1, 1, 3, 1};
  CHECK(half.weight(pair) == all.weight(pair));
  CHECK(half.weight(pair) == Approx(.5 / 4));  // s times the share of e in the norms 3 and 1
  std::vector<std::int32_t> five{0, 1, 2, 0, 1}, even{0, 0, 0, 0};
  Vector<float> cosines(5), four(4), memory(half.facts().memory);
  cosines << .9f, .1f, .5f, -.3f, .7f;  // the median is .5
  four << .2f, .8f, .4f, .6f;           // the median is half way from .4 to .6
  const LayerMatches<float>::Head heads[] = {{five, cosines, 3}, {even, four, 1}};
  LayerMatches<float> matches(heads);
  half.gate(matches, memory);
  CHECK(five == std::vector<std::int32_t>{0, -1, 2, -1, 1});
  CHECK(even == std::vector<std::int32_t>{-1, 0, -1, 0});
}

TEST_CASE("the table of strategies is the catalogue", "[merge]") {
  std::ifstream map(PITH_MODELS_DIR "/../../include/pith/README.md");
  REQUIRE(map);
  const std::string text(std::istreambuf_iterator<char>(map), {});
  for (const MergeEntry<float>& entry : merge_catalogue()) {
    std::string line = "| `" + std::string(entry.name) + "` | " + std::string(entry.makes) + " | ";
    if (!entry.paper.empty()) line += "[" + std::string(entry.paper) + "](https://arxiv.org/abs/" + std::string(entry.paper) + ") ";
    INFO(line << "|");
    CHECK(text.find(line + "|\n") != std::string::npos);
  }
}
