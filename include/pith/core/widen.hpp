#pragma once

#include <cstdint>

#include <pith/core/types.hpp>

#if defined(EIGEN_VECTORIZE_AVX) && defined(__F16C__)
#include <immintrin.h>
#endif

// Numbers of narrow types as floats.

namespace pith { inline namespace v0 { namespace detail {

inline float widen(bfloat16 v) { return bits_as<float>(std::uint32_t(bits_as<std::uint16_t>(v)) << 16); }
inline float widen(half v) {
#if defined(EIGEN_VECTORIZE_AVX) && defined(__F16C__)
  return _cvtsh_ss(bits_as<std::uint16_t>(v));  // compiled by g++, Eigen 3.4 converts by shifts and branches
#else
  return static_cast<float>(v);
#endif
}
inline float widen(std::int8_t v) { return static_cast<float>(v); }
inline float widen(float v) { return v; }
inline double widen(double v) { return v; }

}}}  // namespace pith::v0::detail
