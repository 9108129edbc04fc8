#pragma once
// Block-diagonal changes of a projection's input: OFT and BOFT rotate blocks of it, IA³ scales each number.

#include <algorithm>
#include <cstddef>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>

namespace pith { inline namespace v0 {

/// x ← x P diag(R₁ … R_D) Pᵀ for each row x: block i of the permuted row is multiplied by Rᵢ from the right.
///
/// Shapes   blocks [in, b]: rows i·b … of it are Rᵢ [b, b]; b = 1: a scale of each number · place [in] or empty: (x P)[place[i]] = x[i]
/// Paper    OFT: arXiv:2306.07280; BOFT: arXiv:2311.06243; IA³: arXiv:2205.05638
template <class S = float> struct BlockTurn {
  Matrix<S> blocks = {};
  std::vector<Index> place = {};

  Index in() const { return blocks.rows(); }
  std::size_t bytes() const { return static_cast<std::size_t>(blocks.size()) * sizeof(S) + place.size() * sizeof(Index); }

  /// Throws   ShapeError naming `where` if it does not fit an input of this width
  void check(std::string_view where, Index in) const {
    check_shape(where, "blocks of a turn", blocks, in, any_extent);
    if (in > 0 && (blocks.cols() < 1 || in % blocks.cols() != 0))
      raise<ShapeError>("pith::", where, ": blocks of ", blocks.cols(), " numbers do not divide an input of ", in);
    if (!place.empty() && static_cast<Index>(place.size()) != in)
      raise<ShapeError>("pith::", where, ": a permutation of ", place.size(), " numbers, expected ", in);
    std::vector<bool> taken(place.size());
    for (const Index p : place) {
      if (p < 0 || p >= in || taken[static_cast<std::size_t>(p)])
        raise<ShapeError>("pith::", where, ": ", p, " twice or outside a permutation of ", in);
      taken[static_cast<std::size_t>(p)] = true;
    }
  }

  /// Changes each row of x in place.
  ///
  /// Cost     2·tokens·in·b flops
  /// Heap     none, given ws of workspace_bytes()
  /// Law      a row's result depends on that row alone, bit for bit
  void apply(MatrixRef<S> x, Workspace& ws) const {
    const Index b = blocks.cols();
    if (b == 1 && place.empty()) {
      for (Index t = 0; t < x.rows(); ++t)
        for (Index i = 0; i < in(); ++i) x(t, i) *= blocks.data()[i];
      return;
    }
    const Workspace::Scope scope(ws);
    S* from = ws.take<S>(in());
    S* to = ws.take<S>(in());
    for (Index t = 0; t < x.rows(); ++t) turn_row(x.data() + t * x.outerStride(), from, to);
  }
  std::size_t workspace_bytes() const { return 2 * Workspace::bytes_for<S>(in()); }

  /// W ← W Mᵀ for M = P diag(R) Pᵀ, so that x Wᵀ becomes (x M) Wᵀ. Shapes: rows [any, in]
  void change_weight(MatrixRef<double> rows) const {
    const Index b = blocks.cols();
    Vector<double> from(in()), to(in());
    for (Index r = 0; r < rows.rows(); ++r) {
      for (Index i = 0; i < in(); ++i) from[placed(i)] = rows(r, i);
      for (Index first = 0; first < in(); first += b)
        for (Index i = 0; i < b; ++i) to[first + i] = blocks.row(first + i).template cast<double>() * from.segment(first, b);
      for (Index i = 0; i < in(); ++i) rows(r, i) = to[placed(i)];
    }
  }

 private:
  Index placed(Index i) const { return place.empty() ? i : place[static_cast<std::size_t>(i)]; }

  void turn_row(S* x, S* from, S* to) const {
    const Index b = blocks.cols(), n = in();
    for (Index i = 0; i < n; ++i) from[placed(i)] = x[i];
    std::fill_n(to, n, S(0));
    for (Index first = 0; first < n; first += b)
      for (Index i = 0; i < b; ++i) {
        const S weight = from[first + i];
        const S* row = blocks.data() + (first + i) * b;
        for (Index j = 0; j < b; ++j) to[first + j] += weight * row[j];
      }
    for (Index i = 0; i < n; ++i) x[i] = to[placed(i)];
  }
};

}}  // namespace pith::v0
