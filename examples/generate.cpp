// Text from any Llama-family folder under any cache policy. Bytes in and out for a byte-level model, token ids for others.
//
//   generate [FOLDER] [--policy NAME:ROWS|sinks:S:N|h2o:H:R] [--tokens N] [--temperature T] [--top-p P] [--seed N]
//            [--threads N] [--prompt TEXT | --ids 1,2,3]
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "support/model_text.hpp"

using namespace pith;

namespace {

struct Arguments {
  std::string folder = PITH_MODELS_DIR "/tiny-prose", policy = "sinks:4:252", prompt = "Ownership is a set of rules that ", ids;
  Index tokens = 200, threads = 1;
  float temperature = 0.7f, top_p = 0.9f;
  std::uint64_t seed = 1;
};

Arguments parse(int argc, char** argv) {
  Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name.rfind("--", 0) != 0) {
      arguments.folder = name;
      continue;
    }
    if (i + 1 == argc) throw std::invalid_argument(name + " needs a value");
    const char* value = argv[++i];
    if (name == "--policy")
      arguments.policy = value;
    else if (name == "--prompt")
      arguments.prompt = value;
    else if (name == "--ids")
      arguments.ids = value;
    else if (name == "--tokens")
      arguments.tokens = std::atoll(value);
    else if (name == "--threads")
      arguments.threads = std::atoll(value);
    else if (name == "--temperature")
      arguments.temperature = std::strtof(value, nullptr);
    else if (name == "--top-p")
      arguments.top_p = std::strtof(value, nullptr);
    else if (name == "--seed")
      arguments.seed = std::strtoull(value, nullptr, 10);
    else
      throw std::invalid_argument("unknown option " + name);
  }
  return arguments;
}

std::vector<Index> numbers(const std::string& text, char separator) {
  std::vector<Index> out;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find(separator, at), text.size());
    out.push_back(std::atoll(text.substr(at, end - at).c_str()));
    at = end + 1;
  }
  return out;
}

AnyPolicy<float> policy(const std::string& text, const DecoderConfig& config) {
  const auto rope = std::make_shared<const Rope<float>>(config.rope());
  const std::size_t colon = std::min(text.find(':'), text.size());
  const std::string name = text.substr(0, colon);
  const std::vector<Index> n = numbers(text.substr(std::min(colon + 1, text.size())), ':');
  if (name == "sinks" && n.size() == 2) return SinkWindow{.sinks = n[0], .window = n[1]};
  if (name == "h2o" && n.size() == 2) return HeavyHitter{.heavy = n[0], .recent = n[1]};
  if (n.size() > 1) throw std::invalid_argument("policy " + text + ": NAME:ROWS is expected, or sinks:S:N, or h2o:H:R");
  return make_policy(name, n.empty() ? 256 : n[0], {rope});
}

}  // namespace

int main(int argc, char** argv) try {
  const Arguments arguments = parse(argc, argv);
  const Decoder<float> decoder = load_decoder(arguments.folder);
  const bool bytes = decoder.vocab_size() == 256;
  std::vector<Token> prompt;
  if (!arguments.ids.empty()) {
    for (const Index id : numbers(arguments.ids, ',')) prompt.push_back(static_cast<Token>(id));
  } else if (bytes) {
    prompt.push_back(0);
    for (const char c : arguments.prompt) prompt.push_back(static_cast<unsigned char>(c));
  } else {
    throw std::invalid_argument("this model has " + std::to_string(decoder.vocab_size()) +
                                " tokens and pith has no tokenizer: give --ids 1,2,3");
  }

  ThreadPool pool(arguments.threads);
  auto session =
      decoder.start(policy(arguments.policy, decoder.config()),
                    {.max_prompt = static_cast<Index>(prompt.size()), .max_generated = arguments.tokens, .max_draft = 0, .executor = pool});
  std::mt19937_64 rng(arguments.seed);
  const auto print = [&](Token t) { bytes ? std::printf("%c", char(t)) : std::printf("%d ", t); };
  if (bytes) std::printf("%s", arguments.prompt.c_str());
  const auto start = std::chrono::steady_clock::now();
  const auto logits = session.prefill(prompt);
  const GenerateResult result = generate(session, logits,
                                         {.max_tokens = arguments.tokens,
                                          .sampler = {.temperature = arguments.temperature, .top_p = arguments.top_p},
                                          .stop_tokens = decoder.config().eos_token_id},
                                         rng, print);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("\n\n%td tokens after %zu of prompt, %.0f tokens/s; %s: %td rows a head, %zu bytes of cache\n", result.count, prompt.size(),
              double(result.count) / seconds, arguments.policy.c_str(), session.caches()[0].size(0), session.cache_bytes());
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
