#include <functional>
#include <string>

#include <pith/model/weights.hpp>

#include "support/catch.hpp"

namespace {

using namespace pith;
using pith_test::contains;

DecoderConfig config() {
  DecoderConfig c;
  c.vocab_size = 10, c.hidden_size = 6, c.intermediate_size = 5, c.num_hidden_layers = 2;
  c.num_attention_heads = 2, c.num_key_value_heads = 1, c.head_dim = 4;
  return c;
}
Matrix<float> zeros(Index rows, Index cols) { return Matrix<float>::Zero(rows, cols); }

DecoderWeights<float> weights() {
  const DecoderConfig c = config();
  DecoderWeights<float> w;
  w.embed_tokens = Embedding<float>(zeros(10, 6));
  w.layers.resize(2);
  for (LayerWeights<float>& layer : w.layers) {
    layer.pre_attention_norm = layer.pre_mlp_norm = Vector<float>::Ones(6);
    detail::for_each_projection(layer, c,
                                [](const char*, AnyLinear<float>& linear, Index out, Index in) { linear = Linear<float>(zeros(out, in)); });
  }
  w.norm = Vector<float>::Ones(6);
  w.lm_head = Linear<float>(zeros(10, 6));
  return w;
}

TEST_CASE("decoder weights: shapes agree with the config, or are named", "[model]") {
  CHECK_NOTHROW(weights().check(config()));
  const struct {
    std::function<void(DecoderWeights<float>&)> change;
    const char* message;
  } cases[] = {
      {[](auto& w) { w.layers.pop_back(); }, "1 layers, expected 2"},
      {[](auto& w) { w.embed_tokens = Embedding<float>(zeros(9, 6)); }, "embed_tokens is [9, 6], expected [10, 6]"},
      {[](auto& w) { w.layers[1].q_proj = Linear<float>(zeros(8, 8)); }, "layers[1].self_attn.q_proj is [8, 8], expected [8, 6]"},
      {[](auto& w) { w.layers[0].k_proj = Linear<float>(zeros(8, 6)); }, "layers[0].self_attn.k_proj is [8, 6], expected [4, 6]"},
      {[](auto& w) { w.layers[0].v_proj = {}; }, "layers[0].self_attn.v_proj is empty, expected [4, 6]"},
      {[](auto& w) { w.layers[1].o_proj = Linear<float>(zeros(6, 6)); }, "layers[1].self_attn.o_proj is [6, 6], expected [6, 8]"},
      {[](auto& w) { w.layers[1].gate_proj = Linear<float>(zeros(6, 5)); }, "layers[1].mlp.gate_proj is [6, 5], expected [5, 6]"},
      {[](auto& w) { w.layers[1].up_proj = Linear<float>(zeros(4, 6)); }, "mlp.up_proj is [4, 6], expected [5, 6]"},
      {[](auto& w) { w.layers[1].down_proj = Linear<float>(zeros(5, 6)); }, "mlp.down_proj is [5, 6], expected [6, 5]"},
      {[](auto& w) { w.layers[1].pre_attention_norm.resize(5); }, "layers[1].pre_attention_norm is [5, 1], expected [6, 1]"},
      {[](auto& w) { w.layers[0].pre_mlp_norm.resize(0); }, "layers[0].pre_mlp_norm is [0, 1]"},
      {[](auto& w) { w.norm.resize(7); }, "norm is [7, 1], expected [6, 1]"},
      {[](auto& w) { w.lm_head = Linear<float>(zeros(9, 6)); }, "lm_head is [9, 6], expected [10, 6]"},
      {[](auto& w) { w.lm_head = {}; }, "lm_head is empty"},
  };
  for (const auto& broken : cases) {
    DecoderWeights<float> w = weights();
    broken.change(w);
    INFO(broken.message);
    CHECK_THROWS_AS(w.check(config()), ShapeError);
    CHECK_THROWS_WITH(w.check(config()), contains(broken.message));
  }
  DecoderConfig odd = config();
  odd.head_dim = 3;
  CHECK_THROWS_WITH(weights().check(odd), contains("head_dim is 3"));
}

TEST_CASE("decoder weights: bytes are what is behind them", "[model]") {
  const std::size_t numbers = 10 * 6 * 2 + 6 + 2 * (2 * 6 + 8 * 6 + 2 * 4 * 6 + 6 * 8 + 2 * 5 * 6 + 6 * 5);
  CHECK(weights().bytes() == numbers * sizeof(float));
  CHECK(DecoderWeights<float>().bytes() == 0);
}

}  // namespace
