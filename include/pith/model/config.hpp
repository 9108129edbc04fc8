#pragma once
// The description of a decoder: its sizes, norms, ropes, and what each layer computes.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <pith/attention/rope_options.hpp>
#include <pith/attention/shape.hpp>
#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/nn/activation.hpp>
#include <pith/nn/norm.hpp>

namespace pith { inline namespace v0 {

/// Upper bound of every size in a config: vocabularies and positions are int32, and a product of two sizes fits an Index.
inline constexpr Index max_config_size = (std::numeric_limits<Token>::max)();
/// Upper bound of the number of layers, far above any model: protects against corrupt files.
inline constexpr Index max_config_layers = 65536;

/// Where a layer normalises its queries and keys, before rope.
enum class QkNorm : std::uint8_t {
  none,
  head,        ///< each head by itself: one weight [head_dim] for all heads of the queries, another for the keys
  projection,  ///< all heads together: weights [num_attention_heads*head_dim] and [num_key_value_heads*head_dim]
};

/// Queries of late positions are scaled up: q *= 1 + beta ln(1 + floor(position / length)).
struct QueryScale {
  double beta = 0;   ///< 0: no scale
  Index length = 0;  ///< the first position with a scale

  bool on() const { return beta != 0; }
  double at(Index position) const { return 1 + beta * std::log1p(static_cast<double>(position / length)); }
  friend bool operator==(const QueryScale&, const QueryScale&) = default;
};

/// What one layer computes; the defaults are a Llama's.
///
///   x += residual_scale · post_attention(o(attend(rope(q_norm(q a)), rope(k_norm(k a)), v a))), a = pre_attention(x)
///   x += residual_scale · post_mlp(down(act(gate b) ∘ up b)), b = pre_mlp(x); in a parallel layer b = a, and both read the same x
struct LayerSpec {
  Index window = 0;                               ///< tokens a query sees, itself included; 0: all
  Index rope = 0;                                 ///< index in DecoderConfig::ropes; no_rope: queries and keys are used as they are
  QkNorm qk_norm = QkNorm::none;                  ///< norm of queries and keys
  bool pre_attention = true, pre_mlp = true;      ///< norms of what the two blocks read
  bool post_attention = false, post_mlp = false;  ///< norms of what they add
  bool parallel = false;                          ///< both blocks read the output of pre_attention; pre_mlp is false
  double attention_scale = 0;                     ///< multiplies scores; 0: 1/√head_dim
  double attention_softcap = 0;                   ///< scores become cap·tanh(score/cap) before the mask; 0: no cap
  double residual_scale = 1;                      ///< multiplies what the two blocks add
  QueryScale query_scale = {};

  static constexpr Index no_rope = -1;
  friend bool operator==(const LayerSpec&, const LayerSpec&) = default;
};

/// What a decoder is: sizes, constants, and what each layer computes. It names no family: load_checkpoint() resolves a config.json into it,
/// and one written by hand needs only the sizes to be a Llama.
struct DecoderConfig {
  std::string model_type = "llama";  ///< a name for messages and for the readers of files; the decoder does not look at it
  Index vocab_size = 0;
  Index hidden_size = 0;
  Index intermediate_size = 0;
  Index num_hidden_layers = 0;
  Index num_attention_heads = 0;
  Index num_key_value_heads = 0;
  Index head_dim = 0;                    ///< num_attention_heads*head_dim need not equal hidden_size
  Index max_position_embeddings = 2048;  ///< a training limit; dynamic rope and longrope also use it
  std::vector<LayerSpec> layers = {};    ///< one for each layer; empty: all plain
  std::vector<RopeOptions> ropes = {};   ///< those that layers name; head_dim and max_position_embeddings above count; empty: a plain one
  NormKind norm = NormKind::rms;         ///< of every norm of the model
  double norm_eps = 1e-6;
  bool norm_plus_one = false;  ///< files hold norms as w - 1; weights in memory hold w
  GateActivation activation = GateActivation::silu;
  double embedding_scale = 1;            ///< multiplies the rows of the embedding table when tokens are looked up
  double input_scale = 1;                ///< multiplies all that enters the first layer, embeddings given by the caller included
  double logits_scale = 1;               ///< multiplies logits
  double logits_softcap = 0;             ///< scaled logits become cap·tanh(logit/cap); 0: no cap
  bool attention_bias = false;           ///< q, k, v and o have biases in files
  bool mlp_bias = false;                 ///< gate, up and down have biases in files
  bool tie_word_embeddings = false;      ///< the embedding table is also the output head
  std::vector<Token> eos_token_id = {};  ///< each of them ends a text; may be empty
  Token bos_token_id = -1;               ///< -1: none

  AttentionShape attention() const { return {num_attention_heads, num_key_value_heads, head_dim}; }

  /// What a layer computes, whether listed or plain.
  LayerSpec layer(Index index) const {
    if (index < 0 || index >= num_hidden_layers) [[unlikely]]
      raise<ShapeError>("pith::DecoderConfig: layer ", index, " of ", num_hidden_layers);
    return static_cast<std::size_t>(index) < layers.size() ? layers[static_cast<std::size_t>(index)] : LayerSpec{};
  }
  /// Tokens a query of this layer sees, itself included; 0: all of them.
  Index window(Index index) const { return layer(index).window; }

  /// A rope with the config's head_dim and max_position_embeddings; no_rope: one that does not rotate.
  ///
  /// Throws   ShapeError for a rope that the config does not have
  RopeOptions rope(Index index = 0) const {
    RopeOptions options;
    if (index == LayerSpec::no_rope)
      options.scaling.type = RopeType::identity;
    else if (index < 0 || index >= (std::max)(Index(1), static_cast<Index>(ropes.size()))) [[unlikely]]
      raise<ShapeError>("pith::DecoderConfig: rope ", index, " of ", ropes.size());
    else if (!ropes.empty())
      options = ropes[static_cast<std::size_t>(index)];
    options.head_dim = head_dim;
    options.max_position_embeddings = max_position_embeddings;
    return options;
  }

  /// The length beyond which a longrope among the ropes turns by its other table; 0: none does.
  ///
  /// Throws   ShapeError if two of them differ in it
  Index switch_length() const {
    Index length = 0;
    for (const RopeOptions& rope : ropes) {
      if (rope.scaling.type != RopeType::longrope || !rope.by_length()) continue;
      const Index own = rope.scaling.original_max_position_embeddings;
      if (length > 0 && own != length)
        raise<ShapeError>("pith::DecoderConfig: longropes with original_max_position_embeddings ", length, " and ", own,
                          ", expected one length a model");
      length = own;
    }
    return length;
  }

  /// Lists every layer and rope, so that they can be changed one by one: config.resolve().layers[3].window = 512.
  DecoderConfig& resolve() {
    if (layers.empty() && num_hidden_layers > 0 && num_hidden_layers <= max_config_layers)
      layers.resize(static_cast<std::size_t>(num_hidden_layers));
    if (ropes.empty()) ropes.emplace_back();
    for (std::size_t i = 0; i < ropes.size(); ++i) ropes[i] = rope(static_cast<Index>(i));
    return *this;
  }

  /// Refuses a configuration that no decoder can be built from.
  ///
  /// Throws   ShapeError naming the field, its value and what is expected
  void check() const;

  friend bool operator==(const DecoderConfig&, const DecoderConfig&) = default;
};

namespace detail {

inline void check_config_size(const char* field, Index value, Index most = max_config_size) {
  if (value < 1 || value > most) raise<ShapeError>("pith::DecoderConfig: ", field, " is ", value, ", expected 1 to ", most);
}
inline void check_config_number(const std::string& field, double value, bool zero_allowed) {
  if (!std::isfinite(value) || value < 0 || (value == 0 && !zero_allowed))
    raise<ShapeError>("pith::DecoderConfig: ", field, " is ", value, ", expected a finite number ", zero_allowed ? ">= 0" : "> 0");
}

inline void check_layer_spec(const std::string& name, const LayerSpec& layer, Index ropes) {
  const auto refuse = [&](const std::string& what) { raise<ShapeError>("pith::DecoderConfig: ", name, what); };
  if (layer.window < 0 || layer.window > max_config_size)
    refuse(text("window is ", layer.window, ", expected 0 (all tokens) to ", max_config_size));
  if (layer.rope < LayerSpec::no_rope || layer.rope >= ropes)
    refuse(text("rope is ", layer.rope, ", expected -1 (none) or one of ", ropes, " ropes"));
  check_config_number(name + "attention_scale", layer.attention_scale, true);
  check_config_number(name + "attention_softcap", layer.attention_softcap, true);
  check_config_number(name + "residual_scale", layer.residual_scale, false);
  check_config_number(name + "query_scale.beta", layer.query_scale.beta, true);
  if (layer.query_scale.on() && (layer.query_scale.length < 1 || layer.query_scale.length > max_config_size))
    refuse(text("query_scale.length is ", layer.query_scale.length, ", expected 1 to ", max_config_size));
  if (layer.parallel && layer.pre_mlp)
    refuse("pre_mlp is true in a parallel layer, whose feed-forward block reads what pre_attention gives");
}

}  // namespace detail

inline void DecoderConfig::check() const {
  using detail::text;
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
    raise<ShapeError>("pith::DecoderConfig: num_key_value_heads is ", num_key_value_heads, ", expected a divisor of num_attention_heads, ",
                      num_attention_heads);
  const Index count = (std::max)(Index(1), static_cast<Index>(ropes.size()));
  for (Index i = 0; i < count; ++i) detail::check_rope(text("DecoderConfig: ropes[", i, "]"), rope(i));
  if (!layers.empty() && layers.size() != static_cast<std::size_t>(num_hidden_layers))
    raise<ShapeError>("pith::DecoderConfig: layers has ", layers.size(), " entries, expected one a layer, ", num_hidden_layers,
                      ", or none");
  static_cast<void>(switch_length());
  for (std::size_t l = 0; l < layers.size(); ++l) detail::check_layer_spec(text("layers[", l, "]."), layers[l], count);
  detail::check_config_number("norm_eps", norm_eps, true);
  detail::check_config_number("embedding_scale", embedding_scale, false);
  detail::check_config_number("input_scale", input_scale, false);
  detail::check_config_number("logits_scale", logits_scale, false);
  detail::check_config_number("logits_softcap", logits_softcap, true);
  for (const Token eos : eos_token_id)
    if (eos < 0) raise<ShapeError>("pith::DecoderConfig: eos_token_id is ", eos, ", expected a token, or an empty list");
}

}}  // namespace pith::v0
