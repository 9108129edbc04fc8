// An evicting cache in your own attention loop: append, attend, observe, evict; pith provides only the cache. Twice: heavy hitters at text
// positions, where a query treats all rows alike; sinks + window at cache positions, where the sinks need a second query.
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include <pith/attention/attend.hpp>
#include <pith/core/random.hpp>
#include <pith/kv.hpp>

#include "support/command_line.hpp"

using namespace pith;

namespace {

using Rows = Eigen::Map<const Matrix<float>>;
const AttentionShape shape{.num_heads = 8, .num_kv_heads = 2, .head_dim = 32};

Matrix<float> random_rows(Index rows, Index cols, std::mt19937_64& rng) {
  Matrix<float> m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = normal<float>(rng);
  return m;
}

/// Plain softmax attention for the queries [group, head_dim] of one kv head; returns the weights for the cache to observe. The first
/// `sinks` rows are attended with other queries.
Matrix<float> your_attention(const Matrix<float>& q, Rows keys, Rows values, Matrix<float>& weights, const Matrix<float>& q_sinks = {},
                             Index sinks = 0) {
  weights = q * keys.transpose();
  if (sinks > 0) weights.leftCols(sinks) = q_sinks * keys.topRows(sinks).transpose();
  weights = (weights / std::sqrt(float(q.cols()))).array().exp();
  weights.array().colwise() /= weights.rowwise().sum().array().eval();
  return weights * values;
}

void heavy_hitters() {
  KvCache<> dense(shape, {}, {.max_tokens = 2000});
  KvCache cache(shape, HeavyHitter{.heavy = 96, .recent = 32}, {.max_chunk = 1});

  std::mt19937_64 rng(1);
  const Matrix<float> topic = random_rows(1, 32, rng);  // a weak common part of all queries, which few keys match
  double error = 0, size = 0;
  for (int token = 0; token < 2000; ++token) {
    Matrix<float> k = random_rows(1, 64, rng), v = random_rows(1, 64, rng), q = random_rows(8, 32, rng);
    q.rowwise() += 0.5f * topic.row(0);
    if (token % 50 == 0)
      for (Index h = 0; h < shape.num_kv_heads; ++h) k.middleCols(h * 32, 32) += 2.f * topic;
    dense.append(k, v);
    cache.append(k, v);
    for (Index h = 0; h < shape.num_kv_heads; ++h) {
      const Matrix<float> queries = q.middleRows(h * shape.group(), shape.group());
      Matrix<float> weights;
      const Matrix<float> exact = your_attention(queries, dense.keys(h), dense.values(h), weights);
      const Matrix<float> out = your_attention(queries, cache.keys(h), cache.values(h), weights);
      cache.observe({.kv_head = h, .weights = weights});  // refused under Window, which watches no attention: cache.watching()
      error += (out - exact).squaredNorm();
      size += exact.squaredNorm();
    }
    dense.evict();
    cache.evict();  // at most 128 rows per head between tokens
  }
  std::printf("dense         %5td rows  %8zu bytes\n", dense.size(0), dense.bytes());
  std::printf("heavy hitters %5td rows  %8zu bytes  relative error of the output %.3f\n", cache.size(0), cache.bytes(),
              std::sqrt(error / size));
}

/// The queries of a kv head, [group, head_dim], rotated at a position.
Matrix<float> rotated(const Rope<float>& rope, const Matrix<float>& q, Index kv_head, Position position) {
  Matrix<float> queries = q.middleRows(kv_head * shape.group(), shape.group());
  rope.rotate(queries, std::vector<Position>(std::size_t(shape.group()), position));
  return queries;
}

/// Returns whether the loop gives what attend() gives.
bool sinks_at_cache_positions() {
  const Rope<float> rope({.head_dim = shape.head_dim});
  KvCache cache(shape, SinkWindow{.sinks = 4, .window = 60});

  std::mt19937_64 rng(2);
  Workspace ws(attend_workspace_bytes<float>(shape, 65));
  double wrong = 0, forgotten = 0, size = 0;
  for (Position token = 0; token < 2000; ++token) {
    Matrix<float> k = random_rows(1, 64, rng), v = random_rows(1, 64, rng), weights;
    const Matrix<float> q = random_rows(8, 32, rng);
    rope.rotate(k, std::span(&token, 1));
    cache.append(k, v);
    Matrix<float> all(1, 256), all_sinks(1, 256), expected(1, 256), out(1, 256), without(1, 256);
    for (Index h = 0; h < shape.num_kv_heads; ++h) {
      const Matrix<float> queries = rotated(rope, q, h, token);
      const Matrix<float> q_sinks = rotated(rope, q, h, token - cache.gap());  // for the sinks, as if the window followed them directly
      const Rows keys = cache.keys(h, RopePositions::cache), values = cache.values(h);
      out.middleCols(h * 128, 128) =
          your_attention(queries, keys, values, weights, q_sinks, cache.sinks()).reshaped<Eigen::RowMajor>(1, 128);
      without.middleCols(h * 128, 128) = your_attention(queries, keys, values, weights).reshaped<Eigen::RowMajor>(1, 128);
      all.middleCols(h * 128, 128) = queries.reshaped<Eigen::RowMajor>(1, 128);
      all_sinks.middleCols(h * 128, 128) = q_sinks.reshaped<Eigen::RowMajor>(1, 128);
    }
    attend(all, cache.view(), expected, ws, NoObserver{}, {.q_sinks = all_sinks, .gap = cache.gap()});
    cache.evict();  // at most 64 rows per head between tokens
    wrong += (out - expected).squaredNorm();
    forgotten += (without - expected).squaredNorm();
    size += expected.squaredNorm();
  }
  std::printf("sinks, window %5td rows  %8zu bytes  difference from attend() %.1e, with the gap forgotten %.2f\n", cache.size(0),
              cache.bytes(), std::sqrt(wrong / size), std::sqrt(forgotten / size));
  // Both sum in another order: each score over 32 features, each output over at most 65 rows, by roundings of 6e-8.
  const double bound = double(shape.head_dim + 65) * double(std::numeric_limits<float>::epsilon());
  return std::sqrt(wrong / size) <= bound;
}

int your_own_loop(example::CommandLine& line) {
  line.done();
  heavy_hitters();
  if (sinks_at_cache_positions()) return 0;
  std::fprintf(stderr, "your_own_loop: the loop differs from attend() by more than rounding\n");
  return 1;
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, "your_own_loop", your_own_loop); }
