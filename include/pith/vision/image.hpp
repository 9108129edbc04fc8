#pragma once
// Images as bytes, and what cuts and pads them.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>

namespace pith { inline namespace v0 {

/// The most pixels of an image, and of each image that preprocessing makes of it.
inline constexpr Index max_image_pixels = Index(1) << 27;

/// Height and width of an image.
struct ImageSize {
  Index height = 0, width = 0;
  friend bool operator==(const ImageSize&, const ImageSize&) = default;
};

namespace detail {

/// Refuses an image without pixels, or with too many.
inline void check_image_size(std::string_view where, const ImageSize& size) {
  if (size.height < 1 || size.width < 1 || size.height > max_image_pixels || size.width > max_image_pixels / size.height)
    raise<ShapeError>("pith::", where, ": an image of ", size.height, " x ", size.width,
                      " pixels, expected sides of 1 or more and at most ", max_image_pixels, " pixels; scale it before");
}

}  // namespace detail

/// The pixels of an image, borrowed: red, green and blue of each pixel, row by row, as decoders of PNG and JPEG give them. EXIF rotation
/// has to be applied, and an alpha channel dropped, before.
struct ImageView {
  std::span<const std::uint8_t> pixels;  ///< [height, width, channels]
  Index height = 0, width = 0;
  Index channels = 3;  ///< 3 is required: another number is refused, not converted

  ImageSize size() const { return {height, width}; }

  /// Throws   ShapeError for an image without pixels or with more than max_image_pixels, with other channels than 3, or of which `pixels`
  ///          holds another number
  void check(std::string_view where) const {
    if (channels != 3)
      raise<ShapeError>("pith::", where, ": an image of ", channels,
                        " channels, expected 3, red, green and blue: let the decoder of the file convert it to RGB");
    detail::check_image_size(where, size());
    if (pixels.size() != static_cast<std::size_t>(3 * height * width))
      raise<ShapeError>("pith::", where, ": ", pixels.size(), " bytes for an image of ", height, " x ", width, " pixels, expected ",
                        3 * height * width);
  }
};

/// An image that owns its pixels.
struct Image {
  std::vector<std::uint8_t> pixels;  ///< [height, width, 3]
  Index height = 0, width = 0;

  ImageView view() const { return {.pixels = pixels, .height = height, .width = width}; }
  operator ImageView() const { return view(); }
};

/// A red, green and blue that fill an image.
using Rgb = std::array<std::uint8_t, 3>;

/// The part of an image from row `top` and column `left` on, both of which may be negative; what lies outside has the color `outside`.
///
/// Heap     the part
/// Throws   ShapeError as ImageView::check(), and if the part has no pixels or too many
inline Image crop(const ImageView& image, Index top, Index left, const ImageSize& part, const Rgb& outside = {}) {
  image.check("crop");
  detail::check_image_size("crop", part);
  Image out{std::vector<std::uint8_t>(static_cast<std::size_t>(3 * part.height * part.width)), part.height, part.width};
  if (outside != Rgb{})
    for (std::size_t i = 0; i < out.pixels.size(); ++i) out.pixels[i] = outside[i % 3];
  const Index first = std::clamp(left, Index(0), image.width), end = std::clamp(left + part.width, Index(0), image.width);
  for (Index y = 0; y < part.height && first < end; ++y) {
    const Index from = top + y;
    if (from < 0 || from >= image.height) continue;
    std::copy_n(image.pixels.data() + 3 * (from * image.width + first), 3 * (end - first),
                out.pixels.data() + 3 * (y * part.width + first - left));
  }
  return out;
}

/// The middle of an image: from ⌊(height - part.height) / 2⌋ on. Where the image is smaller it is surrounded by black, ⌈…⌉ of it before.
inline Image center_crop(const ImageView& image, const ImageSize& part) {
  const auto first = [](Index whole, Index wanted) { return whole >= wanted ? (whole - wanted) / 2 : -((wanted - whole + 1) / 2); };
  return crop(image, first(image.height, part.height), first(image.width, part.width), part);
}

/// The image in the middle of a square of its longer side.
inline Image pad_to_square(const ImageView& image, const Rgb& background) {
  const Index side = (std::max)(image.height, image.width);
  return crop(image, -((side - image.height) / 2), -((side - image.width) / 2), {side, side}, background);
}

}}  // namespace pith::v0
