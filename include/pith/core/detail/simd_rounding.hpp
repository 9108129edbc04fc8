#pragma once

#include <cstddef>
#include <cstdint>

#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // packets as template arguments of Eigen's functions keep their alignment
#endif

// Packets of floats rounded to integers and to halves.

namespace pith { inline namespace v0 { namespace detail {

using FloatPacket = Simd<float>::Packet;

/// The magnitude of a with the sign of b.
inline FloatPacket copy_sign(FloatPacket a, FloatPacket b) {
  return Eigen::internal::por(a, Eigen::internal::pand(b, Simd<float>::broadcast(-0.f)));
}

/// Writes numbers within the range of an int, rounded towards 0.
inline void truncate(FloatPacket a, std::int32_t* to) {
  if constexpr (Simd<float>::width > 1) {
    using Words = Eigen::internal::unpacket_traits<FloatPacket>::integer_packet;
    Eigen::internal::pstoreu(to, Eigen::internal::pcast<FloatPacket, Words>(a));
  } else {
    *to = static_cast<std::int32_t>(Simd<float>::first(a));
  }
}

/// Rounds each number, of at most 2^22, to an integer, halves to even. The sign of a 0 is not defined.
inline FloatPacket to_integers(FloatPacket a) {
  using V = Simd<float>;
  V::round_here(a);  // never fused with what made it
#if defined(EIGEN_VECTORIZE_AVX512)
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(EIGEN_VECTORIZE_AVX)
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const FloatPacket magic = V::broadcast(12582912);  // adding it rounds, in the lowest bits
  a = V::add(a, magic);
  V::round_here(a);
  return V::sub(a, magic);
#endif
}

/// Rounds each number to a half and back; beyond its range to infinity.
inline FloatPacket through_half(FloatPacket a) {
#if defined(EIGEN_VECTORIZE_AVX512)
  return _mm512_cvtph_ps(_mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
#elif defined(EIGEN_VECTORIZE_AVX) && defined(__F16C__)
  return _mm256_cvtph_ps(_mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
#else
  using V = Simd<float>;
  float lanes[std::size_t(V::width)];
  V::store(lanes, a);
  for (float& lane : lanes) lane = widen(static_cast<half>(lane));
  return V::load(lanes);
#endif
}

}}}  // namespace pith::v0::detail

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
