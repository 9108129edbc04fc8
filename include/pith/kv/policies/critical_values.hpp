#pragma once

#include <cmath>
#include <concepts>
#include <limits>
#include <memory>
#include <utility>

#include <pith/kv/wrapped_policy.hpp>

namespace pith { inline namespace v0 {

/// CriticalKV: ranks rows by what they can add to the layer's output, their weight times the size of their projected value.
///
///   score'_r = (score_r + epsilon)·mean_{g ∈ group} ‖W_o,g v_r‖₁, behind P's best first_stage·budget rows
///
///   CriticalValues(SnapKv{.keep = 1024}, o_proj)
///
/// Keeps    budget() rows
/// Needs    what P needs, and values
/// Cost     hidden_size·head_dim per query head and row when evicting
/// Paper    CriticalKV: arXiv:2502.03805
template <class P, class S = float> struct CriticalValues : WrappedPolicy<P> {
  std::shared_ptr<const Matrix<S>> o_proj;  ///< [hidden_size, num_heads*head_dim] of the layer
  S epsilon = S(1e-4);
  double first_stage = 0.5;  ///< share of the budget kept by P's score alone

  CriticalValues(std::same_as<P> auto policy, std::shared_ptr<const Matrix<S>> projection)
      : WrappedPolicy<P>{std::move(policy)}, o_proj(std::move(projection)) {}

  /// Throws   what P's check() throws; ShapeError without a projection of this layer's shape, for a share outside 0 .. 1, and around a
  ///          policy whose scores are all infinite: they cannot be weighted
  void check(const AttentionShape& shape) const {
    WrappedPolicy<P>::check(shape);
    if (o_proj == nullptr) raise<ShapeError>("pith::CriticalValues: o_proj is null, expected the output projection of the layer");
    check_shape("CriticalValues", "o_proj", *o_proj, any_extent, shape.num_heads * shape.head_dim);
    check_share("CriticalValues", "first_stage", first_stage);
    check_amount("CriticalValues", "epsilon", static_cast<double>(epsilon));
    if (WrappedPolicy<P>::traits().uneven)
      raise<ShapeError>("pith::CriticalValues: around a policy that itself decides which rows stay: there is no score to weigh");
  }
  PolicyTraits traits() const {
    PolicyTraits traits = WrappedPolicy<P>::traits();
    traits.reads_rows = true;
    return traits;
  }
  void score(const KvRows<S>& rows, VectorRef<S> out) const requires ScoresRows<P, S> {
    this->inner.score(rows, out);
    const Index certain = static_cast<Index>(static_cast<double>(this->retain()) * first_stage);
    best_rows(rows, ConstVectorRef<S>(out), certain, [&](Index r) { out[r] = std::numeric_limits<S>::infinity(); });
    for (Index r = 0; r < rows.size(); ++r)
      if (out[r] != std::numeric_limits<S>::infinity()) out[r] = (out[r] + epsilon) * projected_norm(rows, r);
  }

 private:
  /// ‖W_o v‖₁, averaged over the query heads that read this kv head.
  S projected_norm(const KvRows<S>& rows, Index r) const {
    const Index group = rows.shape.group(), d = rows.shape.head_dim;
    S total = 0;
    for (Index g = 0; g < group; ++g) {
      const Index column = (rows.kv_head * group + g) * d;
      for (Index o = 0; o < o_proj->rows(); ++o) total += std::abs(o_proj->row(o).segment(column, d).dot(rows.values.row(r)));
    }
    return total / static_cast<S>(group);
  }
};
template <class P, class M> CriticalValues(P, std::shared_ptr<M>) -> CriticalValues<P, typename M::Scalar>;

}}  // namespace pith::v0
