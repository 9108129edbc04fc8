// Whole sessions under every policy: company, threads, rollback.
#include <memory>
#include <vector>

#include <pith/core/executor.hpp>
#include <pith/kv.hpp>
#include <pith/merge.hpp>
#include <pith/model.hpp>

#include "support/catch.hpp"
#include "support/tiny_model.hpp"

using namespace pith;
using pith_test::contains;

namespace {

struct Model {
  DecoderConfig config = pith_test::tiny_config();
  Decoder<float> decoder = pith_test::random_decoder<float>(config);
  std::vector<Token> tokens = pith_test::random_tokens(90, 50);

  AnyPolicy<float> policy(const PolicyEntry<float>& entry, Index rows) const {
    auto o_proj = std::make_shared<Matrix<float>>(config.hidden_size, config.num_attention_heads * config.head_dim);
    decoder.weights().layers[0].o_proj.copy_weight(0, *o_proj);
    return entry.make(rows, {std::make_shared<const Rope<float>>(config.rope()), o_proj});
  }
};

}  // namespace

TEMPLATE_TEST_CASE("under every policy, merging or not, a token's bits do not depend on company or threads, and crop() is exact", "[model]",
                   float, bfloat16, Q8) {
  const Model model;
  ThreadPool pool(2);
  std::size_t turn = sizeof(TestType);  // another strategy with each policy and storage
  for (const PolicyEntry<float>& entry : policy_catalogue()) {
    const MergeEntry<float>& merging = merge_catalogue()[turn++ % merge_catalogue().size()];
    INFO(entry.name << ", " << merging.name);
    const AnyPolicy<float> policy = model.policy(entry, 12);
    const SessionOptions options{.max_prompt = 40, .max_generated = 100, .multiplicity = turn % 2 == 0};
    if (entry.name == "h2o-cache" && !std::is_same_v<TestType, float>) {
      CHECK_THROWS_WITH(model.decoder.template start<TestType>(policy, options), contains("do not survive"));
      continue;
    }
    SessionOptions pooled = options;
    pooled.executor = pool;
    auto alone = model.decoder.template start<TestType>(policy, options, merging.make());
    auto company = model.decoder.template start<TestType>(policy, pooled, merging.make());
    const std::span<const Token> tokens(model.tokens);
    REQUIRE(alone.prefill(tokens.first(40)) == company.prefill(tokens.first(40)));
    for (std::size_t at = 40; at + 5 <= 90; at += 5) {
      company.checkpoint();  // a draft nobody wants
      company.decode(tokens.subspan(20, 7));
      company.crop(static_cast<Position>(at));
      const Matrix<float> together = company.decode(tokens.subspan(at, 5));
      for (Index t = 0; t < 5; ++t) REQUIRE(alone.decode(tokens[at + static_cast<std::size_t>(t)]).row(0) == together.row(t));
    }
  }
}

TEST_CASE("a prompt in pieces under a prompt-only policy is the prompt in one", "[model]") {
  const Model model;
  const SessionOptions options{.max_prompt = 40, .max_generated = 40};
  const std::span<const Token> tokens(model.tokens);
  auto whole = model.decoder.start(SnapKv{.keep = 12, .window = 6}, options);
  auto pieces = model.decoder.start(SnapKv{.keep = 12, .window = 6}, options);
  const Matrix<float> expected = whole.prefill(tokens.first(40));
  pieces.prefill(tokens.first(17), {.more = true});
  pieces.prefill(tokens.subspan(17, 10), {.more = true});
  REQUIRE(pieces.prefill(tokens.subspan(27, 13)) == expected);
  for (std::size_t at = 40; at < 60; ++at) REQUIRE(whole.decode(tokens[at]) == pieces.decode(tokens[at]));
  auto small = model.decoder.start(SnapKv{.keep = 12, .window = 6}, {.max_prompt = 40, .max_generated = 5});
  CHECK_THROWS_WITH(small.prefill(tokens.first(30), {.more = true}), contains("larger max_generated"));
}

TEST_CASE("heavy hitters at cache positions read as if what lies between had never been", "[model]") {
  // One layer, and only the newest rows kept: a session that only ever saw the kept tokens agrees.
  DecoderConfig config = pith_test::tiny_config();
  config.num_hidden_layers = 1;
  const Decoder<double> decoder = pith_test::random_decoder<double>(config);
  const std::vector<Token> tokens = pith_test::random_tokens(60, 50);
  auto stream = decoder.start(AtCachePositions(HeavyHitter{.heavy = 0, .recent = 9}));
  for (std::size_t i = 0; i < 59; ++i) stream.decode(tokens[i]);
  CHECK(stream.caches()[0].query_angle() == 9);
  auto alone = decoder.start();
  const Matrix<double> expected = alone.prefill(std::span(tokens).last(10));
  CHECK((stream.decode(tokens[59]) - expected).cwiseAbs().maxCoeff() < 1e-11);

  config.sliding_window = {5};
  const Decoder<double> sliding = pith_test::random_decoder<double>(config);
  CHECK_THROWS_WITH(sliding.start(AtCachePositions(HeavyHitter{})), contains("sliding-window layer"));
}
