#pragma once

namespace pith { inline namespace v0 {

/// Where the projections of a checkpoint live after loading.
enum class WeightsLayout {
  packed,  ///< panels in the file's own width, in memory; the file is released. The layout to decode from
  int8,    ///< projections and head rounded to bytes with a scale for each output (Int8Linear); float decoders only
  mapped,  ///< the file itself, paged in when used: loads at once, shared between processes. The same bits, slower in 16 bit
};

}}  // namespace pith::v0
