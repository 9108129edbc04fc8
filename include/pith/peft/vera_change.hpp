#pragma once
// VeRA: low-rank deltas whose two large matrices are the same in all layers.

#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/fingerprint.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/peft/low_rank.hpp>
#include <pith/peft/projection_change.hpp>

namespace pith { inline namespace v0 {

/// The matrices that all layers of a VeRA adapter share: a layer uses the first columns of A and the first rows of B.
///
/// Shapes   a_rows A [rank, most inputs] · b_rows Bᵀ [rank, most outputs]
template <class S = float> struct VeraProjections {
  Matrix<S> a_rows = {};
  Matrix<S> b_rows = {};
};

/// y += b ∘ ((d ∘ (x Aᵀ)) Bᵀ): ΔW = diag(b) B diag(d) A with A and B shared by all layers.
///
/// Shapes   d [rank] · b [out] · x [tokens, in] · y [tokens, out]: outputs first_row … of B
/// Cost     2·tokens·rank·(in + out) flops
/// Throws   ShapeError if the shared matrices are too small or do not fit
/// Paper    VeRA: arXiv:2310.11454
template <class S = float> class VeraChange final : public ProjectionChange<S> {
 public:
  VeraChange(std::shared_ptr<const VeraProjections<S>> shared, Index in, Vector<S> d, Vector<S> b, Index first_row = 0)
      : shared_(std::move(shared)), in_(in), first_(first_row), d_(std::move(d)), b_(std::move(b)) {
    const Index rank = shared_->a_rows.rows();
    check_shape("VeraChange", "B", shared_->b_rows, rank, any_extent);
    check_shape("VeraChange", "d", d_, rank, 1);
    if (in_ > shared_->a_rows.cols() || first_ < 0 || first_ > shared_->b_rows.cols() || b_.size() > shared_->b_rows.cols() - first_)
      raise<ShapeError>("pith::VeraChange: A and B are for up to ", shared_->b_rows.cols(), " outputs of ", shared_->a_rows.cols(),
                        " inputs, expected ", first_ + b_.size(), " of ", in_);
  }

  void add(ConstMatrixRef<S> x, MatrixRef<S> y, Workspace& ws) const override {
    check_shape("VeraChange", "x", x, any_extent, in_);
    check_shape("VeraChange", "y", y, x.rows(), out());
    const Workspace::Scope scope(ws);
    MatrixRef<S> delta = ws.matrix<S>(y.rows(), y.cols());
    delta.setZero();
    const Matrix<S>&a = shared_->a_rows, &b = shared_->b_rows;
    for (Index first = 0; first < a.rows(); first += block) {
      const Index n = (std::min)(block, a.rows() - first);
      add_low_rank<S>(x, ConstMatrixRef<S>(a.data() + first * a.outerStride(), n, in_, a.outerStride()),
                      ConstMatrixRef<S>(b.data() + first * b.outerStride() + first_, n, out(), b.outerStride()), d_.segment(first, n),
                      delta, ws);
    }
    for (Index t = 0; t < y.rows(); ++t) y.row(t).array() += delta.row(t).array() * b_.transpose().array();
  }
  void change_weight(Index first_row, MatrixRef<double> rows) const override {
    const Matrix<S>&a = shared_->a_rows, &b = shared_->b_rows;
    for (Index k = 0; k < a.rows(); ++k)
      for (Index r = 0; r < rows.rows(); ++r)
        rows.row(r) +=
            double(b_[first_row + r]) * double(b(k, first_ + first_row + r)) * double(d_[k]) * a.row(k).head(in_).template cast<double>();
  }

  Index in() const override { return in_; }
  Index out() const override { return b_.size(); }
  std::size_t workspace_bytes(Index tokens, Index workers) const override {
    return Workspace::bytes_for<S>(tokens, out()) + low_rank_workspace_bytes<S>(tokens, block, workers);
  }
  std::size_t bytes() const override { return static_cast<std::size_t>(d_.size() + b_.size()) * sizeof(S); }  ///< without A and B
  void hash(detail::Fingerprint& f) const override {
    detail::hash_numbers(f, Matrix<S>(shared_->a_rows.leftCols(in_)));
    detail::hash_numbers(f, Matrix<S>(shared_->b_rows.middleCols(first_, out())));
    detail::hash_numbers(f, d_);
    detail::hash_numbers(f, b_);
  }

 private:
  static constexpr Index block = 128;  // components at a time: bounds the workspace for any rank

  std::shared_ptr<const VeraProjections<S>> shared_;
  Index in_, first_;
  Vector<S> d_, b_;
};

}}  // namespace pith::v0
