#pragma once
// The low-rank branch that LoRA and its relatives add to a layer: y += (x Aᵀ) diag(gain) Bᵀ.

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <type_traits>

#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/linear_op.hpp>
#include <pith/peft/detail/low_rank_kernel.hpp>

namespace pith { inline namespace v0 {

namespace detail {
template <class A> struct FactorOf { using type = typename A::Scalar; };
template <class A>
requires requires { typename A::Factor; }
struct FactorOf<A> {
  using type = typename A::Factor;
};
}  // namespace detail

/// The type that an adapter's A and B are stored as: A::Factor, or its Scalar where it names none.
template <class A> using factor_t = typename detail::FactorOf<A>::type;

/// ΔW = B diag(gain) A in rank components; component r is row r of A and of Bᵀ. The factors may be narrower than the scalar.
template <class A>
concept LowRankFactors = requires(const A a) {
  typename A::Scalar;
  { a.rank() } -> std::convertible_to<Index>;
  { a.down_rows() } -> std::convertible_to<ConstMatrixRef<factor_t<A>>>;    // A  [rank, in]
  { a.up_rows() } -> std::convertible_to<ConstMatrixRef<factor_t<A>>>;      // Bᵀ [rank, out]
  { a.gain() } -> std::convertible_to<ConstVectorRef<typename A::Scalar>>;  // [rank], scale folded in
};

/// A low-rank adapter: factors of the scalar itself, which can be trained, written and stacked.
///
/// Optional members: scaled_bias(), [out] or empty, is added to y as it is; changes() counts accesses for writing, and tells DoraLinear
/// that its norms are stale.
template <class A>
concept LowRankAdapter = LowRankFactors<A> && requires(const A a) {
  { a.down_rows() } -> std::convertible_to<ConstMatrixRef<typename A::Scalar>>;
  { a.up_rows() } -> std::convertible_to<ConstMatrixRef<typename A::Scalar>>;
};

/// y += (x Aᵀ) diag(gain) Bᵀ, computed from the left: the product B A is never formed.
///
/// Shapes   x [tokens, in] · down_rows A [rank, in] · up_rows Bᵀ [rank, out] · gain [rank] · y [tokens, out]; y overlaps none of the others
/// Cost     2·tokens·rank·(in + out) flops; a component with gain 0 costs nothing
/// Heap     none, given ws of low_rank_workspace_bytes<S>(tokens, rank, workers)
/// Throws   ShapeError if the shapes disagree, CapacityError if ws is too small, before y is touched
/// Law      a row of y depends on its own row of x alone, bit for bit, not on the other tokens or the workers; it is one multiply-add chain
///          over the components in ascending order from y. Rank 0 leaves every bit as it was
/// Paper    LoRA: arXiv:2106.09685
template <class S>
void add_low_rank(std::type_identity_t<ConstMatrixRef<S>> x, ConstMatrixRef<S> down_rows, std::type_identity_t<ConstMatrixRef<S>> up_rows,
                  std::type_identity_t<ConstVectorRef<S>> gain, std::type_identity_t<MatrixRef<S>> y, Workspace& ws) {
  detail::add_factors<S, S>(x, down_rows, up_rows, gain, y, ws);
}

/// Overload that takes an adapter and also adds its bias. Factors in bfloat16 are widened in registers, which changes no bit: y is what the
/// same numbers in the scalar's type give.
template <LowRankFactors A>
void add_low_rank(ConstMatrixRef<typename A::Scalar> x, const A& adapter, MatrixRef<typename A::Scalar> y, Workspace& ws) {
  using S = typename A::Scalar;
  using T = factor_t<A>;
  const ConstMatrixRef<T> down = adapter.down_rows();
  if constexpr (requires { adapter.scaled_bias(); }) {
    const ConstVectorRef<S> bias = adapter.scaled_bias();
    detail::check_bias("add_low_rank", y.cols(), bias.size());
    detail::add_factors<S, T>(x, down, adapter.up_rows(), adapter.gain(), y, ws);
    if (bias.size() > 0) y.rowwise() += bias.transpose();
  } else {
    detail::add_factors<S, T>(x, down, adapter.up_rows(), adapter.gain(), y, ws);
  }
}

/// Bytes of workspace that add_low_rank() needs at most; monotone in tokens and rank.
template <class S> constexpr std::size_t low_rank_workspace_bytes(Index tokens, Index rank, Index workers = 1) {
  if (tokens <= 0 || rank <= 0) return 0;
  return Workspace::bytes_for<S>((std::min)(tokens, detail::token_block), rank) + Workspace::bytes_for<Index>(rank) +
         Workspace::bytes_for<S>(workers, rank, detail::panel_width);
}

}}  // namespace pith::v0
