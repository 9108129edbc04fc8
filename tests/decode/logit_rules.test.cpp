#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include <pith/decode.hpp>

#include "support/catch.hpp"
#include "support/markov_model.hpp"

using pith::ConstVectorRef, pith::Index, pith::LogitMask, pith::LogitRules, pith::PromptLookup, pith::SamplerOptions,
    pith::SpeculativeDecoder;
using pith::StateError, pith::Token, pith::Vector;
using pith_test::contains, pith_test::MarkovModel, pith_test::three_token_chain, pith_test::three_token_chain_of_two;

namespace {

using Text = std::vector<Token>;
constexpr float banned = -std::numeric_limits<float>::infinity();

// A rule of the text alone: no token three times in a row, and token 2 only behind an even number of tokens.
const auto house_rules = [](auto logits, std::span<const Token> text) {
  const std::size_t n = text.size();
  if (n >= 2 && text[n - 1] == text[n - 2]) logits[static_cast<std::size_t>(text[n - 1])] = banned;
  if (n % 2 != 0) logits[2] = banned;
};

Text ruled_prompt() { return {0, 1, 0}; }

Text plain_text(const LogitRules& rules, const SamplerOptions& sampler, Index tokens, std::mt19937_64& rng) {
  MarkovModel<float> model(three_token_chain_of_two());
  const Text read = ruled_prompt();
  return pith::generate(model, model.prefill(read), {.max_tokens = tokens, .sampler = sampler, .rules = rules, .text = read}, rng);
}

template <class Draft>
Text speculated_text(Draft draft, const LogitRules& rules, const SamplerOptions& sampler, Index tokens, std::mt19937_64& rng) {
  MarkovModel<float> target(three_token_chain_of_two());
  SpeculativeDecoder spec(target, draft, {.draft_tokens = 3, .sampler = sampler, .rules = rules});
  spec.prefill(ruled_prompt());
  Text out;
  pith::generate(spec, {.max_tokens = tokens}, rng, [&](Token t) { out.push_back(t); });
  return out;
}

}  // namespace

TEST_CASE("a repetition penalty divides positive logits of the text's tokens and multiplies negative ones, once each", "[decode]") {
  const LogitRules rules{.repetition_penalty = 2};
  pith::detail::RuledText text(rules, 4, 2);
  text.push(Text{0, 1, 1, 0, 3});
  Vector<float> logits(4), scratch(4);
  logits << 2.f, -1.f, .5f, 0.f;
  const auto row = [&] {
    const ConstVectorRef<float> r = text.apply<float>(ConstVectorRef<float>(logits), scratch);
    return std::vector<float>(r.data(), r.data() + r.size());
  };
  CHECK(row() == std::vector<float>{1, -2, .5f, 0});
  text.shrink(1);  // only token 0 is left
  CHECK(row() == std::vector<float>{1, -1, .5f, 0});
  text.push(Token(2));
  CHECK(row() == std::vector<float>{1, -1, .25f, 0});
  text.clear();
  CHECK(row() == std::vector<float>{2, -1, .5f, 0});
}

TEST_CASE("without rules logits are passed on as they are", "[decode]") {
  pith::detail::RuledText text(LogitRules{}, 3, 8);
  text.push(Text{0, 1});
  CHECK(text.size() == 0);
  Vector<float> logits = Vector<float>::Ones(3), scratch;
  CHECK(text.apply<float>(ConstVectorRef<float>(logits), scratch).data() == logits.data());
}

TEST_CASE("a mask bans tokens by the text so far", "[decode]") {
  std::mt19937_64 rng(1);
  for (const float temperature : {0.f, 1.f}) {
    const Text text = plain_text({.mask = house_rules}, {.temperature = temperature}, 200, rng);
    REQUIRE(text.size() == 200);
    Text all = ruled_prompt();
    for (const Token t : text) {
      const std::size_t n = all.size();
      CHECK(!(all[n - 1] == all[n - 2] && t == all[n - 1]));
      CHECK(!(n % 2 != 0 && t == 2));
      all.push_back(t);
    }
  }
}

TEST_CASE("a mask sees models of double if it takes their logits, and is refused otherwise", "[decode]") {
  MarkovModel<double> model(three_token_chain<double>());
  std::mt19937_64 rng(1);
  const Text read{0};
  CHECK(pith::generate(model, model.prefill(read), {.max_tokens = 20, .rules = {.mask = house_rules}, .text = read}, rng).size() == 20);
  const auto narrow = [](std::span<float>, std::span<const Token>) {};
  CHECK_THROWS_AS(pith::generate(model, model.prefill(read), {.rules = {.mask = narrow}}, rng), StateError);
}

TEST_CASE("a penalty that makes no sense, and a mask that leaves nothing, are refused", "[decode]") {
  std::mt19937_64 rng(1);
  for (const float penalty : {0.f, -1.f, std::numeric_limits<float>::infinity(), std::nanf("")})
    CHECK_THROWS_WITH(plain_text({.repetition_penalty = penalty}, {}, 3, rng), contains("repetition_penalty"));
  const auto nothing = [](auto logits, std::span<const Token>) {
    for (auto& l : logits) l = banned;
  };
  CHECK_THROWS_AS(plain_text({.mask = nothing}, {}, 3, rng), StateError);
}

TEST_CASE("speculation under rules gives the text of the target alone: greedy, to the token", "[decode]") {
  std::mt19937_64 rng(1);
  for (const float penalty : {1.f, 1.3f, .7f}) {
    for (const LogitMask& mask : {LogitMask(), LogitMask(house_rules)}) {
      const LogitRules rules{.repetition_penalty = penalty, .mask = mask};
      const Text alone = plain_text(rules, {.temperature = 0}, 150, rng);
      CHECK(speculated_text(MarkovModel<float>(three_token_chain()), rules, {.temperature = 0}, 150, rng) == alone);
      CHECK(speculated_text(PromptLookup(3, {.ngram = 2}), rules, {.temperature = 0}, 150, rng) == alone);
    }
  }
}

TEST_CASE("speculation under rules gives the text of the target alone: sampled, in distribution", "[decode]") {
  const LogitRules rules{.repetition_penalty = 1.5f, .mask = house_rules};
  constexpr int runs = 20'000;
  std::array<double, 27> alone{}, together{};  // of the first three tokens
  std::mt19937_64 rng(17);
  const auto bin = [](const Text& t) { return static_cast<std::size_t>(t[0] * 9 + t[1] * 3 + t[2]); };
  for (int i = 0; i < runs; ++i) {
    alone[bin(plain_text(rules, {}, 3, rng))] += 1;
    together[bin(speculated_text(MarkovModel<float>(three_token_chain()), rules, {}, 3, rng))] += 1;
  }
  for (std::size_t b = 0; b < alone.size(); ++b) {
    // Two counts of the same probability differ by more than five deviations less than once in a million.
    CAPTURE(b, alone[b], together[b]);
    CHECK(std::abs(alone[b] - together[b]) <= 5 * std::sqrt(alone[b] + together[b]) + 1e-9);
    CHECK((alone[b] == 0) == (together[b] == 0));
  }
}

TEST_CASE("rules see all that was read and said, turn after turn", "[decode]") {
  std::mt19937_64 rng(3);
  Text last;
  auto watch = [&](auto, std::span<const Token> text) { last.assign(text.begin(), text.end()); };
  MarkovModel<float> target(three_token_chain_of_two()), draft(three_token_chain());
  SpeculativeDecoder spec(target, draft, {.draft_tokens = 1, .sampler = {.temperature = 0}, .rules = {.mask = watch}});
  spec.prefill(ruled_prompt());
  Text all = ruled_prompt();
  const auto say = [&](Index tokens) { pith::generate(spec, {.max_tokens = tokens}, rng, [&](Token t) { all.push_back(t); }); };
  say(4);
  spec.prefill(Text{2, 2});
  all.insert(all.end(), {2, 2});
  say(1);
  all.pop_back();  // what the mask saw last came before the token chosen
  CHECK(last == all);
}
