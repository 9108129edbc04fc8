// Compares cache policies on one trained model, in memory and in quality.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "support/held_out.hpp"
#include "support/model_text.hpp"

using namespace pith;
using example::measured, example::prompt_bytes, example::window_bytes, example::ShortRun, example::run_short;

namespace {

struct Contender {
  std::string name;
  Index rows;
  AnyPolicy<float> policy;
  bool leaves_trained_length = false;  ///< in a stream, its distances grow without bound
};

std::vector<Contender> contenders(Index rows) {
  return {{"window", rows, Window{rows}},
          {"sinks + window", rows, SinkWindow{.sinks = 4, .window = rows - 4}},
          {"sinks + window at text positions", rows, SinkWindow{.sinks = 4, .window = rows - 4, .positions = RopePositions::text}, true},
          {"heavy hitters", rows, HeavyHitter{.heavy = rows / 2, .recent = rows - rows / 2}, true},
          {"heavy hitters at cache positions", rows, AtCachePositions(HeavyHitter{.heavy = rows / 2, .recent = rows - rows / 2})}};
}

void short_table(const Decoder<float>& decoder, const std::vector<Token>& text, example::OutputFile& csv, ExecutorRef executor) {
  const example::Windows held_out(text, 64);
  const auto windows = held_out.all();
  const SessionOptions options{.max_prompt = prompt_bytes + 1, .max_tokens = window_bytes + 1, .max_draft = 0, .executor = executor};
  auto full = decoder.start(Dense{}, options);
  const ShortRun dense = run_short(full, windows);
  csv << "policy,rows,bytes_held,nats_per_byte,kl_to_dense\n";
  std::printf("Short: %zu windows of %td held-out bytes, the first %td as prompt, the last %td measured\n\n", windows.size(), window_bytes,
              prompt_bytes, measured);
  std::printf("  %-35s %5s %11s %11s %12s\n", "policy", "rows", "bytes held", "nats/byte", "KL to dense");
  example::Progress progress;
  const auto line = [&](const std::string& name, Index rows, const ShortRun& run) {
    progress.clear();
    const example::Quality quality = example::compare(run, dense, windows);
    std::printf("  %-35s %5td %11zu %11.4f %12.4f\n", name.c_str(), rows, run.bytes_held, quality.nats, quality.divergence);
    csv << '"' << name << "\"," << rows << ',' << run.bytes_held << ',' << quality.nats << ',' << quality.divergence << '\n';
  };
  line("dense", full.caches()[0].capacity(), dense);
  const std::size_t kinds = contenders(16).size();
  double lines = 0;
  for (std::size_t kind = 0; kind < kinds; ++kind)
    for (const Index rows : {16, 32, 64, 128}) {
      const Contender contender = contenders(rows)[kind];
      progress.show("short windows", lines++, 4 * static_cast<double>(kinds));
      auto session = decoder.start(contender.policy, options);
      line(contender.name, rows, run_short(session, windows));
    }
}

void stream_table(const Decoder<float>& decoder, std::span<const Token> text, example::OutputFile& csv, ExecutorRef executor) {
  constexpr std::size_t first = 1500;
  csv << "policy,rows,bytes_held,nats_per_byte_first,nats_per_byte_all,past_trained_length\n";
  std::printf("\nStream: %zu held-out bytes in one go, one by one; the model was trained on %td\n\n", text.size() - 1,
              decoder.config().max_position_embeddings);
  std::printf("  %-35s %5s %11s %12s %11s\n", "policy", "rows", "bytes held", "first 1,500", "nats/byte");
  std::vector<Contender> all{{"dense", static_cast<Index>(text.size()), Dense{}, true}};
  for (const Index rows : {32, 128})
    for (Contender& contender : contenders(rows)) all.push_back(std::move(contender));
  example::Progress progress;
  double lines = 0;
  for (const Contender& contender : all) {
    progress.show("stream", lines++, static_cast<double>(all.size()));
    auto session = decoder.start(contender.policy,
                                 {.max_prompt = 1, .max_tokens = static_cast<Index>(text.size()), .max_draft = 0, .executor = executor});
    const double early = example::nats_per_byte(session, text.first(first + 1));
    const double late = example::nats_per_byte(session, text.subspan(first));
    const double whole = (early * first + late * static_cast<double>(text.size() - 1 - first)) / static_cast<double>(text.size() - 1);
    progress.clear();
    std::printf("  %-35s %5td %11zu %12.4f %11.4f%s\n", contender.name.c_str(), contender.rows, session.cache_bytes(), early, whole,
                contender.leaves_trained_length ? "  past the trained length" : "");
    csv << '"' << contender.name << "\"," << contender.rows << ',' << session.cache_bytes() << ',' << early << ',' << whole << ','
        << contender.leaves_trained_length << '\n';
  }
}

void continuation(const Decoder<float>& decoder, std::span<const Token> prompt, ExecutorRef executor) {
  auto session = decoder.start(SinkWindow{.sinks = 4, .window = 124}, {.executor = executor});
  std::mt19937_64 rng(7);
  std::printf("\nA continuation under 4 sinks + 124 newest rows (temperature 0.7, top-p 0.9):\n\n  ...");
  const auto print = [](Token t) { std::printf(t == '\n' ? "\n  " : "%c", char(t)); };
  for (const Token t : prompt.last(120)) print(t);
  std::printf("|");
  const auto logits = session.prefill(prompt);
  generate(session, logits, {.max_tokens = 320, .sampler = {.temperature = 0.7f, .top_p = 0.9f}}, rng, print);
  std::printf("\n");
}

constexpr const char* usage = R"(demo [MODEL_FOLDER] [CSV_FOLDER]

Short: windows of 256 held-out bytes, the first 192 as a prompt, the last 64 measured one by one, within the length the model was
trained on. Stream: thousands of bytes in one go, far past it. The same numbers go to short.csv and stream.csv in CSV_FOLDER.)";

void demo(example::CommandLine& line) {
  const auto start = std::chrono::steady_clock::now();
  const auto folder = example::model_folder(line);
  const std::filesystem::path csv_folder = line.next(".");
  line.done();
  ThreadPool pool;
  const Decoder<float> decoder = load_decoder(folder);
  example::OutputFile short_csv(csv_folder / "short.csv"), stream_csv(csv_folder / "stream.csv");
  const DecoderConfig& config = decoder.config();
  std::printf("%s: %s, %td layers, %td heads over %td kv heads of %td, trained on %td tokens\n\n", folder.filename().string().c_str(),
              config.model_type.c_str(), config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads, config.head_dim,
              config.max_position_embeddings);
  const std::vector<Token> text = example::held_out(folder, decoder.vocab_size(), 64 * window_bytes);
  short_table(decoder, text, short_csv, pool);
  short_csv.close();
  stream_table(decoder, std::span(text).first(6001), stream_csv, pool);
  stream_csv.close();
  continuation(decoder, std::span(text).first(241), pool);
  std::printf("\n%.1f seconds on %td threads; the same numbers are in %s/short.csv and %s/stream.csv\n",
              std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), pool.size(), csv_folder.string().c_str(),
              csv_folder.string().c_str());
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, usage, demo); }
