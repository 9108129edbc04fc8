#pragma once

#include <cmath>
#include <string>

#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/model/config.hpp>

// Keys that single families have in config.json.
namespace pith { inline namespace v0 { namespace detail {

[[noreturn]] inline void unsupported(std::string_view file, const std::string& what) {
  raise<UnsupportedError>("pith: ", in_quotes(file), ": ", what);
}

/// The activation under a key, by the names of transformers.
inline GateActivation read_activation(const JsonFields& c, const char* key, GateActivation otherwise) {
  if (c.find(key) == nullptr) return otherwise;
  const std::string name = c.string(key);
  if (name == "silu" || name == "swish") return GateActivation::silu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new" || name == "gelu_fast") return GateActivation::gelu_tanh;
  if (name == "gelu") return GateActivation::gelu;
  unsupported(c.file(), text(c.path(key), " ", in_quotes(name), " is not supported: silu, gelu and gelu_pytorch_tanh are"));
}

template <class Change> void for_all_layers(DecoderConfig& config, const Change& change) {
  for (LayerSpec& layer : config.layers) change(layer);
}

/// A cap; `absent`: the value where the key is missing. null is no cap.
inline double read_softcap(const JsonFields& c, const char* key, double absent) {
  return c.is_null(key) ? 0 : c.find(key) == nullptr ? absent : c.positive(key);
}

inline void read_granite(const JsonFields& c, DecoderConfig& config) {
  const double attention = c.positive("attention_multiplier", 1), residual = c.positive("residual_multiplier", 1);
  for_all_layers(config, [&](LayerSpec& layer) { layer.attention_scale = attention, layer.residual_scale = residual; });
  config.input_scale = c.positive("embedding_multiplier", 1);
  config.logits_scale = 1 / c.positive("logits_scaling", 1);
}

/// Granite 4 mixes attention with recurrent layers and experts; its dense models have neither, and their files must say so.
inline void read_granite4(const JsonFields& c, DecoderConfig& config) {
  const Json* types = c.find("layer_types");
  if (types == nullptr)
    unsupported(c.file(), text(c.path("layer_types"), " is missing, which makes all layers recurrent: they are missing"));
  if (!types->is_array() || types->size() != config.layers.size())
    c.refuse("layer_types", text("a list of ", config.layers.size(), " types, one for each layer"));
  for (const Json& type : *types)
    if (type != "attention" && type != "full_attention")
      unsupported(c.file(), text(c.path("layer_types"), " has ", type.dump(40), ", which is not supported: recurrent layers are missing"));
  if (c.find("num_local_experts") == nullptr)
    unsupported(c.file(), text(c.path("num_local_experts"), " is missing, which means 8: mixtures of experts are missing"));
  const std::string position = c.string("position_embedding_type", "nope");
  if (position != "rope" && position != "nope")
    unsupported(c.file(), text(c.path("position_embedding_type"), " ", in_quotes(position), " is not supported: rope and nope are"));
  if (position == "nope") for_all_layers(config, [](LayerSpec& layer) { layer.rope = LayerSpec::no_rope; });
  read_granite(c, config);
}

inline void read_gemma(const JsonFields& c, DecoderConfig& config) {
  config.embedding_scale = std::sqrt(static_cast<double>(config.hidden_size));
  // Old files have the hidden_act "gelu" and mean the tanh form; hidden_activation, where it is set, means what it says.
  if (config.activation == GateActivation::gelu) config.activation = GateActivation::gelu_tanh;
  config.activation = read_activation(c, "hidden_activation", config.activation);
}

inline void read_query_scalar(const JsonFields& c, DecoderConfig& config) {
  config.embedding_scale = std::sqrt(static_cast<double>(config.hidden_size));
  config.logits_softcap = read_softcap(c, "final_logit_softcapping", config.logits_softcap);
  const double scale = 1 / std::sqrt(c.positive("query_pre_attn_scalar", 256));
  for_all_layers(config, [&](LayerSpec& layer) { layer.attention_scale = scale; });
}

inline void read_gemma2(const JsonFields& c, DecoderConfig& config) {
  config.logits_softcap = 30;
  read_query_scalar(c, config);
  const double cap = read_softcap(c, "attn_logit_softcapping", 50);
  for_all_layers(config, [&](LayerSpec& layer) { layer.attention_softcap = cap; });
}

/// attn_logit_softcapping stands in its files and is not applied.
inline void read_gemma3(const JsonFields& c, DecoderConfig& config) { read_query_scalar(c, config); }

inline void read_ministral3(const JsonFields& c, DecoderConfig& config) {
  RopeScaling& scaling = config.ropes.front().scaling;
  QueryScale scale;
  bool said = false;
  for (const char* key : {"rope_parameters", "rope_scaling"})
    if (const Json* object = c.find(key); object != nullptr && !said) {
      const JsonFields rope(c.file(), *object, c.path(key) + ".");
      scale.beta = rope.find("llama_4_scaling_beta") == nullptr ? 0 : rope.positive("llama_4_scaling_beta");
      if (scale.on()) scale.length = rope.size("original_max_position_embeddings");
      said = true;
    }
  if (!said) {
    scaling = {.type = RopeType::yarn, .factor = 16, .original_max_position_embeddings = 16384, .mscale = 1, .mscale_all_dim = 1};
    scale = {.beta = 0.1, .length = 16384};
  }
  for_all_layers(config, [&](LayerSpec& layer) { layer.query_scale = scale; });
}

inline void read_cohere2(const JsonFields& c, DecoderConfig& config) {
  config.logits_scale = c.positive("logit_scale", 0.0625);
  for (const char* key : {"use_gated_activation", "use_parallel_block", "use_parallel_embedding"})
    if (!c.boolean(key, true)) unsupported(c.file(), text(key, " is false, which is not supported"));
  if (const std::string rope = c.string("position_embedding_type", "rope_gptj"); rope != "rope_gptj")
    unsupported(c.file(), text("position_embedding_type ", in_quotes(rope), " is not supported: rope_gptj is"));
  if (c.number("rotary_pct", 1) != 1)
    unsupported(c.file(), text("rotary_pct ", c.find("rotary_pct")->dump(), " is not supported: all features must rotate"));
  if (const std::string order = c.string("order_of_interleaved_layers", "local_attn_first"); order != "local_attn_first")
    unsupported(c.file(), text("order_of_interleaved_layers ", in_quotes(order), " is not supported: local_attn_first is"));
}

}}}  // namespace pith::v0::detail
