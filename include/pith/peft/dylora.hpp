#pragma once

#include <cstddef>
#include <cstdint>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/peft/detail/factors.hpp>
#include <pith/peft/gradients.hpp>
#include <pith/peft/lora.hpp>
#include <pith/peft/low_rank.hpp>

namespace pith { inline namespace v0 {

/// DyLoRA: one adapter for every rank b up to its maximum; rank b uses the first b components, ΔW = (α/b) B[:, :b] A[:b, :].
///
/// Shapes   down A [max_rank, in] and up B [out, max_rank], as published
/// Heap     at construction only
/// Throws   ShapeError if the shapes disagree, alpha is not finite or there is no component
/// Law      at rank b, the bits of a LoraAdapter with the first b rows of A and columns of B
/// Paper    DyLoRA: arXiv:2210.07558
template <class S = float> class DyLoraAdapter {
 public:
  using Scalar = S;

  DyLoraAdapter(ConstMatrixRef<S> down, ConstMatrixRef<S> up, const LoraOptions& options = {})
      : factors_("DyLoraAdapter", down, up), options_(options), gain_(down.rows()) {
    set_rank(max_rank());
  }

  /// Switches to the first b components: copies nothing, and the scale becomes α / b.
  ///
  /// Heap     none
  /// Throws   ShapeError unless 1 <= b <= max_rank()
  void set_rank(Index b) {
    if (b < 1 || b > max_rank()) [[unlikely]]
      raise<ShapeError>("pith::DyLoraAdapter::set_rank: rank ", b, ", expected 1 .. ", max_rank());
    gain_.setConstant(static_cast<S>(lora_scale(options_, b)));
    rank_ = b;
    ++changes_;
  }

  Index rank() const { return rank_; }
  Index max_rank() const { return factors_.down.rows(); }
  Index in() const { return factors_.down.cols(); }
  Index out() const { return factors_.up.cols(); }
  ConstMatrixRef<S> down() const { return factors_.down.topRows(rank_); }   ///< A [rank, in]
  auto up() const { return factors_.up.topRows(rank_).transpose(); }        ///< B [out, rank]
  ConstMatrixRef<S> down_rows() const { return down(); }                    ///< A, a row a component
  ConstMatrixRef<S> up_rows() const { return factors_.up.topRows(rank_); }  ///< Bᵀ, a row a component [rank, out]
  ConstVectorRef<S> gain() const { return {gain_.data(), rank_}; }          ///< [rank] alpha / rank
  S scale() const { return gain_[0]; }
  const LoraOptions& options() const { return options_; }

  /// The numbers of all ranks, for training.
  MatrixRef<S> all_down() { return ++changes_, factors_.down; }
  auto all_up() { return ++changes_, factors_.up.transpose(); }
  void refresh() { ++changes_; }
  std::uint64_t changes() const { return changes_; }
  template <class F> void each_parameter(const LowRankGradients<S>& g, F&& f) {
    ++changes_;
    f("lora_A", MatrixRef<S>(factors_.down), ConstMatrixRef<S>(g.down_rows));
    f("lora_B", MatrixRef<S>(factors_.up), ConstMatrixRef<S>(g.up_rows));
  }
  Index parameters() const { return factors_.size(); }  ///< number of trained numbers
  std::size_t bytes() const { return static_cast<std::size_t>(parameters()) * sizeof(S); }

 private:
  detail::Factors<S> factors_;
  LoraOptions options_;
  Vector<S> gain_;
  Index rank_ = 0;
  std::uint64_t changes_ = 0;
};

template <detail::EigenDense A, class B> DyLoraAdapter(const A&, const B&) -> DyLoraAdapter<detail::scalar_t<A>>;
template <detail::EigenDense A, class B> DyLoraAdapter(const A&, const B&, const LoraOptions&) -> DyLoraAdapter<detail::scalar_t<A>>;

}}  // namespace pith::v0
