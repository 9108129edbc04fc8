#pragma once
// DivPrune: picks the most diverse rows.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/merge/similarity.hpp>
#include <pith/merge/top_rows.hpp>

namespace pith { inline namespace v0 {

/// DivPrune: picks rows greedily so that the smallest distance between two picked rows is large.
///
///   next = argmax_r min_p (1 - cos(r, p)),   p: the rows picked so far; for the first pick all other rows
///
/// No row is picked twice, even if it equals a picked one. Of equal distances the lowest row is picked; rows that contain NaN or infinity
/// come last. The published number of picks is rows_at_keep_ratio(n, ratio, Rounding::nearest).
///
/// Shapes   rows [n, dim] · picked [any number up to n], in the order of picking
/// Cost     2·n²·dim flops, and n comparisons for each pick
/// Heap     none, given ws of diverse_workspace_bytes<S>(n, dim, workers)
/// Throws   ShapeError if picked is longer than n, CapacityError if ws is too small
/// Law      a longer list of picks begins with every shorter one
/// Paper    DivPrune: arXiv:2503.02175
template <class S> void pick_diverse(ConstMatrixRef<S> rows, std::span<std::int32_t> picked, Workspace& ws) {
  const Index n = rows.rows(), count = static_cast<Index>(picked.size());
  if (count > n) raise<ShapeError>("pith::pick_diverse: ", count, " picks of ", n, " rows, expected no more than there are");
  if (count == 0) return;
  detail::check_rows_fit("pick_diverse", n);
  const Workspace::Scope scope(ws);
  constexpr S inf = std::numeric_limits<S>::infinity();
  MatrixRef<S> similarity = ws.matrix<S>(n, n);
  VectorRef<S> nearest = ws.vector<S>(n);  // the cosine of the nearest other row, later of the nearest picked row
  bool* const taken = ws.take<bool>(n);
  std::fill_n(taken, n, false);
  similarity_matrix<S>(rows, rows, similarity, ws);
  const auto comes_near = [&](Index r, Index other) {
    if (similarity(r, other) > nearest[r]) nearest[r] = similarity(r, other);
  };
  for (Index r = 0; r < n; ++r) {
    const bool broken = similarity(r, r) != similarity(r, r);  // an infinite cosine: picked last
    nearest[r] = broken ? inf : -inf;
    for (Index other = 0; other < n; ++other)
      if (other != r) comes_near(r, other);
  }
  for (Index i = 0; i < count; ++i) {
    Index pick = -1;
    for (Index r = 0; r < n; ++r)
      if (!taken[r] && (pick < 0 || nearest[r] < nearest[pick])) pick = r;
    picked[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(pick);
    taken[pick] = true;
    for (Index r = 0; r < n; ++r) {
      if (i == 0 && nearest[r] < inf) nearest[r] = -inf;
      comes_near(r, pick);
    }
  }
}

/// Bytes of workspace that pick_diverse() needs: it stores all similarities, because any two rows may have to be compared.
template <class S> std::size_t diverse_workspace_bytes(Index rows, Index dim, Index workers = 1) {
  return Workspace::bytes_for<S>(detail::checked_product("diverse_workspace_bytes", rows, rows)) + Workspace::bytes_for<S>(rows) +
         Workspace::bytes_for<bool>(rows) +
         nearest_workspace_bytes<S>(detail::checked_product("diverse_workspace_bytes", 2, rows), dim, workers);
}

/// The same with memory of its own: the `count` most diverse rows, in the order of picking.
///
/// Heap     the picks and a workspace
template <detail::EigenDense M> std::vector<std::int32_t> pick_diverse(const M& rows, Index count) {
  using S = detail::scalar_t<M>;
  detail::check_part("pick_diverse", count, rows.rows());
  std::vector<std::int32_t> picked(static_cast<std::size_t>(count));
  Workspace ws(diverse_workspace_bytes<S>(rows.rows(), rows.cols()));
  pick_diverse<S>(rows, picked, ws);
  return picked;
}

}}  // namespace pith::v0
