// Wrappers of a few lines: a budget for each head, a threshold, a share of the text, a prompt kept whole; and what they refuse.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <memory>
#include <vector>

#include <pith/kv.hpp>

#include "support/catch.hpp"
#include "support/kv_stream.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::KvStream;

namespace {

constexpr AttentionShape short_shape{.num_heads = 4, .num_kv_heads = 2, .head_dim = 8};

std::vector<Position> held_by(const KvCache<float>& cache, Index h) {
  std::vector<Position> out(cache.positions(h).begin(), cache.positions(h).end());
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace

TEST_CASE("each head keeps a number of its own, streaming heads sinks and newest rows", "[kv]") {
  KvCache cache(short_shape, PerHead(Protect(Newest{20}, {.sinks = 2}), {30, 6}), {.max_chunk = 30, .max_draft = 3, .max_generated = 10});
  KvStream<float> stream(short_shape, 3);
  stream.step(cache, 30, Phase::prefill);
  CHECK(cache.size(0) == 30);  // a retrieval head
  CHECK(held_by(cache, 1) == std::vector<Position>{0, 1, 26, 27, 28, 29});
  cache.checkpoint();
  stream.step(cache, 1);
  CHECK(cache.size(0) == 31);
  CHECK(cache.size(1) == 7);
  cache.crop(30);
  CHECK(held_by(cache, 1) == std::vector<Position>{0, 1, 26, 27, 28, 29});
  CHECK_THROWS_WITH(KvCache<float>(short_shape, PerHead(Newest{20}, {30})), contains("1 budgets for 2 kv heads"));
  CHECK_THROWS_WITH(KvCache<float>(short_shape, PerHead(Newest{20}, {30, 11})), contains("41 rows of all heads, expected at most 2 times"));
  CHECK_THROWS_WITH(KvCache<float>(short_shape, PerHead(Newest{20}, {30, 0})), contains("rows is 0"));
  CHECK_THROWS_WITH(KvCache<float>(short_shape, PerHead(Chunkwise(KeyNorm{20}, 4), {10, 10})), contains("decides itself"));
}

TEST_CASE("a threshold takes rows once they leave the window, and gives them back in a journal", "[kv]") {
  KvCache cache(short_shape, Threshold(KeyNorm{64}, {.least = -1.6, .window = 5}), {.max_chunk = 20, .max_draft = 4});
  KvStream<float> stream(short_shape, 4);
  std::vector<std::vector<double>> norms(2);
  const auto check = [&] {
    for (Index h = 0; h < 2; ++h) {
      std::vector<Position> expected;
      for (std::size_t p = 0; p < norms[std::size_t(h)].size(); ++p)
        if (p + 5 >= norms[std::size_t(h)].size() || -norms[std::size_t(h)][p] >= -1.6) expected.push_back(Position(p));
      CHECK(held_by(cache, h) == expected);
    }
  };
  bool some = false;
  for (int i = 0; i < 30; ++i) {
    const Matrix<float> k = pith_test::random_matrix<float>(1, 16, std::uint64_t(i)), v = k;
    cache.append(k, v);
    for (Index h = 0; h < 2; ++h) norms[std::size_t(h)].push_back(double(k.row(0).segment(8 * h, 8).norm()));
    cache.evict();
    check();
    some = some || cache.size(0) != cache.size(1);
    if (i % 7 == 6) {
      cache.checkpoint();
      const auto before = held_by(cache, 0);
      for (int draft = 0; draft < 3; ++draft) stream.step(cache, 1);
      cache.crop(Position(i + 1));
      CHECK(held_by(cache, 0) == before);
    }
  }
  CHECK(some);
  CHECK_THROWS_WITH(KvCache<float>(short_shape, Threshold(KeyNorm{4}, {.window = 5})), contains("window is 5, expected 0 .. 4"));
  CHECK_THROWS_WITH(KvCache<float>(short_shape, Threshold(KeyNorm{4}, {.least = std::numeric_limits<double>::quiet_NaN(), .window = 1})),
                    contains("not a number"));
}

TEST_CASE("a budget grows with the text", "[kv]") {
  KvCache cache(short_shape, Growing(Newest{64}, {.ratio = .75, .interval = 4}), {.max_chunk = 1});
  KvStream<float> stream(short_shape, 5);
  for (Index seen = 1; seen <= 60; ++seen) {
    stream.step(cache, 1);
    const Index due = seen / 4 * 4, rows = due == 0 ? 0 : std::max<Index>(1, due / 4);
    CHECK(cache.size(0) == rows + seen - due);
  }
  CHECK_THROWS_WITH(KvCache<float>(short_shape, Growing(Newest{4}, {.ratio = 2})), contains("ratio is 2"));
  CHECK_THROWS_WITH(KvCache<float>(short_shape, Growing(Newest{4}, {.interval = 0})), contains("interval is 0"));
}

TEST_CASE("a prompt stays whole while random rows of what follows are kept", "[kv]") {
  KvCache cache(short_shape, Protect(Random{24}, {.sinks = 12, .recent = 4}), {.max_chunk = 12});
  KvStream<float> stream(short_shape, 6);
  stream.step(cache, 12, Phase::prefill);
  for (int i = 0; i < 60; ++i) stream.step(cache, 1);
  for (Index h = 0; h < 2; ++h) {
    const std::vector<Position> held = held_by(cache, h);
    REQUIRE(held.size() == 24);
    for (Position p = 0; p < 12; ++p) CHECK(held[std::size_t(p)] == p);
    for (Position p = 0; p < 4; ++p) CHECK(held[std::size_t(20 + p)] == 68 + p);
  }
  CHECK(held_by(cache, 0) != held_by(cache, 1));
}

TEST_CASE("a lazy layer keeps sinks and newest rows, another one all, wherever the prompt is cut", "[kv]") {
  for (const double threshold : {0.0, 1.0}) {
    std::vector<std::vector<Position>> kept;
    for (const Index cut : {40, 39, 38, 20}) {
      KvCache cache(short_shape, LazyLayer{.keep = 60, .sinks = 3, .recent = 8, .last = 3, .threshold = threshold},
                    {.max_chunk = 40, .max_generated = 4});
      const Matrix<float> k = pith_test::random_matrix<float>(40, 16, 8), v = k, q = pith_test::random_matrix<float>(40, 32, 9);
      for (Index done = 0; done < 40;) {
        const Index n = done == 0 ? cut : 40 - done;
        cache.append(k.middleRows(done, n), v.middleRows(done, n), {.phase = Phase::prefill, .more = done + n < 40});
        attend(q.middleRows(done, n), cache);
        cache.evict();
        done += n;
      }
      kept.push_back(held_by(cache, 1));
    }
    for (const auto& each : kept) CHECK(each == kept.front());
    CHECK(kept.front().size() == (threshold == 0 ? 3 + 8 - 3 : 40));
  }
  CHECK_THROWS_WITH(KvCache<float>(short_shape, LazyLayer{.keep = 8, .sinks = 4, .recent = 5}), contains("recent is 5, expected 1 .. 4"));
  CHECK_THROWS_WITH(KvCache<float>(short_shape, LazyLayer{.keep = 80, .recent = 2, .last = 3}), contains("last is 3"));
}

TEST_CASE("policies that turn keys back refuse what they cannot", "[kv]") {
  const auto rope = std::make_shared<const Rope<float>>(RopeOptions{.head_dim = 8});
  const auto wide = std::make_shared<const Rope<float>>(RopeOptions{.head_dim = 256});
  const auto refused = [](const AttentionShape& shape, AnyPolicy<float> policy, const char* why) {
    CHECK_THROWS_WITH(KvCache<float>(shape, std::move(policy)), contains(why));
  };
  refused(short_shape, Leverage<float>{}, "expected a rope for heads of 8");
  refused(short_shape, CapKv<float>{.rope = wide}, "expected a rope for heads of 8");
  refused({2, 2, 256}, Leverage<float>{.rope = wide}, "expected at most 128");
  refused(short_shape, Leverage<float>{.rope = rope, .sketch = std::make_shared<Matrix<float>>(8, 3)}, "sketch");
  refused(short_shape, NonCausal{.kernel = 2}, "expected an odd number");
  refused(short_shape, RKv{.keep = 4}, "window is 8, expected 1 .. 4");
  refused(short_shape, RKv{.keep = 20, .rows_per_eviction = 14}, "rows_per_eviction is 14, expected 1 .. 13");
  refused(short_shape, Compactor<float>{.leverage = {.rope = rope}, .blend = -1}, "blend is -1");
}

TEST_CASE("Compactor's sinks and newest rows are told by position, so none takes the place of one that is gone", "[kv]") {
  const auto rope = std::make_shared<const Rope<float>>(RopeOptions{.head_dim = 8});
  const std::vector<Position> positions{0, 1, 5, 6, 7, 9, 11};  // of text 0 .. 11, some dropped before
  const Index n = static_cast<Index>(positions.size());
  const std::vector<TokenKind> kinds(positions.size(), TokenKind::text);
  const Matrix<float> keys = pith_test::random_matrix<float>(n, 8, 1), values = pith_test::random_matrix<float>(n, 8, 2),
                      queries = pith_test::random_matrix<float>(16, n, 3);
  std::vector<float> scratch(positions.size());
  const KvRows<float> rows{.kv_head = 0,
                           .shape = short_shape,
                           .next = 12,
                           .positions = positions,
                           .kinds = kinds,
                           .stats = queries,
                           .keys = keys,
                           .values = values,
                           .scratch = scratch.data()};
  Vector<float> score(n);
  Compactor<float>{.leverage = {.rope = rope, .keep = 16, .sinks = 4}, .recent = 4}.score(rows, score);
  for (std::size_t r = 0; r < positions.size(); ++r) CHECK(std::isinf(score[Index(r)]) == (positions[r] < 4 || positions[r] >= 8));
}
