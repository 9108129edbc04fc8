// What config.json of each family resolves to, and why some are refused. Numbers are those of the published configuration classes.
#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include <pith/io/config_json.hpp>

#include "io/temp_folder.hpp"
#include "support/catch.hpp"

namespace { namespace of_families {

using namespace pith;
using pith_test::contains;

DecoderConfig parsed(const std::string& json) { return parse_config(json, "c.json"); }
/// A config of two layers unless `keys` say otherwise (of two equal keys, the text has but one).
DecoderConfig family(const std::string& name, const std::string& keys = "", int layers = 2) {
  return parsed(R"({"model_type":")" + name + R"(","num_hidden_layers":)" + std::to_string(layers) + (keys.empty() ? "" : "," + keys) +
                "}");
}
/// One letter a layer: w a window, f none.
std::string windows(const DecoderConfig& config) {
  std::string out;
  for (const LayerSpec& layer : config.layers) out += layer.window > 0 ? 'w' : 'f';
  return out;
}
/// One digit a layer, the rope; - for none.
std::string ropes(const DecoderConfig& config) {
  std::string out;
  for (const LayerSpec& layer : config.layers) out += layer.rope < 0 ? '-' : static_cast<char>('0' + layer.rope);
  return out;
}
void refused(const std::string& name, const std::string& keys, const std::string& message) {
  INFO(name << ": " << keys);
  try {
    family(name, keys);
    FAIL_CHECK("accepted");
  } catch (const FormatError& error) {
    CHECK_THAT(error.what(), contains("pith: 'c.json': ") && contains(message));
  } catch (const UnsupportedError& error) {
    CHECK_THAT(error.what(), contains("pith: 'c.json': ") && contains(message));
  }
}
const std::string yarn = R"("rope_type":"yarn","factor":4)";

TEST_CASE("families: defaults of absent keys", "[io]") {
  using Tokens = std::vector<Token>;
  const struct {
    const char* name;
    Index hidden, intermediate, layers, heads, kv, head_dim, positions;
    double eps, theta;
    bool tied;
    Tokens eos;
    Token bos;
  } expected[] = {
      {"llama", 4096, 11008, 32, 32, 32, 128, 2048, 1e-6, 1e4, false, {2}, 1},
      {"mistral", 4096, 14336, 32, 32, 8, 128, 131072, 1e-6, 1e4, false, {2}, 1},
      {"qwen2", 4096, 22016, 32, 32, 32, 128, 32768, 1e-6, 1e4, false, {}, -1},
      {"qwen2_5_vl", 8192, 29568, 80, 64, 8, 128, 32768, 1e-5, 1e6, false, {}, -1},
      {"qwen3", 4096, 22016, 32, 32, 32, 128, 32768, 1e-6, 1e4, false, {}, -1},
      {"smollm3", 2048, 11008, 36, 16, 4, 128, 32768, 1e-6, 2e6, true, {128001}, 128000},
      {"phi3", 3072, 8192, 32, 32, 32, 96, 4096, 1e-5, 1e4, false, {32000}, 1},
      {"granite", 4096, 11008, 32, 32, 32, 128, 2048, 1e-6, 1e4, false, {2}, 1},
      {"ministral3", 4096, 14336, 34, 32, 8, 128, 262144, 1e-5, 1e6, false, {2}, 1},
      {"olmo2", 4096, 11008, 32, 32, 32, 128, 2048, 1e-5, 1e4, false, {50279}, -1},
      {"exaone4", 4096, 16384, 32, 32, 32, 128, 2048, 1e-5, 1e4, false, {2}, 0},
      {"gemma", 3072, 24576, 28, 16, 16, 256, 8192, 1e-6, 1e4, true, {1}, 2},
      {"gemma2", 2304, 9216, 26, 8, 4, 256, 8192, 1e-6, 1e4, true, {1}, 2},
      {"gemma3_text", 2304, 9216, 26, 8, 4, 256, 131072, 1e-6, 1e6, true, {1}, 2},
      {"glm", 4096, 13696, 40, 32, 2, 128, 131072, 1.5625e-7, 1e4, false, {151329, 151336, 151338}, -1},
      {"glm4", 4096, 13696, 40, 32, 2, 128, 131072, 1.5625e-7, 1e4, false, {151329, 151336, 151338}, -1},
      {"cohere2", 8192, 22528, 40, 64, 64, 128, 8192, 1e-5, 5e4, true, {255001}, 5},
  };
  for (const auto& e : expected) {
    INFO(e.name);
    // Files of qwen2_5_vl and cohere2 without a theta are as rare as the others; the last row gives one.
    const DecoderConfig c =
        parsed(R"({"model_type":")" + std::string(e.name) + (std::string_view(e.name) == "cohere2" ? R"(","rope_theta":50000})" : R"("})"));
    CHECK((c.hidden_size == e.hidden && c.intermediate_size == e.intermediate && c.num_hidden_layers == e.layers));
    CHECK((c.num_attention_heads == e.heads && c.num_key_value_heads == e.kv && c.head_dim == e.head_dim));
    CHECK((c.max_position_embeddings == e.positions && c.norm_eps == e.eps && c.rope().theta == e.theta));
    CHECK((c.tie_word_embeddings == e.tied && c.eos_token_id == e.eos && c.bos_token_id == e.bos));
    CHECK(c.layers.size() == static_cast<std::size_t>(e.layers));
  }
  const DecoderConfig olmo3 = parsed(R"({"model_type":"olmo3","rope_theta":500000})");
  CHECK((olmo3.norm_eps == 1e-5 && olmo3.ropes.size() == 2 && olmo3.rope(1).theta == 5e5));
  CHECK(family("cohere2").rope().theta == 1e4);
  refused("olmo3", "", "key 'rope_theta' is missing");
  CHECK(family("gemma3_text").rope(1).theta == 1e4);
  CHECK((family("glm").rope().rotary_dim == 64 && family("glm").rope().interleaved));
  CHECK((family("glm").attention_bias && !family("gemma").attention_bias));
  CHECK(family("granite").layer(0).attention_scale == 1);  // not 1/√head_dim
  CHECK(family("gemma2").layer(1).attention_scale == 0.0625);
  CHECK((family("gemma2").layer(1).attention_softcap == 50 && family("gemma2").logits_softcap == 30));
  CHECK((family("gemma3_text").layer(1).attention_softcap == 0 && family("gemma3_text").logits_softcap == 0));
  CHECK(family("cohere2").logits_scale == 0.0625);

  // A head_dim of null is no default, and a number of heads of null means all of them, where classes allow it.
  CHECK(family("ministral3", R"("head_dim":null,"hidden_size":2048)").head_dim == 64);
  CHECK(family("qwen3", R"("num_key_value_heads":null)").num_key_value_heads == 32);
  for (const char* name : {"exaone4", "gemma", "gemma2", "gemma3_text", "glm", "glm4"})
    refused(name, R"("num_key_value_heads":null)", "key 'num_key_value_heads' is 'null', expected a number");
}

TEST_CASE("families: which layers have windows", "[io]") {
  CHECK(windows(family("gemma2", "", 5)) == "wfwfw");
  CHECK(windows(family("gemma3_text", "", 8)) == "wwwwwfww");
  CHECK(windows(family("gemma3_text", R"("sliding_window_pattern":3)", 8)) == "wwfwwfww");
  CHECK(windows(family("olmo3", R"("rope_theta":1,"sliding_window_pattern":2)", 8)) == "wwwfwwwf");  // not its key
  CHECK(windows(family("exaone4", "", 5)) == "wwwfw");
  CHECK(windows(family("exaone4", R"("sliding_window":null)", 5)) == "fffff");
  CHECK(windows(family("cohere2", R"("sliding_window_pattern":2)", 4)) == "wfwf");
  CHECK((family("cohere2").layer(0).window == 4096 && family("cohere2", R"("sliding_window":7)").layer(0).window == 7));
  for (const char* name : {"mistral", "phi3", "ministral3"}) {
    CHECK(windows(family(name, R"("sliding_window":7)")) == "ww");
    CHECK(windows(family(name, R"("sliding_window":null)")) == "ff");
  }
  CHECK((windows(family("mistral")) == "ww" && windows(family("phi3")) == "ff" && windows(family("ministral3")) == "ff"));
  for (const char* name : {"llama", "granite", "olmo2", "glm", "glm4", "gemma"})
    CHECK(windows(family(name, R"("sliding_window":7)")) == "ff");
  CHECK(windows(family("qwen3", R"("use_sliding_window":true,"max_window_layers":1)")) == "fw");
  CHECK(windows(family("qwen3", R"("use_sliding_window":true)", 30)) == std::string(28, 'f') + "ww");
  CHECK(windows(family("qwen2_5_vl", R"("use_sliding_window":true)", 81)) == std::string(80, 'f') + "w");
  CHECK(windows(family("smollm3", R"("use_sliding_window":true,"sliding_window":9)", 5)) == "fffwf");
  CHECK(windows(family("smollm3", R"("sliding_window":9)", 5)) == "fffff");

  // layer_types decides where it is read, not a pattern.
  const std::string types = R"("layer_types":["full_attention","sliding_attention"])";
  CHECK(windows(family("gemma3_text", types + R"(,"sliding_window_pattern":1)")) == "fw");
  CHECK(windows(family("exaone4", types + R"(,"sliding_window_pattern":"LG")")) == "fw");
  CHECK(windows(family("smollm3", types + R"(,"sliding_window":9,"use_sliding_window":true)")) == "fw");
  for (const char* name : {"gemma2", "cohere2", "qwen3"}) CHECK(windows(family(name, types)) == "fw");
  for (const char* name : {"llama", "granite", "olmo2", "glm", "glm4", "gemma", "phi3", "ministral3"})
    CHECK(windows(family(name, types)) == "ff");
  refused("gemma2", R"("layer_types":["full_attention"])", "'layer_types' is a list of 1, expected a list of 2 names");
  refused("gemma2", R"("layer_types":["full_attention","chunked_attention"])", "layer_types[1] is \"chunked_attention\"");
  refused("gemma2", types + R"(,"sliding_window":null)", "switch sliding windows off");
  refused("qwen3", types + R"(,"use_sliding_window":false)", "switch sliding windows off");
  refused("smollm3", types, "switch sliding windows off");  // sliding_window is null by default
  refused("exaone4", R"("sliding_window_pattern":"LG")", "expected a whole number, or layer_types beside it");
  refused("gemma3_text", R"("sliding_window_pattern":0)", "'sliding_window_pattern' is '0'");
}

TEST_CASE("families: which layers have which rope", "[io]") {
  CHECK(ropes(family("llama")) == "00");
  CHECK(ropes(family("gemma3_text", "", 8)) == "11111011");
  CHECK(ropes(family("olmo3", R"("rope_theta":1)", 5)) == "11101");
  CHECK(ropes(family("cohere2", "", 5)) == "000-0");
  CHECK(ropes(family("cohere2", R"("sliding_window":null)", 2)) == "--");
  CHECK(ropes(family("exaone4", "", 5)) == "000-0");
  CHECK(ropes(family("exaone4", R"("sliding_window":null)", 5)) == "00000");  // no windows: all rotate
  CHECK(ropes(family("smollm3", "", 5)) == "000-0");
  CHECK(ropes(family("smollm3", R"("no_rope_layer_interval":2)", 5)) == "0-0-0");
  CHECK(ropes(family("smollm3", R"("no_rope_layers":[0,1],"no_rope_layer_interval":2)")) == "-0");  // 1: with rope
  refused("smollm3", R"("no_rope_layers":[0])", "'no_rope_layers' is a list of 1, expected a list of 2 numbers");
  refused("smollm3", R"("no_rope_layers":[0,2])", "'no_rope_layers'");
  refused("smollm3", R"("no_rope_layer_interval":0)", "'no_rope_layer_interval'");
}

TEST_CASE("families: two ropes, in both spellings", "[io]") {
  const std::string linear = R"({"rope_type":"linear","factor":8)";
  const DecoderConfig old = family("gemma3_text", R"("rope_theta":500,"rope_local_base_freq":50,"rope_scaling":)" + linear + "}");
  const std::string nested = R"("rope_parameters":{"full_attention":)" + linear +
                             R"(,"rope_theta":500},"sliding_attention":{"rope_type":"default","rope_theta":50}})";
  CHECK(old == family("gemma3_text", nested));
  CHECK(old == family("gemma3_text", nested + R"(,"rope_theta":500,"rope_local_base_freq":50,"rope_scaling":)" + linear + "}"));
  CHECK((old.rope(0).theta == 500 && old.rope(0).scaling.type == RopeType::linear && old.rope(0).scaling.factor == 8));
  CHECK((old.rope(1).theta == 50 && old.rope(1).scaling.type == RopeType::none));  // scaling does not reach windows
  refused("gemma3_text", nested + R"(,"rope_theta":501)",
          "'rope_parameters.full_attention.rope_theta' is '500', expected what rope_theta says");
  refused("gemma3_text", nested + R"(,"rope_local_base_freq":51)", "'rope_parameters.sliding_attention.rope_theta'");
  refused("gemma3_text", R"("rope_parameters":{"rope_type":"default","rope_theta":5})", "expected ropes by layer type");
  refused("gemma3_text", R"("rope_parameters":{"full_attention":{}})", "'rope_parameters.sliding_attention' is missing");
  refused("gemma3_text", R"("rope_parameters":{"full_attention":{},"chunked_attention":{}})", "('chunked_attention') are not supported");
  refused("qwen3", nested, "rope settings by layer type ('full_attention') are not supported in qwen3");

  const DecoderConfig olmo3 = family("olmo3", R"("rope_theta":500,"rope_scaling":{)" + yarn + "}");
  CHECK((olmo3.rope(0).scaling.type == RopeType::yarn && olmo3.rope(1).scaling.type == RopeType::none && olmo3.rope(1).theta == 500));
  CHECK(olmo3 == family("olmo3", R"("rope_parameters":{"rope_theta":500,)" + yarn + "}"));  // flat, as some versions write it
  CHECK(olmo3 == family("olmo3", R"("rope_parameters":{"full_attention":{"rope_theta":500,)" + yarn +
                                     R"(},"sliding_attention":{"rope_theta":500,"rope_type":"default"}})"));
}

TEST_CASE("families: yarn", "[io]") {
  const auto scaling = [](const std::string& keys, const std::string& beside = "") {
    return family("llama", R"("max_position_embeddings":800,"rope_scaling":{)" + keys + "}" + beside).rope().scaling;
  };
  const RopeScaling plain = scaling(yarn);
  CHECK((plain.type == RopeType::yarn && plain.factor == 4 && plain.original_max_position_embeddings == 800));
  CHECK((plain.beta_fast == 32 && plain.beta_slow == 1 && plain.truncate && plain.attention_factor == 0 && plain.mscale == 0));
  CHECK(scaling(yarn + R"(,"beta_fast":null,"beta_slow":0,"attention_factor":null,"mscale":0,"finetuned":true)") == plain);
  CHECK(scaling(R"("type":"yarn","factor":4)") == plain);
  CHECK(scaling(yarn + R"(,"original_max_position_embeddings":200)") == scaling(yarn, R"(,"original_max_position_embeddings":200)"));
  CHECK(scaling(R"("rope_type":"yarn","factor":null,"original_max_position_embeddings":200)").factor == 4);
  const RopeScaling full = scaling(yarn + R"(,"beta_fast":12,"beta_slow":0.5,"truncate":false,"mscale":1.5,"mscale_all_dim":0.5)");
  CHECK((full.beta_fast == 12 && full.beta_slow == 0.5 && !full.truncate && full.mscale == 1.5 && full.mscale_all_dim == 0.5));
  const auto wrong = [](const std::string& keys, const std::string& message) {
    refused("llama", R"("rope_scaling":{)" + keys + "}", message);
  };
  wrong(R"("rope_type":"yarn")", "'rope_scaling.factor' is missing");
  wrong(R"("rope_type":"yarn","factor":-4)", "'rope_scaling.factor' is '-4', expected a number above 0");
  wrong(yarn + R"(,"beta_fast":-1)", "'rope_scaling.beta_fast'");
  wrong(yarn + R"(,"beta_fast":1,"beta_slow":2)", "expected at least beta_slow, which is 2");
  wrong(yarn + R"(,"attention_factor":0)", "'rope_scaling.attention_factor' is '0'");
  wrong(yarn + R"(,"mscale":"1")", "'rope_scaling.mscale'");
  wrong(yarn + R"(,"truncate":1)", "'rope_scaling.truncate'");
  wrong(yarn + R"(,"original_max_position_embeddings":0)", "'rope_scaling.original_max_position_embeddings'");
  wrong(R"("rope_theta":1,)" + yarn, "theta is 1");
  refused("llama", R"("original_max_position_embeddings":100,"rope_scaling":{"original_max_position_embeddings":200,)" + yarn + "}",
          "'rope_scaling.original_max_position_embeddings' is '200', expected 100");
}

TEST_CASE("families: longrope and partial rope", "[io]") {
  const std::string sizes = R"("hidden_size":64,"num_attention_heads":4,"max_position_embeddings":256,)";
  const std::string lists = R"("short_factor":[1,1,1,1,1,1],"long_factor":[2,2,2,2,2,2])";
  const auto phi = [&](const std::string& keys) { return family("phi3", sizes + keys).rope(); };
  const RopeOptions old =
      phi(R"("partial_rotary_factor":0.75,"original_max_position_embeddings":32,"rope_scaling":{"type":"longrope",)" + lists + "}");
  CHECK((old.rotary_dim == 12 && old.scaling.type == RopeType::longrope && old.scaling.original_max_position_embeddings == 32));
  CHECK((old.scaling.short_factor == std::vector<double>(6, 1) && old.scaling.long_factor == std::vector<double>(6, 2)));
  CHECK(old == phi(R"("rope_parameters":{"partial_rotary_factor":0.75,"original_max_position_embeddings":32,"rope_type":"longrope",)" +
                   lists + "}"));
  for (const char* name : {"su", "yarn"})  // as its files spelled it
    CHECK(old == phi(R"("partial_rotary_factor":0.75,"original_max_position_embeddings":32,"rope_scaling":{"type":")" + std::string(name) +
                     "\"," + lists + "}"));
  // Outside wins over inside; the default is 4096.
  CHECK(phi(R"("partial_rotary_factor":0.75,"original_max_position_embeddings":32,"rope_scaling":{"type":"longrope",)"
            R"("original_max_position_embeddings":64,)" +
            lists + "}") == old);
  CHECK(phi(R"("partial_rotary_factor":0.75,"rope_scaling":{"type":"su",)" + lists + "}").scaling.original_max_position_embeddings == 4096);
  const auto wrong = [&](const std::string& keys, const std::string& message) { refused("phi3", sizes + keys, message); };
  wrong(R"("rope_scaling":{"type":"longrope",)" + lists + "}", "'rope_scaling.short_factor' is a list of 6, expected a list of 8 numbers");
  const std::string part = R"("partial_rotary_factor":0.75,)";
  wrong(part + R"("rope_scaling":{"type":"longrope","short_factor":[1,1,1,1,1,1]})", "'rope_scaling.long_factor' is missing");
  wrong(part + R"("rope_scaling":{"type":"longrope","short_factor":[1,1,1,1,1,0],"long_factor":[1,1,1,1,1,1]})",
        "expected numbers above 0");
  wrong(part + R"("rope_scaling":{"type":"longrope","factor":3,)" + lists + "}",
        "'rope_scaling.factor' is '3', expected max_position_embeddings /");
  wrong(R"("partial_rotary_factor":0.7)",
        "'partial_rotary_factor' is '0.7', expected a part of head_dim, 16, that is an even number of features; it is 11");
  wrong(R"("partial_rotary_factor":0.5,"rope_parameters":{"partial_rotary_factor":0.75})", "expected what partial_rotary_factor says");
  wrong(R"("partial_rotary_factor":1.5)", "expected at most 1");
  refused("qwen3", R"("partial_rotary_factor":0.5)", "partial_rotary_factor 0.5 is not supported in qwen3");
  refused("llama", R"("rope_scaling":{"type":"longrope",)" + lists + "}", "'longrope' is not supported in llama");
  refused("glm", R"("partial_rotary_factor":0.001)", "it is 0");
}

TEST_CASE("families: keys of their own", "[io]") {
  const DecoderConfig granite =
      family("granite", R"("attention_multiplier":0.25,"residual_multiplier":0.5,"embedding_multiplier":12,"logits_scaling":8)");
  CHECK((granite.layer(1).attention_scale == 0.25 && granite.layer(1).residual_scale == 0.5));
  CHECK((granite.input_scale == 12 && granite.embedding_scale == 1 && granite.logits_scale == 0.125));
  refused("granite", R"("logits_scaling":0)", "'logits_scaling' is '0'");

  // Granite 4 is dense where its file names attention in every layer and no experts; keys of recurrent layers stay in it.
  const std::string dense =
      R"("num_local_experts":0,"mamba_d_state":256,"time_step_limit":[0.0,Infinity],"layer_types":["attention","attention"])";
  const DecoderConfig granite4 = family("granitemoehybrid", dense + R"(,"attention_multiplier":0.25,"position_embedding_type":"rope")", 2);
  CHECK((granite4.layer(0).attention_scale == 0.25 && granite4.intermediate_size == 1024 && ropes(granite4) == "00"));
  CHECK(family("granitemoehybrid", dense + R"(,"shared_intermediate_size":96,"intermediate_size":7)", 2).intermediate_size == 96);
  CHECK(ropes(family("granitemoehybrid", dense + R"(,"position_embedding_type":"nope")", 2)) == "--");
  CHECK(ropes(family("granitemoehybrid", dense + R"(,"position_embedding_type":null)", 2)) == "--");
  const std::string both = R"(,"layer_types":["attention","attention"])";
  refused("granitemoehybrid", "", "layer_types is missing, which makes all layers recurrent");
  refused("granitemoehybrid", R"("layer_types":["attention","attention"])", "num_local_experts is missing, which means 8");
  refused("granitemoehybrid", R"("num_local_experts":8)" + both, "num_local_experts is 8, which is not supported: mixtures of experts");
  refused("granitemoehybrid", R"("num_local_experts":0,"layer_types":["mamba","attention"])", "layer_types has \"mamba\"");
  refused("granitemoehybrid", R"("num_local_experts":0,"layer_types":["attention"])", "expected a list of 2 types, one for each layer");
  refused("granitemoehybrid", R"("num_local_experts":0,"position_embedding_type":"alibi")" + both,
          "position_embedding_type 'alibi' is not supported: rope and nope are");
  refused("granite", R"("logits_scaling":1e-320)", "logits_scale is inf");

  const DecoderConfig gemma2 = family("gemma2", R"("query_pre_attn_scalar":16,"attn_logit_softcapping":null,"final_logit_softcapping":5)");
  CHECK((gemma2.layer(0).attention_scale == 0.25 && gemma2.layer(0).attention_softcap == 0 && gemma2.logits_softcap == 5));
  CHECK((gemma2.embedding_scale == 48 && gemma2.norm_plus_one && gemma2.activation == GateActivation::gelu_tanh));
  CHECK(family("gemma3_text", R"("attn_logit_softcapping":50,"final_logit_softcapping":30)").layer(0).attention_softcap == 0);
  CHECK(family("gemma3_text", R"("final_logit_softcapping":30)").logits_softcap == 30);
  // The activation of old files of Gemma 1 is the tanh form under any name; the others read one key.
  CHECK(family("gemma", R"("hidden_act":"gelu","hidden_activation":null)").activation == GateActivation::gelu_tanh);
  CHECK(family("gemma", R"("hidden_act":"gelu_pytorch_tanh","hidden_activation":"gelu")").activation == GateActivation::gelu);
  CHECK(family("gemma2", R"("hidden_act":"silu")").activation == GateActivation::gelu_tanh);
  CHECK(family("llama", R"("hidden_act":"gelu_pytorch_tanh")").activation == GateActivation::gelu_tanh);
  CHECK(family("llama", R"("hidden_act":"gelu")").activation == GateActivation::gelu);

  const DecoderConfig ministral = family("ministral3");
  CHECK((ministral.rope().scaling.type == RopeType::yarn && ministral.rope().scaling.factor == 16));
  CHECK((ministral.rope().scaling.original_max_position_embeddings == 16384 && pith::detail::rope_attention_factor(ministral.rope()) == 1));
  CHECK(ministral.layer(1).query_scale == QueryScale{.beta = 0.1, .length = 16384});
  CHECK_FALSE(family("ministral3", R"("rope_parameters":{"original_max_position_embeddings":64,)" + yarn + "}").layer(0).query_scale.on());
  CHECK(family("ministral3", R"("rope_parameters":{"llama_4_scaling_beta":0.2,"original_max_position_embeddings":64,)" + yarn + "}")
            .layer(0)
            .query_scale == QueryScale{.beta = 0.2, .length = 64});
  refused("ministral3", R"("rope_parameters":{"llama_4_scaling_beta":0.2,)" + yarn + "}", "original_max_position_embeddings' is missing");

  const DecoderConfig cohere = family("cohere2", R"("logit_scale":0.25,"layer_norm_eps":0.001)");
  CHECK((cohere.logits_scale == 0.25 && cohere.norm_eps == 0.001 && cohere.norm == NormKind::layer && cohere.layer(0).parallel));
  for (const char* key : {"use_gated_activation", "use_parallel_block", "use_parallel_embedding"})
    refused("cohere2", "\"" + std::string(key) + "\":false", std::string(key) + " is false");
  refused("cohere2", R"("position_embedding_type":"alibi")", "position_embedding_type 'alibi'");
  refused("cohere2", R"("rotary_pct":0.5)", "rotary_pct 0.5");
  refused("cohere2", R"("order_of_interleaved_layers":"global_attn_first")", "'global_attn_first'");
  refused("cohere2", R"("use_qk_norm":true)", "use_qk_norm is true");
}

TEST_CASE("families: decoders inside models of several kinds of input", "[io]") {
  const auto wrapped = [](const std::string& type, const std::string& text, const std::string& beside = "") {
    return parsed(R"({"model_type":")" + type + R"(","text_config":{)" + text + "}" + beside + "}");
  };
  const struct {
    const char *wrapper, *decoder;
  } defaults[] = {{"llava", "llama"},        {"idefics3", "llama"},   {"smolvlm", "llama"},
                  {"gemma3", "gemma3_text"}, {"mistral3", "mistral"}, {"qwen2_5_vl", "qwen2_5_vl_text"}};
  for (const auto& [wrapper, decoder] : defaults) {
    INFO(wrapper);
    CHECK(wrapped(wrapper, "").model_type == decoder);
    CHECK(wrapped(wrapper, R"("model_type":"qwen3")").model_type == "qwen3");
  }
  // Keys absent inside have the family's defaults, not the values outside; but for the end of a text and the tied head.
  const DecoderConfig gemma =
      wrapped("gemma3", R"("num_hidden_layers":3)", R"(,"num_attention_heads":2,"eos_token_id":[1,106],"vocab_size":7)");
  CHECK((gemma.num_attention_heads == 8 && gemma.num_key_value_heads == 4 && gemma.head_dim == 256 && gemma.vocab_size == 0));
  CHECK(gemma.eos_token_id == std::vector<Token>{1, 106});
  CHECK(wrapped("gemma3", R"("eos_token_id":5)", R"(,"eos_token_id":[1,106])").eos_token_id == std::vector<Token>{5});
  CHECK(wrapped("gemma3", R"("eos_token_id":null)", R"(,"eos_token_id":[1,106])").eos_token_id.empty());
  CHECK(wrapped("gemma3", "").tie_word_embeddings);
  CHECK_FALSE(wrapped("gemma3", "", R"(,"tie_word_embeddings":false)").tie_word_embeddings);
  CHECK(wrapped("llava", R"("tie_word_embeddings":false)", R"(,"tie_word_embeddings":true)").tie_word_embeddings);
  CHECK(wrapped("paligemma", R"("use_bidirectional_attention":true)").tie_word_embeddings);
  CHECK(wrapped("gemma3", R"("tie_word_embeddings":true)", R"(,"tie_word_embeddings":false)").tie_word_embeddings);
  CHECK(wrapped("mistral3", R"("architectures":["X"])", R"(,"architectures":["Mistral3ForConditionalGeneration"])").model_type ==
        "mistral");

  // M-RoPE of text is a plain rope; qwen2_5_vl may be flat.
  const std::string mrope =
      R"("hidden_size":48,"num_attention_heads":4,"num_key_value_heads":2,"rope_scaling":{"type":"mrope","mrope_section":)";
  const DecoderConfig flat = parsed(R"({"model_type":"qwen2_5_vl",)" + mrope + "[2,2,2]}}");
  CHECK((flat.rope().scaling.type == RopeType::none && flat.model_type == "qwen2_5_vl_text"));
  CHECK(flat == wrapped("qwen2_5_vl", mrope + "[2,2,2]}"));
  refused("qwen2_5_vl", mrope + "[2,2,3]}",
          "'rope_scaling.mrope_section' is a list of 3, expected three whole numbers that add up to the 6");
  refused("qwen2_5_vl", mrope + "[6]}", "three whole numbers");
  refused("qwen3", mrope + "[2,2,2]}", "M-RoPE (rope_scaling.mrope_section) is not supported in qwen3");

  const auto wrong = [&](const std::string& type, const std::string& text, const std::string& beside, const std::string& message) {
    INFO(message);
    CHECK_THROWS_WITH(wrapped(type, text, beside), contains("'c.json'") && contains(message));
  };
  wrong("gemma3", R"("hidden_size":0)", "", "key 'text_config.hidden_size' is '0'");
  wrong("gemma3", R"("rope_scaling":{"type":"warp"})", "", "text_config.rope_scaling.rope_type 'warp'");
  wrong("gemma3", R"("model_type":"gemma4_text")", "", "text_config.model_type 'gemma4_text' is not supported: embeddings of each layer");
  wrong("mistral3", "", R"(,"quantization_config":{"quant_method":"mxfp4"})", "quantization_config (\"mxfp4\")");
  wrong("mistral3", R"("quantization_config":{"quant_method":"mxfp4"})", "", "text_config.quantization_config (\"mxfp4\")");
  wrong("llava", R"("is_causal":false)", "", "text_config.is_causal is not true");
  wrong("llava", "", R"(,"architectures":["LlavaModel"])", "expected a …ForConditionalGeneration");
  refused("gemma3", "", "key 'text_config' is missing");
  CHECK_THROWS_WITH(parsed(R"({"model_type":"gemma3","text_config":7})"), contains("text_config.* is '7', expected an object"));
}

TEST_CASE("families: what the next ones need is named", "[io]") {
  const struct {
    const char *name, *missing;
  } others[] = {{"mixtral", "mixtures of experts are missing"},
                {"qwen3_moe", "mixtures of experts"},
                {"gpt_oss", "mixtures of experts"},
                {"qwen3_next", "recurrent layers and mixtures of experts"},
                {"qwen3_5", "recurrent layers are missing"},
                {"lfm2", "recurrent layers are missing"},
                {"deepseek_v3", "attention over latents (MLA)"},
                {"gemma3n", "embeddings of each layer are missing"},
                {"gemma4_text", "embeddings of each layer are missing"},
                {"qwen3_vl", "M-RoPE, three positions a token, is missing"}};
  for (const auto& [name, missing] : others) {
    CHECK_THROWS_AS(family(name), UnsupportedError);
    CHECK_THROWS_WITH(family(name), contains("model_type '" + std::string(name) + "' is not supported") && contains(missing));
  }
  // A known family with a switch of theirs.
  const struct {
    const char *keys, *message;
  } switches[] = {{R"("num_local_experts":8)", "num_local_experts is 8, which is not supported: mixtures of experts"},
                  {R"("n_routed_experts":64)", "n_routed_experts is 64"},
                  {R"("kv_lora_rank":512)", "attention over latents (MLA)"},
                  {R"("hidden_size_per_layer_input":256)", "embeddings of each layer"},
                  {R"("num_kv_shared_layers":10)", "keys and values shared by layers"},
                  {R"("linear_num_value_heads":32)", "recurrent layers"},
                  {R"("attn_output_gate":true)", "a gate of the attention's output"},
                  {R"("qk_layer_norms":true)", "norms of queries and keys"},
                  {R"("lm_head_bias":true)", "a bias of the head"},
                  {R"("hidden_act":"relu2")", "hidden_act 'relu2'"},
                  {R"("rope_scaling":{"rope_type":"warp"})", "rope_scaling.rope_type 'warp'"}};
  for (const auto& [keys, message] : switches) refused("qwen3", keys, message);
  CHECK_NOTHROW(family("granite", R"("num_local_experts":0,"num_experts":null,"lm_head_bias":false,"n_routed_experts":[])"));
}

}}  // namespace
