#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>

namespace pith { inline namespace v0 {

/// The number of tokens that ToMe merges in each layer.
struct MergeSchedule {
  Index layers = 1;
  Index r = 0;            ///< tokens merged in a layer, on average
  double inflection = 0;  ///< -1: falls from 2r in the first layer to 0 in the last; 0: r in every layer; 1: rises from 0 to 2r

  /// The number of tokens for layer i: ⌊first + i · 2(r - first) / (layers - 1)⌋ with first = ⌊r (1 - inflection)⌋; r for a single layer.
  ///
  /// Throws   ShapeError if layers or r are negative or too large, or the inflection is not in -1 .. 1
  std::vector<Index> steps() const {
    check();
    if (!(inflection >= -1 && inflection <= 1)) raise<ShapeError>("pith::MergeSchedule: inflection ", inflection, ", expected -1 .. 1");
    std::vector<Index> all(static_cast<std::size_t>(layers), r);
    if (layers < 2) return all;
    const double first = std::trunc(static_cast<double>(r) * (1 - inflection));
    const double step = (2 * static_cast<double>(r) - first - first) / static_cast<double>(layers - 1);
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<Index>(first + step * static_cast<double>(i));
    return all;
  }

  /// The listed numbers for the first layers and 0 for the others; `r` and `inflection` are ignored.
  ///
  /// Throws   ShapeError if there are more numbers than layers
  std::vector<Index> steps(std::span<const Index> listed) const {
    check();
    if (static_cast<Index>(listed.size()) > layers)
      raise<ShapeError>("pith::MergeSchedule: ", listed.size(), " numbers for ", layers, " layers");
    std::vector<Index> all(static_cast<std::size_t>(layers), 0);
    std::copy(listed.begin(), listed.end(), all.begin());
    return all;
  }

 private:
  void check() const {
    constexpr Index most = (std::numeric_limits<std::int32_t>::max)();
    if (layers < 0 || layers > most || r < 0 || r > most)
      raise<ShapeError>("pith::MergeSchedule: r ", r, " in ", layers, " layers, expected 0 .. ", most, " of each");
  }
};

}}  // namespace pith::v0
