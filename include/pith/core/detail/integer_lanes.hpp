#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <pith/core/detail/integer_lanes_neon.hpp>
#include <pith/core/detail/integer_lanes_sse2.hpp>
#include <pith/core/detail/integer_lanes_x86.hpp>
#include <pith/core/detail/nibbles.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>

// Lanes of integers, for products of codes of 4 and 8 bits with 15-bit activations.

namespace pith { inline namespace v0 { namespace detail {

/// Products of codes (0 … 15, or 0 … 255) with integers of 15 bits, a lane for each output, in plain C++: the reference for every
/// instruction set, and what remains where none is known. All give the same bits: sums of integers are exact, and every float operation
/// rounds once.
///
/// Eight inputs of an output lie in a word; its parts meet the integers in the order in which arrange() wrote them.
struct PlainLanes {
  static constexpr int width = 8, parts = 4, tile_tokens = 4, tile_registers = 2;
  struct Ints {
    std::int32_t lane[std::size_t(width)];
  };
  struct Floats {
    float lane[std::size_t(width)];
  };
  using Words = Ints;
  using Part = Ints;  // a pair of codes, 16 bits each, for each output
  using Sum = Ints;
  struct Inputs {
    std::int32_t first, second;
  };

  static void arrange(const std::int32_t* q, std::int16_t* slot) {
    for (int j = 0; j < 8; ++j) slot[j] = static_cast<std::int16_t>(q[j]);
  }
  static Words words(const std::uint32_t* p) {
    return each<Ints>([&](int i) { return static_cast<std::int32_t>(p[i]); });
  }
  static Part unpack(const Words& w, int part) {
    return each<Ints>([&](int i) { return static_cast<std::int32_t>(std::uint32_t(w.lane[i]) >> nibble_shift(2 * part) & 0x000f000f); });
  }
  /// The codes of two inputs, of eight bits with a sign, plus 128.
  static Part pairs(const std::int8_t* even, const std::int8_t* odd) {
    return each<Ints>([&](int i) { return even[i] + 128 + (odd[i] + 128) * 65536; });
  }
  static Inputs inputs(const std::int16_t* slot, int part) { return {slot[2 * part], slot[2 * part + 1]}; }
  static Sum start(std::int32_t v) {
    return each<Ints>([&](int) { return v; });
  }
  static void add(Sum& sum, const Part& codes, const Inputs& x) {
    sum = each<Ints>([&](int i) { return sum.lane[i] + (codes.lane[i] & 255) * x.first + (codes.lane[i] >> 16) * x.second; });
  }
  static Floats total(const Sum& sum) {
    return each<Floats>([&](int i) { return static_cast<float>(sum.lane[i]); });
  }

  static Floats load(const float* p) {
    return each<Floats>([&](int i) { return p[i]; });
  }
  static void store(float* p, const Floats& f) {
    for (int i = 0; i < width; ++i) p[i] = f.lane[i];
  }
  static Floats broadcast(float v) {
    return each<Floats>([&](int) { return v; });
  }
  static Floats widen_half(const std::uint16_t* bits) {
    return each<Floats>([&](int i) { return widen(bits_as<half>(bits[i])); });
  }
  static Floats widen_bfloat16(const std::uint16_t* bits) {
    return each<Floats>([&](int i) { return widen(bits_as<bfloat16>(bits[i])); });
  }
  static Floats times(const Floats& a, const Floats& b) {
    return each<Floats>([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  /// a · b + c, rounded once
  static Floats fma(const Floats& a, const Floats& b, const Floats& c) {
    return each<Floats>([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
  }

 private:
  template <class R, class F> static R each(const F& f) {
    R r;
    for (int i = 0; i < width; ++i) r.lane[i] = f(i);
    return r;
  }
};

/// The lanes L with tiles of 32 outputs, so that each cache line of a panel of bytes is read once.
template <class L> struct WholeRows : L {
  static constexpr int tile_registers = 32 / L::width, tile_tokens = (std::max)(1, L::tile_tokens*L::tile_registers / tile_registers);
};

// The lanes of this build. Codes of four bits: for few tokens (at most FewLanes::tile_tokens) and for more. Bytes are unpacked in fewer
// instructions, which tells where few tokens share them; pairs take half as many sums. Codes of eight bits, whose pairs are as cheap:
// PairLanes.
#if defined(__AVX512BW__) && defined(EIGEN_VECTORIZE_AVX512) && defined(__F16C__)
using ManyLanes = Pairs512;
using PairLanes = Pairs512;
#if defined(__AVX512VNNI__)
using FewLanes = Bytes512;
#else
using FewLanes = Pairs512;
#endif
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && defined(EIGEN_VECTORIZE_AVX2)
using ManyLanes = Pairs256;
using PairLanes = Pairs256;
#if defined(__AVXVNNI__)
using FewLanes = Bytes256;
#else
using FewLanes = Pairs256;
#endif
#elif defined(EIGEN_VECTORIZE_SSE2)
using ManyLanes = Pairs128;
using PairLanes = Pairs128;
using FewLanes = Pairs128;
#elif defined(__aarch64__) && defined(EIGEN_VECTORIZE_NEON)
#if defined(__ARM_FEATURE_DOTPROD)
using ManyLanes = BytesNeon;
#else
using ManyLanes = PairsNeon;
#endif
using FewLanes = ManyLanes;
using PairLanes = PairsNeon;
#else
using ManyLanes = PlainLanes;
using FewLanes = PlainLanes;
using PairLanes = PlainLanes;
#endif

}}}  // namespace pith::v0::detail
