#include <pith/kv/any_policy.hpp>
#include <pith/kv/policies/heavy_hitter.hpp>
#include <pith/kv/policies/scissorhands.hpp>
#include <pith/kv/policies/sink_window.hpp>
#include <pith/kv/policies/tova.hpp>
#include <pith/kv/policies/window.hpp>
#include <pith/kv/policy_laws.hpp>

#include "support/catch.hpp"
#include "support/kv_stream.hpp"

using namespace pith;

namespace {

/// A policy with every option a scorer can use: watches, admits, reads neighbours, evicts in bites.
struct Bites {
  Index most = 12;
  Index budget() const { return most; }
  Index retain() const { return most / 2; }
  PolicyTraits traits() const { return {.ordered = true, .reads_rows = true}; }
  Index stats(const AttentionShape& heads) const { return heads.group() + 1; }
  template <class S> void admit(const KvRows<S>& fresh, MatrixRef<S> stats) const {
    for (Index r = 0; r < fresh.size(); ++r) stats(0, r) = -fresh.keys.row(r).norm();
  }
  template <class S> void observe(const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S> stats) const {
    const Index group = rows.shape.group();
    for (Index q = 0; q < seen.weights.rows(); ++q) stats.row(1 + q % group) += seen.weights.row(q);
  }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    for (Index r = 0; r < rows.size(); ++r) {
      const Index next = std::min(r + 1, rows.size() - 1);
      out[r] = rows.stats.col(r).sum() + (rows.keys.row(r) - rows.values.row(next)).norm();
    }
  }
};

/// A window written as a scorer: what the ring must agree with.
struct ScoredWindow {
  Index initial_rows, window;
  Index budget() const { return initial_rows + window; }
  PolicyTraits traits() const { return {.keeps_newest = false}; }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    for (Index i = 0; i < rows.size(); ++i) {
      const Position p = rows.positions[static_cast<std::size_t>(i)];
      out[i] = p < initial_rows ? std::numeric_limits<S>::infinity() : S(p);
    }
  }
};

}  // namespace

TEST_CASE("policies keep the laws", "[kv]") {  // rounded rows: in catalogue.test.cpp
  SECTION("dense") { policy_laws(Dense{}); }
  SECTION("window") { policy_laws(Window{.window = 9}); }
  SECTION("window of one") { policy_laws(Window{.window = 1}); }
  SECTION("sinks at cache positions") { policy_laws(SinkWindow{.sinks = 3, .window = 8}); }
  SECTION("sinks at text positions") { policy_laws(SinkWindow{.sinks = 2, .window = 5, .positions = RopePositions::text}); }
  SECTION("heavy hitters") { policy_laws(HeavyHitter{.heavy = 6, .recent = 7}); }
  SECTION("heavy hitters without a window") { policy_laws(HeavyHitter{.heavy = 6, .recent = 0}); }
  SECTION("every option of a scorer") { policy_laws(Bites{}); }
}

TEST_CASE("policies keep the laws for other head shapes, in double", "[kv]") {
  const AttentionShape shape = GENERATE(AttentionShape{1, 1, 1}, AttentionShape{6, 6, 12}, AttentionShape{6, 1, 5});
  policy_laws<double>(HeavyHitter{.heavy = 5, .recent = 3}, {.shape = shape});
  policy_laws<double>(SinkWindow{.sinks = 4, .window = 4}, {.shape = shape});
}

TEST_CASE("the ring of a window keeps what a score by position keeps", "[kv]") {
  const auto [sinks, window] =
      GENERATE(std::pair<Index, Index>{0, 1}, std::pair<Index, Index>{0, 7}, std::pair<Index, Index>{3, 5}, std::pair<Index, Index>{4, 1});
  const AttentionShape shape{2, 2, 4};
  KvCache ring(shape, SinkWindow{.sinks = sinks, .window = window}, {.max_chunk = 30});
  KvCache scored(shape, ScoredWindow{sinks, window}, {.max_chunk = 30});
  pith_test::KvStream<float> stream(shape, 5);
  for (int step = 0; step < 80; ++step) {
    const Index tokens = 1 + static_cast<Index>(stream.rng() % 30);
    const Matrix<float> k = stream.random(tokens, 8), v = stream.random(tokens, 8);
    ring.append(k, v);
    scored.append(k, v);
    REQUIRE(ring.evict() == scored.evict());
    for (Index h = 0; h < 2; ++h) {
      std::vector<Position> a(ring.positions(h).begin(), ring.positions(h).end()),
          b(scored.positions(h).begin(), scored.positions(h).end());
      std::sort(a.begin(), a.end());
      std::sort(b.begin(), b.end());
      REQUIRE(a == b);
      for (Index i = 0; i < std::min(sinks, ring.size(h)); ++i) REQUIRE(ring.positions(h)[static_cast<std::size_t>(i)] == i);
    }
    // Room for a turn: H2O's and StreamingLLM's evict_for_space keep the sinks and what is left of the window.
    if (step % 7 == 6) {
      const Index coming = static_cast<Index>(stream.rng() % static_cast<std::uint64_t>(sinks + window));
      ring.evict(coming);
      scored.evict(coming);
      REQUIRE(ring.size(0) <= std::max(sinks, sinks + window - coming));
    }
  }
}

TEST_CASE("heavy hitters sum the attention of every query, and lose only what is evicted", "[kv]") {
  const AttentionShape shape{4, 2, 8};
  KvCache cache(shape, HeavyHitter{.heavy = 8, .recent = 8}, {.max_chunk = 6});
  pith_test::KvStream<float> stream(shape, 11);
  double queries = 0;
  for (int step = 0; step < 2; ++step) {
    stream.step(cache, 6);
    queries += 6;
    // Before any eviction the scores of a head sum to its queries times the heads of its group.
    for (Index h = 0; h < 2; ++h) CHECK(std::abs(double(cache.stats(h).sum()) - queries * 2) < 24 * 24 * 1.2e-7 * queries);
  }
  for (int step = 0; step < 20; ++step) stream.step(cache, 1);
  for (Index h = 0; h < 2; ++h) {
    CHECK(cache.size(h) == 16);
    Index newest = 0;
    for (const Position p : cache.positions(h)) newest += p >= cache.next_position() - 8;
    CHECK(newest == 8);
  }
}

TEST_CASE("rows no query of a sliding window can see leave first", "[kv]") {
  const AttentionShape shape{1, 1, 2};
  KvCache cache(shape, HeavyHitter{.heavy = 6, .recent = 1}, {.max_chunk = 1, .window = 5});
  const Matrix<float> one = Matrix<float>::Ones(1, 2);
  for (int t = 0; t < 40; ++t) {
    cache.append(one, one);
    Matrix<float> weights = Matrix<float>::Zero(1, cache.size(0));
    weights(0, 0) = 1;  // everything looks at the oldest
    cache.observe({.kv_head = 0, .weights = weights});
    cache.evict();
  }
  for (const Position p : cache.positions(0)) CHECK(cache.next_position() - p < 5 + 3);
}
