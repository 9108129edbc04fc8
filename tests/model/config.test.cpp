#include <functional>
#include <limits>
#include <string>

#include <pith/model/config.hpp>

#include "support/catch.hpp"

namespace {

using namespace pith;
using pith_test::contains;

DecoderConfig sound() {
  DecoderConfig c;
  c.vocab_size = 100, c.hidden_size = 48, c.intermediate_size = 80, c.num_hidden_layers = 2;
  c.num_attention_heads = 4, c.num_key_value_heads = 2, c.head_dim = 16;
  return c;
}

TEST_CASE("decoder config: what it says about attention", "[model]") {
  DecoderConfig c = sound();
  c.check();
  CHECK((c.attention().num_heads == 4 && c.attention().num_kv_heads == 2 && c.attention().head_dim == 16));
  CHECK((c.window(0) == 0 && c.window(1) == 0));
  c.resolve().layers[1].window = 12;
  c.check();
  CHECK((c.window(0) == 0 && c.window(1) == 12));
  CHECK_THROWS_AS(c.window(2), ShapeError);
  CHECK_THROWS_AS(c.window(-1), ShapeError);
}

TEST_CASE("decoder config: layers and ropes that are not listed are plain, and resolve() lists them", "[model]") {
  DecoderConfig c = sound();
  c.max_position_embeddings = 512;
  const DecoderConfig plain = c;
  CHECK((c.layer(1) == LayerSpec{} && c.rope().head_dim == 16 && c.rope().max_position_embeddings == 512 && c.rope().theta == 10000));
  CHECK(c.rope(LayerSpec::no_rope).scaling.type == RopeType::identity);
  c.resolve();
  CHECK((c.layers.size() == 2 && c.ropes.size() == 1 && c.ropes[0] == plain.rope()));
  CHECK_NOTHROW(c.check());
  CHECK(!(c == plain));
  DecoderConfig again = c;
  CHECK(again.resolve() == c);
  c.ropes = {{.theta = 5e5}, {.rotary_dim = 4}};  // sizes of the config count
  c.layers[1].rope = 1;
  CHECK_NOTHROW(c.check());
  CHECK_THROWS_AS(c.rope(2), ShapeError);
  CHECK_THROWS_AS(c.rope(-2), ShapeError);
  CHECK((c.rope(0).theta == 5e5 && c.rope(1).head_dim == 16 && c.rope(1).rotary_width() == 4));
}

TEST_CASE("decoder config: impossible values are refused by name", "[model]") {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  const struct {
    std::function<void(DecoderConfig&)> change;
    const char* message;
  } cases[] = {
      {[](auto& c) { c.vocab_size = 0; }, "vocab_size is 0"},
      {[](auto& c) { c.vocab_size = Index{1} << 31; }, "vocab_size is 2147483648, expected 1 to 2147483647"},
      {[](auto& c) { c.hidden_size = -1; }, "hidden_size is -1"},
      {[](auto& c) { c.intermediate_size = 0; }, "intermediate_size"},
      {[](auto& c) { c.num_hidden_layers = 70000; }, "expected 1 to 65536"},
      {[](auto& c) { c.num_attention_heads = 0; }, "num_attention_heads"},
      {[](auto& c) { c.num_key_value_heads = 0; }, "num_key_value_heads"},
      {[](auto& c) { c.num_key_value_heads = 3; }, "num_key_value_heads is 3, expected a divisor of num_attention_heads, 4"},
      {[](auto& c) { c.head_dim = 15; }, "ropes[0]: head_dim is 15, expected an even number"},
      {[](auto& c) { c.head_dim = 2048; }, "ropes[0]: head_dim is 2048, expected 1 to 1024"},
      {[](auto& c) { c.head_dim = 1 << 30; }, "num_attention_heads*head_dim"},
      {[](auto& c) { c.max_position_embeddings = 0; }, "max_position_embeddings"},
      {[=](auto& c) { c.norm_eps = nan; }, "norm_eps"},
      {[](auto& c) { c.norm_eps = -1; }, "norm_eps"},
      {[=](auto& c) {
         c.ropes = {{}, {.theta = inf}};
       },
       "ropes[1]: theta"},
      {[](auto& c) { c.ropes = {{.theta = 0}}; }, "ropes[0]: theta"},
      {[](auto& c) { c.ropes = {{.rotary_dim = 18}}; }, "ropes[0]: rotary_dim is 18, expected an even number from 2 to head_dim, 16"},
      {[=](auto& c) { c.embedding_scale = nan; }, "embedding_scale"},
      {[](auto& c) { c.input_scale = 0; }, "input_scale is 0"},
      {[](auto& c) { c.logits_scale = -1; }, "logits_scale is -1"},
      {[=](auto& c) { c.logits_softcap = inf; }, "logits_softcap"},
      {[](auto& c) { c.resolve().layers[1].rope = 1; }, "layers[1].rope is 1, expected -1 (none) or one of 1 ropes"},
      {[](auto& c) { c.resolve().layers[1].rope = -2; }, "layers[1].rope is -2"},
      {[](auto& c) { c.resolve().layers[0].attention_scale = -1; }, "layers[0].attention_scale is -1"},
      {[=](auto& c) { c.resolve().layers[0].attention_softcap = nan; }, "layers[0].attention_softcap"},
      {[](auto& c) { c.resolve().layers[0].residual_scale = 0; }, "layers[0].residual_scale is 0"},
      {[=](auto& c) { c.resolve().layers[0].query_scale.beta = inf; }, "layers[0].query_scale.beta"},
      {[](auto& c) { c.resolve().layers[0].query_scale.beta = 1; }, "layers[0].query_scale.length is 0"},
      {[](auto& c) { c.resolve().layers[1].parallel = true; }, "layers[1].pre_mlp is true in a parallel layer"},
      {[](auto& c) {
         const RopeScaling scaling{.type = RopeType::longrope,
                                   .original_max_position_embeddings = 8,
                                   .short_factor = std::vector<double>(8, 1),
                                   .long_factor = std::vector<double>(8, 2)};
         c.ropes = {{.scaling = scaling}, {.scaling = scaling}};
         c.ropes[1].scaling.original_max_position_embeddings = 16;
       },
       "longropes with original_max_position_embeddings 8 and 16"},
      {[](auto& c) { c.ropes = {{.scaling = {.type = RopeType::linear, .factor = 0}}}; }, "the scaling factor is 0"},
      {[](auto& c) { c.ropes = {{.scaling = {.type = RopeType::llama3, .factor = 8}}}; },
       "ropes[0]: original_max_position_embeddings is 0"},
      {[](auto& c) {
         c.ropes = {{.scaling = {.type = RopeType::llama3,
                                 .factor = 8,
                                 .low_freq_factor = 4,
                                 .high_freq_factor = 4,
                                 .original_max_position_embeddings = 64}}};
       },
       "less than high_freq_factor"},
      {[](auto& c) { c.layers = {{}}; }, "layers has 1 entries, expected one a layer, 2"},
      {[](auto& c) {
         c.layers = {{.window = 1}, {.window = -1}};
       },
       "layers[1].window is -1"},
      {[](auto& c) { c.eos_token_id = {-2}; }, "eos_token_id is -2"},
  };
  for (const auto& broken : cases) {
    DecoderConfig c = sound();
    broken.change(c);
    INFO(broken.message);
    CHECK_THROWS_AS(c.check(), ShapeError);
    CHECK_THROWS_WITH(c.check(), contains(broken.message));
  }
}

}  // namespace
