#pragma once
// Splits the channels of a head into blocks, so that scores that need sums over rows use little memory.

#include <algorithm>

#include <pith/core/types.hpp>

namespace pith { inline namespace v0 { namespace detail {

inline constexpr Index channels_together = 64;  ///< channels per block of for_channels()

/// Calls f(first, count) for blocks of the channels of a head: sums over rows then need memory for one block only.
template <class F> void for_channels(Index d, F&& f) {
  for (Index first = 0; first < d; first += channels_together) f(first, (std::min)(channels_together, d - first));
}

}}}  // namespace pith::v0::detail
