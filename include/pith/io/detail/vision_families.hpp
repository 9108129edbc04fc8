#pragma once

#include <algorithm>
#include <iterator>
#include <string>
#include <string_view>

#include <pith/core/types.hpp>
#include <pith/vision/tower_config.hpp>
#include <pith/vision/vlm_spec.hpp>

// The vision-language models and towers whose folders are read, one row each.
namespace pith { inline namespace v0 { namespace detail {

/// A tower's model_type, and its sizes where vision_config has none.
struct TowerFamily {
  std::string_view model_type;
  bool clip;  ///< a class token, a norm before the first layer, patches without bias
  Index hidden, intermediate, layers, heads, image, patch;
  VisionActivation activation;
  double eps;
};
inline constexpr TowerFamily tower_families[] = {
    {"clip_vision_model", true, 768, 3072, 12, 12, 224, 32, VisionActivation::quick_gelu, 1e-5},
    {"siglip_vision_model", false, 768, 3072, 12, 12, 224, 16, VisionActivation::gelu_tanh, 1e-6},
    {"smolvlm_vision", false, 1152, 3072, 12, 16, 224, 32, VisionActivation::gelu_tanh, 1e-6},
    {"idefics3_vision", false, 1152, 3072, 12, 16, 224, 32, VisionActivation::gelu_tanh, 1e-6},
};
/// LLaVA's tower where there is no vision_config at all.
inline constexpr TowerFamily llava_tower{"clip_vision_model", true, 1024, 4096, 24, 16, 336, 14, VisionActivation::quick_gelu, 1e-5};

inline const TowerFamily* find_tower(std::string_view model_type) {
  if (model_type == "idefics3") model_type = "idefics3_vision";
  const auto* at =
      std::find_if(std::begin(tower_families), std::end(tower_families), [&](const TowerFamily& f) { return f.model_type == model_type; });
  return at == std::end(tower_families) ? nullptr : at;
}

enum class ProjectorKind { mlp, plain, shuffle, pooled };

/// A vision-language model.
struct VlmFamily {
  std::string_view model_type, tower;  ///< tower: where vision_config names none
  ProjectorKind projector;
  Token image_token;  ///< where config.json has none
  std::string_view image_word = "<image>";
  ImageMarks marks = ImageMarks::none;
  ImageSight sight = ImageSight::causal;
  Index feature = 0;        ///< vision_feature_layer where config.json has none; 0: the normed output, and the key is not read
  bool drop_first = false;  ///< vision_feature_select_strategy where config.json has none is "default", not "full"
};
inline constexpr VlmFamily vlm_families[] = {
    {.model_type = "llava",
     .tower = "clip_vision_model",
     .projector = ProjectorKind::mlp,
     .image_token = 32000,
     .feature = -2,
     .drop_first = true},
    {.model_type = "llava_onevision",
     .tower = "siglip_vision_model",
     .projector = ProjectorKind::mlp,
     .image_token = 151646,
     .feature = -1},
    {.model_type = "smolvlm",
     .tower = "smolvlm_vision",
     .projector = ProjectorKind::shuffle,
     .image_token = 128257,
     .marks = ImageMarks::tiles},
    {.model_type = "idefics3",
     .tower = "idefics3_vision",
     .projector = ProjectorKind::shuffle,
     .image_token = 128257,
     .marks = ImageMarks::tiles},
    {.model_type = "gemma3",
     .tower = "siglip_vision_model",
     .projector = ProjectorKind::pooled,
     .image_token = 262144,
     .image_word = "<image_soft_token>",
     .marks = ImageMarks::bounds,
     .sight = ImageSight::runs},
    {.model_type = "paligemma",
     .tower = "siglip_vision_model",
     .projector = ProjectorKind::plain,
     .image_token = 256000,
     .sight = ImageSight::prompt},
};
inline const VlmFamily* find_vlm(std::string_view model_type) {
  const auto* at =
      std::find_if(std::begin(vlm_families), std::end(vlm_families), [&](const VlmFamily& f) { return f.model_type == model_type; });
  return at == std::end(vlm_families) ? nullptr : at;
}

/// All names of a table, for messages: "a, b and c".
template <class Rows> std::string names_of(const Rows& rows) {
  std::string out;
  for (const auto& row : rows) {
    if (!out.empty()) out += &row + 1 == std::end(rows) ? " and " : ", ";
    out += row.model_type;
  }
  return out;
}

}}}  // namespace pith::v0::detail
