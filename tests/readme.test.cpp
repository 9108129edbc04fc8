// The README's program, compiled and run; the README holds it word for word.
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

#include <fstream>
#include <iterator>
#include <string>

#include "support/catch.hpp"

TEST_CASE("the README's program runs, and is what the README shows", "[readme]") {
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
  CHECK(text_of(root + "/README.md").find("```cpp\n" + source.substr(begin, end - begin) + "```") != std::string::npos);
}
