#include <filesystem>
#include <span>
#include <utility>
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

const std::filesystem::path bf16_folder = PITH_MODELS_DIR "/tiny-prose";

/// Checks that a decoder which rounds what it multiplies is a token model of its own, near the exact one.
void check_rounding(const LoadOptions& options, float most) {
  LoadOptions exactly = options;
  exactly.compute = Compute::exact;
  const Decoder<float> rounding = load_decoder(bf16_folder, options), exact = load_decoder(bf16_folder, exactly);
  std::vector<Token> text = example::byte_tokens(bf16_folder / "heldout.txt");
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
  CHECK(off < most);
  CHECK(rounding.weights().fingerprint != exact.weights().fingerprint);
  CHECK(rounding.weights().bytes() == exact.weights().bytes());
}

}  // namespace

TEST_CASE("Compute::bf16: a token model of its own, near the exact one, the same for any batch and any number of threads", "[model]") {
  check_rounding({.compute = Compute::bf16}, .3f);
  CHECK_THROWS_AS(load_decoder<double>(bf16_folder, {.compute = Compute::bf16}), UnsupportedError);
  for (const WeightsLayout layout : {WeightsLayout::mapped, WeightsLayout::int8, WeightsLayout::int4})
    CHECK_THROWS_WITH(load_decoder(bf16_folder, {.weights = layout, .compute = Compute::bf16}),
                      pith_test::contains("Compute::bf16 is for float decoders whose weights are packed"));
}

TEST_CASE("Compute::bf16: modules of codes, of half and of float beside bfloat16 are computed as ever", "[model]") {
  std::vector<Token> text = example::byte_tokens(bf16_folder / "heldout.txt");
  text.resize(30);
  for (Token& t : text) t %= 64;
  int mixed = 0;
  for (const char* const name : {"awq-qwen2-g64-skip", "bnb-int8-llama", "fp8-llama-block32", "ct-w4a16-qwen2-asym-g16"}) {
    const std::filesystem::path folder = std::filesystem::path(PITH_GOLDEN_DEFAULT_DIR) / "quant" / name;
    bool rounds = false;
    for (const StoredModule& module : load_checkpoint(folder).modules) rounds = rounds || module.format == "BF16";
    const Matrix<float> exact = load_decoder(folder).forward(text),
                        rounded = load_decoder(folder, {.compute = Compute::bf16}).forward(text);
    INFO(name);
    CHECK((rounded != exact) == rounds);
    mixed += rounds;
  }
  CHECK(mixed > 0);
  CHECK(mixed < 4);
}

TEST_CASE("Compute::int15: a token model of its own, near the exact one, the same for any batch and any number of threads", "[model]") {
  check_rounding({.weights = WeightsLayout::int8, .compute = Compute::int15}, 1e-2f);
  CHECK_THROWS_AS(load_decoder<double>(bf16_folder, {.weights = WeightsLayout::int8, .compute = Compute::int15}), UnsupportedError);
  for (const WeightsLayout layout : {WeightsLayout::packed, WeightsLayout::mapped})
    CHECK_THROWS_WITH(load_decoder(bf16_folder, {.weights = layout, .compute = Compute::int15}),
                      pith_test::contains("Compute::int15 is for float decoders whose weights are rounded"));
}

TEST_CASE("Compute::int15: the head of four-bit weights, and a folder's own bytes", "[model]") {
  std::vector<Token> text = example::byte_tokens(bf16_folder / "heldout.txt");
  text.resize(30);
  for (Token& t : text) t %= 64;
  const std::filesystem::path bytes = PITH_GOLDEN_DEFAULT_DIR "/quant/bnb-int8-llama";
  for (const auto& [from, layout] : {std::pair(bf16_folder, WeightsLayout::int4), std::pair(bytes, WeightsLayout::int8)}) {
    const Matrix<float> exact = load_decoder(from, {.weights = layout}).forward(text);
    const Matrix<float> rounded = load_decoder(from, {.weights = layout, .compute = Compute::int15}).forward(text);
    const float off = (rounded - exact).cwiseAbs().maxCoeff();
    INFO(from);
    CHECK(off > 0);
    CHECK(off < 1e-2f);
  }
}
