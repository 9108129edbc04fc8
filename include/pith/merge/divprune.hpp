#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/merge/similarity.hpp>
#include <pith/merge/top_rows.hpp>

namespace pith::inline v0 {

namespace detail {

inline constexpr Index diverse_rows = 128;  // rows of the similarity matrix held at a time

/// The cosine of each row's nearest other one. Rows that not even their own numbers can be compared with are nearest of all, to be picked
/// last.
template <class S> void nearest_others(const ConstMatrixRef<S>& rows, VectorRef<S> nearest, Workspace& ws) {
  const Index n = rows.rows();
  const Workspace::Scope scope(ws);
  MatrixRef<S> block = ws.matrix<S>(std::min(n, diverse_rows), n);
  for (Index e = 0; e < n; e += diverse_rows) {
    const Index count = std::min(diverse_rows, n - e);
    similarity_matrix<S>(rows.middleRows(e, count), rows, block.topRows(count), ws);
    for (Index t = 0; t < count; ++t) {
      S most = -std::numeric_limits<S>::infinity();
      for (Index c = 0; c < n; ++c)
        if (c != e + t && block(t, c) > most) most = block(t, c);
      nearest[e + t] = block(t, e + t) == block(t, e + t) ? most : std::numeric_limits<S>::infinity();
    }
  }
}

}  // namespace detail

/// What pick_diverse() takes from its workspace.
template <class S> std::size_t diverse_workspace_bytes(Index rows, Index dim, Index workers = 1) {
  return 2 * Workspace::bytes_for<S>(rows) + Workspace::bytes_for<bool>(rows) +
         Workspace::bytes_for<S>(detail::checked_product("diverse_workspace_bytes", std::min(rows, detail::diverse_rows), rows)) +
         nearest_workspace_bytes<S>(2 * rows, dim, workers);
}

/// DivPrune: rows as far apart as can be. The first is the one whose nearest neighbour is farthest, each next one is farthest from those
/// picked so far; distance is 1 - cosine.
///
/// No row is picked twice, be it equal to one already picked. Of equal distances the lowest row; rows in which numbers are missing come
/// last.
///
/// Shapes   rows [n, dim] · picked [any number up to n], in the order of picking: rows_of_ratio(n, ratio, Rounding::nearest) as published
/// Cost     2·n²·dim flops for the first, 2·n·dim for each of the others
/// Heap     none, given ws of diverse_workspace_bytes<S>(n, dim, workers)
/// Throws   ShapeError if there are fewer rows than are to be picked, CapacityError if ws is too small
/// Law      more picks begin with those that fewer would be
/// Paper    DivPrune: arXiv:2503.02175
template <class S> void pick_diverse(ConstMatrixRef<S> rows, std::span<std::int32_t> picked, Workspace& ws) {
  const Index n = rows.rows(), count = static_cast<Index>(picked.size());
  if (count > n) raise<ShapeError>(detail::text("pith::pick_diverse: ", count, " picks of ", n, " rows, expected no more than there are"));
  if (count == 0) return;
  detail::check_rows_fit("pick_diverse", n);
  const Workspace::Scope scope(ws);
  VectorRef<S> nearest = ws.vector<S>(n), inverse = ws.vector<S>(n);
  bool* const taken = ws.take<bool>(n);
  std::fill_n(taken, n, false);
  detail::nearest_others(rows, nearest, ws);
  detail::inverse_norms(rows, inverse.data());
  for (Index i = 0; i < count; ++i) {
    Index pick = -1;
    for (Index r = 0; r < n; ++r)
      if (!taken[r] && (pick < 0 || nearest[r] < nearest[pick])) pick = r;
    picked[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(pick);
    taken[pick] = true;
    for (Index r = 0; i == 0 && r < n; ++r)  // from now on to the nearest of those picked
      if (nearest[r] < std::numeric_limits<S>::infinity()) nearest[r] = -std::numeric_limits<S>::infinity();
    for (Index r = 0; r < n; ++r) {
      if (taken[r]) continue;
      const S near = rows.row(r).dot(rows.row(pick)) * inverse[pick] * inverse[r];
      if (near > nearest[r]) nearest[r] = near;
    }
  }
}

}  // namespace pith::inline v0
