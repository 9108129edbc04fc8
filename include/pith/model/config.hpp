#pragma once

#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include <pith/attention/rope.hpp>
#include <pith/attention/shape.hpp>
#include <pith/core/check.hpp>
#include <pith/core/types.hpp>

namespace pith { inline namespace v0 {

/// The shape and constants of a Llama, Mistral or Qwen2 decoder, under the names config.json uses.
///
/// An aggregate: write one by hand, or let load_checkpoint() read it. Values that a family derives (head_dim, the window of every layer)
/// are stored resolved.
struct DecoderConfig {
  std::string model_type = "llama";  ///< llama, mistral or qwen2
  Index vocab_size = 0;
  Index hidden_size = 0;
  Index intermediate_size = 0;
  Index num_hidden_layers = 0;
  Index num_attention_heads = 0;
  Index num_key_value_heads = 0;
  Index head_dim = 0;                    ///< num_attention_heads*head_dim need not equal hidden_size
  Index max_position_embeddings = 2048;  ///< a training limit; dynamic rope also uses it
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  RopeScaling rope_scaling;
  bool attention_bias = false;        ///< llama: q, k, v and o have biases
  bool mlp_bias = false;              ///< llama: gate, up and down have biases
  bool tie_word_embeddings = false;   ///< the embedding table is also the output head
  std::vector<Index> sliding_window;  ///< [layers] tokens a query sees, itself included; 0: all; empty: all, in every layer
  std::vector<Token> eos_token_id;    ///< each of them ends a text; may be empty
  Token bos_token_id = -1;            ///< -1: none

  AttentionShape attention() const { return {num_attention_heads, num_key_value_heads, head_dim}; }
  RopeOptions rope() const {
    return {.head_dim = head_dim, .theta = rope_theta, .scaling = rope_scaling, .max_position_embeddings = max_position_embeddings};
  }

  /// Tokens a query of this layer sees, itself included; 0: all of them.
  Index window(Index layer) const {
    if (layer < 0 || layer >= num_hidden_layers) [[unlikely]]
      raise<ShapeError>(detail::text("pith::DecoderConfig::window: layer ", layer, " of ", num_hidden_layers));
    const auto l = static_cast<std::size_t>(layer);
    return l < sliding_window.size() ? sliding_window[l] : 0;
  }

  /// Refuses a configuration that no decoder can be built from.
  ///
  /// Throws   ShapeError naming the field, its value and what is expected; UnsupportedError for another family
  void check() const;
};

/// Upper bound of every size in a config: vocabularies and positions are int32, and a product of two sizes fits an Index.
inline constexpr Index max_config_size = (std::numeric_limits<Token>::max)();
/// Upper bound of the number of layers, far above any model: protects against corrupt files.
inline constexpr Index max_config_layers = 65536;

namespace detail {

inline void check_config_size(const char* field, Index value, Index most = max_config_size) {
  if (value < 1 || value > most) raise<ShapeError>(text("pith::DecoderConfig: ", field, " is ", value, ", expected 1 to ", most));
}
inline void check_config_number(const char* field, double value, bool zero_allowed) {
  if (!std::isfinite(value) || value < 0 || (value == 0 && !zero_allowed))
    raise<ShapeError>(text("pith::DecoderConfig: ", field, " is ", value, ", expected a finite number ", zero_allowed ? ">= 0" : "> 0"));
}

inline void check_rope_scaling(const RopeScaling& rope) {
  if (rope.type == RopeType::none) return;
  check_config_number("rope_scaling.factor", rope.factor, false);
  if (rope.type != RopeType::llama3) return;
  check_config_number("rope_scaling.low_freq_factor", rope.low_freq_factor, false);
  check_config_number("rope_scaling.high_freq_factor", rope.high_freq_factor, false);
  check_config_size("rope_scaling.original_max_position_embeddings", rope.original_max_position_embeddings);
  if (rope.low_freq_factor >= rope.high_freq_factor)
    raise<ShapeError>(text("pith::DecoderConfig: rope_scaling.low_freq_factor is ", rope.low_freq_factor,
                           ", expected less than high_freq_factor, which is ", rope.high_freq_factor));
}

}  // namespace detail

inline void DecoderConfig::check() const {
  using detail::text;
  if (model_type != "llama" && model_type != "mistral" && model_type != "qwen2")
    raise<UnsupportedError>(text("pith::DecoderConfig: model_type '", model_type, "' is not supported: llama, mistral and qwen2 are"));
  detail::check_config_size("vocab_size", vocab_size);
  detail::check_config_size("hidden_size", hidden_size);
  detail::check_config_size("intermediate_size", intermediate_size);
  detail::check_config_size("num_hidden_layers", num_hidden_layers, max_config_layers);
  detail::check_config_size("num_attention_heads", num_attention_heads);
  detail::check_config_size("num_key_value_heads", num_key_value_heads);
  detail::check_config_size("head_dim", head_dim);
  detail::check_config_size("max_position_embeddings", max_position_embeddings);
  detail::check_config_size("num_attention_heads*head_dim", detail::checked_product("DecoderConfig", num_attention_heads, head_dim));
  if (num_attention_heads % num_key_value_heads != 0)
    raise<ShapeError>(text("pith::DecoderConfig: num_key_value_heads is ", num_key_value_heads,
                           ", expected a divisor of num_attention_heads, ", num_attention_heads));
  if (head_dim % 2 != 0)
    raise<ShapeError>(
        text("pith::DecoderConfig: head_dim is ", head_dim, ", expected an even number: rope pairs feature i with i + head_dim/2"));
  detail::check_config_number("rms_norm_eps", rms_norm_eps, true);
  detail::check_config_number("rope_theta", rope_theta, false);
  detail::check_rope_scaling(rope_scaling);
  if (!sliding_window.empty() && sliding_window.size() != static_cast<std::size_t>(num_hidden_layers))
    raise<ShapeError>(text("pith::DecoderConfig: sliding_window has ", sliding_window.size(), " entries, expected one a layer, ",
                           num_hidden_layers, ", or none"));
  for (const Index window : sliding_window)
    if (window < 0 || window > max_config_size)
      raise<ShapeError>(text("pith::DecoderConfig: sliding_window is ", window, ", expected 0 (all tokens) to ", max_config_size));
  for (const Token eos : eos_token_id)
    if (eos < 0) raise<ShapeError>(text("pith::DecoderConfig: eos_token_id is ", eos, ", expected a token, or an empty list"));
}

}}  // namespace pith::v0
