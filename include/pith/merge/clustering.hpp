#pragma once

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
#include <pith/merge/token_map.hpp>
#include <pith/merge/top_rows.hpp>

namespace pith::inline v0 {

struct ClusterOptions {
  Index clusters = 16;                 ///< rows that remain
  Index neighbours = 5;                ///< rows that the density around a row is measured by, itself included
  RowOrder order = RowOrder::spatial;  ///< published: the best centre first
};

/// What match_clusters() takes from its workspace: nothing that grows with the square of the rows.
template <class S> std::size_t cluster_workspace_bytes(Index rows) {
  return 4 * Workspace::bytes_for<S>(rows) + Workspace::bytes_for<std::int32_t>(rows);
}

namespace detail {

/// out[j] = |rows i - j|² / dim; what is not a number is infinitely far.
template <class S> void squared_distances(const ConstMatrixRef<S>& rows, Index i, S* out) {
  const S scale = S(1) / static_cast<S>(std::max(Index(1), rows.cols()));
  for (Index j = 0; j < rows.rows(); ++j) {
    const S distance = (rows.row(j) - rows.row(i)).squaredNorm() * scale;
    out[j] = distance == distance ? distance : std::numeric_limits<S>::infinity();
  }
}

/// density[i] = exp(-mean of the squared distances to the nearest `neighbours`). Returns the largest squared distance of all.
template <class S> S densities(const ConstMatrixRef<S>& rows, Index neighbours, S* distances, S* density) {
  const Index n = rows.rows();
  S farthest = 0;
  for (Index i = 0; i < n; ++i) {
    squared_distances(rows, i, distances);
    farthest = std::max(farthest, *std::max_element(distances, distances + n));
    std::nth_element(distances, distances + neighbours - 1, distances + n);
    density[i] = std::exp(-ConstVectorRef<S>(distances, neighbours).mean());
  }
  return farthest;
}

}  // namespace detail

/// Density peaks: rows that lie close to their neighbours and far from any denser row are centres, and every other row joins the nearest
/// centre; map.merge(rows, out, Averaged{}, ws) is the mean of each cluster.
///
/// A row's score is its density times the distance to the nearest denser one, or the largest distance there is for the densest. Of equal
/// densities and scores the lower row is the better, of equal distances the better centre is the nearer.
///
/// Shapes   rows [n, dim]
/// Cost     6·n²·dim flops, n selections and a partial sort
/// Heap     none, given ws of cluster_workspace_bytes<S>(n)
/// Throws   ShapeError if there are fewer rows than clusters or neighbours, or less than one of them; CapacityError if map or ws are too
///          small
/// Law      map.rows() == clusters
/// Paper    Du, Ding and Jia 2016: density peaks by k nearest neighbours; SparseVLM, arXiv:2410.04417, recycles dropped tokens so
template <class S>
void match_clusters(std::type_identity_t<ConstMatrixRef<S>> rows, const ClusterOptions& options, TokenMap<S>& map, Workspace& ws) {
  const Index n = rows.rows();
  if (options.clusters < 1 || options.clusters > n || options.neighbours < 1 || options.neighbours > n)
    raise<ShapeError>(detail::text("pith::match_clusters: ", options.clusters, " clusters by ", options.neighbours,
                                   " neighbours, expected 1 .. ", n, " of each: as many as there are rows"));
  map.start(n);
  const Workspace::Scope scope(ws);
  S* const distances = ws.take<S>(n);
  S* const density = ws.take<S>(n);
  S* const score = ws.take<S>(n);
  S* const inverse = ws.take<S>(n);
  std::int32_t* const centres = ws.take<std::int32_t>(n);
  const S farthest = detail::densities(ConstMatrixRef<S>(rows), options.neighbours, distances, density);
  for (Index i = 0; i < n; ++i) {
    detail::squared_distances(ConstMatrixRef<S>(rows), i, distances);
    S parent = farthest;
    for (Index j = 0; j < n; ++j)
      if (density[j] > density[i] || (density[j] == density[i] && j < i)) parent = std::min(parent, distances[j]);
    score[i] = std::sqrt(parent) * density[i];
  }
  detail::best_first(score, n, options.clusters, centres);
  detail::inverse_norms(ConstMatrixRef<S>(rows), inverse);
  for (Index c = 0; c < options.clusters; ++c) density[centres[c]] = -1;  // joins nobody
  S* const nearest = score;
  for (Index c = 0; c < options.clusters; ++c) {
    const Index centre = centres[c];
    detail::squared_distances(ConstMatrixRef<S>(rows), centre, distances);
    for (Index i = 0; i < n; ++i) {
      if (density[i] < S(0) || !(c == 0 || distances[i] < nearest[i])) continue;
      nearest[i] = distances[i];
      map.merge_into(i, centre, rows.row(i).dot(rows.row(centre)) * inverse[i] * inverse[centre]);
    }
  }
  if (options.order == RowOrder::spatial) return map.place();
  map.place({centres, static_cast<std::size_t>(options.clusters)});
}

}  // namespace pith::inline v0
