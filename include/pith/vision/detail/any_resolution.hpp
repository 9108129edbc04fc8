#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <type_traits>
#include <utility>

#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/vision/detail/tile_layout.hpp>
#include <pith/vision/image_recipe.hpp>
#include <pith/vision/image_rows.hpp>

// LLaVA-OneVision: the rows of a whole image, then those of its tiles as one grid without their padding, each line ended by a newline.
namespace pith { inline namespace v0 { namespace detail {

/// The part of a grid that shows the image, in patches, and its size after a scaling.
struct GridPart {
  Index top = 0, left = 0;
  ImageSize size, scaled;
};
inline GridPart any_resolution_part(const ImageTiles& tiles, Index grid, Index most_tiles) {
  const Index rows = tiles.rows * grid, cols = tiles.cols * grid;
  const auto shown = [](Index side, double scale) {  // 7 digits: a product that should be whole is
    return whole_part(std::nearbyint(static_cast<double>(side) * scale * 1e7) / 1e7);
  };
  GridPart out{.size = {rows, cols}, .scaled = {}};
  if (quotient(tiles.picture.width, tiles.picture.height) > quotient(cols, rows)) {
    out.top = (rows - shown(tiles.picture.height, quotient(cols, tiles.picture.width))) / 2;
    out.size.height = rows - 2 * out.top;
  } else {
    out.left = (cols - shown(tiles.picture.width, quotient(rows, tiles.picture.height))) / 2;
    out.size.width = cols - 2 * out.left;
  }
  out.scaled = out.size;
  const double ratio = std::sqrt(quotient(out.size.height * out.size.width, most_tiles * grid * grid));
  if (ratio <= 1.1) return out;
  const auto floor_divided = [ratio](Index side) {
    const double a = static_cast<double>(side);
    return (std::max)(Index(1), static_cast<Index>(std::floor((a - std::fmod(a, ratio)) / ratio + .5)));
  };
  out.scaled = {floor_divided(out.size.height), floor_divided(out.size.width)};
  return out;
}

/// Two neighbouring places of an axis and the weight of the second.
template <class S> struct Between {
  Index low, high;
  S weight;

  Between(Index i, Index from, Index to) {
    const S scale = static_cast<S>(from) / static_cast<S>(to), at = (std::max)((static_cast<S>(i) + S(.5)) * scale - S(.5), S(0));
    low = (std::min)(static_cast<Index>(at), from - 1);
    high = (std::min)(low + 1, from - 1);
    weight = at - static_cast<S>(low);
  }
};

/// The rows of an image from those of its tiles, all of grid x grid patches, the first of the whole image.
///
/// Shapes   all [tiles*grid*grid, features] · newline [features]
template <class S>
ImageRows<S> any_resolution_rows(const ImageTiles& tiles, Index grid, Index most_tiles, std::type_identity_t<ConstMatrixRef<S>> all,
                                 std::type_identity_t<ConstVectorRef<S>> newline) {
  const GridPart part = any_resolution_part(tiles, grid, most_tiles);
  const Index whole = grid * grid, lines = part.scaled.height, width = part.scaled.width + 1;
  ImageRows<S> out;
  out.rows.resize(whole + lines * width, all.cols());
  out.rows.topRows(whole) = all.topRows(whole);
  out.lines.assign(static_cast<std::size_t>(out.rows.rows()), -1);
  out.runs = {{out.rows.rows(), out.rows.rows()}};
  const auto at = [&](Index y, Index x) {
    y += part.top, x += part.left;
    return all.row(whole * (1 + y / grid * tiles.cols + x / grid) + y % grid * grid + x % grid);
  };
  for (Index line = 0; line < lines; ++line) {
    const Index first = whole + line * width;
    const Between<S> y(line, part.size.height, part.scaled.height);
    for (Index column = 0; column < part.scaled.width; ++column) {
      auto to = out.rows.row(first + column);
      if (part.scaled == part.size) {
        to = at(line, column);
        continue;
      }
      const Between<S> x(column, part.size.width, part.scaled.width);
      to = (1 - y.weight) * ((1 - x.weight) * at(y.low, x.low) + x.weight * at(y.low, x.high)) +
           y.weight * ((1 - x.weight) * at(y.high, x.low) + x.weight * at(y.high, x.high));
    }
    out.rows.row(first + width - 1) = newline.transpose();
    std::fill_n(out.lines.begin() + first, width, line);
    out.newlines.push_back(first + width - 1);
  }
  return out;
}

}}}  // namespace pith::v0::detail
