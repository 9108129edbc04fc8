// Compaction and proxy scores of a whole session: as a prefix and in place, with every storage and policy behind it.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <pith/kv.hpp>
#include <pith/merge.hpp>
#include <pith/model.hpp>
#include <pith/model/compact.hpp>
#include <pith/model/proxy_scores.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/random_matrix.hpp"
#include "support/same_session.hpp"
#include "support/tiny_model.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::same_bits;

namespace {

struct Compressing {
  DecoderConfig config = pith_test::tiny_config();
  Decoder<float> decoder = pith_test::random_decoder<float>(config);
  std::vector<Token> tokens = pith_test::random_tokens(64, 50);
  std::span<const Token> prompt = std::span<const Token>(tokens).first(30);
  std::span<const Token> rest = std::span<const Token>(tokens).subspan(30);
  ReferenceQueries<float> queries{config.attention(), config.num_hidden_layers};

  /// A session that has read the prompt; its queries, turned, are the reference.
  template <KvStorage T = float> Session<float, T> read(AnyPolicy<float> policy = Dense{}) {
    auto session = decoder.start<T>(std::move(policy), {.max_prompt = 40, .max_tokens = 100, .keep_masses = true});
    queries.clear();
    session.prefill(prompt, {.queries = queries.observer()});
    turn_behind(decoder, session.next_position(), queries);
    return session;
  }
  static CompactOptions to(Index rows) {
    CompactOptions options;
    options.budget = {.rows = rows, .sinks = 2, .recent = 2};
    return options;
  }
};

}  // namespace

TEMPLATE_TEST_CASE("a compacted session answers as a prefix as it does in place", "[model][compact]", float, bfloat16, Q8,
                   (Kv<Q8, Rotated<Q4>>)) {
  Compressing of;
  auto session = of.read<TestType>();
  const auto rows = compact(session, of.queries, Compressing::to(10));
  CHECK(rows.rows(0, 0) == 10);
  const auto whole = of.read<TestType>();
  CHECK(pith_test::difference(session, whole).empty());  // the cache is as before
  auto behind = of.decoder.template start<TestType>(Dense{}, {.max_prompt = 40, .max_tokens = 60, .prefix = rows.prefix()});
  CHECK(behind.next_position() == 30);
  replace(session, rows);
  CHECK(session.caches()[1].size(1) == 10);
  CHECK(session.next_position() == 30);
  // Masses as a cache counts them are rounded once more.
  Matrix<float> near;
  for (std::size_t i = 0; i < 6; ++i) {
    near = behind.decode(of.rest[i]);
    CHECK(pith_test::near(Matrix<float>(session.decode(of.rest[i])), near, std::is_same_v<TestType, float> ? 1e-5 : 2e-2));
  }
  // A clone, a snapshot and a frozen prefix go on alike; what is drafted is taken back exactly.
  auto copy = session.clone();
  auto restored = of.decoder.template start<TestType>(Dense{}, {.max_prompt = 40, .max_tokens = 100, .keep_masses = true});
  restored.restore(session.snapshot());
  session.checkpoint();
  session.decode(of.rest.subspan(6, 4));
  session.crop(36);
  const Matrix<float> next = session.decode(of.rest[7]);
  for (auto* other : {&copy, &restored}) CHECK(same_bits(other->decode(of.rest[7]), next));
  auto frozen = of.decoder.template start<TestType>(Dense{}, {.max_prompt = 40, .max_tokens = 60, .prefix = session.freeze()});
  CHECK(pith_test::near(Matrix<float>(frozen.decode(of.rest[8])), Matrix<float>(session.decode(of.rest[8])), 1e-4));
}

TEST_CASE("every policy goes on over compacted rows: as a prefix, or in its own cache", "[model][compact]") {
  Compressing of;
  const PolicyModel<float> parts{.rope = of.decoder.rope(),
                                 .o_proj = std::make_shared<Matrix<float>>(pith_test::random_matrix<float>(24, 32, 5))};
  const KvPrefix prefix = compact(of.read(), of.queries, Compressing::to(10)).prefix();
  for (const PolicyEntry<float>& entry : policy_catalogue<float>()) {
    INFO(entry.name);
    auto behind = of.decoder.start(entry.make(12, parts), {.max_prompt = 40, .prefix = prefix});
    behind.prefill(of.rest.first(16));
    behind.checkpoint();
    const Matrix<float> first = behind.decode(of.rest[16]);
    behind.decode(of.rest[17]);
    behind.crop(46);
    CHECK(same_bits(behind.decode(of.rest[16]), first));
    if (entry.name == "dense" || entry.name == "text-prior") continue;
    auto evicting = of.read(entry.make(20, parts));
    const auto& facts = evicting.caches()[0].facts();
    const auto rows = [&] { return compact(evicting, of.queries, Compressing::to(9)); };
    if (facts.eviction == Eviction::by_age || facts.traits.positions == RopePositions::cache) {
      if (facts.traits.positions == RopePositions::cache) {
        CHECK_THROWS_WITH(rows(), contains("nearer than in the text"));
      } else {
        const auto before = evicting.clone();
        CHECK_THROWS_WITH(replace(evicting, rows()), contains("make a prefix"));
        CHECK(pith_test::difference(evicting, before).empty());
      }
      continue;
    }
    replace(evicting, rows());
    for (const auto& cache : evicting.caches())
      for (Index h = 0; h < 2; ++h) CHECK(cache.size(h) == 9);
    CHECK(evicting.problem(evicting.snapshot()).empty());
    auto twin = evicting.clone();
    evicting.checkpoint();
    for (std::size_t i = 0; i < 6; ++i) evicting.decode(of.rest[20 + i]);
    evicting.crop(30);
    for (std::size_t l = 0; l < 2; ++l) CHECK(pith_test::difference(evicting.caches()[l].snapshot(), twin.caches()[l].snapshot()).empty());
    for (std::size_t i = 0; i < 20; ++i) CHECK(same_bits(evicting.decode(of.rest[i]), twin.decode(of.rest[i])));
  }
}

TEST_CASE("compacted rows are replaced where they were, or not at all", "[model][compact]") {
  Compressing of;
  auto session = of.read();
  const auto rows = compact(session, of.queries, Compressing::to(10));
  auto plain = of.decoder.start(Dense{}, {.max_prompt = 40, .max_tokens = 100});
  plain.prefill(of.prompt);
  auto before = plain.clone();
  CHECK_THROWS_WITH(replace(plain, rows), contains("start with keep_masses"));
  CHECK(pith_test::difference(plain, before).empty());
  CompactOptions evict = Compressing::to(10);
  evict.masses = evict.values = false;
  replace(plain, compact(plain, of.queries, evict));
  CHECK(plain.caches()[0].size(0) == 10);
  auto moved = session.clone();
  moved.decode(of.rest[0]);
  before = moved.clone();
  CHECK_THROWS_WITH(replace(moved, rows), contains("compact it anew"));
  CHECK(pith_test::difference(moved, before).empty());
  auto evicted = session.clone();
  evicted.drop(0, 3);
  CHECK_THROWS_WITH(replace(evicted, rows), contains("have come or gone"));
  // Inside a journal nothing is replaced.
  auto heavy = of.read(HeavyHitter{.heavy = 20, .recent = 20});
  const auto smaller = compact(heavy, of.queries, Compressing::to(10));
  heavy.checkpoint();
  CHECK_THROWS_WITH(compact(heavy, of.queries, Compressing::to(10)), contains("inside a journal"));
  CHECK_THROWS_WITH(replace(heavy, smaller), contains("inside a journal"));
}

TEST_CASE("sliding-window layers stay whole, and rows of a prefix as they are", "[model][compact]") {
  Compressing of;
  of.config.layers.resize(2);
  of.config.layers[1].window = 12;
  of.decoder = pith_test::random_decoder<float>(of.config);
  auto session = of.read();
  const auto rows = compact(session, of.queries, Compressing::to(10));
  CHECK(rows.rows(0, 0) == 10);
  CHECK(rows.rows(1, 0) == 30);
  Compressing plain;
  auto system = plain.decoder.start(Dense{}, {.max_prompt = 40});
  system.prefill(plain.rest.first(7));
  auto behind = plain.decoder.start(Dense{}, {.max_prompt = 40, .prefix = system.freeze()});
  behind.prefill(plain.prompt, {.queries = plain.queries.observer()});
  const auto kept = compact(behind, plain.queries, Compressing::to(10));
  CHECK(kept.prefix().next_position() == 37);
  CHECK(kept.prefix().rows() == 17);
  auto third = plain.decoder.start(Dense{}, {.max_prompt = 40, .prefix = kept.prefix()});
  const auto view = third.caches()[1].view(), first = behind.caches()[1].view();
  for (Index h = 0; h < 2; ++h)
    for (Index r = 0; r < 7; ++r)
      for (Index c = 0; c < 8; ++c) CHECK(view.runs[std::size_t(2 * h)].keys[r * 8 + c] == first.runs[std::size_t(2 * h)].keys[r * 8 + c]);
}

TEST_CASE("a repeat pass is the source of queries, and of scores that all layers share", "[model][compact]") {
  Compressing of;
  auto session = of.read();
  const auto before = session.clone();
  ReferenceQueries<float> repeated(of.config.attention(), of.config.num_hidden_layers);
  add_looking(session, of.prompt, 16, repeated);
  CHECK(repeated.tokens(1, 1) == 30);
  CHECK(compact(session, repeated, Compressing::to(10)).rows(1, 1) == 10);
  const RowScores scores = kvzip_scores(session, of.prompt.subspan(5), {.chunk = 10, .start = 5, .sinks = 3});
  CHECK(pith_test::difference(session, before).empty());
  const RowBudget budget{.rows = 12, .share = RowBudget::Share::model, .sinks = 3, .recent = 2};
  const auto rows = keep_rows(session, scores, budget);
  Index total = 0;
  for (Index l = 0; l < 2; ++l)
    for (Index h = 0; h < 2; ++h) {
      total += rows.rows(l, h);
      const auto& kept = rows.kept[std::size_t(l)][std::size_t(h)];
      for (Index r = 0; r < 5; ++r) CHECK(std::count(kept.begin(), kept.end(), r) == 1);  // the system prompt
    }
  CHECK(total == 48);
  // Every row that left scores less than every row that stayed and was not protected.
  double least = 2, most = 0;
  for (Index l = 0; l < 2; ++l)
    for (Index h = 0; h < 2; ++h)
      for (Index r = 5; r < 28; ++r) {
        const auto& kept = rows.kept[std::size_t(l)][std::size_t(h)];
        const double score = scores.head(l, h).scores[std::size_t(r)];
        CHECK((score > 0 && score <= 1));
        if (std::count(kept.begin(), kept.end(), r) == 1)
          least = std::min(least, score);
        else
          most = std::max(most, score);
      }
  CHECK(least >= most);
  replace(session, rows);
  session.decode(of.rest[0]);
  // The question of Finch: its mean weights are those that its tokens gave the rows when read.
  auto fresh = of.read();
  Matrix<double> sum = Matrix<double>::Zero(2, 30);
  fresh.look(of.rest.first(6), [&](const LookTile<float>& tile) {
    if (tile.layer == 1)
      for (Index i = 0; i < tile.attention.weights.rows(); ++i)
        for (Index r = 0; r < 30; ++r) sum(tile.attention.kv_head, r) += double(tile.attention.weights(i, r)) / 12;
  });
  const RowScores finch = finch_scores(fresh, of.rest.first(6), false);
  for (Index h = 0; h < 2; ++h)
    for (Index r = 0; r < 30; ++r) CHECK(std::abs(finch.head(1, h).scores[std::size_t(r)] - sum(h, r)) < 1e-9);
  // Bad input.
  CHECK_THROWS_WITH(kvzip_scores(session, {}), contains("a context of 0 tokens"));
  CHECK_THROWS_WITH(kvzip_scores(session, of.prompt, {.start = 5}), contains("expected 1 or more within 0 .. 31"));
  CHECK_THROWS_WITH(kvzip_scores(session, of.prompt, {.chunk = 0}), contains("chunk is 0"));
  const std::vector<std::shared_ptr<const Matrix<float>>> one{std::make_shared<Matrix<float>>(24, 32)};
  CHECK_THROWS_WITH(kvzip_scores(session, of.prompt, {.o_proj = one}), contains("1 output projections"));
  CHECK_THROWS_WITH(keep_rows(session, scores, budget), contains("score them anew"));
  CHECK_THROWS_WITH(keep_rows(fresh, finch, {.rows = 4, .sinks = 5}), contains("sinks is 5"));
}

TEST_CASE("speculation over compacted rows says what the target says alone", "[model][compact]") {
  Compressing of;
  auto session = of.read(HeavyHitter{.heavy = 10, .recent = 10});
  replace(session, compact(session, of.queries, Compressing::to(10)));
  session.decode(of.rest[0]);
  auto alone = session.clone();
  std::vector<Token> said, expected;
  Token next = of.rest[1];
  for (int i = 0; i < 12; ++i) {
    Index best = 0;
    alone.decode(next).row(0).maxCoeff(&best);
    expected.push_back(next = static_cast<Token>(best));
  }
  next = of.rest[1];
  while (said.size() < 12) {  // three guesses at a time, wrong from the second on
    std::vector<Token> guess{next, said.size() < 11 ? expected[said.size()] : 0, 49, 48};
    session.checkpoint();
    const Position start = session.next_position();
    const Matrix<float> logits = session.decode(guess);
    std::size_t right = 0;
    for (; right < guess.size(); ++right) {
      Index best = 0;
      logits.row(Index(right)).maxCoeff(&best);
      said.push_back(static_cast<Token>(best));
      if (right + 1 == guess.size() || guess[right + 1] != said.back()) break;
    }
    session.crop(start + static_cast<Position>(right) + 1);
    next = said.back();
  }
  said.resize(12);
  CHECK(said == expected);
}
