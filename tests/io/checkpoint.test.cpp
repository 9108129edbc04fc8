#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <pith/io/checkpoint.hpp>

#include "io/temp_folder.hpp"
#include "io/tiny_checkpoint.hpp"
#include "support/catch.hpp"

namespace {

using namespace pith;
using pith_test::contains;
using pith_test::TempFolder;
using pith_test::TinyCheckpoint;

constexpr WeightsLayout layouts[] = {WeightsLayout::packed, WeightsLayout::mapped};

template <class S> Matrix<S> weight_of(const AnyLinear<S>& linear) {
  Matrix<S> rows(linear.out(), linear.in());
  linear.copy_weight(0, rows);
  return rows;
}

Checkpoint<float> written(const TinyCheckpoint& tiny, const LoadOptions& options = {}) {
  const TempFolder folder;  // gone before the weights are used: a mapping outlives its file's name
  tiny.write(folder);
  return load_checkpoint(folder.path(), options);
}

/// Every weight, with its name, against the numbers the file was written from.
template <class S> void check_weights(const Checkpoint<S>& loaded, const TinyCheckpoint& tiny) {
  const auto expected = [&](const std::string& name) { return Matrix<S>(tiny.tensors.at(name).template cast<S>()); };
  loaded.weights.check(loaded.config);
  Matrix<S> table(5, 8);
  loaded.weights.embed_tokens.copy_rows(0, table);
  CHECK((table == expected("model.embed_tokens.weight")));
  for (std::size_t l = 0; l < 2; ++l) {
    const std::string layer = "model.layers." + std::to_string(l) + ".";
    CHECK((loaded.weights.layers[l].pre_attention_norm == expected(layer + "input_layernorm.weight")));
    CHECK((loaded.weights.layers[l].pre_mlp_norm == expected(layer + "post_attention_layernorm.weight")));
    detail::for_each_projection(loaded.weights.layers[l], loaded.config, [&](const char* name, const AnyLinear<S>& linear, Index, Index) {
      INFO(layer << name);
      CHECK((weight_of(linear) == expected(layer + name + ".weight")));
      if (tiny.tensors.contains(layer + name + ".bias")) {
        CHECK((linear.bias() == expected(layer + name + ".bias")));
      } else {
        CHECK(linear.bias().size() == 0);
      }
    });
  }
  CHECK((loaded.weights.norm == expected("model.norm.weight")));
  CHECK(
      (weight_of(loaded.weights.lm_head) == expected(loaded.config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight")));
}

TEST_CASE("checkpoint: both layouts hold the file's numbers, whatever its types", "[io]") {
  TinyCheckpoint tiny;
  const DType types[] = {DType::bf16, DType::f32, DType::f16, DType::f64};
  int next = 0;
  SECTION("all F32") {}
  SECTION("mixed") {
    for (const auto& [name, values] : tiny.tensors) tiny.dtypes[name] = types[next++ % 4];
  }
  SECTION("biases") {
    for (const char* name : {"self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"})
      for (const char* layer : {"model.layers.0.", "model.layers.1."})
        tiny.put(std::string(layer) + name + ".bias", name[4] == 'u' ? 6 : 8, 1);
    tiny.dtypes["model.layers.1.mlp.up_proj.bias"] = DType::f16;
  }
  for (const WeightsLayout layout : layouts) check_weights(written(tiny, {.weights = layout}), tiny);
  const TempFolder folder;
  tiny.write(folder);
  check_weights(load_checkpoint<double>(folder.path()), tiny);
}

TEST_CASE("checkpoint: misaligned tensors are copied, not misread", "[io]") {
  const TinyCheckpoint tiny;
  const TempFolder folder;
  tiny.write(folder);
  std::string file = folder.read("model.safetensors");
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  file.insert(8 + length, 1, ' ');  // one more space of padding
  ++length;
  std::memcpy(file.data(), &length, 8);
  folder.write("model.safetensors", file);
  for (const WeightsLayout layout : layouts) check_weights(load_checkpoint(folder.path(), {.weights = layout}), tiny);
}

TEST_CASE("checkpoint: packed and mapped give the same bits", "[io]") {
  TinyCheckpoint tiny;
  tiny.dtypes["model.layers.0.mlp.down_proj.weight"] = DType::bf16;
  const Checkpoint<float> packed = written(tiny), mapped = written(tiny, {.weights = WeightsLayout::mapped});
  CHECK(packed.weights.fingerprint == mapped.weights.fingerprint);
  const Matrix<float> x = Matrix<float>::Random(3, 6);
  CHECK((packed.weights.layers[0].down_proj.forward(x) == mapped.weights.layers[0].down_proj.forward(x)));
}

TEST_CASE("checkpoint: int8 rounds the projections and the head, and nothing else", "[io]") {
  TinyCheckpoint tiny;
  tiny.dtypes["model.layers.0.mlp.down_proj.weight"] = DType::bf16;
  tiny.dtypes["model.layers.1.self_attn.q_proj.weight"] = DType::f64;
  tiny.put("model.layers.0.self_attn.q_proj.bias", 8, 1);
  bool tied = false;
  SECTION("a head of its own") {}
  SECTION("tied") {
    tied = true;
    tiny.config.insert(1, "\"tie_word_embeddings\":true,");
    tiny.tensors.erase("lm_head.weight");
  }
  const Checkpoint<float> rounded = written(tiny, {.weights = WeightsLayout::int8}), exact = written(tiny);
  const auto check = [&](const AnyLinear<float>& linear, const std::string& name) {
    INFO(name);
    const Matrix<float>& w = tiny.tensors.at(name);
    const Eigen::VectorXf steps = w.cwiseAbs().rowwise().maxCoeff() / 127;
    const Matrix<float> off = weight_of(linear) - w;
    CHECK((off.cwiseAbs().array() <= .50001f * steps.replicate(1, off.cols()).array()).all());
    CHECK(off.cwiseAbs().maxCoeff() > 0);
    CHECK(linear.bytes() < exact.weights.layers[0].q_proj.bytes());
  };
  for (std::size_t l = 0; l < 2; ++l) {
    const std::string layer = "model.layers." + std::to_string(l) + ".";
    detail::for_each_projection(
        rounded.weights.layers[l], rounded.config,
        [&](const char* name, const AnyLinear<float>& linear, Index, Index) { check(linear, layer + name + ".weight"); });
    CHECK((rounded.weights.layers[l].pre_attention_norm == exact.weights.layers[l].pre_attention_norm));
  }
  check(rounded.weights.lm_head, tied ? "model.embed_tokens.weight" : "lm_head.weight");
  CHECK((rounded.weights.layers[0].q_proj.bias() == tiny.tensors.at("model.layers.0.self_attn.q_proj.bias").col(0)));
  Matrix<float> table(5, 8), same(5, 8);
  rounded.weights.embed_tokens.copy_rows(0, table);
  exact.weights.embed_tokens.copy_rows(0, same);
  CHECK((table == same));
  CHECK(rounded.weights.fingerprint != exact.weights.fingerprint);  // rows cached under one are of no use under the other
  CHECK(rounded.weights.bytes() < exact.weights.bytes());

  const TempFolder folder;
  tiny.write(folder);
  CHECK_THROWS_AS(load_checkpoint<double>(folder.path(), {.weights = WeightsLayout::int8}), UnsupportedError);
}

TEST_CASE("checkpoint: tied embeddings", "[io]") {
  TinyCheckpoint tiny;
  tiny.config.insert(1, "\"tie_word_embeddings\":true,");
  SECTION("a leftover head loses, and is mentioned") {
    const Checkpoint<float> loaded = written(tiny);
    CHECK(loaded.ignored == std::vector<std::string>{"lm_head.weight"});
    check_weights(loaded, tiny);
  }
  SECTION("no head in the file") {
    tiny.tensors.erase("lm_head.weight");
    for (const WeightsLayout layout : layouts) check_weights(written(tiny, {.weights = layout}), tiny);
  }
}

TEST_CASE("checkpoint: tensors without a place", "[io]") {
  TinyCheckpoint tiny;
  tiny.put("model.layers.0.self_attn.rotary_emb.inv_freq", 2, 1);
  tiny.put("model.vision.weight", 2, 2);
  tiny.put("model.layers.2.input_layernorm.weight", 8, 1);
  tiny.put("model.layers.1.self_attn.rotary_emb.cos_cached", 2, 1);
  CHECK(written(tiny).ignored == std::vector<std::string>{"model.layers.2.input_layernorm.weight", "model.vision.weight"});
}

TEST_CASE("checkpoint: a tensor without a place inside what is computed is refused", "[io]") {
  const struct {
    const char* name;
    const char* message;
  } cases[] = {
      {"model.layers.0.self_attn.q_norm.weight", "its family has no norms of queries and keys"},
      {"model.layers.1.self_attn.k_norm.weight", "its family has no norms of queries and keys"},
      {"model.layers.0.self_attn.q_proj.lora_A.default.weight", "it is of an adapter: merge that with PEFT"},
      {"model.layers.0.mlp.experts.3.up_proj.weight", "a mixture of experts, which is not supported"},
      {"model.layers.0.block_sparse_moe.experts.0.w1.weight", "a mixture of experts"},
      {"model.layers.0.mlp.gate.weight", "a mixture of experts"},
      {"model.layers.1.post_feedforward_layernorm.weight", "its family has no such norm"},
      {"model.layers.1.input_layernorm.bias", "its family has no such norm"},
      {"model.layers.1.something", "but lies in a module that it computes with"},
      {"model.norm.bias", "but lies in a module that it computes with"},
      {"model.embed_tokens.lora_embedding_A", "it is of an adapter"},
      {"lm_head.bias", "but lies in a module that it computes with"},
  };
  for (const auto& [name, message] : cases) {
    INFO(name);
    TinyCheckpoint tiny;
    tiny.put(name, 4, 1);
    CHECK_THROWS_AS(written(tiny), UnsupportedError);
    CHECK_THROWS_WITH(written(tiny), contains("tensor '" + std::string(name) + "' has no place in a llama decoder") && contains(message));
  }
}

TEST_CASE("checkpoint: the head of a classifier is no language model's", "[io]") {
  for (const char* name : {"score.weight", "classifier.bias", "qa_outputs.weight"}) {
    INFO(name);
    TinyCheckpoint tiny;
    tiny.put(name, 2, 8);
    CHECK(written(tiny).ignored == std::vector<std::string>{name});  // beside the head of a language model
    tiny.config.insert(1, "\"tie_word_embeddings\":true,");
    tiny.tensors.erase("lm_head.weight");
    CHECK_THROWS_AS(written(tiny), UnsupportedError);
    CHECK_THROWS_WITH(written(tiny), contains("tensor '" + std::string(name) + "' is the head of a classifier"));
  }
}

TEST_CASE("checkpoint: biases that the config does not promise are used, and listed", "[io]") {
  TinyCheckpoint tiny;
  tiny.config.insert(1, "\"attention_bias\":false,");
  tiny.put("model.layers.0.self_attn.q_proj.bias", 8, 1);
  const auto listed = [&](const std::string& which) {
    const Checkpoint<float> loaded = written(tiny);
    check_weights(loaded, tiny);
    CHECK(loaded.ignored == std::vector<std::string>{"config.json: that it promises no model.layers.0.self_attn.q_proj.bias, because the "
                                                     "files hold it" +
                                                     which + ": used"});
  };
  listed("");
  tiny.put("model.layers.1.self_attn.q_proj.bias", 8, 1);
  tiny.put("model.layers.1.mlp.up_proj.bias", 6, 1);
  listed(" and 2 more such biases");
  tiny.config.replace(tiny.config.find("false"), 5, "true");
  for (const char* layer : {"model.layers.0.", "model.layers.1."})
    for (const char* name : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"})
      tiny.put(std::string(layer) + name + ".bias", name[10] == 'q' || name[10] == 'o' ? 8 : 4, 1);
  tiny.tensors.erase("model.layers.1.mlp.up_proj.bias");
  CHECK(written(tiny).ignored.empty());
}

TEST_CASE("checkpoint: generation_config.json says what ends a text", "[io]") {
  TinyCheckpoint tiny;
  tiny.config.insert(1, "\"eos_token_id\":1,");
  const TempFolder folder;
  tiny.write(folder);
  const auto check = [&](const std::string& text, const std::vector<Token>& tokens, const std::string& ignored) {
    INFO(text);
    folder.write("generation_config.json", text);
    const Checkpoint<float> loaded = load_checkpoint(folder.path());
    CHECK(loaded.config.eos_token_id == tokens);
    REQUIRE(loaded.ignored.size() == (ignored.empty() ? 0u : 1u));
    if (!ignored.empty()) CHECK_THAT(loaded.ignored[0], contains(ignored));
  };
  check(R"({"eos_token_id":[1,9]})", {1, 9}, "config.json: eos_token_id [1], where generation_config.json has [1, 9]");
  check(R"({"eos_token_id":9})", {9}, "config.json: eos_token_id [1], where generation_config.json has [9]");
  check(R"({"eos_token_id":-1})", {1}, "");
  check(R"({"eos_token_id":1})", {1}, "");
  check(R"({"eos_token_id":null})", {1}, "");
  check(R"({"temperature":0.6})", {1}, "");
  check(R"({"temperature":0.6,})", {1}, "generation_config.json: pith: '");
  check(R"({"eos_token_id":"</s>"})", {1}, "generation_config.json: pith: 'generation_config.json': key 'eos_token_id' is");
  check("", {1}, "not valid JSON");
  check("[]", {1}, "expected a JSON object");
  tiny.config.replace(tiny.config.find("\"eos_token_id\":1"), 16, "\"eos_token_id\":[9,1]");
  tiny.write(folder);
  check(R"({"eos_token_id":[1,9]})", {1, 9}, "");  // an order is no difference
  CHECK(load_decoder(folder.path()).config().eos_token_id == std::vector<Token>{1, 9});
}

TEST_CASE("checkpoint: what the config asks for must be there", "[io]") {
  const TinyCheckpoint sound;
  for (const auto& [name, values] : sound.tensors) {
    INFO(name);
    TinyCheckpoint tiny = sound;
    tiny.tensors.erase(name);
    CHECK_THROWS_AS(written(tiny), FormatError);
    CHECK_THROWS_WITH(written(tiny), contains("'" + name + "' is missing"));
    tiny.put(name, values.rows() + 1, values.cols());
    CHECK_THROWS_AS(written(tiny), FormatError);
    CHECK_THROWS_WITH(written(tiny), contains("'" + name + "' is [") && contains("expected ["));
  }
  TinyCheckpoint tiny = sound;
  tiny.tensors.erase("lm_head.weight");
  CHECK_THROWS_WITH(written(tiny), contains("tie_word_embeddings is false"));
  tiny = sound;
  tiny.config.insert(1, "\"attention_bias\":true,");
  CHECK_THROWS_WITH(written(tiny), contains("q_proj.bias' is missing; attention_bias is true"));
  tiny = sound;
  tiny.config.insert(1, "\"mlp_bias\":true,");
  CHECK_THROWS_WITH(written(tiny), contains("gate_proj.bias' is missing; mlp_bias is true"));
  tiny = sound;
  tiny.config.replace(tiny.config.find("llama"), 5, "qwen2");
  CHECK_THROWS_WITH(written(tiny), contains("q_proj.bias' is missing; every qwen2"));
  tiny = sound;
  tiny.config.replace(tiny.config.find("\"vocab_size\":5,"), 15, "");
  CHECK(written(tiny).config.vocab_size == 5);  // the table says
}

TEST_CASE("checkpoint: quantised weights without a config that says so are refused by name", "[io]") {
  for (const char* mark : {".qweight", ".scales", ".g_idx", ".SCB", ".absmax", ".weight_scale", ".weight.quant_state.bitsandbytes__nf4"}) {
    TinyCheckpoint tiny;
    tiny.put("model.layers.0.mlp.up_proj" + std::string(mark), 2, 2);
    CHECK_THROWS_AS(written(tiny), UnsupportedError);
    CHECK_THROWS_WITH(written(tiny), contains(mark) && contains("quantised"));
  }
  TinyCheckpoint tiny;
  tiny.dtypes["model.layers.1.mlp.up_proj.weight"] = DType::i8;
  CHECK_THROWS_AS(written(tiny), UnsupportedError);
  CHECK_THROWS_WITH(written(tiny), contains("model.layers.1.mlp.up_proj.weight' is I8"));
}

TEST_CASE("checkpoint: weights that are not finite", "[io]") {
  const float bad[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                       -std::numeric_limits<float>::infinity()};
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f64})
    for (const float value : bad) {
      TinyCheckpoint tiny;
      tiny.dtypes["model.layers.1.mlp.up_proj.weight"] = dtype;
      tiny.tensors["model.layers.1.mlp.up_proj.weight"](5, 3) = value;
      CHECK_THROWS_AS(written(tiny), FormatError);
      CHECK_THROWS_WITH(written(tiny), contains("'model.layers.1.mlp.up_proj.weight': value 43 is NaN or infinite"));
      CHECK_NOTHROW(written(tiny, {.check_finite = false}));
      CHECK_NOTHROW(written(tiny, {.weights = WeightsLayout::mapped}));
      CHECK_THROWS_AS(written(tiny, {.weights = WeightsLayout::mapped, .check_finite = true}), FormatError);
      CHECK_THROWS_AS(written(tiny, {.weights = WeightsLayout::int8}), FormatError);
    }
}

TEST_CASE("checkpoint: a double too large for float", "[io]") {
  const double values[] = {1, 2, 1e300};
  CHECK(detail::first_non_finite<float>(DType::f64, reinterpret_cast<const std::byte*>(values), 3) == 2);
  CHECK(detail::first_non_finite<double>(DType::f64, reinterpret_cast<const std::byte*>(values), 3) == -1);
  std::vector<float> many(10'000, 3.4e38f);
  CHECK(detail::first_non_finite<float>(DType::f32, reinterpret_cast<const std::byte*>(many.data()), 10'000) == -1);
  many[8192] = std::numeric_limits<float>::infinity();
  CHECK(detail::first_non_finite<float>(DType::f32, reinterpret_cast<const std::byte*>(many.data()), 10'000) == 8192);
}

TEST_CASE("checkpoint: packing by several threads makes the same weights, in every layout", "[io]") {
  TinyCheckpoint tiny;
  tiny.config = R"({"model_type":"llama","vocab_size":300,"hidden_size":40,"intermediate_size":200,)"
                R"("num_hidden_layers":2,"num_attention_heads":5,"num_key_value_heads":5})";
  tiny.put("model.embed_tokens.weight", 300, 40);
  tiny.put("lm_head.weight", 300, 40);
  tiny.put("model.norm.weight", 40, 1);
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    for (const char* norm : {"input_layernorm.weight", "post_attention_layernorm.weight"}) tiny.put(layer + norm, 40, 1);
    for (const char* name : {"q", "k", "v", "o"}) tiny.put(layer + "self_attn." + name + "_proj.weight", 40, 40);
    for (const char* name : {"gate", "up"}) tiny.put(layer + "mlp." + name + "_proj.weight", 200, 40);
    tiny.put(layer + "mlp.down_proj.weight", 40, 200);
  }
  const TempFolder folder;
  tiny.write(folder);
  ThreadPool pool(4);
  const std::vector<Token> ids{3, 299, 7, 0, 150};
  for (const WeightsLayout layout : {WeightsLayout::packed, WeightsLayout::int8, WeightsLayout::int4, WeightsLayout::mapped}) {
    const Matrix<float> alone = load_decoder(folder / ".", {.weights = layout}).forward(ids);
    CHECK(load_decoder(folder / ".", {.weights = layout, .executor = pool}).forward(ids) == alone);
  }
  tiny.tensors["lm_head.weight"](290, 3) = tiny.tensors["lm_head.weight"](70, 1) = std::numeric_limits<float>::infinity();
  tiny.write(folder);
  CHECK_THROWS_WITH(load_checkpoint(folder / ".", {.executor = pool}), contains("'lm_head.weight': value 2801 is NaN or infinite"));
}

TEST_CASE("checkpoint: progress and cancelling", "[io]") {
  const TinyCheckpoint tiny;
  std::vector<std::string> names;
  LoadProgress last;
  written(tiny, {.progress = [&](const LoadProgress& p) {
            names.emplace_back(p.tensor);
            CHECK(p.tensors_done == static_cast<Index>(names.size()) - 1);
            last = p;
            return true;
          }});
  CHECK(names.size() == tiny.tensors.size() + 1);
  CHECK(names.front() == "model.embed_tokens.weight");
  CHECK(names.back().empty());
  CHECK((last.tensors_done == last.tensors_total && last.bytes_done == last.bytes_total && last.bytes_total > 0));
  for (Index stop = 0; stop <= last.tensors_total; ++stop)
    CHECK_THROWS_AS(written(tiny, {.progress = [&](const LoadProgress& p) { return p.tensors_done < stop; }}), Cancelled);
}

constexpr const char* index_file = "model.safetensors.index.json";

/// The tiny checkpoint in two shards: layer 1 in the second.
void write_shards(const TinyCheckpoint& tiny, const TempFolder& folder, const std::string& second = "b.safetensors") {
  std::string map;
  const auto late = [](const std::string& name) { return name.find("layers.1.") != std::string::npos; };
  for (const auto& [name, values] : tiny.tensors)
    map += (map.empty() ? "\"" : ",\"") + name + "\":\"" + (late(name) ? second : "a.safetensors") + "\"";
  tiny.write(
      folder, [&](const std::string& name) { return !late(name); }, "a.safetensors");
  tiny.write(folder, late, "b.safetensors");
  folder.write(index_file, R"({"metadata":{"total_size":1},"weight_map":{)" + map + "}}");
}

TEST_CASE("checkpoint: shards", "[io]") {
  TinyCheckpoint tiny;
  const TempFolder folder, whole;
  tiny.write(whole);
  write_shards(tiny, folder);
  for (const WeightsLayout layout : layouts) {
    const Checkpoint<float> loaded = load_checkpoint(folder.path(), {.weights = layout});
    check_weights(loaded, tiny);
    CHECK(loaded.weights.fingerprint == load_checkpoint(whole.path()).weights.fingerprint);
  }
  const auto refused = [&](const std::string& message) {
    CHECK_THROWS_AS(load_checkpoint(folder.path()), FormatError);
    CHECK_THROWS_WITH(load_checkpoint(folder.path()), contains(message));
  };
  SECTION("a shard that is missing") {
    std::filesystem::remove(folder / "b.safetensors");
    refused("shard 'b.safetensors' is missing");
  }
  SECTION("names that lead elsewhere") {
    std::filesystem::create_directory(folder / "sub");
    std::filesystem::copy(folder / "b.safetensors", folder / "sub/b.safetensors");
    for (const std::string name :
         {"sub/b.safetensors", "./b.safetensors", "../b.safetensors", "sub\\\\b.safetensors", "", ".", "..", "/etc/passwd", "b..c"}) {
      INFO(name);
      write_shards(tiny, folder, name);
      refused("expected the bare name");
    }
    write_shards(tiny, folder, "sub");
    refused("not a regular file");
  }
  SECTION("a map that promises what a shard does not hold") {
    std::string index = folder.read(index_file);
    index.insert(index.find("\"weight_map\":{") + 14, R"("extra":"a.safetensors",)");
    folder.write(index_file, index);
    refused("'a.safetensors' does not hold tensor 'extra'");
  }
  SECTION("a shard that holds what the map does not name") {
    tiny.put("surprise", 2, 2);
    tiny.write(
        folder, [](const std::string& name) { return name.find("layers.1.") != std::string::npos || name == "surprise"; }, "b.safetensors");
    refused("holds tensor 'surprise', which weight_map does not name");
  }
  SECTION("one tensor in two shards") {
    tiny.write(
        folder, [](const std::string& name) { return name.find("layers.1.") != std::string::npos || name == "lm_head.weight"; },
        "b.safetensors");
    refused("holds tensor 'lm_head.weight', which weight_map sends elsewhere");
  }
  SECTION("an index that is none") {
    for (const char* text : {"{}", R"({"weight_map":[]})", R"({"weight_map":{}})", R"({"weight_map":{"a":1}})", "[",
                             R"({"weight_map":{"a":"a.safetensors","a":"b"}})"}) {
      INFO(text);
      folder.write(index_file, text);
      CHECK_THROWS_AS(load_checkpoint(folder.path()), FormatError);
    }
  }
  SECTION("model.safetensors is looked for first") {
    folder.write("model.safetensors", "not a safetensors file");
    refused("model.safetensors'");
    CHECK(load_checkpoint(whole.path()).ignored.empty());
    whole.write(index_file, folder.read(index_file));
    const Checkpoint<float> loaded = load_checkpoint(whole.path());
    CHECK(loaded.ignored ==
          std::vector<std::string>{"model.safetensors.index.json: its shards, because a model.safetensors lies beside it"});
    check_weights(loaded, tiny);
  }
}

TEST_CASE("checkpoint: folders that hold none", "[io]") {
  const TempFolder folder;
  CHECK_THROWS_WITH(load_checkpoint(folder.path()), contains("config.json") && contains("No such file"));
  folder.write("config.json", TinyCheckpoint().config);
  CHECK_THROWS_AS(load_checkpoint(folder.path()), FormatError);
  CHECK_THROWS_WITH(load_checkpoint(folder.path()), contains("neither model.safetensors nor"));
  CHECK_THROWS_AS(load_checkpoint(folder / "nowhere"), FormatError);
}

TEST_CASE("checkpoint: other formats are called by their names", "[io]") {
  const struct {
    const char* file;
    const char* message;
  } formats[] = {
      {"pytorch_model.bin", "its pytorch_model.bin is a pickle, which can run code"},
      {"pytorch_model.bin.index.json", "is of pickles, which can run code"},
      {"consolidated.safetensors", "its consolidated.safetensors has Mistral's own tensor names"},
      {"consolidated.00.pth", "is a release of Meta's or Mistral's own"},
      {"tiny-Q4_K_M.gguf", "its tiny-Q4_K_M.gguf is a file of llama.cpp"},
      {"weights.npz", "is an older file of MLX"},
      {"tf_model.h5", "is of TensorFlow"},
      {"flax_model.msgpack", "is of Flax"},
      {"model.onnx", "is a graph of ONNX"},
      {"model-00001-of-00001.safetensors", "rename it to model.safetensors"},
      {"tiny.safetensors", "has to be named model.safetensors"},
      {"adapter_config.json", "is an adapter of PEFT: load its base model"},
      {"adapters.safetensors", "is an adapter of MLX"},
  };
  for (const auto& [file, message] : formats) {
    INFO(file);
    const TempFolder folder;
    folder.write(file, "x");
    CHECK_THROWS_AS(load_checkpoint(folder.path()), FormatError);
    CHECK_THROWS_WITH(load_checkpoint(folder.path()), contains("holds no config.json; its ") && contains(message));
    folder.write("config.json", TinyCheckpoint().config);
    CHECK_THROWS_AS(load_checkpoint(folder.path()), FormatError);
    CHECK_THROWS_WITH(load_checkpoint(folder.path()), contains("neither model.safetensors nor") && contains(message));
    CHECK_THROWS_WITH(load_checkpoint(folder / file), contains("is a file, expected the folder that holds config.json"));
  }
}

TEST_CASE("checkpoint: names of other programs and wrappers", "[io]") {
  const struct {
    const char* prefix;
    const char* message;
  } wrappers[] = {{"base_model.model.", "merge_and_unload() before the model is saved"},
                  {"_orig_mod.", "a compiled module"},
                  {"module.", "within DataParallel"}};
  const TinyCheckpoint sound;
  for (const auto& [prefix, message] : wrappers) {
    INFO(prefix);
    TinyCheckpoint tiny = sound;
    tiny.tensors.clear();
    for (const auto& [name, values] : sound.tensors) tiny.tensors[prefix + name] = values;
    CHECK_THROWS_AS(written(tiny), UnsupportedError);
    CHECK_THROWS_WITH(written(tiny), contains(message) && contains("expected 'model.embed_tokens.weight'"));
  }
  TinyCheckpoint bare = sound;
  bare.tensors.clear();
  for (const auto& [name, values] : sound.tensors)
    if (name.starts_with("model.")) bare.tensors[name.substr(6)] = values;
  CHECK_THROWS_AS(written(bare), UnsupportedError);
  CHECK_THROWS_WITH(written(bare), contains("tensor 'embed_tokens.weight', expected 'model.embed_tokens.weight'") &&
                                       contains("a bare model without a head (LlamaModel and its like)"));
  for (const char* table : {"tok_embeddings.weight", "token_embd.weight", "transformer.wte.weight"}) {
    TinyCheckpoint other = sound;
    other.tensors.clear();
    other.put(table, 5, 8);
    CHECK_THROWS_AS(written(other), UnsupportedError);
    CHECK_THROWS_WITH(written(other), contains(table));
  }
}

TEST_CASE("checkpoint: the fingerprint tells checkpoints apart", "[io]") {
  const TinyCheckpoint tiny;
  const auto print = [](const TinyCheckpoint& t) { return written(t).weights.fingerprint; };
  const std::uint64_t same = print(tiny);
  CHECK(print(tiny) == same);
  TinyCheckpoint other = tiny;
  other.tensors["model.layers.1.mlp.down_proj.weight"](7, 5) += 1;
  CHECK(print(other) != same);
  other = tiny;
  other.dtypes["model.norm.weight"] = DType::f16;
  CHECK(print(other) != same);
  other = tiny;
  other.config.insert(1, "\"rope_theta\":20000,");
  CHECK(print(other) != same);
  other = tiny;
  other.config.insert(1, "\"rope_theta\":10000,\"unknown\":1,");
  CHECK(print(other) == same);
  other = tiny;
  other.put("model.layers.0.self_attn.rotary_emb.inv_freq", 2, 1);
  CHECK(print(other) == same);
}

TEST_CASE("checkpoint: the published folders", "[io]") {
  const struct {
    const char* folder;
    const char* config;
  } published[] = {{"llama-gqa-f32", "config.json"},
                   {"llama-gqa-f32", "config.rope_linear.json"},
                   {"llama-gqa-f32", "config.rope_dynamic.json"},
                   {"llama-tied-bf16", "config.json"},
                   {"qwen2-bias-bf16", "config.json"},
                   {"qwen2-bias-bf16", "config.swa.json"},
                   {"llama3-rope-f16", "config.json"},
                   {"llama3-rope-f16", "config.v5.json"},
                   {"llama-sharded-f32", "config.json"},
                   {"mistral-swa-bf16", "config.json"},
                   {"llama-mha-f16", "config.json"},
                   {"vlm-mha128-bf16", "config.json"}};
  for (const auto& [name, config] : published) {
    INFO(name << " " << config);
    const auto folder = pith_test::golden_folder() / "model" / name;
    const Checkpoint<float> packed = load_checkpoint(folder, {.config = config});
    const Checkpoint<float> mapped = load_checkpoint(folder, {.weights = WeightsLayout::mapped, .config = config});
    CHECK(packed.ignored.empty());
    CHECK(packed.weights.fingerprint == mapped.weights.fingerprint);
    CHECK_NOTHROW(packed.weights.check(packed.config));
    for (std::size_t l = 0; l < packed.weights.layers.size(); ++l)
      detail::for_each_projection(
          packed.weights.layers[l], packed.config, [&](const char* projection, const AnyLinear<float>& p, Index, Index) {
            INFO(projection << " of layer " << l);
            const AnyLinear<float>* m = nullptr;
            detail::for_each_projection(mapped.weights.layers[l], packed.config,
                                        [&](const char* other, const AnyLinear<float>& linear, Index, Index) {
                                          if (std::string(projection) == other) m = &linear;
                                        });
            CHECK((weight_of(p) == weight_of(*m)));
            CHECK((p.bias() == m->bias()));
            CHECK((p.bias().size() > 0) == (packed.config.model_type == "qwen2" && std::strlen(projection) == 16 && projection[10] != 'o'));
          });
    CHECK((weight_of(packed.weights.lm_head) == weight_of(mapped.weights.lm_head)));
  }
  const auto rope = pith_test::golden_folder() / "model/llama3-rope-f16";
  CHECK(load_checkpoint(rope).weights.fingerprint == load_checkpoint(rope, {.config = "config.v5.json"}).weights.fingerprint);
}

}  // namespace

TEST_CASE("load_checkpoint: numbers that no decoder can be made of are refused by file before any weight is read", "[io]") {
  const auto refused = [](const std::string& keys, const std::string& message) {
    CAPTURE(keys);
    TinyCheckpoint checkpoint;
    checkpoint.config.insert(1, keys);
    const TempFolder folder;
    checkpoint.write(folder);
    bool read = false;
    const auto load = [&] { load_checkpoint(folder.path(), {.progress = [&](const LoadProgress&) { return read = true; }}); };
    CHECK_THROWS_AS(load(), FormatError);
    CHECK_THROWS_WITH(load(), contains("config.json") && contains(message));
    CHECK_FALSE(read);
  };
  refused(R"("rope_theta":1e-300,)", "gives no finite frequencies");
  refused(R"("rope_scaling":{"rope_type":"linear","factor":1e-300},)", "gives no finite frequencies");
  refused(R"("rope_scaling":{"rope_type":"dynamic","factor":0.5},)", "the factor of dynamic scaling");
}
