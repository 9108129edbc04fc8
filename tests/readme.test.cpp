// The README's programs, compiled and run; the README holds them word for word.
#define main readme_program
// --- the program
#include <cstdio>
#include <random>

#include <pith/io.hpp>
#include <pith/pith.hpp>

int main(int, char** argv) {
  const auto llama = pith::load_decoder(argv[1]);                          // an unconverted Hugging Face folder
  auto session = llama.start(pith::SinkWindow{.sinks = 4, .window = 252},  // constant memory, however long the text
                             {.max_prompt = 512});
  const std::vector<pith::Token> prompt{0, 'O', 'w', 'n', 'e', 'r', 's', 'h', 'i', 'p'};  // your tokenizer's ids
  const auto logits = session.prefill(prompt);
  std::mt19937_64 rng(1);
  pith::generate(session, logits, {.max_tokens = 100, .sampler = {.temperature = 0.7f}, .stop_tokens = llama.config().eos_token_id}, rng,
                 [](pith::Token token) { std::printf("%c", token); });
  std::printf("\n%zu bytes of cache\n", session.cache_bytes());
  return 0;
}
// --- end
#undef main

namespace {

void readme_speculation(char** argv, const std::vector<pith::Token>& prompt) {
  // --- speculation
  const auto llama = pith::load_decoder(argv[1]);
  auto target = llama.start(pith::HeavyHitter{.heavy = 96, .recent = 96});  // rolled back exactly, evictions included
  pith::PromptLookup draft(target.vocab_size(), {.ngram = 3});              // guesses from the text itself, reads no weights
  pith::SpeculativeDecoder spec(target, draft, {.draft_tokens = 5, .sampler = {.temperature = 0}});
  spec.prefill(prompt);
  std::mt19937_64 rng(42);
  pith::generate(spec, {.max_tokens = 60}, rng, [](pith::Token token) { std::printf("%c", token); });
  std::printf("\n%.0f%% of the guesses accepted\n", 100 * spec.stats().acceptance_rate());
  // --- end of speculation
}

}  // namespace

#include <fstream>
#include <iterator>
#include <string>

#include "support/catch.hpp"

TEST_CASE("the README's programs run, and are what the README shows", "[readme]") {
  char folder[] = PITH_MODELS_DIR "/tiny-prose";
  char name[] = "program";
  char* argv[] = {name, folder, nullptr};
  CHECK(readme_program(2, argv) == 0);

  const auto text_of = [](const std::string& path) {
    std::ifstream in(path);
    REQUIRE(in);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  const std::string root = PITH_MODELS_DIR "/../..", source = text_of(root + "/tests/readme.test.cpp");
  const std::size_t begin = source.find("#include <cstdio>"), end = source.find("// --- end");
  const std::string readme = text_of(root + "/README.md");
  CHECK(readme.find("```cpp\n" + source.substr(begin, end - begin) + "```") != std::string::npos);

  readme_speculation(argv, {0, 'O', 'w', 'n', 'e', 'r', 's', 'h', 'i', 'p'});
  const std::size_t first = source.find("  const auto llama", end), last = source.find("  // --- end of speculation");
  CHECK(readme.find("```cpp\n" + source.substr(first, last - first) + "```") != std::string::npos);
}
