#pragma once

#include <Eigen/Core>

#include <cmath>
#include <cstdint>
#include <limits>
#include <ostream>
#include <sstream>
#include <string>
#include <type_traits>

#include "support/products.hpp"

namespace pith_test {

/// The outcome of near(): true, or a text that names the worst entry.
struct Nearness {
  bool ok;
  std::string text;
  explicit operator bool() const { return ok; }
  friend std::ostream& operator<<(std::ostream& out, const Nearness& n) { return out << n.text; }
};

/// |actual - expected| <= bound in every entry: CHECK(near(y, reference, bound, seed)). Not-a-number is never near.
///
/// Shapes   actual, expected [rows, cols] · bound the same, or one number for all entries
template <class Actual, class Expected, class Bound>
Nearness near(const Actual& actual, const Expected& expected, const Bound& bound, std::uint64_t seed = 0) {
  std::ostringstream shapes, at;
  shapes << "[" << actual.rows() << ", " << actual.cols() << "] against [" << expected.rows() << ", " << expected.cols() << "], seed "
         << seed;
  if (actual.rows() != expected.rows() || actual.cols() != expected.cols()) return {false, "shapes differ: " + shapes.str()};
  double worst = -1;
  for (Eigen::Index r = 0; r < actual.rows(); ++r) {
    for (Eigen::Index c = 0; c < actual.cols(); ++c) {
      const double a = static_cast<double>(actual(r, c)), e = static_cast<double>(expected(r, c));
      double limit = 0;
      if constexpr (std::is_arithmetic_v<Bound>) {
        limit = static_cast<double>(bound);
      } else {
        limit = static_cast<double>(bound(r, c));
      }
      const double residual = a == e ? 0 : std::abs(a - e);  // equal infinities are near
      if (residual <= limit) continue;
      const double excess = std::isnan(residual) || limit == 0 ? std::numeric_limits<double>::infinity() : residual / limit;
      if (excess <= worst) continue;
      worst = excess;
      at.str({});
      at.precision(9);
      at << "(" << r << ", " << c << ") is " << a << ", expected " << e << ", residual " << residual << " > " << limit << "; ";
    }
  }
  return {worst < 0, at.str() + shapes.str()};
}

/// What rounding may do to a sum of k products: k * eps * Σ|a||b|, with room for the final rounding.
///
/// Shapes   a [rows, k] · b [cols, k] · result [rows, cols] the bound of a bᵀ computed in S
template <class S, class A, class B> pith::Matrix<double> dot_bound(const A& a, const B& b) {
  const double eps = static_cast<double>(std::numeric_limits<S>::epsilon());
  return (static_cast<double>(a.cols()) + 2) * eps * times_transposed(magnitudes(a), magnitudes(b));
}

}  // namespace pith_test
