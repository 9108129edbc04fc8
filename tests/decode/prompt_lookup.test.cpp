#include <cmath>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include <pith/core/random.hpp>
#include <pith/decode/prompt_lookup.hpp>
#include <pith/decode/token_model.hpp>

#include "laws/token_model_laws.hpp"
#include "support/catch.hpp"

namespace {

using pith::Index;
using pith::Position;
using pith::PromptLookup;
using pith::PromptLookupOptions;
using pith::Token;
using pith_test::contains;
using LookupText = std::vector<Token>;

static_assert(pith::TokenModel<PromptLookup<float>> && pith::TokenModel<PromptLookup<double>>);

/// What the documentation says, by looking everywhere: what followed the latest of the newest `memory` tokens at which the last n tokens
/// ended before, for the largest n; -1: no guess.
Token naive_guess(const LookupText& text, const PromptLookupOptions& options) {
  const auto last = static_cast<Index>(text.size()) - 1;
  for (Index n = options.ngram; n >= options.min_ngram; --n)
    for (Index end = last - 1; end >= n - 1 && end > last - options.memory && last >= n - 1; --end) {
      bool same = true;
      for (Index k = 0; k < n; ++k) same = same && text[std::size_t(end - k)] == text[std::size_t(last - k)];
      if (same) return text[std::size_t(end + 1)];
    }
  return -1;
}

/// The token a row guesses; fails unless all others, or all, are -inf.
Token guess_of(const pith::ConstVectorRef<float>& row) {
  Token guess = -1;
  for (Index t = 0; t < row.size(); ++t) {
    if (row[t] == -std::numeric_limits<float>::infinity()) continue;
    REQUIRE(row[t] == 0.f);
    REQUIRE(guess == -1);
    guess = static_cast<Token>(t);
  }
  return guess;
}

LookupText few_tokens(std::size_t count, Index vocab, std::mt19937_64& rng) {
  LookupText text(count);
  for (Token& t : text) t = static_cast<Token>(pith::canonical<double>(rng) * double(vocab));
  return text;
}

}  // namespace

TEST_CASE("Prompt lookup goes on as the text did after its last tokens", "[decode]") {
  PromptLookup lookup(10);
  const LookupText text{1, 2, 3, 4, 5, 9, 2, 3, 7, 1, 2, 3};
  CHECK(guess_of(lookup.prefill(text).row(0)) == 4);  // 1 2 3 → 4, although 2 3 → 7 is newer
  CHECK(lookup.next_position() == 12);
  const pith::Matrix<float> rows = lookup.decode(LookupText{4, 5, 8});
  CHECK(guess_of(rows.row(0)) == 5);
  CHECK(guess_of(rows.row(1)) == 9);
  CHECK(pith::no_guess<float>(rows.row(2)));
  CHECK(guess_of(lookup.decode(LookupText{2}).row(0)) == 3);

  PromptLookup strict(10, {.ngram = 2, .min_ngram = 2});
  strict.prefill(LookupText{1, 2, 3, 1, 4});
  CHECK(guess_of(strict.decode(LookupText{1}).row(0)) == -1);  // 1 alone is not enough
  CHECK(guess_of(strict.decode(LookupText{2}).row(0)) == 3);
}

TEST_CASE("Prompt lookup guesses what looking everywhere finds, crops and forgetting included", "[decode]") {
  Index guesses = 0, none = 0;
  for (unsigned seed = 1; seed <= 24; ++seed) {
    std::mt19937_64 rng(seed);
    PromptLookupOptions options;
    options.ngram = 1 + Index(rng() % 4);
    options.min_ngram = 1 + Index(rng() % std::uint64_t(options.ngram));
    options.memory = seed % 3 == 0 ? Index(1 + rng() % 6) : Index(1 + rng() % 60);
    options.max_draft = Index(rng() % 7);
    const Index vocab = 2 + Index(rng() % 5);
    CAPTURE(seed, options.ngram, options.min_ngram, options.memory, options.max_draft, vocab);
    PromptLookup lookup(vocab, options);
    LookupText text = few_tokens(rng() % 50 + 1, vocab, rng);
    REQUIRE(guess_of(lookup.prefill(text).row(0)) == naive_guess(text, options));
    for (int turn = 0; turn < 120; ++turn) {
      const bool tried = rng() % 2 == 0;
      const std::size_t before = text.size();
      if (tried) lookup.checkpoint();
      std::size_t fed = 0;
      const std::size_t most = std::size_t(lookup.max_chunk());
      while (fed < most) {
        const auto tokens = few_tokens(1 + rng() % (most - fed), vocab, rng);
        const auto rows = lookup.decode(tokens);
        for (std::size_t i = 0; i < tokens.size(); ++i) {
          text.push_back(tokens[i]);
          const Token expected = naive_guess(text, options);
          REQUIRE(guess_of(rows.row(Index(i))) == expected);
          ++(expected < 0 ? none : guesses);
        }
        fed += tokens.size();
        if (rng() % 2 == 0) break;
      }
      if (!tried) continue;
      text.resize(before + rng() % (fed + 1));
      lookup.crop(static_cast<Position>(text.size()));
      REQUIRE(lookup.next_position() == static_cast<Position>(text.size()));
    }
  }
  CHECK(guesses > 2000);
  CHECK(none > 200);
}

TEST_CASE("Prompt lookup keeps the laws of a token model", "[decode][laws]") {
  for (const Index memory : {5, 1000})
    for (const Index ngram : {1, 3}) {
      const auto make = [&] {
        PromptLookup lookup(4, {.ngram = ngram, .memory = memory, .max_draft = 6});
        std::mt19937_64 rng(3);
        lookup.prefill(few_tokens(30, 4, rng));
        return lookup;
      };
      CHECK(pith_test::broken_token_model_law(make, {.max_tokens = 7, .rounds = 6}) == "");
    }
  CHECK(pith_test::broken_token_model_law([] { return PromptLookup<double>(3); }, {.max_tokens = 9}) == "");
}

TEST_CASE("Prompt lookup over a long monotonous text takes a moment", "[decode]") {
  // Each token has as many earlier occurrences as there are tokens: looking at all of them would take hours.
  PromptLookup lookup(3, {.ngram = 8, .memory = 1 << 20});
  const LookupText same(1'000'000, 1);
  CHECK(guess_of(lookup.prefill(same).row(0)) == 1);
  CHECK(lookup.next_position() == 1'000'000);
  lookup.clear();
  CHECK(lookup.next_position() == 0);
  CHECK(guess_of(lookup.decode(LookupText{1}).row(0)) == -1);
}

TEST_CASE("Prompt lookup refuses before it changes anything", "[decode]") {
  const auto refuses = [](const PromptLookupOptions& options, const std::string& part) {
    CHECK_THROWS_AS(PromptLookup(5, options), pith::ShapeError);
    CHECK_THROWS_WITH(PromptLookup(5, options), contains(part));
  };
  refuses({.ngram = 0}, "ngram is 0, expected 1 .. 64");
  refuses({.ngram = 65}, "ngram is 65");
  refuses({.ngram = 2, .min_ngram = 3}, "min_ngram is 3, expected 1 .. ngram");
  refuses({.min_ngram = -1}, "min_ngram is -1");
  refuses({.memory = 0}, "memory is 0");
  refuses({.memory = std::numeric_limits<Index>::max()}, "expected 1 .. 268435456");
  refuses({.max_draft = -1}, "max_draft is -1");
  CHECK_THROWS_WITH(PromptLookup(0), contains("vocab_size is 0"));
  CHECK_THROWS_AS(PromptLookup(Index(1) << 31), pith::ShapeError);

  PromptLookup lookup(5, {.max_draft = 2});
  const LookupText text{1, 2, 3, 1, 2};
  lookup.prefill(text);
  const LookupText foreign{1, 5}, negative{-1}, four(4, 1), two(2, 1);
  CHECK_THROWS_WITH(lookup.decode(foreign), contains("token 5, expected 0 .. 4"));
  CHECK_THROWS_AS(lookup.prefill(negative), pith::ShapeError);
  CHECK_THROWS_WITH(lookup.decode({}), contains("no tokens"));
  CHECK_THROWS_AS(lookup.prefill({}), pith::ShapeError);
  CHECK_THROWS_AS(lookup.decode(four), pith::CapacityError);
  CHECK_THROWS_WITH(lookup.decode(four), contains("4 tokens, expected at most max_draft + 1 = 3"));
  CHECK_THROWS_AS(lookup.crop(5), pith::StateError);
  CHECK_THROWS_WITH(lookup.crop(5), contains("no checkpoint"));
  lookup.checkpoint();
  lookup.decode(two);
  CHECK_THROWS_AS(lookup.decode(two), pith::StateError);
  CHECK_THROWS_WITH(lookup.decode(two), contains("2 tokens after 2 in a journal of at most max_draft + 1 = 3"));
  CHECK_THROWS_AS(lookup.prefill(text), pith::StateError);
  CHECK_THROWS_WITH(lookup.crop(4), contains("position 4, expected 5 .. 7"));
  CHECK_THROWS_AS(lookup.crop(8), pith::StateError);
  CHECK(lookup.next_position() == 7);
  lookup.crop(5);
  CHECK(guess_of(lookup.decode(LookupText{3}).row(0)) == 1);
}
