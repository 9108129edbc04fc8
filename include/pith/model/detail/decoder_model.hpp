#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include <pith/attention/rope.hpp>
#include <pith/model/config.hpp>
#include <pith/model/weights.hpp>
#include <pith/nn/feed_forward.hpp>
#include <pith/nn/norm.hpp>
#include <pith/peft/model_adapter.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Configuration, weights, and what is derived from them: rope tables, norms, feed-forward blocks.
template <class S> struct DecoderModel {
  using Mlp = SwiGlu<AnyLinear<S>, AnyLinear<S>, AnyLinear<S>>;
  struct Layer {
    LayerSpec spec;
    std::array<AnyNorm<S>, num_norms> norms;           ///< without features where the layer has none
    std::shared_ptr<const Rope<S>> rope, rope_beyond;  ///< beyond: for texts longer than switch_length; else the same rope
    Mlp mlp;
  };

  DecoderModel(DecoderConfig c, DecoderWeights<S> w);

  static DecoderConfig checked(DecoderConfig c) {
    c.check();
    c.resolve();
    return c;
  }
  static DecoderWeights<S> checked(DecoderWeights<S> w, const DecoderConfig& c) {
    w.check(c);
    return w;
  }

  /// What an adapter must match, and the scale of a table that it brings.
  AdapterTarget target() const;

  DecoderConfig config;
  DecoderWeights<S> weights;
  AnyNorm<S> norm;
  Index switch_length;  ///< longest text of a longrope's short table; 0: one table for every length
  std::vector<Layer> layers;
};

// Outside the class, hence not inline: a program that declares Decoder extern leaves them to the source that instantiates it.

template <class S>
DecoderModel<S>::DecoderModel(DecoderConfig c, DecoderWeights<S> w)
    : config(checked(std::move(c))),
      weights(checked(std::move(w), config)),
      norm(config.norm, weights.norm, S(config.norm_eps)),
      switch_length(config.switch_length()) {
  weights.embed_tokens = weights.embed_tokens.scaled(static_cast<S>(config.embedding_scale));
  std::vector<std::array<std::shared_ptr<const Rope<S>>, 2>> ropes(config.ropes.size() + 1);  // the last one does not rotate
  for (std::size_t i = 0; i < ropes.size(); ++i) {
    const RopeOptions options = config.rope(i < config.ropes.size() ? static_cast<Index>(i) : LayerSpec::no_rope);
    ropes[i].fill(std::make_shared<const Rope<S>>(options.at_length(0)));
    if (options.by_length() && switch_length > 0)
      ropes[i][1] = std::make_shared<const Rope<S>>(options.at_length(static_cast<Position>(max_config_size)));
  }
  layers.reserve(weights.layers.size());
  for (std::size_t l = 0; l < weights.layers.size(); ++l) {
    const LayerWeights<S>& own = weights.layers[l];
    const LayerSpec& spec = config.layers[l];
    std::array<AnyNorm<S>, num_norms> norms;
    for (std::size_t n = 0; n < num_norms; ++n)
      if (const Vector<S>& weight = norm_of(own, NormPlace(n)); weight.size() > 0)
        norms[n] = AnyNorm<S>(config.norm, weight, S(config.norm_eps));
    const auto& rope = spec.rope == LayerSpec::no_rope ? ropes.back() : ropes[static_cast<std::size_t>(spec.rope)];
    layers.push_back({spec, std::move(norms), rope[0], rope[1], Mlp(own.gate_proj, own.up_proj, own.down_proj, config.activation)});
  }
}

template <class S> AdapterTarget DecoderModel<S>::target() const {
  const AttentionShape shape = config.attention();
  AdapterTarget target{.fingerprint = weights.fingerprint,
                       .num_layers = config.num_hidden_layers,
                       .hidden = config.hidden_size,
                       .intermediate = config.intermediate_size,
                       .q = shape.num_heads * shape.head_dim,
                       .kv = shape.num_kv_heads * shape.head_dim,
                       .vocab = config.vocab_size,
                       .norm = config.norm,
                       .embedding_scale = config.embedding_scale};
  for (const Layer& layer : layers) {
    std::array<Index, num_norms>& features = target.norms.emplace_back();
    for (std::size_t n = 0; n < num_norms; ++n) features[n] = layer.norms[n].size();
  }
  return target;
}

}}}  // namespace pith::v0::detail
