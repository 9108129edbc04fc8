// An endless stream in constant memory: sinks + window at cache positions, far past the length the model was trained on.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <span>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "support/model_text.hpp"

using namespace pith;

namespace {

constexpr const char* usage = R"(infinite_stream [MODEL_FOLDER] [TOKENS] [PROMPT]

TOKENS (100000) are read one by one in constant memory; then a prompt of PROMPT tokens (16384) in one go.)";

void stream_and_prompt(example::CommandLine& line) {
  const auto folder = example::model_folder(line);
  const long long stream = line.next<long long>("TOKENS", 100'000, 1, 2'000'000'000);  // positions are 32 bit
  const Index prompt = line.next<Index>("PROMPT", 16'384, 1, 10'000'000);
  line.done();
  const Decoder<float> decoder = load_decoder(folder);
  const std::vector<Token> text = example::held_out(folder, decoder.vocab_size(), 1);
  const auto token = [&](long long i) { return text[static_cast<std::size_t>(i % static_cast<long long>(text.size()))]; };

  auto session = decoder.start(SinkWindow{.sinks = 4, .window = 124}, {.max_prompt = 1, .max_draft = 0});
  std::printf("%lld tokens, one by one, through %td rows a head (trained on %td):\n\n", stream, session.caches()[0].budget(),
              decoder.config().max_position_embeddings);
  std::printf("%12s %12s %16s %12s %12s\n", "position", "rows", "bytes held", "nats/byte", "tokens/s");
  example::Progress progress;
  double nats = 0;
  auto since = std::chrono::steady_clock::now();
  const long long every = std::max(1ll, stream / 10);
  for (long long i = 0; i < stream; ++i) {
    progress.show("stream", static_cast<double>(i), static_cast<double>(stream));
    nats -= example::log_probabilities(session.decode(token(i)).row(0))[static_cast<std::size_t>(token(i + 1))];
    if ((i + 1) % every == 0) {
      progress.clear();
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
      std::printf("%12d %12td %16zu %12.4f %12.0f\n", session.next_position(), session.caches()[0].size(0), session.bytes(),
                  nats / double(every), double(every) / seconds);
      nats = 0;
      since = std::chrono::steady_clock::now();
    }
  }

  std::vector<Token> tokens;
  for (Index i = 0; i < prompt; ++i) tokens.push_back(token(i));
  auto bounded = decoder.start(SinkWindow{.sinks = 4, .window = 1020}, {.max_prompt = prompt, .max_draft = 0});
  auto dense = decoder.start(Dense{}, {.max_prompt = 1, .max_tokens = prompt, .max_draft = 0});
  bounded.prefill(tokens);
  const double row = double(dense.cache_bytes()) / double(prompt * decoder.config().num_hidden_layers);
  std::printf("\nA prompt of %td tokens through %td rows a head, %td layers:\n", prompt, bounded.caches()[0].budget(),
              decoder.config().num_hidden_layers);
  std::printf("%24s %14zu bytes\n", "dense, all layers", dense.cache_bytes());
  std::printf("%24s %14zu bytes = %.2f layers of the prompt\n", "all that was allocated",
              bounded.cache_bytes() + bounded.prompt_buffer_bytes(),
              double(bounded.cache_bytes() + bounded.prompt_buffer_bytes()) / (row * double(prompt)));
  std::printf("%24s %14zu bytes\n", "of it held afterwards", bounded.cache_bytes());
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, usage, stream_and_prompt); }
