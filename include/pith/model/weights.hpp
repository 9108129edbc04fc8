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

/// Weights of one decoder block, named as in the checkpoint: post_attention_layernorm is the norm before the feed-forward part.
template <class S = float> struct LayerWeights {
  Vector<S> input_layernorm;           ///< [hidden]
  Vector<S> post_attention_layernorm;  ///< [hidden]
  AnyLinear<S> q_proj;                 ///< [heads*head_dim, hidden]
  AnyLinear<S> k_proj, v_proj;         ///< [kv_heads*head_dim, hidden]
  AnyLinear<S> o_proj;                 ///< [hidden, heads*head_dim]
  AnyLinear<S> gate_proj, up_proj;     ///< [intermediate, hidden]
  AnyLinear<S> down_proj;              ///< [hidden, intermediate]
};

/// All weights of a decoder. Every projection may be packed, mapped, int8 or your own LinearOp, and keeps the file it maps alive.
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
    raise<ShapeError>(text("pith::DecoderWeights: ", name, " is ", shape_text(rows, cols), ", expected ", shape_text(want_rows, want_cols),
                           " by the config"));
}

template <class S> void check_linear(const std::string& name, const AnyLinear<S>& linear, Index out, Index in) {
  if (linear.empty())
    raise<ShapeError>(text("pith::DecoderWeights: ", name, " is empty, expected ", shape_text(out, in), " by the config"));
  check_weight(name, linear.out(), linear.in(), out, in);
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
    raise<ShapeError>(
        detail::text("pith::DecoderWeights: ", layers.size(), " layers, expected ", config.num_hidden_layers, " by the config"));
  const Index hidden = config.hidden_size;
  detail::check_weight("embed_tokens", embed_tokens.rows(), embed_tokens.cols(), config.vocab_size, hidden);
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const std::string prefix = detail::text("layers[", l, "].");
    detail::check_weight(prefix + "input_layernorm", layers[l].input_layernorm.size(), 1, hidden, 1);
    detail::for_each_projection(layers[l], config, [&](const char* name, const AnyLinear<S>& linear, Index out, Index in) {
      detail::check_linear(prefix + name, linear, out, in);
    });
    detail::check_weight(prefix + "post_attention_layernorm", layers[l].post_attention_layernorm.size(), 1, hidden, 1);
  }
  detail::check_weight("norm", norm.size(), 1, hidden, 1);
  detail::check_linear("lm_head", lm_head, config.vocab_size, hidden);
}

template <class S> std::size_t DecoderWeights<S>::bytes() const {
  const auto of = [](const AnyLinear<S>& linear) { return linear.empty() ? 0 : linear.bytes(); };
  std::size_t sum = embed_tokens.bytes() + of(lm_head) + static_cast<std::size_t>(norm.size()) * sizeof(S);
  for (const LayerWeights<S>& layer : layers) {
    sum += static_cast<std::size_t>(layer.input_layernorm.size() + layer.post_attention_layernorm.size()) * sizeof(S);
    for (const AnyLinear<S>* linear :
         {&layer.q_proj, &layer.k_proj, &layer.v_proj, &layer.o_proj, &layer.gate_proj, &layer.up_proj, &layer.down_proj})
      sum += of(*linear);
  }
  return sum;
}

}}  // namespace pith::v0
