// Random models, drafts, options and calls, interrupted and resumed: greedy text is the target's, and both models have read it and no more.
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <stdexcept>
#include <vector>

#include <pith/core/random.hpp>
#include <pith/decode.hpp>

#include "support/catch.hpp"
#include "support/markov_model.hpp"

namespace {

using pith::Index;
using pith::Token;
using Text = std::vector<Token>;

pith::Matrix<float> drawn_chain(Index vocab, std::mt19937_64& rng) {
  pith::Matrix<float> m(vocab * vocab, vocab);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = .01f + pith::canonical<float>(rng);
  m.array().colwise() /= m.rowwise().sum().array().eval();
  return m;
}

/// Fails now and then, before or after it has read.
struct Shaky : pith_test::MarkovModel<float> {
  using pith_test::MarkovModel<float>::MarkovModel;
  std::mt19937_64* rng = nullptr;
  pith::ConstMatrixRef<float> decode(std::span<const Token> tokens) {
    const auto fate = rng != nullptr ? (*rng)() % 40 : 9;
    if (fate == 0) throw std::runtime_error("before");
    const auto rows = pith_test::MarkovModel<float>::decode(tokens);
    if (fate == 1) throw std::runtime_error("after");
    return rows;
  }
};

template <class Draft> void random_session(Draft draft, Shaky target, unsigned seed) {
  std::mt19937_64 rng(seed), failures(seed + 1), unused(0);
  const Index vocab = target.vocab_size();
  target.rng = &failures;
  if constexpr (requires { draft.rng; }) draft.rng = &failures;
  pith_test::MarkovModel<float> alone = target;
  const pith::SpeculativeOptions options{.draft_tokens = 1 + Index(rng() % 7),
                                         .sampler = {.temperature = 0},
                                         .length = rng() % 2 == 0 ? pith::DraftLength::fixed : pith::DraftLength::adapted,
                                         .guess_cost = pith::canonical<float>(rng)};
  pith::SpeculativeDecoder spec(target, draft, options);
  Text text;  // read or pending, in order
  pith::Matrix<float> next;
  const auto check_token = [&](Token token) {
    Index best = 0;
    next.row(0).maxCoeff(&best);
    REQUIRE(token == Token(best));
    text.push_back(token);
    next = alone.decode(std::span<const Token>(&token, 1));
  };
  const auto read = [&](std::size_t count) {
    Text turn(count);
    for (Token& t : turn) t = Token(rng() % std::uint64_t(vocab));
    for (;;) {  // the pending token may fail, and is tried again
      try {
        spec.prefill(turn);
        break;
      } catch (const std::runtime_error&) {
      }
    }
    text.insert(text.end(), turn.begin(), turn.end());
    next = alone.decode(turn).bottomRows(1);
  };
  read(1 + rng() % 5);
  int thrown = 0;
  for (int call = 0; call < 150; ++call) {
    try {
      switch (rng() % 8) {
        case 0:
          read(1 + rng() % 4);
          break;
        case 1: {
          const std::uint64_t stop = rng() % 6;
          std::uint64_t told = 0;
          spec.step(rng, 1 + Index(rng() % 9), [&](Token t) {
            check_token(t);
            if (told == stop) throw std::runtime_error("told");
            return ++told < 4;
          });
          break;
        }
        default: {
          const auto tokens = spec.step(unused);
          for (const Token t : tokens) check_token(t);
        }
      }
    } catch (const std::runtime_error&) {
      ++thrown;
      continue;
    }
    const std::size_t fed = text.size() - (spec.pending() >= 0 ? 1 : 0);
    REQUIRE(Text(target.text().begin(), target.text().end()) == Text(text.begin(), text.begin() + Index(fed)));
    REQUIRE((draft.next_position() == target.next_position() || draft.next_position() == target.next_position() - 1));
    if (spec.pending() >= 0) REQUIRE(spec.pending() == text.back());
  }
  CHECK(thrown > 0);
  CHECK(unused == std::mt19937_64(0));
}

}  // namespace

TEST_CASE("speculation under random calls and failures", "[property][speculative]") {
  for (unsigned seed = 1; seed <= 120; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 rng(seed);
    const Index vocab = 2 + Index(rng() % 5);
    const auto chain = drawn_chain(vocab, rng);
    auto near = chain;
    for (Index s = 0; s < near.rows(); ++s)
      if (rng() % 4 == 0) near.row(s) = near.row(s).reverse().eval();
    random_session(Shaky(near), Shaky(chain), seed);
    random_session(pith::PromptLookup<float>(vocab, {.ngram = 1 + Index(seed % 4), .memory = 1 + Index(seed % 50)}), Shaky(chain), seed);
  }
}
