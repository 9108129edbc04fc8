#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/model/config.hpp>
#include <pith/nn/embedding.hpp>
#include <pith/nn/linear.hpp>
#include <pith/peft/model_adapter.hpp>

// The weights of a decoder, and the check of their shapes.
namespace pith { inline namespace v0 {

/// Weights of one decoder block. Norms are named by their place, empty where the layer has none, and hold the factor itself (1 + w, where
/// files hold w).
template <class S = float> struct LayerWeights {
  Vector<S> pre_attention_norm;        ///< [hidden] of what attention reads
  Vector<S> post_attention_norm = {};  ///< [hidden] of what attention adds
  Vector<S> pre_mlp_norm;              ///< [hidden] of what the feed-forward block reads
  Vector<S> post_mlp_norm = {};        ///< [hidden] of what the feed-forward block adds
  Vector<S> q_norm = {}, k_norm = {};  ///< [head_dim], or the width of the projection: QkNorm
  AnyLinear<S> q_proj;                 ///< [heads*head_dim, hidden]
  AnyLinear<S> k_proj, v_proj;         ///< [kv_heads*head_dim, hidden]
  AnyLinear<S> o_proj;                 ///< [hidden, heads*head_dim]
  AnyLinear<S> gate_proj, up_proj;     ///< [intermediate, hidden]
  AnyLinear<S> down_proj;              ///< [hidden, intermediate]
};

/// All weights of a decoder. Every projection may be packed, mapped, int8, int4 or your own LinearOp, and keeps the file it maps alive.
template <class S = float> struct DecoderWeights {
  Embedding<S> embed_tokens;  ///< [vocab, hidden]
  std::vector<LayerWeights<S>> layers;
  Vector<S> norm;        ///< [hidden]
  AnyLinear<S> lm_head;  ///< [vocab, hidden]; with tied embeddings, embed_tokens in a second layout
  /// Hash of config, tensor names, types, shapes, and the first and last 4 KiB of each tensor; a saved session must match it.
  std::uint64_t fingerprint = 0;

  /// Compares every shape with the config.
  ///
  /// Throws   ShapeError "pith::DecoderWeights: layers[3].q_proj is [64, 48], expected [64, 64]"; what config.check() throws
  void check(const DecoderConfig& config) const;

  /// Bytes of the weights. A tied head that maps the embedding table is counted as well.
  std::size_t bytes() const;
};

namespace detail {

inline void check_weight(const std::string& name, Index rows, Index cols, Index want_rows, Index want_cols) {
  if (rows != want_rows || cols != want_cols)
    raise<ShapeError>("pith::DecoderWeights: ", name, " is ", shape_text(rows, cols), ", expected ", shape_text(want_rows, want_cols),
                      " by the config");
}

template <class S> void check_linear(const std::string& name, const AnyLinear<S>& linear, Index out, Index in) {
  if (linear.empty()) raise<ShapeError>("pith::DecoderWeights: ", name, " is empty, expected ", shape_text(out, in), " by the config");
  check_weight(name, linear.out(), linear.in(), out, in);
}

template <class S> const Vector<S>& norm_of(const LayerWeights<S>& layer, NormPlace place) {
  const Vector<S>* const all[num_norms] = {
      &layer.pre_attention_norm, &layer.post_attention_norm, &layer.pre_mlp_norm, &layer.post_mlp_norm, &layer.q_norm, &layer.k_norm};
  return *all[static_cast<std::size_t>(place)];
}

/// Features of the norm that a layer has at this place; 0: none.
inline Index norm_width(const DecoderConfig& c, const LayerSpec& layer, NormPlace place) {
  const auto of_heads = [&](Index heads) {
    return layer.qk_norm == QkNorm::none ? 0 : layer.qk_norm == QkNorm::head ? c.head_dim : heads * c.head_dim;
  };
  switch (place) {
    case NormPlace::pre_attention:
      return layer.pre_attention ? c.hidden_size : 0;
    case NormPlace::post_attention:
      return layer.post_attention ? c.hidden_size : 0;
    case NormPlace::pre_mlp:
      return layer.pre_mlp ? c.hidden_size : 0;
    case NormPlace::post_mlp:
      return layer.post_mlp ? c.hidden_size : 0;
    case NormPlace::q:
      return of_heads(c.num_attention_heads);
    case NormPlace::k:
      return of_heads(c.num_key_value_heads);
  }
  return 0;
}

template <class S> const AnyLinear<S>& projection_of(const LayerWeights<S>& layer, Projection p) {
  const AnyLinear<S>* const all[num_projections] = {&layer.q_proj,    &layer.k_proj,  &layer.v_proj,   &layer.o_proj,
                                                    &layer.gate_proj, &layer.up_proj, &layer.down_proj};
  return *all[static_cast<std::size_t>(p)];
}

/// Calls visit(name, linear, out, in) for each projection of a layer, in order of use.
template <class Layer, class Visit> void for_each_projection(Layer& layer, const DecoderConfig& c, Visit&& visit) {
  const Index q = c.num_attention_heads * c.head_dim, kv = c.num_key_value_heads * c.head_dim;
  visit("self_attn.q_proj", layer.q_proj, q, c.hidden_size);
  visit("self_attn.k_proj", layer.k_proj, kv, c.hidden_size);
  visit("self_attn.v_proj", layer.v_proj, kv, c.hidden_size);
  visit("self_attn.o_proj", layer.o_proj, c.hidden_size, q);
  visit("mlp.gate_proj", layer.gate_proj, c.intermediate_size, c.hidden_size);
  visit("mlp.up_proj", layer.up_proj, c.intermediate_size, c.hidden_size);
  visit("mlp.down_proj", layer.down_proj, c.hidden_size, c.intermediate_size);
}

}  // namespace detail

template <class S> void DecoderWeights<S>::check(const DecoderConfig& config) const {
  config.check();
  if (layers.size() != static_cast<std::size_t>(config.num_hidden_layers))
    raise<ShapeError>("pith::DecoderWeights: ", layers.size(), " layers, expected ", config.num_hidden_layers, " by the config");
  const Index hidden = config.hidden_size;
  detail::check_weight("embed_tokens", embed_tokens.rows(), embed_tokens.cols(), config.vocab_size, hidden);
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const std::string prefix = detail::text("layers[", l, "].");
    for (std::size_t n = 0; n < num_norms; ++n) {
      const Index width = detail::norm_width(config, config.layer(static_cast<Index>(l)), NormPlace(n));
      const Index found = detail::norm_of(layers[l], NormPlace(n)).size();
      if (width == 0 && found != 0)
        raise<ShapeError>("pith::DecoderWeights: ", prefix, norm_names[n], " has ", found,
                          " features, expected none: the config gives the layer no such norm");
      if (width != 0) detail::check_weight(prefix + norm_names[n], found, 1, width, 1);
    }
    detail::for_each_projection(layers[l], config, [&](const char* name, const AnyLinear<S>& linear, Index out, Index in) {
      detail::check_linear(prefix + name, linear, out, in);
    });
  }
  detail::check_weight("norm", norm.size(), 1, hidden, 1);
  detail::check_linear("lm_head", lm_head, config.vocab_size, hidden);
}

template <class S> std::size_t DecoderWeights<S>::bytes() const {
  const auto of = [](const AnyLinear<S>& linear) { return linear.empty() ? 0 : linear.bytes(); };
  std::size_t sum = embed_tokens.bytes() + of(lm_head) + static_cast<std::size_t>(norm.size()) * sizeof(S);
  for (const LayerWeights<S>& layer : layers) {
    for (std::size_t n = 0; n < num_norms; ++n) sum += static_cast<std::size_t>(detail::norm_of(layer, NormPlace(n)).size()) * sizeof(S);
    for (const AnyLinear<S>* linear :
         {&layer.q_proj, &layer.k_proj, &layer.v_proj, &layer.o_proj, &layer.gate_proj, &layer.up_proj, &layer.down_proj})
      sum += of(*linear);
  }
  return sum;
}

}}  // namespace pith::v0
