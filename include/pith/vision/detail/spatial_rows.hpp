#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <pith/core/types.hpp>
#include <pith/merge/prumerge.hpp>

// PruMerge+ with a number of rows in place of a ratio.
namespace pith { inline namespace v0 { namespace detail {

/// The first of the rows given, by falling attention, and behind them every ⌊⌊patches/k⌋/3⌋-th patch, k the rows that its ratio speaks
/// of: the largest k of which there is room for all, and then as many of the rows given as fill it.
inline std::vector<std::int32_t> with_spatial_rows(const std::vector<std::int32_t>& best, Index patches) {
  const Index room = static_cast<Index>(best.size());
  std::vector<std::int32_t> out(static_cast<std::size_t>(room + patches));
  const auto filled = [&](Index k, double ratio) {
    std::copy_n(best.begin(), k, out.begin());
    return add_spatial_rows(patches, ratio, k, out);
  };
  for (Index k = room; k > 0; --k) {
    const double ratio = 1 / (static_cast<double>(patches / k) + .5);  // its inverse is floored
    if (3 * k > patches || filled(k, ratio) > room) continue;
    Index count = k;
    while (count < room && filled(count + 1, ratio) <= room) ++count;
    out.resize(static_cast<std::size_t>(filled(count, ratio)));
    return out;
  }
  return best;  // no room for rows at equal distances
}

}}}  // namespace pith::v0::detail
