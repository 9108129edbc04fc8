// Merging tokens allocates nothing, counted at malloc.
#include <numeric>
#include <vector>

#include <pith/core/executor.hpp>
#include <pith/merge.hpp>

#include "support/alloc_counter.hpp"
#include "support/catch.hpp"
#include "support/random_matrix.hpp"

using namespace pith;

TEST_CASE("merging tokens allocates nothing, in workspaces of exactly the size that is asked for", "[hot_path]") {
  if (!pith_test::counting_available()) return;
  const Index tokens = 301, dim = 72;
  const Matrix<float> x = pith_test::random_matrix<float>(tokens, dim, 1);
  const Matrix<float> attention = pith_test::random_matrix<float>(3, tokens, 2).cwiseAbs();
  ThreadPool pool(2);
  for (const ExecutorRef executor : {ExecutorRef(serial), ExecutorRef(pool)}) {
    const auto quiet = [&](const char* what, std::size_t bytes, auto&& run) {
      INFO(what << ", " << executor.size() << " threads");
      Workspace ws(bytes, executor);
      const pith_test::AllocationScope scope;
      run(ws);
      const auto count = scope.count();
      CHECK(count == 0);
      CHECK(ws.used() == 0);
    };
    const Index workers = executor.size();
    TokenMap<float> map(tokens);
    Matrix<float> out(tokens, dim), back(tokens, dim), heads(tokens, dim / 4);
    Vector<float> mass = Vector<float>::Ones(tokens), after(tokens), logs(tokens), scores(tokens);
    std::vector<std::int32_t> rows(static_cast<std::size_t>(tokens)), where = rows;
    const std::span<std::int32_t> some = std::span(rows).first(60);
    quiet("nearest_rows", nearest_workspace_bytes<float>(tokens, dim, workers),
          [&](Workspace& ws) { nearest_rows<float>(x, x, rows, scores, ws); });
    quiet("match_bipartite", token_match_workspace_bytes<float>(tokens, dim, workers),
          [&](Workspace& ws) { match_bipartite(x, {.r = 100, .protect = 1, .order = RowOrder::published}, map, ws); });
    quiet("TokenMap", TokenMap<float>::workspace_bytes(tokens), [&](Workspace& ws) {
      map.merge(x, out.topRows(map.rows()), MassWeighted{}, ws, {mass, after.head(map.rows())});
      map.merge(x, out.topRows(map.rows()), MassWeighted{}, ws, {mass, {}});
      map.unmerge(out.topRows(map.rows()), back);
      map.follow(where);
      log_masses<float>(mass, logs);
      mean_over_heads<float>(x, heads);
    });
    quiet("match_every_kth", token_match_workspace_bytes<float>(tokens, dim, workers),
          [&](Workspace& ws) { match_every_kth(x, {.k = 4}, map, ws); });
    quiet("match_visionzip", visionzip_workspace_bytes<float>(tokens, dim, workers),
          [&](Workspace& ws) { match_visionzip(attention, x, {.dominant = 40, .contextual = 20}, map, ws); });
    quiet("match_clusters", cluster_workspace_bytes<float>(tokens),
          [&](Workspace& ws) { match_clusters(x, {.clusters = 20, .order = RowOrder::published}, map, ws); });
    quiet("pick_diverse", diverse_workspace_bytes<float>(tokens, dim, workers), [&](Workspace& ws) { pick_diverse<float>(x, some, ws); });
    quiet("keep_image_tokens", keep_image_workspace_bytes<float>(200), [&](Workspace& ws) {
      keep_image_tokens<float>(attention, {.first = 50, .count = 200, .keep = 20}, std::span(rows).first(121), ws);
    });
    std::iota(some.begin(), some.end(), 7);
    quiet("prumerge", prumerge_workspace_bytes<float>(tokens, 60, dim, workers), [&](Workspace& ws) {
      prumerge<float>({x, x, attention.row(0)}, some, 32, out.topRows(61), ws);
    });
    quiet("class_attention", Workspace::bytes_for<float>(tokens),
          [&](Workspace& ws) { class_attention<float>(x.row(0), x, scores.head(tokens - 1), ws); });
    quiet("count_outliers", Workspace::bytes_for<float>(tokens), [&](Workspace& ws) { count_outliers<float>(scores, ws); });
    quiet("cam_spread", 0, [&](Workspace&) { cam_spread<float>(out, {.row = 3}); });
  }
}
