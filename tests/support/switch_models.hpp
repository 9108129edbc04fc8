#pragma once

#include <cstddef>
#include <vector>

#include <pith/model/config.hpp>

#include "support/tiny_model.hpp"

namespace pith_test {

inline constexpr pith::Index switch_length = 20;  ///< of the longrope below

/// Small models that turn every switch of a decoder, and every switch against others that it may meddle with.
inline pith::DecoderConfig switch_config(std::size_t which) {
  using namespace pith;
  DecoderConfig c = tiny_config();
  c.num_hidden_layers = 3;
  c.resolve();
  if (which == 0) {  // norms on all sides and per head, caps, scales, windows, two ropes and none
    c.activation = GateActivation::gelu_tanh;
    c.embedding_scale = 1.75, c.input_scale = 0.8, c.logits_scale = 1.5, c.logits_softcap = 4;
    c.ropes = {{.theta = 500,
                .scaling = {.type = RopeType::yarn, .factor = 4, .original_max_position_embeddings = 48, .beta_fast = 4},
                .rotary_dim = 6,
                .interleaved = true},
               {.theta = 100, .scaling = {.type = RopeType::linear, .factor = 2}}};
    for (LayerSpec& layer : c.layers) {
      layer.qk_norm = QkNorm::head;
      layer.post_attention = layer.post_mlp = true;
      layer.attention_scale = 0.5, layer.attention_softcap = 3, layer.residual_scale = 0.7;
      layer.query_scale = {.beta = 0.4, .length = 5};
    }
    c.layers[0].window = 7, c.layers[0].rope = 1;
    c.layers[2].rope = LayerSpec::no_rope;
  } else if (which == 1) {  // output norms only, norms over projections, a longrope
    c.activation = GateActivation::gelu;
    c.ropes = {{.scaling = {.type = RopeType::longrope,
                            .original_max_position_embeddings = switch_length,
                            .short_factor = {1, 1.1, 1.2},
                            .long_factor = {1.5, 3, 6}},
                .rotary_dim = 6}};
    for (LayerSpec& layer : c.layers) {
      layer.qk_norm = QkNorm::projection;
      layer.pre_attention = layer.pre_mlp = false;
      layer.post_attention = layer.post_mlp = true;
    }
  } else {  // parallel blocks under LayerNorm, interleaved rope and none
    c.norm = NormKind::layer;
    c.logits_scale = 0.25;
    c.ropes = {{.interleaved = true}};
    for (LayerSpec& layer : c.layers) layer.parallel = true, layer.pre_mlp = false;
    c.layers[0].window = 6;
    c.layers[1].rope = LayerSpec::no_rope;
    c.layers[1].post_attention = c.layers[1].post_mlp = true;
  }
  return c;
}
inline constexpr std::size_t num_switch_configs = 3;

/// One of these models with random weights and norms.
template <class S> pith::Decoder<S> switch_model(std::size_t which) { return random_decoder<S>(switch_config(which), 3 + which, false); }

}  // namespace pith_test
