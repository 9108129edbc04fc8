#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include <pith/io/detail/families.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/model/config.hpp>

// Reads from config.json what differs from layer to layer: windows, and layers without rope.
namespace pith { inline namespace v0 { namespace detail {

/// Which layers rotate, by no_rope_layers (1: with rope, unlike its name) or no_rope_layer_interval.
inline std::vector<bool> read_rotating(const JsonFields& c, std::size_t layers) {
  std::vector<bool> rotating(layers, true);
  const Json* list = c.find("no_rope_layers");
  if (list == nullptr) {
    const auto interval = static_cast<std::size_t>(c.size("no_rope_layer_interval", 4));
    for (std::size_t l = 0; l < layers; ++l) rotating[l] = (l + 1) % interval != 0;
    return rotating;
  }
  if (!list->is_array() || list->size() != layers) c.refuse("no_rope_layers", text("a list of ", layers, " numbers 0 or 1, one a layer"));
  for (std::size_t l = 0; l < layers; ++l) rotating[l] = c.whole("no_rope_layers", (*list)[l], 0, 1) == 1;
  return rotating;
}

/// Which layers have a sliding window by layer_types; `possible`: whether the other keys give them one.
inline std::vector<bool> read_layer_types(const JsonFields& c, const Json& types, std::size_t layers, bool possible) {
  if (!types.is_array() || types.size() != layers) c.refuse("layer_types", text("a list of ", layers, " names, one a layer"));
  std::vector<bool> sliding(layers);
  for (std::size_t l = 0; l < layers; ++l) {
    sliding[l] = types[l] == "sliding_attention";
    if (!sliding[l] && types[l] != "full_attention")
      unsupported(c.file(), text(c.path("layer_types"), "[", l, "] is ", types[l].dump(40),
                                 ", which is not supported: full_attention and sliding_attention are"));
    if (sliding[l] && !possible)
      c.refuse("layer_types", text("full_attention in layer ", l, ", because the other keys switch sliding windows off"));
  }
  return sliding;
}

/// Which layers have a sliding window.
inline std::vector<bool> read_sliding(const JsonFields& c, const Family& family, Index window, const std::vector<bool>& rotating) {
  const std::size_t layers = rotating.size();
  const bool by_switch = family.windows == Windows::late || family.windows == Windows::without_rope;
  const Json* types = c.find("layer_types");
  const bool read_types = by_switch || family.windows == Windows::pattern;
  if (types != nullptr && read_types)
    return read_layer_types(c, *types, layers, window > 0 && (!by_switch || c.boolean("use_sliding_window", true)));

  std::vector<bool> sliding(layers, family.windows == Windows::every && window > 0);
  if (family.windows == Windows::pattern) {
    const char* key = "sliding_window_pattern";
    const Json* said = family.period_by_key ? c.find(key) : nullptr;
    if (said != nullptr && said->is_string()) c.refuse(key, "a whole number, or layer_types beside it");
    const Index n = said != nullptr ? c.size(key) : family.period;
    for (std::size_t l = 0; l < layers; ++l) sliding[l] = window > 0 && (l + 1) % static_cast<std::size_t>(n) != 0;
  }
  if (by_switch && window > 0 && c.boolean("use_sliding_window", false)) {
    const Index first = family.windows == Windows::late ? c.size("max_window_layers", family.first_windowed, 0, max_config_layers) : 0;
    for (std::size_t l = 0; l < layers; ++l) sliding[l] = family.windows == Windows::late ? static_cast<Index>(l) >= first : !rotating[l];
  }
  return sliding;
}

/// Lists the layers of a config, with everything that the family's row says of them.
inline void read_layers(const JsonFields& c, const Family& family, DecoderConfig& config) {
  const auto layers = static_cast<std::size_t>(config.num_hidden_layers);
  const Index window = c.is_null("sliding_window") || family.windows == Windows::none ? 0
                       : family.window > 0                                            ? c.size("sliding_window", family.window)
                       : c.find("sliding_window") != nullptr                          ? c.size("sliding_window")
                                                                                      : 0;
  std::vector<bool> rotating(layers, true);
  if (family.ropeless == Ropeless::listed) rotating = read_rotating(c, layers);
  const std::vector<bool> sliding = read_sliding(c, family, window, rotating);
  config.layers.resize(layers);
  for (std::size_t l = 0; l < layers; ++l) {
    LayerSpec& layer = config.layers[l];
    const bool by_window = family.ropeless == Ropeless::full || (family.ropeless == Ropeless::full_beside && window > 0);
    if (by_window) rotating[l] = sliding[l];
    layer.window = sliding[l] ? window : 0;
    layer.rope = !rotating[l] ? LayerSpec::no_rope : family.two_ropes && sliding[l] ? 1 : 0;
    layer.qk_norm = family.qk_norm;
    layer.pre_attention = family.norm_name(NormPlace::pre_attention) != nullptr;
    layer.post_attention = family.norm_name(NormPlace::post_attention) != nullptr;
    layer.pre_mlp = family.norm_name(NormPlace::pre_mlp) != nullptr;
    layer.post_mlp = family.norm_name(NormPlace::post_mlp) != nullptr;
    layer.parallel = family.parallel;
  }
}

}}}  // namespace pith::v0::detail
