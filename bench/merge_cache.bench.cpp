// What it costs a cache to merge what it evicts, and what it changes: for every strategy of the catalogue.
//
// prompt            one layer's prompt of `rows` rows a head is cut to a fifth, the rest merged
// append+evict      a token in one layer at its budget of `rows`: one row a head leaves and is merged
// of_prefill        that time over the attention of the whole prompt to itself (measured on 64 of its queries); goal for `prompt`: below 1
// of_attention      that time over the attention of one token over the same rows
// rel_err           of the attention output of other queries over what is left, against all rows in double: what the strategy loses. Keys
//                   lie around few centres, as those of images do, and values with them; `counted`: with keep_masses
#include <benchmark/benchmark.h>

#include <cmath>
#include <string>
#include <vector>

#include <pith/attention.hpp>
#include <pith/kv.hpp>
#include <pith/merge.hpp>

#include "support/measure.hpp"
#include "support/register.hpp"

using namespace pith;
using namespace pith_bench;

namespace {

constexpr AttentionShape shape{32, 8, 128};
constexpr Index width = shape.num_kv_heads * shape.head_dim;

using Cache = KvCache<>;

struct Case {
  Index rows;
  std::string strategy;
  bool counted;
  std::string text() const { return "/" + strategy + (counted ? "/counted" : "") + "/rows:" + std::to_string(rows); }
  KvCacheOptions options(Index chunk) const { return {.max_chunk = chunk, .max_draft = 0, .keep_masses = counted}; }
};

/// Rows around `centres` places, some of them far more often than others.
Matrix<float> clustered(Index rows, Index centres, std::uint64_t seed) {
  const Matrix<float> centre = random_matrix(centres, width, 7) * 1.7f;
  Matrix<float> out = random_matrix(rows, width, seed) * .4f;
  std::mt19937_64 rng(seed);
  for (Index r = 0; r < rows; ++r) {
    const float u = canonical<float>(rng);
    out.row(r) += centre.row(std::min(centres - 1, static_cast<Index>(u * u * static_cast<float>(centres))));
  }
  return out;
}

struct Prompt {
  Matrix<float> keys, values, queries;
  explicit Prompt(Index rows)
      : keys(clustered(rows, rows / 32, 1)),
        values(clustered(rows, rows / 32, 1)),
        queries(random_matrix(64, shape.num_heads * shape.head_dim, 3)) {}
};

Matrix<float> attention(const Cache& cache, const Matrix<float>& queries) {
  Index rows = 0;
  for (Index h = 0; h < shape.num_kv_heads; ++h) rows = std::max(rows, cache.size(h));
  Matrix<float> out(queries.rows(), queries.cols());
  Workspace ws(attend_workspace_bytes<float>(shape, rows, 1, queries.rows()));
  attend<float>(queries, cache.view(), out, ws);
  return out;
}

/// The same over all rows, in double.
Matrix<double> reference(const Prompt& p) {
  Matrix<double> out(p.queries.rows(), p.queries.cols());
  const Index d = shape.head_dim;
  for (Index head = 0; head < shape.num_heads; ++head) {
    const Index kv = head / shape.group();
    Matrix<double> w =
        p.queries.middleCols(head * d, d).cast<double>() * p.keys.middleCols(kv * d, d).cast<double>().transpose() / std::sqrt(double(d));
    w = (w.colwise() - w.rowwise().maxCoeff().eval()).array().exp().matrix().eval();
    w.array().colwise() /= w.rowwise().sum().array().eval();
    out.middleCols(head * d, d) = w * p.values.middleCols(kv * d, d).cast<double>();
  }
  return out;
}

void prompt(benchmark::State& state, const Case& c) {
  const Prompt given(c.rows);
  const Matrix<double> expected = reference(given);
  Samples times, attend_times;
  Matrix<float> out;
  for (auto _ : state) {
    Cache cache(shape, PromptOnly(Random{c.rows / 5}), c.options(c.rows), make_merge(c.strategy));
    cache.append(given.keys, given.values, {.phase = Phase::prefill});
    attend_times.add(seconds_of([&] { keep(attention(cache, given.queries)); }));
    const double seconds = seconds_of([&] { cache.evict(); });
    state.SetIterationTime(seconds);
    times.add(seconds);
    out = attention(cache, given.queries);
  }
  // A prompt's queries see half of it on average.
  state.counters["of_prefill"] = times.median() / (attend_times.median() * static_cast<double>(c.rows) / 64 / 2);
  state.counters["rel_err"] = rel_err(out, expected);
}

void append_evict(benchmark::State& state, const Case& c) {
  Cache cache(shape, Random{c.rows}, c.options(1), make_merge(c.strategy));
  const Prompt given(c.rows + 64);
  const auto add = [&](Index r) {
    cache.append(given.keys.middleRows(r, 1), given.values.middleRows(r, 1));
    cache.evict();
  };
  for (Index r = 0; r < c.rows; ++r) add(r);
  Samples times, attend_times;
  Index next = 0;
  for (auto _ : state) {
    attend_times.add(seconds_of([&] { keep(attention(cache, given.queries.topRows(1))); }));
    const double seconds = seconds_of([&] { add(c.rows + next++ % 64); });
    state.SetIterationTime(seconds);
    times.add(seconds);
  }
  double tokens = 0;
  for (Index h = 0; h < shape.num_kv_heads; ++h) tokens += double(cache.masses(h).sum());
  if (c.strategy != "drop" && c.strategy != "d2o" && tokens != static_cast<double>(shape.num_kv_heads * (c.rows + next)))
    return state.SkipWithError("tokens were lost");
  state.counters["of_attention"] = times.median() / attend_times.median();
  state.counters["rel_err"] = 0;
}

const int registered = [] {
  for (const Index rows : {Index(1024), Index(4096)})
    for (const MergeEntry<float>& entry : merge_catalogue())
      for (const bool counted : {false, true}) {
        if (counted && entry.name == "drop") continue;
        const bool few = entry.name == "drop" || entry.name == "pivotal" || entry.name == "mass-weighted";
        if (rows > 1024 && !few) continue;  // they differ in a number a row, which 1024 show as well
        const Case c{rows, std::string(entry.name), counted};
        add("prompt", prompt, c)->Iterations(3);
        if (!counted && few) add("append+evict", append_evict, c)->Iterations(200);
      }
  return 0;
}();

}  // namespace
