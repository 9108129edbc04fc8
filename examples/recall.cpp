// Which compression still knows the facts of a context: records in filler, a question for each, on a model trained for it.
//
//   one        the context is compressed before any question is known; every question is asked of the same cache and taken back
//   others     the first question and its answer are part of what is compressed; the other questions are asked
//   dialogue   all questions in turn after compression, true answers stay in the cache
#include <algorithm>
#include <cstdio>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <pith/io.hpp>
#include <pith/model/compact.hpp>
#include <pith/pith.hpp>

#include "support/command_line.hpp"
#include "support/policy_argument.hpp"
#include "support/recall_test.hpp"

using namespace pith;

namespace {

using Documents = std::vector<example::RecallDocument>;
using Share = RowBudget::Share;

constexpr Index repeat_chunk = 72;  ///< context and repeat together stay within the trained length

struct Cell {
  example::Recalled one, others, dialogue;
};

/// Reads a document and its answered first question, if `seen`, and compresses.
template <class Session, class Compress>
void ask(Session& session, const example::RecallDocument& document, Compress&& compress, Cell& cell) {
  const std::size_t questions = document.questions.size();
  for (const bool seen : {false, true}) {
    std::vector<Token> text = document.context;
    if (const std::vector<Token> first = document.answered(0); seen) text.insert(text.end(), first.begin(), first.end());
    session.clear();
    compress(session, text);
    for (std::size_t q = seen ? 1 : 0; q < questions; ++q)
      (seen ? cell.others : cell.one).note(q, example::knows(session, document.questions[q], false));
    for (std::size_t q = 0; !seen && q < questions; ++q) cell.dialogue.note(q, example::knows(session, document.questions[q], true));
  }
}

struct Method {
  std::string name;
  Share share = Share::head;
  enum class By { repeat, own, matched } by = By::repeat;
};

/// Compresses a session that has all rows: by scores of a repeat pass, or by matching the attention of the prompt's own queries or of a
/// repeat's.
void compress(Session<float>& session, const Decoder<float>& decoder, std::span<const Token> text, const Method& method, Index rows) {
  const RowBudget budget{.rows = rows, .share = method.share, .sinks = 1, .recent = 2};
  const DecoderConfig& config = decoder.config();
  ReferenceQueries<float> queries(config.attention(), config.num_hidden_layers);
  session.prefill(text, {.queries = queries.observer()});
  if (method.by == Method::By::repeat)
    return replace(session, keep_rows(session, kvzip_scores(session, text, {.chunk = repeat_chunk, .sinks = 1}), budget));
  if (method.by == Method::By::matched) {
    queries.clear();
    add_looking(session, text, repeat_chunk, queries);
  } else {
    turn_behind(decoder, session.next_position(), queries);
  }
  replace(session, compact(session, queries, {.budget = budget, .select = CompactOptions::Select::largest}));
}

void print(const std::string& name, const std::vector<Cell>& cells, std::optional<example::OutputFile>& csv,
           std::span<const Index> budgets) {
  std::printf("  %-24s", name.c_str());
  for (std::size_t b = 0; b < cells.size(); ++b) {
    std::printf("   %.3f/%.3f/%.3f", cells[b].one.share(), cells[b].others.share(), cells[b].dialogue.share());
    if (csv)
      *csv << name << ',' << budgets[b] << ',' << cells[b].one.share() << ',' << cells[b].others.share() << ',' << cells[b].dialogue.share()
           << '\n';
  }
  std::printf("\n");
  std::fflush(stdout);
}

constexpr const char* usage =
    R"(recall [MODEL_FOLDER] [DOCUMENTS]   answers that are right after compression, over DOCUMENTS documents (32)
  --file NAME    documents of the folder        [recall.jsonl]
  --csv FILE     the table as numbers, for recall.gp)";

void recall(example::CommandLine& line) {
  const std::string file = line.option("--file", "recall.jsonl"), csv_file = line.option("--csv", "");
  const std::filesystem::path folder = line.next(PITH_MODELS_DIR "/tiny-recall");
  const std::size_t count = line.next<std::size_t>("DOCUMENTS", 32, 1, 100'000);
  line.done();
  const Decoder<float> decoder = load_decoder(folder);
  const Documents documents = example::recall_documents(folder / file, count);
  const SessionOptions options{.max_prompt = 512, .max_tokens = 600, .max_generated = 128, .max_draft = 8, .keep_masses = true};
  const std::vector<Index> budgets{12, 24, 32, 64, 128};
  std::optional<example::OutputFile> csv;
  if (!csv_file.empty()) csv.emplace(csv_file);
  auto dense = decoder.start(Dense{}, options);
  Cell whole;
  for (const auto& document : documents)
    ask(
        dense, document, [](auto& session, std::span<const Token> text) { session.prefill(text); }, whole);
  std::printf(
      "%zu documents of %zu bytes with %zu records: share of answers that are right, by rows kept a head\none question of the same "
      "compressed cache / others, after one was seen / all in a dialogue\n\n  %-24s",
      documents.size(), documents.front().context.size() - 1, documents.front().questions.size(), "");
  for (const Index rows : budgets) std::printf("   %8td rows     ", rows);
  std::printf("\n");
  print("dense", std::vector<Cell>(budgets.size(), whole), csv, budgets);
  std::vector<Cell> by_model;
  const Method methods[] = {{"repeat: heads alone"},
                            {"repeat: layers share", Share::layer},
                            {"repeat: model shares", Share::model},
                            {"matching: own queries", Share::model, Method::By::own},
                            {"matching: repeat", Share::model, Method::By::matched}};
  example::Progress progress;
  double asked = 0;
  const double all_asked = double((std::size(methods) + policy_catalogue().size() - 2) * budgets.size() * documents.size());
  for (const Method& method : methods) {
    std::vector<Cell> cells(budgets.size());
    for (std::size_t b = 0; b < budgets.size(); ++b)
      for (const auto& document : documents) {
        progress.show(method.name, asked++, all_asked);
        ask(
            dense, document, [&](auto& session, std::span<const Token> text) { compress(session, decoder, text, method, budgets[b]); },
            cells[b]);
      }
    progress.clear();
    print(method.name, cells, csv, budgets);
    if (method.share == Share::model && method.by == Method::By::repeat) by_model = cells;
  }
  for (const PolicyEntry<float>& entry : policy_catalogue()) {
    if (entry.name == "dense" || entry.name == "text-prior") continue;  // bytes are text, which the latter keeps whole
    std::vector<Cell> cells(budgets.size());
    for (std::size_t b = 0; b < budgets.size(); ++b) {
      auto session = decoder.start(std::span<const AnyPolicy<float>>(example::per_layer(entry, budgets[b], decoder)), options);
      for (const auto& document : documents) {
        progress.show(std::string(entry.name), asked++, all_asked);
        ask(
            session, document, [](auto& s, std::span<const Token> text) { s.prefill(text); }, cells[b]);
      }
    }
    progress.clear();
    print(std::string(entry.name), cells, csv, budgets);
  }
  if (csv) csv->close();
  const std::size_t half = documents.front().questions.size() / 2;
  std::printf("\nA repeat pass whose budget the model shares, %td rows: first half of a dialogue %.3f, second half %.3f.\n",
              budgets.front(), by_model.front().dialogue.share(0, half), by_model.front().dialogue.share(half));
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, usage, recall); }
