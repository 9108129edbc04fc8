#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <pith/decode/generate.hpp>

#include "support/catch.hpp"
#include "support/markov_model.hpp"

namespace {

using pith::generate;
using pith::GenerateOptions;
using pith::GenerateResult;
using pith::Index;
using pith::StopReason;
using pith::Token;
using pith_test::contains;
using pith_test::MarkovModel;
using Tokens = std::vector<Token>;

constexpr std::array<Token, 3> first_three{0, 1, 2};

/// 0 → 1 → 2 → 3 → 4 → 0 …, nothing else has any probability.
pith::Matrix<float> ring_of_five() {
  pith::Matrix<float> transition = pith::Matrix<float>::Zero(5, 5);
  for (Index i = 0; i < 5; ++i) transition(i, (i + 1) % 5) = 1;
  return transition;
}

struct Run {
  GenerateResult result;
  Tokens reported;
  Tokens fed;  ///< the prompt not among them
};

Run run_ring(const GenerateOptions& options, Token cancel_at = -1) {
  MarkovModel model(ring_of_five());
  std::mt19937_64 rng(1);
  Run run;
  const auto logits = model.prefill(first_three);
  run.result = generate(model, logits, options, rng, [&](Token token) {
    run.reported.push_back(token);
    return token != cancel_at;
  });
  run.fed.assign(model.text().begin() + 3, model.text().end());
  return run;
}

}  // namespace

TEST_CASE("generate ends at max_tokens, its last token pending", "[decode]") {
  const auto run = run_ring({.max_tokens = 4});
  CHECK(run.reported == Tokens{3, 4, 0, 1});
  CHECK(run.fed == Tokens{3, 4, 0});
  CHECK(run.result.count == 4);
  CHECK(run.result.reason == StopReason::max_tokens);
  CHECK(run.result.pending == 1);
}

TEST_CASE("generate ends at any of several stop tokens, which is pending and not reported", "[decode]") {
  const Tokens stops{17, 1, 0, -5};  // 0 comes first; those outside the vocabulary never do
  const auto run = run_ring({.max_tokens = 50, .stop_tokens = stops});
  CHECK(run.reported == Tokens{3, 4});
  CHECK(run.fed == Tokens{3, 4});
  CHECK(run.result.count == 2);
  CHECK(run.result.reason == StopReason::stop_token);
  CHECK(run.result.pending == 0);

  const Tokens first{3};
  const auto none = run_ring({.stop_tokens = first});
  CHECK(none.reported.empty());
  CHECK(none.fed.empty());
  CHECK(none.result.count == 0);
  CHECK(none.result.reason == StopReason::stop_token);
  CHECK(none.result.pending == 3);
}

TEST_CASE("generate ends when the callback says so, and counts the token it said it at", "[decode]") {
  const auto run = run_ring({.max_tokens = 50}, 0);
  CHECK(run.reported == Tokens{3, 4, 0});
  CHECK(run.fed == Tokens{3, 4});
  CHECK(run.result.count == 3);
  CHECK(run.result.reason == StopReason::callback);
  CHECK(run.result.pending == 0);
}

TEST_CASE("generate of no tokens chooses none", "[decode]") {
  const auto run = run_ring({.max_tokens = 0});
  CHECK(run.reported.empty());
  CHECK(run.result.count == 0);
  CHECK(run.result.reason == StopReason::max_tokens);
  CHECK(run.result.pending == -1);
}

TEST_CASE("n tokens and then m are n + m tokens", "[decode]") {
  MarkovModel whole(pith_test::three_token_chain_of_two()), parts = whole;
  std::mt19937_64 one(4), other(4);
  const auto expected = generate(whole, whole.prefill(first_three), {.max_tokens = 40}, one);
  REQUIRE(expected.size() == 40);

  Tokens found;
  const auto collect = [&](Token token) { found.push_back(token); };  // a callback may return nothing
  const auto before = generate(parts, parts.prefill(first_three), {.max_tokens = 13}, other, collect);
  const auto logits = parts.decode(std::span(&before.pending, 1));
  const auto after = generate(parts, logits, {.max_tokens = 27}, other, collect);
  CHECK(found == expected);
  CHECK(one == other);
  CHECK(after.pending == expected.back());
  CHECK(Tokens(whole.text().begin(), whole.text().end()) == Tokens(parts.text().begin(), parts.text().end()));
  CHECK(whole.next_position() == 3 + 39);
}

TEST_CASE("generate from a prompt reads it first, and its rules see it", "[decode]") {
  MarkovModel model(pith_test::three_token_chain_of_two()), twin = model;
  std::mt19937_64 one(4), other(4);
  const auto expected = generate(model, model.prefill(first_three), {.max_tokens = 9}, one);
  CHECK(generate(twin, first_three, {.max_tokens = 9}, other) == expected);
  CHECK(one == other);

  MarkovModel ring(ring_of_five());
  const pith::GenerateOptions penalised{.max_tokens = 1, .sampler = {.temperature = 0}, .rules = {.repetition_penalty = 1.5f}};
  pith::GenerateOptions told = penalised;
  told.text = first_three;
  MarkovModel again(ring_of_five());
  CHECK(generate(ring, first_three, penalised, one) == generate(again, again.prefill(first_three), told, one));
}

TEST_CASE("the last of several rows of logits chooses the first token", "[decode]") {
  MarkovModel model(ring_of_five());
  std::mt19937_64 rng(1);
  const Tokens chunk{4, 1};
  CHECK(generate(model, model.decode(chunk), {.max_tokens = 2}, rng) == Tokens{2, 3});
}

TEST_CASE("generated text has the frequencies of the chain", "[decode]") {
  MarkovModel model(pith_test::three_token_chain());
  std::mt19937_64 rng(8);
  const Index length = 20000;
  Token last = 0;
  pith::Matrix<double> seen = pith::Matrix<double>::Zero(3, 3);
  generate(model, model.prefill(std::array<Token, 1>{0}), {.max_tokens = length}, rng, [&](Token token) {
    ++seen(last, token);
    last = token;
  });
  const auto expected = pith_test::three_token_chain<double>();
  for (Index s = 0; s < 3; ++s)
    for (Index t = 0; t < 3; ++t) {
      const double n = seen.row(s).sum(), p = expected(s, t), deviation = std::sqrt(p * (1 - p) / n);
      CAPTURE(s, t, n, p);
      CHECK(std::abs(seen(s, t) / n - p) < 5 * deviation);
    }
}

TEST_CASE("sampler options reach the sampler", "[decode]") {
  MarkovModel model(pith_test::three_token_chain());
  std::mt19937_64 rng(8), untouched(8);
  const GenerateOptions options{.max_tokens = 5, .sampler = {.temperature = 0}};
  CHECK(generate(model, model.prefill(first_three), options, rng) == Tokens{2, 2, 2, 2, 2});  // from 2 the likeliest is 2
  CHECK(rng == untouched);
}

TEST_CASE("generate refuses before it changes anything", "[decode]") {
  MarkovModel model(ring_of_five());
  std::mt19937_64 rng(1), untouched(1);
  const pith::Matrix<float> logits = model.prefill(first_three);
  const auto refuses = [&](const pith::Matrix<float>& rows, const GenerateOptions& options, const std::string& part) {
    CHECK_THROWS_WITH(generate(model, rows, options, rng), contains(part));
    CHECK(model.next_position() == 3);
    CHECK(rng == untouched);
  };
  CHECK_THROWS_AS(generate(model, logits, {.max_tokens = -1}, rng), pith::StateError);
  refuses(logits, {.max_tokens = -1}, "max_tokens is -1, expected 0 or more");
  refuses(logits, {.sampler = {.top_p = 0}}, "top_p is 0");
  CHECK_THROWS_AS(generate(model, logits.leftCols(4).eval(), {}, rng), pith::ShapeError);
  refuses(logits.leftCols(4), {}, "logits is [1, 4], expected [*, 5]");
  refuses(logits.topRows(0), {}, "logits is [0, 5]");
  refuses(pith::Matrix<float>::Constant(1, 5, -std::numeric_limits<float>::infinity()), {}, "all 5 logits are -inf");
}

TEST_CASE("what the model throws passes through, after the tokens chosen so far were reported", "[decode]") {
  struct Full : MarkovModel<float> {
    using MarkovModel<float>::MarkovModel;
    pith::ConstMatrixRef<float> decode(std::span<const Token> tokens) {
      if (next_position() == 5) pith::raise<pith::CapacityError>("full");
      return MarkovModel<float>::decode(tokens);
    }
  };
  Full model(ring_of_five());
  std::mt19937_64 rng(1);
  Tokens reported;
  const auto logits = model.prefill(first_three);
  CHECK_THROWS_AS(generate(model, logits, {}, rng, [&](Token token) { reported.push_back(token); }), pith::CapacityError);
  CHECK(reported == Tokens{3, 4, 0});
}

namespace {
struct Vague {
  void operator()(Token) const {}
};
struct Wordy {
  int operator()(Token) const { return 1; }
};
}  // namespace
static_assert(pith::TokenCallback<Vague> && pith::TokenCallback<bool (*)(Token)>);
static_assert(!pith::TokenCallback<Wordy> && !pith::TokenCallback<void (*)(std::string)>, "a number is not a decision");
