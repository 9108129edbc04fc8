// An adapter, an evicting cache, merging and speculation on one unconverted model, each alone and all together, with cost and effect.
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

#include "support/model_text.hpp"

using namespace pith;
namespace fs = std::filesystem;

namespace {

constexpr Index prompt_bytes = 400, continued = 300, measured = 100;

/// A rank-8 LoRA on every projection, as PEFT would write it; its small random numbers cost as much as trained ones.
ModelAdapter<float> peft_adapter(const Decoder<float>& decoder) {
  const fs::path folder = fs::temp_directory_path() / ("pith-compose-" + std::to_string(std::random_device{}()));
  std::mt19937_64 rng(3);
  LoraFolderWriter<float> writer({.base_model = "tiny-prose"});
  const AdapterTarget target = decoder.adapter_target();
  for (Index layer = 0; layer < target.num_layers; ++layer)
    for (std::size_t p = 0; p < num_projections; ++p) {
      constexpr Index rank = 8;
      LowRankTerm<float> term{Matrix<float>(rank, target.in(Projection(p))), Matrix<float>(rank, target.out(Projection(p))),
                              Vector<float>::Ones(rank)};
      for (Matrix<float>* m : {&term.a_rows, &term.b_rows})
        for (Index i = 0; i < m->size(); ++i) m->data()[i] = 0.02f * normal<float>(rng);
      writer.add("model.layers." + std::to_string(layer) + "." + projection_names[p], term);
    }
  writer.write(folder);
  ModelAdapter<float> adapter = load_adapter(folder, decoder);
  fs::remove_all(folder);  // already loaded
  return adapter;
}

struct Features {
  bool adapted = false, evicts = false, merges = false, speculates = false;
};

struct Composition {
  const Decoder<float>& decoder;
  const ModelAdapter<float>& adapter;
  std::span<const Token> prompt, future;  ///< the original text

  Session<float> start(const Features& f) const {
    const AnyPolicy<float> policy = f.evicts ? AnyPolicy<float>(HeavyHitter{.heavy = 64, .recent = 64}) : AnyPolicy<float>(Dense{});
    const AnyMerge<float> merge = f.merges ? AnyMerge<float>(Pivotal{}) : AnyMerge<float>();
    auto session = decoder.start(policy, {.max_prompt = prompt_bytes + 1, .max_tokens = 2000}, merge);
    if (f.adapted) session.use(&adapter);
    return session;
  }

  double divergence(const Features& f) const {
    auto full = start({f.adapted, false, false, false}), session = start(f);
    std::vector<double> a = example::log_probabilities(full.prefill(prompt).row(0)),
                        b = example::log_probabilities(session.prefill(prompt).row(0));
    double sum = 0;
    for (const Token token : future) {
      for (std::size_t t = 0; t < a.size(); ++t) sum += std::exp(a[t]) * (a[t] - b[t]);
      a = example::log_probabilities(full.decode(token).row(0));
      b = example::log_probabilities(session.decode(token).row(0));
    }
    return sum / static_cast<double>(future.size());
  }

  /// Prints a line and returns the text.
  std::vector<Token> run(const char* name, const Features& f) const {
    auto session = start(f);
    std::mt19937_64 rng(1);
    std::vector<Token> text;
    const auto add = [&](Token token) { text.push_back(token); };
    const GenerateOptions options{.max_tokens = continued, .sampler = {.temperature = 0}};
    double passes = continued;
    std::chrono::steady_clock::time_point begin;
    if (f.speculates) {
      PromptLookup<float> draft(session.vocab_size(), {.ngram = 3});
      SpeculativeDecoder spec(session, draft, {.draft_tokens = 4, .sampler = options.sampler, .length = DraftLength::adapted});
      spec.prefill(prompt);
      begin = std::chrono::steady_clock::now();
      generate(spec, {.max_tokens = continued}, rng, add);
      passes = static_cast<double>(spec.stats().steps);
    } else {
      const auto logits = session.prefill(prompt);
      begin = std::chrono::steady_clock::now();
      generate(session, logits, options, rng, add);
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    double rows = 0;
    for (const auto& cache : session.caches())
      for (Index h = 0; h < cache.shape().num_kv_heads; ++h)
        rows += static_cast<double>(cache.size(h) * cache.shape().head_dim * 2) * sizeof(float);
    const double weights = static_cast<double>(decoder.weights().bytes() + (f.adapted ? adapter.bytes() : 0));
    std::printf("  %-36s %9.0f %9.0f %9.2f %10.0f %9.4f\n", name, rows, weights * passes / continued + rows, continued / passes,
                continued / seconds, divergence(f));
    return text;
  }
};

constexpr const char* usage = R"(compose [FOLDER]

A text of held-out bytes is read as a prompt, then continued greedily. Bytes are what a token reads: weights once a pass, the rows of the
cache for each token. KL is of the next bytes of the true text, to the same model with a full cache and the same adapter.)";

int compose(example::CommandLine& line) {
  const auto folder = example::model_folder(line);
  line.done();
  const Decoder<float> decoder = load_decoder(folder);
  const ModelAdapter<float> adapter = peft_adapter(decoder);
  const std::vector<Token> text = example::held_out(folder, decoder.vocab_size(), prompt_bytes + measured);
  const Composition all{decoder, adapter, std::span(text).first(prompt_bytes + 1), std::span(text).subspan(prompt_bytes + 1, measured)};
  std::printf("%td bytes read, %td continued greedily; budget of the cache 128 rows a head\n\n", prompt_bytes, continued);
  std::printf("  %-36s %9s %9s %9s %10s %9s\n", "", "bytes", "read per", "tokens", "tokens per", "KL to");
  std::printf("  %-36s %9s %9s %9s %10s %9s\n", "", "of rows", "token", "per pass", "second", "full cache");
  all.run("nothing", {});
  all.run("adapter", {.adapted = true});
  const auto evicted = all.run("heavy hitters", {.evicts = true});
  const auto merged = all.run("heavy hitters, pivotal merging", {.evicts = true, .merges = true});
  all.run("speculation", {.speculates = true});
  const bool same = all.run("heavy hitters, speculation", {.evicts = true, .speculates = true}) == evicted &&
                    all.run("… and merging", {.evicts = true, .merges = true, .speculates = true}) == merged;
  all.run("everything", {.adapted = true, .evicts = true, .merges = true, .speculates = true});
  std::printf("\nspeculation changed %s\n", same ? "no byte of a text" : "A TEXT");
  return same ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, usage, compose); }
