#pragma once
// What benches of speculation share: a decoder larger than the last-level cache, and a draft that knows the text.

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include <pith/core/random.hpp>
#include <pith/decode.hpp>
#include <pith/model.hpp>

#include "cold.hpp"
#include "measure.hpp"

namespace pith_bench {

using pith::AnyLinear;
using pith::canonical;
using pith::ConstMatrixRef;
using pith::Decoder;
using pith::DecoderConfig;
using pith::DecoderWeights;
using pith::Embedding;
using pith::Index;
using pith::LayerWeights;
using pith::Matrix;
using pith::PackedLinear;
using pith::Position;
using pith::Token;
using pith::Vector;

inline const Decoder<float>& cold_decoder() {
  static const Decoder<float> one = [] {
    DecoderConfig c;
    c.vocab_size = 2048;
    c.hidden_size = 768;
    c.intermediate_size = 2048;
    c.num_attention_heads = 12;
    c.num_key_value_heads = 4;
    c.head_dim = 64;
    c.max_position_embeddings = 2048;
    const Index kv = c.num_key_value_heads * c.head_dim;
    const Index layer_bytes = Index(sizeof(float)) * c.hidden_size * (2 * c.hidden_size + 2 * kv + 3 * c.intermediate_size);
    c.num_hidden_layers = static_cast<Index>(cold_bytes()) / layer_bytes + 1;
    std::uint64_t seed = 0;
    const auto linear = [&](Index out, Index in) {
      return AnyLinear<float>(PackedLinear<float>(Matrix<float>(random_matrix(out, in, ++seed) / std::sqrt(float(in) / 3))));
    };
    DecoderWeights<float> weights;
    weights.embed_tokens = Embedding<float>(random_matrix(c.vocab_size, c.hidden_size, ++seed));
    weights.norm = Vector<float>::Ones(c.hidden_size);
    weights.lm_head = linear(c.vocab_size, c.hidden_size);
    for (Index l = 0; l < c.num_hidden_layers; ++l) {
      LayerWeights<float> layer;
      layer.pre_attention_norm = layer.pre_mlp_norm = Vector<float>::Ones(c.hidden_size);
      layer.q_proj = linear(c.hidden_size, c.hidden_size);
      layer.k_proj = linear(kv, c.hidden_size);
      layer.v_proj = linear(kv, c.hidden_size);
      layer.o_proj = linear(c.hidden_size, c.hidden_size);
      layer.gate_proj = linear(c.intermediate_size, c.hidden_size);
      layer.up_proj = linear(c.intermediate_size, c.hidden_size);
      layer.down_proj = linear(c.hidden_size, c.intermediate_size);
      weights.layers.push_back(std::move(layer));
    }
    return Decoder<float>(c, std::move(weights));
  }();
  return one;
}

/// Knows the text that is coming, and names another token in 1 - accepted of its places.
class InformedDraft {
 public:
  using Scalar = float;
  InformedDraft(std::span<const Token> text, Index prompt_tokens, double accepted, Index vocab)
      : coming_(text.begin(), text.end()), prompt_(prompt_tokens) {
    std::mt19937_64 rng(5);
    for (Token& t : coming_)
      if (canonical<double>(rng) >= accepted) t = static_cast<Token>((t + 1) % vocab);
    rows_ = Matrix<float>::Constant(2, vocab, -std::numeric_limits<float>::infinity());
  }
  Index vocab_size() const { return rows_.cols(); }
  Position next_position() const { return read_; }
  ConstMatrixRef<float> prefill(std::span<const Token> tokens) {
    read_ += static_cast<Position>(tokens.size());
    return rows_.topRows(1);
  }
  ConstMatrixRef<float> decode(std::span<const Token> tokens) {
    const Index last = static_cast<Index>(tokens.size()) - 1;
    read_ += static_cast<Position>(tokens.size());
    rows_.setConstant(-std::numeric_limits<float>::infinity());
    const std::size_t next = static_cast<std::size_t>(read_ - prompt_);
    if (next < coming_.size()) rows_(last, coming_[next]) = 0;
    return rows_.topRows(last + 1);
  }
  void checkpoint() {}
  void crop(Position p) { read_ = p; }

 private:
  std::vector<Token> coming_;
  Matrix<float> rows_;
  Index prompt_;
  Position read_ = 0;
};

}  // namespace pith_bench
