// Speculation where weights come from memory: a random decoder larger than the last-level cache, against decoding token by token.
//
// verify/tokens:n   a pass of the target over n tokens and the way back; times_one: against one token, in the same run
// step/accepted:a   greedy text by drafts that know it and are wrong in 1 - a of all places: what speculation gains at best at that
//                   acceptance, its draft being free; faster: against the same text token by token, in the same run
// step/lookup       prompt lookup, which guesses by itself
// step/int8, /int4  the decoder's own projections rounded to 8 or 4 bits as the draft; accepted: of its guesses
// same              1: the text is the target's own; anything else is not reported
#include <benchmark/benchmark.h>

#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <pith/decode.hpp>
#include <pith/kv.hpp>
#include <pith/model.hpp>
#include <pith/nn/int4.hpp>
#include <pith/nn/int8.hpp>

#include "support/cold.hpp"
#include "support/measure.hpp"
#include "support/register.hpp"
#include "support/speculating.hpp"

using namespace pith;
using namespace pith_bench;

namespace {

constexpr Index prompt_tokens = 64, text_tokens = 40, most_draft = 8;
const Decoder<float>& decoder() { return cold_decoder(); }

std::vector<Token> prompt() {
  std::mt19937_64 rng(3);
  std::vector<Token> tokens(prompt_tokens);
  for (Token& t : tokens) t = static_cast<Token>(rng() % 2048);
  return tokens;
}
Session<float> start() { return decoder().start(HeavyHitter{.heavy = 32, .recent = 32}, {.max_prompt = prompt_tokens}); }

std::vector<Token> token_by_token(double* seconds = nullptr) {
  auto session = start();
  std::mt19937_64 rng(1);
  const Matrix<float> logits = session.prefill(prompt());
  std::vector<Token> text;
  const double time =
      seconds_of([&] { text = generate(session, logits, {.max_tokens = text_tokens, .sampler = {.temperature = 0}}, rng); });
  if (seconds != nullptr) *seconds = time;
  return text;
}
const std::vector<Token>& own_text() {
  static const std::vector<Token> text = token_by_token();
  return text;
}

void verify(benchmark::State& state, Index tokens) {
  auto session = start();
  session.prefill(prompt());
  const std::span<const Token> chunk = std::span(own_text()).first(static_cast<std::size_t>(tokens));
  Matrix<float> alone(tokens, decoder().vocab_size()), together = alone;
  session.checkpoint();
  const Position at = session.next_position();
  for (Index t = 0; t < tokens; ++t) alone.row(t) = session.decode(chunk[static_cast<std::size_t>(t)]).row(0);
  session.crop(at);
  const auto pass = [&](Index n) {
    return seconds_of([&] {
      session.checkpoint();
      together.topRows(n) = session.decode(chunk.first(static_cast<std::size_t>(n)));
      session.crop(at);
    });
  };
  pass(tokens);
  if (together != alone) return state.SkipWithError("wrong result");
  Samples many, one;
  for (auto _ : state) {
    const double seconds = pass(tokens);
    state.SetIterationTime(seconds);
    many.add(seconds);
    one.add(pass(1));
  }
  state.counters["times_one"] = many.median() / one.median();
  state.counters["same"] = 1;
}

template <class MakeDraft> void step(benchmark::State& state, Index draft_tokens, MakeDraft make_draft) {
  Samples speculative, plain;
  SpeculativeStats stats;
  for (auto _ : state) {
    auto target = start();
    auto draft = make_draft();
    SpeculativeDecoder spec(target, draft, {.draft_tokens = draft_tokens, .sampler = {.temperature = 0}});
    spec.prefill(prompt());
    std::mt19937_64 rng(1);
    std::vector<Token> text;
    text.reserve(text_tokens);
    const double seconds = seconds_of([&] { generate(spec, {.max_tokens = text_tokens}, rng, [&](Token t) { text.push_back(t); }); });
    if (text != own_text()) return state.SkipWithError("wrong result");
    state.SetIterationTime(seconds);
    speculative.add(seconds);
    double alone = 0;
    token_by_token(&alone);
    plain.add(alone);
    stats = spec.stats();
  }
  state.counters["faster"] = plain.median() / speculative.median();
  state.counters["tokens/s"] = static_cast<double>(text_tokens) / speculative.median();
  state.counters["per_pass"] = static_cast<double>(stats.tokens) / static_cast<double>(stats.steps);
  state.counters["accepted"] = stats.acceptance_rate();
  state.counters["same"] = 1;
}

/// The decoder with its projections and head in fewer bits.
template <class Narrow> const Decoder<float>& rounded_decoder() {
  static const Decoder<float> one = [] {
    DecoderWeights<float> weights = decoder().weights();
    const auto round = [](AnyLinear<float>& linear) {
      Matrix<float> rows(linear.out(), linear.in());
      linear.copy_weight(0, rows);
      linear = AnyLinear<float>(Narrow(ConstMatrixRef<float>(rows)));
    };
    for (LayerWeights<float>& layer : weights.layers)
      for (AnyLinear<float>* linear :
           {&layer.q_proj, &layer.k_proj, &layer.v_proj, &layer.o_proj, &layer.gate_proj, &layer.up_proj, &layer.down_proj})
        round(*linear);
    round(weights.lm_head);
    return Decoder<float>(decoder().config(), std::move(weights));
  }();
  return one;
}
template <class Narrow> void step_rounded(benchmark::State& state) {
  step(state, 4, [] { return rounded_decoder<Narrow>().start(HeavyHitter{.heavy = 32, .recent = 32}, {.max_prompt = prompt_tokens}); });
}

struct Verify {
  Index tokens;
  std::string text() const { return "/tokens:" + std::to_string(tokens); }
};
struct Accepted {
  Index percent, draft_tokens;
  std::string text() const { return "/accepted:" + std::to_string(percent) + "%/guesses:" + std::to_string(draft_tokens); }
};
struct Lookup {
  std::string text() const { return ""; }
};

const bool registered = [] {
  for (const Index tokens : {1, 2, 3, 5, 9})
    add(
        "verify", [](benchmark::State& state, const Verify& c) { verify(state, c.tokens); }, Verify{tokens});
  for (const Accepted c : {Accepted{0, 4}, Accepted{60, 4}, Accepted{80, 4}, Accepted{90, 4}, Accepted{100, 4}, Accepted{100, most_draft}})
    add(
        "step",
        [](benchmark::State& state, const Accepted& a) {
          step(state, a.draft_tokens, [&] { return InformedDraft(own_text(), prompt_tokens, double(a.percent) / 100, 2048); });
        },
        c);
  add(
      "step/lookup", [](benchmark::State& state, const Lookup&) { step(state, 4, [] { return PromptLookup(2048); }); }, Lookup{});
  add(
      "step/int8", [](benchmark::State& state, const Lookup&) { step_rounded<Int8Linear>(state); }, Lookup{});
  add(
      "step/int4", [](benchmark::State& state, const Lookup&) { step_rounded<Int4Linear>(state); }, Lookup{});
  return true;
}();

}  // namespace
