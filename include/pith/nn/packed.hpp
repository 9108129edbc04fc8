#pragma once
// Weights packed in panels of 32 outputs.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>

#include <pith/core/bulk.hpp>
#include <pith/core/check.hpp>
#include <pith/core/executor.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/detail/panel_squares.hpp>

namespace pith { inline namespace v0 {

namespace detail {

/// Calls fill(p) for each panel, workers taking a run of panels each: fill = fill_of(), made once for each worker with what it needs.
template <class FillOf> void for_panels(Index panels, ExecutorRef executor, const FillOf& fill_of) {
  const Index workers = (std::max)(Index(1), (std::min)(executor.size(), panels));
  executor(workers, [&](Index worker) {
    auto fill = fill_of();
    const Index end = panels * (worker + 1) / workers;
    for (Index p = panels * worker / workers; p < end; ++p) fill(p);
  });
}

}  // namespace detail

/// A weight matrix in panels of 32 outputs. A product with one token reads it as one sequential stream; many tokens use the same panels.
///
/// It is packed once, immutable, and shared by copies. The last panel is padded with zeros.
///
/// Shapes   weight [out, in] as in checkpoints · panels [ceil(out / 32)][in][32]
/// Heap     once, at construction
/// Throws   CapacityError if the panels could not be addressed
/// Law      copy_rows() returns the numbers it was made from, bit for bit
template <class T> class PackedWeight {
 public:
  using Scalar = arithmetic_t<T>;
  static constexpr Index width = detail::panel_width;

  PackedWeight() = default;
  explicit PackedWeight(ConstMatrixRef<T> weight)
      : PackedWeight(weight.rows(), weight.cols(), [&](Index first, Index rows) { return weight.middleRows(first, rows); }) {}
  /// Takes rows from a callback: rows_at(first, n) returns rows [n, in]. It is asked for each row once, at most 32 at a time; in order,
  /// unless an executor with several workers packs: then they ask at the same time.
  template <class RowsAt> PackedWeight(Index out, Index in, const RowsAt& rows_at, ExecutorRef executor = {}) : in_(in), out_(out) {
    const Index size = detail::checked_product("PackedWeight", detail::checked_product("PackedWeight", panels(), width), in_);
    const std::size_t bytes = static_cast<std::size_t>(detail::checked_product("PackedWeight", size, Index(sizeof(T))));
    constexpr std::size_t beyond = std::is_same_v<T, std::int8_t> ? 7 * width : 0;  // kernels of integers read eight inputs at a time
    const std::shared_ptr<std::byte[]> memory(detail::allocate_bulk(bytes + beyond));
    T* first = reinterpret_cast<T*>(memory.get());
    if constexpr (beyond > 0) std::memset(memory.get() + bytes, 0, beyond);
    data_ = std::shared_ptr<const T>(memory, first);
    detail::for_panels(panels(), executor, [&] {
      return [&](Index p) { pack(rows_at(p * width, (std::min)(width, out_ - p * width)), first + p * width * in_); };
    });
  }

  Index in() const { return in_; }
  Index out() const { return out_; }
  Index panels() const { return (out_ + width - 1) / width; }
  std::size_t bytes() const { return static_cast<std::size_t>(panels() * width * in_) * sizeof(T); }

  /// Panel p as [in][32], with outputs 32p … 32p + 31. bfloat16 keeps outputs c and c + 16 of a panel side by side.
  const T* panel(Index p) const {
    PITH_ASSERT(0 <= p && p < panels());
    return data_.get() + p * width * in_;
  }

  /// Writes rows first_row … of the original matrix, widened.
  ///
  /// Shapes   rows [any, in]
  /// Throws   ShapeError if there are no such rows
  void copy_rows(Index first_row, MatrixRef<Scalar> rows) const {
    check_shape("PackedWeight::copy_rows", "rows", rows, any_extent, in_);
    if (first_row < 0 || first_row > out_ - rows.rows()) [[unlikely]]
      raise<ShapeError>("pith::PackedWeight::copy_rows: ", rows.rows(), " rows from row ", first_row, " on of a weight with ", out_,
                        " rows: ask for rows within it");
    for (Index r = 0; r < rows.rows(); ++r) {
      const Index row = first_row + r;
      const T* from = panel(row / width) + detail::panel_slot<T>(row % width);
      for (Index k = 0; k < in_; ++k) rows(r, k) = detail::widen(from[k * width]);
    }
  }

 private:
  void pack(ConstMatrixRef<T> rows, T* panel) const {
    Index packed = 0;  // columns
    if constexpr (detail::PanelSquares<T>::possible) {
      if (rows.rows() == width) packed = detail::PanelSquares<T>::pack(rows, panel);
    }
    if (rows.rows() < width) std::memset(static_cast<void*>(panel), 0, static_cast<std::size_t>(width * in_) * sizeof(T));
    constexpr Index depth = 32;  // a square of 32 x 32 stays in L1 while its columns are scattered
    for (; packed < in_; packed += depth) {
      const Index end = (std::min)(in_, packed + depth);
      for (Index r = 0; r < rows.rows(); ++r) {
        const T* from = rows.data() + r * rows.outerStride();
        T* to = panel + detail::panel_slot<T>(r);
        for (Index k = packed; k < end; ++k) to[k * width] = from[k];
      }
    }
  }

  std::shared_ptr<const T> data_;
  Index in_ = 0, out_ = 0;
};

template <detail::EigenDense D> PackedWeight(const D&) -> PackedWeight<typename detail::expression_t<D>::Scalar>;

}}  // namespace pith::v0
