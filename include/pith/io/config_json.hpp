#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/io/detail/families.hpp>
#include <pith/io/detail/json.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/io/detail/layer_fields.hpp>
#include <pith/io/detail/other_families.hpp>
#include <pith/io/detail/quantisation.hpp>
#include <pith/io/detail/quantisation_fields.hpp>
#include <pith/io/detail/rope_fields.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/model/config.hpp>

namespace pith { inline namespace v0 {

/// Reads the config.json of a known family, as written by transformers 4 or 5, and resolves it as transformers would: the family's defaults
/// are filled in, and every layer and rope is listed. Of a multimodal model it reads the decoder's part.
///
/// Refuses by name every setting that would change the numbers: other families, rope types and activations, methods of
/// quantising that are not supported, non-causal attention, classes other than …ForCausalLM, two spellings of a setting that disagree.
/// vocab_size stays 0 if the file omits it: the embedding table gives it. Settings ignored on purpose are added to `ignored`.
///
/// Throws   FormatError naming file, key, found and expected; UnsupportedError naming the unsupported feature
DecoderConfig read_config(const std::filesystem::path& path, std::vector<std::string>* ignored = nullptr);
DecoderConfig parse_config(std::string_view json, std::string_view name = "config.json", std::vector<std::string>* ignored = nullptr);

namespace detail {

/// parse_config(), and how the weights are quantised.
struct ConfigRead {
  DecoderConfig config;
  Quantisation quantisation;
};

/// Refuses `architectures` other than causal language models: transformers names its classes by the head. A wrapper's class is named
/// …ForConditionalGeneration.
inline void refuse_other_heads(const JsonFields& c, bool wrapper) {
  const auto* classes = c.find("architectures");
  if (classes == nullptr) return;
  const char* expected = "a list of names of classes";
  if (!classes->is_array()) c.refuse("architectures", expected);
  for (const auto& one : *classes) {
    if (!one.is_string()) c.refuse("architectures", expected);
    const auto name = one.get<std::string_view>();
    const auto has = [&](std::string_view part) { return name.find(part) != std::string_view::npos; };
    if (name.ends_with("ForCausalLM") || (wrapper && name.ends_with("ForConditionalGeneration"))) continue;
    unsupported(c.file(), text("architectures names ", in_quotes(name), ": ",
                               has("Classification") || has("QuestionAnswering") || has("Reward")
                                   ? "heads of classifiers and reward models are not supported"
                               : name.ends_with("Model") ? "a model without the head of a language model"
                                                         : "no causal language model",
                               "; expected a …For", wrapper ? "ConditionalGeneration" : "CausalLM"));
  }
}

/// Refuses, in the decoder's keys and in those around them, what no family here has.
inline void refuse_unsupported_config(const JsonFields& c, const Family& family, std::string_view inert_key = {}) {
  if (c.is_null("is_causal") || !c.boolean("is_causal", true))  // transformers reads null as false
    unsupported(c.file(),
                text(c.path("is_causal"), " is not true: attention to later tokens, as embedding models have it, is not supported"));
  for (const OtherKey& other : other_keys) {
    const auto* value = c.find(other.key);
    const bool off = value == nullptr || other.key == family.inert_key || other.key == inert_key || *value == false ||
                     (value->is_number() && value->get<double>() == 0) || (value->is_structured() && value->empty());
    if (!off) unsupported(c.file(), text(c.path(other.key), " is ", value->dump(40), ", which is not supported: ", other.missing));
  }
}

/// The decoder's part of a config.json: its keys, those around it, and its family.
struct DecoderFields {
  JsonFields outer, decoder;
  const Family* family;
};

inline DecoderFields find_decoder(const JsonFields& outer) {
  const std::string type = outer.string("model_type");
  const WrapperFamily* wrapper = find_wrapper(type);
  const Json* inside = wrapper == nullptr ? nullptr : outer.find("text_config");
  if (wrapper != nullptr && inside == nullptr && !wrapper->flat) outer.refuse("text_config", "an object, the keys of the decoder");
  const JsonFields decoder = inside == nullptr ? outer : JsonFields(outer.file(), *inside, "text_config.");
  const std::string text_type = inside != nullptr    ? decoder.string("model_type", std::string(wrapper->text_type))
                                : wrapper != nullptr ? std::string(wrapper->text_type)
                                                     : type;
  const Family* family = find_family(text_type);
  if (family == nullptr) {
    const std::string_view missing = missing_for(text_type);
    unsupported(outer.file(), text(decoder.path("model_type"), " ", in_quotes(text_type),
                                   " is not supported: ", missing.empty() ? text(family_list(), " are") : std::string(missing)));
  }
  refuse_other_heads(outer, wrapper != nullptr);
  refuse_unsupported_config(outer, *family);
  if (inside != nullptr) refuse_unsupported_config(decoder, *family, wrapper->inert_key);
  return {outer, decoder, family};
}

inline void read_sizes(const JsonFields& c, const Family& family, DecoderConfig& config) {
  config.vocab_size = c.find("vocab_size") != nullptr ? c.size("vocab_size") : 0;
  config.hidden_size = c.size("hidden_size", family.hidden);
  config.intermediate_size = c.size(family.intermediate_key, family.intermediate);
  config.num_hidden_layers = c.size("num_hidden_layers", family.layers, 1, max_config_layers);
  const Index heads = config.num_attention_heads = c.size("num_attention_heads", family.heads);
  const char* kv = "num_key_value_heads";
  if (c.is_null(kv) && !family.null_kv_heads) c.refuse(kv, "a number, or no such key");
  const Index default_kv = family.kv_heads == 0 || c.is_null(kv) ? heads : family.kv_heads;
  config.num_key_value_heads = c.size(kv, default_kv);
  if (heads % config.num_key_value_heads != 0)
    c.refuse(kv, text("a divisor of num_attention_heads, ", heads, " (the default here is ", default_kv, ")"));
  const bool split = family.head_dim == 0 || c.is_null("head_dim");
  if (c.find("head_dim") == nullptr && split && config.hidden_size % heads != 0)
    c.refuse("hidden_size", text("a multiple of num_attention_heads, ", heads, ", where head_dim is not given"));
  config.head_dim = c.size("head_dim", split ? config.hidden_size / heads : family.head_dim);
  if (config.head_dim > max_config_size / heads) c.refuse("head_dim", text("at most ", max_config_size, " over all ", heads, " heads"));
  config.max_position_embeddings = c.size("max_position_embeddings", family.positions);
  const char* eps = family.norm == NormKind::rms ? "rms_norm_eps" : "layer_norm_eps";
  config.norm_eps = c.number(eps, family.eps);
  if (config.norm_eps < 0) c.refuse(eps, "a number from 0");
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

/// Refuses numbers that are sound one by one and make no decoder together, naming their file.
inline void check_resolved(DecoderConfig config, std::string_view file) {
  if (config.vocab_size == 0) config.vocab_size = 1;  // the embedding table gives it
  try {
    config.check();
  } catch (const ShapeError& error) {
    raise<FormatError>("pith: ", in_quotes(file), ": ", error.what());
  }
}

/// Lists layer_types where a family does not read it and it says something else.
inline void list_unread_types(const JsonFields& c, const Family& family, const DecoderConfig& config, std::vector<std::string>& ignored) {
  const Json* types = c.find("layer_types");
  if (types == nullptr || (family.windows != Windows::none && family.windows != Windows::every)) return;
  bool same = types->is_array() && types->size() == config.layers.size();
  for (std::size_t l = 0; same && l < config.layers.size(); ++l) {
    const Json& type = (*types)[l];
    same = config.layers[l].window > 0 ? type == "sliding_attention" : type == "full_attention" || type == "attention";
  }
  if (!same)
    ignored.push_back(text(c.file(), ": ", c.path("layer_types"), ", because in ", family.model_type,
                           family.windows == Windows::none ? " no layer has a window" : " sliding_window alone decides"));
}

inline ConfigRead parse_whole_config(std::string_view json, std::string_view name, std::vector<std::string>* ignored) {
  const JsonDocument document = parse_json(json, name);
  const auto [outer, c, found] = find_decoder(JsonFields(name, document.root()));
  const Family& family = *found;
  ConfigRead out{{}, find_quantisation(outer, c)};
  DecoderConfig& config = out.config;
  config.model_type = family.model_type;
  read_sizes(c, family, config);
  config.norm = family.norm;
  config.norm_plus_one = family.norm_plus_one;
  config.activation = read_activation(c, family.activation_key, family.activation);
  config.attention_bias = family.attention_bias != Biases::none && c.boolean("attention_bias", family.attention_bias_default);
  config.mlp_bias = family.mlp_bias && c.boolean("mlp_bias", false);
  const char* tied = "tie_word_embeddings";
  const bool inside = c.find(tied) != nullptr;  // of a model of several kinds of input, true on either level ties
  config.tie_word_embeddings = (inside ? c : outer).boolean(tied, family.tied) || (inside && outer.boolean(tied, false));

  config.ropes = RopeReader(c, family, config).read();
  read_layers(c, family, config);
  if (family.more != nullptr) family.more(c, config);
  std::vector<Token> eos;
  for (const Token one : family.eos)
    if (one > 0) eos.push_back(one);
  const char* eos_key = "eos_token_id";
  config.eos_token_id = read_eos(c.find(eos_key) == nullptr && !c.is_null(eos_key) ? outer : c, std::move(eos));
  const char* bos_key = "bos_token_id";
  config.bos_token_id = c.is_null(bos_key) ? Token{-1} : static_cast<Token>(c.size(bos_key, family.bos, -1));
  check_resolved(config, name);
  if (ignored != nullptr) {
    for (const JsonFields* fields : {&outer, &c})
      if (fields->find("auto_map") != nullptr && (fields == &outer || c.path("") != outer.path("")))
        ignored->push_back(text(name, ": ", fields->path("auto_map"), ", because code of the folder's own is not run"));
    list_unread_types(c, family, config, *ignored);
  }
  return out;
}

inline ConfigRead read_whole_config(const std::filesystem::path& path, std::vector<std::string>* ignored) {
  const FileBytes file = FileBytes::read(path, max_config_bytes);
  return parse_whole_config(file.text(), file.name(), ignored);
}

}  // namespace detail

inline DecoderConfig parse_config(std::string_view json, std::string_view name, std::vector<std::string>* ignored) {
  return detail::parse_whole_config(json, name, ignored).config;
}

inline DecoderConfig read_config(const std::filesystem::path& path, std::vector<std::string>* ignored) {
  return detail::read_whole_config(path, ignored).config;
}

}}  // namespace pith::v0
