#include <cmath>
#include <filesystem>
#include <span>
#include <vector>

#include <pith/core/executor.hpp>
#include <pith/io/checkpoint.hpp>
#include <pith/kv.hpp>
#include <pith/model/session.hpp>
#include <pith/peft/dora.hpp>
#include <pith/peft/lora.hpp>
#include <pith/peft/train.hpp>

#include "../examples/support/model_text.hpp"
#include "laws/token_model_laws.hpp"
#include "support/catch.hpp"

using namespace pith;

namespace {

const std::filesystem::path int4_folder = PITH_MODELS_DIR "/tiny-prose";

std::vector<Token> int4_text(std::size_t n) {
  std::vector<Token> text = example::byte_tokens(int4_folder / "heldout.txt");
  text.resize(n);
  return text;
}

}  // namespace

TEST_CASE("a decoder of int4 weights is a token model, the same for any company and any number of threads", "[model]") {
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

TEST_CASE("double decoders refuse int4 weights", "[model]") {
  CHECK_THROWS_AS(load_decoder<double>(int4_folder, {.weights = WeightsLayout::int4}), UnsupportedError);
}
