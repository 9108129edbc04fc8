#include <cmath>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include <pith/kv/catalogue.hpp>
#include <pith/kv/policy_laws.hpp>

#include "support/catch.hpp"
#include "support/kv_stream.hpp"
#include "support/random_matrix.hpp"

using namespace pith;

namespace {

PolicyModel<float> model_of(const AttentionShape& shape) {
  return {std::make_shared<Rope<float>>(RopeOptions{.head_dim = shape.head_dim}),
          std::make_shared<Matrix<float>>(pith_test::random_matrix<float>(12, shape.num_heads * shape.head_dim, 3))};
}

/// The attention of the newest tokens, q [tokens, num_heads*head_dim], over the numbers that a cache's rows stand for.
template <class Cache> void observe_plainly(Cache& cache, const Matrix<float>& q) {
  const Index d = cache.shape().head_dim, group = cache.shape().group(), tokens = q.rows();
  for (Index h = 0; h < cache.shape().num_kv_heads; ++h) {
    const Matrix<float> keys = pith_test::keys_of(cache, h);
    Matrix<float> weights(tokens * group, keys.rows()), queries(tokens * group, d);
    Vector<float> log_sum(tokens * group);
    for (Index l = 0; l < tokens * group; ++l) {
      const Index t = l / group;
      queries.row(l) = q.row(t).segment((h * group + l % group) * d, d);
      for (Index r = 0; r < keys.rows(); ++r) {
        const bool seen = cache.positions(h)[static_cast<std::size_t>(r)] <= cache.next_position() - tokens + t;
        weights(l, r) = seen ? std::exp(queries.row(l).dot(keys.row(r)) / std::sqrt(static_cast<float>(d))) : 0;
      }
      log_sum[l] = std::log(weights.row(l).sum());
      weights.row(l) /= weights.row(l).sum();
    }
    cache.observe({.kv_head = h, .weights = weights, .log_sum = log_sum, .queries = queries});
  }
}

}  // namespace

TEST_CASE("every policy of the catalogue keeps the laws", "[kv]") {
  const AttentionShape shape = GENERATE(AttentionShape{4, 2, 8}, AttentionShape{2, 2, 6}, AttentionShape{6, 1, 4});
  for (const PolicyEntry<float>& entry : policy_catalogue())
    for (const Index rows : {6, 17}) {
      INFO(entry.name << ", " << rows << " rows, " << shape.num_heads << " heads over " << shape.num_kv_heads);
      const AnyPolicy<float> policy = entry.make(rows, model_of(shape));
      const PolicyFacts facts = policy.facts(shape);
      // Text prior keeps every text token, here all of them: its rows have no bound but the cache's.
      if (entry.name == "text-prior") {
        prompt_laws(policy, {.shape = shape, .seed = 3});
        continue;
      }
      policy_laws(policy, {.shape = shape, .seed = 3});
      if (facts.traits.positions == RopePositions::text) policy_laws<bfloat16>(policy, {.shape = shape, .seed = 4});
    }
}

// Keys that turn are not stored rotated. Scores of random rows lie farther apart than a rotation's rounding.
TEST_CASE("every policy of the catalogue evicts the same rows of rotated keys and values as of plain ones", "[kv]") {
  const AttentionShape shape{4, 2, 8};
  const KvCacheOptions options{.max_chunk = 30, .max_tokens = 60, .max_generated = 30};
  for (const PolicyEntry<float>& entry : policy_catalogue()) {
    if (entry.name == "h2o-cache") continue;
    INFO(entry.name);
    const AnyPolicy<float> policy = entry.make(14, model_of(shape));
    KvCache<float> plain(shape, policy, options);
    KvCache<Rotated<float>> rotated(shape, policy, options);
    pith_test::KvStream<float> stream(shape, 6);
    Index all_left = 0;
    for (int step = 0; step < 30; ++step) {
      const Index tokens = step == 0 ? 30 : 1;
      const Matrix<float> k = stream.random(tokens, 16), v = stream.random(tokens, 16), q = stream.random(tokens, 32);
      const std::vector<TokenKind> kinds(static_cast<std::size_t>(tokens), step % 3 == 1 ? TokenKind::text : TokenKind::image);
      const auto left = [&](auto& cache) {
        cache.append(k, v, {.phase = step == 0 ? Phase::prefill : Phase::decode, .kinds = kinds});
        if (cache.watching()) observe_plainly(cache, q);
        return cache.evict();
      };
      const Index gone = left(plain);
      REQUIRE(left(rotated) == gone);
      all_left += gone;
      for (Index h = 0; h < 2; ++h)
        REQUIRE(std::vector<Position>(plain.positions(h).begin(), plain.positions(h).end()) ==
                std::vector<Position>(rotated.positions(h).begin(), rotated.positions(h).end()));
    }
    CHECK((all_left > 0) == (entry.name != "dense"));
    const Matrix<float> off = pith_test::keys_of(plain, 1) - pith_test::keys_of(rotated, 1);
    CHECK(off.cwiseAbs().maxCoeff() < 1e-5f);
    CHECK(off.cwiseAbs().maxCoeff() > 0);  // rounding differs, scores with it
  }
}

TEST_CASE("a prompt in pieces keeps the rows of the whole under wrappers and every option of a window", "[kv]") {
  const AttentionShape shape{4, 2, 8};
  const auto o_proj = model_of(shape).o_proj;
  const SnapKv snap{.keep = 12, .window = 8, .kernel = 3};
  const SnapKv by_head{.keep = 12, .window = 5, .kernel = 3, .pool = SnapKv::Pool::largest, .group = SnapKv::Group::largest};
  const Csp lists{.heavy = 6, .recent = 7, .protects = 2};
  prompt_laws(snap, {.shape = shape, .seed = 7});
  prompt_laws(by_head, {.shape = shape, .seed = 8});
  prompt_laws(Adaptive(snap, {.floor = 0.5}), {.shape = shape, .seed = 9});
  prompt_laws(Adaptive(by_head, {.floor = 0.2, .rule = AdaptiveOptions::Rule::blended}), {.shape = shape, .seed = 10});
  prompt_laws(Chunkwise(snap, 3), {.shape = shape, .seed = 11});
  prompt_laws(Protect(lists, {.sinks = 1}), {.shape = shape, .seed = 12});
  prompt_laws(lists, {.shape = shape, .seed = 13});
  prompt_laws(Csp{.heavy = 2, .recent = 9, .picks = Csp::Picks::both}, {.shape = shape, .seed = 14});
  prompt_laws(PromptOnly(Tova{9}), {.shape = shape, .seed = 15});
  prompt_laws(PromptOnly(Scissorhands{.keep = 14, .history = 9, .recent = 3}), {.shape = shape, .seed = 16});
  prompt_laws(CriticalValues<Adaptive<SnapKv>, float>(Adaptive(snap), o_proj), {.shape = shape, .seed = 17});
  prompt_laws(PerHead(snap, {15, 9}), {.shape = shape, .seed = 19});
  prompt_laws(PerHead(Protect(Newest{12}, {.sinks = 2}), {20, 4}), {.shape = shape, .seed = 20});
  for (const double threshold : {0.3, 0.5, 0.7})
    prompt_laws(LazyLayer{.keep = 40, .sinks = 2, .recent = 9, .last = 5, .threshold = threshold}, {.shape = shape, .seed = 21});
  prompt_laws<double>(Adaptive(snap), {.shape = {6, 1, 5}, .seed = 18});
}

TEST_CASE("wrappers that choose their own number of rows keep the laws", "[kv]") {
  policy_laws(PerHead(SnapKv{.keep = 12, .window = 4, .kernel = 3}, {15, 9}), {.seed = 22});
  policy_laws(LazyLayer{.keep = 14, .sinks = 2, .recent = 6, .last = 3, .threshold = 1}, {.seed = 23});
  policy_laws(Threshold(KeyNorm{14}, {.least = -100, .window = 4}), {.seed = 24});
  policy_laws(Growing(Tova{14}, {.ratio = 0, .interval = 4}), {.seed = 25});
  for (const double least : {-3.0, -2.5}) prompt_laws(Threshold(KeyNorm{30}, {.least = least, .window = 4}), {.seed = 26});
  for (const Index interval : {1, 4}) prompt_laws(Growing(KeyNorm{30}, {.ratio = 0.5, .interval = interval}), {.seed = 27});
}

TEST_CASE("a policy is found by name, and a wrong name is told the right ones", "[kv]") {
  CHECK(make_policy("h2o", 32).budget() == 32);
  CHECK(make_policy("dense", 1).budget() == unlimited);
  CHECK_THROWS_WITH(make_policy("h20", 32), pith_test::contains("no policy 'h20': dense, window, sinks, h2o"));
  CHECK_THROWS_WITH(make_policy("window", 0), pith_test::contains("0 rows for 'window'"));
  CHECK_THROWS_WITH(make_policy("expected", 8), pith_test::contains("needs PolicyModel::rope"));
  CHECK_THROWS_AS(make_policy("critical", 8), ShapeError);
}

TEST_CASE("the table of policies is the catalogue", "[kv]") {
  std::ifstream map(PITH_MODELS_DIR "/../../include/pith/README.md");
  REQUIRE(map);
  const std::string text(std::istreambuf_iterator<char>(map), {});
  for (const PolicyEntry<float>& entry : policy_catalogue()) {
    std::string line = "| `" + std::string(entry.name) + "` | " + std::string(entry.keeps) + " | " + std::string(entry.needs) + " | " +
                       std::string(entry.cost) + " | ";
    if (!entry.paper.empty()) line += "[" + std::string(entry.paper) + "](https://arxiv.org/abs/" + std::string(entry.paper) + ") ";
    INFO(line << "|");
    CHECK(text.find(line + "|\n") != std::string::npos);
  }
}
