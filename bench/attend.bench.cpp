// Attention over caches that no level of the hardware's holds, and the price of watching it.
//
// of_read   time of reading the f32 bytes of K and V once over the time taken: 1 is the limit for f32 and one token, 2 for 16 bit,
//           3.8 for blocks of 8 bit, 6.4 for those of 4
// of_peak   share of the multiply-adds this core can do (prompts), measured between the same iterations
// watching  what showing the weights to an observer that sums their columns adds, in percent; both measured in turn, the median of the
//           ratios
// keys, values, needed   where rows of negligible weight are skipped (`skip`, in thousandths; logits of deviation 1, 3 and 4; `scouts`:
//           keys are excluded by 8-bit codes beside them): the share of keys and values read, and of rows that had to be, for both heads of
//           a group together
// of_dense  time over that of the same attention that reads every row, both measured in turn
// MB        megabytes that a step reads: keys, values, codes
// rel_err   against attention in double over the stored numbers; a wrong result is not reported
#include <benchmark/benchmark.h>

#include <cmath>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <pith/attention.hpp>
#include <pith/core.hpp>
#include <pith/kv/detail/slab.hpp>
#include <pith/kv/policy.hpp>

#include "support/cold.hpp"
#include "support/measure.hpp"
#include "support/register.hpp"

using namespace pith;
using namespace pith_bench;

namespace {

struct Case {
  AttentionShape shape;
  Index rows, tokens;
  double deviation = 1, skip_below = 0;  ///< of the logits; AttendOptions::skip_below
  bool scouts = false;
  Index values() const { return shape.num_kv_heads * rows * shape.head_dim; }  // of K, and of V
  std::size_t f32_bytes() const { return 2 * static_cast<std::size_t>(values()) * sizeof(float); }
  std::string text() const {
    return "/tokens:" + std::to_string(tokens) + "/rows:" + std::to_string(rows) + "/dim:" + std::to_string(shape.head_dim) +
           "/heads:" + std::to_string(shape.num_heads) + "/group:" + std::to_string(shape.group()) +
           (deviation == 1 ? "" : "/deviation:" + std::to_string(int(deviation))) +
           (skip_below == 0 ? "" : "/skip:" + std::to_string(int(1000 * skip_below + .5))) + (scouts ? "/scouts" : "");
  }
};

/// One layer's K and V, [kv head][row][feature].
template <class T> struct Layer {
  Layer(const Case& c, const Matrix<float>& k, const Matrix<float>& v)
      : memory(Workspace::bytes_for<T>(k.rows() * key(c)) + Workspace::bytes_for<T>(k.rows() * value(c)) +
               Workspace::bytes_for<std::byte>(k.rows() * scout(c))),
        positions(static_cast<std::size_t>(c.rows)) {
    std::iota(positions.begin(), positions.end(), Position{0});
    T* const keys = memory.take<T>(k.rows() * key(c));
    T* const values = memory.take<T>(k.rows() * value(c));
    for (Index r = 0; r < k.rows(); ++r) {
      detail::narrow_key<T>(k.row(r).data(), keys + r * key(c), c.shape.head_dim);
      detail::narrow_value<T>(v.row(r).data(), values + r * value(c), c.shape.head_dim);
    }
    std::byte* const scouts = memory.take<std::byte>(k.rows() * scout(c));
    if constexpr (PlainStorage<T>)
      for (Index r = 0; c.scouts && r < k.rows(); ++r) scout_encode(keys + r * key(c), c.shape.head_dim, scouts + r * scout(c));
    for (Index h = 0; h < c.shape.num_kv_heads; ++h)
      runs.push_back({.keys = keys + h * c.rows * key(c),
                      .values = values + h * c.rows * value(c),
                      .rows = c.rows,
                      .stride = key(c),
                      .positions = positions.data(),
                      .value_stride = value(c),
                      .scouts = c.scouts ? scouts + h * c.rows * scout(c) : nullptr});
  }
  static Index key(const Case& c) { return detail::key_units<T>(c.shape.head_dim); }
  static Index scout(const Case& c) { return c.scouts ? scout_row_bytes(c.shape.head_dim) : 0; }
  static Index value(const Case& c) { return detail::value_units<T>(c.shape.head_dim); }
  Workspace memory;
  std::vector<Position> positions;
  std::vector<KvRun<T>> runs;
};

/// Rows as they are stored, in double.
template <class T> std::pair<Matrix<double>, Matrix<double>> stored_rows(const KvRun<T>& run, Index dim) {
  Matrix<float> keys(run.rows, dim), values(run.rows, dim);
  for (Index r = 0; r < run.rows; ++r) {
    detail::widen_key<T>(run.keys + r * run.stride, keys.row(r).data(), dim);
    detail::widen_value<T>(run.values + r * run.value_stride, values.row(r).data(), dim);
  }
  return {keys.template cast<double>(), values.template cast<double>()};
}

/// Of the last query alone: it sees every row.
template <class T> Matrix<double> reference(const Case& c, const Matrix<float>& q, const Layer<T>& layer) {
  const Index d = c.shape.head_dim;
  Matrix<double> out(1, q.cols());
  for (Index h = 0; h < c.shape.num_heads; ++h) {
    const KvRun<T>& run = layer.runs[static_cast<std::size_t>(h / c.shape.group())];
    const auto [k, v] = stored_rows(run, d);
    Vector<double> p = k * q.row(c.tokens - 1).segment(h * d, d).transpose().template cast<double>() / std::sqrt(static_cast<double>(d));
    p = (p.array() - p.maxCoeff()).exp().matrix().eval();
    out.row(0).segment(h * d, d) = (p.transpose() * v) / p.sum();
  }
  return out;
}

/// run(q, layer, out) for all rows of q; `watched` likewise, or null; `dense` likewise, what skipping is compared with, or null.
template <class T, class Run, class Watched, class Dense = std::nullptr_t>
void measure(benchmark::State& state, const Case& c, Run run, Watched watched, Dense dense = nullptr) {
  const Index kv = c.shape.num_kv_heads * c.rows;
  const Matrix<float> k = random_matrix(kv, c.shape.head_dim, 1), v = random_matrix(kv, c.shape.head_dim, 2);
  // Numbers are uniform in -1 .. 1: a product of two has a variance of 1/9.
  const Matrix<float> q = static_cast<float>(3 * c.deviation) * random_matrix(c.tokens, c.shape.num_heads * c.shape.head_dim, 3);
  auto& layers =
      ColdCopies::of(static_cast<std::size_t>(kv * (Layer<T>::key(c) + Layer<T>::value(c))) * sizeof(T), [&] { return Layer<T>(c, k, v); });

  Matrix<float> out(c.tokens, q.cols());
  run(q, layers[0], out);
  const double error = rel_err(out.bottomRows(1), reference(c, q, layers[0]));
  if (!(error < (c.skip_below > 0 ? .1 + 5 * c.skip_below : 1e-5))) return state.SkipWithError("wrong result");
  const Matrix<float> expected = out;

  ColdRead read(c.f32_bytes());
  Samples kernel, reading, watching, peak, all_rows;
  Matrix<float> exact(c.tokens, q.cols());
  std::size_t turn = 0;
  const auto next = [&]() -> const Layer<T>& { return layers[turn++ % layers.size()]; };
  for (auto _ : state) {
    double seconds = 0;
    const auto unseen = [&] { seconds = seconds_of([&] { run(q, next(), out); }); };
    if constexpr (std::is_same_v<Watched, std::nullptr_t>) {
      unseen();
    } else {
      const bool first = kernel.size() % 2 == 0;  // whoever comes first finds the caches as reading left them
      if (first) unseen();
      watching.add(seconds_of([&] { watched(q, next(), out); }));
      if (out != expected) return state.SkipWithError("watching changed the result");
      if (!first) unseen();
    }
    keep(out);
    if constexpr (!std::is_same_v<Dense, std::nullptr_t>) {
      all_rows.add(seconds_of([&] { dense(q, next(), exact); }));
      keep(exact);
    }
    state.SetIterationTime(seconds);
    kernel.add(seconds);
    reading.add(read.seconds());
    peak.add(peak_flops(seconds));
  }
  const double rows_seen = static_cast<double>(c.tokens) * (static_cast<double>(c.rows) - static_cast<double>(c.tokens - 1) / 2);
  const double flops = 4.0 * static_cast<double>(c.shape.num_heads * c.shape.head_dim) * rows_seen;
  if (c.tokens == 1) state.counters["of_read"] = reading.median() / kernel.median();
  if (c.tokens > 1) state.counters["of_peak"] = flops / kernel.median() / peak.median();
  if (watching.median() > 0) state.counters["watching"] = 100 * (watching.median() / kernel.median() - 1);
  if (all_rows.size() > 0) state.counters["of_dense"] = kernel.median() / all_rows.median();
  state.counters["rel_err"] = error;
}

/// Attention that may leave rows unread, in turn with one that reads all.
template <class T> void skipping(benchmark::State& state, const Case& c) {
  Workspace ws(attend_workspace_bytes<float>(c.shape, c.rows, 1, c.tokens));
  AttentionReads reads;
  const AttendOptions<float> options{.skip_below = static_cast<float>(c.skip_below), .reads = &reads};
  const auto view = [&](const Layer<T>& layer) { return KvView<T>{c.shape, static_cast<Position>(c.rows), layer.runs}; };
  measure<T>(
      state, c, [&](const Matrix<float>& q, const Layer<T>& layer, Matrix<float>& out) { attend(q, view(layer), out, ws, {}, options); },
      nullptr, [&](const Matrix<float>& q, const Layer<T>& layer, Matrix<float>& out) { attend(q, view(layer), out, ws); });
  const auto share = [&](Index of) { return static_cast<double>(of) / static_cast<double>(reads.rows); };
  state.counters["keys"] = share(reads.keys);
  state.counters["values"] = share(reads.values);
  state.counters["needed"] = share(reads.needed);
  const double scanned = reads.needed < reads.rows ? 1 : 1. / 16;  // of the codes: flat queries stop after a sample
  state.counters["MB"] = 1e-6 * static_cast<double>(c.shape.num_kv_heads * c.rows) *
                         (static_cast<double>(sizeof(T)) * (share(reads.keys) * static_cast<double>(Layer<T>::key(c)) +
                                                            share(reads.values) * static_cast<double>(Layer<T>::value(c))) +
                          scanned * static_cast<double>(Layer<T>::scout(c)));
}

template <class T> void ours(benchmark::State& state, const Case& c) {
  Workspace ws(attend_workspace_bytes<float>(c.shape, c.rows, 1, c.tokens));
  Matrix<float> sums = Matrix<float>::Zero(c.shape.num_kv_heads, c.rows);
  const auto view = [&](const Layer<T>& layer) { return KvView<T>{c.shape, static_cast<Position>(c.rows), layer.runs}; };
  measure<T>(
      state, c, [&](const Matrix<float>& q, const Layer<T>& layer, Matrix<float>& out) { attend(q, view(layer), out, ws); },
      [&](const Matrix<float>& q, const Layer<T>& layer, Matrix<float>& out) {
        attend(q, view(layer), out, ws,
               [&](const AttentionTile<float>& tile) { add_rows<float>(tile.weights, sums.middleRows(tile.kv_head, 1)); });
      });
  if (c.tokens == 1)
    state.counters["MB"] = 1e-6 * static_cast<double>(c.shape.num_kv_heads * c.rows) * static_cast<double>(sizeof(T)) *
                           static_cast<double>(Layer<T>::key(c) + Layer<T>::value(c));
}

/// Softmax of the rows of p, each over the rows its query may see.
void softmax_rows(Matrix<float>& p, const Case& c, Index heads_a_token) {
  for (Index i = 0; i < p.rows(); ++i) {
    const Index seen = c.rows - c.tokens + 1 + i / heads_a_token;
    auto row = p.row(i).head(seen).array();
    row = (row - row.maxCoeff()).exp();
    row /= row.sum();
    p.row(i).tail(c.rows - seen).setZero();
  }
}

/// Eigen, a product per query head.
void eigen_heads(benchmark::State& state, const Case& c) {
  const Index d = c.shape.head_dim;
  const float scale = 1.f / std::sqrt(static_cast<float>(d));
  Matrix<float> p(c.tokens, c.rows);
  measure<float>(
      state, c,
      [&](const Matrix<float>& q, const Layer<float>& layer, Matrix<float>& out) {
        for (Index h = 0; h < c.shape.num_heads; ++h) {
          const KvRun<float>& run = layer.runs[static_cast<std::size_t>(h / c.shape.group())];
          const Eigen::Map<const Matrix<float>> keys(run.keys, c.rows, d), values(run.values, c.rows, d);
          if (c.tokens == 1) {
            p.row(0).transpose().noalias() = scale * (keys * q.row(0).segment(h * d, d).transpose());
          } else {
            p.noalias() = scale * (q.middleCols(h * d, d) * keys.transpose());
          }
          softmax_rows(p, c, 1);
          if (c.tokens == 1) {
            out.row(0).segment(h * d, d).noalias() = p.row(0) * values;
          } else {
            out.middleCols(h * d, d).noalias() = p * values;
          }
        }
      },
      nullptr);
}

/// Eigen, a product per kv head for its whole group of one token.
void eigen_groups(benchmark::State& state, const Case& c) {
  const Index d = c.shape.head_dim, g = c.shape.group();
  const float scale = 1.f / std::sqrt(static_cast<float>(d));
  Matrix<float> p(g, c.rows);
  measure<float>(
      state, c,
      [&](const Matrix<float>& q, const Layer<float>& layer, Matrix<float>& out) {
        for (Index h = 0; h < c.shape.num_kv_heads; ++h) {
          const KvRun<float>& run = layer.runs[static_cast<std::size_t>(h)];
          const Eigen::Map<const Matrix<float>> keys(run.keys, c.rows, d), values(run.values, c.rows, d), group(q.data() + h * g * d, g, d);
          p.noalias() = scale * (group * keys.transpose());
          softmax_rows(p, c, g);
          Eigen::Map<Matrix<float>>(out.data() + h * g * d, g, d).noalias() = p * values;
        }
      },
      nullptr);
}

const bool registered = [] {
  const auto decode = [](AttentionShape shape, Index rows) {
    const Case c{shape, rows, 1};
    add("attend_f32", ours<float>, c);
    add("attend_bf16", ours<bfloat16>, c);
    add("attend_f16", ours<half>, c);
    add("attend_q8", ours<Q8>, c);
    add("attend_q8_q4", ours<Kv<Q8, Rotated<Q4>>>, c);
    add("attend_q4", ours<Rotated<Q4>>, c);
    add("eigen_heads", eigen_heads, c);
    add("eigen_groups", eigen_groups, c);
  };
  decode({32, 8, 64}, 256);
  decode({32, 8, 64}, 1024);
  decode({32, 8, 64}, 4096);
  decode({9, 3, 64}, 4096);
  decode({32, 8, 128}, 4096);
  decode({32, 32, 128}, 1024);
  for (const Index rows : {4096, 16384, 65536})
    for (const double deviation : {1., 3., 4.}) {
      const Case all{{16, 8, 64}, rows, 1, deviation};
      if (deviation == 1) {
        add("attend_q8_q4", ours<Kv<Q8, Rotated<Q4>>>, all);
        add("attend_q4", ours<Rotated<Q4>>, all);
      }
      add("attend_f32", ours<float>, all);
      add("attend_bf16", ours<bfloat16>, all);
      add("attend_q8", ours<Q8>, all);
      for (const double share : {.001, .01, .1}) {
        add("attend_q8", skipping<Q8>, Case{all.shape, rows, 1, deviation, share});
        add("attend_f32", skipping<float>, Case{all.shape, rows, 1, deviation, share, true});
        add("attend_bf16", skipping<bfloat16>, Case{all.shape, rows, 1, deviation, share, true});
      }
    }
  const Case prompt{{32, 8, 64}, 1024, 512};
  add("attend_f32", ours<float>, prompt);
  add("attend_bf16", ours<bfloat16>, prompt);
  add("eigen_heads", eigen_heads, prompt);
  return true;
}();

}  // namespace
