#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/detail/json.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/model/config.hpp>

namespace pith { inline namespace v0 {

/// Reads a config.json of the llama, mistral or qwen2 family, as written by transformers 4 or 5, and fills in the family's defaults.
///
/// Refuses by name every setting that would change the numbers: other families, rope types and activations, quantised weights, partial
/// rotary factors, non-causal attention, classes other than …ForCausalLM, two spellings of a setting that disagree. vocab_size stays 0 if
/// the file omits it: the embedding table gives it. Settings ignored on purpose are added to `ignored`.
///
/// Throws   FormatError naming file, key, found and expected; UnsupportedError naming the unsupported feature
DecoderConfig read_config(const std::filesystem::path& path, std::vector<std::string>* ignored = nullptr);
DecoderConfig parse_config(std::string_view json, std::string_view name = "config.json", std::vector<std::string>* ignored = nullptr);

namespace detail {

[[noreturn]] inline void unsupported(std::string_view file, const std::string& what) {
  raise<UnsupportedError>("pith: ", in_quotes(file), ": ", what);
}

/// Refuses `architectures` other than causal language models: transformers names its classes by the head.
inline void refuse_other_heads(const JsonFields& c) {
  const auto* classes = c.find("architectures");
  if (classes == nullptr) return;
  const char* expected = "a list of names of classes";
  if (!classes->is_array()) c.refuse("architectures", expected);
  for (const auto& one : *classes) {
    if (!one.is_string()) c.refuse("architectures", expected);
    const auto name = one.get<std::string_view>();
    const auto has = [&](std::string_view part) { return name.find(part) != std::string_view::npos; };
    if (name.ends_with("ForCausalLM")) continue;
    unsupported(c.file(), text("architectures names ", in_quotes(name), ": ",
                               has("Classification") || has("QuestionAnswering") || has("Reward")
                                   ? "heads of classifiers and reward models are not supported"
                               : name.ends_with("Model") ? "a model without the head of a language model"
                                                         : "no causal language model",
                               "; expected a …ForCausalLM"));
  }
}

/// The reason to refuse quantised weights: the value of a key that only quantised checkpoints have.
inline std::string quantisation(std::string_view file, const char* key, const Json& value) {
  if (!value.is_object()) return value.dump(40);
  const JsonFields q(file, value, text(key, "."));
  if (const auto* method = q.find("quant_method")) return method->dump(40);
  return q.find("bits") != nullptr && q.find("group_size") != nullptr ? "by MLX" : "by an unnamed method";
}

inline void refuse_unsupported_config(const JsonFields& c, const std::string& family) {
  if (family != "llama" && family != "mistral" && family != "qwen2")
    unsupported(c.file(), text("model_type ", in_quotes(family), " is not supported: llama, mistral and qwen2 are"));
  refuse_other_heads(c);
  for (const char* key : {"quantization_config", "compression_config", "quantization"})
    if (const auto* quantised = c.find(key))
      unsupported(c.file(), text(key, " (", quantisation(c.file(), key, *quantised),
                                 "): quantised checkpoints are not supported; use the unquantised F32, F16 or BF16 one"));
  if (c.is_null("is_causal") || !c.boolean("is_causal", true))  // transformers reads null as false
    unsupported(c.file(), "is_causal is not true: attention to later tokens, as embedding models have it, is not supported");
  for (const char* key : {"use_bidirectional_attention", "is_encoder_decoder", "add_cross_attention", "lm_head_bias", "use_qk_norm"})
    if (c.boolean(key, false)) unsupported(c.file(), text(key, " is true, which is not supported"));
  if (const std::string act = c.string("hidden_act", "silu"); act != "silu" && act != "swish")
    unsupported(c.file(), text("hidden_act ", in_quotes(act), " is not supported: silu is"));
  if (c.number("partial_rotary_factor", 1) != 1)
    unsupported(c.file(),
                text("partial_rotary_factor ", c.number("partial_rotary_factor", 1), " is not supported: all features must rotate"));
}

/// Reads rope scaling from one of the two objects that may hold it.
inline RopeScaling read_rope_scaling(const JsonFields& c, const JsonFields& rope) {
  if (rope.number("partial_rotary_factor", 1) != 1) unsupported(c.file(), "a partial_rotary_factor other than 1 is not supported");
  if (rope.find("mrope_section") != nullptr) unsupported(c.file(), "rope with an mrope_section is not supported");
  RopeScaling scaling;
  const std::string type = rope.string("rope_type", rope.string("type", "default"));
  if (type == "default") return scaling;
  if (type == "linear")
    scaling.type = RopeType::linear;
  else if (type == "dynamic")
    scaling.type = RopeType::dynamic;
  else if (type == "llama3")
    scaling.type = RopeType::llama3;
  else
    unsupported(c.file(), text("rope type ", in_quotes(type), " is not supported: default, linear, dynamic and llama3 are"));
  scaling.factor = rope.positive("factor");
  if (scaling.type != RopeType::llama3) return scaling;
  scaling.low_freq_factor = rope.positive("low_freq_factor");
  scaling.high_freq_factor = rope.positive("high_freq_factor");
  if (scaling.low_freq_factor >= scaling.high_freq_factor) rope.refuse("low_freq_factor", "less than high_freq_factor");
  const char* length = "original_max_position_embeddings";
  const bool outside = c.find(length) != nullptr;
  scaling.original_max_position_embeddings = outside && rope.find(length) == nullptr ? c.size(length) : rope.size(length);
  if (outside && c.size(length) != scaling.original_max_position_embeddings)
    rope.refuse(length, text(c.size(length), ", which ", length, " says beside it"));
  return scaling;
}

/// Reads rope_parameters (transformers 5), rope_theta and rope_scaling (4); values given twice must agree.
inline void read_rope(const JsonFields& c, DecoderConfig& config) {
  const char *theta = "rope_theta", *said = c.find(theta) != nullptr ? theta : nullptr, *scaled = nullptr;
  config.rope_theta = c.positive(theta, 10000);
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const auto* object = c.find(key);
    if (object == nullptr) continue;
    const JsonFields rope(c.file(), *object, text(key, "."));
    for (const auto& [name, value] : object->items())
      if (value.is_object()) unsupported(c.file(), text("rope settings by layer type (", in_quotes(name), ") are not supported"));
    if (rope.find(theta) != nullptr) {
      const double inside = rope.positive(theta);
      if (said != nullptr && inside != config.rope_theta) rope.refuse(theta, text("what ", said, " says, or one of the two"));
      config.rope_theta = inside;
      if (said == nullptr) said = key;
    }
    const RopeScaling scaling = read_rope_scaling(c, rope);
    const RopeScaling& other = config.rope_scaling;
    const bool same = scaling.type == other.type && scaling.factor == other.factor && scaling.low_freq_factor == other.low_freq_factor &&
                      scaling.high_freq_factor == other.high_freq_factor &&
                      scaling.original_max_position_embeddings == other.original_max_position_embeddings;
    if (scaled != nullptr && !same) c.refuse(key, text("the scaling that ", scaled, " says, or one of the two"));
    config.rope_scaling = scaling;
    scaled = key;
  }
}

/// The window of each layer; each family derives it in its own way.
inline std::vector<Index> read_windows(const JsonFields& c, const DecoderConfig& config) {
  const auto layers = static_cast<std::size_t>(config.num_hidden_layers);
  const bool mistral = config.model_type == "mistral", qwen2 = config.model_type == "qwen2";
  const bool off = c.is_null("sliding_window");
  const Index width = off ? 0 : mistral || qwen2 ? c.size("sliding_window", 4096) : 0;
  const auto* types = c.find("layer_types");

  std::vector<Index> windows(layers, mistral ? width : 0);
  if (qwen2 && types == nullptr && c.boolean("use_sliding_window", false)) {
    const Index first = c.size("max_window_layers", 28, 0, max_config_layers);
    for (std::size_t l = 0; l < layers; ++l) windows[l] = static_cast<Index>(l) >= first ? width : 0;
  }
  if (types != nullptr) {
    if (!types->is_array() || types->size() != layers) c.refuse("layer_types", text("a list of ", layers, " names, one a layer"));
    for (std::size_t l = 0; l < layers; ++l) {
      const auto& name = (*types)[l];
      const bool sliding = name == "sliding_attention";
      if (!sliding && name != "full_attention")
        unsupported(c.file(), text("layer_types[", l, "] is neither full_attention nor sliding_attention"));
      const bool possible = qwen2 ? !sliding || (width > 0 && c.boolean("use_sliding_window", true)) : sliding == (windows[l] > 0);
      if (!possible) c.refuse("layer_types", text("the window that ", config.model_type, " gives layer ", l, " by its other keys"));
      windows[l] = sliding ? width : 0;
    }
  }
  for (const Index window : windows)
    if (window != 0) return windows;
  return {};
}

/// Reads the tokens of eos_token_id; -1 means none.
inline std::vector<Token> read_eos(const JsonFields& c, std::vector<Token> otherwise) {
  if (c.is_null("eos_token_id")) return {};
  const auto* eos = c.find("eos_token_id");
  if (eos == nullptr) return otherwise;
  std::vector<Token> tokens;
  const auto add = [&](const auto& one) {
    const Index token = c.whole("eos_token_id", one, -1, max_config_size);
    if (token >= 0) tokens.push_back(static_cast<Token>(token));
  };
  if (!eos->is_array()) {
    add(*eos);
  } else {
    for (const auto& one : *eos) add(one);
  }
  return tokens;
}

}  // namespace detail

inline DecoderConfig parse_config(std::string_view json, std::string_view name, std::vector<std::string>* ignored) {
  const detail::JsonDocument document = detail::parse_json(json, name);
  const detail::JsonFields c(name, document.root());
  DecoderConfig config;
  config.model_type = c.string("model_type");
  detail::refuse_unsupported_config(c, config.model_type);
  const bool llama = config.model_type == "llama", mistral = config.model_type == "mistral", qwen2 = config.model_type == "qwen2";

  config.vocab_size = c.find("vocab_size") != nullptr ? c.size("vocab_size") : 0;
  config.hidden_size = c.size("hidden_size", 4096);
  config.intermediate_size = c.size("intermediate_size", llama ? 11008 : mistral ? 14336 : 22016);
  config.num_hidden_layers = c.size("num_hidden_layers", 32, 1, max_config_layers);
  config.num_attention_heads = c.size("num_attention_heads", 32);
  const Index heads = config.num_attention_heads;
  const bool heads_default = llama || c.is_null("num_key_value_heads");
  config.num_key_value_heads = c.size("num_key_value_heads", heads_default ? heads : mistral ? 8 : 32);
  if (heads % config.num_key_value_heads != 0)
    c.refuse("num_key_value_heads", detail::text("a divisor of num_attention_heads, ", heads, " (the default here is ",
                                                 heads_default ? heads
                                                 : mistral     ? 8
                                                               : 32,
                                                 ")"));
  if (c.find("head_dim") == nullptr && config.hidden_size % heads != 0)
    c.refuse("hidden_size", detail::text("a multiple of num_attention_heads, ", heads, ", where head_dim is not given"));
  config.head_dim = c.size("head_dim", config.hidden_size / heads);
  if (config.head_dim % 2 != 0) c.refuse("head_dim", detail::text("an even number; it is ", config.head_dim));
  if (config.head_dim > max_config_size / heads)
    c.refuse("head_dim", detail::text("at most ", max_config_size, " over all ", heads, " heads"));

  config.max_position_embeddings = c.size("max_position_embeddings", llama ? 2048 : mistral ? 131072 : 32768);
  config.rms_norm_eps = c.number("rms_norm_eps", 1e-6);
  if (config.rms_norm_eps < 0) c.refuse("rms_norm_eps", "a number from 0");
  detail::read_rope(c, config);
  config.attention_bias = llama && c.boolean("attention_bias", false);
  config.mlp_bias = llama && c.boolean("mlp_bias", false);
  config.tie_word_embeddings = c.boolean("tie_word_embeddings", false);
  config.sliding_window = detail::read_windows(c, config);
  config.eos_token_id = detail::read_eos(c, qwen2 ? std::vector<Token>{} : std::vector<Token>{2});
  const bool no_bos = qwen2 ? c.find("bos_token_id") == nullptr : c.is_null("bos_token_id");
  config.bos_token_id = no_bos ? Token{-1} : static_cast<Token>(c.size("bos_token_id", 1, -1));
  if (ignored != nullptr && c.find("auto_map") != nullptr)
    ignored->push_back(detail::text(name, ": auto_map, because code of the folder's own is not run"));
  return config;
}

inline DecoderConfig read_config(const std::filesystem::path& path, std::vector<std::string>* ignored) {
  const detail::FileBytes file = detail::FileBytes::read(path, max_config_bytes);
  return parse_config(file.text(), file.name(), ignored);
}

}}  // namespace pith::v0
