#pragma once
// AdaLoRA: an adapter of triplets P Λ Q, of which the least important are pruned.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <type_traits>

#include <pith/core/check.hpp>
#include <pith/core/products.hpp>
#include <pith/core/view.hpp>
#include <pith/peft/detail/factors.hpp>
#include <pith/peft/detail/fresh.hpp>
#include <pith/peft/gradients.hpp>
#include <pith/peft/lora_init.hpp>
#include <pith/peft/low_rank.hpp>

namespace pith { inline namespace v0 {

/// The scaling of AdaLoRA: scale = alpha / (initial rank + 1e-5), also after pruning.
struct AdaLoraOptions {
  double alpha = 8;         ///< 0 or less: the initial rank
  Index initial_rank = -1;  ///< -1: the rank at construction
};

namespace detail {
inline double triplet_scale(const char* where, double alpha, Index rank, Index alpha_of) {
  if (!std::isfinite(alpha) || rank < 0) [[unlikely]]
    raise<ShapeError>("pith::", where, ": alpha ", alpha, " and initial rank ", rank, ": expected a finite alpha and rank >= 0");
  return (alpha > 0 ? alpha : double(alpha_of)) / (double(rank) + 1e-5);
}
}  // namespace detail

/// AdaLoRA's adapter: ΔW = scale · P Λ Q, named B diag(E) A in the published code. A triplet with λ = 0 is pruned and costs nothing.
///
/// Shapes   down A = Q [rank, in] · lambda E = Λ [rank] · up B = P [out, rank]
/// Heap     at construction only
/// Throws   ShapeError if the shapes disagree or alpha is not finite
/// Paper    AdaLoRA: arXiv:2303.10512
template <class S = float> class AdaLoraAdapter {
 public:
  using Scalar = S;

  AdaLoraAdapter(ConstMatrixRef<S> down, ConstVectorRef<S> lambda, ConstMatrixRef<S> up, const AdaLoraOptions& options = {})
      : factors_("AdaLoraAdapter", down, up), lambda_(lambda), options_(options) {
    check_shape("AdaLoraAdapter", "lambda", lambda, down.rows(), 1);
    if (options_.initial_rank < 0) options_.initial_rank = down.rows();
    scale_ = static_cast<S>(detail::triplet_scale("AdaLoraAdapter", options_.alpha, options_.initial_rank, options_.initial_rank));
    refresh();
  }

  Index rank() const { return factors_.down.rows(); }
  Index in() const { return factors_.down.cols(); }
  Index out() const { return factors_.up.cols(); }
  ConstMatrixRef<S> down() const { return factors_.down; }       ///< A [rank, in]
  auto up() const { return factors_.up.transpose(); }            ///< B [out, rank]
  ConstMatrixRef<S> down_rows() const { return factors_.down; }  ///< A, a row a component
  ConstMatrixRef<S> up_rows() const { return factors_.up; }      ///< Bᵀ, a row a component [rank, out]
  /// [rank] scale · λ.
  ///
  /// Throws   StateError if λ changed after the last refresh()
  ConstVectorRef<S> gain() const {
    fresh_lambda_.check("AdaLoraAdapter", "lambda", lambda_);
    return gain_;
  }
  ConstVectorRef<S> lambda() const { return lambda_; }  ///< [rank]
  S scale() const { return scale_; }
  const AdaLoraOptions& options() const { return options_; }        ///< with the initial rank that it was made with
  Index kept() const { return (lambda_.array() != S(0)).count(); }  ///< number of triplets with λ ≠ 0

  /// The numbers themselves, for training and masking; refresh() after lambda has changed.
  MatrixRef<S> down() { return ++changes_, factors_.down; }
  auto up() { return ++changes_, factors_.up.transpose(); }
  MatrixRef<S> down_rows() { return down(); }
  MatrixRef<S> up_rows() { return ++changes_, factors_.up; }
  VectorRef<S> lambda() { return lambda_; }
  void refresh() {
    ++changes_;
    gain_ = scale_ * lambda_;
    fresh_lambda_.set(lambda_);
  }
  std::uint64_t changes() const { return changes_; }

  /// A new adapter of the triplets with λ ≠ 0 and the scale of this one.
  AdaLoraAdapter pruned() const {
    Matrix<S> a(kept(), in()), b(out(), kept());
    Vector<S> e(kept());
    for (Index r = 0, to = 0; r < rank(); ++r) {
      if (lambda_[r] == S(0)) continue;
      a.row(to) = factors_.down.row(r);
      b.col(to) = factors_.up.row(r).transpose();
      e[to++] = lambda_[r];
    }
    return AdaLoraAdapter(a, e, b, options_);
  }

  template <class F> void each_parameter(const LowRankGradients<S>& g, F&& f) {
    f("lora_A", down_rows(), ConstMatrixRef<S>(g.down_rows));
    f("lora_E", detail::as_row(lambda_), detail::as_row(g.lambda));
    f("lora_B", up_rows(), ConstMatrixRef<S>(g.up_rows));
  }
  Index parameters() const { return factors_.size() + lambda_.size(); }  ///< number of trained numbers
  std::size_t bytes() const { return static_cast<std::size_t>(parameters()) * sizeof(S); }

 private:
  detail::Factors<S> factors_;
  Vector<S> lambda_, gain_;
  detail::Fresh<S> fresh_lambda_;
  AdaLoraOptions options_;
  S scale_ = 0;
  std::uint64_t changes_ = 0;
};

template <detail::EigenDense A, class E, class B> AdaLoraAdapter(const A&, const E&, const B&) -> AdaLoraAdapter<detail::scalar_t<A>>;
template <detail::EigenDense A, class E, class B>
AdaLoraAdapter(const A&, const E&, const B&, const AdaLoraOptions&) -> AdaLoraAdapter<detail::scalar_t<A>>;

/// A fresh adapter: A, B ~ N(0, 0.02²) and Λ = 0.
template <class S = float, std::uniform_random_bit_generator Rng>
AdaLoraAdapter<S> fresh_adalora(Index in, Index out, Index rank, const AdaLoraOptions& options, Rng& rng) {
  const LoraFactors<S> f = fresh_factors<S>(in, out, rank, {.start = LoraStart::bert}, rng);
  return AdaLoraAdapter<S>(f.down, Vector<S>::Zero(rank).eval(), f.up, options);
}

/// AdaLoRA's orthogonality penalty of one factor: ‖F Fᵀ − I‖, the Frobenius norm, with F = A or Bᵀ [rank, features].
///
/// As in the published code, the norm is not squared. The penalty of a model is a weight times the mean over all factors. Adds
/// weight · d/dF to `gradient`, if given.
///
/// Shapes   gradient [rank, features]
template <class S>
S orthogonality(ConstMatrixRef<S> components, std::type_identity_t<MatrixRef<S>>* gradient = nullptr, std::type_identity_t<S> weight = 1) {
  Matrix<S> gap = detail::times_transposed<S>(components, components);
  gap.diagonal().array() -= S(1);
  const S norm = gap.norm();
  if (gradient != nullptr && norm > S(0)) {
    check_shape("orthogonality", "gradient", *gradient, components.rows(), components.cols());
    gap *= S(2) * weight / norm;
    *gradient += detail::times<S>(gap, components);
  }
  return norm;
}

}}  // namespace pith::v0
