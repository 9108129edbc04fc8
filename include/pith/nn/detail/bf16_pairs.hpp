#pragma once
// Products of bfloat16 weights with bfloat16 activations, two inputs at a time.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <pith/core/simd.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/detail/panel_kernel.hpp>
#include <pith/nn/matmul.hpp>
#include <pith/nn/packed.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// The float nearest to v that a bfloat16 holds, halves to even; NaN stays NaN.
inline std::uint32_t rounded_to_bfloat16(float v) {
  const auto bits = bits_as<std::uint32_t>(v);
  const std::uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
  return (bits & 0x7fffffff) > 0x7f800000u ? (bits | 0x00400000u) & 0xffff0000u : rounded;
}

#if defined(__AVX512BF16__) && defined(EIGEN_VECTORIZE_AVX512)
inline constexpr bool has_bf16_pairs = true;

/// Whether the dot product pays. One instruction on 512 bits takes as long as one multiply-add of floats on AMD (Zen 4: products of 128
/// tokens at 1.7 times the speed), and four times as long on Intel (Sapphire Rapids: .57 times). Intel's tiles (AMX) are not used: they add
/// even and odd inputs apart, so a token among many would not have the bits that it has alone.
inline bool bf16_pairs_pay() {
  static const bool amd = __builtin_cpu_is("amd");
  return amd;
}

/// Two inputs of an output in a word, the first in the upper half: the processor's dot product multiplies and adds it first, each with one
/// rounding, so that a chain has the bits of multiply-adds on floats that take numbers below the smallest normal float for 0.
struct Bf16Pair {
  std::uint32_t bits;

  static __m512 load(const Bf16Pair* p) { return _mm512_loadu_ps(reinterpret_cast<const float*>(p)); }
  static __m512 madd(__m512 a, __m512 b, __m512 c) { return _mm512_dpbf16_ps(c, to_pairs(a), to_pairs(b)); }

 private:
  static __m512bh to_pairs(__m512 v) { return bits_as<__m512bh>(v); }
};
template <> struct Arithmetic<Bf16Pair> { using type = float; };

/// Packed bfloat16 panels as blocks of pairs, [in / 2][32].
struct Bf16Panels {
  using Stored = Bf16Pair;
  using S = float;
  const PackedWeight<bfloat16>& weight;
  static constexpr bool direct = false, copies = true;
  static constexpr Index row_bytes = 2 * panel_width * Index(sizeof(bfloat16));

  const void* address(Index p, Index pair) const { return weight.panel(p) + 2 * pair * panel_width; }
  const Bf16Pair* block(Index p, Index pair, Index depth, float* scratch) const {
    const auto* row = reinterpret_cast<const float*>(weight.panel(p) + 2 * pair * panel_width);  // outputs c and c + 16 in a word
    constexpr __mmask32 lower = 0x55555555;
    for (Index k = 0; k < depth; ++k, row += panel_width) {
      const __m512i first = _mm512_loadu_si512(row), second = _mm512_loadu_si512(row + panel_width / 2);
      _mm512_storeu_si512(scratch + k * panel_width, _mm512_mask_blend_epi16(lower, _mm512_slli_epi32(first, 16), second));
      _mm512_storeu_si512(scratch + k * panel_width + 16, _mm512_mask_blend_epi16(lower, first, _mm512_srli_epi32(second, 16)));
    }
    return reinterpret_cast<const Bf16Pair*>(scratch);
  }
};

/// While it lives, this thread's multiply-adds take numbers below the smallest normal float for 0, arguments and sums, as the dot product
/// does. The memory clobbers keep loads and stores, and so the arithmetic between them, inside.
class TinyAsZero {
 public:
  TinyAsZero() : before_(_mm_getcsr()) {
    _mm_setcsr(before_ | _MM_FLUSH_ZERO_ON | denormals_are_zero);
    asm volatile("" : : : "memory");
  }
  TinyAsZero(const TinyAsZero&) = delete;
  TinyAsZero& operator=(const TinyAsZero&) = delete;
  ~TinyAsZero() {
    asm volatile("" : : : "memory");
    _mm_setcsr(before_);
  }

 private:
  static constexpr unsigned denormals_are_zero = 0x40;
  unsigned before_;
};

/// Panels for tokens too few for pairs, with the bits of pairs.
struct Bf16FewTokens : PackedPanels<bfloat16> {};
inline void product_streamed(const Product<float>& o, const Bf16FewTokens& w, Share panels) {
  const TinyAsZero as_in_pairs;
  product_streamed(o, static_cast<const PackedPanels<bfloat16>&>(w), panels);
}
#else
inline constexpr bool has_bf16_pairs = false;
inline bool bf16_pairs_pay() { return false; }
#endif

/// How products are computed: one multiply-add for each input, the same with tiny numbers taken for 0, or a dot product for two inputs.
enum class Bf16Kernel { floats, floats_as_in_pairs, pairs };

/// In pairs where weights are not what it waits for, and with the bits of pairs for any number of tokens.
inline Bf16Kernel bf16_kernel(Index tokens, Index in) {
  if (in <= 0 || in % 2 != 0 || !bf16_pairs_pay()) return Bf16Kernel::floats;
  return tokens > TileShape<float>::tokens ? Bf16Kernel::pairs : Bf16Kernel::floats_as_in_pairs;
}

inline std::size_t bf16_workspace_bytes(Index tokens, Index in, Index workers) {
  return tokens <= 0 ? 0 : Workspace::bytes_for<float>(tokens, in) + matmul_workspace_bytes<bfloat16>(tokens, in, workers);
}

/// y = x̂ Wᵀ + bias, x̂ being x rounded to bfloat16. Pairs need an even number of inputs, floats_as_in_pairs at most a tile of tokens.
inline void bf16_product(const ConstMatrixRef<float>& x, const PackedWeight<bfloat16>& w, const ConstVectorRef<float>& bias,
                         MatrixRef<float> y, Workspace& ws, Bf16Kernel kernel) {
  const bool pairs = kernel == Bf16Kernel::pairs;
  const Workspace::Scope scope(ws);
  const Index tokens = x.rows(), in = x.cols();
  const Index width = pairs ? in / 2 : in;
  float* rounded = ws.take<float>(tokens * width);
  const Index workers = double(tokens) * double(in) < worth_waking ? 1 : (std::min)(ws.workers(), tokens);
  ws.executor()(workers, [&](Index i) {
    const Share own = share(tokens, i, workers);
    for (Index t = own.begin; t < own.end; ++t) {
      const float* from = x.data() + t * x.outerStride();
      float* to = rounded + t * width;
      if (pairs) {
        for (Index k = 0; k < width; ++k)
          to[k] = bits_as<float>(rounded_to_bfloat16(from[2 * k]) | rounded_to_bfloat16(from[2 * k + 1]) >> 16);
      } else {
        for (Index k = 0; k < width; ++k) to[k] = bits_as<float>(rounded_to_bfloat16(from[k]));
      }
    }
  });
  const ConstMatrixRef<float> narrow(rounded, tokens, width);
#if defined(__AVX512BF16__) && defined(EIGEN_VECTORIZE_AVX512)
  if (pairs) return product(Product<float>{narrow, bias, y}, Bf16Panels{w}, ws);
  if (kernel == Bf16Kernel::floats_as_in_pairs) return product(Product<float>{narrow, bias, y}, Bf16FewTokens{{w}}, ws);
#endif
  matmul(narrow, w, bias, y, ws);
}

}}}  // namespace pith::v0::detail
