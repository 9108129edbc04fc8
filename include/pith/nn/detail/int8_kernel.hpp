#pragma once
// Panels of 8-bit weights as the kernels of floats and of integers read them.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <pith/core/detail/integer_lanes.hpp>
#include <pith/core/detail/processor.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/view.hpp>
#include <pith/nn/detail/activation_blocks.hpp>
#include <pith/nn/detail/integer_kernel.hpp>
#include <pith/nn/detail/matmul_kernel.hpp>
#include <pith/nn/detail/panel_kernel.hpp>
#include <pith/nn/packed.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Panels of codes; finish() scales their sums to outputs.
struct Int8Panels : PackedPanels<std::int8_t> {
  const float* scales;
  const float* bias;  // nullptr: none

  void finish(const Product<float>& o, Share panels) const {
    using V = Simd<float>;
    const Index column = panels.begin * panel_width, n = (std::min)(panels.end * panel_width, o.out) - column;
    for (Index t = 0; t < o.tokens; ++t) {
      float* y = o.y + t * o.y_stride + column;
      map_packets(y, scales + column, y, n, [](V::Packet sum, V::Packet scale) { return V::mul(sum, scale); });
      if (bias != nullptr) map_packets(y, bias + column, y, n, [](V::Packet scaled, V::Packet b) { return V::add(scaled, b); });
    }
  }
};

/// The rows of 8-bit panels by blocks of activations; each output has one scale.
struct Int8Source {
  struct Record {
    static constexpr bool has_header = false;
    static constexpr Index slice_bytes = 8 * panel_width;

    template <class L> struct Slice {
      const std::int8_t* codes;
      typename L::Part part(int p, int r) const {
        const std::int8_t* even = codes + 2 * p * panel_width + r * L::width;
        return L::pairs(even, even + panel_width);
      }
    };

    const std::int8_t* data;
    Index inputs;

    Index slices() const { return (inputs + 7) / 8; }  // inputs beyond the last meet activations of 0
    const char* codes() const { return reinterpret_cast<const char*>(data); }
    template <class L> static Slice<L> slice(const char* codes, Index b, int first) {
      return {reinterpret_cast<const std::int8_t*>(codes) + b * slice_bytes + first * L::width};
    }
    template <class L> auto scaling(int) const {
      return [](const auto& sum, const BlockFacts& facts, const auto& y) { return L::fma(sum, L::broadcast(facts.step), y); };
    }
  };

  const PackedWeight<std::int8_t>& panels_of_codes;
  const float* scales;

  Index in() const { return panels_of_codes.in(); }
  Index out() const { return panels_of_codes.out(); }
  Index size() const { return (std::min)(longest_block, (std::max)(Index(1), (in() + 7) / 8) * 8); }
  Index blocks() const { return (in() + size() - 1) / size(); }
  Index panels() const { return panels_of_codes.panels(); }
  Index record_bytes() const { return size() * panel_width; }
  Index panel_bytes() const { return in() * panel_width; }
  bool alone() const { return true; }
  Index distance() const { return processor.few_lines ? 2 * fetched_ahead : fetched_ahead + 512; }
  std::int32_t zero() const { return 128; }
  const std::int32_t* order() const { return nullptr; }
  Record record(Index p, Index g) const { return {panels_of_codes.panel(p) + g * record_bytes(), (std::min)(size(), in() - g * size())}; }

  /// Writes the outputs of a panel: a multiply-add of sum, scale and bias each.
  template <class L> void write(Index p, float* sums, const ConstVectorRef<float>& bias, MatrixRef<float> y) const {
    const Index column = p * panel_width, n = (std::min)(panel_width, y.cols() - column);
    float scale[std::size_t(panel_width)] = {}, offset[std::size_t(panel_width)] = {};
    std::copy_n(scales + column, n, scale);
    if (bias.size() != 0) std::copy_n(bias.data() + column, n, offset);
    for (Index t = 0; t < y.rows(); ++t, sums += panel_width) {
      for (Index o = 0; o < panel_width; o += L::width)
        L::store(sums + o, L::fma(L::load(sums + o), L::load(scale + o), L::load(offset + o)));
      std::copy_n(sums, n, y.data() + t * y.outerStride() + column);
    }
  }
};

template <class L>
using Int8Product = IntegerProduct<Int8Source, std::conditional_t<L::tile_registers * L::width == panel_width, L, WholeRows<L>>, L>;

}}}  // namespace pith::v0::detail
