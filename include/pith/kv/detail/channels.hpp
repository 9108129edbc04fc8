#pragma once

#include <algorithm>

#include <pith/core/types.hpp>

namespace pith { inline namespace v0 { namespace detail {

inline constexpr Index channels_together = 64;
/// f(first, count) for the channels of a head, block by block: sums over rows need room for one block only.
template <class F> void for_channels(Index d, F&& f) {
  for (Index first = 0; first < d; first += channels_together) f(first, (std::min)(channels_together, d - first));
}

}}}  // namespace pith::v0::detail
