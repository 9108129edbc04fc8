// What compaction costs: one layer's rows, 8 kv heads of 128, to an eighth of them.
//
// of_prefill        that time over the prefill of the same tokens in a decoder of 1.1 B weights, whose products are measured here on 64
//                   tokens of one projection and scaled to all weights; goal: below 1
// scratch_mib       what a worker holds at most: rows, queries and a block of logits in double, and the systems of a head
#include <benchmark/benchmark.h>

#include <chrono>
#include <span>
#include <utility>

#include <pith/kv.hpp>
#include <pith/kv/compact.hpp>
#include <pith/nn.hpp>

#include "support/measure.hpp"

using namespace pith;
using namespace pith_bench;

namespace {

constexpr AttentionShape shape{32, 8, 128};
constexpr LayerScale scale[] = {{}};
constexpr double decoder_weights = 1.1e9;

/// Seconds that the products of a prefill take for a token, one thread.
double prefill_seconds_of_token() {
  constexpr Index tokens = 64, features = 2048;
  const PackedLinear<float, float> linear{ConstMatrixRef<float>(random_matrix(features, features, 1))};
  const Matrix<float> x = random_matrix(tokens, features, 2);
  Matrix<float> y(tokens, features);
  Workspace ws(linear.workspace_bytes(tokens, 1));
  linear.forward(x, y, ws);
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    linear.forward(x, y, ws);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best / tokens * decoder_weights / (features * features);
}

void layer(benchmark::State& state) {
  const Index rows = state.range(0), keep = rows / 8, group = shape.group(), width = shape.num_kv_heads * shape.head_dim;
  KvCache<float> cache(shape, Dense{}, {.max_tokens = rows});
  cache.append(random_matrix(rows, width, 1), random_matrix(rows, width, 2));
  cache.evict();
  ReferenceQueries<float> queries(shape, 1, 4 * keep / group);
  queries.add(0, random_matrix(4 * keep / group, shape.num_heads * shape.head_dim, 3), 0);
  const double prefill = prefill_seconds_of_token() * static_cast<double>(rows);
  double seconds = 0;
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    const auto kept = compact<float>(std::span(&std::as_const(cache), 1), scale, queries, {.budget = {.rows = keep}});
    benchmark::DoNotOptimize(kept.layers.data());
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  const double n = static_cast<double>(4 * keep), t = static_cast<double>(keep), d = static_cast<double>(shape.head_dim);
  const double numbers = 2 * static_cast<double>(rows) * d + n * d + n * (2 * t + d) + 2 * t * t + static_cast<double>(Index(1) << 20);
  state.counters["of_prefill"] = seconds / static_cast<double>(state.iterations()) / prefill;
  state.counters["scratch_mib"] = numbers * 8 / (1 << 20);
}
BENCHMARK(layer)->ArgName("rows")->Arg(512)->Arg(4096)->Unit(benchmark::kMillisecond)->UseRealTime();

}  // namespace
