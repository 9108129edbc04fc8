#pragma once
// Panels of 4-bit weights as the kernel of integers reads them.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <pith/core/detail/integer_lanes.hpp>
#include <pith/core/detail/processor.hpp>
#include <pith/core/view.hpp>
#include <pith/nn/detail/activation_blocks.hpp>
#include <pith/nn/detail/int4_panels.hpp>
#include <pith/nn/detail/integer_kernel.hpp>
#include <pith/nn/detail/matmul_kernel.hpp>
#include <pith/nn/packed.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// The groups of 4-bit panels, one for each block of activations.
class Int4Source {
 public:
  /// Shapes   places [in], the input at each place; nullptr: as they come
  Int4Source(const Int4Shape& shape, const std::byte* records, const std::int32_t* places)
      : records_(records),
        places_(places),
        in_(shape.in),
        out_(shape.out),
        size_(shape.group),
        blocks_(shape.groups()),
        codes_at_(shape.codes_at()),
        record_bytes_(shape.record_bytes()),
        zeros_(shape.zeros),
        half_scales_(shape.half_scales) {}

  struct Record {
    static constexpr bool has_header = true;
    static constexpr Index slice_bytes = 4 * panel_width;  // eight inputs

    template <class L> struct Slice {
      typename L::Words words[std::size_t(L::tile_registers)];
      typename L::Part part(int p, int r) const { return L::unpack(words[r], p); }
    };

    const Int4Source& weights;
    const std::byte* data;

    Index slices() const { return weights.size_ / 8; }
    const char* codes() const { return reinterpret_cast<const char*>(data + weights.codes_at_); }
    template <class L> static Slice<L> slice(const char* codes, Index b, int first) {
      Slice<L> out;
#pragma GCC unroll 16
      for (int r = 0; r < L::tile_registers; ++r)
        out.words[r] = L::words(reinterpret_cast<const std::uint32_t*>(codes) + b * panel_width + (first + r) * L::width);
      return out;
    }
    /// What adds sums of integers to y, for some outputs.
    template <class L> auto scaling(int column) const {
      const auto* scales = reinterpret_cast<const std::uint16_t*>(data) + column;
      const auto scale = weights.half_scales_ ? L::widen_half(scales) : L::widen_bfloat16(scales);
      return [zeros = weights.zeros_ ? scales + panel_width : nullptr, scale](auto sum, const BlockFacts& facts, const auto& y) {
        if (zeros != nullptr) sum = L::fma(L::widen_half(zeros), L::broadcast(-facts.sum), sum);
        return L::fma(sum, L::times(scale, L::broadcast(facts.step)), y);
      };
    }
  };

  Index in() const { return in_; }
  Index out() const { return out_; }
  Index size() const { return size_; }
  Index blocks() const { return blocks_; }
  Index panels() const { return (out_ + panel_width - 1) / panel_width; }
  Index record_bytes() const { return record_bytes_; }
  Index panel_bytes() const { return blocks_ * record_bytes_; }
  bool alone() const { return std::size_t(record_bytes_) > processor.long_record; }
  Index distance() const { return (processor.few_lines ? 2 : alone() ? 4 : 1) * fetched_ahead; }
  std::int32_t zero() const { return zeros_ ? 0 : 8; }
  const std::int32_t* order() const { return places_; }
  Record record(Index p, Index g) const { return {*this, records_ + (p * blocks_ + g) * record_bytes_}; }

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

 private:
  const std::byte* records_;
  const std::int32_t* places_;
  Index in_, out_, size_, blocks_, codes_at_, record_bytes_;  // a record's place is no division of the shape
  bool zeros_, half_scales_;
};

template <class Few, class Many> using Int4Product = IntegerProduct<Int4Source, Few, Many>;

}}}  // namespace pith::v0::detail
