#pragma once
// y = x Wᵀ over packed or mapped weights, and y = x W for backward passes.

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/detail/matmul_kernel.hpp>
#include <pith/nn/packed.hpp>

namespace pith { inline namespace v0 {

/// y = x Wᵀ + bias over packed panels.
///
/// Shapes   x [tokens, in] · w [out, in] · bias [out] or empty · y [tokens, out]; y overlaps none of the others
/// Cost     2·tokens·in·out flops; up to one register tile of tokens (3 on AVX2) takes the time of reading w
/// Heap     none, given ws of matmul_workspace_bytes<T>(tokens, in, workers)
/// Throws   ShapeError if the shapes disagree, CapacityError if ws is too small
/// Law      each output is one multiply-add chain over k in ascending order from the bias (or 0): its bits depend on its own row of x
///          and of w only, not on the other tokens, the workers, the strides or whether w is packed or mapped
template <class T>
void matmul(std::type_identity_t<ConstMatrixRef<arithmetic_t<T>>> x, const PackedWeight<T>& w,
            std::type_identity_t<ConstVectorRef<arithmetic_t<T>>> bias, std::type_identity_t<MatrixRef<arithmetic_t<T>>> y, Workspace& ws) {
  detail::check_product("matmul", x, w.in(), w.out(), bias.size(), y);
  detail::product(detail::Product<arithmetic_t<T>>{x, bias, y}, detail::PackedPanels<T>{w}, ws);
}

/// y = x Wᵀ + bias over a row-major map [out, in], with the same bits and without packing: blocks are transposed on their way into L1.
template <class T>
void matmul(std::type_identity_t<ConstMatrixRef<arithmetic_t<T>>> x, ConstMatrixRef<T> w,
            std::type_identity_t<ConstVectorRef<arithmetic_t<T>>> bias, std::type_identity_t<MatrixRef<arithmetic_t<T>>> y, Workspace& ws) {
  detail::check_product("matmul", x, w.cols(), w.rows(), bias.size(), y);
  detail::product(detail::Product<arithmetic_t<T>>{x, bias, y}, detail::MappedRows<T>{w}, ws);
}

/// y = x W, as the backward pass of a layer needs it.
///
/// Shapes   x [tokens, out] · w [out, in] · y [tokens, in]
/// Heap     none, given ws of matmul_workspace_bytes<T>(tokens, out, workers)
/// Throws   ShapeError if the shapes disagree, CapacityError if ws is too small
/// Law      as for matmul(); each chain runs over the rows of w in ascending order from 0
template <class T>
void matmul_transposed(std::type_identity_t<ConstMatrixRef<arithmetic_t<T>>> x, ConstMatrixRef<T> w,
                       std::type_identity_t<MatrixRef<arithmetic_t<T>>> y, Workspace& ws) {
  detail::check_product("matmul_transposed", x, w.rows(), w.cols(), 0, y);
  detail::product(detail::Product<arithmetic_t<T>>{x, {}, y}, detail::MappedColumns<T>{w}, ws);
}

/// Bytes of workspace that one product needs at most, packed or mapped; monotone in tokens.
template <class T> constexpr std::size_t matmul_workspace_bytes(Index tokens, Index in, Index workers = 1) {
  using S = arithmetic_t<T>;
  if (tokens <= 0 || in <= 0) return 0;
  const Index copy = tokens >= detail::copy_tokens ? (std::min)(tokens, detail::token_block) * detail::copied_stride : 0;
  return Workspace::bytes_for<S>(workers, detail::TileShape<S>::depth, detail::panel_width) + Workspace::bytes_for<S>(workers, copy);
}

}}  // namespace pith::v0
