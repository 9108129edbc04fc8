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
  c.sliding_window = {0, 12};
  c.check();
  CHECK((c.window(0) == 0 && c.window(1) == 12));
  CHECK_THROWS_AS(c.window(2), ShapeError);
  CHECK_THROWS_AS(c.window(-1), ShapeError);
  for (const char* family : {"llama", "mistral", "qwen2"}) {
    c.model_type = family;
    CHECK_NOTHROW(c.check());
  }
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
      {[](auto& c) { c.head_dim = 15; }, "head_dim is 15, expected an even number"},
      {[](auto& c) { c.head_dim = 1 << 30; }, "num_attention_heads*head_dim"},
      {[](auto& c) { c.max_position_embeddings = 0; }, "max_position_embeddings"},
      {[=](auto& c) { c.rms_norm_eps = nan; }, "rms_norm_eps"},
      {[](auto& c) { c.rms_norm_eps = -1; }, "rms_norm_eps"},
      {[=](auto& c) { c.rope_theta = inf; }, "rope_theta"},
      {[](auto& c) { c.rope_theta = 0; }, "rope_theta"},
      {[](auto& c) { c.rope_scaling = {.type = RopeType::linear, .factor = 0}; }, "rope_scaling.factor"},
      {[](auto& c) { c.rope_scaling = {.type = RopeType::llama3, .factor = 8}; }, "rope_scaling.original_max_position_embeddings is 0"},
      {[](auto& c) {
         c.rope_scaling = {
             .type = RopeType::llama3, .factor = 8, .low_freq_factor = 4, .high_freq_factor = 4, .original_max_position_embeddings = 64};
       },
       "less than high_freq_factor"},
      {[](auto& c) { c.sliding_window = {1}; }, "sliding_window has 1 entries, expected one a layer, 2"},
      {[](auto& c) {
         c.sliding_window = {1, -1};
       },
       "sliding_window is -1"},
      {[](auto& c) { c.eos_token_id = {-2}; }, "eos_token_id is -2"},
  };
  for (const auto& broken : cases) {
    DecoderConfig c = sound();
    broken.change(c);
    INFO(broken.message);
    CHECK_THROWS_AS(c.check(), ShapeError);
    CHECK_THROWS_WITH(c.check(), contains(broken.message));
  }
  DecoderConfig c = sound();
  c.model_type = "gemma";
  CHECK_THROWS_AS(c.check(), UnsupportedError);
  CHECK_THROWS_WITH(c.check(), contains("'gemma'") && contains("llama, mistral and qwen2"));
}

}  // namespace
