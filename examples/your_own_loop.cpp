// An evicting cache in your own attention loop, with nothing of pith but the cache: append, look, observe, evict.
#include <cmath>
#include <cstdio>
#include <random>

#include <pith/core/random.hpp>
#include <pith/kv.hpp>

#include "support/command_line.hpp"

using namespace pith;

namespace {

Matrix<float> random_rows(Index rows, Index cols, std::mt19937_64& rng) {
  Matrix<float> m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = normal<float>(rng);
  return m;
}

/// Softmax attention as anybody writes it, for the queries [group, head_dim] of one kv head; leaves the weights for the cache to see.
Matrix<float> your_attention(const Matrix<float>& q, Eigen::Map<const Matrix<float>> keys, Eigen::Map<const Matrix<float>> values,
                             Matrix<float>& weights) {
  weights = (q * keys.transpose() / std::sqrt(float(q.cols()))).array().exp();
  weights.array().colwise() /= weights.rowwise().sum().array().eval();
  return weights * values;
}

void your_own_loop(example::CommandLine& line) {
  line.done();
  const AttentionShape shape{.num_heads = 8, .num_kv_heads = 2, .head_dim = 32};
  KvCache<Dense> dense(shape, {}, {.max_tokens = 2000});
  KvCache cache(shape, HeavyHitter{.heavy = 96, .recent = 32}, {.max_chunk = 1});

  std::mt19937_64 rng(1);
  const Matrix<float> topic = random_rows(1, 32, rng);  // what every query asks for a little, and few keys answer
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
      cache.observe({.kv_head = h, .weights = weights});  // would not compile for a Window: it never asks
      error += (out - exact).squaredNorm();
      size += exact.squaredNorm();
    }
    dense.evict();
    cache.evict();  // at most 128 rows a head between tokens
  }
  std::printf("dense         %5td rows  %8zu bytes\n", dense.size(0), dense.bytes());
  std::printf("heavy hitters %5td rows  %8zu bytes  relative error of the output %.3f\n", cache.size(0), cache.bytes(),
              std::sqrt(error / size));
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, "your_own_loop", your_own_loop); }
