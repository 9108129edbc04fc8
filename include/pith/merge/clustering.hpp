#pragma once
// Density-peak clustering of tokens by k nearest neighbours (DPC-KNN).

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

namespace pith { inline namespace v0 {

/// Options of match_clusters().
struct ClusterOptions {
  Index clusters = 16;                 ///< number of clusters, and of rows after merging
  Index neighbours = 5;                ///< number of nearest rows that define a row's density, itself included
  RowOrder order = RowOrder::spatial;  ///< published: the best centre first
};

namespace detail {

/// out(i, j) = |xᵢ - xⱼ|² / dim, from the differences, so that equal rows have distance 0. A distance that is NaN becomes infinite.
template <class S> void squared_distances(const ConstMatrixRef<S>& rows, MatrixRef<S> out) {
  const S scale = S(1) / static_cast<S>((std::max)(Index(1), rows.cols()));
  for (Index i = 0; i < rows.rows(); ++i) {
    for (Index j = 0; j <= i; ++j) {
      const S distance = (rows.row(i) - rows.row(j)).squaredNorm() * scale;
      out(i, j) = out(j, i) = distance == distance ? distance : std::numeric_limits<S>::infinity();
    }
  }
}

}  // namespace detail

/// Density peaks: picks the rows of highest score as centres and assigns every other row to the nearest centre.
///
///   d(i, j) = |xᵢ - xⱼ| / √dim,   ρᵢ = exp(-mean of d² to the k nearest),   score = ρᵢ · min d(i, j) over rows j with ρⱼ > ρᵢ
///
/// For the densest row the minimum is the largest distance between any two rows. Of equal densities or scores the lower row is the better,
/// of equal distances the better centre is the nearer. map.merge(rows, out, Averaged{}, ws) computes the mean of each cluster.
///
/// Shapes   rows [n, dim]
/// Cost     1.5·n²·dim flops, n selections and a partial sort
/// Heap     none, given ws of cluster_workspace_bytes<S>(n)
/// Throws   ShapeError unless 1 <= clusters <= n and 1 <= neighbours <= n; CapacityError if map or ws are too small
/// Law      map.rows() == clusters
/// Paper    Du, Ding and Jia 2016: density peaks by k nearest neighbours; SparseVLM, arXiv:2410.04417, recycles dropped tokens this way
template <class S>
void match_clusters(std::type_identity_t<ConstMatrixRef<S>> rows, const ClusterOptions& options, TokenMap<S>& map, Workspace& ws) {
  const Index n = rows.rows();
  if (options.clusters < 1 || options.clusters > n || options.neighbours < 1 || options.neighbours > n)
    raise<ShapeError>("pith::match_clusters: ", options.clusters, " clusters by ", options.neighbours, " neighbours, expected 1 .. ", n,
                      " of each: as many as there are rows");
  map.start(n);
  const Workspace::Scope scope(ws);
  MatrixRef<S> distances = ws.matrix<S>(n, n);
  VectorRef<S> density = ws.vector<S>(n), score = ws.vector<S>(n), inverse = ws.vector<S>(n);
  std::int32_t* const centres = ws.take<std::int32_t>(n);
  detail::squared_distances(ConstMatrixRef<S>(rows), distances);
  VectorRef<S> nearest = score;  // the distances of one row at a time
  for (Index i = 0; i < n; ++i) {
    nearest = distances.row(i).transpose();
    std::nth_element(nearest.data(), nearest.data() + options.neighbours - 1, nearest.data() + n);
    density[i] = std::exp(-nearest.head(options.neighbours).mean());
  }
  const S farthest = distances.maxCoeff();
  for (Index i = 0; i < n; ++i) {
    S parent = farthest;
    for (Index j = 0; j < n; ++j)
      if (density[j] > density[i] || (density[j] == density[i] && j < i)) parent = (std::min)(parent, distances(i, j));
    score[i] = std::sqrt(parent) * density[i];
  }
  detail::best_first(score.data(), n, options.clusters, centres);
  detail::inverse_norms(ConstMatrixRef<S>(rows), inverse.data());
  for (Index c = 0; c < options.clusters; ++c) density[centres[c]] = -1;  // marks a centre, which joins no other
  for (Index i = 0; i < n; ++i) {
    if (density[i] < S(0)) continue;
    Index to = centres[0];
    for (Index c = 1; c < options.clusters; ++c)
      if (distances(i, centres[c]) < distances(i, to)) to = centres[c];
    map.merge_into(i, to, rows.row(i).dot(rows.row(to)) * inverse[i] * inverse[to]);
  }
  if (options.order == RowOrder::spatial) return map.place();
  map.place({centres, static_cast<std::size_t>(options.clusters)});
}

/// Bytes of workspace that match_clusters() needs: it stores all distances, because it reads them more than once.
template <class S> std::size_t cluster_workspace_bytes(Index rows) {
  return Workspace::bytes_for<S>(detail::checked_product("cluster_workspace_bytes", rows, rows)) + 3 * Workspace::bytes_for<S>(rows) +
         Workspace::bytes_for<std::int32_t>(rows);
}

/// The same with memory of its own: `match_clusters(x, {.clusters = 16}).merged(x)`.
///
/// Heap     the map and a workspace
template <detail::EigenDense M> TokenMap<detail::scalar_t<M>> match_clusters(const M& rows, const ClusterOptions& options) {
  using S = detail::scalar_t<M>;
  TokenMap<S> map(rows.rows());
  Workspace ws(cluster_workspace_bytes<S>(rows.rows()));
  match_clusters<S>(rows, options, map, ws);
  return map;
}

}}  // namespace pith::v0
