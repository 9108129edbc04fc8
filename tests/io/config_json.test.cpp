#include <string>
#include <vector>

#include <pith/io/config_json.hpp>

#include "io/temp_folder.hpp"
#include "support/catch.hpp"

namespace {

using namespace pith;
using pith_test::contains;

/// A small config of the family with these keys besides, the later of two winning.
DecoderConfig with(const std::string& family, const std::string& keys) {
  const std::string base = R"("hidden_size":64,"intermediate_size":112,"num_hidden_layers":3,"num_attention_heads":4,"vocab_size":128)";
  return parse_config(R"({"model_type":")" + family + "\"," + base + (keys.empty() ? "}" : "," + keys + "}"), "c.json");
}
DecoderConfig only(const std::string& keys) { return parse_config("{" + keys + "}", "c.json"); }
using Windows = std::vector<Index>;
Windows windows(const DecoderConfig& config) {
  Windows all;
  for (const LayerSpec& layer : config.layers) all.push_back(layer.window);
  return all;
}
using Tokens = std::vector<Token>;

TEST_CASE("config: defaults of the families", "[io]") {
  const DecoderConfig llama = only(R"("model_type":"llama")"), mistral = only(R"("model_type":"mistral")"),
                      qwen2 = only(R"("model_type":"qwen2")");
  CHECK((llama.hidden_size == 4096 && mistral.hidden_size == 4096 && qwen2.hidden_size == 4096));
  CHECK((llama.intermediate_size == 11008 && mistral.intermediate_size == 14336 && qwen2.intermediate_size == 22016));
  CHECK((llama.num_key_value_heads == 32 && mistral.num_key_value_heads == 8 && qwen2.num_key_value_heads == 32));
  CHECK((llama.max_position_embeddings == 2048 && mistral.max_position_embeddings == 131072 && qwen2.max_position_embeddings == 32768));
  CHECK((llama.head_dim == 128 && llama.rope().theta == 10000 && llama.norm_eps == 1e-6 && !llama.tie_word_embeddings));
  CHECK((llama.vocab_size == 0 && llama.num_hidden_layers == 32));
  CHECK((windows(llama) == Windows(32, 0) && windows(qwen2) == Windows(32, 0)));
  CHECK(windows(mistral) == Windows(32, 4096));
  CHECK((llama.bos_token_id == 1 && mistral.bos_token_id == 1 && qwen2.bos_token_id == -1));
  CHECK((llama.eos_token_id == Tokens{2} && qwen2.eos_token_id.empty()));
  CHECK(llama.rope().scaling.type == RopeType::none);

  CHECK(with("llama", R"("num_attention_heads2":0)").num_key_value_heads == 4);
  CHECK(with("mistral", R"("num_key_value_heads":null)").num_key_value_heads == 4);
  CHECK_THROWS_WITH(with("mistral", ""),
                    contains("'num_key_value_heads' is missing") && contains("divisor") && contains("default here is 8"));
  CHECK(with("llama", R"("head_dim":null)").head_dim == 16);
  CHECK(with("llama", R"("head_dim":32)").head_dim == 32);
}

TEST_CASE("config: spellings", "[io]") {
  CHECK(with("llama", R"("rope_theta":1000000)").rope().theta == 1e6);
  CHECK(with("llama", R"("rope_theta":1000000.0,"max_position_embeddings":512.0)").max_position_embeddings == 512);
  CHECK(with("llama", R"("rope_scaling":null,"rope_parameters":null)").rope().scaling.type == RopeType::none);
  CHECK(with("llama", R"("rope_scaling":{"type":"default"})").rope().scaling.type == RopeType::none);
  CHECK(with("llama", R"("rope_scaling":{"rope_type":"default"})").rope().scaling.type == RopeType::none);
  const DecoderConfig linear = with("llama", R"("rope_scaling":{"type":"linear","factor":4})");
  CHECK((linear.rope().scaling.type == RopeType::linear && linear.rope().scaling.factor == 4));
  CHECK(with("llama", R"("rope_scaling":{"rope_type":"dynamic","type":"linear","factor":2.0})").rope().scaling.type == RopeType::dynamic);

  const std::string llama3 =
      R"("rope_type":"llama3","factor":8.0,"low_freq_factor":1,"high_freq_factor":4.0,"original_max_position_embeddings":8192)";
  const DecoderConfig v4 = with("llama", R"("rope_theta":500000.0,"torch_dtype":"float16","rope_scaling":{)" + llama3 + "}");
  const DecoderConfig v5 = with("llama", R"("dtype":"float16","rope_parameters":{"rope_theta":500000,)" + llama3 + "}");
  const DecoderConfig both =
      with("llama", R"("rope_theta":500000,"rope_scaling":{)" + llama3 + R"(},"rope_parameters":{"rope_theta":5e5,)" + llama3 + "}");
  for (const DecoderConfig& c : {v4, v5, both}) {
    CHECK((c.rope().scaling.type == RopeType::llama3 && c.rope().theta == 500000 && c.rope().scaling.factor == 8));
    CHECK((c.rope().scaling.low_freq_factor == 1 && c.rope().scaling.high_freq_factor == 4));
    CHECK(c.rope().scaling.original_max_position_embeddings == 8192);
  }
  CHECK(with("llama", R"("rope_theta":7,"rope_parameters":{"rope_type":"default"})").rope().theta == 7);
  CHECK(with("llama", R"("rope_scaling":{"rope_type":"default","rope_theta":7})").rope().theta == 7);
  CHECK(with("llama", R"("rope_theta":null,"rope_parameters":{"rope_theta":7},"rope_scaling":{"type":"default"})").rope().theta == 7);
  CHECK(with("llama", R"("original_max_position_embeddings":64,"rope_scaling":{"type":"llama3","factor":8,"low_freq_factor":1,)"
                      R"("high_freq_factor":4})")
            .rope()
            .scaling.original_max_position_embeddings == 64);

  CHECK(with("llama", R"("eos_token_id":[5,7])").eos_token_id == Tokens{5, 7});
  CHECK(with("llama", R"("eos_token_id":5)").eos_token_id == Tokens{5});
  CHECK(with("llama", R"("eos_token_id":-1,"bos_token_id":-1)").eos_token_id.empty());
  CHECK(with("llama", R"("eos_token_id":[-1,5])").eos_token_id == Tokens{5});
  CHECK(with("llama", R"("bos_token_id":-1)").bos_token_id == -1);
  CHECK(with("llama", R"("eos_token_id":null,"bos_token_id":null)").eos_token_id.empty());
  CHECK(with("llama", R"("bos_token_id":null)").bos_token_id == -1);
  CHECK(with("llama", R"("bos_token_id":0)").bos_token_id == 0);
  const DecoderConfig biased = with("llama", R"("attention_bias":true,"mlp_bias":true)");
  CHECK((biased.attention_bias && biased.mlp_bias));
}

TEST_CASE("config: sliding windows", "[io]") {
  const std::string kv = R"("num_key_value_heads":2,)";
  CHECK(windows(with("mistral", kv + R"("sliding_window":12)")) == Windows(3, 12));
  CHECK(windows(with("mistral", kv + R"("sliding_window":null)")) == Windows(3, 0));
  CHECK(windows(with("llama", R"("sliding_window":12)")) == Windows(3, 0));
  CHECK(windows(with("qwen2", kv + R"("sliding_window":16,"use_sliding_window":false)")) == Windows(3, 0));
  CHECK(windows(with("qwen2", kv + R"("sliding_window":16,"use_sliding_window":true,"max_window_layers":1)")) == Windows{0, 16, 16});
  CHECK(windows(with("qwen2", kv + R"("sliding_window":16,"use_sliding_window":true,"max_window_layers":0)")) == Windows(3, 16));
  CHECK(windows(with("qwen2", kv + R"("sliding_window":16,"use_sliding_window":true)")) == Windows(3, 0));  // 28 layers see everything
  CHECK(windows(with("qwen2", kv + R"("sliding_window":null,"use_sliding_window":true,"max_window_layers":0)")) == Windows(3, 0));

  const std::string types = R"("layer_types":["full_attention","sliding_attention","full_attention"])";
  CHECK(windows(with("qwen2", kv + R"("sliding_window":16,"use_sliding_window":true,"max_window_layers":0,)" + types)) ==
        Windows{0, 16, 0});
  CHECK(windows(with("qwen2", kv + R"("sliding_window":16,)" + types)) == Windows{0, 16, 0});
  CHECK_THROWS_AS(with("qwen2", kv + R"("sliding_window":16,"use_sliding_window":false,)" + types), FormatError);
  CHECK_THROWS_AS(with("qwen2", kv + R"("sliding_window":null,)" + types), FormatError);
  CHECK(windows(with("llama", R"("sliding_window":16,)" + types)) == Windows(3, 0));  // as in transformers, and listed: see below
  CHECK(windows(with("mistral", kv + R"("sliding_window":16,)" + types)) == Windows(3, 16));
  CHECK_THROWS_WITH(with("qwen2", kv + R"("layer_types":["full_attention"])"), contains("a list of 3 names"));
  CHECK_THROWS_AS(with("qwen2", kv + R"("layer_types":["a","b","c"])"), UnsupportedError);
}

TEST_CASE("config: what is not supported is refused by name", "[io]") {
  CHECK_THROWS_AS(only(R"("model_type":"gpt2")"), UnsupportedError);
  CHECK_THROWS_WITH(only(R"("model_type":"gpt2")"),
                    contains("'gpt2'") && contains("llama, mistral, qwen2,") && contains(" and cohere2 are"));
  CHECK_THROWS_WITH(only(R"("model_type":"mamba2","time_step_limit":[0.0,Infinity])"), contains("'mamba2'"));
  const struct {
    const char* keys;
    const char* message;
  } cases[] = {
      {R"("quantization_config":{"quant_method":"aqlm","bits":4})", "quantization_config (\"aqlm\"): quantised"},
      {R"("quantization_config":{})", "quantization_config (by an unnamed method): quantised"},
      {R"("quantization_config":{"group_size":64,"bits":4})", "quantization_config (by MLX): quantised"},
      {R"("quantization":{"group_size":64,"bits":4})", "quantization (by MLX): quantised"},
      {R"("quantization":"awq")", "awq"},
      {R"("is_causal":false)", "is_causal is not true"},
      {R"("is_causal":null)", "is_causal is not true"},
      {R"("use_bidirectional_attention":true)", "use_bidirectional_attention is true"},
      {R"("is_encoder_decoder":true)", "is_encoder_decoder is true"},
      {R"("add_cross_attention":true)", "add_cross_attention is true"},
      {R"("architectures":["LlamaForSequenceClassification"])", "'LlamaForSequenceClassification': heads of classifiers"},
      {R"("architectures":["LlamaForTokenClassification"])", "heads of classifiers"},
      {R"("architectures":["LlamaForQuestionAnswering"])", "heads of classifiers"},
      {R"("architectures":["LlamaForRewardModel"])", "reward models are not supported"},
      {R"("architectures":["LlamaModel"])", "'LlamaModel': a model without the head of a language model"},
      {R"("architectures":["LlamaForCausalLMEagle"])", "'LlamaForCausalLMEagle': no causal language model"},
      {R"("architectures":["LlamaForCausalLM","T5ForConditionalGeneration"])", "'T5ForConditionalGeneration'"},
      {R"("compression_config":{"quant_method":"mxfp4"})", "compression_config (\"mxfp4\")"},
      {R"("hidden_act":"relu2")", "'relu2'"},
      {R"("partial_rotary_factor":0.5)", "partial_rotary_factor"},
      {R"("rope_parameters":{"rope_type":"default","partial_rotary_factor":0.25})", "partial_rotary_factor"},
      {R"("rope_scaling":{"rope_type":"longrope"})", "'longrope'"},
      {R"("rope_scaling":{"type":"su"})", "'su'"},
      {R"("rope_scaling":{"type":"ntk","factor":2})", "'ntk'"},
      {R"("rope_scaling":{"type":"mrope","mrope_section":[1]})", "mrope"},
      {R"("rope_scaling":{"type":"default","mrope_section":[1]})", "mrope"},
      {R"("rope_parameters":{"rope_type":"proportional"})", "'proportional'"},
      {R"("rope_parameters":{"full_attention":{"rope_type":"default"}})", "by layer type"},
  };
  for (const auto& refused : cases) {
    INFO(refused.keys);
    CHECK_THROWS_AS(with("llama", refused.keys), UnsupportedError);
    CHECK_THROWS_WITH(with("llama", refused.keys), contains(refused.message) && contains("c.json"));
  }
  CHECK_NOTHROW(with("llama", R"("architectures":["LlamaForCausalLM"],"is_causal":true,"is_encoder_decoder":false,"quantization":null)"));
  CHECK_NOTHROW(with("llama", R"("architectures":[])"));
  CHECK_NOTHROW(with("llama", R"("quantization_config":null,"hidden_act":null,"partial_rotary_factor":1.0,"pretraining_tp":4)"));
}

TEST_CASE("config: nonsense is refused with file, key, found and expected", "[io]") {
  const struct {
    const char* keys;
    const char* message;
  } cases[] = {
      {R"("hidden_size":0)", "'hidden_size' is '0', expected a whole number from 1"},
      {R"("hidden_size":-64)", "'-64'"},
      {R"("hidden_size":64.5)", "'64.5'"},
      {R"("hidden_size":"64")", "expected a whole number"},
      {R"("hidden_size":99999999999)", "to 2147483647"},
      {R"("hidden_size":18446744073709551615)", "to 2147483647"},
      {R"("hidden_size":[64])", "is a list of 1"},
      {R"("hidden_size":66)", "a multiple of num_attention_heads, 4"},
      {R"("num_hidden_layers":1000000)", "to 65536"},
      {R"("num_attention_heads":true)", "'num_attention_heads'"},
      {R"("num_key_value_heads":3)", "a divisor of num_attention_heads, 4"},
      {R"("head_dim":15)", "an even number"},
      {R"("head_dim":2147483646)", "over all 4 heads"},
      {R"("vocab_size":-1)", "'vocab_size'"},
      {R"("rms_norm_eps":-1e-6)", "'rms_norm_eps'"},
      {R"("rms_norm_eps":"1e-6")", "a finite number"},
      {R"("rms_norm_eps":1e999)", "not valid JSON"},
      {R"("rms_norm_eps":NaN)", "'rms_norm_eps' is 'NaN', expected a finite number"},
      {R"("hidden_size":Infinity)", "'hidden_size' is 'Infinity', expected a whole number from 1"},
      {R"("rope_theta":-Infinity)", "'rope_theta' is '-Infinity', expected a finite number"},
      {R"("rope_theta":0)", "'rope_theta' is '0'"},
      {R"("rope_theta":-1)", "above 0"},
      {R"("rope_theta":"x")", "a finite number"},
      {R"("rope_parameters":{"rope_theta":0})", "'rope_parameters.rope_theta'"},
      {R"("rope_scaling":[])", "rope_scaling.* is a list of 0, expected an object"},
      {R"("rope_scaling":{"type":4})", "'rope_scaling.type'"},
      {R"("rope_scaling":{"type":"linear"})", "'rope_scaling.factor' is missing"},
      {R"("rope_scaling":{"type":"linear","factor":0})", "above 0"},
      {R"("rope_scaling":{"type":"llama3","factor":8})", "low_freq_factor' is missing"},
      {R"("rope_scaling":{"type":"llama3","factor":8,"low_freq_factor":1,"high_freq_factor":4})",
       "original_max_position_embeddings' is missing"},
      {R"("rope_scaling":{"type":"llama3","factor":8,"low_freq_factor":4,"high_freq_factor":4,"original_max_position_embeddings":64})",
       "less than"},
      {R"("tie_word_embeddings":1)", "true or false"},
      {R"("eos_token_id":"2")", "'eos_token_id'"},
      {R"("eos_token_id":[2,-2])", "'eos_token_id'"},
      {R"("eos_token_id":-2)", "'eos_token_id'"},
      {R"("architectures":"LlamaForCausalLM")", "'architectures'"},
      {R"("architectures":[7])", "'architectures' is a list of 1, expected a list of names of classes"},
      {R"("is_causal":"no")", "'is_causal'"},
      {R"("rope_theta":3,"rope_parameters":{"rope_theta":4})", "'rope_parameters.rope_theta' is '4', expected what rope_theta says"},
      {R"("rope_theta":3,"rope_scaling":{"type":"default","rope_theta":4})", "'rope_scaling.rope_theta' is '4', expected what rope_theta"},
      {R"("rope_scaling":{"type":"default","rope_theta":4},"rope_parameters":{"rope_theta":5})",
       "'rope_scaling.rope_theta' is '4', expected what rope_parameters says"},
      {R"("rope_scaling":{"type":"linear","factor":4},"rope_parameters":{"rope_theta":5})",
       "'rope_scaling' is an object of 2, expected the scaling that rope_parameters says"},
      {R"("rope_scaling":{"type":"linear","factor":4},"rope_parameters":{"rope_type":"linear","factor":2})", "'rope_scaling'"},
      {R"("rope_scaling":{"type":"linear","factor":4},"rope_parameters":{"rope_type":"dynamic","factor":4})", "'rope_scaling'"},
      {R"("original_max_position_embeddings":32,"rope_scaling":{"type":"llama3","factor":8,"low_freq_factor":1,"high_freq_factor":4,)"
       R"("original_max_position_embeddings":64})",
       "'rope_scaling.original_max_position_embeddings' is '64', expected 32"},
      {R"("bos_token_id":1.5)", "'bos_token_id'"},
      {R"("hidden_act":1)", "expected text"},
  };
  for (const auto& broken : cases) {
    INFO(broken.keys);
    std::string keys = broken.keys, base = R"("model_type":"llama","num_attention_heads":4)";
    if (keys.find("\"num_attention_heads\"") == 0) base = R"("model_type":"llama")";
    if (keys.find("\"hidden_size\"") == std::string::npos) base += R"(,"hidden_size":64)";
    CHECK_THROWS_AS(only(base + "," + keys), FormatError);
    CHECK_THROWS_WITH(only(base + "," + keys), contains(broken.message) && contains("c.json"));
  }
  CHECK_THROWS_WITH(only(""), contains("'model_type' is missing"));
  CHECK_THROWS_AS(only(R"("model_type":7)"), FormatError);
  CHECK_THROWS_WITH(only(R"("model_type":"llama","model_type":"qwen2")"), contains("'model_type' is given twice"));
  for (const char* text : {"", "[]", "null", "{", "{}}", "{\"a\":1,}", "\xff", "// {}", "7"}) {
    INFO(text);
    CHECK_THROWS_AS(parse_config(text), FormatError);
  }
  CHECK_THROWS_WITH(only("\"a\":" + std::string(1'000'000, '[')), contains("nested deeper"));
  CHECK_THROWS_WITH(parse_config(std::string("{}\0x", 4)), contains("zero byte"));
}

TEST_CASE("config: what is left out on purpose is listed", "[io]") {
  const std::string base = R"({"model_type":"llama","hidden_size":64)";
  std::vector<std::string> ignored;
  parse_config(base + "}", "c.json", &ignored);
  parse_config(base + R"(,"auto_map":null})", "c.json", &ignored);
  CHECK(ignored.empty());
  CHECK_NOTHROW(parse_config(base + R"(,"auto_map":{"AutoModelForCausalLM":"modeling_x.X"}})", "c.json"));
  parse_config(base + R"(,"auto_map":{"AutoModelForCausalLM":"modeling_x.X"}})", "c.json", &ignored);
  CHECK(ignored == std::vector<std::string>{"c.json: auto_map, because code of the folder's own is not run"});
  ignored.clear();
  parse_config(base + R"(,"num_hidden_layers":1,"layer_types":["full_attention"]})", "c.json", &ignored);
  CHECK(ignored.empty());
  parse_config(base + R"(,"num_hidden_layers":1,"layer_types":["sliding_attention"]})", "c.json", &ignored);
  parse_config(R"({"model_type":"mistral","num_hidden_layers":1,"layer_types":["full_attention"]})", "c.json", &ignored);
  CHECK(ignored == std::vector<std::string>{"c.json: layer_types, because in llama no layer has a window",
                                            "c.json: layer_types, because in mistral sliding_window alone decides"});
}

TEST_CASE("config: the published files", "[io]") {
  const auto folder = pith_test::golden_folder() / "model";
  const DecoderConfig v4 = read_config(folder / "llama3-rope-f16/config.json"), v5 = read_config(folder / "llama3-rope-f16/config.v5.json");
  CHECK((v4.rope().theta == v5.rope().theta && v4.rope().scaling.type == RopeType::llama3 && v5.rope().scaling.type == RopeType::llama3));
  const DecoderConfig sharded = read_config(folder / "llama-sharded-f32/config.json");
  CHECK((sharded.num_key_value_heads == 2 && sharded.norm_eps == 1e-6 && sharded.rope().theta == 10000));
  const DecoderConfig mistral = read_config(folder / "mistral-swa-bf16/config.json");
  CHECK((mistral.head_dim == 16 && mistral.hidden_size == 48 && mistral.window(1) == 12));
  CHECK(windows(read_config(folder / "qwen2-bias-bf16/config.json")) == Windows(2, 0));
  CHECK(windows(read_config(folder / "qwen2-bias-bf16/config.swa.json")) == Windows{0, 16});
  CHECK(read_config(folder / "llama-gqa-f32/config.rope_dynamic.json").rope().scaling.type == RopeType::dynamic);
  CHECK_THROWS_WITH(read_config(folder / "no.json"), contains("cannot open") && contains("no.json"));
}

}  // namespace
