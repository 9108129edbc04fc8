// A prompt read once, compressed once and answered many times: from a file, and as a prefix shared by several conversations.
#include <cstdio>
#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "support/model_text.hpp"

using namespace pith;
namespace fs = std::filesystem;

namespace {

/// Continues the text that the session has read.
std::string answer(Session<float>& session, std::uint64_t seed, Index tokens = 60) {
  std::string text;
  std::mt19937_64 rng(seed);
  generate(session, session.logits(), {.max_tokens = tokens, .sampler = {.temperature = 0.7f, .top_p = 0.9f}}, rng,
           [&](Token token) { text += token >= ' ' && token < 127 ? static_cast<char>(token) : ' '; });
  return text;
}

void prompt_once(example::CommandLine& line) {
  const fs::path folder = example::model_folder(line);
  line.done();
  const Decoder<float> decoder = load_decoder(folder);
  const std::vector<Token> text = example::held_out(folder, decoder.vocab_size(), 200);
  const std::span<const Token> prompt = std::span<const Token>(text).first(200);

  const SnapKv policy{.keep = 64, .window = 16};
  const fs::path saved = fs::temp_directory_path() / ("pith-prompt-" + std::to_string(std::random_device{}()) + ".safetensors");
  {
    auto session = decoder.start(policy, {.max_prompt = 200});
    example::Progress progress;
    session.prefill(prompt, {.progress = [&](const PrefillProgress& p) {  // to return false is to cancel
                      progress.show("prompt", static_cast<double>(p.layers_done), static_cast<double>(p.layers_total));
                      return true;
                    }});
    save_session(session, saved);
  }
  std::printf("a prompt of %zu tokens, %td rows a head of it kept, saved in %ju bytes\n\n", prompt.size(), policy.keep,
              static_cast<std::uintmax_t>(fs::file_size(saved)));
  auto session = decoder.start(policy, {.max_prompt = 200});  // possibly in another process, later
  load_session(session, saved);
  for (const std::uint64_t seed : {1u, 2u, 3u}) {
    auto own = session.clone();
    std::printf("  …%s\n", answer(own, seed).c_str());
  }
  fs::remove(saved);

  auto system = decoder.start(Dense{}, {.max_prompt = 96, .max_tokens = 96, .max_draft = 0});
  system.prefill(prompt.first(96));
  const KvPrefix prefix = system.freeze();
  std::printf("\n96 tokens in front of every conversation: %zu bytes, once\n\n", prefix.bytes());
  for (const char* turn : {"The function ", "A struct is "}) {
    const std::string bytes = turn;
    auto conversation = decoder.start(SinkWindow{.sinks = 4, .window = 60}, {.max_prompt = 32, .prefix = prefix});
    conversation.prefill(std::vector<Token>(bytes.begin(), bytes.end()));
    std::printf("  %s|%s  (%zu bytes of its own)\n", turn, answer(conversation, 1).c_str(), conversation.cache_bytes());
  }
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, "prompt_once [FOLDER]", prompt_once); }
