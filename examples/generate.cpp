// Generates text with any Llama-family folder under any cache policy. Folders without a tokenizer.json take and print token ids.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>
#include <pith/text.hpp>

#include "support/model_text.hpp"
#include "support/policy_argument.hpp"
#include "support/trained_length.hpp"

using namespace pith;

namespace {

const std::string usage = std::string("generate [FOLDER] [OPTIONS]\n\n") + example::policy_usage + R"(
  --prompt TEXT        for folders with a tokenizer.json
  --ids 1,2,3          the prompt as token ids, for all others
  --tokens N           at most                                                                                       [200]
  --temperature T      0: the likeliest token every time                                                             [0.7]
  --top-p P                                                                                                          [0.9]
  --repetition-penalty R                                                                                             [1]
  --seed N                                                                                                           [1]
  --threads N                                                                                                        [1])";

void run(example::CommandLine& line) {
  constexpr Index most_tokens = std::numeric_limits<Position>::max() / 2;
  const Index cores = std::max<Index>(1, static_cast<Index>(std::thread::hardware_concurrency()));
  const std::string choice = line.option("--policy", "sinks:4:252"), ids = line.option("--ids", ""),
                    text = line.option("--prompt", "Ownership is a set of rules that ");
  const Index tokens = line.option<Index>("--tokens", 200, 1, most_tokens),
              threads = line.option<Index>("--threads", 1, 1, cores);  // more threads than cores only wait for each other
  const float temperature = line.option("--temperature", 0.7f, 0.f, 100.f), top_p = line.option("--top-p", 0.9f, 0.f, 1.f),
              penalty = line.option("--repetition-penalty", 1.f, 0.01f, 100.f);
  const auto seed = line.option<std::uint64_t>("--seed", 1, 0, std::numeric_limits<std::uint64_t>::max());
  const auto folder = example::model_folder(line);
  line.done();

  const Decoder<float> decoder = load_decoder(folder);
  std::optional<Tokenizer> tokenizer;
  if (std::filesystem::exists(folder / "tokenizer.json")) tokenizer = load_tokenizer(folder);
  std::vector<Token> prompt, stop_tokens = decoder.config().eos_token_id;
  if (tokenizer) {
    tokenizer->check_vocabulary(decoder.vocab_size());
    stop_tokens.assign(tokenizer->stop_tokens().begin(), tokenizer->stop_tokens().end());
  }
  if (!ids.empty()) {
    for (const Index id : example::numbers("an id of --ids", ids, ',', 0, decoder.vocab_size() - 1))
      prompt.push_back(static_cast<Token>(id));
  } else if (tokenizer) {
    prompt = tokenizer->encode(text);
  } else {
    throw example::UsageError(folder.string() + " has no tokenizer.json: give --ids 1,2,3");
  }

  ThreadPool pool(threads);
  auto session =
      decoder.start(example::policy_argument(choice, decoder),
                    {.max_prompt = static_cast<Index>(prompt.size()), .max_generated = tokens, .max_draft = 0, .executor = pool});
  example::TrainedLength trained(session, decoder.config().max_position_embeddings, choice);
  std::mt19937_64 rng(seed);
  std::optional<Detokenizer> words;
  if (tokenizer && ids.empty()) words.emplace(*tokenizer, true);
  const auto print = [&](Token t) {
    words ? std::printf("%s", words->add(t).c_str()) : std::printf("%d ", t);
    std::fflush(stdout);
    trained.look();
  };
  if (words) std::printf("%s", text.c_str());
  std::fflush(stdout);
  const auto start = std::chrono::steady_clock::now();
  const auto logits = session.prefill(prompt);
  const GenerateResult result = generate(session, logits,
                                         {.max_tokens = tokens,
                                          .sampler = {.temperature = temperature, .top_p = top_p},
                                          .stop_tokens = stop_tokens,
                                          .rules = {.repetition_penalty = penalty},
                                          .text = prompt},
                                         rng, print);
  if (words) std::printf("%s", words->finish().c_str());
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("\n\n%td tokens after %zu of prompt, %.0f tokens/s; %s: %td rows a head, %zu bytes of cache\n", result.count, prompt.size(),
              double(result.count) / seconds, choice.c_str(), session.caches()[0].size(0), session.cache_bytes());
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, usage.c_str(), run); }
