#pragma once
// Scales images by the filters and the rounding of Pillow, which models were trained with.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/vision/image.hpp>

namespace pith { inline namespace v0 {

/// The filters that models are trained with; each widens where an image shrinks, so that no pixel is left out.
enum class ImageFilter : std::uint8_t {
  bilinear,  ///< 1 - |t|
  bicubic,   ///< the cubic convolution of A = -1/2
  lanczos,   ///< sinc(t) sinc(t/3)
};

namespace detail {

/// Rounds to a double: no product before it is fused with a sum after it, so that every processor gives the same bits.
inline double rounded(double x) {
  volatile double stored = x;
  return stored;
}

/// The distance at which a filter ends.
inline double filter_reach(ImageFilter filter) { return filter == ImageFilter::bilinear ? 1 : filter == ImageFilter::bicubic ? 2 : 3; }

inline double filter_at(ImageFilter filter, double t) {
  const double x = std::abs(t);
  if (filter == ImageFilter::bilinear) return x < 1 ? 1 - x : 0;
  if (filter == ImageFilter::bicubic) {
    constexpr double a = -0.5;
    if (x < 1) return rounded(rounded((rounded((a + 2) * x) - (a + 3)) * x) * x) + 1;
    return x < 2 ? (rounded((rounded((x - 5) * x) + 8) * x) - 4) * a : 0;
  }
  const auto sinc = [](double z) { return z == 0 ? 1 : std::sin(z * std::numbers::pi) / (z * std::numbers::pi); };
  return t >= -3 && t < 3 ? sinc(t) * sinc(t / 3) : 0;
}

/// Which pixels of an axis each new one is made of: the first, and their weights in units of 2^-22.
struct AxisWeights {
  static constexpr int bits = 22;   ///< 8 bits of a pixel, 2 for what sums overshoot, in 32
  std::vector<Index> first, begin;  ///< [to], [to + 1]: the weights of pixel i are begin[i] .. begin[i + 1] - 1
  std::vector<std::int32_t> weights;

  AxisWeights(ImageFilter filter, Index from, Index to) {
    const double scale = static_cast<double>(from) / static_cast<double>(to), stretch = (std::max)(scale, 1.);
    const double support = rounded(filter_reach(filter) * stretch), step = 1 / stretch;
    std::vector<double> w;
    begin.push_back(0);
    for (Index i = 0; i < to; ++i) {
      const double centre = rounded((static_cast<double>(i) + .5) * scale);
      const Index low = (std::max)(static_cast<Index>(centre - support + .5), Index(0));
      const Index high = (std::min)(static_cast<Index>(centre + support + .5), from);
      w.clear();
      double sum = 0;
      for (Index x = low; x < high; ++x) {
        w.push_back(filter_at(filter, rounded((static_cast<double>(x) - centre + .5) * step)));
        sum += w.back();
      }
      first.push_back(low);
      for (const double one : w) {
        const double fixed = rounded((sum != 0 ? one / sum : one) * double(1 << bits));
        weights.push_back(static_cast<std::int32_t>(fixed + (fixed < 0 ? -.5 : .5)));
      }
      begin.push_back(static_cast<Index>(weights.size()));
    }
  }
};

inline std::uint8_t pixel_of(std::int32_t sum) { return static_cast<std::uint8_t>(std::clamp(sum >> AxisWeights::bits, 0, 255)); }

/// Scales the rows of an image to another width.
inline Image scaled_rows(const ImageView& image, Index width, ImageFilter filter) {
  const AxisWeights axis(filter, image.width, width);
  Image out{std::vector<std::uint8_t>(static_cast<std::size_t>(3 * image.height * width)), image.height, width};
  for (Index y = 0; y < image.height; ++y) {
    const std::uint8_t* from = image.pixels.data() + 3 * y * image.width;
    std::uint8_t* to = out.pixels.data() + 3 * y * width;
    for (Index x = 0; x < width; ++x) {
      const auto at = static_cast<std::size_t>(x);
      const std::uint8_t* pixel = from + 3 * axis.first[at];
      std::int32_t sum[3] = {1 << (AxisWeights::bits - 1), 1 << (AxisWeights::bits - 1), 1 << (AxisWeights::bits - 1)};
      for (Index k = axis.begin[at]; k < axis.begin[at + 1]; ++k, pixel += 3)
        for (int c = 0; c < 3; ++c) sum[c] += pixel[c] * axis.weights[static_cast<std::size_t>(k)];
      for (int c = 0; c < 3; ++c) *to++ = pixel_of(sum[c]);
    }
  }
  return out;
}

/// Scales the columns of an image to another height.
inline Image scaled_columns(const ImageView& image, Index height, ImageFilter filter) {
  const AxisWeights axis(filter, image.height, height);
  const Index row = 3 * image.width;
  Image out{std::vector<std::uint8_t>(static_cast<std::size_t>(row * height)), height, image.width};
  std::vector<std::int32_t> sums(static_cast<std::size_t>(row));
  for (Index y = 0; y < height; ++y) {
    const auto at = static_cast<std::size_t>(y);
    std::fill(sums.begin(), sums.end(), 1 << (AxisWeights::bits - 1));
    const std::uint8_t* from = image.pixels.data() + row * axis.first[at];
    for (Index k = axis.begin[at]; k < axis.begin[at + 1]; ++k, from += row) {
      const std::int32_t weight = axis.weights[static_cast<std::size_t>(k)];
      for (Index i = 0; i < row; ++i) sums[static_cast<std::size_t>(i)] += from[i] * weight;
    }
    std::transform(sums.begin(), sums.end(), out.pixels.data() + row * y, pixel_of);
  }
  return out;
}

}  // namespace detail

/// Scales an image: across, rounded to bytes, then down. An axis whose length stays is left alone.
///
///   out[i] = Σ_x f((x - c + 1/2) / s) in[x] / Σ f,   c = (i + 1/2) from/to,   s = max(from/to, 1)
///
/// Cost     a multiply-add for each pixel, channel and weight of both passes
/// Heap     the image, one of the new width and the old height, and the weights
/// Throws   ShapeError as ImageView::check(), and for a new size that has no pixels or too many
/// Law      the bytes of Pillow's resize() of the same filter, on every processor
inline Image resize(const ImageView& image, const ImageSize& size, ImageFilter filter) {
  image.check("resize");
  detail::check_image_size("resize", size);
  detail::check_image_size("resize", {image.height, size.width});
  if (image.size() == size) return {{image.pixels.begin(), image.pixels.end()}, size.height, size.width};
  if (image.height == size.height) return detail::scaled_rows(image, size.width, filter);
  if (image.width == size.width) return detail::scaled_columns(image, size.height, filter);
  return detail::scaled_columns(detail::scaled_rows(image, size.width, filter), size.height, filter);
}

}}  // namespace pith::v0
