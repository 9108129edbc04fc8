// Every policy of the catalogue at several budgets on the shipped model, in memory and in quality, within the trained length. A prompt of
// 192 bytes, then 64 bytes measured one by one.
#include <cstdio>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "support/held_out.hpp"
#include "support/model_text.hpp"
#include "support/policy_argument.hpp"

using namespace pith;

namespace {

void print_table() {
  std::printf("| policy | keeps | needs | cost of a step beside attention | paper |\n|---|---|---|---|---|\n");
  for (const PolicyEntry<float>& entry : policy_catalogue()) {
    const std::string paper(entry.paper), link = paper.empty() ? "" : "[" + paper + "](https://arxiv.org/abs/" + paper + ") ";
    std::printf("| `%s` | %s | %s | %s | %s|\n", std::string(entry.name).c_str(), std::string(entry.keeps).c_str(),
                std::string(entry.needs).c_str(), std::string(entry.cost).c_str(), link.c_str());
  }
}

constexpr const char* usage =
    R"(policy_shootout [MODEL_FOLDER] [WINDOWS]     the table of numbers, over WINDOWS windows of held-out bytes (32)
policy_shootout --table                      the table of policies in include/pith/README.md)";

void shootout(example::CommandLine& line) {
  if (line.flag("--table")) {
    line.done();
    return print_table();
  }
  const auto folder = example::model_folder(line);
  const std::size_t count = line.next<std::size_t>("WINDOWS", 32, 1, 100'000);
  line.done();
  ThreadPool pool;
  const Decoder<float> decoder = load_decoder(folder);
  const std::vector<Token> text = example::held_out(folder, decoder.vocab_size(), example::window_bytes);
  const example::Windows windows(text, count);
  const SessionOptions options{.max_prompt = example::prompt_bytes + 1,
                               .max_tokens = example::window_bytes + 1,
                               .max_generated = example::measured,
                               .max_draft = 0,
                               .executor = pool};
  auto full = decoder.start(Dense{}, options);
  const example::ShortRun dense = example::run_short(full, windows.all());
  std::printf("%zu windows of %td bytes, %td measured; dense: %.4f nats/byte in %zu bytes\n\n", windows.all().size(), example::window_bytes,
              example::measured, example::compare(dense, dense, windows.all()).nats, dense.bytes_held);
  std::printf("  %-14s", "");
  for (const Index rows : {16, 32, 64}) std::printf("   %3td rows: bytes  nats/byte       KL", rows);
  std::printf("\n");
  example::Progress progress;
  double runs = 0;
  const double all_runs = 3 * static_cast<double>(policy_catalogue().size() - 1);
  for (const PolicyEntry<float>& entry : policy_catalogue()) {
    if (entry.name == "dense") continue;
    std::string cells;
    for (const Index rows : {16, 32, 64}) {
      progress.show(std::string(entry.name), runs++, all_runs);
      char cell[64];
      auto session = decoder.start(std::span<const AnyPolicy<float>>(example::per_layer(entry, rows, decoder)), options);
      if (entry.name == "text-prior") {  // bytes are text, so it would keep them all
        std::snprintf(cell, sizeof cell, "   %15s  %9s %8s", "all text stays", "", "");
        cells += cell;
        continue;
      }
      const example::ShortRun run = example::run_short(session, windows.all());
      const example::Quality quality = example::compare(run, dense, windows.all());
      std::snprintf(cell, sizeof cell, "   %15zu  %9.4f %8.4f", run.bytes_held, quality.nats, quality.divergence);
      cells += cell;
    }
    progress.clear();
    std::printf("  %-14s%s\n", std::string(entry.name).c_str(), cells.c_str());
  }
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, usage, shootout); }
