#pragma once

#include <Eigen/QR>
#include <Eigen/SVD>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/products.hpp>
#include <pith/core/view.hpp>
#include <pith/nn/linear.hpp>
#include <pith/peft/combine.hpp>
#include <pith/peft/linear_adapter.hpp>
#include <pith/peft/lora.hpp>
#include <pith/peft/model_adapter.hpp>

// Adapters from the SVD or QR decomposition of a weight: PiSSA, OLoRA, MiCA, combination by SVD, and the closest LoRA to any change.
// It is the one header that needs more of Eigen than its core: no umbrella includes it.
namespace pith { inline namespace v0 {

/// A weight split into an adapter and a residual: W = residual + scale · B A. The adapter works on this residual only.
template <class S> struct DecomposedWeight {
  LoraAdapter<S> adapter;
  Matrix<S> residual;  ///< [out, in]
};

/// Options of combine_svd().
struct SvdCombineOptions {
  Index rank = -1;             ///< rank of the result; -1: the largest rank of the terms
  double clamp = 1;            ///< clips both factors at this quantile of all their numbers; 1: no clipping
  bool as_published = false;   ///< true: applies each adapter's scale twice, as PEFT does
  CombineOptions deltas = {};  ///< how the terms' ΔW are combined before the SVD
};

namespace detail {

struct Svd {
  Matrix<double> u, vt;  // [out, k], [k, in]
  Vector<double> s;      // descending
};
inline Svd svd(const Matrix<double>& m) {
  const Eigen::BDCSVD<Eigen::MatrixXd> made(m, Eigen::ComputeThinU | Eigen::ComputeThinV);
  return {made.matrixU(), made.matrixV().transpose(), made.singularValues()};
}

template <class S> void check_decomposition(const char* where, const ConstMatrixRef<S>& weight, Index rank) {
  if (rank < 1 || rank > (std::min)(weight.rows(), weight.cols())) [[unlikely]]
    raise<ShapeError>("pith::", where, ": rank ", rank, " of a weight ", shape_text(weight.rows(), weight.cols()),
                      ", expected 1 up to the smaller side");
  if (!weight.allFinite()) [[unlikely]]
    raise<ShapeError>("pith::", where, ": the weight has entries that are not finite");
}

template <class S>
DecomposedWeight<S> taken_out(ConstMatrixRef<S> weight, const Matrix<double>& down, const Matrix<double>& up, const LoraOptions& options) {
  LoraAdapter<S> adapter(down.cast<S>().eval(), up.cast<S>().eval(), options);
  const LoraAdapter<S>& a = adapter;
  const Matrix<double> delta = double(a.scale()) * transposed_times<double>(in_double<S>(a.up_rows()), in_double<S>(a.down_rows()));
  Matrix<S> residual = (in_double<S>(weight) - delta).template cast<S>();
  return {std::move(adapter), std::move(residual)};
}

/// The q-quantile by linear interpolation between the sorted numbers, as in torch.quantile.
inline double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  const double at = q * double(values.size() - 1);
  const auto low = static_cast<std::size_t>(at);
  const std::size_t high = (std::min)(low + 1, values.size() - 1);
  return values[low] + (at - double(low)) * (values[high] - values[low]);
}

}  // namespace detail

/// PiSSA: the adapter starts as the weight's best approximation of its rank, B = U √(Σ/scale), A = √(Σ/scale) Vᵀ, and trains these parts.
///
/// Shapes   weight [out, in]
/// Throws   ShapeError unless 1 <= rank <= min(out, in), the scale is above 0 and the weight finite
/// Paper    arXiv:2404.02948
template <class S> DecomposedWeight<S> pissa(ConstMatrixRef<S> weight, Index rank, const LoraOptions& options = {}) {
  detail::check_decomposition("pissa", weight, rank);
  const double scale = lora_scale(options, rank);
  if (!(scale > 0)) [[unlikely]]
    raise<ShapeError>("pith::pissa: scale ", scale, ", expected above 0: it is taken out of both factors");
  const detail::Svd w = detail::svd(weight.template cast<double>());
  const Vector<double> root = (w.s.head(rank) / scale).cwiseSqrt();
  return detail::taken_out<S>(weight, detail::with_scaled_rows<double>(w.vt.topRows(rank), root),
                              detail::with_scaled_columns<double>(w.u.leftCols(rank), root), options);
}

/// OLoRA: B and A start as the first columns of Q and rows of R, with W = Q R. They do not absorb the scale: residual = W - scale · B A.
///
/// Shapes   weight [out, in]
/// Throws   ShapeError unless 1 <= rank <= min(out, in) and the weight is finite
/// Paper    arXiv:2406.01775
template <class S> DecomposedWeight<S> olora(ConstMatrixRef<S> weight, Index rank, const LoraOptions& options = {}) {
  detail::check_decomposition("olora", weight, rank);
  const Eigen::HouseholderQR<Eigen::MatrixXd> qr(weight.template cast<double>());
  const Matrix<double> q = qr.householderQ() * Eigen::MatrixXd::Identity(weight.rows(), rank);
  const Matrix<double> r = qr.matrixQR().topRows(rank).template triangularView<Eigen::Upper>();
  return detail::taken_out<S>(weight, r, q, options);
}

/// MiCA: B holds the left singular vectors of the smallest singular values and is not trained; A = 0. The weight stays unchanged.
///
/// Shapes   weight [out, in]
/// Throws   ShapeError unless 1 <= rank <= min(out, in) and the weight is finite
template <class S> LoraAdapter<S> mica(ConstMatrixRef<S> weight, Index rank, const LoraOptions& options = {}) {
  detail::check_decomposition("mica", weight, rank);
  const detail::Svd w = detail::svd(weight.template cast<double>());
  return LoraAdapter<S>(Matrix<S>::Zero(rank, weight.cols()).eval(), w.u.rightCols(rank).template cast<S>().eval(), options);
}

/// The best approximation of a given rank of Σ weight · ΔWᵢ: B = U diag(σ), A = Vᵀ, scale 1.
///
/// Throws   as combine_cat(), and ShapeError for a rank outside 1 … min(out, in), or a clamp or density out of range
template <class S, std::uniform_random_bit_generator Rng>
LoraAdapter<S> combine_svd(std::span<const WeightedLora<S>> terms, const SvdCombineOptions& options, Rng& rng) {
  detail::check_terms("combine_svd", terms, false);
  detail::check_combination("combine_svd", options.deltas);
  if (!(options.clamp > 0 && options.clamp <= 1)) [[unlikely]]
    raise<ShapeError>("pith::combine_svd: clamp ", options.clamp, ", expected above 0 and at most 1");
  std::vector<Matrix<double>> deltas;
  std::vector<double> weights;
  Index rank = options.rank;
  for (const WeightedLora<S>& term : terms) {
    const LoraAdapter<S>& a = *term.adapter;
    const double scale = double(a.scale());
    deltas.push_back(scale * detail::transposed_times<double>(detail::in_double<S>(a.up_rows()), detail::in_double<S>(a.down_rows())));
    weights.push_back(options.as_published ? detail::combined_weight(term) : term.weight);
    if (options.rank < 0) rank = (std::max)(rank, a.rank());
  }
  const Matrix<double> delta = detail::combine_parts(std::move(deltas), weights, options.deltas, rng);
  detail::check_decomposition<double>("combine_svd", delta, rank);
  detail::Svd d = detail::svd(delta);
  Matrix<double> up = detail::with_scaled_columns<double>(d.u.leftCols(rank), d.s.head(rank)), down = d.vt.topRows(rank);
  if (options.clamp < 1) {
    std::vector<double> all(up.data(), up.data() + up.size());
    all.insert(all.end(), down.data(), down.data() + down.size());
    const double most = detail::quantile(std::move(all), options.clamp);
    up = up.cwiseMin(most).cwiseMax(-most);
    down = down.cwiseMin(most).cwiseMax(-most);
  }
  return detail::of_scale_one<S>(down, up);
}
template <class S> LoraAdapter<S> combine_svd(std::span<const WeightedLora<S>> terms, const SvdCombineOptions& options = {}) {
  if (options.deltas.method == CombineMethod::dare_linear || options.deltas.method == CombineMethod::dare_ties) [[unlikely]]
    raise<UnsupportedError>("pith::combine_svd: DARE prunes at random: give it a generator");
  std::minstd_rand unused;
  return combine_svd(terms, options, unused);
}

/// The closest LoRA to the change of one projection.
template <class S> struct ClosestLora {
  LoraAdapter<S> adapter;  ///< of scale 1; its bias is what the change adds to the base's
  double error = 0;        ///< ‖ΔW - B A‖ / ‖ΔW‖ in the Frobenius norm; 0 for no change
};

/// The LoRA of a given rank that is closest to any change of a projection: rotations, scales, Kronecker products, whole weights, other
/// ranks.
///
/// Cost     the SVD of ΔW in double
/// Throws   ShapeError unless 1 <= rank <= min(out, in), if the change does not fit or is not finite; UnsupportedError for a base that does
///          not show its numbers
/// Law      no LoRA of that rank is closer; from the rank of ΔW on, the error is rounding
template <class S> ClosestLora<S> closest_lora(const AnyLinear<S>& base, const LinearAdapter<S>& change, Index rank) {
  change.check("closest_lora", base.out(), base.in());
  const auto weight_of = [](const AnyLinear<S>& layer) {
    Matrix<S> rows(layer.out(), layer.in());
    layer.copy_weight(0, rows);
    return Matrix<double>(rows.template cast<double>());
  };
  const AnyLinear<S>& used = change.replacement.empty() ? base : change.replacement;
  Matrix<double> delta = weight_of(used);
  change.change_weight(0, delta);
  delta -= weight_of(base);
  detail::check_decomposition<double>("closest_lora", delta, rank);
  const auto bias_of = [](const AnyLinear<S>& layer) {
    const Vector<S> bias = layer.bias();
    return bias.size() > 0 ? Vector<double>(bias.template cast<double>()) : Vector<double>(Vector<double>::Zero(layer.out()));
  };
  Vector<double> bias = bias_of(used);
  if (change.out_scale.size() > 0) bias = bias.cwiseProduct(change.out_scale.template cast<double>()).eval();
  if (change.bias.size() > 0) bias += change.bias.template cast<double>();
  bias -= bias_of(base);
  const detail::Svd d = detail::svd(delta);
  const Vector<double> root = d.s.head(rank).cwiseSqrt();
  const Matrix<S> down = detail::with_scaled_rows<double>(d.vt.topRows(rank), root).template cast<S>(),
                  up = detail::with_scaled_columns<double>(d.u.leftCols(rank), root).template cast<S>();
  const Vector<S> moved = bias.isZero(0) ? Vector<S>() : Vector<S>(bias.template cast<S>());
  const double size = delta.norm(), rest = (delta - detail::times<double>(detail::in_double<S>(up), detail::in_double<S>(down))).norm();
  return {LoraAdapter<S>(down, up, {.alpha = double(rank)}, moved), size > 0 ? rest / size : 0};
}

/// The closest LoRA of a whole adapter, and the error of each projection.
template <class S> struct ClosestAdapter {
  ModelAdapter<S> adapter;
  std::vector<std::array<double, num_projections>> errors;  ///< [layers] ClosestLora::error
};

/// Replaces the changes of all projections by their closest LoRA; base_of(layer, projection) is the base's, an AnyLinear. What an adapter
/// changes in norms, table and head stays as it is, as does its invocation.
///
/// Throws   as above
template <class S, class BaseOf> ClosestAdapter<S> closest_lora(const ModelAdapter<S>& adapter, BaseOf&& base_of, Index rank) {
  AdapterParts<S> parts = adapter.parts();
  const S scale = static_cast<S>(adapter.target().embedding_scale);  // taken in by the constructor again
  if (!parts.embedding.empty()) parts.embedding = parts.embedding.scaled(S(1) / scale);
  std::vector<std::array<double, num_projections>> errors(parts.layers.size());
  for (std::size_t layer = 0; layer < parts.layers.size(); ++layer)
    for (std::size_t p = 0; p < num_projections; ++p) {
      LinearAdapter<S>& change = parts.layers[layer].projections[p];
      errors[layer][p] = 0;
      if (change.empty()) continue;
      const AnyLinear<S>& base = base_of(static_cast<Index>(layer), Projection(p));
      const ClosestLora<S> closest = closest_lora<S>(base, change, (std::min)({rank, base.out(), base.in()}));
      change = {};
      change.terms.push_back(LowRankTerm<S>::of(closest.adapter));
      change.bias = closest.adapter.scaled_bias();
      errors[layer][p] = closest.error;
    }
  return {ModelAdapter<S>(adapter.target(), std::move(parts)), std::move(errors)};
}

}}  // namespace pith::v0
