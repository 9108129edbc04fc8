#pragma once

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>

namespace pith { inline namespace v0 {

/// The budget in rows for a compression ratio, the share of tokens removed: tokens·(1 - ratio), truncated in double precision, so 1000
/// tokens at .9 leave 99.
inline Index rows_at_compression(Index tokens, double ratio) {
  if (tokens < 0 || !(ratio >= 0 && ratio <= 1))
    raise<ShapeError>("pith::rows_at_compression: ", tokens, " tokens at ratio ", ratio, ", expected 0 or more at 0 .. 1");
  return static_cast<Index>(static_cast<double>(tokens) * (1 - ratio));
}

}}  // namespace pith::v0
