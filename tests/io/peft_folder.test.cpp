#include <cmath>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <pith/io/peft_folder.hpp>

#include "io/temp_folder.hpp"
#include "io/tiny_adapter.hpp"
#include "support/catch.hpp"

namespace {

using namespace pith;
using pith_test::contains;
using pith_test::TempFolder;
using pith_test::TinyAdapter;

const std::string q0 = "model.layers.0.self_attn.q_proj", up0 = "model.layers.0.mlp.up_proj";

PeftFolder opened(const TinyAdapter& adapter) {
  const TempFolder folder;  // gone afterwards: a mapping outlives its file's name
  adapter.write(folder);
  return PeftFolder(folder.path());
}

template <class Error> void refused(const TinyAdapter& adapter, const std::string& a, const std::string& b = "pith: '") {
  CHECK_THROWS_AS(opened(adapter), Error);
  CHECK_THROWS_WITH(opened(adapter), contains(a) && contains(b));
}

/// With one key of the config changed.
TinyAdapter altered(const std::string& key, const nlohmann::ordered_json& value) {
  TinyAdapter adapter;
  adapter.config[key] = value;
  return adapter;
}

bool asked_for(const std::string& fields, const std::string& module) {
  std::size_t steps = 1 << 20;
  return parse_peft_config(R"({"peft_type":"LORA",)" + fields + "}").targets.match(module, steps);
}

/// Soft prompt of 3 rows.
TinyAdapter prompt(const std::string& type = "PROMPT_TUNING") {
  TinyAdapter adapter;
  adapter.tensors.clear();
  adapter.config = nlohmann::ordered_json::parse(R"({"num_virtual_tokens":3,"token_dim":8,"num_layers":2,"num_attention_heads":1})");
  adapter.config["peft_type"] = type;
  adapter.put("prompt_embeddings", 3, type == "PROMPT_TUNING" ? 8 : 32);
  return adapter;
}

}  // namespace

TEST_CASE("peft folder: every number of every module is the file's, scaled as its config says", "[io]") {
  TinyAdapter adapter;
  const auto check = [&](double q_scale, double up_scale) {
    const PeftFolder folder = opened(adapter);
    CHECK(folder.modules() == std::vector<std::string>{up0, q0, "model.layers.1.mlp.up_proj", "model.layers.1.self_attn.q_proj"});
    const PeftModule<double> q = folder.load<double>(q0), up = folder.load<double>(up0);
    CHECK(q.down == adapter.tensors.at(TinyAdapter::name(q0, "lora_A.weight")).cast<double>());
    CHECK(q.up == adapter.tensors.at(TinyAdapter::name(q0, "lora_B.weight")).cast<double>());
    CHECK(q.gain == Vector<double>::Constant(q.down.rows(), q_scale));
    CHECK(up.gain == Vector<double>::Constant(up.down.rows(), up_scale));
    CHECK(q.bias.size() + q.up_bias.size() + q.magnitude.size() + q.weight.size() == 0);
    CHECK(folder.load<float>(q0).down == adapter.tensors.at(TinyAdapter::name(q0, "lora_A.weight")));
  };
  SECTION("alpha over rank") { check(2, 2); }
  SECTION("rsLoRA") {
    adapter.config["use_rslora"] = true;
    check(4 / std::sqrt(2.0), 4 / std::sqrt(2.0));
  }
  SECTION("F16 and F64") {
    adapter.dtypes[TinyAdapter::name(q0, "lora_A.weight")] = DType::f16;
    adapter.dtypes[TinyAdapter::name(q0, "lora_B.weight")] = DType::f64;
    check(2, 2);
  }
  SECTION("alpha by module: the first key of the file that matches wins") {
    adapter.config["alpha_pattern"] = {{"self_attn.q_proj", 1.5}, {"q_proj", 100}, {"(up|down)_proj", 6}};
    check(0.75, 3);
    adapter.config["alpha_pattern"] = {{"q_proj", 100}, {"self_attn.q_proj", 1.5}};
    check(50, 2);
  }
  SECTION("rank by module; dots stand for any letter, and a key is the end of a path") {
    adapter.config["rank_pattern"] = {{"^model.layers.0.self_attn.q_proj", 4}, {"layers.0", 7}, {"roj", 7}};
    adapter.lora(q0, 8, 4, 8);
    check(1, 2);
  }
  SECTION("names without the wrapper's prefix, and with the adapter's own name left in") {
    TinyAdapter renamed = adapter;
    for (const char* part : {"lora_A", "lora_B"}) {
      const Matrix<float> values = adapter.tensors.at(TinyAdapter::name(q0, part + std::string(".weight")));
      renamed.tensors.erase(TinyAdapter::name(q0, part + std::string(".weight")));
      renamed.put(q0 + "." + part + ".default.weight", values.rows(), values.cols()) = values;
    }
    CHECK(opened(renamed).load(q0).down == opened(adapter).load(q0).down);
    CHECK(opened(renamed).load(q0).up == opened(adapter).load(q0).up);
  }
}

TEST_CASE("peft folder: biases, magnitudes, lambdas and replaced modules", "[io]") {
  TinyAdapter adapter;
  SECTION("bias lora_only replaces the base's") {
    adapter.config["bias"] = "lora_only";
    const Matrix<float> bias = adapter.put(TinyAdapter::name(q0, "base_layer.bias"), 8);
    CHECK(opened(adapter).load(q0).bias == bias);
    adapter.put(TinyAdapter::name("model.layers.0.self_attn.k_proj", "bias"), 4);
    refused<FormatError>(adapter, "k_proj.bias' is a bias, but the config's bias is not \"all\"");
    adapter.config["bias"] = "all";
    CHECK(opened(adapter).load("model.layers.0.self_attn.k_proj").bias.size() == 4);
    CHECK(opened(adapter).load("model.layers.0.self_attn.k_proj").down.size() == 0);
    adapter.config["bias"] = "none";
    refused<FormatError>(adapter, "bias' is a bias, but the config's bias is");
  }
  SECTION("lora_bias is scaled like B") {
    adapter.config["lora_bias"] = true;
    refused<FormatError>(adapter, "holds no lora_B.bias, though lora_bias is true of module 'model.layers.0.mlp.up_proj'");
    for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
      adapter.put(TinyAdapter::name(layer + "self_attn.q_proj", "lora_B.bias"), 8);
      adapter.put(TinyAdapter::name(layer + "mlp.up_proj", "lora_B.bias"), 6);
    }
    const Vector<float> beta = adapter.tensors.at(TinyAdapter::name(q0, "lora_B.bias"));
    CHECK(opened(adapter).load(q0).up_bias == 2 * beta);
    adapter.config["lora_bias"] = false;
    refused<FormatError>(adapter, "lora_B.bias' is not expected: not said that lora_bias is true");
  }
  SECTION("DoRA") {
    adapter.config["use_dora"] = true;
    refused<FormatError>(adapter, "holds no lora_magnitude_vector, though use_dora is true of module '" + up0);
    for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
      adapter.put(TinyAdapter::name(layer + "self_attn.q_proj", "lora_magnitude_vector"), 8);
      adapter.put(TinyAdapter::name(layer + "mlp.up_proj", "lora_magnitude_vector.weight"), 6);
    }
    CHECK(opened(adapter).load(q0).magnitude == adapter.tensors.at(TinyAdapter::name(q0, "lora_magnitude_vector")));
    CHECK(opened(adapter).load(up0).magnitude.size() == 6);
    adapter.put(TinyAdapter::name(q0, "lora_magnitude_vector"), 7);
    refused<FormatError>(adapter, "lora_magnitude_vector' is [7], expected [8] by lora_A and lora_B");
    adapter.config["use_dora"] = false;
    refused<FormatError>(adapter, "is not expected: not said that use_dora is true");
    adapter.config["use_dora"] = adapter.config["lora_bias"] = true;
    refused<FormatError>(adapter, "key 'lora_bias' is 'true', expected false where use_dora is true");
  }
  SECTION("AdaLoRA divides by its first rank, whatever was kept") {
    adapter.tensors.clear();
    adapter.config = nlohmann::ordered_json::parse(
        R"({"peft_type":"ADALORA","init_r":4,"r":8,"lora_alpha":16,"target_modules":["q_proj"],"tinit":3,"total_step":20})");
    const auto triplets = [&](Index kept) {
      adapter.put(TinyAdapter::name(q0, "lora_A"), kept, 8);
      adapter.put(TinyAdapter::name(q0, "lora_B"), 8, kept);
      adapter.put(TinyAdapter::name(q0, "lora_E"), kept, 1);
    };
    for (const Index kept : {3, 0}) {
      triplets(kept);
      adapter.config["rank_pattern"] = {{q0 + ".lora_E", std::vector<bool>(4, false)}};
      for (Index i = 0; i < kept; ++i) adapter.config["rank_pattern"][q0 + ".lora_E"][static_cast<std::size_t>(i)] = true;
      const PeftModule<double> module = opened(adapter).load<double>(q0);
      CHECK(module.down.rows() == kept);
      CHECK(module.gain == 16 / (4 + 1e-5) * Vector<double>(adapter.tensors.at(TinyAdapter::name(q0, "lora_E")).cast<double>().reshaped()));
    }
    adapter.config["lora_alpha"] = 0;
    triplets(2);
    refused<FormatError>(adapter, "lora_E' has 2 rows, expected the 0 that rank_pattern keeps of it");
    adapter.config["rank_pattern"] = nullptr;
    CHECK(opened(adapter).load<double>(q0).gain[0] == 4 / (4 + 1e-5) * double(adapter.tensors.at(TinyAdapter::name(q0, "lora_E"))(0, 0)));
    adapter.put(TinyAdapter::name(q0, "lora_E"), 2);
    refused<FormatError>(adapter, "lora_E' is [2], expected [2, 1] by lora_A and lora_B");
    adapter.tensors.erase(TinyAdapter::name(q0, "lora_E"));
    refused<FormatError>(adapter, "holds no lora_E, though peft_type is ADALORA of module");
    triplets(2);
    adapter.config["rank_pattern"] = {{q0 + ".lora_E", 3}};
    refused<FormatError>(adapter, "key 'rank_pattern' is an object of 1, expected a list of true and false");
    adapter.config["rank_pattern"] = nullptr;
    adapter.config["alpha_pattern"] = {{"q_proj", 3}};
    refused<UnsupportedError>(adapter, "ADALORA with an alpha_pattern is not supported");
    adapter.config.erase("alpha_pattern");
    adapter.config["use_rslora"] = true;
    refused<UnsupportedError>(adapter, "ADALORA with use_rslora, use_dora or lora_bias is not supported");
  }
  SECTION("modules_to_save") {
    TinyAdapter unsaid;
    unsaid.put(TinyAdapter::name("model.norm", "weight"), 8);
    refused<FormatError>(unsaid, "model.norm.weight' is a whole weight, but modules_to_save does not name its module");
    adapter.put(TinyAdapter::name("lm_head", "weight"), 5, 8);
    adapter.config["modules_to_save"] = {"lm_head"};
    CHECK(opened(adapter).load("lm_head").weight == adapter.tensors.at(TinyAdapter::name("lm_head", "weight")));
    adapter.config["modules_to_save"] = {"lm_head", "norm"};
    refused<FormatError>(adapter, "holds no tensor of 'norm', which modules_to_save names");
    adapter.put(TinyAdapter::name("model.norm", "weight"), 8);
    CHECK(opened(adapter).load("model.norm").weight.rows() == 8);
    adapter.put(TinyAdapter::name("model.layers.0.input_layernorm", "weight"), 8);  // ends in "norm" as well
    CHECK(opened(adapter).load("model.layers.0.input_layernorm").weight.rows() == 8);
    adapter.put(TinyAdapter::name("lm_head", "bias"), 4);
    refused<FormatError>(adapter, "lm_head.bias' is [4], expected [5] by its weight");
    adapter.tensors.erase(TinyAdapter::name("lm_head", "weight"));
    refused<FormatError>(adapter, "holds no weight of module 'lm_head'");
    adapter.lora("lm_head", 5, 2, 8);
    refused<FormatError>(adapter, "lm_head.lora_A.weight' adapts a module that is replaced as a whole");
    adapter.config["modules_to_save"] = 7;
    refused<FormatError>(adapter, "key 'modules_to_save' is '7', expected a list of names, at most 8192");
  }
}

TEST_CASE("peft folder: which modules a config asks for", "[io]") {
  CHECK(asked_for(R"("target_modules":["q_proj"])", "model.layers.3.self_attn.q_proj"));
  CHECK(asked_for(R"("target_modules":["q_proj"])", "q_proj"));
  CHECK_FALSE(asked_for(R"("target_modules":["q_proj"])", "model.layers.3.self_attn.xq_proj"));
  CHECK_FALSE(asked_for(R"("target_modules":["q_proj"])", "model.q_proj.inner"));
  CHECK(asked_for(R"("target_modules":".*\\.(q|k)_proj")", "model.layers.3.self_attn.k_proj"));
  CHECK_FALSE(asked_for(R"("target_modules":"(q|k)_proj")", "model.layers.3.self_attn.k_proj"));  // the whole path
  CHECK(asked_for(R"("target_modules":"all-linear")", "model.layers.3.self_attn.k_proj"));
  CHECK_FALSE(asked_for(R"("target_modules":"all-linear")", "lm_head"));
  CHECK(asked_for(R"("r":8)", "anything"));
  CHECK_FALSE(asked_for(R"("target_modules":["q_proj"],"exclude_modules":["layers.3.q_proj"])", "layers.3.q_proj"));
  CHECK(asked_for(R"("target_modules":["q_proj"],"exclude_modules":".*\\.3\\..*")", "layers.13.q_proj"));
  CHECK_FALSE(asked_for(R"("target_modules":["q_proj"],"exclude_modules":".*\\.3\\..*")", "layers.3.q_proj"));
  CHECK_FALSE(asked_for(R"("target_modules":["dense"],"modules_to_save":["classifier"])", "model.classifier.dense"));
  CHECK(asked_for(R"("target_modules":["dense"],"modules_to_save":["classifier"])", "model.classifier2.dense"));

  const std::string layers = R"("target_modules":["q_proj"],"layers_to_transform":[1,13])";
  CHECK(asked_for(layers, "model.layers.1.q_proj"));
  CHECK(asked_for(layers, "model.layers.13.q_proj"));
  CHECK_FALSE(asked_for(layers, "model.layers.3.q_proj"));
  CHECK_FALSE(asked_for(layers, "layers.1.q_proj"));            // needs a dot before the name
  CHECK(asked_for(layers, "model.layers.1.experts.5.q_proj"));  // the first number
  CHECK_FALSE(asked_for(layers, "model.layers.5.experts.1.q_proj"));
  CHECK(asked_for(R"("target_modules":["q_proj"],"layers_to_transform":1)", "model.h.1.q_proj"));
  CHECK(asked_for(R"("target_modules":["layers.3.q_proj"],"layers_to_transform":1)", "layers.3.q_proj"));  // a whole path
  CHECK_FALSE(asked_for(R"("target_modules":["layers.3.q_proj"],"layers_to_transform":1)", "model.layers.3.q_proj"));
  const std::string pattern = R"("target_modules":["q_proj"],"layers_to_transform":[1],"layers_pattern":["blocks","transformer.h"])";
  CHECK(asked_for(pattern, "model.blocks.1.q_proj"));
  CHECK(asked_for(pattern, "a.transformer.h.1.q_proj"));
  CHECK_FALSE(asked_for(pattern, "model.layers.1.q_proj"));
  CHECK(asked_for(pattern, "model.layers.5.blocks.1.q_proj"));
}

TEST_CASE("peft folder: what is wrong with a tensor is said with its name", "[io]") {
  TinyAdapter adapter;
  const std::string a = TinyAdapter::name(q0, "lora_A.weight"), b = TinyAdapter::name(q0, "lora_B.weight");
  SECTION("ranks") {
    adapter.put(b, 8, 3);
    refused<FormatError>(adapter, b + "' is [8, 3], expected [8, 2]: lora_A has rank 2");
    adapter.put(a, 3, 8);
    refused<FormatError>(adapter, a + "' is [3, 8], expected [2, 8] by r and rank_pattern");
    adapter.put(a, 2);
    refused<FormatError>(adapter, a + "' is [2], expected a matrix");
    adapter.put(a, 2, 8);
    adapter.put(b, 8);
    refused<FormatError>(adapter, b + "' is [8], expected a matrix");
  }
  SECTION("a pair without its half") {
    adapter.tensors.erase(b);
    refused<FormatError>(adapter, "holds no lora_B of module '" + q0);
    adapter.put(b, 8, 2);
    adapter.tensors.erase(a);
    refused<FormatError>(adapter, "holds no lora_A of module '" + q0);
    adapter.tensors.erase(b);
    adapter.put(TinyAdapter::name(q0, "lora_magnitude_vector"), 8);
    refused<FormatError>(adapter, "holds no lora_A of module '" + q0);
  }
  SECTION("types and numbers") {
    adapter.dtypes[a] = DType::i8;
    refused<UnsupportedError>(adapter, a + "' is I8, expected F32, F16, BF16 or F64");
    adapter.dtypes.clear();
    adapter.tensors.at(a)(1, 3) = std::nanf("");
    refused<FormatError>(adapter, a + "' has NaN or infinity as value 11, expected finite numbers");
  }
  SECTION("names") {
    const auto other = [&](const std::string& name) {
      TinyAdapter with_it;
      with_it.put(name, 2, 8);
      return with_it;
    };
    for (const std::string name :
         {"base_model.model..lora_A.weight", "base_model.model.a..b.lora_A.weight", "../../etc/passwd.lora_A.weight",
          "base_model.model.a b.lora_A.weight", "nonsense", "base_model.model.q.lora_C.weight", ".lora_A.weight",
          "base_model.model.q.lora_A.scale", "base_model.model.q.lora_A.lora_A.weight"})
      refused<FormatError>(other(name), "tensor '" + name + "' is no part of an adapter: expected base_model.model.<module>.lora_A.weight");
    refused<FormatError>(other("base_model.model.model.embed_tokens.lora_embedding_A"), "holds no lora_B of module 'model.embed_tokens'");
    refused<FormatError>(other("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"),
                         "replaces single rows, but the config names no tokens for them");
    refused<UnsupportedError>(other("base_model.model.q.lora_diag"), "belongs to KaSA");
    refused<UnsupportedError>(other("base_model.model.norm.base_layer.weight"), "changes the base itself");
    refused<FormatError>(other(q0 + ".lora_A.default.weight"), "is the same part as '");
    refused<FormatError>(other("base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight"), "holds no lora_B of module");
    refused<FormatError>(other("prompt_embeddings"), "is a prompt, which the config's peft_type has none of");
    TinyAdapter unasked;
    unasked.lora("model.layers.0.self_attn.o_proj", 8, 2, 8);
    refused<FormatError>(unasked, "is of a module that the config's target_modules do not name");
    unasked.config["target_modules"] = {"q_proj", "up_proj", "o_proj"};
    unasked.config["exclude_modules"] = {"o_proj"};
    refused<FormatError>(unasked, "is of a module that the config's target_modules do not name");
  }
  SECTION("an empty file") {
    adapter.tensors.clear();
    refused<FormatError>(adapter, "holds no tensor");
  }
}

TEST_CASE("peft folder: what a config asks for is understood, or refused by its name", "[io]") {
  const auto unsupported = [](const std::string& key, const nlohmann::ordered_json& value) {
    refused<UnsupportedError>(altered(key, value), "key '" + key + "' is '",
                              "which pith does not do: expected null, false, empty, or no such key");
  };
  for (const char* key : {"target_parameters", "layer_replication"}) unsupported(key, {1, 2});
  for (const char* key : {"arrow_config", "kasa_config", "monteclora_config", "megatron_config"}) unsupported(key, {{"x", 1}});
  for (const char* key : {"use_qalora", "use_bdlora", "something_new"}) unsupported(key, true);
  unsupported("num_virtual_tokens", 3);
  for (const char* key : {"alora_invocation_string", "invocation_string", "target_parameters", "layer_replication", "lora_variant",
                          "new_config", "module_mapping"})
    unsupported(key, "text");
  for (const nlohmann::ordered_json& nothing :
       {nlohmann::ordered_json(), nlohmann::ordered_json(false), nlohmann::ordered_json(""), nlohmann::ordered_json::array(),
        nlohmann::ordered_json::object(), nlohmann::ordered_json(0), nlohmann::ordered_json(0.0)}) {
    const PeftFolder folder = opened(altered("something_new", nothing));
    CHECK(folder.config().ignored.empty());
  }
  CHECK(opened(altered("task", "question_answering")).config().ignored ==
        std::vector<std::string>{"adapter_config.json: key 'task', '\"question_answering\"'"});
  for (const nlohmann::ordered_json& value :
       {nlohmann::ordered_json("x"), nlohmann::ordered_json(3), nlohmann::ordered_json({{"by", "me"}})})
    for (const char* key : {"_comment", "unsloth_version"}) CHECK(opened(altered(key, value)).config().ignored.size() == 1);
  for (const char* key : {"merge_weights", "ensure_weight_tying"})
    for (const bool value : {false, true}) CHECK(opened(altered(key, value)).config().ignored.empty());
  CHECK(opened(altered("ensure_weight_tying", true)).config().ensure_weight_tying);
  refused<FormatError>(altered("ensure_weight_tying", "yes"), "key 'ensure_weight_tying' is '\"yes\"', expected true or false");
  for (const char* key : {"lora_dropout", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config", "task_type",
                          "inference_mode", "auto_mapping", "base_model_name_or_path", "revision", "peft_version", "megatron_core"})
    CHECK_NOTHROW(opened(altered(key, "x")));
  CHECK_NOTHROW(opened(altered("fan_in_fan_out", true)));
  CHECK_NOTHROW(opened(altered("runtime_config", {{"x", 1}})));
  CHECK(opened(altered("base_model_name_or_path", "llama")).config().base_model == "llama");

  for (const char* init : {"pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"})
    refused<UnsupportedError>(altered("init_lora_weights", init), "trains against changed weights of the base",
                              "path_initial_model_for_weight_conversion");
  refused<UnsupportedError>(altered("init_lora_weights", "other"), "init_lora_weights 'other' is not known to leave the base as it is");
  for (const char* init : {"gaussian", "eva", "orthogonal", "mica"}) CHECK_NOTHROW(opened(altered("init_lora_weights", init)));
  CHECK_NOTHROW(opened(altered("init_lora_weights", false)));

  refused<UnsupportedError>(altered("peft_type", "P_TUNING"), "peft_type 'P_TUNING' is not supported: LORA, ADALORA, IA3, VERA,");
  refused<FormatError>(altered("peft_type", nullptr), "key 'peft_type' is 'null', expected text");
  for (const char* config : {R"({"fine_tune_type":"lora","num_layers":16,"lora_parameters":{"rank":8,"scale":20.0}})",
                             R"({"lora_layers":16,"lora_parameters":{"rank":8}})"}) {
    CHECK_THROWS_AS(parse_peft_config(config), UnsupportedError);
    CHECK_THROWS_WITH(parse_peft_config(config), contains("an adapter of MLX, only PEFT's are read"));
  }
  const char* hub = R"({"config":{"architecture":"lora","r":8},"model_class":"LlamaAdapterModel","version":"adapters.1.0.0"})";
  CHECK_THROWS_AS(parse_peft_config(hub), UnsupportedError);
  CHECK_THROWS_WITH(parse_peft_config(hub), contains("an adapter of the Adapters library (AdapterHub)"));
  refused<FormatError>(altered("bias", "some"), "key 'bias' is '\"some\"', expected \"none\", \"all\" or \"lora_only\"");
  refused<FormatError>(altered("target_modules", 3), "key 'target_modules' is '3', expected a list of names");
  refused<FormatError>(altered("target_modules", {""}), "key 'target_modules' is a list of 1, expected a list of names");
  refused<FormatError>(altered("target_modules", "(q"), "key 'target_modules': expression '(q' opens a group that is not closed");
  refused<FormatError>(altered("exclude_modules", "(q"), "key 'exclude_modules': expression '(q' opens a group");
  refused<UnsupportedError>(altered("target_modules", "(q)\\1"), "uses '\\1', which pith does not read: list the names");
  refused<FormatError>(altered("layers_to_transform", "x"), "key 'layers_to_transform'", "expected a whole number");
  refused<FormatError>(altered("layers_to_transform", {-1}), "expected a whole number from 0 to 2147483647");
  refused<FormatError>(altered("layers_pattern", "layers"), "key 'layers_pattern'", "expected nothing unless layers_to_transform is given");
  TinyAdapter layers = altered("layers_to_transform", {1});
  layers.config["target_modules"] = ".*";
  refused<FormatError>(layers, "expected nothing unless target_modules is a list");
  refused<FormatError>(altered("rank_pattern", {1}), "key 'rank_pattern' is a list of 1, expected an object from modules to numbers");
  refused<FormatError>(altered("rank_pattern", {{"q_proj)|(k", 2}}), "expression 'q_proj)|(k' closes a group");
}

TEST_CASE("peft folder: what PEFT writes beside the adapter", "[io]") {
  TinyAdapter adapter;
  SECTION("the table and the head of a base whose vocabulary was resized, though nothing names them") {
    const Matrix<float> table = adapter.put(TinyAdapter::name("model.embed_tokens", "weight"), 7, 8);
    const Matrix<float> head = adapter.put(TinyAdapter::name("lm_head", "weight"), 7, 8);
    const PeftFolder folder = opened(adapter);
    CHECK(folder.load("model.embed_tokens").base_weight == table);
    CHECK(folder.load("model.embed_tokens").weight.size() == 0);
    CHECK(folder.load("lm_head").base_weight == head);
    adapter.put(TinyAdapter::name("lm_head", "weight"), 7);
    refused<FormatError>(adapter, "lm_head.weight' is [7], expected a matrix");
  }
  SECTION("the head under its adapter") {
    adapter.config["target_modules"].push_back("lm_head");
    adapter.lora("lm_head", 5, 2, 8);
    const Matrix<float> head = adapter.put(TinyAdapter::name("lm_head", "base_layer.weight"), 5, 8);
    CHECK(opened(adapter).load("lm_head").base_weight == head);
    CHECK(opened(adapter).load("lm_head").up.rows() == 5);
    adapter.put(TinyAdapter::name("lm_head", "base_layer.weight"), 5, 7);
    refused<FormatError>(adapter, "lm_head.base_layer.weight' is [5, 7], expected [5, 8] by lora_A and lora_B");
    adapter.put(TinyAdapter::name("lm_head", "base_layer.weight"), 5, 8);
    adapter.put(TinyAdapter::name("lm_head", "weight"), 5, 8);
    refused<FormatError>(adapter, "is the same part as '");
    adapter.config["modules_to_save"] = {"lm_head"};
    refused<FormatError>(adapter, "adapts a module that is replaced as a whole");
  }
  SECTION("modules_to_save of other models beside one that is there") {
    adapter.put(TinyAdapter::name("lm_head", "weight"), 5, 8);
    adapter.config["modules_to_save"] = {"lm_head", "wte", "classifier", "vision_tower.pooler"};
    CHECK(opened(adapter).load("lm_head").weight.rows() == 5);
    for (const char* name :
         {"embed_tokens", "model.norm", "norm", "k_proj", "layers.7", "self_attn.o_proj", "model.layers.0.self_attn.v_proj"}) {
      adapter.config["modules_to_save"] = {"lm_head", name};
      refused<FormatError>(adapter, "holds no tensor of '" + std::string(name) + "', which modules_to_save names");
    }
    adapter.config["modules_to_save"] = {"wte"};
    refused<FormatError>(adapter, "holds no tensor of 'wte', which modules_to_save names");
  }
  SECTION("classifiers") {
    adapter.config["modules_to_save"] = {"classifier", "score"};
    refused<UnsupportedError>(adapter, "is of a classifier, as its modules_to_save (classifier) says",
                              "adapters of classifiers and reward models are not supported");
    for (const char* head : {"score", "classifier", "classifier.dense", "v_head.summary", "qa_outputs"}) {
      TinyAdapter with_head = adapter;
      with_head.put(TinyAdapter::name(head, "weight"), 3, 8);
      refused<UnsupportedError>(with_head, "is of a classifier: adapters of classifiers and reward models are not supported", head);
    }
  }
}

TEST_CASE("peft folder: other formats are called by their names", "[io]") {
  const struct {
    const char* file;
    const char* message;
  } formats[] = {{"adapters.safetensors", "is an adapter of MLX, only PEFT's are read"},
                 {"adapters.npz", "is an adapter of MLX"},
                 {"pytorch_lora_weights.safetensors", "is an adapter of diffusers"},
                 {"adapter.safetensors", "is an adapter of the Adapters library"},
                 {"pytorch_adapter.bin", "is an adapter of the Adapters library"},
                 {"lora.gguf", "is a file of llama.cpp"},
                 {"model.safetensors", "is a whole model: load it with load_decoder()"},
                 {"model.safetensors.index.json", "is of a whole model"}};
  for (const auto& [file, message] : formats) {
    INFO(file);
    const TempFolder folder;
    folder.write(file, "x");
    CHECK_THROWS_AS(PeftFolder(folder.path()), FormatError);
    CHECK_THROWS_WITH(PeftFolder(folder.path()), contains("holds no adapter_config.json; its ") && contains(message));
    folder.write("adapter_config.json", R"({"peft_type":"LORA"})");
    CHECK_THROWS_WITH(PeftFolder(folder.path()), contains("holds no adapter_model.safetensors; its ") && contains(message));
  }
  const TempFolder folder;
  TinyAdapter().write(folder);
  std::filesystem::remove(folder / "adapter_config.json");
  CHECK_THROWS_WITH(PeftFolder(folder.path()), contains("is not enough: fetch the adapter_config.json that belongs to it"));
}

TEST_CASE("peft folder: hostile numbers, sizes and files", "[io]") {
  for (const nlohmann::ordered_json& rank : {nlohmann::ordered_json(0), nlohmann::ordered_json(-3), nlohmann::ordered_json(1e18),
                                             nlohmann::ordered_json(2.5), nlohmann::ordered_json("2"), nlohmann::ordered_json(true)}) {
    refused<FormatError>(altered("r", rank), "key 'r'", "expected a whole number from 1 to 2147483647");
    refused<FormatError>(altered("rank_pattern", {{"q_proj", rank}}), "key 'rank_pattern'", "expected a whole number from 1 to 2147483647");
  }
  refused<FormatError>(altered("r", 2147483647),
                       "is [2, 8], expected [2147483647, 8] by r and rank_pattern");  // nothing of that size is made
  CHECK(opened(altered("r", 2.0)).load(q0).gain[0] == 2);
  refused<FormatError>(altered("lora_alpha", "4"), "key 'lora_alpha' is '\"4\"', expected a finite number");
  refused<FormatError>(altered("alpha_pattern", {{"q_proj", "4"}}), "key 'alpha_pattern'", "expected finite numbers");
  CHECK_THROWS_WITH(opened(altered("lora_alpha", 1e300)).load<float>(q0),
                    contains("by an alpha of") && contains("which is not a number any more"));
  CHECK(opened(altered("lora_alpha", 1e300)).load<double>(q0).gain[0] == 5e299);
  CHECK(opened(altered("lora_alpha", -1)).load(q0).gain[0] == -0.5f);
  CHECK_THROWS_WITH(opened(TinyAdapter()).load("lm_head"), contains("changes no module 'lm_head'"));
  CHECK_THROWS_WITH(opened(TinyAdapter()).load_prompt(), contains("is no prompt: it changes modules"));

  for (const char* number : {"NaN", "Infinity", "-Infinity", "1e999"})
    CHECK_THROWS_AS(parse_peft_config(std::string(R"({"peft_type":"LORA","lora_alpha":)") + number + "}"), FormatError);
  CHECK_THROWS_WITH(parse_peft_config(R"({"peft_type":"LORA","r":1,"r":2})"), contains("key 'r' is given twice"));
  CHECK_THROWS_WITH(parse_peft_config(std::string(max_peft_config_bytes + 1, ' ')), contains("1048577 bytes, expected at most 1048576"));
  CHECK_THROWS_WITH(parse_peft_config("[]"), contains("expected a JSON object at the top"));
  std::string many = R"({"peft_type":"LORA","target_modules":["a")";
  for (std::size_t i = 0; i < max_peft_names; ++i) many += ",\"a\"";
  CHECK_THROWS_WITH(parse_peft_config(many + "]}"), contains("expected a list of names, at most 8192"));
  refused<FormatError>(altered("target_modules", "((a{100}){100}){100}"), "unfolds to more than 8192 states");
  TinyAdapter heavy;
  for (int i = 0; i < 200; ++i) heavy.config["rank_pattern"]["(a{8000}" + std::to_string(i) + ")"] = 2;
  refused<FormatError>(heavy, "key 'rank_pattern': its expressions unfold to more than 262144 states together");
  TinyAdapter wide = altered("layers_to_transform", {0, 1});
  wide.config["layers_pattern"] = std::vector<std::string>(65, "layers");
  refused<FormatError>(wide, "key 'layers_pattern' is a list of 65, expected at most 64 names");
  TinyAdapter slow;
  slow.config["target_modules"] = "(" + std::string(200, '(') + "x";
  refused<FormatError>(slow, "nests groups deeper than 32");

  const TempFolder folder;
  CHECK_THROWS_AS(PeftFolder(folder.path()), FormatError);
  CHECK_THROWS_WITH(PeftFolder(folder.path()), contains("adapter_config.json"));
  folder.write("adapter_config.json", R"({"peft_type":"LORA"})");
  CHECK_THROWS_WITH(PeftFolder(folder.path()), contains("holds no adapter_model.safetensors"));
  folder.write("adapter_model.bin", "x");
  CHECK_THROWS_WITH(PeftFolder(folder.path()), contains("its adapter_model.bin is a pickle") && contains("safe_serialization=True"));
}

TEST_CASE("peft folder: prompts", "[io]") {
  TinyAdapter soft = prompt();
  CHECK(opened(soft).load_prompt() == soft.tensors.at("prompt_embeddings"));
  CHECK(opened(soft).prompt_tuned());
  TinyAdapter prefix = prompt("PREFIX_TUNING");
  prefix.config["prefix_projection"] = true;
  prefix.config["encoder_hidden_size"] = 12;
  CHECK(opened(prefix).load_prompt<double>() == prefix.tensors.at("prompt_embeddings").cast<double>());

  soft.config["num_virtual_tokens"] = 4;
  refused<FormatError>(soft, "'prompt_embeddings' is [3, 8], expected [4, 8] by num_virtual_tokens, token_dim and num_layers");
  soft.config["num_virtual_tokens"] = 3;
  soft.config["token_dim"] = 9;
  refused<FormatError>(soft, "'prompt_embeddings' is [3, 8], expected [3, 9] by");
  prefix.config["num_layers"] = 3;
  refused<FormatError>(prefix, "'prompt_embeddings' is [3, 32], expected [3, 48] by");
  prefix.config["num_layers"] = prefix.config["token_dim"] = 2147483647;
  refused<FormatError>(prefix, "'prompt_embeddings' is [3, 32], expected [3, 9223372028264841218] by");
  soft = prompt();
  soft.put("prompt_embeddings", 24);
  refused<FormatError>(soft, "'prompt_embeddings' is [24], expected [3, 8] by");
  soft = prompt();
  soft.config["num_transformer_submodules"] = 2;
  refused<UnsupportedError>(soft, "num_transformer_submodules other than 1 is of encoder-decoder models");
  soft = prompt();
  soft.config["modules_to_save"] = {"lm_head"};
  refused<UnsupportedError>(soft, "modules_to_save beside a prompt is not supported");
  soft = prompt();
  soft.config["r"] = 3;
  refused<UnsupportedError>(soft, "key 'r' is '3', which pith does not do");
  soft = prompt();
  soft.config.erase("num_virtual_tokens");
  refused<FormatError>(soft, "key 'num_virtual_tokens' is missing, expected a whole number");
  soft = prompt();
  soft.lora(q0, 8, 2, 8);
  refused<FormatError>(soft, "is no prompt_embeddings, expected nothing else");
  soft = prompt();
  soft.tensors.clear();
  refused<FormatError>(soft, "holds no tensor 'prompt_embeddings'");
}
