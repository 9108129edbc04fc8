// The laws of attend() that hold to the last bit.
#include <cstdint>
#include <vector>

#include <pith/attention/attend.hpp>
#include <pith/core/executor.hpp>

#include "support/attention_rows.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

using namespace pith;
using pith_test::AttentionRows;
using pith_test::in_order;

namespace {

template <class S> pith_test::Nearness same(const Matrix<S>& a, const Matrix<S>& b) { return pith_test::near(a, b, 0); }

template <class T> void check_bits(const AttentionShape& shape, Index prefix, Index past, Index tokens, Index window) {
  using S = arithmetic_t<T>;
  CAPTURE(shape.num_heads, shape.num_kv_heads, shape.head_dim, prefix, past, tokens, window);
  AttentionRows<T> rows(shape, std::uint64_t(past * 7 + shape.head_dim));
  if (prefix > 0) rows.add_run(prefix, {});
  rows.add_run(past + tokens, in_order(past + tokens));
  const Matrix<S> q = rows.queries(tokens);
  const Index most = prefix + past + tokens;

  // One call a token over a cache that grows.
  Matrix<S> alone(tokens, q.cols());
  Workspace one(attend_workspace_bytes<S>(shape, most, 1, 1));
  const std::size_t runs_a_head = prefix > 0 ? 2 : 1;
  for (Index t = 0; t < tokens; ++t) {
    std::vector<KvRun<T>> grown = rows.runs();
    for (std::size_t r = runs_a_head - 1; r < grown.size(); r += runs_a_head) grown[r].rows = past + t + 1;
    attend(q.middleRows(t, 1), KvView<T>{shape, static_cast<Position>(past + t + 1), grown}, alone.middleRows(t, 1), one, {},
           {.window = window});
  }

  for (const Index workers : {1, 2, 4}) {
    CAPTURE(workers);
    ThreadPool pool(workers);
    Workspace ws(attend_workspace_bytes<S>(shape, most, workers, tokens), pool);
    Matrix<S> together(tokens, q.cols()), watched(tokens, q.cols());
    const KvView<T> view = rows.view(static_cast<Position>(past + tokens));
    attend(q, view, together, ws, {}, {.window = window});
    CHECK(same(together, alone));
    std::vector<S> column_sums(static_cast<std::size_t>(shape.num_kv_heads));  // of a head its worker alone writes
    attend(q, view, watched, ws,
           [&](const AttentionTile<S>& tile) {
             column_sums[static_cast<std::size_t>(tile.kv_head)] += tile.weights.sum() + tile.log_sum.sum();
           },
           {.window = window});
    CHECK(same(watched, alone));
  }
}

}  // namespace

TEMPLATE_TEST_CASE("a query's bits do not depend on tile, batch, workers, later rows or observers", "[attend][bits]", float, double,
                   bfloat16, half) {
  check_bits<TestType>({8, 2, 64}, 0, 0, 37, 0);
  check_bits<TestType>({8, 8, 32}, 0, 61, 16, 0);
  check_bits<TestType>({6, 2, 12}, 0, 31, 18, 0);
  check_bits<TestType>({5, 1, 16}, 35, 90, 5, 0);
  check_bits<TestType>({12, 1, 20}, 3, 30, 33, 0);
  check_bits<TestType>({3, 3, 7}, 0, 40, 17, 20);
  check_bits<TestType>({4, 2, 64}, 0, 100, 20, 50);
  check_bits<TestType>({2, 1, 1}, 0, 3, 9, 0);
}

TEST_CASE("positions of queries far apart from the rows' number give the same bits", "[attend][bits]") {
  const AttentionShape shape{4, 2, 16};
  AttentionRows<float> near_zero(shape, 4), far(shape, 4);
  std::vector<Position> late = in_order(70);
  for (Position& p : late) p += 1'000'000;
  near_zero.add_run(70, in_order(70));
  far.add_run(70, late);
  const Matrix<float> q = near_zero.queries(20);
  Matrix<float> a(20, 64), b(20, 64);
  Workspace ws(attend_workspace_bytes(shape, 70));
  attend(q, near_zero.view(70), a, ws);
  attend(q, far.view(1'000'070), b, ws);
  CHECK(same(a, b));
}

TEST_CASE("out may be q", "[attend][bits]") {
  const AttentionShape shape{4, 2, 16};
  AttentionRows<float> rows(shape, 4);
  rows.add_run(70, in_order(70));
  Matrix<float> q = rows.queries(20), out(20, 64);
  Workspace ws(attend_workspace_bytes(shape, 70));
  attend(q, rows.view(70), out, ws, [](const AttentionTile<float>& tile) { CHECK(tile.queries.rows() > 0); });
  attend(q, rows.view(70), q, ws);
  CHECK(same(q, out));
}
