#include <cmath>
#include <limits>
#include <vector>

#include <pith/core/executor.hpp>
#include <pith/kv.hpp>
#include <pith/model/session.hpp>

#include "laws/token_model_laws.hpp"
#include "support/catch.hpp"
#include "support/tiny_model.hpp"

using namespace pith;
using pith_test::contains;

namespace {

const std::vector<std::pair<const char*, AnyPolicy<float>>>& policies() {
  static const std::vector<std::pair<const char*, AnyPolicy<float>>> all{
      {"dense", Dense{}},
      {"window", Window{9}},
      {"sinks + window", SinkWindow{.sinks = 3, .window = 6}},
      {"sinks + window at text positions", SinkWindow{.sinks = 3, .window = 6, .positions = RopePositions::text}},
      {"heavy hitters", HeavyHitter{.heavy = 5, .recent = 5}}};
  return all;
}

}  // namespace

TEST_CASE("a session keeps the laws of a token model under every policy", "[model]") {
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  const std::vector<Token> tokens = pith_test::random_tokens(40, 50);
  for (const auto& [name, policy] : policies()) {
    INFO(name);
    const auto make = [&, &chosen = policy](auto storage) {
      auto session = decoder.start<decltype(storage)>(chosen, {.max_tokens = 400});
      session.prefill(tokens);
      return session;
    };
    CHECK(pith_test::broken_token_model_law([&] { return make(float{}); }, {.max_tokens = 9}) == "");
    CHECK(pith_test::broken_token_model_law([&] { return make(bfloat16{}); }, {.max_tokens = 5}) == "");
  }
}

TEST_CASE("sessions that skip values keep the laws, and read less", "[model]") {
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  const std::vector<Token> tokens = pith_test::random_tokens(60, 50);
  const auto make = [&](double share) {
    auto session = decoder.start<Q8>(HeavyHitter{.heavy = 20, .recent = 20}, {.skip_below = share});
    session.prefill(tokens);
    return session;
  };
  CHECK(pith_test::broken_token_model_law([&] { return make(.2); }, {.max_tokens = 9}) == "");
  const auto all = make(0), most = make(.2);
  CHECK(all.reads().values == all.reads().rows);
  CHECK(most.reads().rows == all.reads().rows);
  CHECK(most.reads().needed < most.reads().rows);
  CHECK(most.logits() != all.logits());
  CHECK((most.logits() - all.logits()).norm() < .5f * all.logits().norm());
  CHECK_THROWS_AS(make(1), ShapeError);
}

TEST_CASE("the same logits bit for bit with any number of threads", "[model]") {
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  const std::vector<Token> tokens = pith_test::random_tokens(90, 50);
  ThreadPool two(2), four(4);
  for (const auto& [name, policy] : policies()) {
    INFO(name);
    const auto run = [&, &chosen = policy](ExecutorRef executor) {
      auto session = decoder.start(chosen, {.max_prompt = 70, .executor = executor});
      Matrix<float> all(21, 50);
      all.row(0) = session.prefill(std::span(tokens).first(70)).row(0);
      for (Index i = 0; i < 20; ++i) all.row(i + 1) = session.decode(tokens[static_cast<std::size_t>(70 + i)]).row(0);
      return all;
    };
    const Matrix<float> one = run(serial);
    CHECK(run(two) == one);
    CHECK(run(four) == one);
  }
  CHECK(decoder.forward(tokens, detail::NoProbe{}, four) == decoder.forward(tokens));
}

TEST_CASE("a token alone or among 1 to 16 gives the same logits, and so does a prompt", "[model]") {
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  const std::vector<Token> tokens = pith_test::random_tokens(16, 50);
  const Matrix<float> full = decoder.forward(tokens);
  for (std::size_t n = 1; n <= 16; ++n) {
    auto chunk = decoder.start(Dense{}, {.max_draft = 15}), prompt = decoder.start();
    CHECK(chunk.decode(std::span(tokens).first(n)) == full.topRows(static_cast<Index>(n)));
    CHECK(prompt.prefill(std::span(tokens).first(n)).row(0) == full.row(static_cast<Index>(n) - 1));
  }
}

TEST_CASE("embedding rows go in as tokens do", "[model]") {
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  const std::vector<Token> tokens = pith_test::random_tokens(20, 50);
  Matrix<float> rows(20, 24);
  decoder.weights().embed_tokens.gather(tokens, rows);
  std::vector<TokenKind> kinds(20, TokenKind::text);
  kinds[3] = TokenKind::image;
  auto a = decoder.start(HeavyHitter{.heavy = 30, .recent = 1}), b = decoder.start(HeavyHitter{.heavy = 30, .recent = 1});
  CHECK(a.prefill(tokens) == b.prefill(rows, kinds));
  CHECK(b.caches()[1].kinds(0)[3] == TokenKind::image);
  CHECK(b.caches()[1].kinds(1)[4] == TokenKind::text);
}

TEST_CASE("tokens that see each other in a prompt, and what follows", "[model]") {
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  const std::vector<Token> tokens = pith_test::random_tokens(90, 50);
  const auto logits = [&](const std::vector<Position>& sight, std::span<const Token> prompt, ExecutorRef executor) {
    auto session = decoder.start(Dense{}, {.max_prompt = 90, .executor = executor});
    Matrix<float> out(2, 50);
    out.row(0) = session.prefill(prompt, {.sight = sight}).row(0);
    out.row(1) = session.decode(tokens[7]).row(0);
    return out;
  };
  std::vector<Position> own, run, late;
  for (Position t = 0; t < 90; ++t) {
    own.push_back(t);
    run.push_back(t >= 5 && t < 80 ? 79 : t);  // across both tiles of a prompt
    late.push_back(t >= 85 ? 89 : t);
  }
  ThreadPool two(2);
  const Matrix<float> causal = logits({}, tokens, serial), seen = logits(run, tokens, serial);
  CHECK(logits(own, tokens, serial) == causal);
  CHECK(logits(run, tokens, two) == seen);
  CHECK((seen - causal).cwiseAbs().maxCoeff() > 1e-3f);
  // with one layer, tokens behind the run see the same rows: only a second layer carries what the run saw
  DecoderConfig shallow = pith_test::tiny_config();
  shallow.num_hidden_layers = 1;
  const Decoder<float> one = pith_test::random_decoder<float>(shallow);
  auto a = one.start(Dense{}, {.max_prompt = 90}), b = one.start(Dense{}, {.max_prompt = 90});
  CHECK(Matrix<float>(a.prefill(tokens, {.sight = run})) == Matrix<float>(b.prefill(tokens)));
  // the last token sees no more than itself: those before it that see it change nothing of it in the first layer
  auto c = one.start(Dense{}, {.max_prompt = 90});
  CHECK(Matrix<float>(c.prefill(tokens, {.sight = late})) == Matrix<float>(b.logits()));
  std::vector<Position> wrong = own;
  wrong[4] = 3;
  CHECK_THROWS_WITH(c.prefill(tokens, {.sight = wrong}), contains("token 4 sees up to token 3, expected 4 .. 89"));
  wrong[4] = 90;
  CHECK_THROWS_WITH(c.prefill(tokens, {.sight = wrong}), contains("token 4 sees up to token 90"));
  wrong.pop_back();
  CHECK_THROWS_WITH(c.prefill(tokens, {.sight = wrong}), contains("89 places in sight for 90 tokens"));
}

TEST_CASE("a policy per layer", "[model]") {
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  const std::vector<AnyPolicy<float>> per_layer{Window{4}, HeavyHitter{.heavy = 3, .recent = 4}};
  auto session = decoder.start(std::span(per_layer));
  session.prefill(pith_test::random_tokens(30, 50));
  CHECK(session.caches()[0].size(0) == 4);
  CHECK(session.caches()[1].size(0) == 7);
  CHECK_THROWS_WITH(decoder.start(std::span(per_layer).first(1)), contains("1 policies for 2 layers"));
}

TEST_CASE("a refused call changes nothing and says what to do", "[model]") {
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  auto session = decoder.start(Dense{}, {.max_prompt = 12, .max_tokens = 16, .max_draft = 3});
  auto twin = decoder.start(Dense{}, {.max_prompt = 12, .max_tokens = 16, .max_draft = 3});
  const std::vector<Token> tokens = pith_test::random_tokens(12, 50);
  session.prefill(tokens);
  twin.prefill(tokens);
  const std::vector<Token> outside{3, 50}, negative{-1}, many(13, 1), five(5, 1);
  CHECK_THROWS_AS(session.decode(outside), ShapeError);
  CHECK_THROWS_WITH(session.decode(outside), contains("token 50") && contains("vocabulary of 50"));
  CHECK_THROWS_AS(session.decode(negative), ShapeError);
  CHECK_THROWS_AS(session.prefill(negative), ShapeError);
  CHECK_THROWS_AS(session.decode(std::span<const Token>{}), ShapeError);
  CHECK_THROWS_AS(session.prefill(std::span<const Token>{}), ShapeError);
  CHECK_THROWS_WITH(session.decode(five), contains("at most max_draft + 1 = 4"));
  CHECK_THROWS_WITH(session.prefill(many), contains("at most max_prompt = 12"));
  CHECK_THROWS_AS(session.prefill(std::span(tokens).first(5)), CapacityError);
  CHECK_THROWS_WITH(session.prefill(std::span(tokens).first(5)), contains("full (12 of 16 rows + chunk 5)"));
  CHECK_THROWS_AS(session.prefill(Matrix<float>(3, 23)), ShapeError);
  CHECK_THROWS_AS(session.crop(13), StateError);
  CHECK(session.next_position() == 12);
  CHECK(session.decode(std::span(tokens).first(4)) == twin.decode(std::span(tokens).first(4)));
  CHECK_THROWS_AS(session.decode(1), CapacityError);

  CHECK_THROWS_WITH(decoder.start(Dense{}, {.max_prompt = 0}), contains("max_prompt is 0"));
  CHECK_THROWS_AS(decoder.start(Dense{}, {.max_draft = -1}), ShapeError);
  auto watched = decoder.start(HeavyHitter{.heavy = 3, .recent = 3});
  watched.prefill(tokens);
  CHECK_THROWS_WITH(watched.crop(11), contains("call checkpoint() before"));
  watched.checkpoint();
  CHECK_THROWS_AS(watched.prefill(tokens), StateError);
}

TEST_CASE("cache positions are refused under dynamic rope", "[model]") {
  DecoderConfig config = pith_test::tiny_config();
  config.ropes = {{.scaling = {.type = RopeType::dynamic, .factor = 2}}};
  const Decoder<float> decoder = pith_test::random_decoder<float>(config);
  CHECK_THROWS_AS(decoder.start(SinkWindow{.sinks = 1, .window = 4}), UnsupportedError);
  CHECK_NOTHROW(decoder.start(SinkWindow{.sinks = 1, .window = 4, .positions = RopePositions::text}));
}

TEST_CASE("sinks at cache positions read as if what lies between had never been", "[model]") {
  // One layer: what the window keeps does not depend on what was evicted, so a session that only ever saw the kept tokens agrees.
  DecoderConfig config = pith_test::tiny_config();
  config.num_hidden_layers = 1;
  const Decoder<double> decoder = pith_test::random_decoder<double>(config);
  const std::vector<Token> tokens = pith_test::random_tokens(40, 50);
  auto stream = decoder.start(SinkWindow{.sinks = 3, .window = 6});
  for (std::size_t i = 0; i < 39; ++i) stream.decode(tokens[i]);
  std::vector<Token> kept(tokens.begin(), tokens.begin() + 3);
  kept.insert(kept.end(), tokens.begin() + 33, tokens.end());
  auto alone = decoder.start();
  const Matrix<double> expected = alone.prefill(kept);
  CHECK((stream.decode(tokens[39]) - expected).cwiseAbs().maxCoeff() < 1e-12);
}

TEST_CASE("a sliding window hides what is further away", "[model]") {
  DecoderConfig config = pith_test::tiny_config();
  config.num_hidden_layers = 1;
  config.layers = {{.window = 5}};
  const Decoder<double> decoder = pith_test::random_decoder<double>(config);
  const std::vector<Token> tokens = pith_test::random_tokens(20, 50);
  auto session = decoder.start();
  const Matrix<double> all = session.prefill(tokens);
  auto alone = decoder.start();
  const Matrix<double> last = alone.prefill(std::span(tokens).last(5));  // rope sees differences only
  CHECK((all - last).cwiseAbs().maxCoeff() < 1e-12);
}

TEST_CASE("only one layer ever holds a long prompt", "[model]") {
  DecoderConfig config = pith_test::tiny_config();
  config.num_hidden_layers = 4;
  const Decoder<float> decoder = pith_test::random_decoder<float>(config);
  const SessionOptions options{.max_prompt = 4000, .max_tokens = 4000, .max_draft = 0};
  const auto dense = decoder.start(Dense{}, options);
  auto bounded = decoder.start(HeavyHitter{.heavy = 16, .recent = 16}, options);
  bounded.prefill(pith_test::random_tokens(4000, 50));
  for (const auto& cache : bounded.caches()) CHECK(cache.size(0) == 32);
  CHECK(bounded.cache_bytes() + bounded.prompt_buffer_bytes() <
        dense.cache_bytes() * 10 / 25);  // 1 of 4 layers, with scores beside the rows
  CHECK(bounded.cache_bytes() < dense.cache_bytes() / 50);
}
