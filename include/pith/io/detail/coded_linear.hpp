#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/executor.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/io/detail/coded_weight.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/weights_layout.hpp>
#include <pith/nn/compute.hpp>
#include <pith/nn/int4.hpp>
#include <pith/nn/int8.hpp>
#include <pith/nn/linear.hpp>
#include <pith/nn/packed.hpp>

// Makes linear layers of codes.
namespace pith { inline namespace v0 { namespace detail {

/// Some rows of a coded weight, as a layer: the codes as they are where panels can hold them, else widened. `compute`: of 8-bit layers.
template <class S> class CodedRows {
 public:
  CodedRows(const CodedWeight& weight, Index first, Index rows, bool check_finite, ExecutorRef executor, Compute compute)
      : weight_(weight), first_(first), rows_(rows), check_finite_(check_finite), executor_(executor), compute_(compute) {}

  AnyLinear<S> linear(WeightsLayout layout, Vector<S> bias) const {
    if constexpr (std::is_same_v<S, float>) {
      if (const GroupCodes* codes = weight_.group_codes()) {
        if (codes->bits() == 8 && codes->groups() == 1 && symmetric(*codes))
          return AnyLinear<S>(Int8Linear(int8(*codes), std::move(bias), compute_));
        if (std::optional<Int4Weight> four = int4(*codes)) return AnyLinear<S>(Int4Linear(*std::move(four), std::move(bias)));
      }
      if (layout == WeightsLayout::int4)
        return AnyLinear<S>(Int4Linear(widened<float, Int4Weight>(Int4Weight::default_group), std::move(bias)));
      if (layout == WeightsLayout::int8) return AnyLinear<S>(Int8Linear(widened<float, Int8Weight>(), std::move(bias), compute_));
    }
    return AnyLinear<S>(PackedLinear<S, S>(widened<S, PackedWeight<S>>(), std::move(bias)));
  }

 private:
  static constexpr Index rows_together = 32;  ///< rows unpacked together; panels ask for no more

  Index together() const { return (std::min)(rows_together, rows_); }

  /// Rows [first, first + n) of these, widened.
  template <class T> Matrix<T> widened_rows(Index first, Index n) const {
    Matrix<float> wide(n, weight_.in());
    weight_.rows(first_ + first, n, wide.data());
    check_values("value", wide.data(), (first_ + first) * weight_.in(), n * weight_.in());
    if constexpr (std::is_same_v<T, float>) return wide;
    return wide.template cast<T>();
  }
  /// A weight of them, and what else its constructor takes before the executor.
  template <class T, class Weight, class... More> Weight widened(More... more) const {
    return Weight(
        rows_, weight_.in(), [&](Index first, Index n) { return widened_rows<T>(first, n); }, more..., executor_);
  }

  Int8Weight int8(const GroupCodes& codes) const {
    Vector<float> scales(rows_);
    codes.scales(first_, rows_, scales.data());
    check_values("scale", scales.data(), first_, rows_);
    return Int8Weight::of_codes(
        rows_, codes.in(),
        [&](Index first, Index n) {
          Matrix<std::int8_t> rows(n, codes.in());
          auto* bytes = reinterpret_cast<std::uint8_t*>(rows.data());
          codes.codes(first_ + first, n, bytes);
          for (Index i = 0; i < rows.size(); ++i) bytes[i] ^= 0x80;  // from 0 … 255 to a sign
          return rows;
        },
        std::move(scales), executor_);
  }

  /// Codes of four bits in panels, if panels can hold their groups and scales.
  std::optional<Int4Weight> int4(const GroupCodes& codes) const {
    if (codes.bits() != 4 || !Int4Weight::holds(codes.in(), codes.group())) return {};
    Int4Groups groups{.size = codes.group(), .zeros = !symmetric(codes)};
    if (!codes.group_of().empty()) {
      std::optional<std::vector<std::int32_t>> order = order_of(codes);
      if (!order) return {};
      groups.order = *std::move(order);
    }
    if (scales_are<half>(codes)) return int4<half>(codes, groups);
    if (scales_are<bfloat16>(codes)) return int4<bfloat16>(codes, groups);
    return {};
  }

  /// As Int4Rows, in memory of its own.
  template <class T> struct OwnRows {
    Matrix<std::uint8_t> codes;
    Matrix<T> scales;
    Matrix<std::uint8_t> zeros;
  };
  template <class T> Int4Weight int4(const GroupCodes& codes, const Int4Groups& groups) const {
    const Index count = codes.groups();
    const auto rows_at = [&](Index first, Index n) {
      OwnRows<T> rows{Matrix<std::uint8_t>(n, codes.in()), Matrix<T>(n, count), Matrix<std::uint8_t>()};
      codes.codes(first_ + first, n, rows.codes.data());
      if (groups.zeros) {
        rows.zeros.resize(n, count);
        codes.zeros(first_ + first, n, rows.zeros.data());
      }
      Matrix<float> scales(n, count);
      codes.scales(first_ + first, n, scales.data());
      check_values("scale", scales.data(), (first_ + first) * count, n * count);
      for (Index i = 0; i < n * count; ++i) rows.scales.data()[i] = static_cast<T>(scales.data()[i]);
      return rows;
    };
    return Int4Weight(rows_, codes.in(), groups, rows_at, executor_);
  }

  /// Whether T holds every scale exactly.
  template <class T> bool scales_are(const GroupCodes& codes) const {
    if (codes.scale_type() != DType::f32) return codes.scale_type() == dtype_of<T>();
    std::vector<float> scales(static_cast<std::size_t>(together() * codes.groups()));
    for (Index first = 0; first < rows_; first += rows_together) {
      const Index n = (std::min)(rows_together, rows_ - first);
      codes.scales(first_ + first, n, scales.data());
      if (!std::all_of(scales.data(), scales.data() + n * codes.groups(),
                       [](float scale) { return widen(static_cast<T>(scale)) == scale || std::isnan(scale); }))
        return false;
    }
    return true;
  }

  /// The inputs sorted by their groups; none if these are not full, as panels need them.
  static std::optional<std::vector<std::int32_t>> order_of(const GroupCodes& codes) {
    std::vector<Index> next(static_cast<std::size_t>(codes.groups()));
    for (std::size_t g = 0; g < next.size(); ++g) next[g] = static_cast<Index>(g) * codes.group();
    std::vector<std::int32_t> order(static_cast<std::size_t>(codes.in()), -1);
    for (Index k = 0; k < codes.in(); ++k) {
      const Index g = codes.group_of()[static_cast<std::size_t>(k)];
      Index& place = next[static_cast<std::size_t>(g)];
      if (place == (std::min)((g + 1) * codes.group(), codes.in())) return {};
      order[static_cast<std::size_t>(place++)] = static_cast<std::int32_t>(k);
    }
    return order;
  }

  /// Whether all zeros are in the middle of the codes.
  bool symmetric(const GroupCodes& codes) const {
    std::vector<std::uint8_t> zeros(static_cast<std::size_t>(together() * codes.groups()));
    for (Index first = 0; first < rows_; first += rows_together) {
      const Index n = (std::min)(rows_together, rows_ - first);
      codes.zeros(first_ + first, n, zeros.data());
      if (!std::all_of(zeros.data(), zeros.data() + n * codes.groups(), [&](std::uint8_t zero) { return zero == codes.middle(); }))
        return false;
    }
    return true;
  }

  /// Refuses numbers that are not finite; `at`: the place of the first of them in the weight.
  void check_values(const char* what, const float* values, Index at, Index n) const {
    if (!check_finite_) return;
    const Index bad = first_non_finite<float>(DType::f32, reinterpret_cast<const std::byte*>(values), n);
    if (bad < 0) return;
    const CodedWeight::Place& codes = weight_.tensors().front();
    raise<FormatError>("pith: ", in_quotes(codes.file->name()), ": tensor ", in_quotes(codes.tensor->name), ": ", what, " ", at + bad,
                       " is NaN or infinite, expected finite weights; set LoadOptions::check_finite to false to load it all the same");
  }

  const CodedWeight& weight_;
  Index first_, rows_;
  bool check_finite_;
  ExecutorRef executor_;
  Compute compute_;
};

}}}  // namespace pith::v0::detail
