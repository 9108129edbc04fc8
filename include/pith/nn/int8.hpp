#pragma once
// Linear layers with weights of eight bits and one scale for each output.

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/executor.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/compute.hpp>
#include <pith/nn/detail/int8_kernel.hpp>
#include <pith/nn/detail/int8_rounding.hpp>
#include <pith/nn/linear_op.hpp>
#include <pith/nn/matmul.hpp>
#include <pith/nn/packed.hpp>

namespace pith { inline namespace v0 {

namespace detail {

inline void check_int8_compute(const char* who, Compute compute) {
  if (compute == Compute::bf16) [[unlikely]]
    raise<UnsupportedError>("pith::", who, ": Compute::bf16 is for bfloat16 weights; 8-bit weights take Compute::exact or Compute::int15");
}

}  // namespace detail

/// A weight matrix in bytes: w[o, k] ≈ scale[o] · code[o, k], with codes in -127 … 127 and one scale for each output.
///
/// It takes a quarter of the memory of float. It is quantised and packed once, immutable, and shared by copies. A
/// row that holds NaN or infinity decodes to NaN as a whole.
///
/// Shapes   weight [out, in], float, bfloat16 or half · scales [out]
/// Heap     once, at construction, plus 32 rows of codes a worker while it is constructed
/// Throws   CapacityError if the panels could not be addressed
/// Law      each decoded weight is off by at most half its row's scale, max |w[o, ·]| / 254, plus rounding
class Int8Weight {
 public:
  using Scalar = float;

  Int8Weight() = default;
  template <class T>
  explicit Int8Weight(ConstMatrixRef<T> weight)
      : Int8Weight(weight.rows(), weight.cols(), [&](Index first, Index n) { return weight.middleRows(first, n); }) {}
  template <detail::EigenDense W> explicit Int8Weight(const W& weight) : Int8Weight(ConstMatrixRef<detail::scalar_t<W>>(weight)) {}

  /// Takes rows from a callback, as PackedWeight does: rows_at(first, n) returns n rows of float, bfloat16 or half.
  template <class RowsAt> Int8Weight(Index out, Index in, const RowsAt& rows_at, ExecutorRef executor = {}) : scales_(out) {
    using Stored = std::remove_cvref_t<decltype(*rows_at(0, 0).data())>;
    static_assert(std::is_same_v<arithmetic_t<Stored>, float>, "pith: int8 weights are computed in float: pass float, bfloat16 or half");
    const auto encoded = [&](Index first, Index n) {
      const auto& rows = rows_at(first, n);
      Matrix<std::int8_t> codes(n, in);
      for (Index r = 0; r < n; ++r)
        scales_[first + r] = detail::int8_encode(rows.data() + r * rows.outerStride(), in, codes.data() + r * in);
      return codes;
    };
    codes_ = PackedWeight<std::int8_t>(out, in, encoded, executor);
  }

  /// Takes codes, -128 … 127, and their scales as they are: codes_at(first, n) returns n rows of codes, as PackedWeight takes them.
  ///
  /// Shapes   scales [out]
  /// Throws   ShapeError if there is not one scale for each output
  template <class CodesAt>
  static Int8Weight of_codes(Index out, Index in, const CodesAt& codes_at, Vector<float> scales, ExecutorRef executor = {}) {
    check_shape("Int8Weight::of_codes", "scales", scales, out, 1);
    Int8Weight weight;
    weight.scales_ = std::move(scales);
    weight.codes_ = PackedWeight<std::int8_t>(out, in, codes_at, executor);
    return weight;
  }

  Index in() const { return codes_.in(); }
  Index out() const { return codes_.out(); }
  std::size_t bytes() const { return codes_.bytes() + static_cast<std::size_t>(scales_.size()) * sizeof(float); }
  const PackedWeight<std::int8_t>& codes() const { return codes_; }
  const Vector<float>& scales() const { return scales_; }
  detail::Int8Product<detail::PairLanes> product() const { return {{codes_, scales_.data()}}; }

  /// Writes the decoded rows first_row …, scale · code.
  ///
  /// Shapes   rows [any, in]
  /// Throws   ShapeError if there are no such rows
  void copy_rows(Index first_row, MatrixRef<float> rows) const {
    codes_.copy_rows(first_row, rows);
    for (Index r = 0; r < rows.rows(); ++r) rows.row(r) *= scales_[first_row + r];
  }

 private:
  PackedWeight<std::int8_t> codes_;
  Vector<float> scales_;
};

/// y = x Wᵀ + bias for 8-bit weights: y[t, o] = scale[o] · Σ_k x[t, k] code[o, k] + bias[o]. x is not rounded.
///
/// Under Compute::int15 each block of 128 inputs is rounded to integers of 15 bits: step · q with step = max |x| / 16319, an error of 5e-5
/// of the product:
///
///     y[t, o] = scale[o] · Σ_b step[t, b] · Σ_k q[t, k] code[o, k] + bias[o]
///
/// Shapes   x [tokens, in] · w [out, in] · bias [out] or empty · y [tokens, out]; y overlaps none of the others
/// Cost     2·tokens·in·out operations; one token takes the time of reading a byte for each weight
/// Heap     none, given ws of matmul_workspace_bytes(w, tokens, workers, compute)
/// Throws   ShapeError if the shapes disagree, CapacityError if ws is too small, UnsupportedError for Compute::bf16
/// Law      each sum is one multiply-add chain over k in ascending order from 0, scaled once: its bits depend on its own row of x and of w
///          only, not on the other tokens, the workers or the strides. int15: sums over a block are exact, blocks are added in ascending
///          order, a multiply-add each, and one more takes scale and bias; the bits do not depend on the instruction set either. A block of
///          x that holds NaN or infinity makes the token's outputs NaN
inline void matmul(ConstMatrixRef<float> x, const Int8Weight& w, ConstVectorRef<float> bias, MatrixRef<float> y, Workspace& ws,
                   Compute compute = Compute::exact) {
  detail::check_product("matmul", x, w.in(), w.out(), bias.size(), y);
  detail::check_int8_compute("matmul", compute);
  if (compute == Compute::int15) return w.product().run(x, bias, y, ws);
  detail::product(detail::Product<float>{x, {}, y},
                  detail::Int8Panels{{w.codes()}, w.scales().data(), bias.size() != 0 ? bias.data() : nullptr}, ws);
}

/// Bytes of workspace that a product with 8-bit weights needs at most; monotone in tokens.
inline std::size_t matmul_workspace_bytes(const Int8Weight& w, Index tokens, Index workers = 1, Compute compute = Compute::exact) {
  return compute == Compute::int15 ? w.product().workspace_bytes(tokens, workers)
                                   : matmul_workspace_bytes<std::int8_t>(tokens, w.in(), workers);
}

/// y = x Wᵀ + bias for 8-bit weights: the cheapest form for decoding and for draft models. Copies share the codes. Compute::int15 reads
/// prompts faster and rounds x, for one token as for many.
///
/// Shapes   weight [out, in] · bias [out] or empty · x [tokens, in] · y [tokens, out]
/// Cost     as matmul()
/// Heap     at construction only
/// Throws   ShapeError if the shapes disagree, UnsupportedError for Compute::bf16
/// Law      forward() is within rounding, under int15 that of x too, of a Linear over the rows that copy_weight() writes
class Int8Linear {
 public:
  using Scalar = float;

  Int8Linear() = default;
  explicit Int8Linear(Int8Weight weight, Vector<float> bias = {}, Compute compute = Compute::exact)
      : weight_(std::move(weight)), bias_(std::move(bias)), compute_(compute) {
    detail::check_bias("Int8Linear", weight_.out(), bias_.size());
    detail::check_int8_compute("Int8Linear", compute_);
  }
  template <class T>
  explicit Int8Linear(ConstMatrixRef<T> weight, ConstVectorRef<float> bias = {}, Compute compute = Compute::exact)
      : Int8Linear((detail::check_bias("Int8Linear", weight.rows(), bias.size()), Int8Weight(weight)), Vector<float>(bias), compute) {}

  template <detail::EigenDense W>
  explicit Int8Linear(const W& weight, ConstVectorRef<float> bias = {}, Compute compute = Compute::exact)
      : Int8Linear(ConstMatrixRef<detail::scalar_t<W>>(weight), bias, compute) {}

  void forward(ConstMatrixRef<float> x, MatrixRef<float> y, Workspace& ws) const { matmul(x, weight_, bias(), y, ws, compute_); }
  Matrix<float> forward(ConstMatrixRef<float> x) const { return detail::forward_alone(*this, x); }

  Index in() const { return weight_.in(); }
  Index out() const { return weight_.out(); }
  std::size_t bytes() const { return weight_.bytes() + static_cast<std::size_t>(bias_.size()) * sizeof(float); }
  std::size_t workspace_bytes(Index tokens, Index workers = 1) const { return matmul_workspace_bytes(weight_, tokens, workers, compute_); }

  const Int8Weight& weight() const { return weight_; }
  Compute compute() const { return compute_; }
  ConstVectorRef<float> bias() const { return bias_; }
  void copy_weight(Index first_row, MatrixRef<float> rows) const { weight_.copy_rows(first_row, rows); }

 private:
  Int8Weight weight_;
  Vector<float> bias_;
  Compute compute_ = Compute::exact;
};

}}  // namespace pith::v0
