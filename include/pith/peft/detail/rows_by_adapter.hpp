#pragma once
// Runs of rows that are computed under different adapters in one pass.

#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>
#include <type_traits>

#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/linear.hpp>
#include <pith/nn/norm.hpp>
#include <pith/peft/linear_adapter.hpp>
#include <pith/peft/model_adapter.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// A run of consecutive rows that use one adapter (nullptr: the base model).
template <class S> struct RowsOfAdapter {
  const ModelAdapter<S>* adapter = nullptr;
  Index rows = (std::numeric_limits<Index>::max)();
};

/// The adapter of each row of a matrix: runs in order, without their first `skipped` rows. Without runs all rows use the base.
template <class S> struct RowsByAdapter {
  std::span<const RowsOfAdapter<S>> runs = {};
  Index skipped = 0;

  bool empty() const { return runs.empty(); }
  RowsByAdapter from(Index row) const { return {runs, skipped + row}; }

  /// Calls visit(first, rows, adapter) for each run of a matrix with `rows` rows that uses an adapter.
  template <class Visit> void for_each(Index rows, Visit&& visit) const {
    Index first = -skipped;
    for (const RowsOfAdapter<S>& run : runs) {
      const Index begin = (std::max)(first, Index(0)), end = run.rows > rows - first ? rows : first + run.rows;
      if (run.adapter != nullptr && begin < end) visit(begin, end - begin, *run.adapter);
      if ((first = end) >= rows) return;
    }
  }
};

/// A base projection with each row's adapter applied. Each weight of the base is read once for all rows.
///
/// overlay_of(adapter) returns the adapter's change of this projection, or nullptr.
template <class S, class OverlayOf>
void forward_runs(const AnyLinear<S>& base, const RowsByAdapter<S>& runs, OverlayOf&& overlay_of, std::type_identity_t<ConstMatrixRef<S>> x,
                  std::type_identity_t<MatrixRef<S>> y, Workspace& ws) {
  const Workspace::Scope scope(ws);
  Index replaced = 0;
  bool turned = false;
  runs.for_each(x.rows(), [&](Index, Index rows, const ModelAdapter<S>& adapter) {
    const LinearAdapter<S>* overlay = overlay_of(adapter);
    if (overlay == nullptr) return;
    if (!overlay->replacement.empty()) replaced += rows;
    turned = turned || !overlay->turns.empty();
  });
  const auto rows_of = []<class View>(View m, Index first, Index rows) {
    return View(m.data() + first * m.outerStride(), rows, m.cols(), m.outerStride());
  };
  ConstMatrixRef<S> read = x;  // what the base reads
  if (turned) {
    MatrixRef<S> copy = ws.matrix<S>(x.rows(), x.cols());
    copy = x;
    runs.for_each(x.rows(), [&](Index first, Index rows, const ModelAdapter<S>& adapter) {
      if (const LinearAdapter<S>* overlay = overlay_of(adapter)) overlay->turn(rows_of(copy, first, rows), ws);
    });
    read = copy;
  }
  if (replaced < x.rows()) base.forward(read, y, ws);
  runs.for_each(x.rows(), [&](Index first, Index rows, const ModelAdapter<S>& adapter) {
    const LinearAdapter<S>* overlay = overlay_of(adapter);
    if (overlay == nullptr) return;
    const MatrixRef<S> to = rows_of(y, first, rows);
    if (!overlay->replacement.empty()) overlay->replacement.forward(rows_of(read, first, rows), to, ws);
    overlay->add(rows_of(x, first, rows), to, ws);
  });
}

/// y = norm(x), row by row, with the adapter's norm if it has one; y may be x. Each row may consist of several `parts` that are normed by
/// themselves; x and y are contiguous then.
template <class S, class NormOf>
void norm_runs(const AnyNorm<S>& base, const RowsByAdapter<S>& runs, NormOf&& norm_of, std::type_identity_t<ConstMatrixRef<S>> x,
               std::type_identity_t<MatrixRef<S>> y, Index parts = 1) {
  const auto apply = [&](const AnyNorm<S>& norm, Index first, Index rows) {
    if (rows == 0) return;
    if (parts == 1) return norm.forward(x.middleRows(first, rows), y.middleRows(first, rows));
    const Index width = x.cols() / parts;
    norm.forward(ConstMatrixRef<S>(x.data() + first * x.outerStride(), rows * parts, width),
                 MatrixRef<S>(y.data() + first * y.outerStride(), rows * parts, width));
  };
  Index done = 0;
  runs.for_each(x.rows(), [&](Index first, Index rows, const ModelAdapter<S>& adapter) {
    const AnyNorm<S>* norm = norm_of(adapter);
    if (norm == nullptr || norm->size() == 0) return;
    apply(base, done, first - done);
    apply(*norm, first, rows);
    done = first + rows;
  });
  apply(base, done, x.rows() - done);
}

/// One projection of a layer under adapters, as a LinearOp, for a SwiGlu with adapters.
template <class S> struct AdaptedLinear {
  using Scalar = S;
  const AnyLinear<S>& base;
  RowsByAdapter<S> runs;
  Index layer;
  Projection projection;

  Index in() const { return base.in(); }
  Index out() const { return base.out(); }
  void forward(ConstMatrixRef<S> x, MatrixRef<S> y, Workspace& ws) const {
    forward_runs(
        base, runs, [&](const ModelAdapter<S>& adapter) { return adapter.projection(layer, projection); }, x, y, ws);
  }
};

}}}  // namespace pith::v0::detail
