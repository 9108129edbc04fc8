#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <pith/core/types.hpp>
#include <pith/core/view.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// A = L Lᵀ of a small positive definite matrix in memory of its own, so that scores of rows by xᵀ A⁻¹ x allocate nothing.
template <class S> class SmallCholesky {
 public:
  static constexpr Index most = 128;  ///< rows and columns

  /// A = diagonal · I
  SmallCholesky(Index n, S diagonal) : n_(n) {
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j <= i; ++j) at(i, j) = i == j ? diagonal : S(0);
  }
  /// A += weight · x xᵀ
  void add(const S* x, S weight) {
    for (Index i = 0; i < n_; ++i) {
      const S scaled = weight * x[i];
      for (Index j = 0; j <= i; ++j) at(i, j) += scaled * x[j];
    }
  }
  void factor() {
    for (Index i = 0; i < n_; ++i)
      for (Index j = 0; j <= i; ++j) {
        S sum = at(i, j);
        for (Index k = 0; k < j; ++k) sum -= at(i, k) * at(j, k);
        at(i, j) = i == j ? std::sqrt((std::max)(sum, (std::numeric_limits<S>::min)())) : sum / at(j, j);
      }
  }
  /// xᵀ A⁻¹ x, once factored.
  S form(const S* x) const {
    S solved[most], sum = 0;
    for (Index i = 0; i < n_; ++i) {
      S y = x[i];
      for (Index k = 0; k < i; ++k) y -= at(i, k) * solved[k];
      solved[i] = y / at(i, i);
      sum += solved[i] * solved[i];
    }
    return sum;
  }

 private:
  S& at(Index i, Index j) { return lower_[i * (i + 1) / 2 + j]; }
  const S& at(Index i, Index j) const { return lower_[i * (i + 1) / 2 + j]; }

  Index n_;
  S lower_[most * (most + 1) / 2];
};

}}}  // namespace pith::v0::detail
