#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <pith/vision.hpp>

#include "support/catch.hpp"
#include "support/tiny_vision.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::tiny_picture;

namespace {

int channel_at(const Image& image, Index y, Index x, int c = 0) {
  return image.pixels[static_cast<std::size_t>(3 * (y * image.width + x) + c)];
}

}  // namespace

TEST_CASE("images are cut and padded", "[vision]") {
  const Image image = tiny_picture(5, 8);
  const Image part = crop(image, 1, 2, {3, 4});
  CHECK((part.height == 3 && part.width == 4 && channel_at(part, 2, 3, 1) == channel_at(image, 3, 5, 1)));
  const Image around = crop(image, -1, -2, {8, 11}, {9, 8, 7});
  CHECK((channel_at(around, 0, 5, 1) == 8 && channel_at(around, 1, 2) == channel_at(image, 0, 0)));
  CHECK((channel_at(around, 6, 3) == 9 && channel_at(around, 5, 9, 2) == channel_at(image, 4, 7, 2) && channel_at(around, 5, 10, 2) == 7));
  CHECK(crop(image, 100, 100, {1, 1}).pixels == std::vector<std::uint8_t>(3, 0));
  const Image middle = center_crop(image, {2, 3});  // ⌊3/2⌋ rows and ⌊5/2⌋ columns before it
  CHECK(channel_at(middle, 0, 0) == channel_at(image, 1, 2));
  const Image larger = center_crop(image, {8, 8});  // ⌈3/2⌉ black rows before it
  CHECK((channel_at(larger, 1, 4) == 0 && channel_at(larger, 2, 4) == channel_at(image, 0, 4) && channel_at(larger, 7, 4) == 0));
  const Image square = pad_to_square(image, {1, 2, 3});  // ⌊3/2⌋ rows before it
  CHECK((square.height == 8 && square.width == 8 && channel_at(square, 0, 0) == 1 && channel_at(square, 1, 6) == channel_at(image, 0, 6)));
}

TEST_CASE("a scaled image of one color has it, and shrinking leaves no pixel out", "[vision]") {
  for (const ImageFilter filter : {ImageFilter::bilinear, ImageFilter::bicubic, ImageFilter::lanczos}) {
    Image plain{std::vector<std::uint8_t>(3 * 17 * 9, 201), 17, 9};
    for (const ImageSize size : {ImageSize{3, 40}, {50, 2}, {17, 9}, {17, 5}, {1, 9}, {1, 1}}) {
      const Image scaled = resize(plain, size, filter);
      CHECK((scaled.height == size.height && scaled.width == size.width));
      CHECK(std::all_of(scaled.pixels.begin(), scaled.pixels.end(), [](int v) { return v == 201; }));
    }
    Image dot{std::vector<std::uint8_t>(3 * 16 * 16, 0), 16, 16};
    dot.pixels[3 * (5 * 16 + 6)] = 255;
    const Image small = resize(dot, {4, 4}, filter);
    CHECK(channel_at(small, 1, 1) > 0);
  }
}

TEST_CASE("images that are none are refused by their numbers", "[vision]") {
  const std::vector<std::uint8_t> bytes(60);
  const auto refused = [&](const ImageView& image, const char* message) {
    CHECK_THROWS_WITH(resize(image, {4, 4}, ImageFilter::bicubic), contains(message));
    CHECK_THROWS_WITH(crop(image, 0, 0, {1, 1}), contains(message));
    CHECK_THROWS_WITH(ImageRecipe{}.prepare(image), contains(message));
  };
  constexpr Index huge = std::numeric_limits<Index>::max();
  refused({}, "an image of 0 x 0 pixels");
  refused({bytes, 0, 20}, "an image of 0 x 20 pixels");
  refused({bytes, -4, -5}, "an image of -4 x -5 pixels");
  refused({bytes, huge, huge}, "expected sides of 1 or more and at most 134217728 pixels");
  refused({bytes, 4, 6}, "60 bytes for an image of 4 x 6 pixels, expected 72");
  refused({bytes, 5, 3, 4}, "an image of 4 channels, expected 3");
  refused({bytes, 5, 12, 1}, "an image of 1 channels");
  const Image image = tiny_picture(4, 5);
  CHECK_THROWS_AS(resize(image, {0, 4}, ImageFilter::bicubic), ShapeError);
  CHECK_THROWS_AS(resize(image, {huge, 4}, ImageFilter::bicubic), ShapeError);
  CHECK_THROWS_AS(crop(image, 0, 0, {1 << 20, 1 << 20}), ShapeError);
  const Image thread{std::vector<std::uint8_t>(3 * 3'000'000, 1), 1, 3'000'000};
  CHECK_THROWS_WITH(ImageRecipe{.shortest_edge = 224}.prepare(thread), contains("224 x 672000000 pixels"));
  CHECK_THROWS_AS(ImageRecipe{}.prepare(image, 0), ShapeError);
  const auto broken = [&](const char* message, auto&& change) {
    ImageRecipe recipe;
    change(recipe);
    CHECK_THROWS_WITH(recipe.prepare(image), contains(message));
  };
  broken("size.height is 0", [](ImageRecipe& r) { r.size.height = 0; });
  broken("size.width is 100000, expected 1 to 65536", [](ImageRecipe& r) { r.size.width = 100'000; });
  broken("crop.width is 0", [](ImageRecipe& r) { r.crop = {5, 0}; });
  broken("longest_edge is 0, expected 1", [](ImageRecipe& r) { r.tiles = TileRule::split; });
  broken("no pinpoints", [](ImageRecipe& r) { r.tiles = TileRule::pinpoints; });
  broken("a pinpoint of 300 x 224, expected multiples", [](ImageRecipe& r) { r.tiles = TileRule::pinpoints, r.pinpoints = {{300, 224}}; });
  broken("rescale_factor is 0", [](ImageRecipe& r) { r.rescale_factor = 0; });
  broken("std 0", [](ImageRecipe& r) { r.std[1] = 0; });
  broken("max_crops 0", [](ImageRecipe& r) { r.pan.max_crops = 0; });
}

TEST_CASE("tiles hold the pixels that their rule says", "[vision]") {
  const Image image = tiny_picture(30, 100);
  const ImageSize tile{16, 16};
  const auto same = [&](const ImageTiles& tiles, Index i, const Image& expected) {
    Index wrong = 0;
    for (Index c = 0; c < 3; ++c)
      for (Index y = 0; y < tile.height; ++y)
        for (Index x = 0; x < tile.width; ++x)
          wrong += tiles.planes(i)(c * tile.height + y, x) !=
                   (static_cast<float>(channel_at(expected, y, x, static_cast<int>(c)) * (1. / 255)) - .5f) / .5f;
    return wrong == 0 && expected.height == tile.height && expected.width == tile.width;
  };
  const ImageTiles pan = ImageRecipe{.tiles = TileRule::pan, .size = tile, .pan = {.min_crop = 10}}.prepare(image);
  CHECK((pan.count() == 4 && pan.rows == 1 && pan.cols == 3));  // ⌊100/30 + 1/2⌋ parts of ⌈100/3⌉ columns
  CHECK(same(pan, 0, resize(image, tile, ImageFilter::bicubic)));
  CHECK(same(pan, 3, resize(crop(image, 0, 68, {30, 32}), tile, ImageFilter::bicubic)));
  const Image tall = tiny_picture(100, 30);
  const ImageTiles down = ImageRecipe{.tiles = TileRule::pan, .size = tile, .pan = {.min_crop = 10}}.prepare(tall);
  CHECK((down.rows == 3 && down.cols == 1 && same(down, 2, resize(crop(tall, 34, 0, {34, 30}), tile, ImageFilter::bicubic))));
  CHECK((ImageRecipe{.tiles = TileRule::pan, .size = tile}.prepare(image).count() == 1));                       // parts under 256 pixels
  CHECK((ImageRecipe{.tiles = TileRule::pan, .size = tile, .pan = {10, 4, 3.4}}.prepare(image).count() == 1));  // not long enough

  const ImageTiles split = ImageRecipe{.tiles = TileRule::split, .size = tile, .longest_edge = 60}.prepare(image);
  CHECK((split.count() == 9 && split.rows == 2 && split.cols == 4));  // 18 x 60, then 32 x 64
  const Image cut = resize(resize(image, {18, 60}, ImageFilter::bicubic), {32, 64}, ImageFilter::bicubic);
  CHECK(same(split, 5, crop(cut, 16, 16, tile)));
  CHECK(same(split, 8, resize(cut, tile, ImageFilter::bicubic)));
  const ImageTiles one = ImageRecipe{.tiles = TileRule::split, .size = tile, .longest_edge = 16}.prepare(tiny_picture(9, 9));
  CHECK((one.count() == 1 && one.rows == 0 && one.cols == 0));

  const ImageRecipe any{.tiles = TileRule::pinpoints, .size = tile, .pinpoints = {{16, 16}, {32, 16}, {16, 48}}};
  const ImageTiles points = any.prepare(image);
  CHECK((points.count() == 4 && points.canvas == ImageSize{16, 48}));
  CHECK(same(points, 0, resize(image, tile, ImageFilter::bicubic)));
  const Image fitted = resize(image, {15, 48}, ImageFilter::bicubic);
  CHECK(same(points, 2, crop(fitted, 0, 16, tile)));  // ⌊1/2⌋ black rows above
  const ImageTiles several = any.prepare(image, 2);
  CHECK((several.count() == 1 && same(several, 0, resize(pad_to_square(image, {127, 127, 127}), tile, ImageFilter::bicubic))));

  const ImageRecipe raw{.resize = false, .rescale = false, .normalize = false};
  const ImageTiles as_is = raw.prepare(image);
  CHECK((as_is.tile == ImageSize{30, 100} && as_is.planes(0)(31, 7) == static_cast<float>(channel_at(image, 1, 7, 1))));
}
