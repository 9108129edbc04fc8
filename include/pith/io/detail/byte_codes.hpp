#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/detail/coded_weight.hpp>
#include <pith/io/detail/module_tensors.hpp>
#include <pith/io/detail/quantisation.hpp>
#include <pith/io/detail/word_codes.hpp>

// Codes in rows of a matrix: compressed-tensors, and the bytes of bitsandbytes.
namespace pith { inline namespace v0 { namespace detail {

/// The outputs and inputs that share a scale by a rule, checked against the shape of the scales.
struct ScaleGrid {
  Index rows = 1, cols = 1;

  Index down(Index out) const { return ceil_div(out, rows); }
  Index across(Index in) const { return ceil_div(in, cols); }
};

/// A rule's scales: `weight_scale` [out, groups], a grid of blocks, or one number.
inline std::pair<ScaleGrid, ModuleTensors::Place> take_scales(ModuleTensors& tensors, const CodeRule& rule) {
  const Index out = tensors.out(), in = tensors.in();
  const std::string_view end = ".weight_scale";
  switch (rule.strategy) {
    case ScaleStrategy::tensor:
      return {{out, in}, tensors.take(end, scale_types, {std::vector<Index>{1}, std::vector<Index>{}, std::vector<Index>{1, 1}})};
    case ScaleStrategy::channel:
      return {{1, in}, tensors.take(end, scale_types, {std::vector<Index>{out, 1}, std::vector<Index>{out}})};
    case ScaleStrategy::group: {
      if (in % rule.group != 0)
        raise<FormatError>("pith: module ", in_quotes(tensors.module()), " has ", in, " inputs, expected a multiple of its group_size, ",
                           rule.group);
      return {{1, rule.group}, tensors.take(end, scale_types, {out, in / rule.group})};
    }
    case ScaleStrategy::block:
      break;
  }
  return {{rule.block_rows, rule.block_cols},
          tensors.take(end, scale_types, {ceil_div(out, rule.block_rows), ceil_div(in, rule.block_cols)})};
}

/// Whole numbers of compressed-tensors, in bytes or packed in words along the inputs.
///
///     w[o, k] = (q - z[o, g]) weight_scale[o, g]    g = weight_g_idx[k], else k / group_size
///     q = weight[o, k], or b bits of weight_packed's row o from bit b k on, minus 2^(b - 1)
///     z = weight_zero_point[o, g]; packed along the outputs, minus 2^(b - 1); 0 without that tensor
class CompressedWeight final : public GroupCodes {
 public:
  static std::unique_ptr<const CodedWeight> read(ModuleTensors& tensors, const CodeRule& rule) {
    const Index in = tensors.in(), out = tensors.out(), bits = rule.packed ? rule.bits : 8;
    const Place codes = rule.packed ? tensors.take(".weight_packed", {DType::i32}, {out, ceil_div(in * bits, 32)})
                                    : tensors.take(".weight", {DType::i8}, {out, in});
    if (rule.strategy == ScaleStrategy::block)
      raise<UnsupportedError>("pith: module ", in_quotes(tensors.module()), " has whole numbers in blocks, which is not supported");
    const auto [grid, scales] = take_scales(tensors, rule);
    check_shape_tensor(tensors);
    const Index groups = grid.across(in);
    std::vector<Index> group_of;
    if (const Place index = tensors.find(".weight_g_idx"); index && !says_none(index))
      group_of = read_group_of(tensors.take(".weight_g_idx", {DType::i32}, {in}), in, grid.cols);
    else if (index)
      tensors.any_shape(".weight_g_idx", {DType::i32});
    std::optional<Place> zeros;
    if (tensors.has(".weight_zero_point")) {
      const Index rows = grid.down(out);
      if (rule.packed)
        zeros = tensors.take(".weight_zero_point", {DType::i32}, {ceil_div(rows * bits, 32), groups});
      else
        zeros = tensors.take(".weight_zero_point", {DType::i8}, {scales.tensor->shape, std::vector<Index>{rows, groups}});
    }
    const StoredModule stored{.format = rule.packed ? "pack-quantized" : "int-quantized",
                              .bits = bits,
                              .group = grid.cols,
                              .group_rows = grid.rows,
                              .zeros = zeros.has_value(),
                              .act_order = !group_of.empty()};
    return std::unique_ptr<const CodedWeight>(
        new CompressedWeight(tensors, stored, std::move(group_of), codes, scales, zeros.value_or(Place{}), rule.packed));
  }

  DType scale_type() const override { return scales_.tensor->dtype; }
  void codes(Index first, Index n, std::uint8_t* to) const override {
    const std::byte* from = codes_.bytes().data();
    if (!packed_) {
      for (Index i = 0; i < n * in(); ++i) to[i] = std::to_integer<std::uint8_t>(from[first * in() + i] ^ std::byte{0x80});
      return;
    }
    const Index each = 32 / bits(), words = ceil_div(in(), each);
    for (Index r = 0; r < n; ++r) {
      const Index row = (first + r) * words;
      std::uint8_t* const end = to + r * in();
      for (Index w = 0; w < in() / each; ++w) spread_word(word_at(from, row + w), bits(), end + w * each);
      std::uint8_t last[8];
      if (in() % each == 0) continue;
      spread_word(word_at(from, row + words - 1), bits(), last);
      std::copy_n(last, in() % each, end + in() / each * each);
    }
  }
  void zeros(Index first, Index n, std::uint8_t* to) const override {
    std::fill_n(to, n * groups(), middle());
    if (!zeros_) return;
    const std::byte* from = zeros_.bytes().data();
    const Index each = 32 / bits();
    for (Index r = 0; r < n; ++r)
      for (Index g = 0; g < groups(); ++g) {
        const Index o = scale_row(first + r);
        to[r * groups() + g] =
            packed_ ? static_cast<std::uint8_t>(word_at(from, o / each * groups() + g) >> (o % each * bits()) & ((1u << bits()) - 1))
                    : static_cast<std::uint8_t>(128 + static_cast<std::int8_t>(from[o * groups() + g]));
      }
  }
  void scales(Index first, Index n, float* to) const override {
    for (Index r = 0; r < n; ++r) copy_scales(scales_, scale_row(first + r) * groups(), groups(), to + r * groups());
  }

 private:
  CompressedWeight(const ModuleTensors& tensors, const StoredModule& stored, std::vector<Index> group_of, Place codes, Place scales,
                   Place zeros, bool packed)
      : GroupCodes(tensors, stored, std::move(group_of)), codes_(codes), scales_(scales), zeros_(zeros), packed_(packed) {}

  /// A g_idx of -1 means none.
  static bool says_none(const Place& index) {
    return index.tensor->dtype == DType::i32 && index.tensor->elements() > 0 && word_at(index.bytes().data(), 0) == 0xffffffff;
  }

  /// weight_shape holds [out, in]: it alone says where the last word of a row ends.
  static void check_shape_tensor(ModuleTensors& tensors) {
    if (!tensors.has(".weight_shape")) return;
    const Place shape = tensors.take(".weight_shape", {DType::i64, DType::i32}, {2});
    std::int64_t said[2];
    convert_values(shape.tensor->dtype, shape.bytes().data(), 2, said);
    if (said[0] != tensors.out() || said[1] != tensors.in())
      ModuleTensors::refuse(
          shape, text("holds ", said[0], " and ", said[1], ", expected ", tensors.out(), " and ", tensors.in(), " by the config"));
  }

  Index scale_row(Index output) const { return stored().group_rows == 1 ? output : 0; }

  Place codes_, scales_, zeros_;
  bool packed_;
};

/// Bytes of bitsandbytes: w[o, k] = weight[o, k] SCB[o] / 127.
class Int8RowsWeight final : public GroupCodes {
 public:
  static std::unique_ptr<const CodedWeight> read(ModuleTensors& tensors) {
    const Place codes = tensors.take(".weight", {DType::i8}, {tensors.out(), tensors.in()});
    const Place scales = tensors.take(".SCB", {DType::f32}, {std::vector<Index>{tensors.out()}});
    if (tensors.has(".weight_format"))
      if (const Place format = tensors.take(".weight_format", {DType::u8}, {std::vector<Index>{}, std::vector<Index>{1}});
          format.bytes().front() != std::byte{0})
        ModuleTensors::refuse(format, text("is ", std::to_integer<int>(format.bytes().front()), ", expected 0, codes in rows"));
    return std::unique_ptr<const CodedWeight>(new Int8RowsWeight(tensors, codes, scales));
  }

  DType scale_type() const override { return DType::f32; }
  void codes(Index first, Index n, std::uint8_t* to) const override {
    const std::byte* from = codes_.bytes().data() + first * in();
    for (Index i = 0; i < n * in(); ++i) to[i] = std::to_integer<std::uint8_t>(from[i] ^ std::byte{0x80});
  }
  void zeros(Index, Index n, std::uint8_t* to) const override { std::fill_n(to, n, middle()); }
  void scales(Index first, Index n, float* to) const override {
    copy_scales(scales_, first, n, to);
    for (Index r = 0; r < n; ++r) to[r] /= 127;
  }

 private:
  Int8RowsWeight(const ModuleTensors& tensors, Place codes, Place scales)
      : GroupCodes(tensors, {.format = "int8", .bits = 8, .group = tensors.in()}), codes_(codes), scales_(scales) {}

  Place codes_, scales_;
};

}}}  // namespace pith::v0::detail
