#include <cmath>
#include <filesystem>
#include <span>
#include <vector>

#include <pith/core/executor.hpp>
#include <pith/io/checkpoint.hpp>
#include <pith/kv.hpp>
#include <pith/model/session.hpp>

#include "../examples/support/model_text.hpp"
#include "laws/token_model_laws.hpp"
#include "support/catch.hpp"

using namespace pith;

namespace {

const std::filesystem::path tiny_prose = PITH_MODELS_DIR "/tiny-prose";

std::vector<Token> held_out(std::size_t n) {
  std::vector<Token> text = example::byte_tokens(tiny_prose / "heldout.txt");
  text.resize(n);
  return text;
}

}  // namespace

TEST_CASE("a decoder of int8 weights is a token model, the same for any batch and any number of threads", "[model]") {
  const Decoder<float> decoder = load_decoder(tiny_prose, {.weights = WeightsLayout::int8});
  const std::vector<Token> text = held_out(120);
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

TEST_CASE("int8 weights cost the shipped model next to nothing", "[model]") {
  const Decoder<float> exact = load_decoder(tiny_prose), rounded = load_decoder(tiny_prose, {.weights = WeightsLayout::int8});
  const auto read_bytes = [](const Decoder<float>& d) { return double(d.weights().bytes() - d.weights().embed_tokens.bytes()); };
  CHECK(read_bytes(rounded) < .53 * read_bytes(exact));  // the file is bfloat16; norms stay float
  const std::vector<Token> text = held_out(250);         // within the length it was trained on
  const Matrix<float> one = exact.forward(text), other = rounded.forward(text);
  double divergence = 0;
  for (Index t = 0; t < one.rows(); ++t) {
    const auto p = example::log_probabilities(one.row(t).transpose()), q = example::log_probabilities(other.row(t).transpose());
    for (std::size_t v = 0; v < p.size(); ++v) divergence += std::exp(p[v]) * (p[v] - q[v]);
  }
  CHECK(divergence / double(one.rows()) < 1e-3);  // nats a byte, of 1.06
  CHECK(divergence > 0);
}
