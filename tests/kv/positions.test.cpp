// Keys that move: cache positions for policies that score, and tokens taken out by hand.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include <pith/attention/rope.hpp>
#include <pith/kv.hpp>
#include <pith/merge.hpp>

#include "support/catch.hpp"
#include "support/kv_stream.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::KvStream;
using pith_test::same_state;

namespace {
const AttentionShape heads{4, 2, 16};
constexpr Index row_width = 32;

/// Feeds one token in the way of a loop that owns its rotations: plain rows in, turned at the cache's angle.
template <class Cache>
void feed(Cache& cache, const Rope<float>& rope, const Matrix<float>& q, const Matrix<float>& k, const Matrix<float>& v) {
  Matrix<float> turned = k, query = q, out(q.rows(), q.cols());
  std::vector<Position> at;
  for (Index t = 0; t < k.rows(); ++t) at.push_back(static_cast<Position>(cache.query_position() + t));
  rope.rotate(turned, at);
  rope.rotate(query, at);
  cache.append(turned, v);
  Workspace ws(attend_workspace_bytes<float>(heads, cache.size(0)));
  attend(query, cache.view(), out, ws, cache.observer());
  cache.evict();
  cache.reindex(rope);
}

}  // namespace

TEST_CASE("reindex() closes every gap, and thousands of turns later keys are where a fresh rotation puts them", "[kv]") {
  const Rope<float> rope({.head_dim = 16});
  KvCache cache(heads, AtCachePositions(HeavyHitter{.heavy = 8, .recent = 8}), {.max_chunk = 20});
  KvStream<float> stream(heads, 5);
  std::vector<Matrix<float>> plain;
  const auto step = [&](Index tokens) {
    const Matrix<float> k = stream.random(tokens, row_width);
    for (Index t = 0; t < tokens; ++t) plain.push_back(k.row(t));
    feed(cache, rope, stream.random(tokens, 64), k, stream.random(tokens, row_width));
  };
  step(20);
  for (int i = 0; i < 4000; ++i) step(1);
  CHECK(cache.query_position() == 16);
  CHECK(cache.next_position() == 4020);
  for (Index h = 0; h < 2; ++h) {
    std::vector<Position> ages(cache.positions(h).begin(), cache.positions(h).end());
    std::sort(ages.begin(), ages.end());
    for (Index r = 0; r < cache.size(h); ++r) {
      const Position p = cache.positions(h)[static_cast<std::size_t>(r)];
      const Position rank = static_cast<Position>(std::lower_bound(ages.begin(), ages.end(), p) - ages.begin());
      Matrix<float> fresh = plain[static_cast<std::size_t>(p)].middleCols(h * 16, 16);
      rope.rotate(fresh, std::span(&rank, 1));
      // A turn rounds each number twice; a row is turned once for every row that leaves before it.
      const double turns = double(4020 - p) + 2;
      CHECK((cache.keys(h, RopePositions::cache).row(r) - fresh).norm() <= turns * 2 * 6e-8 * fresh.norm());
    }
  }
}

TEST_CASE("inside a journal keys are turned as outside, and crop() gives them back bit for bit", "[kv]") {
  const Rope<float> rope({.head_dim = 16});
  const auto start = [&] {
    KvCache cache(heads, AtCachePositions(HeavyHitter{.heavy = 6, .recent = 4}), {.max_chunk = 3, .max_draft = 6});
    return cache;
  };
  for (int kept = 0; kept <= 4; ++kept) {
    KvCache cache = start(), plain = start();
    KvStream<float> stream(heads, 6), other(heads, 6);
    const auto step = [&](auto& into, auto& from, Index n) {
      feed(into, rope, from.random(n, 64), from.random(n, row_width), from.random(n, row_width));
    };
    for (int i = 0; i < 30; ++i) step(cache, stream, 1);
    for (int i = 0; i < 30; ++i) step(plain, other, 1);
    const Position at = cache.next_position();
    cache.checkpoint();
    const Index sizes[] = {1, 3, 1, 2};
    Position accepted = 0;
    for (int i = 0; i < 4; ++i) {
      step(cache, stream, sizes[i]);
      CHECK(cache.query_position() == 10);
      if (i >= kept) continue;
      step(plain, other, sizes[i]);
      accepted += static_cast<Position>(sizes[i]);
    }
    const auto copy = cache.clone();
    cache.crop(at + accepted);
    CHECK(same_state(cache, plain));
    KvCache again = copy.clone();  // a copy has the journal as well
    again.crop(at + accepted);
    CHECK(same_state(again, plain));
  }
}

TEST_CASE("a second turn after one append inside a journal is refused before any key is turned", "[kv]") {
  const Rope<float> rope({.head_dim = 16});
  KvCache cache(heads, AtCachePositions(HeavyHitter{.heavy = 6, .recent = 4}), {.max_chunk = 1, .max_draft = 2});
  KvStream<float> stream(heads, 6);
  for (int i = 0; i < 14; ++i) stream.step(cache, 1);  // evicts, leaves the gaps
  cache.checkpoint();
  const auto before = cache.clone();
  cache.append(stream.random(1, row_width), stream.random(1, row_width));
  cache.reindex(rope);  // the gaps of before
  for (Index h = 0; h < 2; ++h) {
    const Matrix<float> weights = Matrix<float>::Constant(heads.num_heads / heads.num_kv_heads, cache.size(h), 1.f / 11);
    cache.observe({.kv_head = h, .weights = weights});
  }
  cache.evict();
  const auto evicted = cache.clone();
  CHECK_THROWS_AS(cache.reindex(rope), StateError);
  CHECK_THROWS_WITH(cache.reindex(rope), contains("reindex() twice after one append inside a journal"));
  CHECK(same_state(cache, evicted));
  cache.crop(before.next_position());
  CHECK(same_state(cache, before));
}

TEST_CASE("gaps of many evictions are closed at once: angles are ranks, keys what a rotation there gives", "[kv]") {
  const Rope<float> rope({.head_dim = 16});
  KvCache cache(heads, AtCachePositions(Random{6}), {.max_chunk = 1});
  KvStream<float> stream(heads, 12);
  std::vector<Matrix<float>> plain;
  for (Position p = 0; p < 40; ++p) {  // far more angles than the cache has rows
    plain.push_back(stream.random(1, row_width));
    Matrix<float> k = plain.back();
    rope.rotate(k, std::span(&p, 1));
    cache.append(k, k);
    cache.evict();
  }
  CHECK(cache.query_position() == 40);
  cache.reindex(rope);
  CHECK(cache.query_position() == 6);
  const auto snapshot = cache.snapshot();
  for (Index h = 0; h < 2; ++h)
    for (Index r = 0; r < 6; ++r) {
      const auto positions = cache.positions(h);
      const Position p = positions[static_cast<std::size_t>(r)];
      const Position rank = static_cast<Position>(std::count_if(positions.begin(), positions.end(), [&](Position o) { return o < p; }));
      CHECK(snapshot.rope_positions[static_cast<std::size_t>(h * 6 + r)] == rank);
      const Matrix<float> key = cache.keys(h, RopePositions::cache).row(r);
      for (Index i = 0; i < 8; ++i) {  // the pair i, i + 8 turned by rank * 10000^(-2i/16), in double
        const double a = double(plain[static_cast<std::size_t>(p)](0, h * 16 + i)),
                     b = double(plain[static_cast<std::size_t>(p)](0, h * 16 + i + 8)),
                     angle = rank * std::pow(10000.0, -2.0 * double(i) / 16);
        CHECK(std::abs(double(key(0, i)) - (a * std::cos(angle) - b * std::sin(angle))) < 40 * 1.2e-7 * std::hypot(a, b));
        CHECK(std::abs(double(key(0, i + 8)) - (b * std::cos(angle) + a * std::sin(angle))) < 40 * 1.2e-7 * std::hypot(a, b));
      }
    }
}

TEST_CASE("turned keys come back under merges and at every place of a journal", "[kv]") {
  const Rope<float> rope({.head_dim = 16});
  for (const Index to : {0, 1, 2, 3, 4, 5, 6}) {
    KvCache cache(heads, AtCachePositions(HeavyHitter{.heavy = 5, .recent = 3}), {.max_chunk = 2, .max_draft = 8, .keep_masses = true},
                  MassWeighted{});
    KvStream<float> stream(heads, 13);
    const auto step = [&](Index n) { feed(cache, rope, stream.random(n, 64), stream.random(n, row_width), stream.random(n, row_width)); };
    for (int i = 0; i < 25; ++i) step(1);
    cache.checkpoint();
    std::vector<KvCache<>> before;
    for (const Index n : {1, 2, 1, 1, 2, 1, 1}) {
      before.push_back(cache.clone());
      step(n);
    }
    const auto& expected = before[static_cast<std::size_t>(to)];
    cache.crop(expected.next_position());
    CHECK(same_state(cache, expected));
  }
}

TEST_CASE("a journal of turned keys goes on after tokens are taken back, any number of times", "[kv]") {
  const Rope<float> rope({.head_dim = 16});
  using Cache = KvCache<>;
  for (const std::uint64_t seed : {1u, 2u, 3u}) {
    Cache cache(heads, AtCachePositions(HeavyHitter{.heavy = 5, .recent = 3}), {.max_chunk = 2, .max_draft = 8, .keep_masses = true},
                MassWeighted{});
    KvStream<float> stream(heads, seed);
    std::mt19937_64 random(seed);
    const auto step = [&](Index n) { feed(cache, rope, stream.random(n, 64), stream.random(n, row_width), stream.random(n, row_width)); };
    for (int i = 0; i < 25; ++i) step(1);
    cache.checkpoint();
    std::vector<Cache> before;
    Index held = 0;  // tokens that the journal holds
    for (int round = 0; round < 60; ++round) {
      const Index tokens = 1 + static_cast<Index>(random() % 2);
      if (held + tokens <= 9) {
        before.push_back(cache.clone());
        step(tokens);
        held += tokens;
        continue;
      }
      const std::size_t to = random() % before.size();
      REQUIRE(detail::CacheInternals::state(cache).take_back(before[to].next_position()));
      held = cache.next_position() - before.front().next_position();
      CHECK(detail::CacheInternals::state(cache).journal.open());
      CHECK(same_state(cache, before[to]));
      before.erase(before.begin() + static_cast<std::ptrdiff_t>(to), before.end());
    }
    for (const Cache& expected : before) {
      Cache copy = cache.clone();
      copy.crop(expected.next_position());
      CHECK(same_state(copy, expected));
    }
  }
}

TEST_CASE("a turn that would be wrong or could not be taken back is refused before any key is turned", "[kv]") {
  const Rope<float> rope({.head_dim = 16}), other({.head_dim = 16, .theta = 500}), half_heads({.head_dim = 8});
  const Rope<float> dynamic({.head_dim = 16, .scaling = {.type = RopeType::dynamic, .factor = 2}});
  KvCache cache(heads, AtCachePositions(Random{6}), {.max_chunk = 1, .max_draft = 4});
  KvStream<float> stream(heads, 14);
  for (int i = 0; i < 9; ++i) stream.step(cache, 1);
  const auto before = cache.clone();
  CHECK_THROWS_WITH(cache.reindex(half_heads), contains("a rope for head_dim 8, expected 16"));
  CHECK_THROWS_AS(cache.reindex(dynamic), UnsupportedError);
  CHECK(same_state(cache, before));
  cache.checkpoint();
  stream.step(cache, 1);
  cache.reindex(rope);
  stream.step(cache, 1);
  const auto turned = cache.clone();
  CHECK_THROWS_WITH(cache.reindex(other), contains("another rope inside a journal"));
  CHECK_THROWS_AS(cache.reindex(dynamic), UnsupportedError);
  CHECK(same_state(cache, turned));
  cache.reindex(rope);
  cache.crop(9);
  CHECK(same_state(cache, before));
}

TEST_CASE("a journal keeps a key that is turned once, and nobody pays for one that is not wanted", "[kv]") {
  const AttentionShape shape{8, 4, 128};
  const AtCachePositions policy(HeavyHitter{.heavy = 512, .recent = 512});
  const std::size_t plain = KvCache(shape, policy).bytes(), journaled = KvCache(shape, policy, {.max_draft = 8}).bytes();
  const std::size_t keys = 4 * 1025 * 128 * sizeof(float);
  CHECK(plain < 2 * keys + keys / 8);
  CHECK(journaled - plain > keys);
  CHECK(journaled - plain < keys + keys / 4);  // the keys once, and what each of nine turns added to their angles
  const HeavyHitter heavy{.heavy = 512, .recent = 512};
  CHECK(KvCache(shape, heavy).bytes() == KvCache(shape, heavy, {.max_draft = 0}).bytes());
  CHECK(KvCache(shape, heavy).bytes() < KvCache(shape, heavy, {.max_draft = 1}).bytes());
}

TEST_CASE("drop() takes tokens out of every head", "[kv]") {
  SECTION("dense") {
    KvCache cache(heads, Dense{}, {.max_tokens = 12});
    KvStream<float> stream(heads, 7);
    stream.step(cache, 10);
    CHECK(cache.drop(3, 6) == 6);
    CHECK(std::vector<Position>(cache.positions(1).begin(), cache.positions(1).end()) == std::vector<Position>{0, 1, 2, 6, 7, 8, 9});
    CHECK(cache.drop(3, 6) == 0);
    CHECK(cache.next_position() == 10);
    cache.crop(8);
    CHECK(cache.size(0) == 5);
  }
  SECTION("a ring goes on in order of age") {
    KvCache cache(heads, SinkWindow{.sinks = 2, .window = 6, .positions = RopePositions::text}, {.max_chunk = 1});
    KvStream<float> stream(heads, 8);
    for (int i = 0; i < 21; ++i) stream.step(cache, 1);
    cache.drop(16, 18);
    CHECK(std::vector<Position>(cache.positions(0).begin(), cache.positions(0).end()) == std::vector<Position>{0, 1, 15, 18, 19, 20});
    for (int i = 0; i < 3; ++i) stream.step(cache, 1);
    std::vector<Position> held(cache.positions(0).begin(), cache.positions(0).end());
    std::sort(held.begin(), held.end());
    CHECK(held == std::vector<Position>{0, 1, 18, 19, 20, 21, 22, 23});
  }
  SECTION("a sink that is taken out has no successor") {
    const auto held = [](const auto& cache) {
      std::vector<Position> positions(cache.positions(1).begin(), cache.positions(1).end());
      std::sort(positions.begin(), positions.end());
      return positions;
    };
    KvCache cache(heads, SinkWindow{.sinks = 2, .window = 6, .positions = RopePositions::text}, {.max_chunk = 1, .max_draft = 3});
    KvStream<float> stream(heads, 8);
    for (int i = 0; i < 21; ++i) stream.step(cache, 1);
    CHECK(cache.drop(0, 1) == 2);
    for (int i = 0; i < 3; ++i) stream.step(cache, 1);
    CHECK(held(cache) == std::vector<Position>{1, 17, 18, 19, 20, 21, 22, 23});
    auto copy = cache.clone();
    KvCache restored = KvCache(heads, SinkWindow{.sinks = 2, .window = 6, .positions = RopePositions::text});
    restored.restore(cache.snapshot());
    cache.checkpoint();
    stream.step(cache, 1);
    cache.crop(24);
    for (auto* other : {&cache, &copy, &restored}) {
      KvStream<float> same(heads, 9);
      for (int i = 0; i < 8; ++i) same.step(*other, 1);
      CHECK(held(*other) == std::vector<Position>{1, 25, 26, 27, 28, 29, 30, 31});
    }
    cache.drop(0, 26);
    for (int i = 0; i < 12; ++i) stream.step(cache, 1);
    CHECK(held(cache) == std::vector<Position>{36, 37, 38, 39, 40, 41, 42, 43});
    cache.clear();
    for (int i = 0; i < 12; ++i) stream.step(cache, 1);
    CHECK(held(cache) == std::vector<Position>{0, 1, 6, 7, 8, 9, 10, 11});
  }
  SECTION("a sink taken out before all have come") {
    KvCache cache(heads, SinkWindow{.sinks = 3, .window = 3, .positions = RopePositions::text}, {.max_chunk = 1});
    KvStream<float> stream(heads, 8);
    for (int i = 0; i < 2; ++i) stream.step(cache, 1);
    cache.drop(0, 1);
    for (int i = 0; i < 12; ++i) stream.step(cache, 1);
    std::vector<Position> held(cache.positions(0).begin(), cache.positions(0).end());
    std::sort(held.begin(), held.end());
    CHECK(held == std::vector<Position>{1, 2, 10, 11, 12, 13});
  }
  SECTION("refused where it would lie") {
    KvCache sinks(heads, SinkWindow{.sinks = 2, .window = 6});
    KvStream<float> stream(heads, 9);
    stream.step(sinks, 1);
    CHECK_THROWS_WITH(sinks.drop(0, 1), contains("window at cache positions"));
    KvCache heavy(heads, HeavyHitter{.heavy = 2, .recent = 2}, {.max_draft = 1});
    stream.step(heavy, 1);
    heavy.checkpoint();
    CHECK_THROWS_WITH(heavy.drop(0, 1), contains("inside a journal"));
  }
}

TEST_CASE("a prompt-only policy evicts when a prompt ends, and then only grows", "[kv]") {
  KvCache cache(heads, SnapKv{.keep = 10, .window = 4}, {.max_chunk = 30, .max_draft = 3, .max_generated = 5});
  KvStream<float> stream(heads, 10);
  stream.step(cache, 24, Phase::prefill);
  for (Index h = 0; h < 2; ++h) {
    CHECK(cache.size(h) == 10);
    const std::vector<Position> held(cache.positions(h).begin(), cache.positions(h).end());
    CHECK(std::is_sorted(held.begin(), held.end()));
    CHECK(std::vector<Position>(held.end() - 4, held.end()) == std::vector<Position>{20, 21, 22, 23});
  }
  for (int i = 0; i < 5; ++i) stream.step(cache, 1);
  CHECK(cache.size(0) == 15);
  const auto before = cache.clone();
  cache.checkpoint();
  stream.step(cache, 3);
  cache.crop(29);
  CHECK(same_state(cache, before));
  CHECK(cache.evict(4) == 0);  // room is not made before the next prompt ends
  for (int i = 0; i < 30; ++i) stream.step(cache, 1);
  CHECK_THROWS_WITH(stream.step(cache, 1), contains("larger max_generated"));
}

TEST_CASE("a prompt in pieces waits for its last one, and is chosen from as a whole", "[kv]") {
  KvStream<float> stream(heads, 11);
  const Matrix<float> k = stream.random(30, row_width), v = stream.random(30, row_width), q = stream.random(30, 64);
  const auto read = [&](auto& cache, std::initializer_list<Index> pieces) {
    Index at = 0;
    Workspace ws(attend_workspace_bytes<float>(heads, 30));
    for (const Index n : pieces) {
      cache.append(k.middleRows(at, n), v.middleRows(at, n), {.phase = Phase::prefill, .more = at + n < 30});
      Matrix<float> out(n, 64);
      if (cache.watching()) attend(q.middleRows(at, n), cache.view(), out, ws, cache.observer());
      cache.evict();
      at += n;
    }
  };
  KvCache whole(heads, SnapKv{.keep = 9, .window = 5}, {.max_chunk = 30}), pieces(heads, SnapKv{.keep = 9, .window = 5}, {.max_chunk = 30});
  read(whole, {30});
  read(pieces, {11, 9, 10});
  CHECK(same_state(whole, pieces));
  KvCache heavy(heads, PromptOnly(HeavyHitter{.heavy = 5, .recent = 4}), {.max_chunk = 30, .max_draft = 1}),
      heavy_pieces(heads, PromptOnly(HeavyHitter{.heavy = 5, .recent = 4}), {.max_chunk = 30});
  read(heavy, {30});
  read(heavy_pieces, {16, 14});
  for (Index h = 0; h < 2; ++h) CHECK(std::equal(heavy.positions(h).begin(), heavy.positions(h).end(), heavy_pieces.positions(h).begin()));
  CHECK_THROWS_WITH(heavy.append(k.topRows(1), v.topRows(1), {.more = true}), contains("pieces of a prompt"));
  heavy.checkpoint();
  CHECK_THROWS_WITH(heavy.append(k.topRows(1), v.topRows(1), {.phase = Phase::prefill}), contains("prompt-only"));
}

TEST_CASE("heads that share a budget hold their own rows, and go on decoding in them", "[kv]") {
  KvStream<float> stream(heads, 12);
  KvCache cache(heads, Adaptive(SnapKv{.keep = 12, .window = 2}, {.floor = 0.1}), {.max_chunk = 40, .max_generated = 8});
  for (int prompt = 0; prompt < 3; ++prompt) {
    // Keys of head 0 are all alike, those of head 1 differ: attention stands out there.
    Matrix<float> k = stream.random(40, row_width), v = stream.random(40, row_width), q = stream.random(40, 64);
    k.leftCols(16).setConstant(0.1f);
    k.rightCols(16) *= 4;
    KvStream<float>::feed(cache, q, k, v, Phase::prefill);
    CHECK(cache.size(0) + cache.size(1) == 24);
    CHECK(cache.size(0) != cache.size(1));
    for (Index h = 0; h < 2; ++h)
      for (Index r = 0; r < cache.size(h); ++r)
        if (const Index at = cache.positions(h)[static_cast<std::size_t>(r)] - (cache.next_position() - 40); at >= 0)
          CHECK(cache.keys(h).row(r) == k.row(at).segment(h * 16, 16));
    for (int i = 0; i < 8; ++i) stream.step(cache, 1);
    CHECK(cache.size(0) + cache.size(1) == 24 + 16);
  }
}
