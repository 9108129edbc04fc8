// Speculation between real sessions of the shipped model: every policy, rollback, distribution.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <pith/decode.hpp>
#include <pith/io.hpp>
#include <pith/kv.hpp>
#include <pith/model.hpp>

#include "laws/token_model_laws.hpp"
#include "support/catch.hpp"

using namespace pith;
using pith_test::contains;

namespace {

/// The shipped model, some of its text as a prompt, and every policy.
struct Shipped {
  Decoder<float> decoder = load_decoder<float>(PITH_MODELS_DIR "/tiny-prose", {});
  std::vector<Token> prompt{0};
  PolicyModel<float> model;

  Shipped() {
    std::ifstream in(PITH_MODELS_DIR "/tiny-prose/heldout.txt", std::ios::binary);
    for (std::istreambuf_iterator<char> c(in), end; c != end && prompt.size() < 150; ++c) prompt.push_back(static_cast<unsigned char>(*c));
    const DecoderConfig& config = decoder.config();
    auto o_proj = std::make_shared<Matrix<float>>(config.hidden_size, config.num_attention_heads * config.head_dim);
    decoder.weights().layers[0].o_proj.copy_weight(0, *o_proj);
    model = {std::make_shared<const Rope<float>>(config.rope()), o_proj};
  }
  template <KvStorage T = float> Session<float, T> start(std::string_view policy, Index rows) const {
    return decoder.start<T>(make_policy(policy, rows, model), {.max_prompt = 160, .max_tokens = 1300, .max_generated = 1200});
  }
};
const Shipped& shipped() {
  static const Shipped one;
  return one;
}

constexpr SpeculativeOptions greedy_four{.draft_tokens = 4, .sampler = {.temperature = 0}};

template <KvStorage T = float> std::vector<Token> plain_text(Session<float, T> session, Index count, const SamplerOptions& sampler) {
  std::mt19937_64 rng(1);
  return generate(session, session.prefill(shipped().prompt), {.max_tokens = count, .sampler = sampler}, rng);
}

template <class T> bool same_bytes(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}
template <class S> bool same_bytes(const Matrix<S>& a, const Matrix<S>& b) {
  return a.rows() == b.rows() && a.cols() == b.cols() &&
         (a.size() == 0 || std::memcmp(a.data(), b.data(), std::size_t(a.size()) * sizeof(S)) == 0);
}
/// Whether the caches of two sessions hold the same bits in the same order, with all that policies remember.
template <KvStorage T> bool same_caches(const Session<float, T>& a, const Session<float, T>& b) {
  for (std::size_t layer = 0; layer < a.caches().size(); ++layer) {
    const KvSnapshot<T> x = a.caches()[layer].snapshot(), y = b.caches()[layer].snapshot();
    if (x.layout != y.layout || x.next != y.next || x.next_rope_position != y.next_rope_position || x.unevicted != y.unevicted ||
        x.prefill != y.prefill || x.more != y.more || x.heads != y.heads || !same_bytes(x.keys, y.keys) ||
        !same_bytes(x.values, y.values) || x.positions != y.positions || x.rope_positions != y.rope_positions || x.kinds != y.kinds ||
        !same_bytes(x.stats, y.stats) || !same_bytes(x.memory, y.memory))
      return false;
  }
  return true;
}

/// A thousand greedy tokens by speculation against the same ones without, and the caches they leave.
template <KvStorage T = float, class Draft>
SpeculativeStats check_thousand(Session<float, T> target, Draft& draft, const Session<float, T>& alone,
                                const std::vector<Token>& expected) {
  SpeculativeDecoder spec(target, draft, greedy_four);
  spec.prefill(shipped().prompt);
  std::mt19937_64 rng(1);
  std::vector<Token> found;
  const auto result = generate(spec, {.max_tokens = 1000}, rng, [&](Token token) { found.push_back(token); });
  CHECK(found == expected);
  CHECK(result.pending == expected.back());
  CHECK(same_caches(target, alone));
  return spec.stats();
}

}  // namespace

TEST_CASE("a thousand greedy tokens are the target's own, under every pair of policies", "[model][speculative]") {
  // PITH_TEST_ALL_PAIRS=1 tries all of the catalogue with all of it.
  const bool all = std::getenv("PITH_TEST_ALL_PAIRS") != nullptr;
  std::vector<std::string> names;
  for (const PolicyEntry<float>& entry : policy_catalogue<float>()) names.emplace_back(entry.name);
  std::vector<std::string> targets = names;
  if (!all) targets = {"dense", "sinks", "h2o-cache", "adakv", "keydiff"};
  Index accepted = 0, rejected = 0;
  for (std::size_t t = 0; t < targets.size(); ++t) {
    auto alone = shipped().start(targets[t], 48);
    std::mt19937_64 rng(1);
    const std::vector<Token> expected =
        generate(alone, alone.prefill(shipped().prompt), {.max_tokens = 1000, .sampler = greedy_four.sampler}, rng);
    for (std::size_t d = 0; d < names.size(); ++d) {
      if (!all && d != t + 1) continue;
      CAPTURE(targets[t], names[d]);
      auto draft = shipped().start(names[d], 24);
      const auto stats = check_thousand(shipped().start(targets[t], 48), draft, alone, expected);
      accepted += stats.accepted;
      rejected += stats.rejected;
    }
    CAPTURE(targets[t]);
    PromptLookup lookup(256);
    check_thousand(shipped().start(targets[t], 48), lookup, alone, expected);
  }
  CHECK(accepted > 1000);
  CHECK(rejected > 100);
}

TEST_CASE("storages of either side do not matter to greedy text", "[model][speculative]") {
  auto alone = shipped().start<bfloat16>("h2o", 48);
  std::mt19937_64 rng(1);
  const std::vector<Token> expected =
      generate(alone, alone.prefill(shipped().prompt), {.max_tokens = 1000, .sampler = greedy_four.sampler}, rng);
  auto draft = shipped().start<Q8>("window", 32);
  check_thousand(shipped().start<bfloat16>("h2o", 48), draft, alone, expected);
}

TEST_CASE("after every step the target's cache is, bit for bit, one that never speculated", "[model][speculative]") {
  for (const char* policy : {"dense", "window", "sinks", "h2o", "h2o-cache", "scissorhands", "tova", "snapkv", "keydiff"}) {
    auto target = shipped().start(policy, 40), plain = shipped().start(policy, 40);
    auto draft = shipped().start("window", 12), plain_draft = shipped().start("window", 12);
    SpeculativeDecoder spec(target, draft, {.draft_tokens = 5, .sampler = {.temperature = 1.5f}});
    spec.prefill(shipped().prompt);
    plain.prefill(shipped().prompt);
    plain_draft.prefill(shipped().prompt);
    std::mt19937_64 rng(7);
    Index rejected = 0;
    std::vector<Token> text;
    for (int step = 0; step < 40; ++step) {
      const std::size_t read = text.empty() ? 0 : text.size() - 1;
      const auto tokens = spec.step(rng);
      text.insert(text.end(), tokens.begin(), tokens.end());
      for (std::size_t i = read; i + 1 < text.size(); ++i) plain.decode(text[i]);
      while (plain_draft.next_position() < draft.next_position())
        plain_draft.decode(text[std::size_t(plain_draft.next_position()) - shipped().prompt.size()]);
      CAPTURE(policy, step, spec.stats().rejected > rejected);
      rejected = spec.stats().rejected;
      REQUIRE(same_caches(target, plain));
      REQUIRE(same_caches(draft, plain_draft));
    }
    CHECK(rejected > 15);
    CHECK(spec.stats().accepted > 5);
  }
}

TEST_CASE("law 7 and rollback on the shipped model", "[model][laws]") {
  for (const char* policy : {"dense", "sinks", "h2o", "h2o-cache", "snapkv"}) {
    CAPTURE(policy);
    CHECK(pith_test::broken_token_model_law(
              [&] {
                auto session = shipped().start(policy, 30);
                session.prefill(shipped().prompt);
                return session;
              },
              {.max_tokens = 9, .rounds = 2}) == "");
  }
}

namespace {

/// Chi-square of 32 equal bins, 31 degrees of freedom: of u(i) in [0, 1), uniform and independent if tokens are distributed as the plain
/// target says. u is where a token lies in the cumulated distribution, likeliest first, at a random place of its own share.
template <class Next> double distance_from_target(const SamplerOptions& options, Index count, Next&& next) {
  auto judge = shipped().start("h2o", 48);
  Sampler<float> sampler(options, 256);
  Vector<float> p(256), logits = judge.prefill(shipped().prompt).row(0).transpose();
  std::mt19937_64 place(99);
  std::array<double, 32> bins{};
  for (Index i = 0; i < count; ++i) {
    const Token token = next();
    sampler.distribution(logits, p);
    double below = 0;
    for (Index t = 0; t < 256; ++t)
      if (p[t] > p[token] || (p[t] == p[token] && t < token)) below += double(p[t]);
    const double u = below + canonical<double>(place) * double(p[token]);
    ++bins[std::min<std::size_t>(31, std::size_t(u * 32))];
    if (p[token] == 0) return 1e9;  // impossible
    logits = judge.decode(token).row(0).transpose();
  }
  double statistic = 0;
  for (const double seen : bins) statistic += (seen - double(count) / 32) * (seen - double(count) / 32) / (double(count) / 32);
  return statistic;
}

}  // namespace

TEST_CASE("sampled text is distributed as the target's: chi-square on the shipped model", "[model][speculative]") {
  constexpr double one_in_ten_thousand = 71.0;  // of the chi-square distribution with 31 degrees of freedom: 70.6
  constexpr Index count = 2000;
  for (const SamplerOptions& options : {SamplerOptions{}, SamplerOptions{.temperature = .8f, .top_k = 40, .top_p = .95f}}) {
    CAPTURE(options.temperature);
    const auto speculated = [&](auto& draft, unsigned seed) {
      auto target = shipped().start("h2o", 48);
      SpeculativeDecoder spec(target, draft, {.draft_tokens = 4, .sampler = options});
      spec.prefill(shipped().prompt);
      std::mt19937_64 rng(seed);
      std::vector<Token> run;
      std::size_t at = 0;
      const double found = distance_from_target(options, count, [&] {
        if (at == run.size()) {
          const auto tokens = spec.step(rng);
          run.assign(tokens.begin(), tokens.end());
          at = 0;
        }
        return run[at++];
      });
      CHECK(spec.stats().rejected > 100);
      CHECK(spec.stats().accepted > 100);
      return found;
    };
    auto window = shipped().start("window", 16);  // forgets the first tokens: often wrong
    CHECK(speculated(window, 1) < one_in_ten_thousand);
    PromptLookup lookup(256, {.ngram = 4});
    CHECK(speculated(lookup, 2) < one_in_ten_thousand);

    // The test sees the difference: the draft's own text, and a token refused too seldom, are far away.
    auto draft = shipped().start("window", 16);
    Sampler<float> sampler(options, 256);
    std::mt19937_64 rng(3);
    Vector<float> logits = draft.prefill(shipped().prompt).row(0).transpose();
    CHECK(distance_from_target(options, count, [&] {
            const Token token = sampler.sample(logits, rng);
            logits = draft.decode(token).row(0).transpose();
            return token;
          }) > 2 * one_in_ten_thousand);
  }
}

TEST_CASE("sessions that cannot take a draft are refused at construction, and near a full cache drafts are shortened", "[model]") {
  auto target = shipped().decoder.start(Window{16}, {.max_prompt = 160, .max_draft = 3});
  auto draft = shipped().decoder.start(Window{8}, {.max_prompt = 160});
  using Pair = SpeculativeDecoder<Session<float>, Session<float>>;
  CHECK(target.max_chunk() == 4);
  CHECK_THROWS_AS(Pair(target, draft, {.draft_tokens = 4}), CapacityError);
  CHECK_THROWS_WITH(Pair(target, draft, {.draft_tokens = 4}), contains("the target takes only 4 tokens at once"));
  CHECK_NOTHROW(Pair(target, draft, {.draft_tokens = 3}));

  const std::vector<Token> plain = plain_text(shipped().decoder.start(Dense{}, {.max_prompt = 160}), 11, greedy_four.sampler);
  const auto read = static_cast<Index>(shipped().prompt.size());
  // The text has as many tokens as without a draft, also where a cache is full.
  for (const Index draft_rows : {read, read + 3, Index(400)}) {
    auto full = shipped().decoder.start(Dense{}, {.max_prompt = 160, .max_tokens = read + 10});
    auto small = shipped().decoder.start(Dense{}, {.max_prompt = 160, .max_tokens = draft_rows});
    CHECK(full.room() == read + 10);
    SpeculativeDecoder spec(full, small, greedy_four);
    spec.prefill(shipped().prompt);
    CHECK(full.room() == 10);
    std::mt19937_64 rng(1);
    std::vector<Token> found;
    CHECK_THROWS_AS(generate(spec, {.max_tokens = 100}, rng, [&](Token token) { found.push_back(token); }), CapacityError);
    CHECK(found == plain);
    CHECK(full.next_position() == read + 10);
    CHECK(full.room() == 0);
    CHECK(spec.pending() == plain.back());
    CHECK(spec.drafting() == (draft_rows == 400));
  }
  CHECK(shipped().decoder.start(Window{8}).room() > 1000000);
  auto prompt_only = shipped().decoder.start(SnapKv{.keep = 40, .window = 8}, {.max_prompt = 160, .max_generated = 6});
  prompt_only.prefill(shipped().prompt);
  const Index room = prompt_only.room();
  for (Index i = 0; i < room; ++i) prompt_only.decode(1);
  CHECK(room == 7);  // max_generated and the row of a chunk
  CHECK_THROWS_AS(prompt_only.decode(1), CapacityError);
}
