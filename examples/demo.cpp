// The main job: one trained model, several cache policies, what each costs in memory and in quality.
//
//   demo [MODEL_FOLDER] [CSV_FOLDER]
//
// Short: windows of 256 held-out bytes, the first 192 as a prompt, the last 64 measured one by one, within the length the model was
// trained on. Stream: thousands of bytes in one go, far past it. The same numbers go to short.csv and stream.csv.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <fstream>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "support/model_text.hpp"

using namespace pith;

namespace {

struct Contender {
  std::string name;
  Index rows;
  AnyPolicy<float> policy;
  bool leaves_trained_length = false;  ///< in a stream its distances grow without bound
};

std::vector<Contender> contenders(Index rows) {
  return {{"window", rows, Window{rows}},
          {"sinks + window", rows, SinkWindow{.sinks = 4, .window = rows - 4}},
          {"sinks + window at stream positions", rows, SinkWindow{.sinks = 4, .window = rows - 4, .reading = Reading::stream}, true},
          {"heavy hitters", rows, HeavyHitter{.heavy = rows / 2, .recent = rows - rows / 2}, true}};
}

constexpr Index window_bytes = 256, prompt_bytes = 192, measured = window_bytes - prompt_bytes;

/// What a session thinks of the measured bytes of every window: one row of log-probabilities a byte.
struct ShortRun {
  std::size_t bytes_held = 0;
  std::vector<std::vector<double>> thoughts;
};

ShortRun run_short(Session<float>& session, std::span<const std::span<const Token>> windows) {
  ShortRun run{session.cache_bytes(), {}};
  for (const std::span<const Token> window : windows) {  // token 0, then 256 bytes
    session.clear();
    run.thoughts.push_back(example::log_probabilities(session.prefill(window.first(prompt_bytes + 1)).row(0)));
    for (Index i = 1; i < measured; ++i)
      run.thoughts.push_back(example::log_probabilities(session.decode(window[static_cast<std::size_t>(prompt_bytes + i)]).row(0)));
  }
  return run;
}

struct Quality {
  double nats = 0, divergence = 0;
};

Quality compare(const ShortRun& run, const ShortRun& dense, std::span<const std::span<const Token>> windows) {
  Quality quality;
  for (std::size_t i = 0; i < run.thoughts.size(); ++i) {
    const auto truth = windows[i / measured][static_cast<std::size_t>(prompt_bytes + 1) + i % measured];
    quality.nats -= run.thoughts[i][static_cast<std::size_t>(truth)];
    for (std::size_t t = 0; t < run.thoughts[i].size(); ++t)
      quality.divergence += std::exp(dense.thoughts[i][t]) * (dense.thoughts[i][t] - run.thoughts[i][t]);
  }
  const double bytes = static_cast<double>(run.thoughts.size());
  return {quality.nats / bytes, quality.divergence / bytes};
}

void short_table(const Decoder<float>& decoder, const std::vector<Token>& text, const std::string& csv_folder, ExecutorRef executor) {
  constexpr std::size_t count = 64;
  std::vector<std::vector<Token>> owned;
  std::vector<std::span<const Token>> windows;
  const std::size_t apart = (text.size() - 1) / count;
  for (std::size_t w = 0; w < count && apart >= window_bytes; ++w) {
    owned.push_back({0});
    const auto first = text.begin() + 1 + static_cast<std::ptrdiff_t>(w * apart);
    owned.back().insert(owned.back().end(), first, first + window_bytes);
  }
  windows.assign(owned.begin(), owned.end());

  const SessionOptions options{.max_prompt = prompt_bytes + 1, .max_tokens = window_bytes + 1, .max_draft = 0, .executor = executor};
  auto full = decoder.start(Dense{}, options);
  const ShortRun dense = run_short(full, windows);
  std::ofstream csv(csv_folder + "/short.csv");
  csv << "policy,rows,bytes_held,nats_per_byte,kl_to_dense\n";
  std::printf("Short: %zu windows of %td held-out bytes, the first %td as prompt, the last %td measured\n\n", windows.size(), window_bytes,
              prompt_bytes, measured);
  std::printf("  %-35s %5s %11s %11s %12s\n", "policy", "rows", "bytes held", "nats/byte", "KL to dense");
  const auto line = [&](const std::string& name, Index rows, const ShortRun& run) {
    const Quality quality = compare(run, dense, windows);
    std::printf("  %-35s %5td %11zu %11.4f %12.4f\n", name.c_str(), rows, run.bytes_held, quality.nats, quality.divergence);
    csv << '"' << name << "\"," << rows << ',' << run.bytes_held << ',' << quality.nats << ',' << quality.divergence << '\n';
  };
  line("dense", full.caches()[0].capacity(), dense);
  for (std::size_t kind = 0; kind < contenders(16).size(); ++kind)
    for (const Index rows : {16, 32, 64, 128}) {
      const Contender contender = contenders(rows)[kind];
      auto session = decoder.start(contender.policy, options);
      line(contender.name, rows, run_short(session, windows));
    }
}

void stream_table(const Decoder<float>& decoder, std::span<const Token> text, const std::string& csv_folder, ExecutorRef executor) {
  constexpr std::size_t first = 1500;
  std::ofstream csv(csv_folder + "/stream.csv");
  csv << "policy,rows,bytes_held,nats_per_byte_first,nats_per_byte_all,past_trained_length\n";
  std::printf("\nStream: %zu held-out bytes in one go, one by one; the model was trained on %td\n\n", text.size() - 1,
              decoder.config().max_position_embeddings);
  std::printf("  %-35s %5s %11s %12s %11s\n", "policy", "rows", "bytes held", "first 1,500", "nats/byte");
  std::vector<Contender> all{{"dense", static_cast<Index>(text.size()), Dense{}, true}};
  for (const Index rows : {32, 128})
    for (Contender& contender : contenders(rows)) all.push_back(std::move(contender));
  for (const Contender& contender : all) {
    auto session = decoder.start(contender.policy,
                                 {.max_prompt = 1, .max_tokens = static_cast<Index>(text.size()), .max_draft = 0, .executor = executor});
    const double early = example::nats_per_byte(session, text.first(first + 1));
    const double late = example::nats_per_byte(session, text.subspan(first));
    const double whole = (early * first + late * static_cast<double>(text.size() - 1 - first)) / static_cast<double>(text.size() - 1);
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

}  // namespace

int main(int argc, char** argv) try {
  const auto start = std::chrono::steady_clock::now();
  const auto folder = example::model_folder(argc, argv);
  const std::string csv_folder = argc > 2 ? argv[2] : ".";
  ThreadPool pool;
  const Decoder<float> decoder = load_decoder(folder);
  const DecoderConfig& config = decoder.config();
  std::printf("%s: %s, %td layers, %td heads over %td kv heads of %td, trained on %td tokens\n\n", folder.filename().string().c_str(),
              config.model_type.c_str(), config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads, config.head_dim,
              config.max_position_embeddings);
  const std::vector<Token> text = example::byte_tokens(folder / "heldout.txt");
  short_table(decoder, text, csv_folder, pool);
  stream_table(decoder, std::span(text).first(std::min<std::size_t>(text.size(), 6001)), csv_folder, pool);
  continuation(decoder, std::span(text).first(241), pool);
  std::printf("\n%.1f seconds on %td threads; the same numbers are in %s/short.csv and %s/stream.csv\n",
              std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), pool.size(), csv_folder.c_str(),
              csv_folder.c_str());
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
