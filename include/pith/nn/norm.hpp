#pragma once
// RMSNorm, LayerNorm, and a norm that may be either.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <variant>

#include <pith/core/check.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/view.hpp>

namespace pith { inline namespace v0 {

namespace detail {

/// Σ f(xᵢ): number i goes to lane i % width of accumulator i / width % 4, and lanes past the end add f(pad): the order depends on n alone.
template <class S, class F> S sum_packets(const S* x, Index n, S pad, F&& f) {
  using V = Simd<S>;
  typename V::Packet sum[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  Index i = 0;
  for (; i + 4 * V::width <= n; i += 4 * V::width) {
#pragma GCC unroll 4
    for (int a = 0; a < 4; ++a) sum[a] = V::add(sum[a], f(V::load(x + i + a * V::width)));
  }
  for (int a = 0; i < n; i += V::width, ++a)
    sum[a] = V::add(sum[a], f(i + V::width <= n ? V::load(x + i) : V::load_part(x + i, n - i, pad)));
  return V::sum(V::add(V::add(sum[0], sum[1]), V::add(sum[2], sum[3])));
}

template <class S> void check_norm(std::string_view where, Index weight, S eps) {
  if (weight == 0 || !(eps >= S(0)) || !std::isfinite(eps)) [[unlikely]]
    raise<ShapeError>("pith::", where, ": weight has ", weight, " entries and eps is ", eps,
                      "; expected one for each feature and a finite eps >= 0");
}

}  // namespace detail

/// RMSNorm: y = w ∘ x / √(mean(x²) + eps), row by row.
///
/// Shapes   weight [features] · x, y [tokens, features]; y may be x
/// Heap     none
/// Throws   ShapeError if the shapes disagree
/// Law      a row's result depends on that row alone, bit for bit
/// Paper    arXiv:1910.07467
template <class S = float> class RmsNorm {
 public:
  using Scalar = S;

  RmsNorm() = default;
  explicit RmsNorm(Vector<S> weight, S eps = S(1e-6)) : weight_(std::move(weight)), eps_(eps) {
    detail::check_norm("RmsNorm", weight_.size(), eps);
  }

  void forward(ConstMatrixRef<S> x, MatrixRef<S> y) const {
    using V = detail::Simd<S>;
    check_shape("RmsNorm", "x", x, any_extent, size());
    check_shape("RmsNorm", "y", y, x.rows(), size());
    for (Index t = 0; t < x.rows(); ++t) {
      const S* row = x.data() + t * x.outerStride();
      const S squares = detail::sum_packets(row, size(), S(0), [](auto v) { return V::mul(v, v); });
      const auto scale = V::broadcast(S(1) / std::sqrt(squares / S(size()) + eps_));  // 1 / √(mean(x²) + eps)
      detail::map_packets(row, weight_.data(), y.data() + t * y.outerStride(), size(),
                          [=](auto v, auto w) { return V::mul(V::mul(v, scale), w); });
    }
  }
  Matrix<S> forward(ConstMatrixRef<S> x) const {
    Matrix<S> y(x.rows(), x.cols());
    forward(x, y);
    return y;
  }

  Index size() const { return weight_.size(); }
  const Vector<S>& weight() const { return weight_; }
  S eps() const { return eps_; }
  std::size_t bytes() const { return static_cast<std::size_t>(size()) * sizeof(S); }

 private:
  Vector<S> weight_;
  S eps_ = S(1e-6);
};

/// LayerNorm: y = w ∘ (x - mean(x)) / √(var(x) + eps) + b, row by row, with var(x) = mean((x - mean(x))²).
///
/// Shapes   weight [features] · bias [features] or empty · x, y [tokens, features]; y may be x
/// Heap     none
/// Throws   ShapeError if the shapes disagree
/// Law      a row's result depends on that row alone, bit for bit
/// Paper    arXiv:1607.06450
template <class S = float> class LayerNorm {
 public:
  using Scalar = S;

  LayerNorm() = default;
  explicit LayerNorm(Vector<S> weight, Vector<S> bias = {}, S eps = S(1e-5))
      : weight_(std::move(weight)), bias_(std::move(bias)), eps_(eps) {
    detail::check_norm("LayerNorm", weight_.size(), eps);
    if (bias_.size() == 0) bias_ = Vector<S>::Zero(weight_.size());
    check_shape("LayerNorm", "bias", bias_, weight_.size(), 1);
  }

  void forward(ConstMatrixRef<S> x, MatrixRef<S> y) const {
    using V = detail::Simd<S>;
    check_shape("LayerNorm", "x", x, any_extent, size());
    check_shape("LayerNorm", "y", y, x.rows(), size());
    for (Index t = 0; t < x.rows(); ++t) {
      const S* row = x.data() + t * x.outerStride();
      S* out = y.data() + t * y.outerStride();
      const S mean = detail::sum_packets(row, size(), S(0), [](auto v) { return v; }) / S(size());
      const auto center = V::broadcast(mean);
      const S squares = detail::sum_packets(row, size(), mean, [=](auto v) { return V::mul(V::sub(v, center), V::sub(v, center)); });
      const auto scale = V::broadcast(S(1) / std::sqrt(squares / S(size()) + eps_));
      detail::map_packets(row, weight_.data(), out, size(), [=](auto v, auto w) { return V::mul(V::mul(V::sub(v, center), scale), w); });
      detail::map_packets(static_cast<const S*>(out), bias_.data(), out, size(), [](auto v, auto b) { return V::add(v, b); });
    }
  }
  Matrix<S> forward(ConstMatrixRef<S> x) const {
    Matrix<S> y(x.rows(), x.cols());
    forward(x, y);
    return y;
  }

  Index size() const { return weight_.size(); }
  const Vector<S>& weight() const { return weight_; }
  const Vector<S>& bias() const { return bias_; }
  S eps() const { return eps_; }
  std::size_t bytes() const { return static_cast<std::size_t>(2 * size()) * sizeof(S); }

 private:
  Vector<S> weight_, bias_;
  S eps_ = S(1e-5);
};

/// The kinds of norm that a decoder may have.
enum class NormKind : std::uint8_t {
  rms,    ///< RMSNorm
  layer,  ///< LayerNorm without bias
};

/// A norm of either kind: one decision a call, then the kernel of RmsNorm or LayerNorm.
///
/// Law      bit-identical to the norm it holds
template <class S = float> class AnyNorm {
 public:
  using Scalar = S;

  AnyNorm() = default;
  AnyNorm(RmsNorm<S> norm) : norm_(std::move(norm)) {}
  AnyNorm(LayerNorm<S> norm) : norm_(std::move(norm)) {}
  /// Throws   ShapeError for a weight without features and an eps that is negative or not finite
  AnyNorm(NormKind kind, Vector<S> weight, S eps) {
    if (kind == NormKind::rms)
      norm_ = RmsNorm<S>(std::move(weight), eps);
    else
      norm_ = LayerNorm<S>(std::move(weight), {}, eps);
  }

  void forward(ConstMatrixRef<S> x, MatrixRef<S> y) const {
    if (const auto* rms = std::get_if<RmsNorm<S>>(&norm_))
      rms->forward(x, y);
    else
      std::get_if<LayerNorm<S>>(&norm_)->forward(x, y);
  }

  NormKind kind() const { return norm_.index() == 0 ? NormKind::rms : NormKind::layer; }
  Index size() const { return weight().size(); }
  const Vector<S>& weight() const {
    const auto* rms = std::get_if<RmsNorm<S>>(&norm_);
    return rms != nullptr ? rms->weight() : std::get_if<LayerNorm<S>>(&norm_)->weight();
  }
  S eps() const {
    const auto* rms = std::get_if<RmsNorm<S>>(&norm_);
    return rms != nullptr ? rms->eps() : std::get_if<LayerNorm<S>>(&norm_)->eps();
  }
  std::size_t bytes() const { return static_cast<std::size_t>(size()) * sizeof(S); }

 private:
  std::variant<RmsNorm<S>, LayerNorm<S>> norm_;
};

}}  // namespace pith::v0
