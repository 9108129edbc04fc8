#pragma once
// The changes that an adapter makes to one projection of a model.

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/fingerprint.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/linear.hpp>
#include <pith/nn/linear_op.hpp>
#include <pith/peft/block_turn.hpp>
#include <pith/peft/detail/dense.hpp>
#include <pith/peft/dora.hpp>
#include <pith/peft/low_rank.hpp>
#include <pith/peft/projection_change.hpp>

namespace pith { inline namespace v0 {

/// One low-rank term ΔW = B diag(gain) A of a projection; it owns its numbers. With factors in bfloat16 it takes half the memory, and adds
/// the bits that the same numbers in S add.
///
/// Shapes   a_rows A [rank, in] · b_rows Bᵀ [rank, out] · gains [rank]
template <class S = float, class T = S> struct LowRankTerm {
  using Scalar = S;
  using Factor = T;
  Matrix<T> a_rows = {};
  Matrix<T> b_rows = {};
  Vector<S> gains = {};

  /// Copies the term from any adapter, its factors rounded to the nearest T. If the adapter has a bias, put it into LinearAdapter::bias.
  template <LowRankFactors A> static LowRankTerm of(const A& adapter) {
    return {adapter.down_rows().template cast<T>(), adapter.up_rows().template cast<T>(), adapter.gain()};
  }

  Index rank() const { return a_rows.rows(); }
  ConstMatrixRef<T> down_rows() const { return a_rows; }
  ConstMatrixRef<T> up_rows() const { return b_rows; }
  ConstVectorRef<S> gain() const { return gains; }
};

/// The change of one projection: y ← out_scale ∘ (y + Σ (x Aᵀ) diag(gain) Bᵀ) + bias, applied to the base's result y = x' Wᵀ + b, where x'
/// is x after its turns.
///
/// The base is never written. Each member may be empty.
template <class S = float> struct LinearAdapter {
  std::vector<LowRankTerm<S>> terms = {};
  std::vector<LowRankTerm<S, bfloat16>> narrow_terms = {};  ///< added after `terms`
  std::vector<BlockTurn<S>> turns = {};                     ///< change what the base reads, in this order; terms and `more` read x itself
  std::vector<std::shared_ptr<const ProjectionChange<S>>> more = {};  ///< applied to y before the terms
  Vector<S> out_scale = {};                                           ///< [out] DoRA's m/n; empty: 1
  Vector<S> bias = {};            ///< [out] added last; empty: 0. To replace the base's bias b by b', pass b' - out_scale ∘ b
  AnyLinear<S> replacement = {};  ///< computes y instead of the base

  bool empty() const {
    return terms.empty() && narrow_terms.empty() && turns.empty() && more.empty() && out_scale.size() == 0 && bias.size() == 0 &&
           replacement.empty();
  }

  /// Checks that the change fits a projection.
  ///
  /// Throws   ShapeError naming `where` and the part; UnsupportedError for a replacement that needs more workspace than a Linear
  void check(std::string_view where, Index out, Index in) const;

  /// Applies the change to y, the base's result.
  ///
  /// Shapes   x [tokens, in], the base's input · y [tokens, out], changed in place
  /// Cost     2·tokens·rank·(in + out) flops for each term, and one sweep of y each for out_scale and bias
  /// Heap     none, given ws of linear_adapter_workspace_bytes<S>(tokens, workers) + more_workspace_bytes(tokens, workers)
  /// Throws   ShapeError, CapacityError
  /// Law      a row's result depends on that row alone, bit for bit
  void add(ConstMatrixRef<S> x, MatrixRef<S> y, Workspace& ws) const;

  /// Applies the turns to what the base reads. Shapes: x [tokens, in], changed in place
  void turn(MatrixRef<S> x, Workspace& ws) const {
    for (const BlockTurn<S>& each : turns) each.apply(x, ws);
  }
  /// Bytes of workspace that turns and `more` need, with a copy of x for the turns; 0 for terms, scales and biases.
  std::size_t more_workspace_bytes(Index tokens, Index workers = 1) const;
  /// Changes rows first_row … of the base's weight, in double: x Wᵀ then is the projection but for its bias. A replacement's own numbers
  /// are the caller's to pass. Shapes: rows [any, in]
  void change_weight(Index first_row, MatrixRef<double> rows) const;

  /// Calls visit(term) for each term, in the order in which they are added.
  template <class Visit> void for_each_term(Visit&& visit) const {
    for (const LowRankTerm<S>& term : terms) visit(term);
    for (const LowRankTerm<S, bfloat16>& term : narrow_terms) visit(term);
  }

  std::size_t bytes() const;
};

/// Computes base(x) and applies a change to it; nullptr: base(x), with the same bits.
template <class S>
void forward_adapted(const AnyLinear<S>& base, const LinearAdapter<S>* overlay, std::type_identity_t<ConstMatrixRef<S>> x,
                     std::type_identity_t<MatrixRef<S>> y, Workspace& ws) {
  const bool replaced = overlay != nullptr && !overlay->replacement.empty();
  const AnyLinear<S>& used = replaced ? overlay->replacement : base;
  if (overlay != nullptr && !overlay->turns.empty()) {
    const Workspace::Scope scope(ws);
    MatrixRef<S> turned = ws.matrix<S>(x.rows(), x.cols());
    turned = x;
    overlay->turn(turned, ws);
    used.forward(turned, y, ws);
  } else {
    used.forward(x, y, ws);
  }
  if (overlay != nullptr) overlay->add(x, y, ws);
}

namespace detail {
/// The number of components added at a time, which bounds the workspace for any rank. The chain of each output continues from y, so that
/// blocks change no bit.
inline constexpr Index overlay_block = 128;
}  // namespace detail

template <class S> constexpr std::size_t linear_adapter_workspace_bytes(Index tokens, Index workers = 1) {
  return low_rank_workspace_bytes<S>(tokens, detail::overlay_block, workers);
}

template <class S> void LinearAdapter<S>::check(std::string_view where, Index out, Index in) const {
  for_each_term([&](const auto& term) {
    check_shape(where, "down of a term", term.a_rows, any_extent, in);
    check_shape(where, "up of a term", term.b_rows, term.rank(), out);
    check_shape(where, "gain of a term", term.gains, term.rank(), 1);
  });
  for (const BlockTurn<S>& each : turns) each.check(where, in);
  for (const auto& change : more)
    if (change == nullptr || change->in() != in || change->out() != out)
      raise<ShapeError>("pith::", where, ": a change of ",
                        change == nullptr ? std::string("nothing") : detail::shape_text(change->out(), change->in()), ", expected ",
                        detail::shape_text(out, in));
  if (out_scale.size() > 0) check_shape(where, "out_scale", out_scale, out, 1);
  if (bias.size() > 0) check_shape(where, "bias", bias, out, 1);
  if (replacement.empty()) return;
  if (replacement.out() != out || replacement.in() != in)
    raise<ShapeError>("pith::", where, ": replacement is ", detail::shape_text(replacement.out(), replacement.in()), ", expected ",
                      detail::shape_text(out, in));
  if (replacement.workspace_bytes(1) > detail::dense_workspace_bytes<S>(in, out, 1, 1))
    raise<UnsupportedError>("pith::", where, ": replacement needs more workspace than a Linear of its shape: use one of those");
}

template <class S> void LinearAdapter<S>::add(ConstMatrixRef<S> x, MatrixRef<S> y, Workspace& ws) const {
  for (const auto& change : more) change->add(x, y, ws);
  for_each_term([&]<class T>(const LowRankTerm<S, T>& term) {
    for (Index first = 0; first < term.rank(); first += detail::overlay_block) {
      const Index n = (std::min)(detail::overlay_block, term.rank() - first);
      detail::add_factors<S, T>(x, term.a_rows.middleRows(first, n), term.b_rows.middleRows(first, n), term.gains.segment(first, n), y, ws);
    }
  });
  if (out_scale.size() > 0) {
    check_shape("LinearAdapter", "y", y, x.rows(), out_scale.size());
    y.array().rowwise() *= out_scale.transpose().array();
  }
  if (bias.size() > 0) {
    check_shape("LinearAdapter", "y", y, x.rows(), bias.size());
    y.rowwise() += bias.transpose();
  }
}

template <class S> std::size_t LinearAdapter<S>::more_workspace_bytes(Index tokens, Index workers) const {
  std::size_t turning = 0, adding = 0;
  for (const BlockTurn<S>& each : turns) turning = (std::max)(turning, Workspace::bytes_for<S>(tokens, each.in()) + each.workspace_bytes());
  for (const auto& change : more) adding = (std::max)(adding, change->workspace_bytes(tokens, workers));
  return turning + adding;
}

template <class S> void LinearAdapter<S>::change_weight(Index first_row, MatrixRef<double> rows) const {
  for (std::size_t i = turns.size(); i > 0; --i) turns[i - 1].change_weight(rows);  // x M₁ M₂ Wᵀ = x (W M₂ᵀ M₁ᵀ)ᵀ
  for (const auto& change : more) change->change_weight(first_row, rows);
  for_each_term([&](const auto& term) { detail::add_delta_rows(term, first_row, rows); });
  for (Index r = 0; r < rows.rows() && out_scale.size() > 0; ++r) rows.row(r) *= double(out_scale[first_row + r]);
}

template <class S> std::size_t LinearAdapter<S>::bytes() const {
  std::size_t others = 0;
  for (const BlockTurn<S>& each : turns) others += each.bytes();
  for (const auto& change : more) others += change->bytes();
  Index numbers = out_scale.size() + bias.size();
  for_each_term([&]<class T>(const LowRankTerm<S, T>& term) {
    others += static_cast<std::size_t>(term.a_rows.size() + term.b_rows.size()) * sizeof(T);
    numbers += term.gains.size();
  });
  return others + static_cast<std::size_t>(numbers) * sizeof(S) + (replacement.empty() ? 0 : replacement.bytes());
}

/// DoRA's factor m / n with n = dora_norm(), for LinearAdapter::out_scale; 1 where n is 0.
///
/// Shapes   term of the base's in and out · magnitude [out]
/// Cost     2·rank·in·out flops, once: n depends on the weight and the term only
/// Throws   ShapeError if they do not fit
/// Paper    DoRA: arXiv:2402.09353
template <DenseLinear Base, class T>
Vector<typename Base::Scalar> dora_scale(const Base& base, const LowRankTerm<typename Base::Scalar, T>& term,
                                         ConstVectorRef<typename Base::Scalar> magnitude) {
  using S = typename Base::Scalar;
  check_shape("dora_scale", "magnitude", magnitude, base.out(), 1);
  const Vector<S> norm = dora_norm(base, term);
  return (norm.array() == S(0)).select(S(1), magnitude.array() / norm.array()).matrix();
}

}}  // namespace pith::v0
