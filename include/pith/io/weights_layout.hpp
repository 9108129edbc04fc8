#pragma once

namespace pith { inline namespace v0 {

/// How the projections of a checkpoint are stored after loading.
enum class WeightsLayout {
  packed,  ///< panels in the file's own width, in memory; the file is released. Recommended for decoding
  int8,    ///< projections and head rounded to bytes with one scale per output (Int8Linear); float decoders only
  mapped,  ///< the file itself, paged in when used: loads at once, shared between processes. Same bits, slower in 16 bit
};

}}  // namespace pith::v0
