// Conversations with adapters and drafts of their own, verified in the same passes: each is what it would be alone, bit for bit.
#include <algorithm>
#include <memory>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <pith/core/executor.hpp>
#include <pith/decode.hpp>
#include <pith/kv.hpp>
#include <pith/model.hpp>
#include <pith/peft.hpp>

#include "support/catch.hpp"
#include "support/random_matrix.hpp"
#include "support/same_session.hpp"
#include "support/tiny_adapters.hpp"
#include "support/tiny_model.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::difference;
using pith_test::same_bits;

namespace {

/// Models shared by the cases.
struct SpeculatingTogether {
  Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  Decoder<float> small = pith_test::random_decoder<float>(pith_test::tiny_config(), 9);
  ModelAdapter<float> one = pith_test::random_adapter<float>(decoder, 2, 10), two = pith_test::thorough_adapter<float>(decoder, 20),
                      three = pith_test::other_adapter<float>(decoder, 30);
  std::vector<Token> prompt = [this] {
    std::vector<Token> text = pith_test::random_tokens(30, decoder.vocab_size()), twice = text;
    twice.insert(twice.end(), text.begin(), text.end());
    return twice;
  }();

  Session<float> start(const ModelAdapter<float>* adapter, const AnyPolicy<float>& policy = Dense{}, Index max_tokens = 400) const {
    auto session = decoder.start(policy, {.max_tokens = max_tokens});
    session.use(adapter);
    return session;
  }
};

/// A conversation: its models, and the text it gives.
struct Speaker {
  Session<float> target;
  std::unique_ptr<Session<float>> draft_session;
  std::unique_ptr<PromptLookup<float>> lookup;
  SpeculativeOptions options;
  std::vector<Token> text = {};
};

/// Four of them: prompt lookup, the target itself without its adapter, itself under another one, another decoder.
std::vector<Speaker> speakers_of(const SpeculatingTogether& models, float temperature) {
  std::vector<Speaker> all;
  const auto options = [&](Index n, DraftLength length = DraftLength::fixed) {
    return SpeculativeOptions{.draft_tokens = n, .sampler = {.temperature = temperature}, .length = length};
  };
  const auto own = [](Session<float> session) { return std::make_unique<Session<float>>(std::move(session)); };
  all.push_back({models.start(&models.one), nullptr, std::make_unique<PromptLookup<float>>(models.decoder.vocab_size()), options(5)});
  all.push_back({models.start(&models.two, SinkWindow{.sinks = 2, .window = 40}), own(models.start(nullptr)), nullptr, options(3)});
  all.push_back({models.start(&models.three, HeavyHitter{.heavy = 30, .recent = 20}), own(models.start(&models.one)), nullptr,
                 options(4, DraftLength::adapted)});
  all.push_back({models.start(nullptr), own(models.small.start()), nullptr, options(2)});
  return all;
}

constexpr std::size_t speaker_tokens = 40;

void speak_alone(Speaker& s, const std::vector<Token>& prompt, std::uint32_t seed) {
  std::mt19937_64 rng(seed);
  const auto run = [&](auto& draft) {
    SpeculativeDecoder decoder(s.target, draft, s.options);
    decoder.prefill(prompt);
    bool more = true;
    while (more)
      decoder.step(rng, s.options.draft_tokens + 1, [&](Token token) {
        s.text.push_back(token);
        return more = s.text.size() < speaker_tokens;
      });
  };
  s.lookup ? run(*s.lookup) : run(*s.draft_session);
}

}  // namespace

TEST_CASE("SpeculativeBatch: every text and every cache is what it is alone", "[model]") {
  const SpeculatingTogether models;
  for (const float temperature : {0.f, 0.8f}) {
    INFO("temperature " << temperature);
    std::vector<Speaker> alone = speakers_of(models, temperature), together = speakers_of(models, temperature);
    for (std::size_t i = 0; i < alone.size(); ++i) speak_alone(alone[i], models.prompt, static_cast<std::uint32_t>(i));
    SpeculativeBatch<float> batch;
    Index steps = 0;
    for (std::size_t i = 0; i < together.size(); ++i) {
      Speaker& s = together[i];
      const std::mt19937_64 rng(static_cast<std::uint32_t>(i));
      s.lookup ? batch.add(s.target, *s.lookup, s.options, rng) : batch.add(s.target, *s.draft_session, s.options, rng);
      batch.prefill(static_cast<Index>(i), models.prompt);
    }
    while (batch.step([&](Index i, Token token) {
      auto& text = together[static_cast<std::size_t>(i)].text;
      text.push_back(token);
      return text.size() < speaker_tokens;
    })) {
    }
    for (std::size_t i = 0; i < alone.size(); ++i) {
      INFO("conversation " << i);
      CHECK(together[i].text == alone[i].text);
      CHECK(difference(together[i].target, alone[i].target) == "");
      CHECK_FALSE(batch.active(static_cast<Index>(i)));
      CHECK(batch.pending(static_cast<Index>(i)) == alone[i].text.back());
      steps += batch.stats(static_cast<Index>(i)).steps;
      if (together[i].draft_session) steps += batch.stats(static_cast<Index>(i)).drafted;
    }
    CHECK(batch.passes() < steps);  // one by one each of these is a pass
  }
}

TEST_CASE("SpeculativeBatch: a full cache, a conversation that ends, and what is refused", "[model]") {
  const SpeculatingTogether models;
  auto full = models.start(&models.one, Dense{}, 66), other = models.start(&models.two), unadapted = models.start(nullptr);
  PromptLookup<float> draft(models.decoder.vocab_size()), second(models.decoder.vocab_size()), third(models.decoder.vocab_size());
  SpeculativeBatch<float> batch;
  const SpeculativeOptions greedy{.draft_tokens = 4, .sampler = {.temperature = 0}};
  batch.add(full, draft, greedy);
  batch.add(other, second, greedy);
  CHECK_THROWS_AS(batch.add(full, third, greedy), StateError);
  CHECK_THROWS_AS(batch.add(unadapted, second, greedy), StateError);
  CHECK_THROWS_AS(batch.add(unadapted, unadapted, greedy), StateError);
  CHECK_THROWS_AS(batch.add(unadapted, third, {.draft_tokens = 20}), CapacityError);
  CHECK(batch.size() == 2);
  CHECK_THROWS_AS(batch.prefill(2, models.prompt), ShapeError);
  CHECK_FALSE(batch.step([](Index, Token) {}));  // no conversation has a prompt
  for (Index i = 0; i < 2; ++i) batch.prefill(i, models.prompt);

  // The first has room for six more tokens: it goes on without guesses where they do not fit, then throws, and the other is not disturbed.
  std::vector<std::vector<Token>> texts(2);
  const auto keep = [&](Index i, Token token) {
    texts[static_cast<std::size_t>(i)].push_back(token);
    return texts[static_cast<std::size_t>(i)].size() < 30;
  };
  bool threw = false;
  for (int step = 0; step < 60 && !threw; ++step) {
    try {
      if (!batch.step(keep)) break;
    } catch (const CapacityError&) {
      threw = true;
    }
  }
  CHECK(threw);
  CHECK(texts[0].size() == 7);  // six that were read, and the last one pending
  batch.stop(0);
  CHECK_FALSE(batch.active(0));
  while (batch.step(keep)) {
  }
  auto alone = models.start(&models.two);
  std::minstd_rand rng(1);
  CHECK(texts[1] == generate(alone, models.prompt, {.max_tokens = 30, .sampler = {.temperature = 0}}, rng));

  // What was pending begins the next turn.
  batch.prefill(1, std::vector<Token>{1, 2, 3});
  CHECK(batch.active(1));
  CHECK(other.next_position() == static_cast<Position>(models.prompt.size()) + 30 + 3);
}

TEST_CASE("SpeculativeBatch: a step whose callback or mask throws is undone but for what was told, and disturbs no other", "[model]") {
  const SpeculatingTogether models;
  for (const bool in_mask : {false, true}) {
    const float temperature = in_mask ? 0.8f : 0.f;  // tokens of a step that were not told are drawn again
    std::vector<Speaker> alone = speakers_of(models, temperature);
    for (std::size_t i = 0; i < alone.size(); ++i) speak_alone(alone[i], models.prompt, static_cast<std::uint32_t>(i));
    for (std::size_t culprit = 0; culprit < alone.size(); ++culprit)
      for (const int when : {1, 2, 6, 14})
        for (const bool stops : {false, true}) {
          CAPTURE(in_mask, culprit, when, stops);
          int mask_calls = in_mask ? when : 0, callback_calls = in_mask ? 0 : when;  // until one throws; 0: none
          const auto count_down = [](int& left) {
            if (left > 0 && --left == 0) throw std::runtime_error("planted");
          };
          const auto mask = [&](auto, std::span<const Token>) { count_down(mask_calls); };
          std::vector<Speaker> together = speakers_of(models, temperature);
          together[culprit].options.rules.mask = LogitMask(mask);
          SpeculativeBatch<float> batch;
          for (std::size_t i = 0; i < together.size(); ++i) {
            Speaker& s = together[i];
            const std::mt19937_64 rng(static_cast<std::uint32_t>(i));
            s.lookup ? batch.add(s.target, *s.lookup, s.options, rng) : batch.add(s.target, *s.draft_session, s.options, rng);
            batch.prefill(static_cast<Index>(i), models.prompt);
          }
          const auto tell = [&](Index i, Token token) {
            auto& text = together[static_cast<std::size_t>(i)].text;
            text.push_back(token);
            if (i == static_cast<Index>(culprit)) count_down(callback_calls);
            return text.size() < speaker_tokens;
          };
          int thrown = 0;
          for (bool more = true; more;) {
            try {
              more = batch.step(tell);
              continue;
            } catch (const std::runtime_error& error) {
              CHECK(std::string(error.what()) == "planted");
              ++thrown;
            }
            Speaker& s = together[culprit];
            CHECK(batch.pending(static_cast<Index>(culprit)) == (s.text.empty() ? -1 : s.text.back()));
            if (stops) batch.stop(static_cast<Index>(culprit));
            if (!stops && !in_mask) continue;  // the next call crops to what was told
            Session<float> read = std::move(speakers_of(models, temperature)[culprit].target);
            read.prefill(models.prompt);
            for (std::size_t t = 0; t + 1 < s.text.size(); ++t) read.decode(s.text[t]);  // just the text, without guesses
            REQUIRE(s.target.next_position() == read.next_position());
            const auto found = s.target.snapshot(), expected = read.snapshot();
            for (std::size_t l = 0; l < found.layers.size(); ++l) CHECK(difference(found.layers[l], expected.layers[l]) == "");
          }
          CHECK(thrown == 1);
          for (std::size_t i = 0; i < alone.size(); ++i) {
            INFO("conversation " << i);
            if (stops && i == culprit) {
              CHECK_FALSE(batch.active(static_cast<Index>(i)));
              REQUIRE(together[i].text.size() < speaker_tokens);
              CHECK(std::equal(together[i].text.begin(), together[i].text.end(), alone[i].text.begin()));
              continue;
            }
            CHECK(together[i].text == alone[i].text);
            CHECK(difference(together[i].target, alone[i].target) == "");
          }
        }
  }
}

TEST_CASE("decode_together: chunks of different lengths, each as decode() gives it", "[model]") {
  const SpeculatingTogether models;
  const std::vector<Token> more = pith_test::random_tokens(20, models.decoder.vocab_size(), 5);
  ThreadPool two(2);
  const auto sessions = [&] {
    std::vector<Session<float>> all;
    all.push_back(models.start(&models.three));
    all.push_back(models.start(nullptr, HeavyHitter{.heavy = 10, .recent = 20}));
    all.push_back(models.start(&models.one, SinkWindow{.sinks = 2, .window = 40}));
    all.push_back(models.start(&models.three));
    for (auto& session : all) session.prefill(models.prompt);
    return all;
  };
  std::vector<Session<float>> alone = sessions(), together = sessions();
  const std::vector<std::span<const Token>> chunks{std::span(more).first(3), std::span(more).subspan(3, 1), std::span(more).subspan(4, 7),
                                                   std::span(more).subspan(11, 2)};
  std::vector<Session<float>*> batch;
  for (auto& session : together) batch.push_back(&session);
  Matrix<float> logits(13, models.decoder.vocab_size());
  for (const ExecutorRef executor : {ExecutorRef(serial), ExecutorRef(two)}) {
    Workspace ws(models.decoder.together_workspace_bytes(batch, 13, executor.size()), executor);
    for (std::size_t i = 0; i < 4; ++i) alone[i].checkpoint(), together[i].checkpoint();
    models.decoder.decode_together(batch, chunks, logits, ws);
    for (Index i = 0, row = 0; i < 4; row += static_cast<Index>(chunks[static_cast<std::size_t>(i++)].size())) {
      const auto n = static_cast<std::size_t>(i);
      CHECK(same_bits(Matrix<float>(alone[n].decode(chunks[n])),
                      Matrix<float>(logits.middleRows(row, static_cast<Index>(chunks[n].size())))));
      const Position back = alone[n].next_position() - static_cast<Position>(chunks[n].size()) / 2;
      alone[n].crop(back), together[n].crop(back);
      CHECK(difference(alone[n], together[n]) == "");
    }
  }
  Workspace ws(models.decoder.together_workspace_bytes(batch, 13, 1));
  const auto refused = [&](std::span<const std::span<const Token>> tokens, Index rows, const std::string& why) {
    Matrix<float> out(rows, models.decoder.vocab_size());
    CHECK_THROWS_WITH(models.decoder.decode_together(batch, tokens, out, ws), contains(why));
    for (std::size_t i = 0; i < 4; ++i) CHECK(difference(alone[i], together[i]) == "");
  };
  refused(std::span(chunks).first(3), 13, "3 chunks of tokens for 4 sessions");
  refused(chunks, 12, "logits");
  std::vector<std::span<const Token>> bad = chunks;
  bad[1] = {};
  refused(bad, 12, "no tokens, expected 1 or more");
  bad[1] = std::span(more).first(10);
  refused(bad, 22, "expected at most max_draft + 1 = 9");
  // The forms with memory of their own.
  const auto again = [&](Position by) {
    for (auto& session : together) session.crop(session.next_position() - by), session.checkpoint();
  };
  for (auto& session : together) session.checkpoint();
  models.decoder.decode_together(batch, chunks, logits, ws);
  for (std::size_t i = 0; i < 4; ++i) together[i].crop(together[i].next_position() - static_cast<Position>(chunks[i].size()));
  again(0);
  CHECK(models.decoder.decode_together(batch, chunks, two) == logits);
  again(0);
  Matrix<float> next(4, models.decoder.vocab_size());
  models.decoder.decode_together(batch, std::span<const Token>(more).first(4), next, ws);
  again(1);
  CHECK(models.decoder.decode_together(batch, std::span<const Token>(more).first(4)) == next);
}
