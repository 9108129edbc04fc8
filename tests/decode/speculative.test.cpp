// Speculation on chains small enough to enumerate, and everything it refuses.
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <pith/core/random.hpp>
#include <pith/decode/generate.hpp>
#include <pith/decode/prompt_lookup.hpp>
#include <pith/decode/speculative.hpp>

#include "support/catch.hpp"
#include "support/markov_model.hpp"

namespace {

using pith::DraftLength;
using pith::GenerateLimits;
using pith::Index;
using pith::Matrix;
using pith::Position;
using pith::RejectionSampler;
using pith::SpeculativeDecoder;
using pith::SpeculativeOptions;
using pith::StopReason;
using pith::Token;
using pith::Vector;
using pith_test::contains;
using pith_test::MarkovModel;
using Text = std::vector<Token>;

Text text_of(std::span<const Token> tokens) { return Text(tokens.begin(), tokens.end()); }
void append(Text& text, std::span<const Token> more) { text.insert(text.end(), more.begin(), more.end()); }
Text operator+(Text a, const Text& b) {
  append(a, b);
  return a;
}

/// Every sequence of draws, one after the other. A draw is one of `sides` equally likely middles of as many parts of [0, 1): integrals over
/// it of functions that only jump at multiples of 1 / sides are exact.
class EveryDraw {
 public:
  using result_type = std::uint64_t;
  explicit EveryDraw(std::uint64_t sides) : sides_(sides) {}
  static constexpr std::uint64_t min() { return 0; }
  static constexpr std::uint64_t max() { return ~std::uint64_t(0); }
  std::uint64_t operator()() {
    if (drawn_ == digits_.size()) digits_.push_back(0);
    const double middle = (double(digits_[drawn_++]) + .5) / double(sides_);
    return static_cast<std::uint64_t>(std::ldexp(middle, 64));
  }
  /// The probability of the draws since the last next().
  double probability() const { return std::pow(1 / double(sides_), double(drawn_)); }
  /// False when there is nothing new.
  bool next() {
    digits_.resize(drawn_);
    drawn_ = 0;
    while (!digits_.empty() && ++digits_.back() == sides_) digits_.pop_back();
    return !digits_.empty();
  }

 private:
  std::uint64_t sides_;
  std::vector<std::uint64_t> digits_;
  std::size_t drawn_ = 0;
};

/// These draws and no others.
struct Scripted {
  using result_type = std::uint64_t;
  std::vector<double> u;
  std::size_t drawn = 0;
  static constexpr std::uint64_t min() { return 0; }
  static constexpr std::uint64_t max() { return ~std::uint64_t(0); }
  std::uint64_t operator()() { return static_cast<std::uint64_t>(std::ldexp(u.at(drawn++), 64)); }
};

/// All in quarters, so that p, p / q and what is left of p - q jump at eighths at the latest; a memory of two tokens shows a wrong crop.
template <class S> Matrix<S> quarters_of_two() {
  const std::array<std::array<S, 3>, 5> rows{
      {{S(.25), S(.25), S(.5)}, {S(.5), S(.5), 0}, {S(.25), S(.5), S(.25)}, {0, S(.5), S(.5)}, {S(.5), S(.25), S(.25)}}};
  Matrix<S> transition(9, 3);
  for (Index s = 0; s < 9; ++s) transition.row(s) << rows[std::size_t(s) % 5][0], rows[std::size_t(s) % 5][1], rows[std::size_t(s) % 5][2];
  return transition;
}
template <class S> Matrix<S> halves_of_two() {
  Matrix<S> transition = Matrix<S>::Constant(9, 3, S(.5));
  for (Index s = 0; s < 9; ++s) transition(s, (2 * s + s / 3) % 3) = 0;
  return transition;
}
template <class S> Matrix<S> quarters() {
  Matrix<S> transition(3, 3);
  transition << S(.5), S(.25), S(.25), S(.5), 0, S(.5), S(.25), S(.25), S(.5);
  return transition;
}

double probability_of(const Text& text, Token before, Token last, const Matrix<double>& of_two) {
  double p = 1;
  for (const Token token : text) {
    p *= of_two(before * 3 + last, token);
    before = std::exchange(last, token);
  }
  return p;
}

/// The distribution of the first tokens of a text, over every draw.
template <class Decode> std::map<Text, double> enumerate(std::uint64_t sides, Decode&& decode) {
  std::map<Text, double> found;
  EveryDraw draws(sides);
  do {
    const Text text = decode(draws);
    found[text] += draws.probability();
  } while (draws.next());
  return found;
}

/// Greedy text of a model alone.
template <class M> Text plain_greedy(M model, std::span<const Token> prompt, Index count) {
  std::mt19937_64 rng(1);
  return generate(model, model.prefill(prompt), {.max_tokens = count, .sampler = {.temperature = 0}}, rng);
}

constexpr SpeculativeOptions greedily{.draft_tokens = 4, .sampler = {.temperature = 0}};
const Text opening{2, 0, 1};

/// A chain of `vocab` tokens and a memory of two, and one that is like it in `alike` of the states.
Matrix<float> random_chain(Index vocab, unsigned seed) {
  std::mt19937_64 rng(seed);
  Matrix<float> m(vocab * vocab, vocab);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = .05f + pith::canonical<float>(rng);
  m.array().colwise() /= m.rowwise().sum().array().eval();
  return m;
}
Matrix<float> similar_chain(const Matrix<float>& chain, double alike, unsigned seed) {
  Matrix<float> m = random_chain(chain.cols(), seed + 1000);
  std::mt19937_64 rng(seed);
  for (Index s = 0; s < m.rows(); ++s)
    if (pith::canonical<double>(rng) < alike) m.row(s) = chain.row(s);
  return m;
}

/// Throws in place of its n-th decode() to come; what it had read before is there, and half of the chunk as well if it is `torn`.
struct Failing : MarkovModel<float> {
  using MarkovModel<float>::MarkovModel;
  Index fails_in = -1;
  bool torn = false, full = false;
  pith::ConstMatrixRef<float> decode(std::span<const Token> tokens) {
    if (fails_in > 0 && --fails_in == 0) {
      if (torn) MarkovModel<float>::decode(tokens.first(1));
      if (full) pith::raise<pith::CapacityError>("full");
      throw std::runtime_error("failed");
    }
    return MarkovModel<float>::decode(tokens);
  }
};

/// Holds `most` tokens and refuses what does not fit, before it changes.
struct Limited : MarkovModel<float> {
  Limited(const Matrix<float>& chain, Position tokens) : MarkovModel<float>(chain), most(tokens) {}
  Position most;
  void fits(std::size_t n) const {
    if (next_position() + Index(n) > most) pith::raise<pith::CapacityError>("no room");
  }
  pith::ConstMatrixRef<float> prefill(std::span<const Token> tokens) {
    fits(tokens.size());
    return MarkovModel<float>::prefill(tokens);
  }
  pith::ConstMatrixRef<float> decode(std::span<const Token> tokens) {
    fits(tokens.size());
    return MarkovModel<float>::decode(tokens);
  }
};
struct Honest : Limited {
  using Limited::Limited;
  mutable Index refused = 0;
  Index room() const { return most - next_position(); }
  pith::ConstMatrixRef<float> decode(std::span<const Token> tokens) {
    refused += Index(tokens.size()) > room();
    return Limited::decode(tokens);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("every text of a chain is emitted as often as the target says: all draws, enumerated", "[decode][speculative]", float,
                   double) {
  using S = TestType;
  Matrix<double> target_chain = quarters_of_two<double>();
  const Text prompt{1, 2};
  const auto check = [&](const std::map<Text, double>& found, std::size_t length) {
    double total = 0;
    for (const auto& [text, probability] : found) {
      REQUIRE(text.size() == length);
      total += probability;
      CAPTURE(text, probability);
      const double expected = probability_of(text, 1, 2, target_chain);
      CHECK(std::abs(probability - expected) < 1e-12);  // sums of at most 2^20 powers of 1/8
    }
    CHECK(std::abs(total - 1) < 1e-12);
  };
  const auto first_tokens = [&](auto& spec, EveryDraw& draws, std::size_t length, bool no_more) {
    spec.prefill(prompt);
    Text text;
    while (text.size() < length) append(text, no_more ? spec.step(draws, Index(length - text.size()), [](Token) {}) : spec.step(draws));
    text.resize(length);
    return text;
  };
  SECTION("a draft of another distribution, two guesses a step") {
    for (const bool no_more : {false, true}) {
      const std::size_t length = no_more ? 4 : 2;
      check(enumerate(4,
                      [&](EveryDraw& draws) {
                        MarkovModel<S> target(quarters_of_two<S>());
                        MarkovModel<S> draft(quarters<S>());
                        SpeculativeDecoder spec(target, draft, {.draft_tokens = 2});
                        return first_tokens(spec, draws, length, no_more);
                      }),
            length);
    }
  }
  SECTION("one guess a step, of another scalar") {
    check(enumerate(4,
                    [&](EveryDraw& draws) {
                      MarkovModel<S> target(quarters_of_two<S>());
                      MarkovModel<double> draft(quarters<double>());
                      SpeculativeDecoder spec(target, draft, {.draft_tokens = 1});
                      return first_tokens(spec, draws, 3, false);
                    }),
          3);
  }
  SECTION("prompt lookup, which is sure of itself and often wrong") {
    check(enumerate(12,  // what a refused guess of 1/4 leaves is drawn from in thirds
                    [&](EveryDraw& draws) {
                      MarkovModel<S> target(quarters_of_two<S>());
                      pith::PromptLookup<S> draft(3, {.memory = 16, .max_draft = 2});
                      SpeculativeDecoder spec(target, draft, {.draft_tokens = 2});
                      return first_tokens(spec, draws, 3, true);
                    }),
          3);
  }
  SECTION("three guesses of prompt lookup, adapted") {
    target_chain = halves_of_two<double>();
    check(enumerate(2,
                    [&](EveryDraw& draws) {
                      MarkovModel<S> target(halves_of_two<S>());
                      pith::PromptLookup<S> draft(3, {.memory = 16, .max_draft = 3});
                      SpeculativeDecoder spec(target, draft, {.draft_tokens = 3, .length = DraftLength::adapted});
                      return first_tokens(spec, draws, 5, true);
                    }),
          5);
  }
  SECTION("the wrong rule is found: a draft's guesses taken as they are") {
    const auto found = enumerate(4, [&](EveryDraw& draws) {
      MarkovModel<S> draft(quarters<S>());
      return generate(draft, draft.prefill(prompt), {.max_tokens = 3}, draws);
    });
    double difference = 0;
    for (const auto& [text, probability] : found) difference += std::abs(probability - probability_of(text, 1, 2, target_chain));
    CHECK(difference > .2);
  }
}

TEST_CASE("guesses that there is no room for are refused", "[decode]") {
  for (const float temperature : {0.f, 1.f}) {
    pith::RejectionSampler<float> sampler({.temperature = temperature}, 4, 2);
    const pith::Vector<float> logits = pith::Vector<float>::Zero(4);
    std::mt19937_64 rng(1);
    const auto dice = rng;
    for (const Index i : {Index(-1), Index(2), std::numeric_limits<Index>::max()}) {
      CHECK_THROWS_AS(sampler.guess(i, logits, rng), pith::CapacityError);
      CHECK_THROWS_WITH(sampler.guess(i, logits, rng), contains("expected 0 .. 1"));
      CHECK_THROWS_AS(sampler.verify(i, logits, rng), pith::CapacityError);
    }
    CHECK_THROWS_AS(sampler.guess(0, logits.head(3), rng), pith::ShapeError);
    CHECK(rng == dice);
    CHECK_NOTHROW(sampler.guess(1, logits, rng));
    CHECK_THROWS_AS(pith::RejectionSampler<float>({.temperature = temperature}, 4, -1), pith::ShapeError);
    CHECK_THROWS_AS(pith::RejectionSampler<float>({.temperature = temperature}, 4, Index(1) << 61), pith::CapacityError);
    CHECK_THROWS_AS(pith::RejectionSampler<float>({.temperature = temperature}, 0, 1), pith::StateError);
  }
}

TEST_CASE("verified tokens are distributed as the target's sampler says, for any guess and any sampler", "[decode]") {
  constexpr Index vocab = 7;
  constexpr int sides = 2000;  // of the grid each draw is taken from: integrals over it are off by at most 1 / sides a jump
  const auto middle = [](int a) { return (double(a) + .5) / sides; };
  std::mt19937_64 rng(5);
  for (const pith::SamplerOptions& options :
       {pith::SamplerOptions{}, pith::SamplerOptions{.temperature = .6f}, pith::SamplerOptions{.temperature = 2, .top_k = 3},
        pith::SamplerOptions{.top_p = .7f}, pith::SamplerOptions{.temperature = .8f, .top_p = .95f, .min_p = .1f}})
    for (int pair = 0; pair < 6; ++pair) {
      Vector<float> target(vocab), draft(vocab), p(vocab), q(vocab);
      for (Index i = 0; i < vocab; ++i) {
        target[i] = pith::normal<float>(rng);
        draft[i] = pair == 0 ? target[i] : pith::normal<float>(rng);  // the first pair: nothing is ever refused
      }
      if (pair == 1) draft[2] = target[4] = -std::numeric_limits<float>::infinity();
      pith::Sampler<float> sampler(options, vocab);
      sampler.distribution(target, p);
      sampler.distribution(draft, q);
      RejectionSampler<float> rejection(options, vocab, 1);
      Vector<double> emitted = Vector<double>::Zero(vocab);
      double before = 0;  // q of the tokens below d: a draw in the middle of its own makes d the guess
      for (Index d = 0; d < vocab; before += double(q[d++])) {
        if (q[d] == 0) continue;
        Scripted forced{{before + .5 * double(q[d])}};
        REQUIRE(rejection.guess(0, draft, forced) == Token(d));
        double accepted = 0;
        for (int a = 0; a < sides; ++a) {
          Scripted draws{{middle(a), .5}};
          const Token token = rejection.verify(0, target, draws);
          if (draws.drawn == 1) accepted += 1. / sides;
          REQUIRE((token == Token(d)) == (draws.drawn == 1));
        }
        const double accept = std::min(1., double(p[d]) / double(q[d]));
        CHECK(std::abs(accepted - accept) <= 1. / sides);
        emitted[d] += double(q[d]) * accept;
        for (int a = 0; a < sides && accepted < 1 - .5 / sides; ++a) {
          Scripted draws{{1 - 1e-9, middle(a)}};
          emitted[rejection.verify(0, target, draws)] += double(q[d]) * (1 - accept) / sides;
          REQUIRE(draws.drawn == 2);
        }
      }
      for (Index t = 0; t < vocab; ++t) {
        CAPTURE(pair, t, options.temperature, options.top_k, options.top_p);
        CHECK(std::abs(emitted[t] - double(p[t])) <= 2. / sides);  // a token's part of the grid has two ends
        CHECK((p[t] > 0 || emitted[t] == 0));
      }
    }
}

TEST_CASE("greedy text is the target's, for any draft and any way of stopping", "[decode][speculative]") {
  const auto chain = random_chain(6, 1);
  const Text expected = plain_greedy(MarkovModel(chain), opening, 200);
  for (const double alike : {0., .5, .9, 1.})
    for (const Index draft_tokens : {1, 2, 5, 8})
      for (const DraftLength length : {DraftLength::fixed, DraftLength::adapted}) {
        CAPTURE(alike, draft_tokens, length == DraftLength::adapted);
        MarkovModel target(chain), draft(similar_chain(chain, alike, 3));
        SpeculativeDecoder spec(target, draft, {.draft_tokens = draft_tokens, .sampler = {.temperature = 0}, .length = length});
        std::mt19937_64 rng(1), untouched(1);
        spec.prefill(opening);
        CHECK(spec.pending() == -1);
        Text found;
        while (found.size() < 200) {
          const auto tokens = spec.step(rng);
          REQUIRE((tokens.size() >= 1 && Index(tokens.size()) <= draft_tokens + 1));
          append(found, tokens);
          // Between steps one token is pending, and the target has read what is before it.
          REQUIRE(spec.pending() == found.back());
          REQUIRE(text_of(target.text()) == opening + Text(found.begin(), found.end() - 1));
          REQUIRE(draft.next_position() >= target.next_position() - 1);
          REQUIRE(text_of(draft.text()) == Text(target.text().begin(), target.text().begin() + draft.next_position()));
        }
        const auto& stats = spec.stats();
        CHECK(stats.tokens == Index(found.size()));
        CHECK(stats.tokens == 1 + stats.steps + stats.accepted);
        CHECK(stats.steps == target.calls());
        CHECK((stats.accepted + stats.rejected <= stats.drafted && stats.rejected <= stats.steps));
        if (alike == 1) {
          CHECK(stats.acceptance_rate() == 1);
          CHECK(stats.rejected == 0);
          CHECK(draft.calls() == stats.drafted);  // what it lags behind rides along with the pending token
        } else {
          CHECK(stats.acceptance_rate() == double(stats.accepted) / double(stats.drafted));
        }
        found.resize(200);
        CHECK(found == expected);
        CHECK(rng == untouched);
      }
}

TEST_CASE("prompt lookup speculates where the text repeats itself, and a draft without a guess is not asked twice", "[decode]") {
  const auto chain = random_chain(6, 4);
  const Text expected = plain_greedy(MarkovModel(chain), opening, 120);
  MarkovModel target(chain);
  pith::PromptLookup draft(6);
  SpeculativeDecoder spec(target, draft, greedily);
  spec.prefill(opening);
  std::mt19937_64 rng(1);
  Text found;
  while (found.size() < 120) append(found, spec.step(rng));
  found.resize(120);
  CHECK(found == expected);
  CHECK(spec.stats().accepted > 60);  // a greedy chain of 36 states soon goes round
  CHECK(target.calls() < 60);

  MarkovModel sampled(pith_test::three_token_chain());
  pith::PromptLookup silent(3, {.ngram = 60, .min_ngram = 60});
  SpeculativeDecoder alone(sampled, silent, {.draft_tokens = 4});
  alone.prefill(opening);
  for (int i = 0; i < 30; ++i) CHECK(alone.step(rng).size() == 1);
  CHECK(alone.stats().drafted == 0);
  CHECK(alone.stats().acceptance_rate() == 0);
}

TEST_CASE("an adapted draft is short where guesses fail and long where they do not", "[decode]") {
  const auto chain = random_chain(6, 1);
  const auto drafted_by = [&](double alike, float guess_cost) {
    MarkovModel target(chain), draft(similar_chain(chain, alike, 3));
    SpeculativeDecoder spec(target, draft, {.draft_tokens = 8, .length = DraftLength::adapted, .guess_cost = guess_cost});
    spec.prefill(opening);
    std::mt19937_64 rng(3);
    for (int i = 0; i < 400; ++i) spec.step(rng);
    return double(spec.stats().drafted) / double(spec.stats().steps);
  };
  CHECK(drafted_by(1, .1f) > 7.9);  // all is accepted
  const double cheap = drafted_by(0, .01f), dear = drafted_by(0, .5f);
  CHECK(dear < 1.5);
  CHECK(cheap > dear + 1);
  pith::detail::DraftPace pace;
  CHECK(pace.length(8, .1) == 8);                  // hopeful at first
  for (int i = 0; i < 60; ++i) pace.saw(1, true);  // α = 1/2
  for (const double c : {.0, .1, .3, 1.}) {
    Index best = 1;
    for (Index n = 1; n <= 8; ++n) {
      const auto speed = [&](Index m) { return (1 - std::pow(.5, double(m) + 1)) / (1 + double(m) * c); };
      if (speed(n) > speed(best) * (1 + 1e-9)) best = n;
    }
    CAPTURE(c, best);
    CHECK(std::abs(pace.length(8, c) - best) <= 1);  // what it remembers is a little more hopeful than 1/2
  }
}

TEST_CASE("a callback ends a step at its token, and both models are before it", "[decode][speculative]") {
  const auto chain = random_chain(6, 1);
  const Text expected = plain_greedy(MarkovModel(chain), opening, 60);
  for (std::size_t stop = 0; stop < 12; ++stop) {
    MarkovModel target(chain), draft(similar_chain(chain, .9, 3));
    SpeculativeDecoder spec(target, draft, greedily);
    spec.prefill(opening);
    std::mt19937_64 rng(1);
    Text found;
    for (bool more = true; more;) spec.step(rng, 100, [&](Token t) { return more = (found.push_back(t), found.size() <= stop); });
    REQUIRE(found.size() == stop + 1);
    CHECK(found == Text(expected.begin(), expected.begin() + Index(stop) + 1));
    CHECK(spec.pending() == found.back());
    CHECK(text_of(target.text()) == opening + Text(found.begin(), found.end() - 1));
    CHECK(draft.next_position() <= target.next_position());
    while (found.size() < 60) append(found, spec.step(rng));  // and on it goes
    found.resize(60);
    CHECK(found == expected);
  }
}

TEST_CASE("generate() by steps: limits, stop tokens, callbacks", "[decode]") {
  const auto chain = random_chain(6, 1);
  const Text expected = plain_greedy(MarkovModel(chain), opening, 60);
  struct Spec {
    explicit Spec(const Matrix<float>& m) : target(m), draft(similar_chain(m, .9, 3)), decoder(target, draft, greedily) {
      decoder.prefill(opening);
    }
    MarkovModel<float> target, draft;
    SpeculativeDecoder<MarkovModel<float>, MarkovModel<float>> decoder;
  };
  std::mt19937_64 rng(1);
  SECTION("n tokens and then m are n + m tokens, and no token too many is read") {
    for (const Index n : {1, 2, 7, 30}) {
      Spec spec(chain);
      Text found;
      const auto collect = [&](Token t) { found.push_back(t); };
      const auto before = generate(spec.decoder, {.max_tokens = n}, rng, collect);
      CHECK(before.count == n);
      CHECK(before.reason == StopReason::max_tokens);
      CHECK(before.pending == expected[std::size_t(n) - 1]);
      CHECK(spec.target.next_position() == 3 + n - 1);
      generate(spec.decoder, {.max_tokens = 60 - n}, rng, collect);
      CHECK(found == expected);
    }
  }
  SECTION("a stop token in the middle of a step") {
    Spec spec(chain);
    const Text stops{expected[9], 77};
    const auto first = std::find(expected.begin(), expected.end(), stops[0]) - expected.begin();
    Text found;
    const auto result = generate(spec.decoder, {.stop_tokens = stops}, rng, [&](Token t) { found.push_back(t); });
    CHECK(found == Text(expected.begin(), expected.begin() + first));
    CHECK(result.count == first);
    CHECK(result.reason == StopReason::stop_token);
    CHECK(result.pending == stops[0]);
    CHECK(spec.decoder.pending() == stops[0]);
    CHECK(text_of(spec.target.text()) == opening + found);
  }
  SECTION("a callback") {
    Spec spec(chain);
    Text found;
    const auto result = generate(spec.decoder, {}, rng, [&](Token t) { return found.push_back(t), found.size() < 8; });
    CHECK(found == Text(expected.begin(), expected.begin() + 8));
    CHECK(result.reason == StopReason::callback);
    CHECK(result.pending == found.back());
    CHECK(spec.target.next_position() == 3 + 7);
  }
  SECTION("none at all") {
    Spec spec(chain);
    const auto result = generate(spec.decoder, {.max_tokens = 0}, rng, [](Token) {});
    CHECK(result.count == 0);
    CHECK(result.pending == -1);
    CHECK_THROWS_WITH(generate(spec.decoder, {.max_tokens = -1}, rng, [](Token) {}), contains("max_tokens is -1"));
  }
}

TEST_CASE("the next turn begins with the pending token", "[decode][speculative]") {
  const auto chain = random_chain(6, 1);
  const Text turn{5, 3, 3};
  for (const double alike : {.5, 1.}) {  // with all guesses accepted the draft lags behind as well
    MarkovModel target(chain), draft(similar_chain(chain, alike, 3));
    SpeculativeDecoder spec(target, draft, greedily);
    spec.prefill(opening);
    std::mt19937_64 rng(1);
    Text text = opening;
    for (int i = 0; i < 7; ++i) append(text, spec.step(rng));
    spec.prefill(turn);
    append(text, turn);
    CHECK(text_of(target.text()) == text);
    CHECK(text_of(draft.text()) == text);
    CHECK(spec.pending() == -1);
    spec.prefill(turn);  // another one, without an answer in between
    append(text, turn);
    CHECK(text_of(draft.text()) == text);
    Text found;
    while (found.size() < 50) append(found, spec.step(rng));
    found.resize(50);
    CHECK(found == plain_greedy(MarkovModel(chain), text, 50));
  }
}

TEST_CASE("models that read by themselves, from different positions on, go on with resume()", "[decode][speculative]") {
  const auto chain = random_chain(6, 1);
  const Text expected = plain_greedy(MarkovModel(chain), opening, 50);
  MarkovModel target(chain), draft(similar_chain(chain, .8, 3));
  draft.prefill(Text{4, 4, 4, 4});  // a prefix of its own
  draft.prefill(opening);
  const Matrix<float> logits = target.prefill(opening);
  SpeculativeDecoder spec(target, draft, greedily);
  std::mt19937_64 rng(1);
  CHECK_THROWS_AS(spec.step(rng), pith::StateError);
  CHECK_THROWS_WITH(spec.step(rng), contains("call prefill() or resume() first"));
  spec.resume(logits);
  Text found;
  while (found.size() < 50) append(found, spec.step(rng));
  found.resize(50);
  CHECK(found == expected);

  target.decode(Text{1});  // another caller
  const Position at = target.next_position();
  CHECK_THROWS_AS(spec.step(rng), pith::StateError);
  CHECK_THROWS_WITH(spec.step(rng), contains("another caller fed one of them") && contains("call resume()"));
  CHECK_THROWS_WITH(spec.prefill(opening), contains("call resume()"));
  CHECK(target.next_position() == at);
}

TEST_CASE("a step that throws has not been", "[decode][speculative]") {
  const auto chain = random_chain(6, 1);
  for (const float temperature : {0.f, 1.f})
    for (const bool of_target : {false, true})
      for (const bool torn : {false, true})
        for (Index when = 1; when <= 12; ++when) {
          CAPTURE(temperature, of_target, torn, when);
          const SpeculativeOptions options{.draft_tokens = 4, .sampler = {.temperature = temperature}};
          const auto text = [&](Index fails_in) {
            Failing target(chain), draft(similar_chain(chain, .8, 3));
            SpeculativeDecoder spec(target, draft, options);
            spec.prefill(opening);
            (of_target ? target : draft).torn = torn;
            (of_target ? target : draft).fails_in = fails_in;
            std::mt19937_64 rng(1);
            Text found;
            int failures = 0;
            while (found.size() < 80) {
              const auto before = spec.stats();
              const auto dice = rng;
              const Text read_by_target = text_of(target.text()), read_by_draft = text_of(draft.text());
              try {
                append(found, spec.step(rng));
              } catch (const std::runtime_error&) {
                ++failures;
                CHECK(spec.pending() == (found.empty() ? -1 : found.back()));
                CHECK(spec.stats().tokens == before.tokens);
                CHECK(spec.stats().drafted == before.drafted);
                CHECK(rng == dice);
                CHECK(text_of(target.text()) == read_by_target);  // at once, not at the next call
                CHECK(text_of(draft.text()) == read_by_draft);
              }
            }
            CHECK(failures == (fails_in > 0));
            CHECK(spec.drafting());
            found.resize(80);
            return found;
          };
          CHECK(text(when) == text(-1));
        }
}

TEST_CASE("a target without room for guesses is given fewer, and as many tokens come as without a draft", "[decode][speculative]") {
  const auto chain = random_chain(6, 1);
  const auto until_full = [](auto&& next) {
    Text found;
    try {
      while (true) next(found);
    } catch (const pith::CapacityError&) {
    }
    return found;
  };
  const auto check = [&]<class Target, class Draft>(Target, Draft, Position most, Position draft_most, Index tokens) {
    CAPTURE(most, draft_most, tokens);
    std::mt19937_64 rng(1);
    const Text plain = until_full([&](Text& found) {
      Target alone(chain, most);
      generate(alone, alone.prefill(opening), {.max_tokens = 1000, .sampler = {.temperature = 0}}, rng,
               [&](Token token) { found.push_back(token); });
    });
    CHECK(Index(plain.size()) == most - 3 + 1);  // the prompt is three tokens, the last token is not read
    for (const double alike : {0., .8, 1.}) {
      Target target(chain, most);
      Draft draft(similar_chain(chain, alike, 3), draft_most);
      SpeculativeDecoder spec(target, draft, {.draft_tokens = tokens, .sampler = {.temperature = 0}});
      spec.prefill(opening);
      const Text stepped = until_full([&](Text& found) { append(found, spec.step(rng)); });  // apart: clang takes 5 s for it in CHECK
      CHECK(stepped == plain);
      CHECK(target.next_position() == most);
      CHECK(spec.pending() == plain.back());
      if constexpr (requires { target.refused; }) CHECK(target.refused == 1);  // the one that ends the text
      if constexpr (requires { draft.refused; }) CHECK(draft.refused == 0);
      if constexpr (requires { target.refused + draft.refused; })
        if (draft_most != most - 1) CHECK(spec.drafting() == (draft_most >= most));  // one short: the draft may not need its last token yet

      Target again(chain, most);
      Draft other(similar_chain(chain, alike, 3), draft_most);
      SpeculativeDecoder by_callback(again, other, {.draft_tokens = tokens, .sampler = {.temperature = 0}});
      by_callback.prefill(opening);
      const Text called =
          until_full([&](Text& found) { generate(by_callback, {.max_tokens = 1000}, rng, [&](Token token) { found.push_back(token); }); });
      CHECK(called == plain);
    }
  };
  for (const Index tokens : {1, 2, 4, 7})
    for (const Position most : {3, 4, 5, 9, 20, 23})
      for (const Position draft_most : {0, 2, 3, 4, 5, 6, 7, 8, 13, 50}) {
        check(Honest(chain, 0), Honest(chain, 0), most, draft_most, tokens);
        check(Limited(chain, 0), Limited(chain, 0), most, draft_most, tokens);
        check(Honest(chain, 0), Limited(chain, 0), most, draft_most, tokens);
      }
}

TEST_CASE("a step of a full target leaves a journal that the caller opened", "[decode][speculative]") {
  const auto chain = random_chain(6, 1);
  const Text more{5, 4}, full = opening + more;
  std::mt19937_64 rng(1);
  Honest target(chain, Position(full.size()));
  MarkovModel draft(chain);
  SpeculativeDecoder spec(target, draft, greedily);
  target.prefill(opening), draft.prefill(opening);
  target.checkpoint(), draft.checkpoint();
  draft.decode(more);
  spec.resume(target.decode(more));
  REQUIRE(spec.step(rng).size() == 1);  // from the logits: no model reads anything
  CHECK_THROWS_AS(spec.step(rng), pith::CapacityError);
  CHECK_THROWS_AS(spec.prefill(opening), pith::CapacityError);
  CHECK(text_of(target.text()) == full);
  target.crop(Position(opening.size())), draft.crop(Position(opening.size()));
  CHECK(text_of(target.text()) == opening);
  CHECK(text_of(draft.text()) == opening);
}

TEST_CASE("a target that takes a token without room is refused", "[decode][speculative]") {
  struct Dishonest : MarkovModel<float> {
    using MarkovModel<float>::MarkovModel;
    Index room() const { return 0; }
  };
  const auto chain = random_chain(6, 1);
  std::mt19937_64 rng(1);
  Dishonest target(chain);
  MarkovModel draft(chain);
  SpeculativeDecoder spec(target, draft, greedily);
  spec.prefill(opening);
  spec.step(rng);
  CHECK_THROWS_WITH(spec.step(rng), contains("room() is 0, but its decode() took a token"));
  CHECK_THROWS_AS(spec.step(rng), pith::StateError);
}

TEST_CASE("a draft that is full in the next turn no longer guesses, and resume() asks it again", "[decode][speculative]") {
  const auto chain = random_chain(6, 1);
  MarkovModel target(chain);
  Limited draft(chain, 14);
  SpeculativeDecoder spec(target, draft, greedily);
  std::mt19937_64 rng(1);
  spec.prefill(opening);
  Text text = opening + text_of(spec.step(rng));
  append(text, spec.step(rng));
  CHECK(spec.stats().accepted == 4);
  const Text turn{5, 4, 3, 2, 1, 0, 5, 4};
  spec.prefill(turn);
  append(text, turn);
  CHECK(!spec.drafting());
  Text found;
  while (found.size() < 30) append(found, spec.step(rng));
  CHECK(found == plain_greedy(MarkovModel(chain), text, 30));
  draft.most = 1000;
  append(text, found);
  draft.decode(std::span(text).subspan(std::size_t(draft.next_position())));
  const Token pending = text.back();
  spec.resume(target.decode(std::span(&pending, 1)));
  CHECK(spec.drafting());
  const Index accepted = spec.stats().accepted;
  found.clear();
  while (found.size() < 30) append(found, spec.step(rng));
  found.resize(30);
  CHECK(found == plain_greedy(MarkovModel(chain), text, 30));
  CHECK(spec.stats().accepted > accepted + 20);
}

TEST_CASE("a callback that throws has been told its token", "[decode][speculative]") {
  const auto chain = random_chain(6, 1);
  const Text expected = plain_greedy(MarkovModel(chain), opening, 60);
  for (std::size_t when = 1; when < 14; ++when) {
    MarkovModel target(chain), draft(similar_chain(chain, .9, 3));
    SpeculativeDecoder spec(target, draft, greedily);
    spec.prefill(opening);
    std::mt19937_64 rng(1);
    Text found;
    const auto tell = [&](Token t) {
      found.push_back(t);
      if (found.size() == when) throw std::runtime_error("enough");
    };
    CHECK_THROWS_WITH(generate(spec, {.max_tokens = 60}, rng, tell), contains("enough"));
    CHECK(found.size() == when);
    CHECK(spec.pending() == found.back());
    generate(spec, {.max_tokens = 60 - Index(when)}, rng, tell);
    CHECK(found == expected);
    CHECK(spec.stats().tokens == 60);
  }
}

TEST_CASE("a prompt that fails in one model leaves a clear state", "[decode][speculative]") {
  const auto chain = random_chain(6, 1);
  MarkovModel target(chain);
  pith::PromptLookup draft(6, {.max_draft = 4});
  SpeculativeDecoder spec(target, draft, greedily);
  const Text foreign{1, 9};
  CHECK_THROWS_AS(spec.prefill(foreign), pith::StateError);  // a token of the target's alone: neither model has read anything
  CHECK(target.next_position() + draft.next_position() == 0);
  CHECK_THROWS_AS(spec.prefill({}), pith::ShapeError);
  spec.prefill(opening);
  std::mt19937_64 rng(1);
  Text text = opening + text_of(spec.step(rng));
  CHECK_THROWS_AS(spec.prefill(foreign), pith::StateError);  // the pending token has been read, the turn has not
  CHECK(spec.pending() == -1);
  Text found;
  while (found.size() < 30) append(found, spec.step(rng));
  found.resize(30);
  CHECK(found == plain_greedy(MarkovModel(chain), text, 30));

  struct Short : MarkovModel<float> {
    using MarkovModel<float>::MarkovModel;
    pith::ConstMatrixRef<float> prefill(std::span<const Token>) { pith::raise<pith::CapacityError>("too long"); }
  };
  MarkovModel other(chain);
  Short small(chain);
  SpeculativeDecoder reversed(small, other, greedily);
  CHECK_THROWS_AS(reversed.prefill(opening), pith::CapacityError);
  CHECK_THROWS_WITH(reversed.step(rng), contains("nothing has been read"));
  SpeculativeDecoder halves(other, small, greedily);  // the target goes on alone
  halves.prefill(opening);
  found.clear();
  while (found.size() < 30) append(found, halves.step(rng));
  CHECK(found == plain_greedy(MarkovModel(chain), opening, 30));
  CHECK(halves.stats().drafted == 0);
}

TEST_CASE("a model without prefill() is fed in chunks it can take", "[decode]") {
  struct NoPrefill {
    using Scalar = float;
    MarkovModel<float> model;
    std::size_t longest = 0;
    Index vocab_size() const { return model.vocab_size(); }
    Position next_position() const { return model.next_position(); }
    Matrix<float> decode(std::span<const Token> tokens) {  // by value
      longest = std::max(longest, tokens.size());
      return model.decode(tokens);
    }
    void checkpoint() { model.checkpoint(); }
    void crop(Position p) { model.crop(p); }
  };
  const auto chain = random_chain(6, 1);
  const Text prompt{2, 0, 1, 5, 4, 3, 2, 2, 1, 0, 3};
  NoPrefill target{MarkovModel(chain)}, draft{MarkovModel(similar_chain(chain, .8, 3))};
  SpeculativeDecoder spec(target, draft, {.draft_tokens = 3, .sampler = {.temperature = 0}});
  spec.prefill(prompt);
  CHECK(target.longest == 4);
  CHECK(text_of(draft.model.text()) == prompt);
  std::mt19937_64 rng(1);
  Text found;
  while (found.size() < 50) append(found, spec.step(rng));
  found.resize(50);
  CHECK(found == plain_greedy(MarkovModel(chain), prompt, 50));
  CHECK(target.longest == 4);
}

TEST_CASE("speculation refuses what cannot work at construction", "[decode]") {
  MarkovModel target(random_chain(6, 1)), draft(random_chain(6, 2)), other(random_chain(5, 2));
  using Same = SpeculativeDecoder<MarkovModel<float>, MarkovModel<float>>;
  CHECK_THROWS_AS(Same(target, other), pith::ShapeError);
  CHECK_THROWS_WITH(Same(target, other), contains("the target has 6 tokens, the draft 5"));
  CHECK_THROWS_AS(Same(target, target), pith::StateError);
  CHECK_THROWS_WITH(Same(target, target), contains("one object"));
  for (const Index bad : {Index(0), Index(-1), std::numeric_limits<Index>::max()}) {
    CHECK_THROWS_AS(Same(target, draft, {.draft_tokens = bad}), pith::StateError);
    CHECK_THROWS_WITH(Same(target, draft, {.draft_tokens = bad}), contains("draft_tokens is"));
  }
  for (const float bad : {-1.f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
    CHECK_THROWS_WITH(Same(target, draft, {.guess_cost = bad}), contains("guess_cost is"));
  CHECK_THROWS_WITH(Same(target, draft, {.sampler = {.top_p = 0}}), contains("top_p is 0"));

  pith::PromptLookup lookup(6, {.max_draft = 3});
  using Lookup = SpeculativeDecoder<MarkovModel<float>, pith::PromptLookup<float>>;
  CHECK_THROWS_AS(Lookup(target, lookup, {.draft_tokens = 4}), pith::CapacityError);
  CHECK_THROWS_WITH(Lookup(target, lookup, {.draft_tokens = 4}),
                    contains("draft_tokens is 4, but the draft takes only 4 tokens at once") && contains("max_draft = 4 or more"));
  CHECK_NOTHROW(Lookup(target, lookup, {.draft_tokens = 3}));
  using Reversed = SpeculativeDecoder<pith::PromptLookup<float>, MarkovModel<float>>;
  CHECK_THROWS_WITH(Reversed(lookup, draft, {.draft_tokens = 4}), contains("but the target takes only 4"));

  SpeculativeDecoder spec(target, draft, greedily);
  std::mt19937_64 rng(1);
  spec.prefill(opening);
  CHECK_THROWS_WITH(spec.step(rng, 0, [](Token) {}), contains("at most 0 tokens, expected 1 or more"));
  CHECK_THROWS_AS(spec.resume(Matrix<float>::Zero(1, 5).eval()), pith::ShapeError);
  CHECK_THROWS_WITH(spec.resume(Matrix<float>::Zero(0, 6).eval()), contains("logits has no row"));
  CHECK(spec.step(rng).size() == 1);
}

TEST_CASE("a number of the target that is none ends the step before it, once and again", "[decode][speculative]") {
  struct Overflowing : MarkovModel<float> {
    using MarkovModel<float>::MarkovModel;
    Matrix<float> decode(std::span<const Token> tokens) {
      const bool reaches = next_position() + Index(tokens.size()) > 10;
      Matrix<float> rows = MarkovModel<float>::decode(tokens);
      if (reaches && sick) rows.bottomRows(1).setConstant(std::numeric_limits<float>::quiet_NaN());
      return rows;
    }
    bool sick = true;
  };
  const auto chain = random_chain(6, 1);
  Overflowing target(chain);
  MarkovModel draft(chain);
  SpeculativeDecoder spec(target, draft, greedily);
  spec.prefill(opening);
  std::mt19937_64 rng(1);
  Text found = text_of(spec.step(rng));
  append(found, spec.step(rng));
  for (int again = 0; again < 3; ++again) {
    CHECK_THROWS_AS(spec.step(rng), pith::StateError);
    CHECK(spec.pending() == found.back());
  }
  target.sick = false;
  while (found.size() < 40) append(found, spec.step(rng));
  found.resize(40);
  CHECK(found == plain_greedy(MarkovModel(chain), opening, 40));
}
