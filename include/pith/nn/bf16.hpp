#pragma once
// Linear layers that round what they multiply to bfloat16.

#include <cstddef>
#include <utility>

#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/detail/bf16_pairs.hpp>
#include <pith/nn/linear_op.hpp>
#include <pith/nn/matmul.hpp>
#include <pith/nn/packed.hpp>

namespace pith { inline namespace v0 {

/// y = x̂ Wᵀ + bias over bfloat16 panels, x̂ being x rounded to bfloat16 (nearest, halves to even): an error of 1.7e-3 of the product.
///
/// Shapes   weight [out, in] · bias [out] or empty · x [tokens, in] · y [tokens, out]
/// Cost     2·tokens·in·out flops; on AMD with AVX512-BF16, more tokens than a register tile holds take two multiply-adds an instruction
/// Heap     at construction only
/// Throws   ShapeError if the shapes disagree
/// Law      a token's bits depend on its own row of x and on the weights only, for one token and many. They are those of
///          PackedLinear<float, bfloat16> of x̂, but that on AMD with AVX512-BF16, for an even number of inputs, numbers below the smallest
///          normal float count as 0: in x̂, weights, bias and sums
class Bf16Linear {
 public:
  using Scalar = float;

  Bf16Linear() = default;
  explicit Bf16Linear(PackedWeight<bfloat16> weight, Vector<float> bias = {}) : weight_(std::move(weight)), bias_(std::move(bias)) {
    detail::check_bias("Bf16Linear", weight_.out(), bias_.size());
  }
  explicit Bf16Linear(ConstMatrixRef<bfloat16> weight, ConstVectorRef<float> bias = {})
      : Bf16Linear((detail::check_bias("Bf16Linear", weight.rows(), bias.size()), PackedWeight<bfloat16>(weight)), Vector<float>(bias)) {}

  void forward(ConstMatrixRef<float> x, MatrixRef<float> y, Workspace& ws) const {
    detail::check_product("Bf16Linear", x, in(), out(), bias_.size(), y);
    detail::bf16_product(x, weight_, bias(), y, ws, detail::bf16_kernel(x.rows(), in()));
  }
  Matrix<float> forward(ConstMatrixRef<float> x) const { return detail::forward_alone(*this, x); }

  Index in() const { return weight_.in(); }
  Index out() const { return weight_.out(); }
  std::size_t bytes() const { return weight_.bytes() + static_cast<std::size_t>(bias_.size()) * sizeof(float); }
  std::size_t workspace_bytes(Index tokens, Index workers = 1) const { return detail::bf16_workspace_bytes(tokens, in(), workers); }

  const PackedWeight<bfloat16>& weight() const { return weight_; }
  ConstVectorRef<float> bias() const { return bias_; }
  void copy_weight(Index first_row, MatrixRef<float> rows) const { weight_.copy_rows(first_row, rows); }

 private:
  PackedWeight<bfloat16> weight_;
  Vector<float> bias_;
};

}}  // namespace pith::v0
