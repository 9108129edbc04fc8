#include <limits>
#include <utility>
#include <vector>

#include <pith/kv.hpp>

#include "support/catch.hpp"
#include "support/kv_stream.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::KvStream;
using pith_test::same_state;

namespace {
const AttentionShape small{4, 2, 8};
constexpr Index small_width = 16;

struct KeepsAll {
  Index rows = 4;
  Index budget() const { return rows; }
  template <class S> void score(const KvRows<S>&, VectorRef<S> out) const { out.setConstant(std::numeric_limits<S>::infinity()); }
};
struct Greedy {
  Index b = 4, r = 4, s = 0;
  Index budget() const { return b; }
  Index retain() const { return r; }
  template <class S> void score(const KvRows<S>&, VectorRef<S> out) const { out.setZero(); }
};
}  // namespace

TEST_CASE("rows are stored as given and every row carries its position and kind", "[kv]") {
  KvCache<Dense, Drop, half> cache(small, {}, {.max_tokens = 10});
  KvStream<half> stream(small, 2);
  const Matrix<float> k = stream.random(3, small_width), v = stream.random(3, small_width);
  const std::vector<TokenKind> kinds{TokenKind::text, TokenKind::image, TokenKind::audio};
  const std::vector<Position> positions{2, 5, 6};
  cache.append(k, v, {.kinds = kinds, .positions = positions});
  CHECK(cache.next_position() == 7);
  for (Index h = 0; h < 2; ++h) {
    REQUIRE(cache.size(h) == 3);
    CHECK(cache.keys(h) == k.middleCols(h * 8, 8).cast<half>());
    CHECK(cache.values(h) == v.middleCols(h * 8, 8).cast<half>());
    CHECK(std::vector<Position>(cache.positions(h).begin(), cache.positions(h).end()) == positions);
    CHECK(std::vector<TokenKind>(cache.kinds(h).begin(), cache.kinds(h).end()) == kinds);
  }
}

TEST_CASE("a refused call changes nothing and says what to do", "[kv]") {
  KvCache cache(small, HeavyHitter{.heavy = 2, .recent = 2}, {.max_chunk = 2, .max_draft = 2});
  KvStream<float> stream(small, 3);
  for (int i = 0; i < 6; ++i) stream.step(cache, 1);
  const auto before = cache.clone();
  const Matrix<float> row = stream.random(1, small_width), two = stream.random(2, small_width), three = stream.random(3, small_width),
                      wrong = stream.random(1, 15);
  const Eigen::VectorXf column = Eigen::VectorXf::Zero(small_width);

  CHECK_THROWS_AS(cache.append(wrong, row), ShapeError);
  CHECK_THROWS_AS(cache.append(row, two), ShapeError);
  CHECK_THROWS_WITH(cache.append(column, column), contains("did you mean k.transpose()?"));
  CHECK_THROWS_AS(cache.append(three, three), CapacityError);
  CHECK_THROWS_WITH(cache.append(three, three),
                    contains("full (4 of 6 rows + chunk 3): call evict() after each chunk, or construct with a larger max_chunk"));
  const std::vector<TokenKind> kinds(3);
  CHECK_THROWS_WITH(cache.append(row, row, {.kinds = kinds}), contains("3 kinds for 1 tokens"));
  const std::vector<Position> past{3};
  CHECK_THROWS_WITH(cache.append(row, row, {.positions = past}), contains("position 3 where 6 or more is expected"));
  CHECK_THROWS_AS(cache.observe({.kv_head = 2, .weights = row}), ShapeError);
  CHECK_THROWS_WITH(cache.observe({.kv_head = 0, .weights = Matrix<float>::Zero(2, 3).eval()}),
                    contains("weights is [2, 3], expected [*, 4]"));
  CHECK_THROWS_WITH(cache.observe({.kv_head = 0, .weights = Matrix<float>::Zero(3, 4).eval()}), contains("a multiple of 2"));
  CHECK_THROWS_AS(cache.evict(-1), ShapeError);
  CHECK_THROWS_AS(cache.crop(5), StateError);
  CHECK_THROWS_WITH(cache.crop(5), contains("call checkpoint() before"));
  CHECK_THROWS_AS(cache.keys(-1), ShapeError);
  CHECK(same_state(cache, before));

  cache.checkpoint();
  stream.step(cache, 2);
  CHECK_THROWS_WITH(cache.crop(7), contains("no append since the checkpoint began there"));
  CHECK_THROWS_WITH(cache.append(two, two), contains("the open journal can take back 1 more"));
  CHECK_THROWS_AS(cache.evict(1), StateError);
  cache.crop(6);
  CHECK(same_state(cache, before));

  cache.append(row, row);
  CHECK_THROWS_AS(cache.evict(), StateError);
  CHECK_THROWS_WITH(cache.evict(), contains("saw the attention of 0 of 1 queries"));
}

TEST_CASE("a full dense cache refuses, and crops without a checkpoint", "[kv]") {
  KvCache<Dense> cache(small, {}, {.max_tokens = 8});
  KvStream<float> stream(small, 4);
  stream.step(cache, 5);
  const auto five = cache.clone();
  stream.step(cache, 3);
  CHECK_THROWS_AS(stream.step(cache, 1), CapacityError);
  CHECK_THROWS_WITH(stream.step(cache, 1), contains("full (8 of 8 rows + chunk 1): construct with a larger max_tokens"));
  CHECK_THROWS_AS(cache.crop(9), StateError);
  CHECK_THROWS_AS(cache.crop(-1), StateError);
  cache.crop(5);
  CHECK(same_state(cache, five));
  cache.crop(0);
  CHECK(cache.size(1) == 0);
}

TEST_CASE("positions never leave their range", "[kv]") {
  KvCache cache(small, Window{4});
  const Matrix<float> row = Matrix<float>::Ones(1, small_width);
  const std::vector<Position> last{std::numeric_limits<Position>::max() - 1};
  cache.append(row, row, {.positions = last});
  cache.evict();
  CHECK_THROWS_AS(cache.append(row, row), CapacityError);
  CHECK_THROWS_WITH(cache.append(row, row), contains("leaves the range of positions"));
  CHECK(cache.size(0) == 1);
  const std::vector<Position> over{std::numeric_limits<Position>::max()};
  cache.clear();
  CHECK_THROWS_AS(cache.append(row, row, {.positions = over}), CapacityError);
}

TEST_CASE("policies and options that make no sense are refused", "[kv]") {
  CHECK_THROWS_WITH(KvCache(small, Window{0}), contains("window is 0"));
  CHECK_THROWS_WITH(KvCache(small, SinkWindow{.sinks = 4, .window = 0}), contains("window is 0"));
  CHECK_THROWS_WITH(KvCache(small, Greedy{.b = 4, .r = 5}), contains("retain() is 5"));
  CHECK_THROWS_WITH(KvCache(small, Window{4}, {.max_chunk = 0}), contains("max_chunk is 0"));
  CHECK_THROWS_AS(KvCache(small, Window{std::numeric_limits<Index>::max() - 1}), CapacityError);
  CHECK_THROWS_AS(KvCache(AttentionShape{3, 2, 8}, Window{4}), ShapeError);
  CHECK_THROWS_AS(KvCache(AttentionShape{4, 2, 0}, Window{4}), ShapeError);
  KvCache sinks(small, SinkWindow{.sinks = 1, .window = 3});
  const Matrix<float> row = Matrix<float>::Ones(1, small_width);
  const std::vector<Position> gap{4};
  CHECK_THROWS_WITH(sinks.append(row, row, {.positions = gap}), contains("cache positions have none"));
  KvCache none(small, Window{4}, {.max_draft = 0});
  CHECK_THROWS_WITH(none.checkpoint(), contains("max_draft = 0"));
}

TEST_CASE("a chunk longer than the budget lands, and comes home evicted", "[kv]") {
  KvLanding<float> landing(small, 60, {.stats = 1});
  KvCache cache(small, HeavyHitter{.heavy = 5, .recent = 3}, {.max_chunk = 1});
  KvCache roomy(small, HeavyHitter{.heavy = 5, .recent = 3}, {.max_chunk = 50});
  KvStream<float> a(small, 9), b(small, 9);
  for (const Index tokens : {40, 1, 1, 1, 50, 1}) {
    cache.reserve(tokens, &landing);
    // The same rows in another order: the same sums up to rounding.
    CHECK((a.step(cache, tokens) - b.step(roomy, tokens)).cwiseAbs().maxCoeff() < 60 * 1.2e-7f * 8);
    for (Index h = 0; h < 2; ++h) {
      std::vector<Position> ours(cache.positions(h).begin(), cache.positions(h).end()),
          theirs(roomy.positions(h).begin(), roomy.positions(h).end());
      std::sort(ours.begin(), ours.end());
      std::sort(theirs.begin(), theirs.end());
      CHECK(ours == theirs);
    }
  }
  CHECK(cache.bytes() < landing.bytes());
  CHECK_THROWS_AS(cache.reserve(60, &landing), CapacityError);
  CHECK_THROWS_AS(cache.reserve(2), CapacityError);
  KvLanding<float> other(AttentionShape{4, 4, 8}, 60, {.stats = 1}), without_stats(small, 60);
  CHECK_THROWS_AS(cache.reserve(20, &other), ShapeError);
  CHECK_THROWS_AS(cache.reserve(20, &without_stats), ShapeError);
  cache.reserve(20, &landing);
  CHECK_THROWS_AS(cache.clone(), StateError);
  CHECK_THROWS_AS(cache.checkpoint(), StateError);
  a.step(cache, 20);
  cache.checkpoint();
  CHECK_THROWS_AS(cache.reserve(9, &landing), StateError);

  KvCache greedy(small, KeepsAll{4});
  greedy.reserve(20, &landing);
  const Matrix<float> rows = Matrix<float>::Ones(20, small_width);
  greedy.append(rows, rows);
  CHECK_THROWS_AS(greedy.evict(), CapacityError);
  CHECK_THROWS_WITH(greedy.evict(), contains("scores 20 rows of a head +inf, 5 fit at home"));
  CHECK(greedy.size(0) == 20);
}

TEST_CASE("sinks at cache positions: the gap is what the window has left behind", "[kv]") {
  KvCache cache(small, SinkWindow{.sinks = 2, .window = 4});
  KvStream<float> stream(small, 6);
  for (int i = 0; i < 6; ++i) stream.step(cache, 1);
  CHECK(cache.gap() == 0);
  CHECK(cache.view().runs[0].sinks == 0);
  for (int i = 0; i < 3; ++i) stream.step(cache, 1);
  CHECK(cache.gap() == 3);  // the next query sits at 6 in the cache, at 9 in the text
  CHECK(cache.view().runs[1].sinks == 2);
  KvCache text(small, SinkWindow{.sinks = 2, .window = 4, .reading = Reading::stream});
  KvStream<float> again(small, 6);
  for (int i = 0; i < 9; ++i) again.step(text, 1);
  CHECK(text.gap() == 0);
}

TEST_CASE("caches move, and clear() starts over", "[kv]") {
  KvCache first(small, HeavyHitter{.heavy = 2, .recent = 2});
  KvStream<float> a(small, 8), b(small, 8);
  const auto fresh = first.clone();
  for (int i = 0; i < 9; ++i) a.step(first, 1);
  KvCache moved = std::move(first);
  a.step(moved, 1);
  moved.clear();
  CHECK(moved.next_position() == 0);
  auto twin = fresh.clone();
  KvStream<float> c(small, 8);
  for (int i = 0; i < 9; ++i) CHECK(b.step(moved, 1) == c.step(twin, 1));
  CHECK(same_state(moved, twin));
}
