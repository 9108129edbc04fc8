#pragma once
// LLaVA-PruMerge: keeps the image patches the class token attends to most and merges the others into them.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/merge/similarity.hpp>
#include <pith/merge/top_rows.hpp>
#include <pith/nn/softmax.hpp>

namespace pith { inline namespace v0 {

/// The class token's attention to the patches: softmax(K q / √dim) over all tokens, without the weight it gives itself.
///
/// Shapes   query [dim] of the class token · keys [1 + patches, dim], the class token's first · out [patches]
/// Heap     none, given ws of Workspace::bytes_for<S>(keys.rows())
/// Throws   ShapeError if the shapes disagree or there is no class token
/// Paper    LLaVA-PruMerge: arXiv:2403.15388, which treats all features of the encoder as one head
template <class S>
void class_attention(ConstVectorRef<S> query, std::type_identity_t<ConstMatrixRef<S>> keys, std::type_identity_t<VectorRef<S>> out,
                     Workspace& ws) {
  check_shape("class_attention", "keys", keys, any_extent, query.size());
  if (keys.rows() < 1 || out.size() != keys.rows() - 1)
    raise<ShapeError>("pith::class_attention: room for ", out.size(), " weights of ", keys.rows(),
                      " tokens, expected one for each behind the class token");
  const Workspace::Scope scope(ws);
  MatrixRef<S> weights = ws.matrix<S>(1, keys.rows());
  const S scale = S(1) / std::sqrt(static_cast<S>((std::max)(Index(1), query.size())));
  for (Index t = 0; t < keys.rows(); ++t) weights(0, t) = keys.row(t).dot(query.transpose()) * scale;
  softmax<S>(weights);
  out = weights.row(0).tail(out.size()).transpose();
}

/// The same with memory of its own: [patches].
///
/// Heap     the weights and a workspace
template <detail::EigenDense V>
Vector<detail::scalar_t<V>> class_attention(const V& query, std::type_identity_t<ConstMatrixRef<detail::scalar_t<V>>> keys) {
  using S = detail::scalar_t<V>;
  Vector<S> out((std::max)(Index(0), keys.rows() - 1));
  Workspace ws(Workspace::bytes_for<S>(keys.rows()));
  class_attention<S>(query, keys, out, ws);
  return out;
}

/// The number of outliers, scores > Q3 + 1.5 (Q3 - Q1): the number of patches that PruMerge keeps.
///
/// The quartiles Q1 and Q3 are interpolated; NaN ranks below all numbers.
///
/// Heap     none, given ws of Workspace::bytes_for<S>(scores.size())
template <class S> Index count_outliers(ConstVectorRef<S> scores, Workspace& ws) {
  const Index n = scores.size();
  if (n == 0) return 0;
  const Workspace::Scope scope(ws);
  S* const sorted = ws.take<S>(n);
  std::transform(scores.begin(), scores.end(), sorted, [](S score) { return detail::rank_of(score); });
  std::sort(sorted, sorted + n);
  const auto quantile = [&](double q) {
    const double at = q * static_cast<double>(n - 1);
    const auto low = static_cast<Index>(at);
    const S below = sorted[low], above = sorted[(std::min)(low + 1, n - 1)];
    return below == above ? below : below + (above - below) * static_cast<S>(at - static_cast<double>(low));
  };
  const S lower = quantile(.25), upper = quantile(.75), bound = upper + S(1.5) * (upper - lower);
  return static_cast<Index>(sorted + n - std::upper_bound(sorted, sorted + n, bound));
}

/// The same with a workspace of its own.
template <detail::EigenDense V> Index count_outliers(const V& scores) {
  using S = detail::scalar_t<V>;
  Workspace ws(Workspace::bytes_for<S>(scores.size()));
  return count_outliers<S>(scores, ws);
}

/// PruMerge+: adds every ⌊⌊1 / ratio⌋ / 3⌋-th patch to the kept rows, about three for each row that the ratio keeps. Returns the new count.
///
/// Shapes   rows [kept + any]: the first `kept` are given; the added rows follow, ascending, without duplicates
/// Throws   ShapeError if the ratio is not above 0 and at most 1/3, rows has no room for all of them, or a given row is out of range
/// Paper    LLaVA-PruMerge: arXiv:2403.15388
inline Index add_spatial_rows(Index patches, double ratio, Index kept, std::span<std::int32_t> rows) {
  if (!(ratio > 0 && ratio <= 1)) raise<ShapeError>("pith::add_spatial_rows: a ratio of ", ratio, ", expected one above 0 and at most 1/3");
  const double distance = std::floor(std::floor(1 / ratio) / 3);
  if (distance < 1)
    raise<ShapeError>("pith::add_spatial_rows: a ratio of ", ratio,
                      ": rows less than one apart; expected at most 1/3, or keep all of them");
  if (patches < 0 || kept < 0 || kept > static_cast<Index>(rows.size()))
    raise<ShapeError>("pith::add_spatial_rows: ", kept, " of ", patches, " rows kept, and room for ", rows.size());
  detail::check_rows_fit("add_spatial_rows", patches);
  const auto given = rows.first(static_cast<std::size_t>(kept));
  for (const std::int32_t row : given)
    if (row < 0 || row >= patches) raise<ShapeError>("pith::add_spatial_rows: row ", row, ", expected 0 .. ", patches - 1);
  const Index step = distance < static_cast<double>(patches) ? static_cast<Index>(distance) : (std::max)(Index(1), patches);
  const auto missing = [&](Index row) { return std::find(given.begin(), given.end(), row) == given.end(); };
  Index all = kept;
  for (Index row = 0; row < patches; row += step) all += missing(row);
  if (all > static_cast<Index>(rows.size())) raise<ShapeError>("pith::add_spatial_rows: room for ", rows.size(), " rows, expected ", all);
  Index next = kept;
  for (Index row = 0; row < patches; row += step)
    if (missing(row)) rows[static_cast<std::size_t>(next++)] = static_cast<std::int32_t>(row);
  return all;
}

/// The input of prumerge().
template <class S> struct ImagePatches {
  ConstMatrixRef<S> rows;       ///< [patches, features] the rows to merge
  ConstMatrixRef<S> keys;       ///< [patches, dim] the keys whose cosines define neighbours
  ConstVectorRef<S> attention;  ///< [patches] weights given by the class token
};

/// PruMerge: adds to each kept patch its nearest neighbours, weighted by the class token's attention a; one more row sums the rest.
///
///   out_i = xᵢ + Σ a_j x_j over the nearest patches j of i, kept or not;   out_k = Σ a_j x_j over all patches j that are not kept
///
/// As published, the weights are not divided by their sum: rows grow. Of equal cosines the lowest patch is nearer.
///
/// Shapes   kept [k]: patches, as top_rows() of the attention finds them · out [k + 1, features], in the same order
/// Cost     2·k·patches·dim flops and k partial sorts
/// Heap     none, given ws of prumerge_workspace_bytes<S>(patches, k, dim, workers)
/// Throws   ShapeError if shapes disagree, kept is empty or has duplicates, or `neighbours` is negative
/// Paper    LLaVA-PruMerge: arXiv:2403.15388
template <class S>
void prumerge(const ImagePatches<S>& image, std::span<const std::int32_t> kept, Index neighbours, std::type_identity_t<MatrixRef<S>> out,
              Workspace& ws) {
  const Index n = image.rows.rows(), k = static_cast<Index>(kept.size());
  check_shape("prumerge", "keys", image.keys, n, any_extent);
  if (image.attention.size() != n) raise<ShapeError>("pith::prumerge: ", image.attention.size(), " weights of ", n, " patches");
  if (k == 0) raise<ShapeError>("pith::prumerge: no patch is kept, expected one or more: a larger ratio");
  check_shape("prumerge", "out", out, k + 1, image.rows.cols());
  if (neighbours < 0) raise<ShapeError>("pith::prumerge: ", neighbours, " neighbours, expected 0 or more");
  detail::check_rows_fit("prumerge", n);
  const Workspace::Scope scope(ws);
  std::int32_t* const order = ws.take<std::int32_t>(n);
  std::fill_n(order, n, 0);
  for (const std::int32_t patch : kept) {
    if (patch < 0 || patch >= n || order[patch] != 0)
      raise<ShapeError>("pith::prumerge: patch ", patch, " is kept, expected 0 .. ", n - 1, ", each once");
    order[patch] = 1;
  }
  auto rest = out.row(k);
  rest.setZero();
  for (Index patch = 0; patch < n; ++patch)
    if (order[patch] == 0) rest += image.attention[patch] * image.rows.row(patch);

  MatrixRef<S> keys = ws.matrix<S>(k, image.keys.cols()), cosines = ws.matrix<S>(k, n);
  for (Index i = 0; i < k; ++i) keys.row(i) = image.keys.row(kept[static_cast<std::size_t>(i)]);
  similarity_matrix<S>(keys, image.keys, cosines, ws);
  const Index closest = (std::min)(neighbours, n - 1);
  for (Index i = 0; i < k; ++i) {
    const Index patch = kept[static_cast<std::size_t>(i)];
    cosines(i, patch) = std::numeric_limits<S>::infinity();  // ranks first; skipped below
    detail::best_first(&cosines(i, 0), n, closest + 1, order);
    std::sort(order, order + closest + 1);
    out.row(i) = image.rows.row(patch);
    for (Index j = 0; j <= closest; ++j)
      if (order[j] != patch) out.row(i) += image.attention[order[j]] * image.rows.row(order[j]);
  }
}

/// Bytes of workspace that prumerge() needs: it stores a row of cosines for each kept patch.
template <class S> std::size_t prumerge_workspace_bytes(Index patches, Index kept, Index dim, Index workers = 1) {
  return Workspace::bytes_for<S>(detail::checked_product("prumerge_workspace_bytes", kept, dim)) +
         Workspace::bytes_for<S>(detail::checked_product("prumerge_workspace_bytes", kept, patches)) +
         Workspace::bytes_for<std::int32_t>(patches) + nearest_workspace_bytes<S>(patches + kept, dim, workers);
}

/// The same with memory of its own: [kept + 1, features].
///
/// Heap     the rows and a workspace
template <class S> Matrix<S> prumerge(const ImagePatches<S>& image, std::span<const std::int32_t> kept, Index neighbours) {
  const Index k = static_cast<Index>(kept.size());
  Matrix<S> out(k + 1, image.rows.cols());
  Workspace ws(prumerge_workspace_bytes<S>(image.rows.rows(), k, image.keys.cols()));
  prumerge<S>(image, kept, neighbours, out, ws);
  return out;
}

}}  // namespace pith::v0
