#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/vision/image.hpp>

// The sizes that images are scaled to, and the tiles they are cut into. Quotients are doubles, cut to whole pixels as the models' own
// code cuts them.
namespace pith { inline namespace v0 { namespace detail {

inline double quotient(Index a, Index b) { return static_cast<double>(a) / static_cast<double>(b); }
inline Index whole_part(double x) { return static_cast<Index>(x); }

/// The shorter side becomes `edge`.
inline ImageSize shortest_edge_size(const ImageSize& image, Index edge) {
  const auto longer = [&](Index side, Index other) {
    return whole_part(quotient((std::min)(edge * side, max_image_pixels * (std::max)(edge, other)), other));
  };
  return image.height <= image.width ? ImageSize{edge, longer(image.width, image.height)}
                                     : ImageSize{longer(image.height, image.width), edge};
}

/// The sizes between which SmolVLM and Idefics 3 cut tiles: the longer side becomes `edge`, the other an even number; then both sides
/// become multiples of a tile.
struct SplitSizes {
  ImageSize first, second;
};
inline SplitSizes split_sizes(const ImageSize& image, Index edge, Index tile) {
  constexpr Index most = 4096;
  const auto with_longer = [](const ImageSize& size, Index longer, auto&& other_side) {
    const double aspect = quotient(size.width, size.height);
    return size.width >= size.height ? ImageSize{other_side(whole_part(static_cast<double>(longer) / aspect)), longer}
                                     : ImageSize{longer, other_side(whole_part(static_cast<double>(longer) * aspect))};
  };
  const auto longer_side = [](const ImageSize& size) { return (std::max)(size.height, size.width); };
  const auto tiles = [tile](Index side) { return (side + tile - 1) / tile * tile; };
  SplitSizes out;
  out.first = with_longer(image, edge, [](Index side) { return (std::max)(side + side % 2, Index(1)); });
  if (longer_side(out.first) > most) out.first = with_longer(out.first, most, [](Index side) { return (std::max)(side, Index(1)); });
  out.second = with_longer(out.first, tiles(longer_side(out.first)), [&](Index side) { return tiles((std::max)(side, Index(1))); });
  return out;
}

/// The size of LLaVA-OneVision's list that keeps most of an image's pixels, and of those the one that wastes fewest; the first of equals.
inline ImageSize best_pinpoint(const ImageSize& image, std::span<const ImageSize> sizes) {
  ImageSize best = sizes.front();
  Index most = -1, least_waste = 0;
  for (const ImageSize& size : sizes) {
    const double scale = (std::min)(quotient(size.width, image.width), quotient(size.height, image.height));
    const auto scaled = [scale](Index side) { return whole_part(static_cast<double>(side) * scale); };
    const Index used = (std::min)(scaled(image.width) * scaled(image.height), image.height * image.width);
    const Index waste = size.height * size.width - used;
    if (used < most || (used == most && waste >= least_waste)) continue;
    best = size, most = used, least_waste = waste;
  }
  return best;
}

/// The largest size of an image's aspect within another size.
inline ImageSize fitted_size(const ImageSize& image, const ImageSize& within) {
  const double across = quotient(within.width, image.width), down = quotient(within.height, image.height);
  const auto scaled = [](Index side, double scale, Index most) {
    return std::clamp(static_cast<Index>(std::ceil(static_cast<double>(side) * scale)), Index(1), most);
  };
  return across < down ? ImageSize{scaled(image.height, across, within.height), within.width}
                       : ImageSize{within.height, scaled(image.width, down, within.width)};
}

/// The number of parts along the longer side that Gemma 3 looks at; 0: the image alone.
inline Index pan_crops(const ImageSize& image, Index min_crop, Index max_crops, double min_ratio) {
  const Index longer = (std::max)(image.height, image.width), shorter = (std::min)(image.height, image.width);
  const double ratio = quotient(longer, shorter);
  if (ratio < min_ratio) return 0;
  const Index wanted = (std::min)(longer / min_crop, whole_part(std::floor(ratio + .5)));
  const Index crops = (std::min)((std::max)(wanted, Index(2)), max_crops);
  const Index side = (longer + crops - 1) / crops;
  return (std::min)(side, shorter) < min_crop ? 0 : crops;
}

}}}  // namespace pith::v0::detail
