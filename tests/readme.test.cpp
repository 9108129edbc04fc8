// The README's programs, compiled and run; the README holds them word for word.
#define main readme_program
// --- the program
#include <cstdio>
#include <random>

#include <pith/io.hpp>
#include <pith/pith.hpp>
#include <pith/text.hpp>

int main(int, char** argv) {
  const auto llama = pith::load_decoder(argv[1]);                          // an unconverted Hugging Face folder
  const auto tokenizer = pith::load_tokenizer(argv[1]);                    // and its tokenizer.json
  auto session = llama.start(pith::SinkWindow{.sinks = 4, .window = 252},  // constant memory, however long the text
                             {.max_prompt = 512});
  const auto logits = session.prefill(tokenizer.encode("Ownership"));
  pith::Detokenizer text(tokenizer, /*skip_special=*/true);
  std::mt19937_64 rng(1);
  pith::generate(session, logits, {.max_tokens = 100, .sampler = {.temperature = 0.7f}, .stop_tokens = tokenizer.stop_tokens()}, rng,
                 [&](pith::Token token) { std::printf("%s", text.add(token).c_str()); });
  std::printf("%s\n%zu bytes of cache\n", text.finish().c_str(), session.cache_bytes());
  return 0;
}
// --- end
#undef main

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "io/temp_folder.hpp"
#include "support/catch.hpp"
#include "support/random_matrix.hpp"

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

void readme_merging(const pith::Decoder<float>& llama, const std::vector<pith::Token>& prompt) {
  // --- merging
  // A cache in your own loop; any policy with any strategy, counted or not.
  pith::KvCache cache{pith::AttentionShape{.num_heads = 32, .num_kv_heads = 8, .head_dim = 64},
                      pith::HeavyHitter{.heavy = 512, .recent = 512},
                      {.keep_masses = true},
                      pith::MassWeighted{}};
  // A session that keeps all text and merges what else its prompt evicts: LOOK-M.
  const pith::Protect policy(pith::PromptOnly(pith::HeavyHitter{.heavy = 200, .recent = 56}), {.kind = pith::TokenKind::text});
  auto session = llama.start(policy, {}, pith::Pivotal{});
  // --- end of merging
  session.prefill(prompt);
  CHECK(session.next_position() == static_cast<pith::Position>(prompt.size()));
  CHECK(cache.budget() == 1024);
}

}  // namespace

int adapted(const pith::Decoder<float>& llama, const char* one, const char* other, const std::vector<pith::Token>& prompt) {
  const auto polite = pith::load_adapter(one, llama);  // PEFT folders, unconverted
  const auto terse = pith::load_adapter(other, llama);
  auto a = llama.start(), b = llama.start(), base = llama.start();
  a.use(&polite);  // a pointer assignment: nothing is copied, the decoder stays shared
  b.use(&terse);
  for (auto* session : {&a, &b, &base}) session->prefill(prompt);

  const std::vector<pith::Session<float>*> batch{&a, &b, &base};  // one token of each, every weight read once
  pith::Workspace ws(llama.together_workspace_bytes(batch));
  pith::Matrix<float> logits(3, llama.vocab_size());
  const std::vector<pith::Token> next{'.', '.', '.'};
  llama.decode_together(batch, next, logits, ws);  // the bits of each decoded alone

  a.clear();       // rows cached under one adapter are refused under another
  a.use(nullptr);  // the base alone, exactly
  return 0;
}
// --- end of adapters

namespace {

std::string text_of(const std::string& path) {
  std::ifstream in(path);
  REQUIRE(in);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

/// Whether the README shows this part of this file.
bool shown(const std::string& from, const std::string& to) {
  const std::string root = PITH_MODELS_DIR "/../..", source = text_of(root + "/tests/readme.test.cpp");
  const std::size_t begin = source.find(from), end = source.find(to, begin);
  return text_of(root + "/README.md").find("```cpp\n" + source.substr(begin, end - begin) + "```") != std::string::npos;
}

}  // namespace

TEST_CASE("the README's programs run, and are what the README shows", "[readme]") {
  char folder[] = PITH_MODELS_DIR "/tiny-prose";
  char name[] = "program";
  char* argv[] = {name, folder, nullptr};
  CHECK(readme_program(2, argv) == 0);

  CHECK(shown("#include <cstdio>", "// --- end"));
  readme_speculation(argv, {0, 'O', 'w', 'n', 'e', 'r', 's', 'h', 'i', 'p'});
  CHECK(shown("  const auto llama = pith::load_decoder(argv[1]);\n  auto target", "  // --- end of speculation"));
  readme_merging(pith::load_decoder(folder), {0, 'O', 'w', 'n'});
  CHECK(shown("  // A cache in your own loop; any", "  // --- end of merging"));
}

TEST_CASE("the README's adapters run on folders that are written here, and are what the README shows", "[readme]") {
  const pith_test::TempFolder folder;
  const auto llama = pith::load_decoder(PITH_MODELS_DIR "/tiny-prose");
  const pith::AdapterTarget target = llama.adapter_target();
  for (const std::uint64_t seed : {1u, 2u}) {
    pith::LoraFolderWriter<float> writer;
    writer.add("model.layers.0.self_attn.q_proj", pith::LoraAdapter<float>(pith_test::random_matrix<float>(4, target.hidden, seed),
                                                                           pith_test::random_matrix<float>(target.q, 4, seed)));
    writer.write(folder / std::to_string(seed));
  }
  CHECK(adapted(llama, (folder / "1").string().c_str(), (folder / "2").string().c_str(), {'O', 'w', 'n'}) == 0);
  CHECK(shown("int adapted(", "// --- end of adapters"));
}
