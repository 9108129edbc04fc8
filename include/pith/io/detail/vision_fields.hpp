#pragma once

#include <cmath>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/io/detail/family_fields.hpp>
#include <pith/io/detail/json.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/json_value.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/io/detail/vision_families.hpp>
#include <pith/vision/tower_config.hpp>
#include <pith/vision/vlm_spec.hpp>

// Reads the vision part of a config.json: tower, projector and image prompts.
namespace pith { inline namespace v0 { namespace detail {

/// A config.json's tower, projector and prompts.
struct VisionFields {
  VisionConfig tower;
  bool clip = false;
  ProjectorKind projector = ProjectorKind::mlp;
  VisionActivation activation = VisionActivation::gelu;  ///< of an mlp projector
  bool projector_bias = true;                            ///< of an mlp projector
  Index block = 1;                                       ///< side of the patches of a row
  VlmSpec spec;
};

inline VisionActivation read_vision_activation(const JsonFields& c, const char* key, VisionActivation otherwise) {
  if (c.find(key) == nullptr) return otherwise;
  const std::string name = c.string(key);
  if (name == "quick_gelu") return VisionActivation::quick_gelu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new" || name == "gelu_fast") return VisionActivation::gelu_tanh;
  if (name == "gelu") return VisionActivation::gelu;
  unsupported(c.file(), text(c.path(key), " ", in_quotes(name), " is not supported: quick_gelu, gelu and gelu_pytorch_tanh are"));
}

/// Reads vision_config; a folder of LLaVA may have none.
inline void read_tower(const JsonFields& outer, const VlmFamily& family, VisionFields& out) {
  const Json* inside = outer.find("vision_config");
  if (inside == nullptr && family.model_type != "llava") outer.refuse("vision_config", "an object, the keys of the tower");
  static constexpr std::string_view none = "{}";
  const JsonDocument nothing = parse_json(none, outer.file());
  const JsonFields c(outer.file(), inside == nullptr ? nothing.root() : *inside, "vision_config.");
  const std::string type = c.string("model_type", std::string(family.tower));
  const TowerFamily* tower = inside == nullptr ? &llava_tower : find_tower(type);
  if (tower == nullptr)
    unsupported(c.file(), text(c.path("model_type"), " ", in_quotes(type), " is not supported: ", names_of(tower_families), " are"));
  VisionConfig& v = out.tower;
  v.model_type = type;
  out.clip = tower->clip;
  constexpr Index most = VisionConfig::most_features;
  v.hidden_size = c.size("hidden_size", tower->hidden, 1, most);
  v.intermediate_size = c.size("intermediate_size", tower->intermediate, 1, most);
  v.num_hidden_layers = c.size("num_hidden_layers", tower->layers, 1, 4096);
  v.num_attention_heads = c.size("num_attention_heads", tower->heads, 1, v.hidden_size);
  if (v.hidden_size % v.num_attention_heads != 0) c.refuse("num_attention_heads", text("a divisor of hidden_size, ", v.hidden_size));
  v.image_size = c.size("image_size", tower->image, 1, 1 << 15);
  v.patch_size = c.size("patch_size", tower->patch, 1, v.image_size);
  v.activation = read_vision_activation(c, "hidden_act", tower->activation);
  v.layer_norm_eps = c.number("layer_norm_eps", tower->eps);
  v.class_token = v.pre_norm = tower->clip;
  if (const Index channels = c.size("num_channels", 3); channels != 3) c.refuse("num_channels", "3: red, green and blue");
  if (family.feature == 0) {
    v.features = {v.num_hidden_layers};
    v.post_norm = true;
    return;
  }
  const char* key = "vision_feature_layer";
  const auto add = [&](Index layer) {
    const Index states = v.num_hidden_layers + 1;
    if (layer < -states || layer >= states) outer.refuse(key, text("hidden states from ", -states, " to ", states - 1));
    v.features.push_back(layer < 0 ? states + layer : layer);
  };
  const Json* layers = outer.find(key);
  if (layers == nullptr) return add(family.feature);
  constexpr Index deepest = 1 << 20;
  if (!layers->is_array()) return add(outer.whole(key, *layers, -deepest, deepest));
  if (layers->empty() || layers->size() > 64) outer.refuse(key, "one hidden state, or a list of 1 to 64");
  for (const Json& one : *layers) add(outer.whole(key, one, -deepest, deepest));
}

inline void read_projector(const JsonFields& outer, const VlmFamily& family, VisionFields& out) {
  out.projector = family.projector;
  const Index grid = out.tower.grid();
  switch (family.projector) {
    case ProjectorKind::mlp:
      out.activation = read_vision_activation(outer, "projector_hidden_act", VisionActivation::gelu);
      out.projector_bias = outer.boolean("multimodal_projector_bias", true);
      break;
    case ProjectorKind::plain:
      break;
    case ProjectorKind::shuffle:
      out.block = outer.size("scale_factor", 2, 1, 64);
      if (grid % out.block != 0) outer.refuse("scale_factor", text("a divisor of the ", grid, " patches of a tile's side"));
      break;
    case ProjectorKind::pooled: {
      const char* key = "mm_tokens_per_image";
      const Index rows = outer.size(key, 256, 1, 1 << 20), side = std::lround(std::sqrt(static_cast<double>(rows)));
      if (side * side != rows || grid % side != 0)
        outer.refuse(key, text("the square of a divisor of the ", grid, " patches of a tile's side"));
      out.block = grid / side;
    }
  }
}

inline VisionFields read_vision_fields(const JsonFields& outer) {
  if (outer.find("mm_vision_tower") != nullptr || outer.find("mm_projector_type") != nullptr)
    unsupported(outer.file(),
                "the tower of LLaVA's own folders lies elsewhere: use the conversion for transformers, such as those of llava-hf");
  const std::string type = outer.string("model_type");
  const VlmFamily* family = find_vlm(type);
  if (family == nullptr)
    unsupported(outer.file(),
                text("the pictures of model_type ", in_quotes(type), " are not supported: those of ", names_of(vlm_families), " are"));
  VisionFields out;
  read_tower(outer, *family, out);
  read_projector(outer, *family, out);
  VlmSpec& spec = out.spec;
  spec.model_type = type;
  spec.image_word = family->image_word;
  spec.marks = family->marks;
  spec.sight = family->sight;
  const char* token = outer.find("image_token_id") != nullptr ? "image_token_id" : "image_token_index";
  spec.image_token = static_cast<Token>(outer.size(token, family->image_token, 0));
  if (family->feature != 0) {
    const char* key = "vision_feature_select_strategy";
    const std::string strategy = outer.string(key, family->drop_first ? "default" : "full");
    if (strategy != "default" && strategy != "full") outer.refuse(key, "\"default\" or \"full\"");
    spec.drop_first = strategy == "default";
  }
  if (type == "llava_onevision") {
    const char* key = "vision_aspect_ratio";
    const std::string ratio = outer.string(key, "anyres_max_9"), start = "anyres_max_";
    Index most = 0;
    for (std::size_t i = start.size(); i < ratio.size() && i < start.size() + 5; ++i)
      most = ratio[i] >= '0' && ratio[i] <= '9' ? 10 * most + (ratio[i] - '0') : 100'000;
    if (!ratio.starts_with(start) || most < 1 || most > 9999) outer.refuse(key, "\"anyres_max_\" and a number from 1 to 9999");
    spec.anyres_max = most;
  }
  return out;
}

}}}  // namespace pith::v0::detail
