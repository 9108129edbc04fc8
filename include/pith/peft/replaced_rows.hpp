#pragma once
// Rows of a head that are replaced: trainable tokens.

#include <cstddef>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/fingerprint.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/peft/projection_change.hpp>

namespace pith { inline namespace v0 {

/// y[id] ← x · row for each replaced output; the others keep their bits. The sum is in double, from the first number on.
///
/// Shapes   ids [k], each once · rows [k, in] · bias [k] of these outputs, or empty
/// Cost     2·tokens·k·in flops
/// Throws   ShapeError for an id outside the outputs or given twice
template <class S = float> class ReplacedRows final : public ProjectionChange<S> {
 public:
  ReplacedRows(Index out, std::vector<Token> ids, Matrix<S> rows, Vector<S> bias = {})
      : out_(out), ids_(std::move(ids)), rows_(std::move(rows)), bias_(std::move(bias)) {
    check_shape("ReplacedRows", "rows", rows_, static_cast<Index>(ids_.size()), any_extent);
    if (bias_.size() > 0) check_shape("ReplacedRows", "bias", bias_, rows_.rows(), 1);
    std::vector<bool> taken(static_cast<std::size_t>(out));
    for (const Token id : ids_) {
      if (id < 0 || id >= out || taken[static_cast<std::size_t>(id)])
        raise<ShapeError>("pith::ReplacedRows: row ", id, " twice, or outside ", out);
      taken[static_cast<std::size_t>(id)] = true;
    }
  }

  void add(ConstMatrixRef<S> x, MatrixRef<S> y, Workspace&) const override {
    check_shape("ReplacedRows", "x", x, any_extent, in());
    check_shape("ReplacedRows", "y", y, x.rows(), out_);
    for (Index t = 0; t < x.rows(); ++t)
      for (Index k = 0; k < rows_.rows(); ++k) {
        const S *a = x.data() + t * x.outerStride(), *b = rows_.data() + k * rows_.cols();
        double sum = bias_.size() > 0 ? double(bias_[k]) : 0;
        for (Index i = 0; i < rows_.cols(); ++i) sum += double(a[i]) * double(b[i]);
        y(t, ids_[static_cast<std::size_t>(k)]) = static_cast<S>(sum);
      }
  }
  void change_weight(Index first_row, MatrixRef<double> rows) const override {
    for (Index k = 0; k < rows_.rows(); ++k)
      if (const Index r = ids_[static_cast<std::size_t>(k)] - first_row; r >= 0 && r < rows.rows())
        rows.row(r) = rows_.row(k).template cast<double>();
  }

  Index in() const override { return rows_.cols(); }
  Index out() const override { return out_; }
  std::size_t workspace_bytes(Index, Index) const override { return 0; }
  std::size_t bytes() const override { return static_cast<std::size_t>(rows_.size()) * sizeof(S) + ids_.size() * sizeof(Token); }
  void hash(detail::Fingerprint& f) const override {
    for (const Token id : ids_) f.number(id);
    detail::hash_numbers(f, rows_);
    detail::hash_numbers(f, bias_);
  }

 private:
  Index out_;
  std::vector<Token> ids_;
  Matrix<S> rows_;
  Vector<S> bias_;
};

}}  // namespace pith::v0
