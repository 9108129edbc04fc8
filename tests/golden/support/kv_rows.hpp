#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include <pith/kv.hpp>
#include <pith/merge.hpp>

#include "golden/support/golden_file.hpp"
#include "golden/support/model_trace.hpp"
#include "golden/support/parity.hpp"
#include "support/catch.hpp"

// Rows of golden files of caches, and what golden.kv and golden.kv2 both replay.
namespace pith_test {

using pith::AttendOptions;
using pith::AttentionTile;
using pith::ConstMatrixRef;
using pith::ConstVectorRef;
using pith::LayerScores;
using pith::Matrix;
using pith::Position;
using pith::RankedRow;
using pith::Vector;
using pith::Workspace;

using Cache = pith::KvCache<float>;
using Ids = std::vector<Position>;

inline Ids sorted(std::span<const Position> ids) {
  Ids out(ids.begin(), ids.end());
  std::sort(out.begin(), out.end());
  return out;
}

/// The ids of a row, which may be filled up with -1.
inline Ids listed(std::span<const Token> row) {
  Ids out;
  for (const Token id : row)
    if (id >= 0) out.push_back(id);
  return sorted(out);
}

/// Head h of [heads, rows, columns].
inline Matrix<float> head_of(const Tensor& tensor, Index h) {
  REQUIRE(tensor.shape.size() == 3);
  Matrix<float> out(tensor.extent(1), tensor.width());
  for (Index t = 0; t < out.rows(); ++t) out.row(t) = ConstVectorRef<double>(tensor.row({h, t})).cast<float>().transpose();
  return out;
}

/// [heads, tokens, head_dim] as [tokens, heads*head_dim].
inline Matrix<float> token_rows(const Tensor& tensor) {
  const Index d = tensor.width();
  Matrix<float> out(tensor.extent(1), tensor.extent(0) * d);
  for (Index h = 0; h < tensor.extent(0); ++h) out.middleCols(h * d, d) = head_of(tensor, h);
  return out;
}

/// The newest tokens attend; the policy watches if it wants to.
inline Matrix<float> look(Cache& cache, ConstMatrixRef<float> q, const AttendOptions<float>& options = {}) {
  Index rows = 0;
  for (Index h = 0; h < cache.shape().num_kv_heads; ++h) rows = std::max(rows, cache.size(h));
  Matrix<float> out(q.rows(), q.cols());
  Workspace ws(pith::attend_workspace_bytes<float>(cache.shape(), rows, 1, q.rows()));
  const auto observer = cache.observer();
  pith::attend(
      q, cache.view(), out, ws,
      [&](const AttentionTile<float>& tile) {
        if (cache.watching()) observer(tile);
      },
      options);
  return out;
}

/// [kv heads][rows] what the policy makes of the rows; `memory` [kv heads, ...] what it was shown of a head as a whole.
inline std::vector<Vector<float>> scores_of(const Cache& cache, ConstMatrixRef<float> memory = {}) {
  const Index heads = cache.shape().num_kv_heads, stats = cache.policy().stats(cache.shape());
  std::vector<Vector<float>> scores;
  std::vector<LayerScores<float>::Head> together;
  Index rows = 0;
  for (Index h = 0; h < heads; ++h) rows += cache.size(h);
  Vector<float> scratch(rows);
  std::vector<RankedRow<float>> candidates(static_cast<std::size_t>(rows));
  for (Index h = 0; h < heads; ++h) {
    scores.emplace_back(cache.size(h));
    cache.policy().score({.kv_head = h,
                          .shape = cache.shape(),
                          .next = cache.next_position(),
                          .positions = cache.positions(h),
                          .kinds = cache.kinds(h),
                          .stats = cache.stats(h),
                          .keys = cache.keys(h, cache.rope_positions()),
                          .values = cache.values(h),
                          .memory = memory.rows() == 0 ? ConstVectorRef<float>() : ConstVectorRef<float>(memory.row(h)),
                          .scratch = scratch.data(),
                          .candidates = candidates.data()},
                         scores.back());
  }
  for (Index h = 0; h < heads; ++h)
    together.push_back({.size = cache.size(h),
                        .positions = cache.positions(h).data(),
                        .kinds = cache.kinds(h).data(),
                        .stats = cache.stats(h).data(),
                        .scores = scores[static_cast<std::size_t>(h)].data()});
  LayerScores<float> layer(cache.shape(), 0, cache.next_position(), cache.budget(), stats, cache.stats(0).outerStride(), together,
                           candidates.data());
  cache.policy().combine(layer);
  return scores;
}

inline void values_only_share(Golden& golden) {
  const Tensor k = golden.get("k"), v = golden.get("v"), kept = golden.get("kept");
  Index i = 0;
  for (const auto& config : golden.json("configs")) {
    const std::string name = "c" + std::to_string(i++);
    const pith::BestShare rule(pith::Gated(pith::ValuesOnly{}, config.at(0).get<double>()), config.at(1).get<double>(),
                               pith::ShareOf::evicted);
    Chosen chosen;
    for (Index h = 0; h < k.extent(0); ++h) {
      const Ids ids = listed(kept.id_row({h}));
      chosen.kept.emplace_back(ids.begin(), ids.end());
    }
    pith::KvCache cache({k.extent(0), k.extent(0), k.width()}, chosen, {.max_chunk = k.extent(1)}, rule);
    cache.append(token_rows(k), token_rows(v));
    cache.evict();
    const Tensor values = golden.get(name + "_values");
    for (Index h = 0; h < k.extent(0); ++h) {
      INFO(name << ", head " << h);
      const Ids ids = listed(kept.id_row({h}));
      CHECK(sorted(cache.positions(h)) == ids);
      for (std::size_t r = 0; r < ids.size(); ++r) {
        const Index row = row_at(cache, h, ids[r]);
        CHECK(distance(cache.values(h).row(row), values.row({h, static_cast<Index>(r)})) < 2e-5);
        CHECK(Matrix<float>(cache.keys(h).row(row)) == head_of(k, h).row(ids[r]));
      }
    }
  }
}

}  // namespace pith_test
