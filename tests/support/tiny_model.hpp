#pragma once

#include <random>
#include <vector>

#include <pith/core/random.hpp>
#include <pith/model.hpp>
#include <pith/nn/linear.hpp>

namespace pith_test {

/// A decoder of random weights: any shape, nothing on disk.
inline pith::DecoderConfig tiny_config() {
  pith::DecoderConfig config;
  config.vocab_size = 50;
  config.hidden_size = 24;
  config.intermediate_size = 40;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 8;
  config.max_position_embeddings = 64;
  return config;
}

/// `plain_norms`: all factors 1, else random ones.
template <class S> pith::Decoder<S> random_decoder(const pith::DecoderConfig& c, std::uint64_t seed = 1, bool plain_norms = true) {
  std::mt19937_64 rng(seed);
  const auto matrix = [&](pith::Index out, pith::Index in) {
    pith::Matrix<S> m(out, in);
    for (pith::Index i = 0; i < m.size(); ++i) m.data()[i] = pith::normal<S>(rng) / std::sqrt(S(in));
    return m;
  };
  const auto linear = [&](pith::Index out, pith::Index in) {
    return pith::AnyLinear<S>(pith::PackedLinear<S, S>(pith::ConstMatrixRef<S>(matrix(out, in))));
  };
  const auto norm = [&](pith::Index features) -> pith::Vector<S> {
    pith::Vector<S> w = pith::Vector<S>::Ones(features);
    for (pith::Index i = 0; plain_norms == false && i < features; ++i) w[i] += pith::normal<S>(rng) / S(8);
    return w;
  };
  const pith::Index q = c.num_attention_heads * c.head_dim, kv = c.num_key_value_heads * c.head_dim;
  pith::DecoderWeights<S> weights;
  weights.embed_tokens = pith::Embedding<S>(matrix(c.vocab_size, c.hidden_size));
  weights.norm = norm(c.hidden_size);
  weights.lm_head = linear(c.vocab_size, c.hidden_size);
  for (pith::Index l = 0; l < c.num_hidden_layers; ++l) {
    pith::LayerWeights<S> layer;
    pith::Vector<S>* const norms[] = {
        &layer.pre_attention_norm, &layer.post_attention_norm, &layer.pre_mlp_norm, &layer.post_mlp_norm, &layer.q_norm, &layer.k_norm};
    for (std::size_t n = 0; n < pith::num_norms; ++n)
      if (const pith::Index features = pith::detail::norm_width(c, c.layer(l), pith::NormPlace(n)); features > 0)
        *norms[n] = norm(features);
    layer.q_proj = linear(q, c.hidden_size);
    layer.k_proj = linear(kv, c.hidden_size);
    layer.v_proj = linear(kv, c.hidden_size);
    layer.o_proj = linear(c.hidden_size, q);
    layer.gate_proj = linear(c.intermediate_size, c.hidden_size);
    layer.up_proj = linear(c.intermediate_size, c.hidden_size);
    layer.down_proj = linear(c.hidden_size, c.intermediate_size);
    weights.layers.push_back(std::move(layer));
  }
  return pith::Decoder<S>(c, std::move(weights));
}

inline std::vector<pith::Token> random_tokens(std::size_t n, pith::Index vocab, std::uint64_t seed = 2) {
  std::mt19937_64 rng(seed);
  std::vector<pith::Token> tokens(n);
  for (pith::Token& t : tokens) t = static_cast<pith::Token>(rng() % static_cast<std::uint64_t>(vocab));
  return tokens;
}

}  // namespace pith_test
