#include <fstream>
#include <memory>
#include <string>

#include <pith/kv/catalogue.hpp>

#include "laws/policy_laws.hpp"
#include "support/catch.hpp"
#include "support/random_matrix.hpp"

using namespace pith;

namespace {

PolicyModel<float> model_of(const AttentionShape& shape) {
  return {std::make_shared<Rope<float>>(RopeOptions{.head_dim = shape.head_dim}),
          std::make_shared<Matrix<float>>(pith_test::random_matrix<float>(12, shape.num_heads * shape.head_dim, 3))};
}

}  // namespace

TEST_CASE("every policy of the catalogue keeps the laws", "[kv]") {
  const AttentionShape shape = GENERATE(AttentionShape{4, 2, 8}, AttentionShape{2, 2, 6}, AttentionShape{6, 1, 4});
  for (const PolicyEntry<float>& entry : policy_catalogue())
    for (const Index rows : {6, 17}) {
      INFO(entry.name << ", " << rows << " rows, " << shape.num_heads << " heads over " << shape.num_kv_heads);
      const AnyPolicy<float> policy = entry.make(rows, model_of(shape));
      const detail::PolicyFacts facts = policy.facts(shape);
      // Text prior keeps every text token, here all of them: its rows have no bound but the cache's.
      if (entry.name == "text-prior") continue;
      const Index chunk = entry.name == "chunkkv" ? rows : 0;
      pith_test::policy_laws<AnyPolicy<float>, float>(policy, shape, 3, chunk);
      if (facts.traits.reading == Reading::stream) pith_test::policy_laws<AnyPolicy<float>, bfloat16>(policy, shape, 4, chunk);
    }
}

TEST_CASE("a policy is found by name, and a wrong name is told the right ones", "[kv]") {
  CHECK(make_policy("h2o", 32).budget() == 32);
  CHECK(make_policy("dense", 1).budget() == unlimited);
  CHECK_THROWS_WITH(make_policy("h20", 32), pith_test::contains("no policy 'h20': dense, window, sinks, h2o"));
  CHECK_THROWS_WITH(make_policy("window", 0), pith_test::contains("0 rows for 'window'"));
  CHECK_THROWS_WITH(make_policy("expected", 8), pith_test::contains("needs PolicyModel::rope"));
  CHECK_THROWS_AS(make_policy("critical", 8), ShapeError);
}

TEST_CASE("the README's table of policies is the catalogue", "[kv]") {
  std::ifstream readme(PITH_MODELS_DIR "/../../README.md");
  REQUIRE(readme);
  const std::string text(std::istreambuf_iterator<char>(readme), {});
  for (const PolicyEntry<float>& entry : policy_catalogue()) {
    std::string line = "| `" + std::string(entry.name) + "` | " + std::string(entry.keeps) + " | " + std::string(entry.needs) + " | " +
                       std::string(entry.cost) + " | ";
    if (!entry.paper.empty()) line += "[" + std::string(entry.paper) + "](https://arxiv.org/abs/" + std::string(entry.paper) + ") ";
    INFO(line << "|");
    CHECK(text.find(line + "|\n") != std::string::npos);
  }
}
