// Text from any Llama-family folder under any cache policy. Bytes in and out for a byte-level model, token ids for others.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "support/model_text.hpp"

using namespace pith;

namespace {

constexpr const char* usage = R"(generate [FOLDER] [OPTIONS]

  --policy NAME:ROWS   a policy of the catalogue (policy_shootout --table lists it) at a budget of rows a head       [sinks:4:252]
           sinks:S:N   the first S tokens and the newest N
           h2o:H:R     H heavy hitters and the newest R; h2o-cache:H:R: the same at cache positions, for texts beyond the
                       length that the model was trained on
  --prompt TEXT        for byte-level models, whose token 0 begins a text
  --ids 1,2,3          the prompt as token ids, for all others: pith has no tokenizer
  --tokens N           at most                                                                                       [200]
  --temperature T      0: the likeliest token every time                                                             [0.7]
  --top-p P                                                                                                          [0.9]
  --seed N                                                                                                           [1]
  --threads N                                                                                                        [1])";

std::vector<Index> numbers(const std::string& what, const std::string& text, char separator, Index least, Index most) {
  std::vector<Index> out;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find(separator, at), text.size());
    out.push_back(example::number(what, text.substr(at, end - at), least, most));
    at = end + 1;
  }
  return out;
}

AnyPolicy<float> policy(const std::string& text, const Decoder<float>& decoder) {
  const std::size_t colon = std::min(text.find(':'), text.size());
  const std::string name = text.substr(0, colon);
  std::vector<Index> n{256};
  if (colon < text.size()) n = numbers("a number of --policy " + text, text.substr(colon + 1), ':', 0, 1'000'000'000);
  if (name == "sinks" && n.size() == 2) return SinkWindow{.sinks = n[0], .window = n[1]};
  if (name == "h2o" && n.size() == 2) return HeavyHitter{.heavy = n[0], .recent = n[1]};
  if (name == "h2o-cache" && n.size() == 2) return AtCachePositions(HeavyHitter{.heavy = n[0], .recent = n[1]});
  if (n.size() > 1) throw example::UsageError("--policy " + text + ": expected NAME:ROWS, sinks:S:N, h2o:H:R or h2o-cache:H:R");
  return make_policy(name, n[0], {std::make_shared<const Rope<float>>(decoder.config().rope())});
}

/// How far the next token looks back at most, as rope turns it: in the text, or among the kept rows at cache positions.
Position longest_distance(const Session<float>& session) {
  Position longest = 0;
  for (const auto& cache : session.caches()) {
    if (cache.reindexes()) {
      longest = std::max(longest, cache.query_angle());
      continue;
    }
    for (Index h = 0; h < cache.shape().num_kv_heads; ++h)
      for (const Position row : cache.positions(h)) longest = std::max(longest, cache.next_position() - cache.gap() - row);
  }
  return longest;
}

/// Says once that the text has left the length the model was trained on, where it does.
class TrainedLength {
 public:
  TrainedLength(const Session<float>& session, Index trained, std::string policy)
      : session_(session), trained_(trained), policy_(std::move(policy)) {}
  void look() {
    if (said_ || session_.next_position() < trained_ || longest_distance(session_) < trained_) return;
    said_ = true;
    std::fflush(stdout);
    std::fprintf(stderr,
                 "\ngenerate: the text leaves the %td positions that the model was trained on, as %s keeps rows at their positions in the "
                 "text: expect it to fall apart; --policy h2o-cache:%td or sinks:%td, read at cache positions, stay within them\n",
                 trained_, policy_.c_str(), rows(), rows());
  }

 private:
  /// What it may hold without reaching the trained length by itself.
  Index rows() const { return std::min(session_.caches()[0].budget(), std::max<Index>(1, trained_ / 2)); }

  const Session<float>& session_;
  Index trained_;
  std::string policy_;
  bool said_ = false;
};

void run(example::CommandLine& line) {
  constexpr Index most_tokens = std::numeric_limits<Position>::max() / 2;
  const Index cores = std::max<Index>(1, static_cast<Index>(std::thread::hardware_concurrency()));
  const std::string choice = line.option("--policy", "sinks:4:252"), ids = line.option("--ids", ""),
                    text = line.option("--prompt", "Ownership is a set of rules that ");
  const Index tokens = line.option<Index>("--tokens", 200, 1, most_tokens),
              threads = line.option<Index>("--threads", 1, 1, cores);  // more than the machine has only wait for each other
  const float temperature = line.option("--temperature", 0.7f, 0.f, 100.f), top_p = line.option("--top-p", 0.9f, 0.f, 1.f);
  const auto seed = line.option<std::uint64_t>("--seed", 1, 0, std::numeric_limits<std::uint64_t>::max());
  const auto folder = example::model_folder(line);
  line.done();

  const Decoder<float> decoder = load_decoder(folder);
  const bool bytes = decoder.vocab_size() == 256;
  std::vector<Token> prompt;
  if (!ids.empty()) {
    for (const Index id : numbers("an id of --ids", ids, ',', 0, decoder.vocab_size() - 1)) prompt.push_back(static_cast<Token>(id));
  } else if (bytes) {
    prompt.push_back(0);
    for (const char c : text) prompt.push_back(static_cast<unsigned char>(c));
  } else {
    throw example::UsageError("the model has " + std::to_string(decoder.vocab_size()) +
                              " tokens and pith has no tokenizer: give --ids 1,2,3");
  }

  ThreadPool pool(threads);
  auto session =
      decoder.start(policy(choice, decoder),
                    {.max_prompt = static_cast<Index>(prompt.size()), .max_generated = tokens, .max_draft = 0, .executor = pool});
  TrainedLength trained(session, decoder.config().max_position_embeddings, choice);
  std::mt19937_64 rng(seed);
  const auto print = [&](Token t) {
    bytes ? std::printf("%c", char(t)) : std::printf("%d ", t);
    std::fflush(stdout);
    trained.look();
  };
  if (ids.empty()) std::printf("%s", text.c_str());
  std::fflush(stdout);
  const auto start = std::chrono::steady_clock::now();
  const auto logits = session.prefill(prompt);
  const GenerateResult result = generate(
      session, logits,
      {.max_tokens = tokens, .sampler = {.temperature = temperature, .top_p = top_p}, .stop_tokens = decoder.config().eos_token_id}, rng,
      print);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("\n\n%td tokens after %zu of prompt, %.0f tokens/s; %s: %td rows a head, %zu bytes of cache\n", result.count, prompt.size(),
              double(result.count) / seconds, choice.c_str(), session.caches()[0].size(0), session.cache_bytes());
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, usage, run); }
