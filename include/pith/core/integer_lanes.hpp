#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>

// Lanes of integers, for products of 4-bit codes with 15-bit activations.

namespace pith { inline namespace v0 { namespace detail {

/// The place of input j of eight in the 32-bit word of an output: its lowest bit. Masks of 16 bits then find neighbours, (0, 1) by none,
/// (2, 3), (4, 5) and (6, 7) by a shift, and masks of bytes find 0, 2, 1, 3 in the low nibbles and 4, 6, 5, 7 in the high ones.
constexpr int nibble_shift(Index j) {
  constexpr int shifts[4] = {0, 8, 4, 12};
  return shifts[j / 2] + 16 * int(j % 2);
}

/// Products of codes (0 … 15) with integers of 15 bits, a lane for each output, in plain C++: the reference for every instruction set,
/// and what remains where none is known. All give the same bits: sums of integers are exact, and every float operation rounds once.
struct PlainLanes {
  static constexpr int width = 8;
  static constexpr int registers = 16;
  struct Ints {
    std::int32_t lane[std::size_t(width)];
  };
  struct Floats {
    float lane[std::size_t(width)];
  };
  struct Codes {  // of eight inputs
    Ints pair[4];
  };
  using Sum = Ints;

  /// Arranges eight integers as add() reads them.
  static void arrange(const std::int32_t* q, std::int16_t* slot) {
    for (int j = 0; j < 8; ++j) slot[j] = static_cast<std::int16_t>(q[j]);
  }

  static Codes unpack(const std::uint32_t* words) {
    Codes c;
    for (int p = 0; p < 4; ++p)
      for (int i = 0; i < width; ++i) c.pair[p].lane[i] = static_cast<std::int32_t>(words[i] >> nibble_shift(2 * p) & 0x000f000f);
    return c;
  }
  static Sum none() { return {}; }
  /// sum += Σ code · x over eight inputs
  static void add(Sum& sum, const Codes& codes, const std::int16_t* x) {
    for (int p = 0; p < 4; ++p) {
      for (int i = 0; i < width; ++i) sum.lane[i] += (codes.pair[p].lane[i] & 15) * x[2 * p] + (codes.pair[p].lane[i] >> 16) * x[2 * p + 1];
    }
  }
  /// The sum and `start`, as a float: rounded once.
  static Floats total(const Sum& sum, std::int32_t start) {
    Floats f;
    for (int i = 0; i < width; ++i) f.lane[i] = static_cast<float>(sum.lane[i] + start);
    return f;
  }

  static Floats load(const float* p) {
    Floats f;
    for (int i = 0; i < width; ++i) f.lane[i] = p[i];
    return f;
  }
  template <class T> static Floats widen(const std::uint16_t* bits) {
    Floats f;
    for (int i = 0; i < width; ++i) f.lane[i] = detail::widen(bits_as<T>(bits[i]));
    return f;
  }
  static void store(float* p, const Floats& f) {
    for (int i = 0; i < width; ++i) p[i] = f.lane[i];
  }
  static Floats broadcast(float v) {
    Floats f;
    for (int i = 0; i < width; ++i) f.lane[i] = v;
    return f;
  }
  static Floats times(const Floats& a, float b) {
    Floats f;
    for (int i = 0; i < width; ++i) f.lane[i] = a.lane[i] * b;
    return f;
  }
  /// a · b + c, rounded once
  static Floats fma(const Floats& a, const Floats& b, const Floats& c) {
    Floats f;
    for (int i = 0; i < width; ++i) f.lane[i] = std::fma(a.lane[i], b.lane[i], c.lane[i]);
    return f;
  }
};

using IntegerLanes = PlainLanes;

}}}  // namespace pith::v0::detail
