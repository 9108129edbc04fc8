#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/detail/module_tensors.hpp>
#include <pith/io/stored_module.hpp>

// Weights that a folder stores as codes.
namespace pith { inline namespace v0 { namespace detail {

class GroupCodes;

/// A weight [out, in] that a folder stores as codes and scales. Types and shapes have been checked; only small tensors have been read.
/// Const members may be called by several threads.
class CodedWeight {
 public:
  using Place = ModuleTensors::Place;

  CodedWeight(const ModuleTensors& tensors, StoredModule stored)
      : out_(tensors.out()), in_(tensors.in()), stored_(std::move(stored)), tensors_(tensors.taken()) {
    stored_.name = tensors.module();
    stored_.out = out_;
    stored_.in = in_;
  }
  virtual ~CodedWeight() = default;
  CodedWeight(const CodedWeight&) = delete;
  CodedWeight& operator=(const CodedWeight&) = delete;

  Index out() const { return out_; }
  Index in() const { return in_; }
  const StoredModule& stored() const { return stored_; }
  /// Its tensors; the first holds the codes.
  std::span<const Place> tensors() const { return tensors_; }

  /// Rows [first, first + n) in float, exactly as the format defines them.
  ///
  /// Shapes   to [n, in]
  virtual void rows(Index first, Index n, float* to) const = 0;

  /// The weight as whole numbers with scales; nullptr: it is none.
  virtual const GroupCodes* group_codes() const { return nullptr; }

 private:
  Index out_, in_;
  StoredModule stored_;
  std::vector<Place> tensors_;
};

/// Whole numbers of 4 or 8 bits: w[o, k] = (code[o, k] - zero[o, g]) scale[o, g], where g is the group of input k. The difference has at
/// most 9 bits, so it and its product with a scale of 16 bits are exact in float.
class GroupCodes : public CodedWeight {
 public:
  /// Codes as they lie in the panels: from 0, also where the file's have a sign.
  ///
  /// Shapes   to [n, in]
  virtual void codes(Index first, Index n, std::uint8_t* to) const = 0;
  /// Shapes   to [n, groups()]
  virtual void zeros(Index first, Index n, std::uint8_t* to) const = 0;
  virtual void scales(Index first, Index n, float* to) const = 0;
  /// The type of the scales in the file.
  virtual DType scale_type() const = 0;

  Index bits() const { return stored().bits; }
  Index group() const { return stored().group; }  ///< inputs of a group; the last may have fewer
  Index groups() const { return ceil_div(in(), group()); }
  /// The group of each input; empty: k / group().
  std::span<const Index> group_of() const { return group_of_; }
  /// The code of zero in a symmetric weight.
  std::uint8_t middle() const { return bits() == 4 ? 8 : 128; }

  const GroupCodes* group_codes() const override { return this; }

  void rows(Index first, Index n, float* to) const override {
    const auto count = static_cast<std::size_t>(n);
    const auto width = static_cast<std::size_t>(in()), number = static_cast<std::size_t>(groups());
    std::vector<std::uint8_t> code(count * width);
    std::vector<std::uint8_t> zero(count * number);
    std::vector<float> scale(count * number);
    codes(first, n, code.data());
    zeros(first, n, zero.data());
    scales(first, n, scale.data());
    for (std::size_t r = 0; r < count; ++r)
      for (std::size_t k = 0; k < width; ++k) {
        const std::size_t g =
            r * number + (group_of_.empty() ? k / static_cast<std::size_t>(group()) : static_cast<std::size_t>(group_of_[k]));
        to[r * width + k] = static_cast<float>(code[r * width + k] - zero[g]) * scale[g];
      }
  }

 protected:
  GroupCodes(const ModuleTensors& tensors, StoredModule stored, std::vector<Index> group_of = {})
      : CodedWeight(tensors, std::move(stored)), group_of_(std::move(group_of)) {}

 private:
  std::vector<Index> group_of_;
};

/// Reads and checks a g_idx: empty if it only says k / group.
inline std::vector<Index> read_group_of(const ModuleTensors::Place& place, Index in, Index group) {
  const Index groups = ceil_div(in, group);
  std::vector<Index> out(static_cast<std::size_t>(in));
  bool plain = true;
  for (Index k = 0; k < in; ++k) {
    const auto g = static_cast<std::int32_t>(word_at(place.bytes().data(), k));
    if (g < 0 || g >= groups)
      ModuleTensors::refuse(place, text("sends input ", k, " to group ", g, ", expected one from 0 to ", groups - 1));
    out[static_cast<std::size_t>(k)] = g;
    plain = plain && g == k / group;
  }
  if (plain) out.clear();
  return out;
}

}}}  // namespace pith::v0::detail
