#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/detail/coded_weight.hpp>
#include <pith/io/detail/module_tensors.hpp>
#include <pith/io/detail/quantisation.hpp>

// Codes in words of 32 bits: AWQ and GPTQ.
namespace pith { inline namespace v0 { namespace detail {

/// The types of scales beside codes.
inline constexpr std::initializer_list<DType> scale_types{DType::f16, DType::bf16, DType::f32};

/// Eight codes of four bits, or four of eight, as bytes, the least significant first.
inline std::uint64_t spread_nibbles(std::uint32_t word) {
  std::uint64_t x = word;
  x = (x | x << 16) & 0x0000ffff0000ffff;
  x = (x | x << 8) & 0x00ff00ff00ff00ff;
  return (x | x << 4) & 0x0f0f0f0f0f0f0f0f;
}
inline void spread_word(std::uint32_t word, Index bits, std::uint8_t* to) {
  if (bits == 4) {
    const std::uint64_t bytes = spread_nibbles(word);
    std::memcpy(to, &bytes, sizeof bytes);
  } else {
    std::memcpy(to, &word, sizeof word);
  }
}

/// Codes whose scales lie as [groups, out].
class TransposedScales : public GroupCodes {
 public:
  DType scale_type() const override { return scales_.tensor->dtype; }
  void scales(Index first, Index n, float* to) const override {
    std::vector<float> column(static_cast<std::size_t>(n));
    for (Index g = 0; g < groups(); ++g) {
      copy_scales(scales_, g * out() + first, n, column.data());
      for (Index r = 0; r < n; ++r) to[r * groups() + g] = column[static_cast<std::size_t>(r)];
    }
  }

 protected:
  TransposedScales(const ModuleTensors& tensors, StoredModule stored, std::vector<Index> group_of, Place scales)
      : GroupCodes(tensors, std::move(stored), std::move(group_of)), scales_(scales) {}

 private:
  Place scales_;
};

/// AWQ's `gemm` layout: a word holds eight outputs of one input, in an order of its own.
///
///     w[o, k] = (nibble(qweight[k, o / 8], n) - nibble(qzeros[k / g, o / 8], n)) scales[k / g, o]    n = order[o % 8]
class AwqWeight final : public TransposedScales {
 public:
  static std::unique_ptr<const CodedWeight> read(ModuleTensors& tensors, const Quantisation& how) {
    const Index in = tensors.in(), out = tensors.out(), group = how.group < 0 ? in : how.group;
    const Place codes = tensors.any_shape(".qweight", {DType::i32});
    if (out % 8 != 0) ModuleTensors::refuse(codes, text("has ", out, " outputs by the config, expected a multiple of 8"));
    if (in % group != 0)
      ModuleTensors::refuse(codes, text("has ", in, " inputs by the config, expected a multiple of the group_size, ", group));
    if (codes.tensor->shape != std::vector<Index>{in, out / 8}) ModuleTensors::refuse_shape(codes, {in, out / 8});
    const Place zeros = tensors.take(".qzeros", {DType::i32}, {in / group, out / 8});
    const Place scales = tensors.take(".scales", scale_types, {in / group, out});
    return std::unique_ptr<const CodedWeight>(new AwqWeight(tensors, group, codes, zeros, scales));
  }

  void codes(Index first, Index n, std::uint8_t* to) const override {
    constexpr Index together = 64;  // inputs of a word's column that are unpacked at a time
    std::uint32_t words[together];
    for (Index column = first / 8; column * 8 < first + n; ++column)
      for (Index k0 = 0; k0 < in(); k0 += together) {
        const Index m = (std::min)(together, in() - k0);
        for (Index k = 0; k < m; ++k) words[k] = word_at(codes_.bytes().data(), (k0 + k) * (out() / 8) + column);
        for (Index o = (std::max)(first, column * 8); o < (std::min)(first + n, column * 8 + 8); ++o) {
          std::uint8_t* row = to + (o - first) * in() + k0;
          const int shift = 4 * order[o % 8];
          for (Index k = 0; k < m; ++k) row[k] = static_cast<std::uint8_t>(words[k] >> shift & 15);
        }
      }
  }

  void zeros(Index first, Index n, std::uint8_t* to) const override {
    for (Index g = 0; g < groups(); ++g)
      for (Index o = first; o < first + n; ++o)
        to[(o - first) * groups() + g] =
            static_cast<std::uint8_t>(word_at(zeros_.bytes().data(), g * (out() / 8) + o / 8) >> 4 * order[o % 8] & 15);
  }

 private:
  static constexpr int order[8] = {0, 4, 1, 5, 2, 6, 3, 7};

  AwqWeight(const ModuleTensors& tensors, Index group, Place codes, Place zeros, Place scales)
      : TransposedScales(tensors, {.format = "awq", .bits = 4, .group = group, .zeros = true}, {}, scales), codes_(codes), zeros_(zeros) {}

  Place codes_, zeros_;
};

/// GPTQ: a word holds neighbouring inputs of one output.
///
///     w[o, k] = (part(qweight[k b / 32, o], k) - zero[g, o]) scales[g, o]    g = g_idx[k]
///     zero[g, o] = part(qzeros[g, o b / 32], o), and one more, within its bits, in the first format
class GptqWeight final : public TransposedScales {
 public:
  static std::unique_ptr<const CodedWeight> read(ModuleTensors& tensors, const Quantisation& how, std::size_t& steps) {
    const Index in = tensors.in(), out = tensors.out();
    const GptqOverride* other = how.override_of(tensors.module(), steps);
    const Index bits = other != nullptr && other->bits ? *other->bits : how.bits, each = 32 / bits;
    const Index said = other != nullptr && other->group ? *other->group : how.group, group = said < 0 ? in : (std::min)(said, in);
    const Place codes = tensors.any_shape(".qweight", {DType::i32});
    if (other != nullptr && other->skip) ModuleTensors::refuse(codes, "has codes, but `dynamic` leaves its module in float");
    if (in % each != 0 || out % each != 0)
      ModuleTensors::refuse(codes, text("is of [", out, ", ", in, "] by the config, expected multiples of ", each, " for ", bits, " bits"));
    if (codes.tensor->shape != std::vector<Index>{in / each, out}) ModuleTensors::refuse_shape(codes, {in / each, out});
    const Index groups = ceil_div(in, group);
    const Place zeros = tensors.take(".qzeros", {DType::i32}, {groups, out / each});
    const Place scales = tensors.take(".scales", scale_types, {groups, out});
    std::vector<Index> group_of;
    if (tensors.has(".g_idx"))
      group_of = read_group_of(tensors.take(".g_idx", {DType::i32}, {in}), in, group);
    else if (how.act_order)
      ModuleTensors::refuse(codes, text("has no ", in_quotes(tensors.module() + ".g_idx"), " beside it, which desc_act promises"));
    const StoredModule stored{
        .format = how.zeros_minus_one ? "gptq" : "gptq_v2", .bits = bits, .group = group, .zeros = true, .act_order = !group_of.empty()};
    return std::unique_ptr<const CodedWeight>(
        new GptqWeight(tensors, stored, std::move(group_of), how.zeros_minus_one, codes, zeros, scales));
  }

  void codes(Index first, Index n, std::uint8_t* to) const override {
    const Index each = 32 / bits();
    for (Index word = 0; word * each < in(); ++word)
      for (Index r = 0; r < n; ++r)
        spread_word(word_at(codes_.bytes().data(), word * out() + first + r), bits(), to + r * in() + word * each);
  }

  void zeros(Index first, Index n, std::uint8_t* to) const override {
    const Index each = 32 / bits();
    const std::uint32_t most = (1u << bits()) - 1, more = minus_one_ ? 1 : 0;
    for (Index g = 0; g < groups(); ++g)
      for (Index o = first; o < first + n; ++o) {
        const std::uint32_t stored = word_at(zeros_.bytes().data(), g * (out() / each) + o / each) >> (o % each * bits()) & most;
        to[(o - first) * groups() + g] = static_cast<std::uint8_t>((stored + more) & most);
      }
  }

 private:
  GptqWeight(const ModuleTensors& tensors, const StoredModule& stored, std::vector<Index> group_of, bool minus_one, Place codes,
             Place zeros, Place scales)
      : TransposedScales(tensors, stored, std::move(group_of), scales), codes_(codes), zeros_(zeros), minus_one_(minus_one) {}

  Place codes_, zeros_;
  bool minus_one_;
};

}}}  // namespace pith::v0::detail
