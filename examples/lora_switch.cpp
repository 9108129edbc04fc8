// Two PEFT folders on one model: the cost of a switch, their effect on a text, a batch with a different adapter per conversation, with and
// without speculation, and activated adapters that wake one after the other in one conversation.
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "support/model_text.hpp"

using namespace pith;
namespace fs = std::filesystem;

namespace {

LowRankTerm<float> noise(Index out, Index in, std::mt19937_64& rng) {
  constexpr Index rank = 8;
  LowRankTerm<float> term{Matrix<float>(rank, in), Matrix<float>(rank, out), Vector<float>::Constant(rank, 2)};
  for (Matrix<float>* m : {&term.a_rows, &term.b_rows})
    for (Index i = 0; i < m->size(); ++i) m->data()[i] = 0.003f * normal<float>(rng);
  return term;
}

/// Rank 1: swaps the rows of the head's weight that produce the logits of two bytes.
LowRankTerm<float> swapped(const Matrix<float>& head, Token a, Token b) {
  LowRankTerm<float> term{head.row(a) - head.row(b), Matrix<float>::Zero(1, head.rows()), Vector<float>::Ones(1)};
  term.b_rows(0, a) = -1;
  term.b_rows(0, b) = 1;
  return term;
}

void write_adapter(const Decoder<float>& decoder, const fs::path& folder, Token a, Token b) {
  std::mt19937_64 rng(static_cast<std::uint64_t>(b));
  LoraFolderWriter<float> writer({.base_model = "tiny-prose"});
  const AdapterTarget target = decoder.adapter_target();
  for (Index layer = 0; layer < target.num_layers; ++layer)
    for (std::size_t p = 0; p < num_projections; ++p)
      writer.add("model.layers." + std::to_string(layer) + "." + projection_names[p],
                 noise(target.out(Projection(p)), target.in(Projection(p)), rng));
  Matrix<float> head(target.vocab, target.hidden);
  decoder.weights().lm_head.copy_weight(0, head);
  writer.add("lm_head", swapped(head, a, b));
  writer.write(folder);
}

struct Timer {
  std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); }
};

std::string continued(Session<float>& session, std::span<const Token> prompt, Index tokens) {
  std::string text;
  std::mt19937_64 rng(5);
  session.clear();
  generate(session, session.prefill(prompt), {.max_tokens = tokens, .sampler = {.temperature = 0.6f, .top_p = 0.9f}}, rng,
           [&](Token token) { text += token >= ' ' && token < 127 ? static_cast<char>(token) : ' '; });
  return text;
}

Token likeliest(ConstMatrixRef<float> logits) {
  Index best = 0;
  logits.row(logits.rows() - 1).maxCoeff(&best);
  return static_cast<Token>(best);
}

/// Five activated adapters over one conversation: each begins at its invocation, over rows that the base read once. Returns whether each
/// answers as over a conversation of its own.
bool chain(const Decoder<float>& decoder, const std::vector<ModelAdapter<float>>& loaded, std::span<const Token> conversation) {
  example::Progress progress;
  constexpr std::size_t links = 5, answer = 16;
  const SessionOptions sizes{.max_prompt = static_cast<Index>(conversation.size()) + 16,
                             .max_tokens = static_cast<Index>(conversation.size()) + 64};
  std::vector<ModelAdapter<float>> adapters;
  for (std::size_t i = 0; i < links; ++i) {
    AdapterParts<float> parts = loaded[i % loaded.size()].parts();
    parts.invocation = {'[', static_cast<Token>('a' + static_cast<int>(i)), ']'};
    adapters.emplace_back(decoder.adapter_target(), std::move(parts));
  }
  std::size_t read = 0;
  const auto reads = [&](Session<float>& session, std::span<const Token> tokens) {
    read += tokens.size();
    session.prefill(tokens);
  };
  const auto answers = [&](Session<float>& session) {
    std::vector<Token> text;
    for (std::size_t i = 0; i < answer; ++i) session.decode(text.emplace_back(likeliest(session.logits())));
    return text;
  };
  std::vector<std::vector<Token>> shared, own;
  const Timer once;
  auto session = decoder.start(Dense{}, sizes);
  reads(session, conversation);
  const Position end = session.next_position();
  for (const ModelAdapter<float>& adapter : adapters) {
    progress.show("activated adapters", double(shared.size()), 2 * links);
    session.use(&adapter);
    reads(session, adapter.parts().invocation);
    shared.push_back(answers(session));
    session.crop(end);  // back to the base's rows
  }
  const double together = once.seconds();
  const std::size_t read_once = std::exchange(read, 0);
  const Timer each;
  for (const ModelAdapter<float>& adapter : adapters) {
    progress.show("activated adapters", double(links + own.size()), 2 * links);
    auto alone = decoder.start(Dense{}, sizes);
    alone.use(&adapter);
    std::vector<Token> whole(conversation.begin(), conversation.end());
    whole.insert(whole.end(), adapter.parts().invocation.begin(), adapter.parts().invocation.end());
    reads(alone, whole);
    own.push_back(answers(alone));
  }
  const double apart = each.seconds();
  progress.clear();
  std::printf(
      "\n%zu activated adapters over one conversation of %zu tokens: %zu tokens read in prompts, %.0f ms; each from the start: %zu "
      "tokens, %.0f ms (%.1f times); %s\n",
      links, conversation.size(), read_once, 1e3 * together, read, 1e3 * apart, apart / together,
      shared == own ? "the same answers" : "OTHER ANSWERS");
  return shared == own;
}

/// Six conversations, two under each adapter, with prompt lookup as their drafts: one pass verifies the guesses of all.
bool speculate(const Decoder<float>& decoder, std::span<const ModelAdapter<float>* const> adapters, std::span<const Token> text) {
  constexpr std::size_t count = 6, tokens = 64;
  const auto start = [&](const ModelAdapter<float>* adapter) {
    auto session = decoder.start(Dense{}, {.max_prompt = 64, .max_tokens = 200});
    session.use(adapter);
    return session;
  };
  const auto prompt = [&](std::size_t i) { return text.subspan(20 * i, 60); };
  std::vector<std::vector<Token>> plain(count), drafted(count);
  std::vector<Session<float>> sessions, targets;
  std::vector<PromptLookup<float>> lookups;
  std::vector<Session<float>*> batch;
  for (auto* all : {&sessions, &targets}) all->reserve(count);
  lookups.reserve(count);
  std::vector<Token> next;
  for (std::size_t i = 0; i < count; ++i) {
    sessions.push_back(start(adapters[i % adapters.size()]));
    next.push_back(likeliest(sessions.back().prefill(prompt(i))));
    batch.push_back(&sessions.back());
  }
  Workspace ws(decoder.together_workspace_bytes(batch));
  Matrix<float> logits(count, decoder.vocab_size());
  const Timer without;
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t i = 0; i < count; ++i) plain[i].push_back(next[i]);
    decoder.decode_together(batch, next, logits, ws);
    for (std::size_t i = 0; i < count; ++i) next[i] = likeliest(logits.row(static_cast<Index>(i)));
  }
  const double one_by_one = without.seconds();
  SpeculativeBatch<float> speculative;
  for (std::size_t i = 0; i < count; ++i) {
    targets.push_back(start(adapters[i % adapters.size()]));
    speculative.add(targets[i], lookups.emplace_back(decoder.vocab_size()),
                    {.draft_tokens = 3, .sampler = {.temperature = 0}, .length = DraftLength::adapted, .guess_cost = 0.5f});
    speculative.prefill(static_cast<Index>(i), prompt(i));
  }
  const Timer with;
  while (speculative.step([&](Index i, Token token) {
    std::vector<Token>& mine = drafted[static_cast<std::size_t>(i)];
    mine.push_back(token);
    return mine.size() < tokens;
  })) {
  }
  const double seconds = with.seconds();
  Index accepted = 0, guessed = 0;
  for (Index i = 0; i < speculative.size(); ++i) accepted += speculative.stats(i).accepted, guessed += speculative.stats(i).drafted;
  std::printf(
      "%zu of them by prompt lookup: %zu tokens each in %d passes instead of %zu (%d of %d guesses right), %s; this model lies in "
      "cache, where a row costs as much as a pass: %.2f ms a token of all instead of %.2f (bench/lora: a large one)\n",
      count, tokens, static_cast<int>(speculative.passes()), tokens, static_cast<int>(accepted), static_cast<int>(guessed),
      plain == drafted ? "the same texts" : "OTHER TEXTS", 1e3 * seconds / double(tokens), 1e3 * one_by_one / double(tokens));
  return plain == drafted;
}

constexpr const char* usage = R"(lora_switch [FOLDER [ADAPTER ADAPTER]]

Without adapters it writes two for the shipped byte-level model, as PEFT would: "snake" swaps spaces and underscores in the head, "kebab"
spaces and hyphens, and both have some noise of rank 8 on every projection, so that they cost what trained ones do.)";

int lora_switch(example::CommandLine& line) {
  const fs::path model = example::model_folder(line);
  const std::string first = line.next(""), second = line.next("");
  line.done();
  if (first.empty() != second.empty()) throw example::UsageError("one adapter is given, expected two or none");
  const Decoder<float> decoder = load_decoder(model);
  const fs::path made = fs::temp_directory_path() / ("pith-adapters-" + std::to_string(std::random_device{}()));
  std::vector<fs::path> folders{made / "snake", made / "kebab"};
  if (!first.empty()) {
    folders = {first, second};
  } else {
    write_adapter(decoder, folders[0], ' ', '_');
    write_adapter(decoder, folders[1], ' ', '-');
  }
  std::vector<ModelAdapter<float>> loaded;
  for (const fs::path& folder : folders) {
    const Timer timer;
    loaded.push_back(load_adapter(folder, decoder));
    std::printf("%-8s %8zu bytes beside the model's %zu, bound in %.1f ms\n", folder.filename().string().c_str(), loaded.back().bytes(),
                decoder.weights().bytes(), 1e3 * timer.seconds());
  }
  fs::remove_all(made);  // already loaded
  const std::vector<std::pair<std::string, const ModelAdapter<float>*>> adapters{
      {"base", nullptr}, {folders[0].filename().string(), &loaded[0]}, {folders[1].filename().string(), &loaded[1]}};

  auto session = decoder.start(Dense{}, {.max_prompt = 256, .max_tokens = 600});
  constexpr int switches = 1'000'000;
  const Timer switching;
  for (int i = 0; i < switches; ++i) session.use(adapters[static_cast<std::size_t>(i % 3)].second);
  std::printf("\na switch takes %.0f ns: no copy, no allocation, and the model is never written\n\n", 1e9 * switching.seconds() / switches);

  const std::vector<Token> text = example::held_out(model, decoder.vocab_size(), 200);
  const std::span<const Token> prompt = std::span<const Token>(text).first(120);
  for (const auto& [name, adapter] : adapters) {
    session.clear();
    session.use(adapter);
    std::printf("  %-6s …%s\n", name.c_str(), continued(session, prompt, 70).c_str());
  }

  // Nine conversations, three per adapter: first one after the other, then together with every weight read once.
  constexpr std::size_t count = 9, steps = 100;
  std::vector<Session<float>> alone, together;
  std::vector<Session<float>*> batch;
  for (std::size_t i = 0; i < count; ++i)
    for (auto* sessions : {&alone, &together}) {
      sessions->push_back(decoder.start(Dense{}, {.max_prompt = 32, .max_tokens = 200}));
      sessions->back().use(adapters[i % 3].second);
      sessions->back().prefill(std::span<const Token>(text).subspan(10 * i, 20));
    }
  for (Session<float>& one : together) batch.push_back(&one);
  Matrix<float> expected(count * steps, decoder.vocab_size()), logits(count, decoder.vocab_size());
  example::Progress progress;
  const Timer one_by_one;
  for (std::size_t step = 0; step < steps; ++step) {
    progress.show("nine conversations", double(step), 2 * steps);
    for (std::size_t i = 0; i < count; ++i) expected.row(static_cast<Index>(step * count + i)) = alone[i].decode(text[20 + step + i]);
  }
  const double apart = one_by_one.seconds();
  Workspace ws(decoder.together_workspace_bytes(batch));
  double at_once = 0;
  bool same = true;
  for (std::size_t step = 0; step < steps; ++step) {
    progress.show("nine conversations", double(steps + step), 2 * steps);
    const Timer timer;
    decoder.decode_together(batch, std::span<const Token>(text).subspan(20 + step, count), logits, ws);
    at_once += timer.seconds();
    same = same && logits == expected.middleRows(static_cast<Index>(step * count), static_cast<Index>(count));
  }
  progress.clear();
  std::printf("\n%zu conversations, three under each: %.2f ms a token of all one by one, %.2f ms together (%.1f times faster), %s\n", count,
              1e3 * apart / steps, 1e3 * at_once / steps, apart / at_once, same ? "the same bits" : "OTHER BITS");
  const std::vector<const ModelAdapter<float>*> used{nullptr, &loaded[0], &loaded[1]};
  same = speculate(decoder, used, text) && same;
  const std::vector<Token> conversation = example::held_out(model, decoder.vocab_size(), 2000);
  same = chain(decoder, loaded, std::span<const Token>(conversation).first(2000)) && same;
  return same ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, usage, lora_switch); }
