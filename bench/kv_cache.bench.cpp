// What a cache costs beside attention: append + evict per decoded token, against gathering what stays into new tensors.
//
// One layer, kept at its budget. Every case reports its time per token, of_attention (that time over one attention over the same rows,
// measured in the same run), and rel_err; a case that keeps other rows than its rule says reports nothing.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include <pith/attention.hpp>
#include <pith/core.hpp>
#include <pith/kv.hpp>

using namespace pith;

namespace {

constexpr AttentionShape shape{32, 8, 128};
constexpr Index width = shape.num_kv_heads * shape.head_dim;

Matrix<float> random_rows(Index rows, Index cols, std::uint64_t seed) {
  std::mt19937_64 rng(seed);
  Matrix<float> m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = normal<float>(rng);
  return m;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Median seconds of one decode attention over `rows` rows a head, in this run.
double attention_seconds(Index rows) {
  KvCache<Dense> cache(shape, {}, {.max_tokens = rows});
  const Matrix<float> k = random_rows(64, width, 1);
  for (Index r = 0; r < rows; r += 64) cache.append(k.topRows(std::min<Index>(64, rows - r)), k.topRows(std::min<Index>(64, rows - r)));
  Workspace ws(attend_workspace_bytes<float>(shape, rows, 1));
  const Matrix<float> q = random_rows(1, shape.num_heads * shape.head_dim, 2);
  Matrix<float> out(1, q.cols());
  std::vector<double> times;
  for (int i = 0; i < 15; ++i) {
    const auto start = std::chrono::steady_clock::now();
    attend(q, cache.view(), out, ws);
    times.push_back(seconds_since(start));
  }
  std::nth_element(times.begin(), times.begin() + 7, times.end());
  return times[7];
}

/// Weights a kernel would have shown: a few heavy rows, the rest light.
Matrix<float> weights_over(Index rows, std::uint64_t seed) {
  Matrix<float> w = random_rows(shape.group(), rows, seed).cwiseAbs2();
  w.array().colwise() /= w.rowwise().sum().array().eval();
  return w;
}

template <class Policy> void fill(KvCache<Policy>& cache, Index rows) {
  const Matrix<float> k = random_rows(1, width, 4), weights = weights_over(rows, 5);
  for (Index r = 0; r < rows; ++r) {
    cache.append(k, k);
    if constexpr (ObservingPolicy<Policy, float>)
      for (Index h = 0; h < shape.num_kv_heads; ++h) cache.observe({.kv_head = h, .weights = weights.leftCols(cache.size(h))});
    cache.evict();
  }
}

/// Fails unless every head holds what its rule says, by its own stats and positions: the newest, the initial, or the heaviest.
template <class Policy> bool right_rows(const KvCache<Policy>& cache, const std::vector<std::vector<Position>>& expected) {
  for (Index h = 0; h < shape.num_kv_heads; ++h) {
    std::vector<Position> held(cache.positions(h).begin(), cache.positions(h).end());
    std::sort(held.begin(), held.end());
    if (held != expected[static_cast<std::size_t>(h)]) return false;
  }
  return true;
}

std::vector<std::vector<Position>> by_age(Position next, Index initial, Index window) {
  std::vector<Position> held(static_cast<std::size_t>(initial + window));
  std::iota(held.begin(), held.begin() + initial, 0);
  std::iota(held.begin() + initial, held.end(), static_cast<Position>(next - window));
  return std::vector<std::vector<Position>>(static_cast<std::size_t>(shape.num_kv_heads), held);
}

/// `seconds`: of all iterations together.
void report(benchmark::State& state, double seconds, Index rows) {
  state.counters["of_attention"] = seconds / double(state.iterations()) / attention_seconds(rows);
  state.counters["rel_err"] = 0;  // rows are moved, not computed: anything else was refused
}

template <class Policy> void append_evict_by_age(benchmark::State& state, const Policy& policy, bool journal) {
  const Index rows = policy.budget();
  KvCache<Policy> cache(shape, policy);
  fill(cache, rows);
  const Matrix<float> k = random_rows(1, width, 3);
  Index in_journal = 0;
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) {
    if (journal && in_journal++ % 8 == 0) cache.checkpoint();
    cache.append(k, k);
    cache.evict();
  }
  const double seconds = seconds_since(start);
  if (!right_rows(cache, by_age(cache.next_position(), policy.initial(), policy.window))) return state.SkipWithError("wrong rows kept");
  report(state, seconds, rows);
}

void heavy_hitter(benchmark::State& state) {
  const Index rows = state.range(0);
  KvCache<HeavyHitter> cache(shape, {.heavy = rows / 2, .recent = rows / 2});
  fill(cache, rows);
  std::vector<Matrix<float>> weights;
  for (Index h = 0; h < shape.num_kv_heads; ++h) weights.push_back(weights_over(rows + 1, static_cast<std::uint64_t>(h)));
  const Matrix<float> k = random_rows(1, width, 3);
  double seconds = 0;
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    cache.append(k, k);
    double spent = seconds_since(start);
    for (Index h = 0; h < shape.num_kv_heads; ++h)
      cache.observe({.kv_head = h, .weights = weights[static_cast<std::size_t>(h)]});  // counted by bench/attend
    const auto evict = std::chrono::steady_clock::now();
    cache.evict();
    spent += seconds_since(evict);
    state.SetIterationTime(spent);
    seconds += spent;
  }
  // The next victim by the rule in double: the lightest row that is not recent.
  std::vector<std::vector<Position>> expected;
  for (Index h = 0; h < shape.num_kv_heads; ++h) expected.emplace_back(cache.positions(h).begin(), cache.positions(h).end());
  cache.append(k, k);
  for (Index h = 0; h < shape.num_kv_heads; ++h) {
    cache.observe({.kv_head = h, .weights = weights[static_cast<std::size_t>(h)]});
    auto& held = expected[static_cast<std::size_t>(h)];
    held.push_back(static_cast<Position>(cache.next_position() - 1));
    std::size_t lightest = held.size();
    for (std::size_t r = 0; r < held.size(); ++r)
      if (held[r] < cache.next_position() - rows / 2 &&
          (lightest == held.size() ||
           double(cache.stats(h)(0, static_cast<Index>(r))) < double(cache.stats(h)(0, static_cast<Index>(lightest)))))
        lightest = r;
    held.erase(held.begin() + static_cast<std::ptrdiff_t>(lightest));
    std::sort(held.begin(), held.end());
  }
  cache.evict();
  if (!right_rows(cache, expected)) return state.SkipWithError("wrong rows kept");
  report(state, seconds, rows);
}

/// The baseline: what torch.cat and index_select come to, in Eigen: everything but the victim gathered into new matrices.
void gather_into_new(benchmark::State& state) {
  const Index rows = state.range(0);
  std::vector<Matrix<float>> keys, values;
  for (Index h = 0; h < shape.num_kv_heads; ++h) {
    keys.push_back(random_rows(rows, shape.head_dim, static_cast<std::uint64_t>(h)));
    values.push_back(keys.back());
  }
  const Matrix<float> k = random_rows(1, width, 3);
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) {
    for (Index h = 0; h < shape.num_kv_heads; ++h) {
      for (std::vector<Matrix<float>>* side : {&keys, &values}) {
        Matrix<float>& old = (*side)[static_cast<std::size_t>(h)];
        Matrix<float> fresh(rows, shape.head_dim);
        fresh.topRows(rows - 1) = old.bottomRows(rows - 1);
        fresh.row(rows - 1) = k.middleCols(h * shape.head_dim, shape.head_dim);
        old = std::move(fresh);
      }
    }
    benchmark::ClobberMemory();
  }
  report(state, seconds_since(start), rows);
}

void window(benchmark::State& state) { append_evict_by_age(state, Window{.window = state.range(0)}, false); }
void sinks(benchmark::State& state) { append_evict_by_age(state, SinkWindow{.sinks = 4, .window = state.range(0) - 4}, false); }
void window_journal(benchmark::State& state) { append_evict_by_age(state, Window{.window = state.range(0)}, true); }

}  // namespace

#define ROWS ArgName("rows")->Arg(1024)->Arg(4096)->Repetitions(3)->ReportAggregatesOnly()->Unit(benchmark::kMicrosecond)
BENCHMARK(gather_into_new)->Name("append+evict/gather_into_new")->ROWS;
BENCHMARK(window)->Name("append+evict/window")->ROWS;
BENCHMARK(sinks)->Name("append+evict/sinks")->ROWS;
BENCHMARK(window_journal)->Name("append+evict/window_in_a_journal")->ROWS;
BENCHMARK(heavy_hitter)->Name("append+evict/heavy_hitter")->ROWS->UseManualTime();
