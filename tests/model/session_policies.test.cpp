// Whole sessions under every policy: batches, threads, rollback.
#include <memory>
#include <set>
#include <string_view>
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

TEMPLATE_TEST_CASE("under every policy, merging or not, a token's bits do not depend on batch or threads, and crop() is exact", "[model]",
                   float, bfloat16, Q8, (Kv<Q8, Rotated<Q4>>)) {
  const Model model;
  ThreadPool pool(2);
  std::size_t turn = sizeof(TestType);  // another strategy with each policy and storage
  for (const PolicyEntry<float>& entry : policy_catalogue()) {
    const MergeEntry<float>& merging = merge_catalogue()[turn++ % merge_catalogue().size()];
    INFO(entry.name << ", " << merging.name);
    const AnyPolicy<float> policy = model.policy(entry, 12);
    const SessionOptions options{.max_prompt = 40, .max_generated = 100, .keep_masses = turn % 2 == 0};
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
      company.checkpoint();  // a rejected draft
      company.decode(tokens.subspan(20, 7));
      company.crop(static_cast<Position>(at));
      const Matrix<float> together = company.decode(tokens.subspan(at, 5));
      for (Index t = 0; t < 5; ++t) REQUIRE(alone.decode(tokens[at + static_cast<std::size_t>(t)]).row(0) == together.row(t));
    }
  }
}

TEST_CASE("a prompt in pieces under a prompt-only policy is the prompt in one", "[model]") {
  const Model model;
  const SessionOptions options{.max_prompt = 40, .max_generated = 100};
  const std::span<const Token> tokens(model.tokens);
  for (const PolicyEntry<float>& entry : policy_catalogue()) {
    const AnyPolicy<float> policy = model.policy(entry, 12);
    if (!policy.traits().prompt_only) continue;
    for (const std::vector<std::size_t>& cuts : {std::vector<std::size_t>{17, 10, 13}, {39, 1}, {33, 4, 1, 2}}) {
      INFO(entry.name << ", " << cuts.size() << " pieces, the last of " << cuts.back());
      auto whole = model.decoder.start(policy, options), pieces = model.decoder.start(policy, options);
      std::size_t next = 0;
      for (const std::size_t prompt : {std::size_t(0), std::size_t(43)}) {  // two turns, and tokens decoded between
        const Matrix<float> expected = whole.prefill(tokens.subspan(prompt, 40));
        for (std::size_t piece = 0, at = prompt; piece < cuts.size(); at += cuts[piece++])
          next = at + cuts[piece], pieces.prefill(tokens.subspan(at, cuts[piece]), {.more = piece + 1 < cuts.size()});
        // Rows that the policy does not want in order may lie in another one: then sums are rounded otherwise.
        const auto same = [&](ConstMatrixRef<float> ours, const Matrix<float>& theirs) {
          return policy.traits().ordered ? ours == theirs : ours.isApprox(theirs, 1e-4f);
        };
        REQUIRE(same(pieces.logits(), expected));
        for (std::size_t at = next; at < next + 3; ++at) REQUIRE(same(pieces.decode(tokens[at]), whole.decode(tokens[at])));
        for (std::size_t layer = 0; layer < whole.caches().size(); ++layer)
          for (Index h = 0; h < model.config.num_key_value_heads; ++h) {
            const auto a = whole.caches()[layer].positions(h), b = pieces.caches()[layer].positions(h);
            REQUIRE(std::set<Position>(a.begin(), a.end()) == std::set<Position>(b.begin(), b.end()));
          }
      }
    }
  }
  auto small = model.decoder.start(SnapKv{.keep = 12, .window = 6}, {.max_prompt = 40, .max_generated = 5});
  CHECK_THROWS_WITH(small.prefill(tokens.first(30), {.more = true}), contains("larger max_generated"));
}

TEST_CASE("a policy that is not prompt-only evicts after every piece of a prompt, and few of these keep the rows of the whole", "[model]") {
  const Model model;
  const SessionOptions options{.max_prompt = 40, .max_tokens = 40, .max_generated = 10};
  const std::span<const Token> tokens = std::span<const Token>(model.tokens).first(40);
  const auto rows = [](const auto& session, std::size_t layer, Index h) {
    const auto positions = session.caches()[layer].positions(h);
    return std::set<Position>(positions.begin(), positions.end());
  };
  std::set<std::string_view> as_the_whole;
  for (const PolicyEntry<float>& entry : policy_catalogue()) {
    const AnyPolicy<float> policy = model.policy(entry, 12);
    if (policy.traits().prompt_only) {
      CHECK(entry.cost.find("none after the prompt") != std::string_view::npos);  // as the README names these
      continue;
    }
    bool same = true;
    for (const std::vector<std::size_t>& cuts : {std::vector<std::size_t>{17, 10, 13}, {39, 1}, {33, 4, 1, 2}}) {
      INFO(entry.name << ", " << cuts.size() << " pieces");
      auto whole = model.decoder.start(policy, options), said = model.decoder.start(policy, options),
           unsaid = model.decoder.start(policy, options);
      whole.prefill(tokens);
      for (std::size_t piece = 0, at = 0; piece < cuts.size(); at += cuts[piece++]) {
        said.prefill(tokens.subspan(at, cuts[piece]), {.more = piece + 1 < cuts.size()});
        unsaid.prefill(tokens.subspan(at, cuts[piece]));
        REQUIRE(said.logits() == unsaid.logits());
        for (std::size_t layer = 0; layer < said.caches().size(); ++layer)
          for (Index h = 0; h < model.config.num_key_value_heads; ++h) {
            REQUIRE(rows(said, layer, h) == rows(unsaid, layer, h));
            if (entry.name != "dense") REQUIRE(said.caches()[layer].size(h) <= 12);
            if (at + cuts[piece] == tokens.size()) same = same && rows(said, layer, h) == rows(whole, layer, h);
          }
      }
    }
    if (same) as_the_whole.insert(entry.name);
  }
  CHECK(as_the_whole == std::set<std::string_view>{"dense", "random", "sinks", "window"});
}

TEST_CASE("a session refuses a policy that its model cannot serve before anything is read", "[model]") {
  const Model model;
  const auto refused = [&](const AnyPolicy<float>& policy, const std::string& message) {
    CHECK_THROWS_WITH(model.decoder.start(policy), contains(message));
    std::vector<AnyPolicy<float>> layers(static_cast<std::size_t>(model.config.num_hidden_layers));  // Dense, but for the last
    layers.back() = policy;
    CHECK_THROWS_WITH(model.decoder.start(layers), contains(message));
  };
  const Index head_dim = model.config.head_dim, columns = model.config.num_attention_heads * head_dim;
  const auto other = std::make_shared<const Rope<float>>(RopeOptions{.head_dim = head_dim + 2});
  const auto narrow = std::make_shared<const Matrix<float>>(Matrix<float>::Ones(model.config.hidden_size, columns - 1));
  refused(SnapKv{.keep = 8}, "window is 32, expected 1 .. 8");
  refused(AtCachePositions(Csp{.heavy = 4, .recent = 4}), "heads may keep different numbers of rows");
  refused(Chunkwise(Adaptive(SnapKv{.keep = 8, .window = 4}), 2), "decides itself");
  refused(ExpectedAttention<float>{}, "rope is null");
  refused(ExpectedAttention<float>{.rope = other}, "the rope turns heads of");
  refused(CriticalValues<SnapKv, float>(SnapKv{}, narrow), "o_proj is");
  DecoderConfig dynamic = model.config;
  dynamic.ropes = {{.scaling = {.type = RopeType::dynamic, .factor = 2}}};
  const Decoder<float> longer = pith_test::random_decoder<float>(dynamic);
  CHECK_THROWS_WITH(longer.start(ExpectedAttention<float>{.rope = std::make_shared<const Rope<float>>(dynamic.rope())}),
                    contains("under dynamic rope"));
}

TEST_CASE("heavy hitters at cache positions read as if what lies between had never been", "[model]") {
  // One layer, and only the newest rows kept: a session that only ever saw the kept tokens agrees.
  DecoderConfig config = pith_test::tiny_config();
  config.num_hidden_layers = 1;
  const Decoder<double> decoder = pith_test::random_decoder<double>(config);
  const std::vector<Token> tokens = pith_test::random_tokens(60, 50);
  auto stream = decoder.start(AtCachePositions(HeavyHitter{.heavy = 0, .recent = 9}));
  for (std::size_t i = 0; i < 59; ++i) stream.decode(tokens[i]);
  CHECK(stream.caches()[0].query_position() == 9);
  auto alone = decoder.start();
  const Matrix<double> expected = alone.prefill(std::span(tokens).last(10));
  CHECK((stream.decode(tokens[59]) - expected).cwiseAbs().maxCoeff() < 1e-11);

  config.layers = {{.window = 5}};
  const Decoder<double> sliding = pith_test::random_decoder<double>(config);
  CHECK_THROWS_WITH(sliding.start(AtCachePositions(HeavyHitter{})), contains("sliding-window layer"));
}
