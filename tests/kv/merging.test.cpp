// A cache that merges what it evicts: single cases with known numbers. tests/property/kv_oracle.test.cpp does the rest.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <limits>
#include <utility>
#include <vector>

#include <pith/kv.hpp>
#include <pith/merge.hpp>

#include "support/catch.hpp"
#include "support/kv_stream.hpp"
#include "support/near.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::KvStream;
using pith_test::near;
using pith_test::same_state;

namespace {

/// Keeps the tokens at these positions when a prompt ends.
struct KeepsThese {
  std::vector<Position> kept;
  Index budget() const { return static_cast<Index>(kept.size()); }
  PolicyTraits traits() const { return {.prompt_only = true}; }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    for (Index r = 0; r < rows.size(); ++r)
      out[r] = std::count(kept.begin(), kept.end(), rows.positions[static_cast<std::size_t>(r)]) > 0 ? S(1) : S(0);
  }
};

/// Half of the rows are worthless at any time: more leave than a budget asks for.
struct Fickle {
  Index keep = 8;
  Index budget() const { return keep; }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    for (Index r = 0; r < rows.size(); ++r)
      out[r] = rows.next >= 20 && rows.positions[static_cast<std::size_t>(r)] % 2 == 0 ? -std::numeric_limits<S>::infinity() : S(0);
  }
};

Index row_at(const auto& cache, Index h, Position p) {
  const auto positions = cache.positions(h);
  return std::find(positions.begin(), positions.end(), p) - positions.begin();
}

}  // namespace

TEST_CASE("evicted rows are merged into the kept rows nearest by key, values along", "[kv]") {
  // The worked example of two kept rows (positions 1 and 4) and three that leave (0, 2 and 3).
  Matrix<double> k(5, 2), v(5, 2);
  k << 2, .5, /**/ 1, 0, /**/ .5, 1, /**/ 3, 1, /**/ 0, 2;
  v << 3, 5, /**/ 1, 1, /**/ 0, 2, /**/ 2, 0, /**/ 4, 0;
  struct Case {
    AnyMerge<double> merge;
    Matrix<double> expected;  ///< keys, values of the two rows
  };
  const auto rows = [](std::initializer_list<double> numbers) {
    Matrix<double> m(2, 4);
    std::copy(numbers.begin(), numbers.end(), m.data());
    return m;
  };
  const std::vector<Case> cases{
      {Averaged{}, rows({2, .5, 2, 2, .25, 1.5, 2, 1})},
      {Pivotal{}, rows({1.5, .25, 1.5, 1.5, .125, 1.75, 3, .5})},
      {Weighted{}, rows({1.928778, .477918, 1.935931, 1.950238, .223607, 1.447214, 2, .894427})},
      {Normalized{}, rows({1.99133, .495665, 1.994956, 2.002207, .243223, 1.513554, 2.054217, .972891})},
      {MassWeighted{}, rows({2, .5, 2, 2, .25, 1.5, 2, 1})},
      {Gated(Averaged{}, .95), rows({1.5, .25, 2, 3, 0, 2, 4, 0})},
      {Drop{}, rows({1, 0, 1, 1, 0, 2, 4, 0})},
  };
  for (const Case& c : cases) {
    KvCache<double> cache({1, 1, 2}, KeepsThese{{1, 4}}, {.max_chunk = 5}, c.merge);
    cache.append(k, v, {.phase = Phase::prefill});
    CHECK(cache.evict() == 3);
    Matrix<double> found(2, 4);
    found.row(0) << cache.keys(0).row(row_at(cache, 0, 1)), cache.values(0).row(row_at(cache, 0, 1));
    found.row(1) << cache.keys(0).row(row_at(cache, 0, 4)), cache.values(0).row(row_at(cache, 0, 4));
    CHECK(near(found, c.expected, 1e-6));  // as many digits as the example gives
    if (!c.merge.facts().merges) continue;
    CHECK(cache.masses(0).sum() == (c.expected(0, 0) == 1.5 && c.expected(0, 3) == 3 ? 3 : 5));
  }
}

TEST_CASE("tokens that repeat each other can be merged without a trace when rows count as their tokens", "[kv]") {
  const AttentionShape shape{4, 2, 8};
  KvStream<double> stream(shape, 5);
  const Matrix<double> different = stream.random(4, 16), values = stream.random(4, 16);
  KvCache<double> dense(shape, {}, {.max_tokens = 40});
  KvCache<double> counted(shape, Window{6}, {.keep_masses = true}, MassWeighted{}), blind(shape, Window{6}, {}, MassWeighted{});
  // A logarithm is a float near log(10): weights move by a few of its roundings, outputs by as much of a value.
  const double slack = 4 * std::log(10.0) * std::numeric_limits<float>::epsilon() * values.cwiseAbs().maxCoeff();
  for (Index t = 0; t < 40; ++t) {
    const Matrix<double> q = stream.random(1, 32), k = different.row(t % 4), v = values.row(t % 4);
    const Matrix<double> expected = stream.feed(dense, q, k, v);
    CHECK(near(stream.feed(counted, q, k, v), expected, slack));
    if (t == 38) CHECK_FALSE(near(stream.feed(blind, q, k, v), expected, 1e-3));
    if (t != 38) stream.feed(blind, q, k, v);
  }
  for (Index h = 0; h < 2; ++h) {
    CHECK(counted.masses(h).sum() == 40);
    CHECK(counted.size(h) == 6);
  }
}

TEMPLATE_TEST_CASE("a prompt in a prompt buffer is merged as it is at home", "[kv]", float, bfloat16, Q8, Rotated<Q4>) {
  const AttentionShape shape{4, 2, 32};
  for (const PolicyEntry<float>& entry : policy_catalogue()) {
    if (entry.name == "dense" || entry.needs_rope || entry.needs_o_proj) continue;
    for (const MergeEntry<float>& merging : merge_catalogue()) {
      INFO(entry.name << ", " << merging.name);
      using Cache = KvCache<TestType>;
      const AnyPolicy<float> policy = entry.make(8, {});
      Cache home(shape, policy, {.max_chunk = 40, .keep_masses = true}, merging.make());
      Cache away(shape, policy, {.max_chunk = 1, .keep_masses = true}, merging.make());
      const PolicyFacts facts = policy.facts(shape);
      KvPromptBuffer<TestType> prompt_buffer(shape, 50,
                                             {.stats = facts.stats,
                                              .reads_rows = true,
                                              .combines = facts.combines,
                                              .cache_positions = true,
                                              .keep_masses = true,
                                              .merges = true});
      KvStream<float> stream(shape, 9);
      for (int turn = 0; turn < 2; ++turn) {
        const Matrix<float> q = stream.random(30, 128), k = stream.random(30, 64), v = stream.random(30, 64);
        away.reserve(30, &prompt_buffer);
        CHECK(near(stream.feed(away, q, k, v, Phase::prefill), stream.feed(home, q, k, v, Phase::prefill), 1e-4));
      }
      for (Index h = 0; h < 2; ++h) {
        REQUIRE(home.size(h) == away.size(h));
        for (const Position p : home.positions(h)) {
          const Index here = row_at(home, h, p), there = row_at(away, h, p);
          REQUIRE(there < away.size(h));
          REQUIRE(pith_test::keys_of(home, h).row(here) == pith_test::keys_of(away, h).row(there));
          REQUIRE(pith_test::values_of(home, h).row(here) == pith_test::values_of(away, h).row(there));
          if (home.masses(h).size() > 0) REQUIRE(home.masses(h)[here] == away.masses(h)[there]);
        }
      }
    }
  }
}

TEST_CASE("a merge that a journal could not take back is refused before anything changes", "[kv]") {
  KvCache cache({2, 1, 8}, Fickle{}, {.max_draft = 1}, Averaged{});
  KvStream<float> stream({2, 1, 8}, 4);
  for (int i = 0; i < 19; ++i) stream.step(cache, 1);
  cache.checkpoint();
  const auto before = cache.clone();
  cache.append(stream.random(1, 8), stream.random(1, 8));
  const auto appended = cache.clone();
  CHECK_THROWS_WITH(cache.evict(), contains("rows of a head leave at once and an open journal can keep 3 more merged ones"));
  CHECK(same_state(cache, appended));
  cache.crop(19);
  CHECK(same_state(cache, before));
  stream.step(cache, 1);  // without a journal they are merged
  CHECK(cache.size(0) < 8);
  CHECK(cache.masses(0).sum() == 20);
}

TEST_CASE("rows that no query of a sliding window can see any more are dropped, not merged", "[kv]") {
  for (const Index window : {3, 4}) {  // of three tokens the first is seen by the fourth under a window of 4, not of 3
    KvCache<double> cache({1, 1, 2}, Window{2}, {.max_chunk = 1, .window = window}, Averaged{});
    Matrix<double> row(1, 2);
    for (int t = 0; t < 3; ++t) {
      row << 1, t;
      cache.append(row, row);
      cache.evict();
    }
    CHECK(cache.masses(0).sum() == (window == 4 ? 3 : 2));
    for (Index r = 0; r < 2; ++r) {  // the first goes to the second, nearer by direction: (1, 0) and (1, 1)
      const Position p = cache.positions(0)[static_cast<std::size_t>(r)];
      row << 1, p == 1 && window == 4 ? .5 : double(p);
      CHECK(cache.values(0).row(r) == row);
      CHECK(cache.keys(0).row(r) == row);
    }
  }
}

namespace {
/// The pairs of a layer, for gates to look at.
struct Pairs {
  std::vector<std::vector<std::int32_t>> rows;
  std::vector<std::vector<double>> cosines;
  void gate(const auto& rule, Vector<double>& memory) {
    std::vector<LayerMatches<double>::Head> heads;
    for (std::size_t h = 0; h < rows.size(); ++h)
      heads.push_back({rows[h], ConstVectorRef<double>(cosines[h].data(), std::ssize(cosines[h])), 4});
    LayerMatches<double> matches(heads);
    rule.gate(matches, VectorRef<double>(memory));
  }
};
}  // namespace

TEST_CASE("the moving threshold: alpha of the old, beta of the new mean", "[kv]") {
  const MovingThreshold rule(Averaged{}, .8, .1);
  Vector<double> memory = Vector<double>::Zero(rule.memory());
  Pairs first{{{0, 1}}, {{.9, .5}}};
  first.gate(rule, memory);
  CHECK(memory[0] == Approx(.7));  // the mean at first
  CHECK(first.rows[0] == std::vector<std::int32_t>{0, -1});
  Pairs second{{{2, 3}}, {{.65, .53}}};
  second.gate(rule, memory);
  CHECK(memory[0] == Approx(.8 * .7 + .1 * .59));  // .619
  CHECK(second.rows[0] == std::vector<std::int32_t>{2, -1});
}

TEST_CASE("the moving threshold: a row already dropped adds nothing to its slot, and no cosine to the mean", "[kv]") {
  const MovingThreshold rule(Averaged{}, .5, .5);
  Vector<double> memory = Vector<double>::Zero(rule.memory());
  Pairs pairs{{{-1, 2}, {1, 0}}, {{.9, .95}, {.6, .3}}};
  pairs.gate(rule, memory);
  CHECK(memory[0] == Approx((.95 + .6 + .3) / 3));
  // Slot 0 has (0 + .6) / 2, below; slot 1 has (.95 + .3) / 2, above.
  CHECK(pairs.rows == std::vector<std::vector<std::int32_t>>{{-1, 2}, {-1, 0}});
}

TEST_CASE("values only: a row that points away adds nothing", "[kv]") {
  CHECK(ValuesOnly{}.weight(MergePair<double>{.cosine = -.5, .kept_mass = 1, .evicted_mass = 1, .kept_norm = 3, .evicted_norm = 1}) == 0);
  CHECK(ValuesOnly{}.weight(MergePair<double>{.cosine = .5, .kept_mass = 1, .evicted_mass = 1, .kept_norm = 3, .evicted_norm = 1}) ==
        Approx(.125).epsilon(1e-6));
  KvCache<double> cache({1, 1, 2}, Window{1}, {.max_chunk = 1}, ValuesOnly{});
  Matrix<double> k(1, 2), v(1, 2);
  for (const double sign : {1., -1.}) {
    k << sign, .25;
    v << 5 * sign, 7;
    cache.append(k, v);
    cache.evict();
  }
  CHECK(cache.values(0) == v);
}

TEST_CASE("a cache pays for merging only if it merges", "[kv]") {
  const AttentionShape shape{8, 4, 64};
  const KvCacheOptions options{.max_draft = 4};
  const KvCache dropping(shape, Window{128}, options);
  const KvCache dropping_by_choice(shape, Window{128}, options, make_merge("drop"));
  const KvCache merging(shape, Window{128}, options, Pivotal{});
  CHECK(dropping_by_choice.bytes() == dropping.bytes());
  CHECK(merging.bytes() > dropping.bytes());
  CHECK(dropping.masses(0).size() == 0);
  CHECK(dropping.view().runs[0].log_mass == nullptr);
  CHECK(merging.view().runs[0].log_mass == nullptr);
  CHECK_THROWS_WITH((KvCache(shape, Window{128}, {}, make_merge("avarage"))), contains("no strategy 'avarage': drop, averaged, pivotal"));
}
