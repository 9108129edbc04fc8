#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <pith/core/detail/nibbles.hpp>
#include <pith/core/types.hpp>

#if defined(__aarch64__) && defined(EIGEN_VECTORIZE_NEON)
#include <arm_neon.h>

// Lanes of integers in NEON, with its dot product where there is one.

namespace pith { inline namespace v0 { namespace detail {

struct LanesNeon {
  static constexpr int width = 4;
  using Floats = float32x4_t;
  using Words = uint32x4_t;

  static Words words(const std::uint32_t* p) { return vld1q_u32(p); }
  static Floats load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Floats f) { vst1q_f32(p, f); }
  static Floats broadcast(float v) { return vdupq_n_f32(v); }
  static Floats widen_half(const std::uint16_t* bits) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(bits))); }
  static Floats widen_bfloat16(const std::uint16_t* bits) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(bits), 16)); }
  static Floats times(Floats a, Floats b) { return vmulq_f32(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
};

/// Pairs of 16-bit integers; sums of outputs 0 and 1, and of 2 and 3, each in two lanes.
struct PairsNeon : LanesNeon {
  static constexpr int parts = 4, tile_tokens = 4, tile_registers = 2;
  using Part = int16x8_t;
  using Inputs = int16x4_t;
  struct Sum {
    int32x4_t first, second;
  };

  static void arrange(const std::int32_t* q, std::int16_t* slot) {
    vst1q_s16(slot, vcombine_s16(vmovn_s32(vld1q_s32(q)), vmovn_s32(vld1q_s32(q + 4))));
  }
  static Part unpack(Words w, int part) {
    const uint32x4_t shifted = vshlq_u32(w, vdupq_n_s32(-nibble_shift(2 * part)));
    return vreinterpretq_s16_u32(vandq_u32(shifted, vdupq_n_u32(0x000f000f)));
  }
  static Part pairs(const std::int8_t* even, const std::int8_t* odd) {
    const auto four = [](const std::int8_t* p) {
      std::uint32_t word;
      std::memcpy(&word, p, sizeof(word));
      return vreinterpret_u8_u32(vdup_n_u32(word));
    };
    return vreinterpretq_s16_u16(vmovl_u8(veor_u8(vzip1_u8(four(even), four(odd)), vdup_n_u8(128))));
  }
  static Inputs inputs(const std::int16_t* slot, int part) { return vreinterpret_s16_s32(vdup_n_s32(word_at(slot + 2 * part))); }
  static Sum start(std::int32_t v) {
    const int32x4_t ones = {v, 0, v, 0};
    return {ones, ones};
  }
  static void add(Sum& sum, Part codes, Inputs x) {
    sum.first = vmlal_s16(sum.first, vget_low_s16(codes), x);
    sum.second = vmlal_s16(sum.second, vget_high_s16(codes), x);
  }
  static Floats total(const Sum& sum) { return vcvtq_f32_s32(vpaddq_s32(sum.first, sum.second)); }
};

#if defined(__ARM_FEATURE_DOTPROD)
/// Four bytes of codes against four of the high and four of the low bytes of the integers.
struct BytesNeon : LanesNeon {
  static constexpr int parts = 2, tile_tokens = 4, tile_registers = 2;
  using Part = int8x16_t;
  struct Inputs {
    int8x16_t high, low;
  };
  struct Sum {
    int32x4_t high, low;
  };

  static void arrange(const std::int32_t* q, std::int16_t* slot) {
    constexpr std::uint8_t order[16] = {0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15};
    const int16x8_t v = vcombine_s16(vmovn_s32(vld1q_s32(q)), vmovn_s32(vld1q_s32(q + 4)));
    const int16x8_t high = vshrq_n_s16(vaddq_s16(v, vdupq_n_s16(64)), 7), low = vsubq_s16(v, vshlq_n_s16(high, 7));
    const int8x16_t bytes = vcombine_s8(vmovn_s16(high), vmovn_s16(low));
    vst1q_s8(reinterpret_cast<std::int8_t*>(slot), vqtbl1q_s8(bytes, vld1q_u8(order)));
  }
  static Part unpack(Words w, int part) {
    const uint8x16_t bytes = vreinterpretq_u8_u32(w);
    return vreinterpretq_s8_u8(part == 0 ? vandq_u8(bytes, vdupq_n_u8(0x0f)) : vshrq_n_u8(bytes, 4));
  }
  static Inputs inputs(const std::int16_t* slot, int part) {
    return {vreinterpretq_s8_s32(vdupq_n_s32(word_at(slot + 2 * part))), vreinterpretq_s8_s32(vdupq_n_s32(word_at(slot + 4 + 2 * part)))};
  }
  static Sum start(std::int32_t v) { return {vdupq_n_s32(0), vdupq_n_s32(v)}; }
  static void add(Sum& sum, Part codes, const Inputs& x) {
    sum.high = vdotq_s32(sum.high, codes, x.high);
    sum.low = vdotq_s32(sum.low, codes, x.low);
  }
  static Floats total(const Sum& sum) { return vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(sum.high, 7), sum.low)); }
};
#endif

}}}  // namespace pith::v0::detail

#endif
