// Compaction by attention matching against eviction on the shipped model: how far the next bytes' distributions are from those of the full
// cache. A prompt of 192 bytes, then 64 bytes measured one by one.
#include <algorithm>
#include <cstdio>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/model/compact.hpp>
#include <pith/pith.hpp>

#include "support/held_out.hpp"
#include "support/model_text.hpp"
#include "support/policy_argument.hpp"

using namespace pith;

namespace {

constexpr Index budgets[] = {12, 16, 24, 32, 48, 64};

struct Variant {
  const char* name;
  CompactOptions options = {};
  bool turned = true;  ///< the prompt's own queries, turned behind it
};

std::vector<Variant> variants() {
  using Select = CompactOptions::Select;
  using Share = RowBudget::Share;
  return {{"keys alone", {.select = Select::mean, .masses = false, .values = false}},
          {"keys and masses", {.select = Select::mean, .values = false}},
          {"keys and values", {.select = Select::mean, .masses = false}},
          {"keys, masses, values", {.select = Select::mean}},
          {"- by rms attention", {}},
          {"- by largest attention", {.select = Select::largest}},
          {"- queries not turned", {.select = Select::mean}, false},
          {"- layers share", {.budget = {.share = Share::layer}, .select = Select::mean}},
          {"- the model shares", {.budget = {.share = Share::model}, .select = Select::mean}}};
}

void print_row(const std::string& name, const std::vector<double>& divergence) {
  std::printf("  %-22s", name.c_str());
  for (const double kl : divergence) std::isnan(kl) ? std::printf("       —") : std::printf("  %6.4f", kl);
  std::printf("\n");
}

constexpr const char* usage =
    "compaction [MODEL_FOLDER] [WINDOWS]     divergence from the full cache, over WINDOWS windows of held-out bytes (32)";

void measure(example::CommandLine& line) {
  const auto folder = example::model_folder(line);
  const std::size_t count = line.next<std::size_t>("WINDOWS", 32, 1, 100'000);
  line.done();
  const Decoder<float> decoder = load_decoder(folder);
  const std::vector<Token> text = example::held_out(folder, decoder.vocab_size(), example::window_bytes);
  const example::Windows windows(text, count);
  const SessionOptions options{.max_prompt = example::prompt_bytes + 1,
                               .max_tokens = example::window_bytes + 1,
                               .max_generated = example::measured,
                               .max_draft = 0,
                               .keep_masses = true};
  auto session = decoder.start(Dense{}, options);
  const example::ShortRun dense = example::run_short(session, windows.all());
  std::printf("%zu windows of %td bytes, %td measured: divergence from the full cache by rows kept of %td a head\n\n  %-22s",
              windows.all().size(), example::window_bytes, example::measured, example::prompt_bytes + 1, "");
  for (const Index rows : budgets) std::printf("  %6td", rows);
  std::printf("\n");
  std::vector<double> matched;
  example::Progress progress;
  double runs_done = 0;
  const std::vector<Variant> all_variants = variants();
  const double all_runs = double((all_variants.size() + policy_catalogue().size() - 2) * std::size(budgets));
  for (const Variant& variant : all_variants) {
    std::vector<example::ShortRun> runs(std::size(budgets));
    for (const std::span<const Token> window : windows.all()) {
      progress.show(variant.name, runs_done, all_runs);
      runs_done += double(std::size(budgets)) / double(windows.all().size());
      ReferenceQueries<float> queries(decoder.config().attention(), decoder.config().num_hidden_layers);
      session.clear();
      session.prefill(window.first(example::prompt_bytes + 1), {.queries = queries.observer()});
      if (variant.turned) turn_behind(decoder, session.next_position(), queries);
      const auto state = session.snapshot();
      for (std::size_t b = 0; b < std::size(budgets); ++b) {
        CompactOptions how = variant.options;
        how.budget.rows = budgets[b];
        how.budget.sinks = 2;
        session.restore(state);
        replace(session, compact(session, queries, how));
        runs[b].thoughts.push_back(example::log_probabilities(session.logits().row(0)));
        for (Index i = 1; i < example::measured; ++i)
          runs[b].thoughts.push_back(
              example::log_probabilities(session.decode(window[static_cast<std::size_t>(example::prompt_bytes + i)]).row(0)));
      }
    }
    std::vector<double> divergence;
    for (const example::ShortRun& run : runs) divergence.push_back(example::compare(run, dense, windows.all()).divergence);
    progress.clear();
    print_row(variant.name, divergence);
    if (std::string(variant.name) == "keys, masses, values") matched = divergence;
  }
  std::printf("\n");
  std::vector<double> best(std::size(budgets), std::numeric_limits<double>::infinity());
  for (const PolicyEntry<float>& entry : policy_catalogue()) {
    if (entry.name == "dense" || entry.name == "text-prior") continue;  // bytes are text, which the latter keeps whole
    std::vector<double> divergence;
    for (std::size_t b = 0; b < std::size(budgets); ++b) {
      progress.show(std::string(entry.name), runs_done++, all_runs);
      auto evicting = decoder.start(std::span<const AnyPolicy<float>>(example::per_layer(entry, budgets[b], decoder)), options);
      divergence.push_back(example::compare(example::run_short(evicting, windows.all()), dense, windows.all()).divergence);
      best[b] = std::min(best[b], divergence.back());
    }
    progress.clear();
    print_row(std::string(entry.name), divergence);
  }
  std::printf("\n  %-22s", "best policy / matching");
  for (std::size_t b = 0; b < std::size(budgets); ++b) std::printf("  %5.2fx", best[b] / matched[b]);
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, usage, measure); }
