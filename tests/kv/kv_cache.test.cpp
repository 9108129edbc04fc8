#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <utility>
#include <vector>

#include <pith/kv.hpp>

#include "support/catch.hpp"
#include "support/kv_stream.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::KvStream;
using pith_test::random_matrix;
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
  KvCache<half> cache(small, {}, {.max_tokens = 10});
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
  KvCache<> cache(small, {}, {.max_tokens = 8});
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
  KvPromptBuffer<float> prompt_buffer(small, 60, {.stats = 1});
  KvCache cache(small, HeavyHitter{.heavy = 5, .recent = 3}, {.max_chunk = 1, .max_draft = 8});
  KvCache roomy(small, HeavyHitter{.heavy = 5, .recent = 3}, {.max_chunk = 50});
  KvStream<float> a(small, 9), b(small, 9);
  for (const Index tokens : {40, 1, 1, 1, 50, 1}) {
    cache.reserve(tokens, &prompt_buffer);
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
  CHECK(cache.bytes() < prompt_buffer.bytes());
  CHECK_THROWS_AS(cache.reserve(60, &prompt_buffer), CapacityError);
  CHECK_THROWS_AS(cache.reserve(2), CapacityError);
  KvPromptBuffer<float> other(AttentionShape{4, 4, 8}, 60, {.stats = 1}), without_stats(small, 60);
  CHECK_THROWS_AS(cache.reserve(20, &other), ShapeError);
  CHECK_THROWS_AS(cache.reserve(20, &without_stats), ShapeError);
  cache.reserve(20, &prompt_buffer);
  CHECK_THROWS_AS(cache.clone(), StateError);
  CHECK_THROWS_AS(cache.checkpoint(), StateError);
  a.step(cache, 20);
  cache.checkpoint();
  CHECK_THROWS_AS(cache.reserve(9, &prompt_buffer), StateError);

  KvCache greedy(small, KeepsAll{4});
  greedy.reserve(20, &prompt_buffer);
  const Matrix<float> rows = Matrix<float>::Ones(20, small_width);
  greedy.append(rows, rows);
  CHECK_THROWS_AS(greedy.evict(), CapacityError);
  CHECK_THROWS_WITH(greedy.evict(), contains("scores 20 rows of a head +inf, 5 fit at home"));
  CHECK(greedy.size(0) == 20);
}

namespace {
/// The newest leave first, but for the very newest.
struct Oldest {
  Index rows = 4;
  Index budget() const { return rows; }
  template <class S> void score(const KvRows<S>& kept, VectorRef<S> out) const {
    for (Index r = 0; r < kept.size(); ++r) out[r] = -S(kept.positions[static_cast<std::size_t>(r)]);
  }
};
}  // namespace

namespace {
/// Looks at the queries themselves.
struct AsksQueries {
  Index budget() const { return 4; }
  Index stats(const AttentionShape&) const { return 1; }
  PolicyTraits traits() const { return {.needs_queries = true}; }
  template <class S> void observe(const AttentionBlock<S>& seen, const KvRows<S>&, MatrixRef<S> stats) const {
    stats.row(0).array() += seen.queries(0, 0);
  }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const { out = rows.stats.row(0); }
};
}  // namespace

TEST_CASE("a row is out of a sliding window's sight when the token to come is a window away", "[kv]") {
  const auto held = [](Index window) {
    KvCache cache(small, Oldest{}, {.max_chunk = 5, .window = window});
    const Matrix<float> rows = Matrix<float>::Ones(5, small_width);
    cache.append(rows, rows);
    cache.evict();
    std::vector<Position> positions(cache.positions(1).begin(), cache.positions(1).end());
    std::sort(positions.begin(), positions.end());
    return positions;
  };
  CHECK(held(6) == std::vector<Position>{0, 1, 2, 4});  // the token at 5 sees all five
  CHECK(held(5) == std::vector<Position>{1, 2, 3, 4});
  CHECK(held(4) == std::vector<Position>{2, 3, 4});
}

TEST_CASE("a prompt buffer holds one cache's rows at a time", "[kv]") {
  KvPromptBuffer<float> prompt_buffer(small, 60);
  KvCache one(small, Window{4}), other(small, Window{4});
  const Matrix<float> ones = Matrix<float>::Ones(20, small_width), twos = Matrix<float>::Constant(20, small_width, 2);
  one.reserve(20, &prompt_buffer);
  one.append(ones, ones);
  CHECK_THROWS_AS(other.reserve(20, &prompt_buffer), StateError);
  CHECK_THROWS_WITH(other.reserve(20, &prompt_buffer), contains("the prompt buffer holds the rows of another cache"));
  CHECK(other.size(0) == 0);
  KvCache moved = std::move(one);  // and its rows in the prompt buffer
  CHECK_THROWS_AS(other.reserve(20, &prompt_buffer), StateError);
  moved.evict();
  CHECK(moved.keys(0) == ones.topLeftCorner(4, 8));
  other.reserve(20, &prompt_buffer);
  other.append(twos, twos);
  other.clear();  // gives it back as well
  {
    KvCache brief(small, Window{4});
    brief.reserve(20, &prompt_buffer);
  }
  moved.reserve(20, &prompt_buffer);
  moved.append(twos, twos);
  moved.evict();
  CHECK(moved.keys(1) == twos.topLeftCorner(4, 8));
  KvCache last(small, Window{4});
  KvPromptBuffer<float> brief(small, 60);
  last.reserve(20, &brief);
  brief = KvPromptBuffer<float>(small, 60);  // the lease of one that is gone ends without it
  CHECK_THROWS_AS(KvPromptBuffer<float>(small, 0), ShapeError);
  CHECK_THROWS_AS(KvPromptBuffer<float>(small, -5), ShapeError);
  CHECK_THROWS_AS(KvPromptBuffer<float>(small, std::numeric_limits<Index>::max()), ShapeError);
  CHECK_THROWS_AS(KvPromptBuffer<float>(small, 8, {.stats = -1}), ShapeError);
  CHECK_THROWS_AS(KvPromptBuffer<float>(small, 8, {.stats = std::numeric_limits<Index>::max()}), CapacityError);
  CHECK_THROWS_AS(KvPromptBuffer<float>(AttentionShape{3, 2, 8}, 8), ShapeError);
}

TEST_CASE("a prompt buffer may keep more of a row than its cache does", "[kv]") {
  KvPromptBuffer<float> prompt_buffer(
      small, 60, {.stats = 3, .reads_rows = true, .combines = true, .cache_positions = true, .keep_masses = true, .merges = true});
  const auto same = [&](auto policy) {
    KvCache away(small, policy, {.max_chunk = 1}), home(small, policy, {.max_chunk = 20});
    KvStream<float> a(small, 7), b(small, 7);
    for (int turn = 0; turn < 2; ++turn) {
      away.reserve(20, &prompt_buffer);
      CHECK(away.masses(0).size() == 0);
      CHECK(away.view().runs[0].log_mass == nullptr);
      CHECK(away.stats(0).rows() == home.stats(0).rows());
      a.step(away, 20);
      b.step(home, 20);
      for (Index h = 0; h < 2; ++h) {
        std::vector<Position> ours(away.positions(h).begin(), away.positions(h).end()),
            theirs(home.positions(h).begin(), home.positions(h).end());
        std::sort(ours.begin(), ours.end());
        std::sort(theirs.begin(), theirs.end());
        CHECK(ours == theirs);
      }
    }
  };
  same(Window{6});
  same(HeavyHitter{.heavy = 3, .recent = 3});
}

TEST_CASE("numbers beyond 16-bit rows become their largest, and what is not finite stays so", "[kv]") {
  constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const Matrix<float> numbers = (Matrix<float>(1, 8) << 70000, -70000, 65504, 3.4e38f, inf, -inf, nan, 1).finished();
  const auto stored = [&]<class T>(T) {
    KvCache<T> cache({1, 1, 8}, {}, {.max_tokens = 2});
    cache.append(numbers, numbers);
    CHECK(pith_test::keys_of(cache, 0).leftCols(4) == pith_test::values_of(cache, 0).leftCols(4));
    return Matrix<float>(pith_test::keys_of(cache, 0));
  };
  const Matrix<float> h = stored(half()), b = stored(bfloat16());
  CHECK(h(0, 0) == 65504);
  CHECK(h(0, 1) == -65504);
  CHECK(h(0, 2) == 65504);
  CHECK(h(0, 3) == 65504);
  CHECK(b(0, 0) == 70144);  // 8 bits of it
  CHECK(b(0, 3) == 0x1.fep127f);
  for (const auto* m : {&h, &b}) {
    CHECK((*m)(0, 4) == inf);
    CHECK((*m)(0, 5) == -inf);
    CHECK(std::isnan((*m)(0, 6)));
    CHECK((*m)(0, 7) == 1);
  }
}

TEST_CASE("arguments that no cache can take are refused", "[kv]") {
  constexpr Index most = std::numeric_limits<Index>::max();
  KvCache cache(small, HeavyHitter{.heavy = 2, .recent = 2}, {.max_chunk = 2, .max_draft = 2});
  KvStream<float> stream(small, 3);
  for (int i = 0; i < 6; ++i) stream.step(cache, 1);
  const auto before = cache.clone();
  KvPromptBuffer<float> prompt_buffer(small, 60, {.stats = 1});
  CHECK_THROWS_AS(cache.reserve(most), CapacityError);
  CHECK_THROWS_AS(cache.reserve(most, &prompt_buffer), CapacityError);
  CHECK_THROWS_AS(cache.reserve(-1), ShapeError);
  const auto& state = detail::CacheInternals::state(cache);
  CHECK_THROWS_AS(state.check_room(most, {}, nullptr), CapacityError);
  CHECK_THROWS_AS(state.check_reserve(most, &prompt_buffer), CapacityError);
  CHECK_THROWS_AS(state.check_room(-1, {}, nullptr), ShapeError);
  const Matrix<float> row = stream.random(1, small_width);
  const std::vector<TokenKind> kinds{static_cast<TokenKind>(200)};
  CHECK_THROWS_WITH(cache.append(row, row, {.kinds = kinds}), contains("kind 200"));
  CHECK(same_state(cache, before));
  CHECK(cache.evict(most) == 2 * 2);  // the recent two stay
  CHECK_THROWS_AS(KvCache(small, Window{4}, {.max_draft = most}), CapacityError);
  CHECK_THROWS_AS(KvCache(small, Window{4}, {.max_generated = most}), CapacityError);
  CHECK_THROWS_AS(KvCache(small, Window{4}, {.max_chunk = most}), CapacityError);
  CHECK_THROWS_AS(KvCache(AttentionShape{most / 2, most / 2, 2}, Window{4}), CapacityError);
}

TEST_CASE("observe() checks all that a policy may read, and says what is wrong with it", "[kv]") {
  KvCache cache(small, HeavyHitter{.heavy = 2, .recent = 2}, {.max_chunk = 2});
  KvStream<float> stream(small, 3);
  for (int i = 0; i < 6; ++i) stream.step(cache, 1);
  const Matrix<float> one = Matrix<float>::Constant(2, 4, .25f), two = Matrix<float>::Constant(4, 6, .125f),
                      three = Matrix<float>::Constant(6, 6, .125f), queries = Matrix<float>::Zero(4, 8), wide = Matrix<float>::Zero(4, 9),
                      few = Matrix<float>::Zero(3, 8);
  const Vector<float> sums = Vector<float>::Zero(4), less = Vector<float>::Zero(3);
  CHECK_THROWS_WITH(cache.observe({.weights = one}), contains("1 queries after 0, but only 0 tokens were appended"));
  const Matrix<float> rows = stream.random(2, small_width);
  cache.append(rows, rows);
  const auto before = cache.clone();
  CHECK_THROWS_WITH(cache.observe({.weights = two, .log_sum = less}), contains("log_sum holds 3, expected 4"));
  CHECK_THROWS_WITH(cache.observe({.weights = two, .queries = wide}), contains("queries is [4, 9], expected [4, 8]"));
  CHECK_THROWS_WITH(cache.observe({.weights = two, .queries = few}), contains("queries is [3, 8], expected [4, 8]"));
  CHECK_THROWS_WITH(cache.observe({.weights = three}), contains("3 queries after 0, but only 2 tokens"));
  CHECK_THROWS_WITH(cache.observe({.weights = two, .first_query = 7}), contains("positions 7 .. 8, expected 0 .. 7"));
  CHECK_THROWS_WITH(cache.observe({.weights = two, .first_query = -2}), contains("positions"));
  CHECK(same_state(cache, before));
  cache.observe({.kv_head = 0, .weights = two, .log_sum = sums, .queries = queries, .first_query = 6});
  CHECK_THROWS_WITH(cache.observe({.kv_head = 0, .weights = two}), contains("2 queries after 2, but only 2 tokens"));
  cache.observe({.kv_head = 1, .weights = two});
  CHECK(cache.evict() == 4);

  const auto refuses = [&](auto policy, const char* what) {
    KvCache prompt(small, policy, {.max_chunk = 6});
    const Matrix<float> six = stream.random(6, small_width);
    prompt.append(six, six, {.phase = Phase::prefill});
    const Matrix<float> weights = Matrix<float>::Constant(12, 6, 1.f / 6);
    CHECK_THROWS_AS(prompt.observe({.weights = weights}), ShapeError);
    CHECK_THROWS_WITH(prompt.observe({.weights = weights}), contains(what));
  };
  refuses(Csp{.heavy = 2, .recent = 2}, "the policy reads log_sum");
  refuses(AsksQueries{}, "the policy reads the queries");
}

TEST_CASE("observe() is refused by a policy that never asks, and left out where it does not ask now", "[kv]") {
  const Matrix<float> rows = Matrix<float>::Ones(4, small_width), weights = Matrix<float>::Constant(8, 4, .25f),
                      more = Matrix<float>::Constant(2, 5, .2f);
  KvCache window(small, Window{4}, {.max_chunk = 4});
  window.append(rows, rows);
  const auto unseen = window.clone();
  CHECK(!window.watching());
  CHECK_THROWS_AS(window.observe({.weights = weights}), StateError);
  CHECK_THROWS_WITH(window.observe({.weights = weights}), contains("under a policy that does not watch attention"));
  CHECK(same_state(window, unseen));

  KvCache snap(small, SnapKv{.keep = 4, .window = 2, .kernel = 1}, {.max_chunk = 4});
  snap.append(rows, rows, {.phase = Phase::prefill});
  CHECK(snap.watching());
  for (Index h = 0; h < 2; ++h) snap.observe({.kv_head = h, .weights = weights});
  CHECK(snap.evict() == 0);
  snap.append(rows.topRows(1), rows.topRows(1));
  CHECK(!snap.watching());
  const auto before = snap.clone();
  CHECK_THROWS_AS(snap.observe({.weights = weights}), ShapeError);  // checked like all others
  snap.observe({.weights = more});
  CHECK(same_state(snap, before));
  CHECK(snap.evict() == 0);  // and nobody misses what was not shown to head 1
}

TEST_CASE("tiles of the last queries are shown in order, each once", "[kv]") {
  const SnapKv policy{.keep = 5, .window = 4, .kernel = 1};
  KvCache whole(small, policy, {.max_chunk = 8}), tiles = whole.clone();
  const Matrix<float> rows = Matrix<float>::Ones(8, small_width);
  const Matrix<float> weights = random_matrix<float>(16, 8, 5).cwiseAbs();  // two query heads a kv head
  for (KvCache<>* cache : {&whole, &tiles}) cache->append(rows, rows, {.phase = Phase::prefill});
  const auto tile = [&](Index h, Index first, Index count) {
    tiles.observe({.kv_head = h, .weights = weights.middleRows(2 * first, 2 * count), .first_query = static_cast<Position>(first)});
  };
  for (Index h = 0; h < 2; ++h) {
    whole.observe({.kv_head = h, .weights = weights});
    const auto untouched = tiles.clone();
    CHECK_THROWS_WITH(tile(h, 6, 2), contains("queries 6 .. 7 of the 8 tokens since the last evict(), but query 4 is next"));
    tile(h, 0, 3);  // before the window
    CHECK(same_state(tiles, untouched));
    tile(h, 3, 3);
    const auto half = tiles.clone();
    CHECK_THROWS_WITH(tile(h, 5, 1), contains("but query 6 is next"));
    CHECK_THROWS_WITH(tile(h, 7, 1), contains("but query 6 is next"));
    CHECK(same_state(tiles, half));
    tile(h, 6, 2);
    CHECK_THROWS_AS(tile(h, 6, 2), StateError);
  }
  tiles.evict();
  whole.evict();
  for (Index h = 0; h < 2; ++h) {
    Index best = 0;  // the row that stays beside the window
    std::vector<double> sums;
    for (Index r = 0; r < 4; ++r) {
      sums.push_back(0);
      for (Index q = 8; q < 16; ++q) sums.back() += double(weights(q, r));
      if (sums.back() > sums[static_cast<std::size_t>(best)]) best = r;
    }
    const std::set<Position> expected{static_cast<Position>(best), 4, 5, 6, 7};
    for (const KvCache<>* cache : {&whole, &tiles}) {
      const auto positions = cache->positions(h);
      CHECK(std::set<Position>(positions.begin(), positions.end()) == expected);
    }
  }
}

TEST_CASE("keys at cache positions are handed out only to those who say so", "[kv]") {
  KvCache sinks(small, SinkWindow{.sinks = 2, .window = 4});
  Matrix<float> out(1, 8);
  KvStream<float> stream(small, 6);
  stream.step(sinks, 1);  // from the first token on, not only once there is a gap
  CHECK_THROWS_AS(sinks.keys(0), StateError);
  CHECK_THROWS_WITH(sinks.keys(0), contains("look at the first sinks() rows with queries rotated at position - gap()"));
  CHECK_THROWS_AS(sinks.copy_keys(0, out), StateError);
  CHECK(sinks.rope_positions() == RopePositions::cache);
  sinks.copy_keys(0, out, RopePositions::cache);
  CHECK(sinks.keys(0, RopePositions::cache) == out);
  CHECK(sinks.sinks() == 0);
  for (int i = 0; i < 6; ++i) stream.step(sinks, 1);
  CHECK(sinks.sinks() == 2);
  KvCache turned(small, AtCachePositions(HeavyHitter{.heavy = 2, .recent = 2}));
  CHECK_THROWS_WITH(turned.keys(0), contains("call reindex() after evict()"));
  CHECK(turned.keys(0, RopePositions::cache).rows() == 0);
  KvCache text(small, SinkWindow{.sinks = 2, .window = 4, .positions = RopePositions::text});
  CHECK(text.keys(0).rows() == 0);
  CHECK_THROWS_WITH(text.keys(0, RopePositions::cache), contains("policy is at text positions"));
}

TEST_CASE("what is appended with gaps in its positions is cropped bit for bit", "[kv]") {
  KvCache<> cache(small, {}, {.max_tokens = 10});
  const Matrix<float> rows = Matrix<float>::Ones(3, small_width);
  const std::vector<Position> positions{2, 5, 6};
  cache.append(rows, rows, {.positions = positions});
  cache.evict();
  const auto before = cache.clone();
  cache.append(rows, rows);
  cache.evict();
  cache.crop(7);
  CHECK(same_state(cache, before));
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
  KvCache text(small, SinkWindow{.sinks = 2, .window = 4, .positions = RopePositions::text});
  KvStream<float> again(small, 6);
  for (int i = 0; i < 9; ++i) again.step(text, 1);
  CHECK(text.gap() == 0);
}

TEST_CASE("attend() with memory of its own attends and shows what is watched", "[kv]") {
  KvCache cache(small, HeavyHitter{.heavy = 2, .recent = 2}), twin(small, HeavyHitter{.heavy = 2, .recent = 2});
  const Index width = small.num_kv_heads * small.head_dim;
  for (std::uint64_t i = 0; i < 9; ++i) {
    const Matrix<float> k = random_matrix<float>(1, width, 3 * i), v = random_matrix<float>(1, width, 3 * i + 1),
                        q = random_matrix<float>(1, small.num_heads * small.head_dim, 3 * i + 2);
    for (auto* each : {&cache, &twin}) each->append(k, v);
    Matrix<float> expected(1, q.cols());
    Workspace ws(attend_workspace_bytes<float>(small, 5));
    attend(q, twin.view(), expected, ws, twin.observer());
    CHECK(attend(q, cache) == expected);
    for (auto* each : {&cache, &twin}) each->evict();
  }
  CHECK(same_state(cache, twin));
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

TEST_CASE("undone tokens leave no trace in what a cache with scout codes reads next", "[kv]") {
  KvCache<float> cache({2, 1, 16}, {}, {.max_chunk = 2300, .max_draft = 4, .max_tokens = 2310, .skip_below = .1, .scout_keys = true});
  const Matrix<float> k = random_matrix<float>(2310, 16, 1), v = random_matrix<float>(2310, 16, 2), q = random_matrix<float>(1, 32, 3);
  cache.append(k.topRows(2300), v.topRows(2300));
  const auto attended = [&](float sharpness, bool spread) {
    const AttentionReads before = cache.reads();
    const Matrix<float> out = attend(Matrix<float>(sharpness * q), cache);
    CHECK((cache.reads().keys - before.keys < cache.reads().rows - before.rows) == spread);
    return out;
  };
  cache.append(k.row(2300), v.row(2300));
  const Matrix<float> flat = attended(1, false), sharp = attended(10, true);
  cache.checkpoint();
  cache.append(k.middleRows(2301, 3), v.middleRows(2301, 3));
  attended(10, true);
  attended(1, false);
  cache.crop(2301);
  CHECK(attended(10, true) == sharp);
  CHECK(attended(1, false) == flat);
  const KvCache<float> copy = cache.clone();
  CHECK(copy.view().runs[0].scouts != nullptr);
}

TEST_CASE("scout codes take a byte for a number, two for each 32 and two for the margin, and none where they are off", "[kv]") {
  const Index rows = 1024, dim = GENERATE(32, 40, 64);
  const auto bytes = [&](Index of_rows) { return static_cast<std::size_t>(2 * rows * (of_rows + 4 + 1)); };  // two heads; position, kind
  const auto taken = [&]<class T>(T, KvCacheOptions options) {
    options.max_tokens = rows;
    return KvCache<T>({4, 2, dim}, {}, options).bytes();
  };
  const Index codes = dim + 2 * ((dim + 31) / 32) + 2;
  for (const double share : {0., .01}) {
    CHECK(taken(float{}, {.skip_below = share}) == bytes(2 * 4 * dim));
    CHECK(taken(bfloat16{}, {.skip_below = share}) == bytes(2 * 2 * dim));
    CHECK(taken(float{}, {.skip_below = share, .scout_keys = true}) == bytes(2 * 4 * dim + codes));
    CHECK(taken(bfloat16{}, {.skip_below = share, .scout_keys = true}) == bytes(2 * 2 * dim + codes));
  }
}

TEMPLATE_TEST_CASE("scout codes of keys that are codes themselves are refused", "[kv]", Q8, Rotated<Q4>, (Kv<Q8, Rotated<Q4>>), double) {
  CHECK_THROWS_WITH(KvCache<TestType>(small, {}, {.scout_keys = true}), contains("scout_keys"));
  CHECK_NOTHROW(KvCache<TestType>(small, {}, {.skip_below = .1}));
}
