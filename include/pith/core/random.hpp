#pragma once

#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <numbers>
#include <random>

#include <pith/core/types.hpp>

// Random numbers that are reproducible across platforms.

namespace pith { inline namespace v0 {

namespace detail {
/// Draws 64 bits from any generator, most significant draw first: the same bits on every platform.
template <std::uniform_random_bit_generator Rng> std::uint64_t random_bits(Rng& rng) {
  constexpr std::uint64_t range = std::uint64_t((Rng::max)()) - std::uint64_t((Rng::min)());
  static_assert(range >= 0xFFFF, "pith: the generator yields fewer than 16 bits a call; use std::mt19937_64");
  constexpr int bits = range == ~std::uint64_t(0) ? 64 : range >= 0xFFFFFFFF ? 32 : 16;
  std::uint64_t word = 0;
  for (int filled = 0; filled < 64; filled += bits) {
    const std::uint64_t draw = std::uint64_t(rng()) - std::uint64_t((Rng::min)());
    word = bits == 64 ? draw : (word << (bits % 64)) | (draw & ((std::uint64_t(1) << (bits % 64)) - 1));
  }
  return word;
}

/// A hash: every bit of x changes half of the result's bits.
inline std::uint64_t mixed(std::uint64_t x) {
  x = (x + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 30)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}
}  // namespace detail

/// Uniform in [0, 1): the top 24 (float) or 53 (double) bits of one 64-bit draw.
///
/// Law      the same bits on every platform, which std::uniform_real_distribution does not promise
template <std::floating_point S, std::uniform_random_bit_generator Rng> S canonical(Rng& rng) {
  constexpr int digits = std::numeric_limits<S>::digits < 53 ? std::numeric_limits<S>::digits : 53;
  return static_cast<S>(std::ldexp(static_cast<double>(detail::random_bits(rng) >> (64 - digits)), -digits));
}

/// Standard normal by the Box-Muller method, one value per call, computed in double.
///
/// Law      agrees to 1e-6 relative on every platform: log and cos are libm's
template <std::floating_point S, std::uniform_random_bit_generator Rng> S normal(Rng& rng) {
  const double u = 1.0 - canonical<double>(rng);  // (0, 1]: the logarithm stays finite
  const double v = canonical<double>(rng);
  return static_cast<S>(std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v));
}

}}  // namespace pith::v0
