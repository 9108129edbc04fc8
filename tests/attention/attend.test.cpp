#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <vector>

#include <pith/attention/attend.hpp>

#include "support/attention_rows.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

using namespace pith;
using pith_test::AttentionRows;
using pith_test::in_order;
using pith_test::near;

namespace {

/// Every tile the observer was shown, put together, per kv head.
template <class S> struct Seen {
  std::vector<Matrix<S>> weights, log_sum, queries;
  std::vector<Index> order;  ///< first_query_index of the tiles of head 0

  Seen(const AttentionShape& shape, Index tokens, Index rows) {
    const auto n = static_cast<std::size_t>(shape.num_kv_heads);
    weights.assign(n, Matrix<S>::Constant(tokens * shape.group(), rows, S(-1)));
    log_sum.assign(n, Matrix<S>::Constant(tokens * shape.group(), 1, S(-1)));
    queries.assign(n, Matrix<S>::Zero(tokens * shape.group(), shape.head_dim));
    group = shape.group();
  }
  auto observer(Position first) {
    return [this, first](const AttentionTile<S>& tile) {
      const auto h = static_cast<std::size_t>(tile.kv_head);
      if (h == 0) order.push_back(tile.first_query_index);
      CHECK(tile.first_query == first + tile.first_query_index);
      weights[h].middleRows(tile.first_query_index * group, tile.num_queries * group) = tile.weights;
      log_sum[h].middleRows(tile.first_query_index * group, tile.num_queries * group) = tile.log_sum;
      queries[h].middleRows(tile.first_query_index * group, tile.num_queries * group) = tile.queries;
    };
  }
  Index group;
};

template <class T>
void compare(AttentionRows<T>& rows, const Matrix<arithmetic_t<T>>& q, Position first, AttendOptions<arithmetic_t<T>> options,
             const AttentionShape& shape) {
  using S = arithmetic_t<T>;
  options.first_query = first;
  Index most = 0;
  for (const KvRun<T>& run : rows.runs()) most += run.rows;
  Workspace ws(attend_workspace_bytes<S>(shape, most, 1, q.rows()));
  Matrix<S> out = Matrix<S>::Constant(q.rows(), q.cols(), S(99));
  const KvView<T> view = rows.view(first + static_cast<Position>(q.rows()));
  Seen<S> seen(shape, q.rows(), rows.runs().back().rows);
  attend(q, view, out, ws, seen.observer(first), options);
  CHECK(ws.used() == 0);
  const auto expected = rows.expected(q, first, options);
  CHECK(near(out, expected.out, expected.bound));
  for (std::size_t h = 0; h < seen.weights.size(); ++h) {
    CHECK(near(seen.weights[h], expected.weights[h], expected.weight_bound));
    if (expected.log_sum[h].allFinite()) CHECK(near(seen.log_sum[h], expected.log_sum[h], 4 * expected.weight_bound));
    for (Index t = 0; t < q.rows(); ++t)
      for (Index g = 0; g < shape.group(); ++g)
        CHECK(seen.queries[h].row(t * shape.group() + g) ==
              q.row(t).segment((Index(h) * shape.group() + g) * shape.head_dim, shape.head_dim));
  }
}

}  // namespace

TEMPLATE_TEST_CASE("attend equals plain loops in double for every grouping and width", "[attend]", float, double, bfloat16, half) {
  const auto [heads, kv_heads, dim, past, tokens] =
      GENERATE(table<Index, Index, Index, Index, Index>({{4, 4, 64, 0, 19},   // MHA, from nothing
                                                         {8, 2, 32, 70, 17},  // GQA
                                                         {5, 1, 16, 33, 3},   // MQA
                                                         {6, 2, 12, 40, 1},
                                                         {2, 1, 8, 31, 2},
                                                         {7, 1, 1, 5, 4},
                                                         {3, 3, 7, 64, 1},
                                                         {4, 2, 128, 9, 1},
                                                         {2, 2, 80, 45, 5}}));
  const AttentionShape shape{heads, kv_heads, dim};
  CAPTURE(heads, kv_heads, dim, past, tokens);
  AttentionRows<TestType> rows(shape, std::uint64_t(heads * 1000 + dim));
  rows.add_run(past + tokens, in_order(past + tokens), false, 0, dim % 3);
  compare(rows, rows.queries(tokens), static_cast<Position>(past), {}, shape);
}

TEMPLATE_TEST_CASE("attend reads prefix, masses, sinks, windows and rows in any order", "[attend]", float, bfloat16) {
  using S = arithmetic_t<TestType>;
  const AttentionShape shape{6, 2, GENERATE(16, 20)};
  const Index tokens = GENERATE(1, 18);
  CAPTURE(shape.head_dim, tokens);
  AttentionRows<TestType> rows(shape, 5);
  std::vector<Position> positions = in_order(90);
  const auto shuffled = [&] {
    std::vector<Position> p = positions;
    std::shuffle(p.begin(), p.end(), rows.rng());
    return p;
  };
  const Position first = static_cast<Position>(90 - tokens);

  SECTION("rows in any order") {
    rows.add_run(90, shuffled());
    compare(rows, rows.queries(tokens), first, {}, shape);
  }
  SECTION("a scale and a soft cap, which comes before masses and the mask") {
    rows.add_run(90, shuffled(), GENERATE(false, true));
    compare(rows, rows.queries(tokens), first, {.scale = S(0.4)}, shape);
    compare(rows, rows.queries(tokens), first, {.softcap = S(0.75)}, shape);
    compare(rows, rows.queries(tokens), first, {.scale = S(1.5), .softcap = S(2.5), .window = 20}, shape);
  }
  SECTION("a prefix that everybody sees") {
    rows.add_run(GENERATE(1, 32, 45), {});
    rows.add_run(90, positions);
    compare(rows, rows.queries(tokens), first, {}, shape);
  }
  SECTION("a prefix before nothing") {
    rows.add_run(37, {});
    rows.add_run(0, {});
    compare(rows, rows.queries(tokens), first, {}, shape);
  }
  SECTION("masses, one of them 0") {
    rows.add_run(90, positions, true);
    for (KvRun<TestType>& run : rows.runs()) const_cast<float*>(run.log_mass)[11] = -std::numeric_limits<float>::infinity();
    compare(rows, rows.queries(tokens), first, {}, shape);
  }
  SECTION("a window, whose length shows") {
    rows.add_run(90, GENERATE(false, true) ? shuffled() : positions);
    for (const Index window : {1, 2, 31, 33, 89, 90, 200}) {
      CAPTURE(window);
      compare(rows, rows.queries(tokens), first, {.window = window}, shape);
    }
  }
  SECTION("softmax_n") {
    rows.add_run(90, positions);
    compare(rows, rows.queries(tokens), first, {.n = S(2.5)}, shape);
  }
  SECTION("sinks with queries of their own") {
    for (std::size_t i = 5; i < positions.size(); ++i) positions[i] = static_cast<Position>(positions[i] + 300);  // 300 tokens are gone
    rows.add_run(90, positions, false, 5);
    const Matrix<S> q = rows.queries(tokens), sinks = rows.queries(tokens);
    compare(rows, q, first + 300, {.q_sinks = sinks, .gap = 300}, shape);
    for (const Index window : {40, 87, 93}) {  // sees no sink, some sinks, all
      CAPTURE(window);
      compare(rows, q, first + 300, {.window = window, .q_sinks = sinks, .gap = 300}, shape);
    }
  }
  SECTION("a prefix of sinks") {
    rows.add_run(3, {}, false, 3);
    rows.add_run(90, positions, false, 40);
    const Matrix<S> q = rows.queries(tokens), sinks = rows.queries(tokens);
    compare(rows, q, first, {.q_sinks = sinks}, shape);
  }
}

TEMPLATE_TEST_CASE("sight lets a query see rows behind it, within its window", "[attend]", float, bfloat16) {
  const AttentionShape shape{.num_heads = 4, .num_kv_heads = 2, .head_dim = 16};
  for (const Index window : {0, 9, 40})
    for (std::uint64_t seed = 0; seed < 4; ++seed) {
      AttentionRows<TestType> rows(shape, 77 + seed);
      rows.add_run(75, in_order(75));
      const Index tokens = 41;  // positions 34 .. 74, in three tiles
      const Matrix<float> q = rows.queries(tokens);
      std::vector<Position> sight;
      for (Index t = 0; t < tokens; ++t)  // runs of some queries see their end, the others themselves; a run may cross tiles
        sight.push_back(static_cast<Position>(34 + (seed == 0         ? tokens - 1
                                                    : t / 11 % 2 == 0 ? std::min(tokens - 1, t / 11 * 11 + 10)
                                                                      : t)));
      compare<TestType>(rows, q, 34, {.window = window, .sight = sight}, shape);
    }
}

TEST_CASE("a query whose sight is its own position has the bits of one without", "[attend]") {
  const AttentionShape shape{.num_heads = 4, .num_kv_heads = 2, .head_dim = 24};
  AttentionRows<float> rows(shape, 5);
  rows.add_run(80, in_order(80));
  const Matrix<float> q = rows.queries(30);
  std::vector<Position> sight;
  for (Position p = 50; p < 80; ++p) sight.push_back(p);
  Workspace ws(attend_workspace_bytes(shape, 80, 1, 30));
  Matrix<float> plain(30, 96), seen(30, 96), later(30, 96);
  attend(q, rows.view(80), plain, ws, {}, {.window = 33});
  attend(q, rows.view(80), seen, ws, {}, {.window = 33, .sight = sight});
  CHECK(seen == plain);
  sight[29] = 500;  // no rows there
  sight[3] = 54;    // its neighbours are as before
  attend(q, rows.view(80), later, ws, {}, {.window = 33, .sight = sight});
  CHECK(later.row(29) == plain.row(29));
  CHECK(later.row(3) != plain.row(3));
  CHECK(later.topRows(3) == plain.topRows(3));
  CHECK(later.middleRows(4, 25) == plain.middleRows(4, 25));
}

TEST_CASE("a query that sees no row gets zeros", "[attend]") {
  const AttentionShape shape{4, 2, 16};
  AttentionRows<float> rows(shape, 1);
  Matrix<float> out = Matrix<float>::Constant(3, 64, 5.f);
  Workspace ws(attend_workspace_bytes(shape, 100, 1, 3));
  const auto run = [&](Position first, float n) {
    const Matrix<float> q = rows.queries(3);
    Index shown = 0;
    attend(q, rows.view(first + 3), out, ws,
           [&](const AttentionTile<float>& tile) {
             shown += tile.num_queries;
             CHECK(tile.weights.topRows(2).isZero(0));
           },
           {.first_query = first, .n = n});
    CHECK(shown == 6);
  };
  SECTION("no rows at all") {
    rows.add_run(0, {});
    run(0, 0.f);
    CHECK(out.isZero(0));
    run(0, 1.f);
    CHECK(out.isZero(0));
  }
  SECTION("only later ones") {
    std::vector<Position> later = in_order(40);
    for (Position& p : later) p = static_cast<Position>(p + 11);
    rows.add_run(40, later);
    run(10, 0.f);
    CHECK(out.row(0).isZero(0));
    CHECK_FALSE(out.row(1).isZero(0));
    run(10, 1.f);
    CHECK(out.row(0).isZero(0));
  }
}

TEST_CASE("rows that are hidden or weigh nothing may hold anything", "[attend]") {
  const AttentionShape shape{4, 2, 24};
  AttentionRows<float> rows(shape, 3), clean(shape, 3);
  for (AttentionRows<float>* r : {&rows, &clean}) {
    r->add_run(60, in_order(60), true);
    for (KvRun<float>& run : r->runs()) {
      const_cast<float*>(run.log_mass)[7] = -std::numeric_limits<float>::infinity();
      const_cast<float*>(run.log_mass)[9] = -1e4f;  // visible, but its weight rounds to 0
    }
  }
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (KvRun<float>& run : rows.runs()) {
    auto* keys = const_cast<float*>(run.keys);
    auto* values = const_cast<float*>(run.values);
    std::fill_n(values + 7 * 24, 24, inf);
    std::fill_n(values + 9 * 24, 24, nan);
    std::fill_n(values + 59 * 24, 24, -inf);  // the newest: hidden from the first queries
    std::fill_n(keys + 59 * 24, 24, nan);
  }
  const Matrix<float> q = rows.queries(12);
  Matrix<float> out(12, 96), expected(12, 96);
  Workspace ws(attend_workspace_bytes(shape, 60));
  attend(q, rows.view(60), out, ws);
  attend(q, clean.view(60), expected, ws);
  CHECK(out.topRows(11) == expected.topRows(11));
  CHECK(out.row(11).array().isNaN().all());
}

TEST_CASE("a row that is not a number makes its readers not a number", "[attend]") {
  const AttentionShape shape{1, 1, 8};
  AttentionRows<float> rows(shape, 3);
  rows.add_run(1, in_order(1));
  const_cast<float*>(rows.runs()[0].keys)[3] = std::numeric_limits<float>::quiet_NaN();
  Matrix<float> q = rows.queries(1), out(1, 8);
  Workspace ws(attend_workspace_bytes(shape, 1));
  attend(q, rows.view(1), out, ws);
  CHECK(out.array().isNaN().all());
}

TEST_CASE("the observer sees the last queries it asks for, tile after tile", "[attend]") {
  const AttentionShape shape{4, 2, 16};
  AttentionRows<float> rows(shape, 8);
  rows.add_run(50, in_order(50));
  const Matrix<float> q = rows.queries(40);
  Matrix<float> out(40, 64);
  Workspace ws(attend_workspace_bytes(shape, 50));
  const auto shown = [&](Index last) {
    Seen<float> seen(shape, 40, 50);
    attend(q, rows.view(50), out, ws, seen.observer(10), {.observe_last = last});
    return seen;
  };
  const Seen<float> all = shown(-1), some = shown(21), none = shown(0), more = shown(100);
  CHECK(all.order == std::vector<Index>{0, 16, 32});
  CHECK(some.order == std::vector<Index>{19, 32});
  CHECK(none.order.empty());
  CHECK(more.order == all.order);
  for (std::size_t h = 0; h < 2; ++h) {
    CHECK(some.weights[h].bottomRows(42) == all.weights[h].bottomRows(42));
    CHECK((some.weights[h].topRows(38).array() == -1.f).all());
    CHECK(some.log_sum[h].bottomRows(42) == all.log_sum[h].bottomRows(42));
    CHECK(some.queries[h].bottomRows(42) == all.queries[h].bottomRows(42));
  }
}

TEST_CASE("attend refuses what does not fit, before it writes", "[attend]") {
  const AttentionShape shape{4, 2, 16};
  AttentionRows<float> rows(shape, 8);
  rows.add_run(20, in_order(20));
  Matrix<float> q = rows.queries(3);
  Matrix<float> out = Matrix<float>::Constant(3, 64, 7.f);
  Workspace ws(attend_workspace_bytes(shape, 20));
  KvView<float> view = rows.view(20);
  std::vector<KvRun<float>> runs = rows.runs();
  const auto refused = [&](const AttendOptions<float>& options, const std::string& message) {
    CHECK_THROWS_AS(attend(q, view, out, ws, {}, options), ShapeError);
    CHECK_THROWS_WITH(attend(q, view, out, ws, {}, options), pith_test::contains(message));
  };
  SECTION("q") {
    q = Matrix<float>::Zero(3, 60);
    refused({}, "q is [3, 60], expected [*, 64]");
  }
  SECTION("out") {
    out = Matrix<float>::Constant(2, 64, 7.f);
    refused({}, "out is [2, 64], expected [3, 64]");
  }
  SECTION("shape") {
    view.shape.num_kv_heads = 3;
    refused({}, "expected a divisor of num_heads");
  }
  SECTION("runs") {
    view.runs = view.runs.first(1);
    refused({}, "the view has 1 runs, expected one to three for each of 2 kv heads");
  }
  SECTION("options") {
    refused({.first_query = -2}, "first_query is -2");
    refused({.window = -1}, "window is -1");
    refused({.n = -1.f}, "n is -1");
    refused({.n = std::numeric_limits<float>::quiet_NaN()}, "n is");
    refused({.gap = -1}, "gap is -1");
    refused({.observe_last = -2}, "observe_last is -2");
    refused({.q_sinks = q.topRows(2)}, "q_sinks is [2, 64], expected [3, 64]");
    const std::vector<Position> short_sight{18, 19}, behind{17, 17, 19};
    refused({.sight = short_sight}, "sight of 2 queries, expected 3 or none");
    refused({.sight = behind}, "query 1 at position 18 sees up to 17, expected itself or more");
  }
  SECTION("positions") {
    view.next = 2;
    refused({}, "3 queries are more than the 2 tokens seen");
    CHECK_THROWS_AS(attend(q, view, out, ws, {}, {.first_query = std::numeric_limits<Position>::max() - 1}), CapacityError);
  }
  SECTION("broken runs") {
    view.runs = runs;
    runs[1].rows = -1;
    refused({}, "run 1 of the view has -1 rows");
    runs[1].rows = 20;
    runs[1].keys = nullptr;
    refused({}, "no keys");
    runs[1].keys = runs[0].keys;
    runs[1].stride = 15;
    refused({}, "stride 15, expected at least head_dim");
    runs[1].stride = 16;
    runs[1].sinks = 21;
    refused({}, "21 sinks, expected 0 .. 20");
    runs[1].sinks = 2;
    refused({}, "AttendOptions::q_sinks");
  }
  SECTION("workspace") {
    Workspace small(attend_workspace_bytes(shape, 20, 1, 3) - 64);
    CHECK_THROWS_AS(attend(q, view, out, small), CapacityError);
    CHECK_THROWS_AS(attend_workspace_bytes(shape, std::numeric_limits<Index>::max()), CapacityError);
    CHECK_THROWS_AS(attend_workspace_bytes(shape, -1), CapacityError);
  }
  CHECK((out.array() == 7.f).all());
  if (out.rows() == 3) {
    Matrix<float> nothing(0, 64);
    CHECK_NOTHROW(attend(nothing, rows.view(20), nothing, ws));
  }
}
