#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/detail/byte_codes.hpp>
#include <pith/io/detail/coded_weight.hpp>
#include <pith/io/detail/json.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/module_tensors.hpp>
#include <pith/io/detail/quantisation.hpp>

// Codes that stand for fractions: floats of eight bits, and the tables of bitsandbytes.
namespace pith { inline namespace v0 { namespace detail {

/// The values of F8_E4M3: a sign, four bits of exponent, three of mantissa; no infinity, and NaN where all seven are set.
inline constexpr std::array<float, 256> e4m3_values = [] {
  std::array<float, 256> values{};
  for (std::uint32_t code = 0; code < 256; ++code) {
    const std::uint32_t exponent = code >> 3 & 15, mantissa = code & 7;
    float value = static_cast<float>(exponent == 0 ? mantissa : 8 + mantissa) / 512;
    for (std::uint32_t e = 1; e < exponent; ++e) value *= 2;
    if ((code & 0x7f) == 0x7f) value = bits_as<float>(std::uint32_t{0x7fc00000});
    values[code] = code < 128 ? value : -value;
  }
  return values;
}();

/// Floats of eight bits under a grid of scales: w[o, k] = e4m3(weight[o, k]) scale[o / rows, k / cols]. The blocks at the edges are short.
class Fp8Weight final : public CodedWeight {
 public:
  /// fp8: the scale is called weight_scale_inv, and is multiplied.
  static std::unique_ptr<const CodedWeight> read(ModuleTensors& tensors, const Quantisation& how) {
    const Index out = tensors.out(), in = tensors.in();
    const Place codes = tensors.take(".weight", {DType::f8_e4m3}, {out, in});
    const bool whole = how.block_rows == 0;
    const ScaleGrid grid{whole ? out : how.block_rows, whole ? in : how.block_cols};
    const std::initializer_list<DType> types{DType::f32, DType::bf16, DType::f16, DType::f8_e8m0};
    const Place scales =
        whole ? tensors.take(".weight_scale_inv", types, {std::vector<Index>{}, std::vector<Index>{1}, std::vector<Index>{1, 1}})
              : tensors.take(".weight_scale_inv", types, {grid.down(out), grid.across(in)});
    return std::unique_ptr<const CodedWeight>(new Fp8Weight(tensors, "fp8", codes, scales, grid));
  }
  /// float-quantized of compressed-tensors.
  static std::unique_ptr<const CodedWeight> read(ModuleTensors& tensors, const CodeRule& rule) {
    const Place codes = tensors.take(".weight", {DType::f8_e4m3}, {tensors.out(), tensors.in()});
    const auto [grid, scales] = take_scales(tensors, rule);
    return std::unique_ptr<const CodedWeight>(new Fp8Weight(tensors, "float-quantized", codes, scales, grid));
  }

  void rows(Index first, Index n, float* to) const override {
    std::vector<float> scale(static_cast<std::size_t>(grid_.across(in())));
    const std::byte* from = codes_.bytes().data();
    for (Index o = first; o < first + n; ++o) {
      if (o == first || o % grid_.rows == 0) copy_scales(scales_, o / grid_.rows * grid_.across(in()), grid_.across(in()), scale.data());
      for (Index k0 = 0; k0 < in(); k0 += grid_.cols)
        for (Index k = k0; k < (std::min)(in(), k0 + grid_.cols); ++k)
          *to++ = e4m3_values[std::to_integer<std::size_t>(from[o * in() + k])] * scale[static_cast<std::size_t>(k0 / grid_.cols)];
    }
  }

 private:
  Fp8Weight(const ModuleTensors& tensors, const char* format, Place codes, Place scales, ScaleGrid grid)
      : CodedWeight(tensors, {.format = format, .bits = 8, .group = grid.cols, .group_rows = grid.rows}),
        codes_(codes),
        scales_(scales),
        grid_(grid) {}

  Place codes_, scales_;
  ScaleGrid grid_;
};

/// nf4 and fp4 of bitsandbytes: codes of four bits into a table, over the flattened matrix, the high half of a byte first.
///
///     w[o, k] = quant_map[code[i]] a[i / blocksize]    i = o in + k
///     a[j] = absmax[j], or nested_quant_map[absmax[j]] nested_absmax[j / nested_blocksize] + nested_offset
class TableWeight final : public CodedWeight {
 public:
  static constexpr const char* states[] = {".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4"};

  static std::unique_ptr<const CodedWeight> read(ModuleTensors& tensors) {
    const char* state_end = tensors.has(states[0]) ? states[0] : states[1];
    const Index out = tensors.out(), in = tensors.in(), count = out * in;
    Parts parts;
    // FSDP stores the same bytes as another type, to shard them.
    parts.codes = tensors.any_shape(".weight", {DType::u8, DType::i8, DType::bf16, DType::f16, DType::f32});
    if (parts.codes.tensor->bytes() != static_cast<std::size_t>(ceil_div(count, 2)))
      ModuleTensors::refuse(parts.codes, text("holds ", parts.codes.tensor->bytes(), " bytes, expected ", ceil_div(count, 2), " for [", out,
                                              ", ", in, "] by the config"));
    const Place state = tensors.any_shape(state_end, {DType::u8});
    if (state.tensor->bytes() > most_state)
      ModuleTensors::refuse(state, text("has ", state.tensor->bytes(), " bytes, expected at most ", most_state));
    const std::string name = text(state.file->name(), ", tensor ", state.tensor->name);
    const JsonDocument document =
        parse_json({reinterpret_cast<const char*>(state.bytes().data()), state.bytes().size()}, name, {.values = 1024});
    const JsonFields fields(name, document.root());
    const std::string type = fields.string("quant_type");
    if (type != "nf4" && type != "fp4") fields.refuse("quant_type", "'nf4' or 'fp4'");
    const Json* shape = fields.find("shape");
    if (shape == nullptr || !shape->is_array() || shape->size() != 2 || fields.whole("shape", (*shape)[0], 0, largest) != out ||
        fields.whole("shape", (*shape)[1], 0, largest) != in)
      fields.refuse("shape", text("[", out, ", ", in, "] by the config"));
    parts.block = fields.size("blocksize", {}, 1, 1 << 20);
    const Index blocks = ceil_div(count, parts.block);
    copy_table(tensors.take(".weight.quant_map", {DType::f32}, {std::vector<Index>{16}}), parts.table);
    parts.nested = fields.find("nested_offset") != nullptr || tensors.has(".weight.nested_absmax");
    parts.absmax = tensors.take(".weight.absmax", {parts.nested ? DType::u8 : DType::f32}, {std::vector<Index>{blocks}});
    if (parts.nested) {
      parts.nested_block = fields.size("nested_blocksize", {}, 1, 1 << 20);
      parts.offset = static_cast<float>(fields.number("nested_offset"));
      parts.nested_absmax = tensors.take(".weight.nested_absmax", {DType::f32}, {std::vector<Index>{ceil_div(blocks, parts.nested_block)}});
      copy_table(tensors.take(".weight.nested_quant_map", {DType::f32}, {std::vector<Index>{256}}), parts.nested_table);
    }
    return std::unique_ptr<const CodedWeight>(new TableWeight(tensors, type, parts));
  }

  void rows(Index first, Index n, float* to) const override {
    const std::byte* from = parts_.codes.bytes().data();
    const Index end = (first + n) * in();
    for (Index i = first * in(); i < end;) {
      const Index block = i / parts_.block, stop = (std::min)(end, (block + 1) * parts_.block);
      const float largest_of_block = absmax(block);
      for (; i < stop; ++i) {
        const auto byte = std::to_integer<unsigned>(from[i / 2]);
        *to++ = parts_.table[i % 2 == 0 ? byte >> 4 : byte & 15] * largest_of_block;
      }
    }
  }

 private:
  static constexpr std::size_t most_state = 4096;
  static constexpr Index largest = (std::numeric_limits<Token>::max)();

  struct Parts {
    Place codes = {}, absmax = {}, nested_absmax = {};
    std::array<float, 16> table = {};
    std::array<float, 256> nested_table = {};
    Index block = 0, nested_block = 0;
    float offset = 0;
    bool nested = false;
  };

  TableWeight(const ModuleTensors& tensors, const std::string& type, const Parts& parts)
      : CodedWeight(tensors, {.format = type, .bits = 4, .group = parts.block}), parts_(parts) {}

  template <std::size_t N> static void copy_table(const Place& place, std::array<float, N>& to) {
    convert_values(DType::f32, place.bytes().data(), static_cast<Index>(N), to.data());
  }

  float absmax(Index block) const {
    const std::byte* from = parts_.absmax.bytes().data();
    if (!parts_.nested) return load_unaligned<float>(from + block * Index(sizeof(float)));
    const float outer = load_unaligned<float>(parts_.nested_absmax.bytes().data() + block / parts_.nested_block * Index(sizeof(float)));
    // Rounded twice, as the format has it: the product of two floats is exact in double, so no compiler can fuse the roundings.
    const auto product = static_cast<float>(static_cast<double>(parts_.nested_table[std::to_integer<std::size_t>(from[block])]) * outer);
    return product + parts_.offset;
  }

  Parts parts_;
};

}}}  // namespace pith::v0::detail
