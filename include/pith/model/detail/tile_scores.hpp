#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include <pith/attention/kv_view.hpp>
#include <pith/core/check.hpp>
#include <pith/core/products.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/kv/detail/slab.hpp>
#include <pith/kv/row_budget.hpp>
#include <pith/model/config.hpp>
#include <pith/model/look.hpp>

// What the queries of a proxy pass make of the rows that they see.

namespace pith { inline namespace v0 { namespace detail {

/// A zero for every row of a session, and no scores for sliding-window layers, whose rows stay.
template <class Session> RowScores unscored(const Session& session) {
  const auto caches = session.caches();
  RowScores scores(static_cast<Index>(caches.size()), caches.front().shape().num_kv_heads);
  for (std::size_t l = 0; l < caches.size(); ++l)
    for (Index h = 0; h < scores.kv_heads(); ++h) {
      RowScores::Head& head = scores.head(static_cast<Index>(l), h);
      head.positions = caches[l].positions(h);
      if (session.config().layer(static_cast<Index>(l)).window == 0) head.scores.assign(head.positions.size(), 0.0);
    }
  return scores;
}

template <class S> void check_o_proj(const DecoderConfig& config, std::span<const std::shared_ptr<const Matrix<S>>> o_proj) {
  if (o_proj.empty()) return;
  if (static_cast<Index>(o_proj.size()) != config.num_hidden_layers)
    raise<ShapeError>("pith::kvzip_scores: ", o_proj.size(), " output projections, expected one for each of ", config.num_hidden_layers,
                      " layers");
  for (const auto& each : o_proj) {
    if (each == nullptr) raise<ShapeError>("pith::kvzip_scores: an output projection is null");
    check_shape("kvzip_scores", "o_proj", *each, any_extent, config.num_attention_heads * config.head_dim);
  }
}

/// Logits of a tile's queries on some rows of a run: [queries*group, rows].
template <KvStorage T> Matrix<arithmetic_t<T>> tile_logits(const LookTile<T>& tile, const KvRun<T>& run, std::span<const Index> rows) {
  using S = arithmetic_t<T>;
  const Index d = tile.attention.queries.cols(), n = static_cast<Index>(rows.size());
  Matrix<S> keys(n, d);
  for (Index j = 0; j < n; ++j) widen_key(key_of(run, rows[static_cast<std::size_t>(j)]), keys.data() + j * d, d);
  Matrix<S> out = times_transposed<S>(tile.attention.queries, keys);
  out *= tile.scale;
  if (tile.softcap > 0) out = tile.softcap * (out.array() / tile.softcap).tanh();
  for (Index j = 0; run.log_mass != nullptr && j < n; ++j)
    out.col(j).array() += static_cast<S>(run.log_mass[rows[static_cast<std::size_t>(j)]]);
  return out;
}

/// Positions of the rows that a pass repeats, and where the sinks end.
struct RepeatedChunk {
  Position first, end, sinks_end;
};

/// scores_j = max(scores_j, the largest weight of row j), over sinks, chunk and the proxy's tokens so far; with `o_proj`, weighted by
/// ‖W_o v_j‖ / ‖x‖.
template <KvStorage T>
void repeat_scores(const LookTile<T>& tile, const RepeatedChunk& chunk, const Matrix<arithmetic_t<T>>* o_proj, std::span<double> scores) {
  using S = arithmetic_t<T>;
  const Index queries = tile.attention.queries.rows(), group = queries / (std::max)(tile.attention.num_queries, Index(1));
  std::vector<Index> sinks, rows, proxy;
  for (Index r = 0; r < tile.rows.rows; ++r) {
    const Position p = tile.rows.positions[r];
    if (p >= chunk.first && p < chunk.end)
      rows.push_back(r);
    else if (p < chunk.sinks_end)
      sinks.push_back(r);
  }
  const Position last = tile.attention.first_query + static_cast<Position>(tile.attention.num_queries) - 1;
  for (Index r = 0; r < tile.proxy.rows && tile.proxy.positions[r] <= last; ++r) proxy.push_back(r);
  const Matrix<S> of_sinks = tile_logits(tile, tile.rows, sinks), of_proxy = tile_logits(tile, tile.proxy, proxy);
  Matrix<S> of_rows = tile_logits(tile, tile.rows, rows);
  for (Index i = 0; i < queries; ++i) {
    const Index seen = std::count_if(proxy.begin(), proxy.end(), [&](Index r) {
      return tile.proxy.positions[r] <= tile.attention.first_query + static_cast<Position>(i / group);
    });
    S top = of_proxy.row(i).head(seen).maxCoeff(), total = 0;
    if (!rows.empty()) top = (std::max)(top, of_rows.row(i).maxCoeff());
    if (!sinks.empty()) top = (std::max)(top, of_sinks.row(i).maxCoeff());
    of_rows.row(i) = (of_rows.row(i).array() - top).exp();
    total = of_rows.row(i).sum() + (of_proxy.row(i).head(seen).array() - top).exp().sum() + (of_sinks.row(i).array() - top).exp().sum();
    of_rows.row(i) /= total;
  }
  if (o_proj != nullptr) {
    const Index d = tile.attention.queries.cols();
    Vector<S> value(d);
    for (std::size_t j = 0; j < rows.size(); ++j) {
      widen_value(value_of(tile.rows, rows[j]), value.data(), d);
      for (Index g = 0; g < group; ++g) {
        const S norm = (o_proj->middleCols((tile.attention.kv_head * group + g) * d, d) * value).norm();
        for (Index i = g; i < queries; i += group) of_rows(i, static_cast<Index>(j)) *= norm / tile.inputs.row(i / group).norm();
      }
    }
  }
  for (std::size_t j = 0; j < rows.size(); ++j) {
    double& score = scores[static_cast<std::size_t>(rows[j])];
    score = (std::max)(score, static_cast<double>(of_rows.col(static_cast<Index>(j)).maxCoeff()));
  }
}

/// scores_j += the weights of row j, averaged over `tokens` queries and the group; `normalised`: times the number of keys before the query.
template <KvStorage T> void mean_scores(const LookTile<T>& tile, Index tokens, bool normalised, std::span<double> scores) {
  const Index queries = tile.attention.weights.rows(), group = queries / (std::max)(tile.attention.num_queries, Index(1));
  for (Index i = 0; i < queries; ++i) {
    const double before = normalised ? static_cast<double>(tile.attention.first_query + i / group) : 1.0;
    for (std::size_t r = 0; r < scores.size(); ++r)
      scores[r] += static_cast<double>(tile.attention.weights(i, static_cast<Index>(r))) * before / static_cast<double>(tokens * group);
  }
}

}}}  // namespace pith::v0::detail
