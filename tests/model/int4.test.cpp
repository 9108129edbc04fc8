#include <cmath>
#include <filesystem>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include <pith/core/executor.hpp>
#include <pith/decode.hpp>
#include <pith/io/checkpoint.hpp>
#include <pith/kv.hpp>
#include <pith/model/session.hpp>
#include <pith/peft/dora.hpp>
#include <pith/peft/lora.hpp>
#include <pith/peft/train.hpp>

#include "../examples/support/model_text.hpp"
#include "laws/token_model_laws.hpp"
#include "support/catch.hpp"
#include "support/tiny_adapters.hpp"

using namespace pith;

namespace {

const std::filesystem::path int4_folder = PITH_MODELS_DIR "/tiny-prose";

std::vector<Token> int4_text(std::size_t n) {
  std::vector<Token> text = example::byte_tokens(int4_folder / "heldout.txt");
  text.resize(n);
  return text;
}

}  // namespace

TEST_CASE("a decoder of int4 weights is a token model, the same for any batch and any number of threads", "[model]") {
  const Decoder<float> decoder = load_decoder(int4_folder, {.weights = WeightsLayout::int4});
  const std::vector<Token> text = int4_text(120);
  CHECK(pith_test::broken_token_model_law(
            [&] {
              auto session = decoder.start(HeavyHitter{.heavy = 20, .recent = 20}, {.max_tokens = 400});
              session.prefill(std::span(text).first(60));
              return session;
            },
            {.max_tokens = 5}) == "");
  const Matrix<float> whole = decoder.forward(text);
  ThreadPool pool(3);
  auto session = decoder.start(Dense{}, {.max_prompt = 60, .executor = pool});
  CHECK(session.prefill(std::span(text).first(60)).row(0) == whole.row(59));
  for (std::size_t t = 60; t < text.size(); ++t) CHECK(session.decode(text[t]).row(0) == whole.row(Index(t)));
}

TEST_CASE("int4 weights take a third of bfloat16 and cost the shipped model little", "[model]") {
  const Decoder<float> exact = load_decoder(int4_folder), rounded = load_decoder(int4_folder, {.weights = WeightsLayout::int4});
  const auto projections = [](const Decoder<float>& d) {
    std::size_t bytes = 0;
    for (const LayerWeights<float>& layer : d.weights().layers)
      for (const AnyLinear<float>* linear :
           {&layer.q_proj, &layer.k_proj, &layer.v_proj, &layer.o_proj, &layer.gate_proj, &layer.up_proj, &layer.down_proj})
        bytes += linear->bytes();
    return double(bytes);
  };
  CHECK(projections(rounded) < .3 * projections(exact));
  CHECK(exact.weights().fingerprint != rounded.weights().fingerprint);
  // The head is rounded to bytes.
  CHECK(double(rounded.weights().lm_head.bytes()) < .55 * double(exact.weights().lm_head.bytes()));
  CHECK(rounded.weights().lm_head.bytes() > exact.weights().lm_head.bytes() / 2);
  const std::vector<Token> text = int4_text(250);  // within the length it was trained on
  const Matrix<float> one = exact.forward(text), other = rounded.forward(text);
  double divergence = 0;
  for (Index t = 0; t < one.rows(); ++t) {
    const auto p = example::log_probabilities(one.row(t).transpose()), q = example::log_probabilities(other.row(t).transpose());
    for (std::size_t v = 0; v < p.size(); ++v) divergence += std::exp(p[v]) * (p[v] - q[v]);
  }
  divergence /= double(one.rows());
  INFO("nats a byte: " << divergence);
  CHECK(divergence < 3e-2);
  CHECK(divergence > 1e-3);
}

TEST_CASE("fewer bits of the same weights draft for a decoder, with and without an adapter: its own text, mostly guessed", "[model]") {
  const Decoder<float> exact = load_decoder(int4_folder), bytes = load_decoder(int4_folder, {.weights = WeightsLayout::int8}),
                       nibbles = load_decoder(int4_folder, {.weights = WeightsLayout::int4});
  // The same numbers over each: small enough to leave a text.
  const auto adapter_over = [](const Decoder<float>& decoder) {
    AdapterParts<float> parts = pith_test::random_adapter<float>(decoder, 4, 7).parts();
    const auto shrink = [](LinearAdapter<float>& overlay) { overlay.terms[0].gains *= 0.01f; };
    for (auto& layer : parts.layers)
      for (LinearAdapter<float>& overlay : layer.projections) shrink(overlay);
    shrink(parts.lm_head);
    return ModelAdapter<float>(decoder.adapter_target(), std::move(parts));
  };
  const ModelAdapter<float> over_exact = adapter_over(exact), over_bytes = adapter_over(bytes), over_nibbles = adapter_over(nibbles);
  const std::vector<Token> prompt = int4_text(100);
  constexpr Index most = 80;
  const auto started = [](const Decoder<float>& decoder, const ModelAdapter<float>* adapter) {
    auto session = decoder.start(Dense{}, {.max_tokens = 256});
    session.use(adapter);
    return session;
  };
  std::vector<Session<float>> targets, drafts;
  std::vector<std::vector<Token>> alone, found(4), together(4);
  std::mt19937_64 rng(1);
  for (std::size_t i = 0; i < 4; ++i) {
    const bool adapted = i % 2 == 1, four = i >= 2;
    auto one = started(exact, adapted ? &over_exact : nullptr), target = started(exact, adapted ? &over_exact : nullptr);
    const auto draft_of = [&] { return started(four ? nibbles : bytes, !adapted ? nullptr : four ? &over_nibbles : &over_bytes); };
    alone.push_back(generate(one, prompt, {.max_tokens = most, .sampler = {.temperature = 0}}, rng));
    auto draft = draft_of();
    SpeculativeDecoder speculative(target, draft, {.draft_tokens = 4, .sampler = {.temperature = 0}});
    speculative.prefill(prompt);
    generate(speculative, {.max_tokens = most}, rng, [&](Token token) { found[i].push_back(token); });
    CHECK(found[i] == alone[i]);
    INFO((four ? 4 : 8) << " bits, accepted " << speculative.stats().acceptance_rate());
    CHECK(speculative.stats().acceptance_rate() > (four ? 0.6 : 0.9));
    targets.push_back(started(exact, adapted ? &over_exact : nullptr));
    drafts.push_back(draft_of());
  }
  CHECK(alone[0] != alone[1]);
  SpeculativeBatch<float> batch;
  for (std::size_t i = 0; i < 4; ++i) {
    batch.add(targets[i], drafts[i], {.draft_tokens = Index(2 + i), .sampler = {.temperature = 0}});
    batch.prefill(Index(i), prompt);
  }
  while (batch.step([&](Index i, Token token) {
    auto& text = together[static_cast<std::size_t>(i)];
    text.push_back(token);
    return Index(text.size()) < most;
  })) {
  }
  CHECK(together == alone);
}

TEST_CASE("double decoders refuse int4 weights", "[model]") {
  CHECK_THROWS_AS(load_decoder<double>(int4_folder, {.weights = WeightsLayout::int4}), UnsupportedError);
}
