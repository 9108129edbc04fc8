// A terminal chat with the model of any folder that has a tokenizer, under any cache policy, adapter or draft.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <iostream>
#include <limits>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>
#include <pith/text.hpp>

#include "support/model_text.hpp"
#include "support/policy_argument.hpp"
#include "support/trained_length.hpp"

using namespace pith;

namespace {

const std::string usage =
    std::string("chat [FOLDER] [OPTIONS]; a line is a message, /clear begins anew, Ctrl-C ends an answer, Ctrl-D the program\n\n") +
    example::policy_usage + R"(
  --format NAME        how conversations are written, if the folder's chat template is unknown: llama3, chatml, ...
  --system TEXT        what the model is told first
  --lora DIR           a PEFT folder laid over the model
  --draft DIR          a smaller model of the same vocabulary that guesses; lookup: guesses from the text itself
  --think, --no-think  formats that can: answer with or without reasoning first     [as the published template]
  --context N          tokens of a conversation at most                                                              [4096]
  --tokens N           of an answer at most                                                                          [1024]
  --temperature T      0: the likeliest token every time                                                             [0.7]
  --top-p P                                                                                                          [0.9]
  --min-p P                                                                                                          [0]
  --repetition-penalty R                                                                                             [1]
  --seed N                                                                                                           [1]
  --threads N                                                                                                        [1])";

std::atomic<bool> interrupted{false};  // lock-free, as a signal handler needs it
static_assert(std::atomic<bool>::is_always_lock_free);
extern "C" void interrupt(int) {
  interrupted = true;
  std::signal(SIGINT, interrupt);  // some systems forget a handler once it has run
}

std::string today(const char* format) {
  char text[64];
  const std::time_t now = std::time(nullptr);
  return std::strftime(text, sizeof text, format, std::localtime(&now)) > 0 ? text : "";
}

/// The messages so far and the tokens read; each turn, the session reads only the new tokens.
class Conversation {
 public:
  Conversation(const Tokenizer& tokenizer, const ChatFormat& format, const std::string& system)
      : tokenizer_(tokenizer), format_(format), system_(system) {
    begin();
  }

  void clear() {
    begin();
    anew_ = true;
  }
  void say(std::string role, std::string content) { messages_.push_back({std::move(role), std::move(content)}); }

  /// Tokens that the model has not read. If earlier turns now render differently (without reasoning), reading starts again from the
  /// beginning and `restart` is true.
  std::vector<Token> unread(bool& restart) {
    std::vector<Token> all = format_.encode(tokenizer_, messages_);
    restart = anew_ || read_.size() >= all.size() || !std::equal(read_.begin(), read_.end(), all.begin());
    anew_ = false;
    if (restart) read_.clear();
    std::vector<Token> rest(all.begin() + static_cast<std::ptrdiff_t>(read_.size()), all.end());
    read_ = std::move(all);
    return rest;
  }
  /// Removes the last message, which the model could not read or answer; the next turn reads from the beginning.
  void take_back() {
    messages_.pop_back();
    anew_ = true;
  }
  /// Records the tokens of its own answer that the model has read.
  void has_read(std::span<const Token> answer) { read_.insert(read_.end(), answer.begin(), answer.end()); }
  std::span<const Token> read() const { return read_; }

 private:
  void begin() {
    messages_.clear();
    if (!system_.empty()) messages_.push_back({"system", system_});
    read_.clear();
  }

  const Tokenizer& tokenizer_;
  const ChatFormat& format_;
  std::string system_;
  std::vector<Message> messages_;
  std::vector<Token> read_;
  bool anew_ = false;  // the session still holds the previous conversation
};

struct Options {
  SamplerOptions sampler;
  LogitRules rules;
  Index tokens = 0;
};

/// Answers with the model alone, or with the model and a draft. A message for which there is no room is taken back.
template <class Answer>
void converse(Session<float>& session, Conversation& conversation, const Tokenizer& tokenizer, example::TrainedLength& trained,
              Answer&& answer) {
  for (std::string message; std::printf("> "), std::fflush(stdout), std::getline(std::cin, message);) {
    if (message.empty()) continue;
    if (message == "/clear") {
      conversation.clear();
      continue;
    }
    conversation.say("user", message);
    bool restart = false;
    const std::vector<Token> turn = conversation.unread(restart);
    interrupted = false;
    Detokenizer words(tokenizer, true);
    std::string text;
    std::vector<Token> said;
    const auto begin = std::chrono::steady_clock::now();
    const auto show = [&](const std::string& piece) {
      text += piece;
      std::printf("%s", piece.c_str());
      std::fflush(stdout);
    };
    std::optional<std::chrono::steady_clock::time_point> first;
    GenerateResult result;
    try {
      result = answer(turn, restart, [&](Token token) {
        if (!first) first = std::chrono::steady_clock::now();
        said.push_back(token);
        show(words.add(token));
        trained.look();
        return !interrupted;
      });
    } catch (const CapacityError& error) {
      std::fprintf(stderr, "\n[no room for this message and its answer: %s]\n[/clear begins anew; a larger --context has more room]\n",
                   error.what());
      conversation.take_back();
      continue;
    }
    show(words.finish());
    if (result.count > 0 && result.reason != StopReason::stop_token) said.pop_back();  // pending: not read yet
    conversation.has_read(said);
    conversation.say("assistant", text);
    const auto end = std::chrono::steady_clock::now();
    const auto seconds = [](auto d) { return std::max(1e-9, std::chrono::duration<double>(d).count()); };
    std::fprintf(stderr, "\n[%zu tokens read in %.1f s, %td said at %.1f tokens/s, %zu bytes of cache%s]\n", turn.size(),
                 seconds(first.value_or(end) - begin), result.count,
                 double(std::max<Index>(0, result.count - 1)) / seconds(end - first.value_or(begin)), session.cache_bytes(),
                 interrupted ? ", interrupted" : "");
  }
  std::printf("\n");
}

template <class Draft>
void converse_with(Draft& draft, Session<float>& session, Conversation& conversation, const Tokenizer& tokenizer, const Options& options,
                   std::span<const Token> stops, std::mt19937_64& rng, example::TrainedLength& trained) {
  const SpeculativeOptions speculation{.draft_tokens = 4, .sampler = options.sampler, .rules = options.rules};
  SpeculativeDecoder spec(session, draft, speculation);
  converse(session, conversation, tokenizer, trained, [&](std::vector<Token> turn, bool restart, auto&& on_token) {
    if (!restart && spec.pending() >= 0) {  // the decoder reads its pending token itself, if the conversation continues with it
      restart = turn.front() != spec.pending();
      if (!restart) turn.erase(turn.begin());
    }
    if (restart) {
      turn.assign(conversation.read().begin(), conversation.read().end());
      session.clear();
      draft.clear();
      spec = SpeculativeDecoder(session, draft, speculation);
    }
    spec.prefill(turn);
    return generate(spec, {.max_tokens = options.tokens, .stop_tokens = stops}, rng, on_token);
  });
}

void run(example::CommandLine& line) {
  constexpr Index most_tokens = (std::numeric_limits<Position>::max)() / 4;
  const Index cores = std::max<Index>(1, static_cast<Index>(std::thread::hardware_concurrency()));
  const std::string choice = line.option("--policy", "sinks:4:252"), format_name = line.option("--format", ""),
                    system = line.option("--system", ""), lora = line.option("--lora", ""), draft_folder = line.option("--draft", "");
  const bool think = line.flag("--think"), no_think = line.flag("--no-think");
  if (think && no_think) throw example::UsageError("--think and --no-think are given: choose one");
  const Index context = line.option<Index>("--context", 4096, 1, most_tokens);
  Options options;
  options.tokens = line.option<Index>("--tokens", 1024, 1, most_tokens);
  options.sampler = {.temperature = line.option("--temperature", 0.7f, 0.f, 100.f),
                     .top_p = line.option("--top-p", 0.9f, 0.f, 1.f),
                     .min_p = line.option("--min-p", 0.f, 0.f, 1.f)};
  options.rules.repetition_penalty = line.option("--repetition-penalty", 1.f, 0.01f, 100.f);
  std::mt19937_64 rng(line.option<std::uint64_t>("--seed", 1, 0, (std::numeric_limits<std::uint64_t>::max)()));
  ThreadPool pool(line.option<Index>("--threads", 1, 1, cores));
  const auto folder = example::model_folder(line);
  line.done();

  const Decoder<float> decoder = load_decoder(folder);
  const Tokenizer tokenizer = load_tokenizer(folder);
  tokenizer.check_vocabulary(decoder.vocab_size());
  ChatFormat format = format_name.empty() ? ChatFormat::of(tokenizer) : ChatFormat::named(format_name);
  if (think || no_think) format.thinking = think;
  if (format.date.empty()) format.date = today(format.name().starts_with("granite") ? "%B %d, %Y" : "%d %B %Y");
  const std::vector<Token> stops = format.stop_tokens(tokenizer);

  const bool drafts = !draft_folder.empty();
  const SessionOptions session_options{.max_prompt = context,
                                       .max_tokens = context,
                                       .max_generated = options.tokens,
                                       .max_draft = drafts ? Index(4) : Index(0),
                                       .executor = pool};
  auto session = decoder.start(example::policy_argument(choice, decoder), session_options);
  std::optional<ModelAdapter<float>> adapter;
  if (!lora.empty()) session.use(&adapter.emplace(load_adapter(lora, decoder)));
  example::TrainedLength trained(session, decoder.config().max_position_embeddings, choice);
  Conversation conversation(tokenizer, format, system);
  std::signal(SIGINT, interrupt);

  if (draft_folder == "lookup") {
    PromptLookup draft(session.vocab_size());
    converse_with(draft, session, conversation, tokenizer, options, stops, rng, trained);
  } else if (drafts) {
    const Decoder<float> small = load_decoder(draft_folder);
    auto draft = small.start(Dense{}, session_options);
    converse_with(draft, session, conversation, tokenizer, options, stops, rng, trained);
  } else {
    converse(session, conversation, tokenizer, trained, [&](const std::vector<Token>& turn, bool restart, auto&& on_token) {
      if (restart) session.clear();
      const auto logits = session.prefill(turn);
      return generate(session, logits,
                      {.max_tokens = options.tokens,
                       .sampler = options.sampler,
                       .stop_tokens = stops,
                       .rules = options.rules,
                       .text = conversation.read()},
                      rng, on_token);
    });
  }
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, usage.c_str(), run); }
