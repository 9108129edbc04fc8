#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>

#include <pith/core/check.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/matmul.hpp>

namespace pith::inline v0 {

namespace detail {

inline constexpr Index similar_rows = 128, similar_kept = 1024;  // products held at a time: half a MiB of them, and no more

/// 1 / |row|; 0 for a row without direction, whose cosine to everything is 0.
template <class S> void inverse_norms(const ConstMatrixRef<S>& rows, S* out) {
  for (Index r = 0; r < rows.rows(); ++r) {
    const S norm = rows.row(r).norm();
    out[r] = norm == S(0) ? S(0) : S(1) / norm;
  }
}

/// The largest of products[c] * inverse[c], and the lowest c that has it; not-a-number is never the largest. count >= 1.
template <class S> struct Largest {
  S value = -std::numeric_limits<S>::infinity();
  Index at = -1;

  void look(const S* products, const S* inverse, Index count, Index first) {
    using V = Simd<S>;
    constexpr S lowest = -std::numeric_limits<S>::infinity();
    const auto scaled = [](auto p, auto i) {
      const auto x = V::mul(p, i);
      return V::select(V::equal(x, x), x, V::broadcast(lowest));
    };
    auto most = V::broadcast(lowest);
    Index c = 0;
    for (; c + V::width <= count; c += V::width) most = V::max(most, scaled(V::load(products + c), V::load(inverse + c)));
    if (c < count) most = V::max(most, scaled(V::load_part(products + c, count - c, lowest), V::load_part(inverse + c, count - c, S(1))));
    const S here = V::largest(most);
    if (!(here > value)) return;
    value = here;
    for (c = 0; products[c] * inverse[c] != here;) ++c;
    at = first + c;
  }
};

template <class S> void check_similar(const char* where, const ConstMatrixRef<S>& rows, const ConstMatrixRef<S>& kept) {
  if (kept.rows() == 0) raise<ShapeError>(text("pith::", where, ": no kept rows, expected one or more to be near to"));
  if (kept.rows() > std::numeric_limits<std::int32_t>::max()) raise<CapacityError>(text("pith::", where, ": ", kept.rows(), " kept rows"));
  check_shape(where, "rows", rows, any_extent, kept.cols());
}

}  // namespace detail

/// What nearest_rows() takes from its workspace: it grows with the kept rows, never with rows times kept.
template <class S> std::size_t nearest_workspace_bytes(Index kept, Index dim, Index workers = 1) {
  return Workspace::bytes_for<S>(kept) + Workspace::bytes_for<S>(detail::similar_rows) +
         Workspace::bytes_for<S>(detail::similar_rows * detail::similar_kept) +
         matmul_workspace_bytes<S>(detail::similar_rows, dim, workers);
}

/// The kept row that each row is most similar to: match[e] = argmax_c cos(row e, kept c), cosine[e] = that cosine.
///
/// Equal cosines take the kept row that comes first. A row of zeros has cosine 0 to all; a row that no kept one can be compared with, since
/// numbers are missing or infinite, matches none: -1, with cosine -inf.
///
/// Shapes   rows [n, dim] · kept [m, dim], m >= 1 · match [n] · cosine [n]
/// Cost     2·n·m·dim flops and n·m looks; the similarity matrix is never stored
/// Heap     none, given ws of nearest_workspace_bytes<S>(m, dim, workers)
/// Throws   ShapeError if the shapes disagree or nothing is kept, CapacityError if ws is too small
/// Law      no bit depends on the workers or on the other rows; scaling a row by a power of two changes neither its match nor any cosine
/// Paper    LOOK-M, arXiv:2406.18139, section 3.3
template <class S>
void nearest_rows(ConstMatrixRef<S> rows, std::type_identity_t<ConstMatrixRef<S>> kept, std::span<std::int32_t> match,
                  std::type_identity_t<VectorRef<S>> cosine, Workspace& ws) {
  detail::check_similar("nearest_rows", rows, kept);
  const Index n = rows.rows(), m = kept.rows();
  if (static_cast<Index>(match.size()) != n || cosine.size() != n)
    raise<ShapeError>(detail::text("pith::nearest_rows: ", match.size(), " matches and ", cosine.size(), " cosines for ", n, " rows"));
  const Workspace::Scope scope(ws);
  S* const inverse = ws.take<S>(m);
  S* const row_inverse = ws.take<S>(detail::similar_rows);
  detail::inverse_norms(kept, inverse);
  MatrixRef<S> block = ws.matrix<S>(std::min(n, detail::similar_rows), std::min(m, detail::similar_kept));
  const Index workers = ws.workers();
  for (Index e = 0; e < n; e += block.rows()) {
    const Index count = std::min(block.rows(), n - e);
    detail::inverse_norms(ConstMatrixRef<S>(rows.middleRows(e, count)), row_inverse);
    std::fill_n(match.begin() + e, count, -1);
    cosine.segment(e, count).setConstant(-std::numeric_limits<S>::infinity());
    for (Index c = 0; c < m; c += block.cols()) {
      const Index width = std::min(block.cols(), m - c);
      const MatrixRef<S> products = block.topLeftCorner(count, width);
      matmul(ConstMatrixRef<S>(rows.middleRows(e, count)), ConstMatrixRef<S>(kept.middleRows(c, width)), {}, products, ws);
      ws.executor()(workers, [&](Index worker) {
        const detail::Share share = detail::share(count, worker, workers);
        for (Index t = share.begin; t < share.end; ++t) {
          detail::Largest<S> largest{cosine[e + t], match[static_cast<std::size_t>(e + t)]};
          largest.look(&products.coeffRef(t, 0), inverse + c, width, c);
          cosine[e + t] = largest.value;
          match[static_cast<std::size_t>(e + t)] = static_cast<std::int32_t>(largest.at);
        }
      });
    }
    for (Index t = 0; t < count; ++t)
      if (match[static_cast<std::size_t>(e + t)] >= 0) cosine[e + t] *= row_inverse[t];
  }
}

/// All of it, to look at: out[e, c] = cos(row e, kept c).
///
/// Shapes   rows [n, dim] · kept [m, dim] · out [n, m]
/// Heap     none, given ws of nearest_workspace_bytes<S>(n + m, dim, workers)
template <class S>
void similarity_matrix(ConstMatrixRef<S> rows, std::type_identity_t<ConstMatrixRef<S>> kept, std::type_identity_t<MatrixRef<S>> out,
                       Workspace& ws) {
  detail::check_similar("similarity_matrix", rows, kept);
  check_shape("similarity_matrix", "out", out, rows.rows(), kept.rows());
  const Workspace::Scope scope(ws);
  S* const inverse = ws.take<S>(kept.rows());
  S* const row_inverse = ws.take<S>(rows.rows());
  detail::inverse_norms(kept, inverse);
  detail::inverse_norms(rows, row_inverse);
  for (Index e = 0; e < rows.rows(); e += detail::similar_rows) {
    const Index count = std::min(detail::similar_rows, rows.rows() - e);
    matmul(ConstMatrixRef<S>(rows.middleRows(e, count)), ConstMatrixRef<S>(kept), {}, out.middleRows(e, count), ws);
  }
  for (Index e = 0; e < rows.rows(); ++e)
    for (Index c = 0; c < kept.rows(); ++c) out(e, c) = out(e, c) * inverse[c] * row_inverse[e];
}

}  // namespace pith::inline v0
