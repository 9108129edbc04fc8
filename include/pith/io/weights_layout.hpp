#pragma once

#include <pith/nn/compute.hpp>

namespace pith { inline namespace v0 {

/// How the projections of a checkpoint are stored after loading.
enum class WeightsLayout {
  packed,  ///< panels in the file's own width, in memory; the file is released. Recommended for decoding
  int8,    ///< projections and head rounded to bytes with one scale per output (Int8Linear); float decoders only
  int4,    ///< projections rounded to four bits with one scale per 32 inputs (Int4Linear), the head to bytes; float decoders only
  mapped,  ///< the file itself, paged in when used: loads at once, shared between processes. Same bits, slower in 16 bit
};

namespace detail {
/// How weights are rounded in loading: "" where they are not.
constexpr const char* rounding_name(WeightsLayout layout) {
  return layout == WeightsLayout::int8 ? "int8" : layout == WeightsLayout::int4 ? "int4" : "";
}
/// How layers round what they multiply, added to that name.
constexpr const char* compute_name(Compute compute) {
  return compute == Compute::bf16 ? "+bf16" : compute == Compute::int15 ? "+int15" : "";
}
}  // namespace detail

}}  // namespace pith::v0
