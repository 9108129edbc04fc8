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

TEST_CASE("Compute::bf16: a token model of its own, near the exact one, the same for any company and any number of threads", "[model]") {
  const std::filesystem::path folder = PITH_MODELS_DIR "/tiny-prose";  // stored in bfloat16
  const Decoder<float> rounding = load_decoder(folder, {.compute = Compute::bf16}), exact = load_decoder(folder);
  std::vector<Token> text = example::byte_tokens(folder / "heldout.txt");
  text.resize(120);
  CHECK(pith_test::broken_token_model_law(
            [&] {
              auto session = rounding.start(HeavyHitter{.heavy = 20, .recent = 20}, {.max_tokens = 400});
              session.prefill(std::span(text).first(60));
              return session;
            },
            {.max_tokens = 5}) == "");
  const Matrix<float> whole = rounding.forward(text), other = exact.forward(text);
  ThreadPool pool(3);
  auto session = rounding.start(Dense{}, {.max_prompt = 60, .executor = pool});
  CHECK(session.prefill(std::span(text).first(60)).row(0) == whole.row(59));
  for (std::size_t t = 60; t < text.size(); ++t) CHECK(session.decode(text[t]).row(0) == whole.row(Index(t)));
  const float off = (whole - other).cwiseAbs().maxCoeff();
  CHECK(off > 0);
  CHECK(off < .3f);
  CHECK(rounding.weights().fingerprint != exact.weights().fingerprint);
  CHECK(rounding.weights().bytes() == exact.weights().bytes());
  CHECK_THROWS_AS(load_decoder<double>(folder, {.compute = Compute::bf16}), UnsupportedError);
  CHECK_THROWS_AS(load_decoder(folder, {.weights = WeightsLayout::mapped, .compute = Compute::bf16}), UnsupportedError);
}
