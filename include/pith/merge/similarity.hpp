#pragma once
// Cosine similarity of evicted and kept rows: the nearest kept row of each, or the whole matrix.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/merge/detail/similarity_kernel.hpp>

namespace pith { inline namespace v0 {

/// Finds the kept row that each row is most similar to: match[e] = argmax_c cos(row e, kept c), cosine[e] = max_c cos(row e, kept c).
///
/// Of equal cosines the first kept row wins, or the one of lowest position if `positions` of the kept rows are given. A row of zeros has
/// cosine 0 to all rows. A row whose cosines are all NaN (it or the kept rows hold NaN or infinity) has match -1 and cosine -inf.
///
/// Shapes   rows [n, dim] · kept [m, dim], m >= 1 · match [n] · cosine [n] · positions [m] or none
/// Cost     2·n·m·dim flops and n·m comparisons; the similarity matrix is never stored
/// Heap     none, given ws of nearest_workspace_bytes<S>(m, dim, workers, n)
/// Throws   ShapeError if the shapes disagree or there is no kept row, CapacityError if ws is too small
/// Law      no bit depends on the workers or on the other rows; scaling a row by a power of two changes neither its match nor any
///          cosine, as long as squares and products of the rows neither overflow nor underflow (float: numbers from 2^-60 to 2^60)
/// Paper    LOOK-M, arXiv:2406.18139, section 3.3
template <class S>
void nearest_rows(ConstMatrixRef<S> rows, std::type_identity_t<ConstMatrixRef<S>> kept, std::span<std::int32_t> match,
                  std::type_identity_t<VectorRef<S>> cosine, Workspace& ws, std::span<const Position> positions = {}) {
  detail::check_similar("nearest_rows", rows, kept);
  const Index n = rows.rows(), m = kept.rows();
  if (static_cast<Index>(match.size()) != n || cosine.size() != n)
    raise<ShapeError>("pith::nearest_rows: ", match.size(), " matches and ", cosine.size(), " cosines for ", n, " rows");
  if (!positions.empty() && static_cast<Index>(positions.size()) != m)
    raise<ShapeError>("pith::nearest_rows: ", positions.size(), " positions for ", m, " kept rows");
  detail::NearestRows<S>{rows, kept, match, cosine, ws, positions}.find();
}

/// Bytes of workspace that nearest_rows() needs: they grow with the kept rows, never with rows times kept.
///
/// `rows` is the largest number of rows in one call; pass it if it is small.
template <class S>
std::size_t nearest_workspace_bytes(Index kept, Index dim, Index workers = 1, Index rows = (std::numeric_limits<Index>::max)()) {
  const auto product = [](Index a, Index b) { return detail::checked_product("nearest_workspace_bytes", a, b); };
  const Index panel = product(dim, detail::panel_width), panels = product(kept, 1) / detail::panel_width + 1;
  const Index together = product(workers, detail::rows_together(dim));
  const Index packed = rows <= detail::rows_together(dim) ? Index(1) : panels;
  return Workspace::bytes_for<S>(product(panels, detail::panel_width)) + Workspace::alignment +
         3 * Workspace::bytes_for<S>(product(together, detail::Simd<S>::width)) + Workspace::bytes_for<S>(product(packed, panel)) +
         Workspace::bytes_for<S>(product(together, dim + detail::similar_gap)) +
         Workspace::bytes_for<S>(product(together, detail::panel_width));
}

/// The whole similarity matrix: out[e, c] = cos(row e, kept c).
///
/// Shapes   rows [n, dim] · kept [m, dim] · out [n, m]
/// Heap     none, given ws of nearest_workspace_bytes<S>(n + m, dim, workers)
/// Law      the same bits as in nearest_rows()
template <class S>
void similarity_matrix(ConstMatrixRef<S> rows, std::type_identity_t<ConstMatrixRef<S>> kept, std::type_identity_t<MatrixRef<S>> out,
                       Workspace& ws) {
  detail::check_similar("similarity_matrix", rows, kept);
  check_shape("similarity_matrix", "out", out, rows.rows(), kept.rows());
  const Workspace::Scope scope(ws);
  S* const inverse = ws.take<S>(kept.rows());
  S* const row_inverse = ws.take<S>(rows.rows());
  detail::inverse_norms(rows, row_inverse);
  const auto meet = [&](Index c, Index count) { detail::inverse_norms(ConstMatrixRef<S>(kept.middleRows(c, count)), inverse + c); };
  detail::each_product<S>(rows, kept, ws, meet, [&](Index, Index r, Index count, Index c, const S* products) {
    const Index width = (std::min)(detail::panel_width, kept.rows() - c);
    for (Index t = 0; t < count; ++t)
      for (Index i = 0; i < width; ++i) out(r + t, c + i) = products[t * detail::panel_width + i] * inverse[c + i] * row_inverse[r + t];
  });
}

/// The same with memory of its own: `similarity_matrix(x, x)` [n, n].
///
/// Heap     the matrix and a workspace
template <detail::EigenDense M>
Matrix<detail::scalar_t<M>> similarity_matrix(const M& rows, std::type_identity_t<ConstMatrixRef<detail::scalar_t<M>>> kept) {
  using S = detail::scalar_t<M>;
  Matrix<S> out(rows.rows(), kept.rows());
  Workspace ws(nearest_workspace_bytes<S>(rows.rows() + kept.rows(), rows.cols()));
  similarity_matrix<S>(rows, kept, out, ws);
  return out;
}

/// The kept row that each row is most similar to, as nearest_rows() finds it.
template <class S> struct NearestMatches {
  std::vector<std::int32_t> row;  ///< [n]
  Vector<S> cosine;               ///< [n]
};

/// The same as above with memory of its own: nearest_rows(rows, kept).row[e].
///
/// Heap     the matches and a workspace
template <detail::EigenDense M>
NearestMatches<detail::scalar_t<M>> nearest_rows(const M& rows, std::type_identity_t<ConstMatrixRef<detail::scalar_t<M>>> kept,
                                                 std::span<const Position> positions = {}) {
  using S = detail::scalar_t<M>;
  NearestMatches<S> out{std::vector<std::int32_t>(static_cast<std::size_t>(rows.rows())), Vector<S>(rows.rows())};
  Workspace ws(nearest_workspace_bytes<S>(kept.rows(), rows.cols(), 1, rows.rows()));
  nearest_rows<S>(rows, kept, out.row, out.cosine, ws, positions);
  return out;
}

}}  // namespace pith::v0
