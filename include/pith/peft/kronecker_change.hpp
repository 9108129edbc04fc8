#pragma once
// LoKr: a delta that is a Kronecker product of two small matrices.

#include <algorithm>
#include <cstddef>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/fingerprint.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/peft/projection_change.hpp>

namespace pith { inline namespace v0 {

/// ΔW = w1 ⊗ w2, never formed: y += w1 X w2ᵀ with x read as X [im, id] and y as [ol, ok], row by row.
///
///   ΔW[a·ok + c, b·id + d] = w1[a, b] · w2[c, d]
///
/// Shapes   w1 [ol, im] · w2 [ok, id], scale folded into one of them · x [tokens, im·id] · y [tokens, rows]: rows first_row … of ol·ok
/// Cost     2·tokens·im·ok·(id + ol) flops
/// Throws   ShapeError for rows beyond ol·ok
/// Paper    LoKr: arXiv:2309.14859
template <class S = float> class KroneckerChange final : public ProjectionChange<S> {
 public:
  KroneckerChange(Matrix<S> w1, ConstMatrixRef<S> w2) : KroneckerChange(std::move(w1), w2, 0, -1) {}
  /// Of all outputs only `rows` from first_row on: part of a module that holds several projections.
  KroneckerChange(Matrix<S> w1, ConstMatrixRef<S> w2, Index first_row, Index rows)
      : w1_(std::move(w1)), w2_columns_(w2.transpose()), first_(first_row) {
    const Index all = detail::checked_product("KroneckerChange", w1_.rows(), w2_columns_.cols());
    detail::checked_product("KroneckerChange", w1_.cols(), w2_columns_.rows());
    rows_ = rows < 0 ? all - first_row : rows;
    if (first_ < 0 || first_ > all || rows_ > all - first_)
      raise<ShapeError>("pith::KroneckerChange: rows ", first_, " to ", first_ + rows_, " of a delta with ", all);
  }

  void add(ConstMatrixRef<S> x, MatrixRef<S> y, Workspace& ws) const override {
    check_shape("KroneckerChange", "x", x, any_extent, in());
    check_shape("KroneckerChange", "y", y, x.rows(), out());
    const Workspace::Scope scope(ws);
    const Index im = w1_.cols(), id = w2_columns_.rows(), ok = w2_columns_.cols();
    S* z = ws.take<S>(im * ok);  // X w2ᵀ [im, ok]
    for (Index t = 0; t < x.rows(); ++t) {
      const S* from = x.data() + t * x.outerStride();
      S* to = y.data() + t * y.outerStride();
      std::fill_n(z, im * ok, S(0));
      for (Index b = 0; b < im; ++b)
        for (Index d = 0; d < id; ++d) add_scaled(from[b * id + d], w2_columns_.data() + d * ok, ok, z + b * ok);
      for (Index row = first_; row < first_ + rows_;) {
        const Index a = row / ok, c = row % ok, n = (std::min)(ok - c, first_ + rows_ - row);
        for (Index b = 0; b < im; ++b) add_scaled(w1_(a, b), z + b * ok + c, n, to + (row - first_));
        row += n;
      }
    }
  }
  void change_weight(Index first_row, MatrixRef<double> rows) const override {
    const Index id = w2_columns_.rows(), ok = w2_columns_.cols();
    for (Index r = 0; r < rows.rows(); ++r) {
      const Index row = first_ + first_row + r;
      for (Index i = 0; i < in(); ++i) rows(r, i) += double(w1_(row / ok, i / id)) * double(w2_columns_(i % id, row % ok));
    }
  }

  Index in() const override { return w1_.cols() * w2_columns_.rows(); }
  Index out() const override { return rows_; }
  std::size_t workspace_bytes(Index, Index) const override { return Workspace::bytes_for<S>(w1_.cols(), w2_columns_.cols()); }
  std::size_t bytes() const override { return static_cast<std::size_t>(w1_.size() + w2_columns_.size()) * sizeof(S); }
  void hash(detail::Fingerprint& f) const override {
    detail::hash_numbers(f, w1_);
    detail::hash_numbers(f, w2_columns_);
    f.number(first_);
    f.number(rows_);
  }

 private:
  static void add_scaled(S weight, const S* from, Index n, S* to) {
    for (Index i = 0; i < n; ++i) to[i] += weight * from[i];
  }

  Matrix<S> w1_, w2_columns_;  // [ol, im], [id, ok]
  Index first_, rows_ = 0;
};

}}  // namespace pith::v0
