#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/json_value.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/vision/image_recipe.hpp>

// The keys of preprocessor_config.json.
namespace pith { inline namespace v0 { namespace detail {

inline constexpr std::array<double, 3> clip_mean{.48145466, .4578275, .40821073}, clip_std{.26862954, .26130258, .27577711},
    half_each{.5, .5, .5};

/// A processor of transformers: its name without "ImageProcessor" and "Fast", and its defaults.
struct ImageProcessor {
  std::string_view name;
  TileRule tiles;
  ImageFilter filter;
  Index side;     ///< of a tile, or of the shorter side
  bool shortest;  ///< scales the shorter side, then crops
  const std::array<double, 3>&mean, &std;
};
inline constexpr ImageProcessor image_processors[] = {
    {"CLIP", TileRule::whole, ImageFilter::bicubic, 224, true, clip_mean, clip_std},
    {"Llava", TileRule::whole, ImageFilter::bicubic, 224, true, clip_mean, clip_std},
    {"Siglip", TileRule::whole, ImageFilter::bicubic, 224, false, half_each, half_each},
    {"LlavaOnevision", TileRule::pinpoints, ImageFilter::bicubic, 384, false, clip_mean, clip_std},
    {"SmolVLM", TileRule::split, ImageFilter::lanczos, 364, false, half_each, half_each},
    {"Idefics3", TileRule::split, ImageFilter::lanczos, 364, false, half_each, half_each},
    {"Gemma3", TileRule::pan, ImageFilter::bilinear, 224, false, half_each, half_each},
};

/// Reads the keys of an image processor.
class ImageFields {
 public:
  explicit ImageFields(JsonFields fields) : c_(std::move(fields)), processor_(processor_of(c_)) {}

  ImageRecipe recipe() const {
    ImageRecipe out{.filter = filter(), .tiles = processor_.tiles};
    out.size = {processor_.side, processor_.side};
    out.mean = channels("image_mean", processor_.mean);
    out.std = channels("image_std", processor_.std);
    for (std::size_t i = 0; i < 3; ++i)
      if (out.std[i] <= 0) c_.refuse("image_std", "three numbers above 0");
    out.rescale = c_.boolean("do_rescale", true);
    out.normalize = c_.boolean("do_normalize", true);
    out.rescale_factor = c_.positive("rescale_factor", 1. / 255);
    out.resize = c_.boolean("do_resize", true);
    if (!out.resize && processor_.tiles != TileRule::whole)
      raise<UnsupportedError>("pith: ", in_quotes(c_.file()), ": key '", c_.path("do_resize"),
                              "' is false, which only processors without tiles may have");
    if (processor_.shortest) out.shortest_edge = processor_.side;
    if (processor_.tiles == TileRule::split)
      read_split(out);
    else
      read_size(out);
    if (processor_.shortest && c_.boolean("do_center_crop", true)) out.crop = square_or("crop_size", processor_.side);
    out.pad_to_square = processor_.name == "Llava" && c_.boolean("do_pad", false);
    if (processor_.tiles == TileRule::pinpoints) read_pinpoints(out);
    if (processor_.tiles == TileRule::pan) read_pan(out);
    try_check(out);
    return out;
  }

 private:
  static const ImageProcessor& processor_of(const JsonFields& c) {
    const std::string type = c.string("image_processor_type");
    std::string_view name = type;
    for (const std::string_view end : {"Fast", "Pil", "ImageProcessor"})
      if (name.ends_with(end)) name.remove_suffix(end.size());
    const auto* at =
        std::find_if(std::begin(image_processors), std::end(image_processors), [&](const ImageProcessor& p) { return p.name == name; });
    if (at != std::end(image_processors)) return *at;
    std::string known;
    for (const ImageProcessor& p : image_processors) known += text(known.empty() ? "" : ", ", p.name);
    raise<UnsupportedError>("pith: ", in_quotes(c.file()), ": image_processor_type ", in_quotes(type),
                            " is not supported: …ImageProcessor of ", known, " are");
  }

  ImageFilter filter() const {
    const Index resample = c_.size("resample",
                                   processor_.filter == ImageFilter::lanczos    ? 1
                                   : processor_.filter == ImageFilter::bilinear ? 2
                                                                                : 3,
                                   0, 5);
    constexpr const char* names[] = {"nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"};
    if (resample == 1) return ImageFilter::lanczos;
    if (resample == 2) return ImageFilter::bilinear;
    if (resample == 3) return ImageFilter::bicubic;
    raise<UnsupportedError>("pith: ", in_quotes(c_.file()), ": key '", c_.path("resample"), "' is ", resample, " (", names[resample],
                            "), which is not supported: 1 (lanczos), 2 (bilinear) and 3 (bicubic) are");
  }

  std::array<double, 3> channels(const char* key, const std::array<double, 3>& otherwise) const {
    const Json* list = c_.find(key);
    if (list == nullptr) return otherwise;
    std::array<double, 3> out{};
    if (!list->is_array() || list->size() != 3) c_.refuse(key, "three numbers");
    for (std::size_t i = 0; i < 3; ++i) {
      if (!(*list)[i].is_number() || !std::isfinite((*list)[i].get<double>())) c_.refuse(key, "three numbers");
      out[i] = (*list)[i].get<double>();
    }
    return out;
  }

  Index side(const JsonFields& of, const char* key) const { return of.size(key, {}, 1, ImageRecipe::max_side); }
  JsonFields inside(const char* key, const Json& value) const { return {c_.file(), value, c_.path(key) + "."}; }

  /// {height, width}, or one number, as older files write it.
  ImageSize square_or(const char* key, Index otherwise) const {
    const Json* value = c_.find(key);
    if (value == nullptr) return {otherwise, otherwise};
    if (value->is_number()) {
      const Index one = side(c_, key);
      return {one, one};
    }
    const JsonFields fields = inside(key, *value);
    return {side(fields, "height"), side(fields, "width")};
  }

  void read_size(ImageRecipe& out) const {
    const Json* value = c_.find("size");
    if (value == nullptr) return;
    const bool edge = value->is_object() && value->contains("shortest_edge");
    if (!edge && !(value->is_number() && processor_.shortest)) {
      out.size = square_or("size", processor_.side);
      out.shortest_edge = 0;
      return;
    }
    const Index one = edge ? side(inside("size", *value), "shortest_edge") : side(c_, "size");
    if (processor_.shortest)
      out.shortest_edge = one;
    else if (processor_.tiles == TileRule::pinpoints)
      out.size = {one, one};
    else
      c_.refuse("size", "an object of height and width");
  }

  void read_split(ImageRecipe& out) const {
    const auto edge = [&](const char* key, Index otherwise) {
      const Json* value = c_.find(key);
      return value == nullptr ? otherwise : side(inside(key, *value), "longest_edge");
    };
    out.longest_edge = edge("size", 4 * processor_.side);
    const Index tile = edge("max_image_size", processor_.side);
    out.size = {tile, tile};
    if (!c_.boolean("do_image_splitting", true)) out.tiles = TileRule::whole;
  }

  void read_pinpoints(ImageRecipe& out) const {
    const char* key = "image_grid_pinpoints";
    const Json* list = c_.find(key);
    const auto refuse = [&] { c_.refuse(key, "a list of [height, width]"); };
    if (list == nullptr) {
      for (Index h = 1; h <= 6; ++h)
        for (Index w = 1; w <= 6; ++w) out.pinpoints.push_back({h * out.size.height, w * out.size.width});
      return;
    }
    if (!list->is_array() || list->empty()) refuse();
    for (const Json& point : *list) {
      if (!point.is_array() || point.size() != 2) refuse();
      out.pinpoints.push_back({c_.whole(key, point[0], 1, ImageRecipe::max_side), c_.whole(key, point[1], 1, ImageRecipe::max_side)});
    }
  }

  void read_pan(ImageRecipe& out) const {
    if (!c_.boolean("do_pan_and_scan", false)) out.tiles = TileRule::whole;
    out.pan.min_crop = c_.size("pan_and_scan_min_crop_size", out.pan.min_crop, 1, ImageRecipe::max_side);
    out.pan.max_crops = c_.size("pan_and_scan_max_num_crops", out.pan.max_crops, 1, 1024);
    out.pan.min_ratio = c_.positive("pan_and_scan_min_ratio_to_activate", out.pan.min_ratio);
  }

  void try_check(const ImageRecipe& recipe) const {
    try {
      recipe.check();
    } catch (const ShapeError& error) {
      raise<FormatError>("pith: ", in_quotes(c_.file()), ": ", error.what());
    }
  }

  JsonFields c_;
  const ImageProcessor& processor_;
};

}}}  // namespace pith::v0::detail
