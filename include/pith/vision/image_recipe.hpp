#pragma once
// Image preprocessing: resize, tile and normalise, as preprocessor_config.json says. load_vision() reads the rules.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/vision/detail/tile_layout.hpp>
#include <pith/vision/image.hpp>
#include <pith/vision/resize.hpp>

namespace pith { inline namespace v0 {

/// How an image becomes tiles of one size.
enum class TileRule : std::uint8_t {
  whole,      ///< one tile: LLaVA 1.5, PaliGemma
  split,      ///< rows and columns of tiles, then the whole image: SmolVLM, Idefics 3
  pinpoints,  ///< the whole image, then tiles of the best size of a list: LLaVA-OneVision
  pan,        ///< the whole image, then crops of a long one: Gemma 3
};

/// Tiles of one image, ready for a VisionTower.
struct ImageTiles {
  Matrix<float> pixels;      ///< [tiles*3*height, width] the red, green and blue plane of each tile
  ImageSize tile;            ///< size of each
  ImageSize picture;         ///< size of the image
  Index rows = 0, cols = 0;  ///< the grid that tiles are cut from; 0: there is only the whole image
  ImageSize canvas = {};     ///< TileRule::pinpoints: the size that the grid's tiles fill

  Index count() const { return tile.height > 0 ? pixels.rows() / (3 * tile.height) : 0; }
  /// The planes of one tile: [3*height, width].
  ConstMatrixRef<float> planes(Index i) const {
    const ConstMatrixRef<float> all(pixels);
    return all.middleRows(i * 3 * tile.height, 3 * tile.height);
  }
};

/// Pan and scan of Gemma 3: a long image is read whole, and then as crops along its longer side.
struct PanAndScan {
  Index min_crop = 256;    ///< shortest side of a crop
  Index max_crops = 4;     ///< most crops
  double min_ratio = 1.2;  ///< least ratio of the longer to the shorter side; squarer images are only read whole
};

/// The rules of preprocessing: how an image becomes tiles. The defaults are SigLIP's.
struct ImageRecipe {
  ImageFilter filter = ImageFilter::bicubic;
  TileRule tiles = TileRule::whole;
  bool pad_to_square = false;  ///< first: to a square, filled with `mean`
  bool resize = true;
  Index shortest_edge = 0;                ///< scales the shorter side to this; 0: to `size`
  ImageSize size = {224, 224};            ///< scales to this and ignores the aspect; the size of a tile under every rule but `whole`
  ImageSize crop = {};                    ///< cut from the middle afterwards; no sides: nothing is cut
  Index longest_edge = 0;                 ///< first: scales the longer side to this, to an even size; 0: not
  std::vector<ImageSize> pinpoints = {};  ///< TileRule::pinpoints: the sizes to choose from
  PanAndScan pan = {};                    ///< TileRule::pan
  bool rescale = true, normalize = true;
  double rescale_factor = 1. / 255;                         ///< multiplies bytes
  std::array<double, 3> mean{.5, .5, .5}, std{.5, .5, .5};  ///< x becomes (x - mean) / std

  /// Throws   ShapeError naming the field
  void check() const {
    const auto refuse = [](const auto&... what) { raise<ShapeError>("pith::ImageRecipe: ", what...); };
    const auto check_side = [&](const char* name, Index side, Index least) {
      if (side < least || side > max_side) refuse(name, " is ", side, ", expected ", least, " to ", max_side);
    };
    check_side("shortest_edge", shortest_edge, 0);
    check_side("longest_edge", longest_edge, tiles == TileRule::split ? 1 : 0);
    check_side("size.height", size.height, 1);
    check_side("size.width", size.width, 1);
    if (crop != ImageSize{}) check_side("crop.height", crop.height, 1), check_side("crop.width", crop.width, 1);
    if (tiles == TileRule::pinpoints && pinpoints.empty()) refuse("no pinpoints, expected one or more");
    for (const ImageSize& point : pinpoints)
      if (point.height < 1 || point.width < 1 || point.height > max_side || point.width > max_side || point.height % size.height != 0 ||
          point.width % size.width != 0)
        refuse("a pinpoint of ", point.height, " x ", point.width, ", expected multiples of a tile of ", size.height, " x ", size.width);
    if (pan.min_crop < 1 || pan.max_crops < 1 || !(pan.min_ratio >= 1))
      refuse("pan has min_crop ", pan.min_crop, ", max_crops ", pan.max_crops, " and min_ratio ", pan.min_ratio,
             ", expected 1 or more each");
    if (!(rescale_factor > 0) || !std::isfinite(rescale_factor))
      refuse("rescale_factor is ", rescale_factor, ", expected a number above 0");
    for (std::size_t c = 0; c < 3; ++c)
      if (!std::isfinite(mean[c]) || !(std[c] > 0) || !std::isfinite(std[c]))
        refuse("mean ", mean[c], " and std ", std[c], ", expected finite numbers, std above 0");
  }

  /// Makes the tiles of an image. `images`: the number of images in the prompt; LLaVA-OneVision cuts an image into tiles only
  /// if it is the only one.
  ///
  /// Heap     the tiles and scaled images
  /// Throws   ShapeError as check() and ImageView::check(), and for an image too long to be scaled
  /// Law      the bits of transformers' processors over Pillow, on every processor
  ImageTiles prepare(const ImageView& image, Index images = 1) const;

  static constexpr Index max_side = 1 << 16;  ///< the most pixels of any side that a recipe asks for

 private:
  /// The planes of one image, written to `tile` of `out`.
  void write_planes(const ImageView& image, Index tile, ImageTiles& out) const {
    const Index area = image.height * image.width;
    float* to = out.pixels.data() + 3 * area * tile;
    for (std::size_t c = 0; c < 3; ++c, to += area) {
      float of_byte[256];
      for (int v = 0; v < 256; ++v) {
        const float x = rescale ? static_cast<float>(static_cast<double>(v) * rescale_factor) : static_cast<float>(v);
        of_byte[v] = normalize ? (x - static_cast<float>(mean[c])) / static_cast<float>(std[c]) : x;
      }
      for (Index i = 0; i < area; ++i) to[i] = of_byte[image.pixels[static_cast<std::size_t>(3 * i) + c]];
    }
  }
  Image scaled(const ImageView& image) const { return pith::resize(image, size, filter); }
  Rgb background() const {
    Rgb out{};
    for (std::size_t c = 0; c < 3; ++c) out[c] = static_cast<std::uint8_t>(std::clamp(255 * mean[c], 0., 255.));
    return out;
  }
  std::vector<Image> images_of(const ImageView& image, Index images, ImageTiles& out) const;
};

inline std::vector<Image> ImageRecipe::images_of(const ImageView& image, Index images, ImageTiles& out) const {
  std::vector<Image> all;
  const auto add_grid = [&](const ImageView& from) {
    out.rows = from.height / size.height, out.cols = from.width / size.width;
    for (Index r = 0; r < out.rows; ++r)
      for (Index c = 0; c < out.cols; ++c) all.push_back(pith::crop(from, r * size.height, c * size.width, size));
  };
  switch (tiles) {
    case TileRule::split: {
      const auto [first, second] = detail::split_sizes(image.size(), longest_edge, size.height);
      const Image cut = pith::resize(pith::resize(image, first, filter), second, filter);
      if (cut.height > size.height || cut.width > size.width) add_grid(cut);
      all.push_back(scaled(cut));
      break;
    }
    case TileRule::pinpoints: {
      if (images > 1) {
        all.push_back(scaled(pith::pad_to_square(image, background())));
        break;
      }
      out.canvas = detail::best_pinpoint(image.size(), pinpoints);
      const Image fitted = pith::resize(image, detail::fitted_size(image.size(), out.canvas), filter);
      all.push_back(scaled(image));
      add_grid(pith::crop(fitted, -((out.canvas.height - fitted.height) / 2), -((out.canvas.width - fitted.width) / 2), out.canvas));
      break;
    }
    case TileRule::pan: {
      all.push_back(scaled(image));
      const Index crops = detail::pan_crops(image.size(), pan.min_crop, pan.max_crops, pan.min_ratio);
      const bool across = image.width >= image.height;
      const Index longer = across ? image.width : image.height, side = crops > 0 ? (longer + crops - 1) / crops : 0;
      for (Index i = 0; i < crops; ++i) {
        const Index first = i * side, length = (std::min)(side, longer - first);
        if (length < 1) break;
        all.push_back(
            scaled(across ? pith::crop(image, 0, first, {image.height, length}) : pith::crop(image, first, 0, {length, image.width})));
      }
      out.rows = across ? (all.size() > 1 ? 1 : 0) : static_cast<Index>(all.size()) - 1;
      out.cols = across ? static_cast<Index>(all.size()) - 1 : (all.size() > 1 ? 1 : 0);
      break;
    }
    case TileRule::whole: {
      Image one = pad_to_square ? pith::pad_to_square(image, background())
                                : Image{{image.pixels.begin(), image.pixels.end()}, image.height, image.width};
      if (longest_edge > 0) one = pith::resize(one, detail::split_sizes(one.view().size(), longest_edge, 1).first, filter);
      if (resize)
        one =
            shortest_edge > 0 ? pith::resize(one, detail::shortest_edge_size({one.height, one.width}, shortest_edge), filter) : scaled(one);
      if (crop != ImageSize{}) one = center_crop(one, crop);
      all.push_back(std::move(one));
    }
  }
  return all;
}

inline ImageTiles ImageRecipe::prepare(const ImageView& image, Index images) const {
  check();
  image.check("ImageRecipe::prepare");
  if (images < 1) raise<ShapeError>("pith::ImageRecipe::prepare: a prompt of ", images, " images, expected 1 or more");
  ImageTiles out{.pixels = {}, .tile = {}, .picture = image.size()};
  const std::vector<Image> all = images_of(image, images, out);
  out.tile = {all.front().height, all.front().width};
  out.pixels.resize(static_cast<Index>(all.size()) * 3 * out.tile.height, out.tile.width);
  for (std::size_t i = 0; i < all.size(); ++i) write_planes(all[i], static_cast<Index>(i), out);
  return out;
}

}}  // namespace pith::v0
