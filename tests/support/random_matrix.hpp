#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <type_traits>

#include <pith/core/random.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>

namespace pith_test {

/// Uniform in [-scale, scale), rounded to T.
template <class T> pith::Matrix<T> random_matrix(pith::Index rows, pith::Index cols, std::uint64_t seed, double scale = 1) {
  std::mt19937_64 rng(seed);
  pith::Matrix<T> m(rows, cols);
  for (pith::Index i = 0; i < m.size(); ++i)
    m.data()[i] = static_cast<T>(static_cast<pith::arithmetic_t<T>>(scale * (2 * pith::canonical<double>(rng) - 1)));
  return m;
}

/// The same as a vector.
template <class T> pith::Vector<T> random_vector(pith::Index size, std::uint64_t seed, double scale = 1) {
  return random_matrix<T>(size, 1, seed, scale);
}

/// Every entry as an S, which holds it exactly.
template <class S = void, class M> auto widened(const M& m) {
  using Wide = std::conditional_t<std::is_void_v<S>, pith::arithmetic_t<typename M::Scalar>, S>;
  pith::Matrix<Wide> wide(m.rows(), m.cols());
  for (pith::Index r = 0; r < m.rows(); ++r)
    for (pith::Index c = 0; c < m.cols(); ++c) wide(r, c) = static_cast<Wide>(pith::detail::widen(m(r, c)));
  return wide;
}

/// Compares every bit of every entry, for any strides: 0 and -0 differ, a NaN equals itself.
template <class A, class B> bool same_bits(const A& a, const B& b) {
  static_assert(std::is_same_v<typename A::Scalar, typename B::Scalar>);
  if (a.rows() != b.rows() || a.cols() != b.cols()) return false;
  for (pith::Index r = 0; r < a.rows(); ++r) {
    for (pith::Index c = 0; c < a.cols(); ++c) {
      const typename A::Scalar x = a(r, c), y = b(r, c);
      if (std::memcmp(&x, &y, sizeof x) != 0) return false;
    }
  }
  return true;
}

}  // namespace pith_test
