// A model that drafts for itself: with prompt lookup, with its weights rounded to int8, and with the same weights over a small cache.
// Measures acceptance, memory traffic and speed.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "support/model_text.hpp"

using namespace pith;

namespace {

constexpr Index prompt_tokens = 192, new_tokens = 400, target_rows = 128, draft_tokens = 4;
constexpr SamplerOptions sampled{.temperature = 0.7f, .top_p = 0.95f}, greedy{.temperature = 0};

/// Bytes read per pass: the weights once for any number of tokens, the rows of a cache once for each token.
struct Reads {
  double weights = 0, cache = 0;
};

double row_bytes(const DecoderConfig& c) {
  return 2. * double(sizeof(float)) * double(c.num_hidden_layers * c.num_key_value_heads * c.head_dim);
}
double weight_bytes(const Decoder<float>& decoder) {  // without the embedding table, of which a pass reads only single rows
  return double(decoder.weights().bytes() - decoder.weights().embed_tokens.bytes());
}

struct Run {
  SpeculativeStats stats;
  double seconds = 0;
  double bytes_per_token = 0;
};

template <class F> double seconds_of(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Session<float> target_session(const Decoder<float>& decoder) {
  return decoder.start(SinkWindow{.sinks = 4, .window = target_rows - 4}, {.max_prompt = prompt_tokens});
}

/// The best time of three runs.
template <class F> double best_of_three(F&& f) { return std::min({f(), f(), f()}); }

Run plain(const Decoder<float>& decoder, std::span<const Token> prompt, const SamplerOptions& sampler) {
  Run run;
  run.seconds = best_of_three([&] {
    auto target = target_session(decoder);
    std::mt19937_64 rng(1);
    const auto logits = target.prefill(prompt);
    return seconds_of([&] { generate(target, logits, {.max_tokens = new_tokens, .sampler = sampler}, rng, [](Token) {}); });
  });
  run.bytes_per_token = weight_bytes(decoder) + double(target_rows) * row_bytes(decoder.config());
  return run;
}

/// `draft_reads`: bytes read by one pass of the draft.
template <class MakeDraft>
Run speculate(const Decoder<float>& decoder, std::span<const Token> prompt, const SamplerOptions& sampler, MakeDraft&& make_draft,
              const Reads& draft_reads, DraftLength length = DraftLength::fixed, float guess_cost = 0) {
  Run run;
  run.seconds = best_of_three([&] {
    auto target = target_session(decoder);
    auto draft = make_draft();
    SpeculativeDecoder spec(target, draft, {.draft_tokens = draft_tokens, .sampler = sampler, .length = length, .guess_cost = guess_cost});
    std::mt19937_64 rng(1);
    spec.prefill(prompt);
    const double seconds = seconds_of([&] { generate(spec, {.max_tokens = new_tokens}, rng, [](Token) {}); });
    run.stats = spec.stats();
    return seconds;
  });
  const double steps = double(run.stats.steps), drafted = double(run.stats.drafted);
  const double of_target = steps * weight_bytes(decoder) + (steps + drafted) * double(target_rows) * row_bytes(decoder.config());
  run.bytes_per_token = (of_target + drafted * (draft_reads.weights + draft_reads.cache)) / double(run.stats.tokens);
  return run;
}

void print_run(const char* text, const char* draft, const Run& run, const Run& alone) {
  std::printf("  %-8s %-32s", text, draft);
  if (run.stats.steps == 0) {
    std::printf(" %9s %9.2f", "", 1.);
  } else {
    std::printf(" %8.1f%% %9.2f", 100 * run.stats.acceptance_rate(), double(run.stats.tokens) / double(run.stats.steps));
  }
  std::printf(" %12.0f %8.2fx %8.2fx\n", run.bytes_per_token, alone.bytes_per_token / run.bytes_per_token, alone.seconds / run.seconds);
}

/// Expected tokens of a step with γ guesses of acceptance probability α: 1 + α + … + α^γ.
double tokens_per_step(double alpha, Index guesses) {
  double tokens = 1, power = 1;
  for (Index i = 0; i < guesses; ++i) tokens += power *= alpha;
  return tokens;
}

/// Reduction in bytes read for a text, with the best of 1 … 8 guesses, if each guess reads all weights and `draft_rows` rows.
double gain(double weights, double row, double context, double draft_rows, double alpha, bool cache_read_once) {
  double best = 0;
  for (Index guesses = 1; guesses <= 8; ++guesses) {
    const double n = double(guesses);
    const double step = n * (weights + draft_rows * row) + weights + (cache_read_once ? 1 : n + 1) * context * row;
    best = std::max(best, (weights + context * row) * tokens_per_step(alpha, guesses) / step);
  }
  return best;
}

int self_speculation(example::CommandLine& line) {
  const auto folder = example::model_folder(line);
  line.done();
  const Decoder<float> decoder = load_decoder(folder), rounded = load_decoder(folder, {.weights = WeightsLayout::int8});
  const DecoderConfig& config = decoder.config();
  const std::vector<Token> text = example::held_out(folder, decoder.vocab_size(), 2000);
  const double weights = weight_bytes(decoder), row = row_bytes(config);

  const std::span<const Token> prompt = std::span<const Token>(text).first(prompt_tokens);
  auto session = target_session(decoder);
  session.prefill(prompt);
  double one = 1e9, together = 1e9;
  example::Progress progress;
  for (int i = 0; i < 200; ++i) {
    progress.show("passes of one token and of five", i, 200);
    one = std::min(one, seconds_of([&] { session.decode(prompt.first(1)); }));
    together = std::min(together, seconds_of([&] { session.decode(prompt.first(5)); }));
  }
  progress.clear();
  const double five = together / one;

  std::printf(
      "%.2f MB of weights read by a pass, %.0f bytes by a row of cache; a prompt of %td tokens and %td new ones; 4 sinks and the\n"
      "newest %td rows in the target; up to %td guesses a pass. Sampled: temperature %.1f, top-p %.2f. Here five tokens together\n"
      "take %.1f times as long as one.\n\n",
      weights / 1e6, row, prompt_tokens, new_tokens, target_rows - 4, draft_tokens, double(sampled.temperature), double(sampled.top_p),
      five);
  const std::span<const Token> held_out = std::span<const Token>(text).first(2000);
  const auto nats = [&](const Decoder<float>& by) {
    auto reader = target_session(by);
    return example::nats_per_byte(reader, held_out);
  };
  std::printf("In int8 the weights are %.2f MB, and %zu held-out bytes take %.4f nats each instead of %.4f.\n\n",
              weight_bytes(rounded) / 1e6, held_out.size(), nats(rounded), nats(decoder));
  std::printf("  %-8s %-32s %9s %9s %12s %9s %9s\n", "text", "draft", "accepted", "per pass", "bytes/token", "fewer by", "faster by");
  double alpha = 0;
  constexpr double all_runs = 2 * 6;
  double runs = 0;
  for (const auto& [text_name, sampler_of] : {std::pair{"sampled", sampled}, std::pair{"greedy", greedy}}) {
    const char* const name = text_name;
    const SamplerOptions& sampler = sampler_of;
    Run alone;
    const auto report = [&](const std::string& draft, const auto& measure) {
      progress.show(std::string(name) + ", draft: " + draft, runs++, all_runs);
      const Run run = measure();
      if (draft == "none") alone = run;
      progress.clear();
      print_run(name, draft.c_str(), run, alone);
      return run;
    };
    report("none", [&] { return plain(decoder, prompt, sampler); });
    const auto lookup = [&] { return PromptLookup(config.vocab_size); };
    report("prompt lookup", [&] { return speculate(decoder, prompt, sampler, lookup, {}); });
    const float guess_cost = float((five - 1) / 4);
    report("prompt lookup, adapted length",
           [&] { return speculate(decoder, prompt, sampler, lookup, {}, DraftLength::adapted, guess_cost); });
    const auto start_rounded = [&] { return target_session(rounded); };
    const Reads rounded_reads{weight_bytes(rounded), double(target_rows) * row};
    report("int8 weights", [&] { return speculate(decoder, prompt, sampler, start_rounded, rounded_reads); });
    for (const Index window : {12, 44}) {
      const auto start = [&] { return decoder.start(SinkWindow{.sinks = 4, .window = window}, {.max_prompt = prompt_tokens}); };
      const Run run = report("same weights, " + std::to_string(window + 4) + " rows of cache", [&] {
        return speculate(decoder, prompt, sampler, start, {weights, double(window + 4) * row});
      });
      if (sampler.temperature > 0 && window == 44) alpha = double(run.stats.accepted) / double(run.stats.accepted + run.stats.rejected);
    }
  }
  std::printf(
      "\n  These weights fit into the core's own caches, so \"faster by\" measures arithmetic; \"fewer by\" is what counts once weights\n"
      "  come from memory.\n");

  // Drafting with the same weights: a guess, accepted with probability α, reads all weights and 48 rows, and saves at best one plain token,
  // which reads all weights and the whole context.
  std::printf(
      "\nSame weights over 48 rows as a draft, a guess accepted with probability %.2f, by the bytes of a growing Dense target,\n"
      "the best of 1 to 8 guesses:\n\n",
      alpha);
  std::printf("  %12s %16s %28s %28s\n", "context", "cache / weights", "context read once a pass", "read again for each token");
  for (Index context = 256; context <= 65536; context *= 2)
    std::printf(
        "  %12td %16.2f %21.2fx %s %21.2fx %s\n", context, double(context) * row / weights,
        gain(weights, row, double(context), 48, alpha, true), gain(weights, row, double(context), 48, alpha, true) > 1 ? "pays" : "    ",
        gain(weights, row, double(context), 48, alpha, false), gain(weights, row, double(context), 48, alpha, false) > 1 ? "pays" : "    ");
  Index pays = 1;
  while (pays < 100'000'000 && gain(weights, row, double(pays), 48, alpha, true) <= 1) ++pays;
  std::printf(
      "\n  It starts to pay at a context of %td tokens, whose rows are %.2f times the weights, if a layer's rows stay in the\n"
      "  last-level cache while the tokens of a pass attend to them one after the other. Where they do not, each token reads them\n"
      "  again and a same-weights draft never pays: it reads what it saves. A draft has to read less: the text itself, narrower\n"
      "  weights, a smaller model.\n",
      pays, double(pays) * row / weights);
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, "self_speculation [FOLDER]", self_speculation); }
