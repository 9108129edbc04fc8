#pragma once
// Panels of 4-bit weights as the kernel of integers reads them.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <pith/core/integer_lanes.hpp>
#include <pith/core/processor.hpp>
#include <pith/core/view.hpp>
#include <pith/nn/detail/activation_blocks.hpp>
#include <pith/nn/detail/int4_panels.hpp>
#include <pith/nn/detail/integer_kernel.hpp>
#include <pith/nn/matmul.hpp>
#include <pith/nn/packed.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// The groups of 4-bit panels, one for each block of activations.
struct Int4Source {
  struct Record : Int4Record {
    static constexpr bool has_header = true;
    static constexpr Index slice_bytes = 4 * panel_width;  // eight inputs

    template <class L> struct Slice {
      typename L::Words words[std::size_t(L::tile_registers)];
      typename L::Part part(int p, int r) const { return L::unpack(words[r], p); }
    };

    Index slices() const { return shape.group / 8; }
    const char* codes() const { return reinterpret_cast<const char*>(words()); }
    template <class L> static Slice<L> slice(const char* codes, Index b, int first) {
      Slice<L> out;
#pragma GCC unroll 16
      for (int r = 0; r < L::tile_registers; ++r)
        out.words[r] = L::words(reinterpret_cast<const std::uint32_t*>(codes) + b * panel_width + (first + r) * L::width);
      return out;
    }
    /// What adds sums of integers to y, for some outputs.
    template <class L> auto scaling(int column) const {
      const auto scale = shape.half_scales ? L::widen_half(scales() + column) : L::widen_bfloat16(scales() + column);
      return [this, column, scale](auto sum, const BlockFacts& facts, const auto& y) {
        if (shape.zeros) sum = L::fma(L::widen_half(zeros() + column), L::broadcast(-facts.sum), sum);
        return L::fma(sum, L::times(scale, L::broadcast(facts.step)), y);
      };
    }
  };

  const Int4Shape& shape;
  const std::byte* records;
  const std::int32_t* places;  // the input at each place; nullptr: as they come

  Index in() const { return shape.in; }
  Index out() const { return shape.out; }
  Index size() const { return shape.group; }
  Index blocks() const { return shape.groups(); }
  Index panels() const { return shape.panels(); }
  Index record_bytes() const { return shape.record_bytes(); }
  Index panel_bytes() const { return blocks() * record_bytes(); }
  bool alone() const { return std::size_t(record_bytes()) > processor.long_record; }
  Index distance() const { return alone() ? 4 * fetched_ahead : fetched_ahead; }
  std::int32_t zero() const { return shape.zeros ? 0 : 8; }
  const std::int32_t* order() const { return places; }
  Record record(Index p, Index g) const { return {{shape, records + (p * blocks() + g) * record_bytes()}}; }

  /// Writes the outputs of a panel, with the bias.
  template <class L> void write(Index p, const float* sums, const ConstVectorRef<float>& bias, MatrixRef<float> y) const {
    const Index column = p * panel_width, n = (std::min)(panel_width, y.cols() - column);
    for (Index t = 0; t < y.rows(); ++t, sums += panel_width) {
      float* to = y.data() + t * y.outerStride() + column;
      if (bias.size() == 0) {
        std::copy_n(sums, n, to);
      } else {
        for (Index o = 0; o < n; ++o) to[o] = sums[o] + bias[column + o];
      }
    }
  }
};

template <class Few, class Many> using Int4Product = IntegerProduct<Int4Source, Few, Many>;

}}}  // namespace pith::v0::detail
