#pragma once

#include <algorithm>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/attention/attend.hpp>
#include <pith/attention/rope.hpp>
#include <pith/core/workspace.hpp>
#include <pith/kv/kv_cache.hpp>
#include <pith/model/config.hpp>
#include <pith/model/weights.hpp>
#include <pith/nn/feed_forward.hpp>
#include <pith/nn/norm.hpp>
#include <pith/peft/detail/rows_by_adapter.hpp>
#include <pith/peft/linear_adapter.hpp>
#include <pith/peft/model_adapter.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Configuration, weights, and what is derived from them: rope tables, norms, feed-forward blocks.
template <class S> struct DecoderModel {
  using Mlp = SwiGlu<AnyLinear<S>, AnyLinear<S>, AnyLinear<S>>;
  struct Layer {
    RmsNorm<S> input_norm, post_attention_norm;
    Mlp mlp;
  };

  DecoderModel(DecoderConfig c, DecoderWeights<S> w)
      : config(checked(std::move(c))),
        weights(checked(std::move(w), config)),
        rope(config.rope()),
        norm(weights.norm, S(config.rms_norm_eps)) {
    layers.reserve(weights.layers.size());
    for (const LayerWeights<S>& layer : weights.layers)
      layers.push_back({RmsNorm<S>(layer.input_layernorm, S(config.rms_norm_eps)),
                        RmsNorm<S>(layer.post_attention_layernorm, S(config.rms_norm_eps)),
                        Mlp(layer.gate_proj, layer.up_proj, layer.down_proj)});
  }

  static DecoderConfig checked(DecoderConfig c) {
    c.check();
    return c;
  }
  static DecoderWeights<S> checked(DecoderWeights<S> w, const DecoderConfig& c) {
    w.check(c);
    return w;
  }

  /// The fingerprint and sizes that an adapter must match.
  AdapterTarget target() const {
    const AttentionShape shape = config.attention();
    return {.fingerprint = weights.fingerprint,
            .num_layers = config.num_hidden_layers,
            .hidden = config.hidden_size,
            .intermediate = config.intermediate_size,
            .q = shape.num_heads * shape.head_dim,
            .kv = shape.num_kv_heads * shape.head_dim,
            .vocab = config.vocab_size};
  }

  DecoderConfig config;
  DecoderWeights<S> weights;
  Rope<S> rope;
  RmsNorm<S> norm;
  std::vector<Layer> layers;
};

}}}  // namespace pith::v0::detail
