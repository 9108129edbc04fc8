#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <span>
#include <string_view>
#include <utility>

#include <pith/core/products.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/peft_kind.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// HRA: W' = W H with H = H₁ H₂ … H_r, Hᵢ = I - 2 uᵢ uᵢᵀ. H = I - U T Uᵀ with an upper triangular T, so that ΔW is of rank r: B = -(W U) T
/// and A = Uᵀ. apply_GS makes the u orthogonal first; T is then 2 I.
class HraKind final : public PeftKind {
 public:
  static constexpr std::string_view peft_type = "HRA";
  static constexpr std::array<std::string_view, 3> keys{"r", "apply_GS", "init_weights"};
  explicit HraKind(const JsonFields& c) : rank_(c.size("r", 8)), orthogonal_(c.boolean("apply_GS", false)) {}

  std::span<const std::string_view> endings() const override { return names; }
  void check(const KindModule& m) const override {
    m.expect(0, {-1, rank_}, " by r");
    if (rank_ > m.shape(0)[0])  // as many make any rotation, and their products cost rank² · inputs
      m.refuse(0, text("holds ", rank_, " reflections of ", m.shape(0)[0], " inputs, expected at most one for each input: lower r"));
    static_cast<void>(directions(m));
  }
  KindShape shape(const KindModule& m) const override { return {.in = m.shape(0)[0]}; }
  template <class S> LinearAdapter<S> overlay(const KindModule& m, const KindPlace<S>& place) const {
    const Matrix<double> u = directions(m);
    Matrix<double> t = 2 * Matrix<double>::Identity(rank_, rank_);
    for (Index i = 1; i < rank_ && !orthogonal_; ++i)
      t.col(i).head(i) = -2 * times<double>(t.topLeftCorner(i, i), transposed_times<double>(u.leftCols(i), u.col(i)));
    const Matrix<double> b = -times<double>(times<double>(place.weight(), u), t);
    LinearAdapter<S> out;
    out.terms.push_back({u.transpose().template cast<S>(), b.transpose().template cast<S>(), Vector<S>::Ones(rank_)});
    return out;
  }

 private:
  static constexpr std::array<std::string_view, 1> names{"hra_u"};

  Matrix<double> directions(const KindModule& m) const {
    Matrix<double> u = m.load<double>(0);
    for (Index i = 0; i < rank_; ++i) {
      for (Index j = 0; j < i && orthogonal_; ++j) u.col(i) -= u.col(j).dot(u.col(i)) * u.col(j);
      const double norm = u.col(i).norm();
      if (!(norm > 0)) m.refuse(0, text("has a column ", i, " without a direction, which no reflection has"));
      u.col(i) /= norm;
    }
    return u;
  }

  Index rank_;
  bool orthogonal_;
};

}}}  // namespace pith::v0::detail
