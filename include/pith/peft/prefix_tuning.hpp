#pragma once

#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/nn/activation.hpp>
#include <pith/nn/linear.hpp>

namespace pith { inline namespace v0 {

/// Prefix tuning: the network that is trained instead of the prefix itself. Checkpoints store only its result.
///
///   prefix = second(tanh(first(embedding))),   K' = [prefix_K; K],   V' = [prefix_V; V] in every layer's attention
///
/// Shapes   embedding [virtual tokens, width] · first [width → hidden] · second [hidden → 2 · layers · width]
/// Throws   ShapeError if they do not fit
/// Paper    Prefix tuning: arXiv:2101.00190
template <class S = float> class PrefixEncoder {
 public:
  using Scalar = S;

  PrefixEncoder(Matrix<S> embedding, Linear<S> first, Linear<S> second)
      : embedding_(std::move(embedding)), first_(std::move(first)), second_(std::move(second)) {
    check_shape("PrefixEncoder", "embedding", embedding_, any_extent, first_.in());
    check_shape("PrefixEncoder", "weight of second", second_.weight(), any_extent, first_.out());
  }

  /// Does not compile: a column-major embedding would be copied into another layout.
  template <detail::ColumnMajor M>
  PrefixEncoder(const M&, Linear<S> first, Linear<S> second) : first_(std::move(first)), second_(std::move(second)) {
    detail::bindable<S, M>();
  }

  /// The prefix, as prefix_tuning() of kv/prefix_tuning.hpp takes it.
  Matrix<S> rows() const {
    Matrix<S> hidden = first_.forward(embedding_);
    activate(Tanh{}, MatrixRef<S>(hidden));
    return second_.forward(hidden);
  }

  const Matrix<S>& embedding() const { return embedding_; }
  const Linear<S>& first() const { return first_; }
  const Linear<S>& second() const { return second_; }

 private:
  Matrix<S> embedding_;
  Linear<S> first_, second_;
};

}}  // namespace pith::v0
