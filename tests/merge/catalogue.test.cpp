#include <fstream>
#include <iterator>
#include <string>

#include <pith/merge/catalogue.hpp>

#include "support/catch.hpp"

using namespace pith;

TEST_CASE("a strategy is found by name, and a wrong name is told the right ones", "[merge]") {
  CHECK_FALSE(make_merge("drop").facts().merges);
  CHECK(make_merge("pivotal").weight({.5f, 1, 1, 1, 1}) == .5f);
  CHECK(make_merge<double>("d2o").facts().memory == 2);
  CHECK_THROWS_WITH(make_merge("pivot"), pith_test::contains("no strategy 'pivot': drop, averaged, pivotal"));
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
