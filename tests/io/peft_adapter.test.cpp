#include <cmath>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <pith/io/checkpoint.hpp>
#include <pith/io/peft_adapter.hpp>
#include <pith/io/peft_writer.hpp>
#include <pith/io/session_file.hpp>
#include <pith/peft/adalora.hpp>
#include <pith/peft/lora.hpp>

#include "io/temp_folder.hpp"
#include "io/tiny_adapter.hpp"
#include "io/tiny_checkpoint.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/products.hpp"
#include "support/random_matrix.hpp"

namespace {

using namespace pith;
using pith_test::contains;
using pith_test::random_matrix;
using pith_test::same_bits;
using pith_test::TempFolder;
using pith_test::TinyAdapter;
using pith_test::TinyCheckpoint;

const std::vector<Token> bound_ids{1, 4, 0, 2, 3, 3, 1};

Decoder<float> tiny_decoder(const TinyCheckpoint& tiny, const LoadOptions& options = {}) {
  const TempFolder folder;
  tiny.write(folder);
  return load_decoder(folder.path(), options);
}

ModelAdapter<float> bound(const TinyAdapter& adapter, const Decoder<float>& decoder) {
  const TempFolder folder;
  adapter.write(folder);
  return load_adapter(folder.path(), decoder);
}

Matrix<float> logits_of(const Decoder<float>& decoder, const ModelAdapter<float>* adapter = nullptr) {
  auto session = decoder.start();
  session.use(adapter);
  return session.decode(bound_ids);
}

template <class Error> void not_bound(const TinyAdapter& adapter, const Decoder<float>& decoder, const std::string& text) {
  CHECK_THROWS_AS(bound(adapter, decoder), Error);
  CHECK_THROWS_WITH(bound(adapter, decoder), contains(text));
}

/// B A, times what it is scaled by.
Matrix<float> product(const TinyAdapter& adapter, const std::string& module, float scale) {
  return scale *
         (adapter.tensors.at(TinyAdapter::name(module, "lora_B.weight")) * adapter.tensors.at(TinyAdapter::name(module, "lora_A.weight")));
}

const std::string bound_q = "model.layers.0.self_attn.q_proj";

}  // namespace

TEST_CASE("load_adapter: the bits of both layouts, and within rounding of merged weights", "[io]") {
  TinyCheckpoint tiny;
  const Decoder<float> decoder = tiny_decoder(tiny), mapped = tiny_decoder(tiny, {.weights = WeightsLayout::mapped});
  const TinyAdapter adapter;
  const ModelAdapter<float> loaded = bound(adapter, decoder);
  CHECK(loaded.bytes() > 0);
  const Matrix<float> logits = logits_of(decoder, &loaded);
  CHECK(same_bits(logits, logits_of(mapped, &loaded)));  // the same checkpoint is the same target
  CHECK(bound(adapter, mapped).fingerprint() == loaded.fingerprint());
  TinyCheckpoint merged = tiny;
  for (const std::string layer : {"model.layers.0.", "model.layers.1."})
    for (const char* name : {"self_attn.q_proj", "mlp.up_proj"})
      merged.tensors.at(layer + name + ".weight") += product(adapter, layer + name, 2);
  const Matrix<float> expected = logits_of(tiny_decoder(merged));
  // Exact weights of up to 18 on both sides; what differs is the rounding of sums of 8 products and its way through two layers.
  CHECK(pith_test::near(logits, expected, 1e-4 * expected.cwiseAbs().maxCoeff()));
  CHECK_FALSE(pith_test::near(logits, logits_of(decoder), 1e-4 * expected.cwiseAbs().maxCoeff()));
}

TEST_CASE("load_adapter: factors in bfloat16 stay so, and others are rounded where asked", "[io]") {
  const Decoder<float> decoder = tiny_decoder({});
  TinyAdapter adapter;
  const auto loaded = [&](FactorType factors) {
    const TempFolder folder;
    adapter.write(folder);
    return load_adapter(folder.path(), decoder, {.factors = factors});
  };
  const auto narrow = [](const ModelAdapter<float>& a) {
    const LinearAdapter<float>& q = *a.projection(0, Projection::q);
    REQUIRE(q.terms.size() + q.narrow_terms.size() == 1);
    return q.terms.empty();
  };
  const auto answer_of = [](const Decoder<float>& base, const ModelAdapter<float>* used = nullptr) {
    auto session = base.start();
    session.use(used);
    return Matrix<float>(session.prefill(bound_ids));
  };
  SECTION("LoRA") {}
  SECTION("DoRA and rsLoRA") {
    adapter.config["use_dora"] = adapter.config["use_rslora"] = true;
    for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
      adapter.put(TinyAdapter::name(layer + "self_attn.q_proj", "lora_magnitude_vector"), 8, -1);
      adapter.put(TinyAdapter::name(layer + "mlp.up_proj", "lora_magnitude_vector"), 6, -1);
    }
  }
  SECTION("the head, activated") {
    adapter.config["alora_invocation_tokens"] = {4, 0};
    adapter.config["task_type"] = "CAUSAL_LM";
    adapter.config["target_modules"].push_back("lm_head");
    adapter.lora("lm_head", 5, 2, 8);
  }
  // Numbers of TinyAdapter are exact in bfloat16, so that nothing but the type changes.
  const ModelAdapter<float> wide = loaded(FactorType::as_stored), rounded = loaded(FactorType::bf16);
  CHECK_FALSE(narrow(wide));
  CHECK(narrow(rounded));
  for (const auto& tensor : adapter.tensors)
    if (tensor.first.find(".lora_A") != std::string::npos || tensor.first.find(".lora_B") != std::string::npos)
      adapter.dtypes[tensor.first] = DType::bf16;
  const ModelAdapter<float> stored = loaded(FactorType::as_stored), widened = loaded(FactorType::wide);
  CHECK(narrow(stored));
  CHECK_FALSE(narrow(widened));
  CHECK(stored.bytes() < wide.bytes());
  for (const ModelAdapter<float>* other : {&rounded, &stored, &widened}) {
    CHECK(other->fingerprint() == wide.fingerprint());
    CHECK(same_bits(answer_of(decoder, other), answer_of(decoder, &wide)));
  }
  CHECK_FALSE(same_bits(answer_of(decoder, &stored), answer_of(decoder)));
  adapter.dtypes.erase(TinyAdapter::name(bound_q, "lora_B.weight"));  // one of two is wider: both stay as they are
  CHECK_FALSE(narrow(loaded(FactorType::as_stored)));

  adapter.dtypes.clear();
  adapter.tensors.at(TinyAdapter::name(bound_q, "lora_A.weight"))(1, 3) = 1.00390625f;  // in the middle: to even
  CHECK(float(loaded(FactorType::bf16).projection(0, Projection::q)->narrow_terms[0].a_rows(1, 3)) == 1.f);
  adapter.tensors.at(TinyAdapter::name(bound_q, "lora_A.weight"))(1, 3) = 3.4e38f;
  CHECK_NOTHROW(loaded(FactorType::as_stored));
  CHECK_THROWS_AS(loaded(FactorType::bf16), FormatError);
  CHECK_THROWS_WITH(loaded(FactorType::bf16), contains("lora_A.weight': value 11 does not fit bfloat16"));
}

TEST_CASE("load_adapter: bfloat16 is for factors", "[io]") {
  TinyAdapter adapter;
  adapter.tensors.clear();
  adapter.config = nlohmann::ordered_json::parse(R"({"peft_type":"IA3","target_modules":["q_proj"]})");
  for (const std::string layer : {"model.layers.0.", "model.layers.1."})
    adapter.put(TinyAdapter::name(layer + "self_attn.q_proj", "ia3_l"), 8, 1);
  const Decoder<float> decoder = tiny_decoder({});
  const TempFolder folder;
  adapter.write(folder);
  CHECK_NOTHROW(load_adapter(folder.path(), decoder));
  CHECK_THROWS_AS(load_adapter(folder.path(), decoder, {.factors = FactorType::bf16}), UnsupportedError);
  CHECK_THROWS_WITH(load_adapter(folder.path(), decoder, {.factors = FactorType::bf16}),
                    contains("is no LoRA or AdaLoRA, whose factors alone are kept in bfloat16"));
}

TEST_CASE("load_adapter: replaced modules and biases are those of another checkpoint", "[io]") {
  TinyCheckpoint tiny;
  TinyAdapter adapter;
  adapter.tensors.clear();
  adapter.config["target_modules"] = nullptr;
  SECTION("modules_to_save: projections, norms, table and head") {
    adapter.config["modules_to_save"] = {"o_proj",       "input_layernorm", "model.norm",
                                         "embed_tokens", "lm_head",         "layers.1.post_attention_layernorm"};
    TinyCheckpoint other = tiny;
    const auto replace = [&](const std::string& module, Index rows, Index cols) {
      const Matrix<float> values = adapter.put(TinyAdapter::name(module, "weight"), rows, cols);
      other.tensors.at(module + ".weight") = values;
    };
    for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
      replace(layer + "self_attn.o_proj", 8, 8);
      replace(layer + "input_layernorm", 8, -1);
    }
    replace("model.layers.1.post_attention_layernorm", 8, -1);
    replace("model.norm", 8, -1);
    replace("model.embed_tokens", 5, 8);
    replace("lm_head", 5, 8);
    const Decoder<float> decoder = tiny_decoder(tiny);
    const ModelAdapter<float> loaded = bound(adapter, decoder);
    CHECK(same_bits(logits_of(decoder, &loaded), logits_of(tiny_decoder(other))));
    CHECK(same_bits(logits_of(decoder), logits_of(tiny_decoder(tiny))));
    adapter.put(TinyAdapter::name("lm_head", "bias"), 5);
    not_bound<FormatError>(adapter, decoder, "replaces the bias of module 'lm_head' by 5 numbers, expected 0 by the decoder");
    adapter.tensors.erase(TinyAdapter::name("lm_head", "bias"));
    adapter.put(TinyAdapter::name("lm_head", "weight"), 6, 8);
    not_bound<FormatError>(adapter, decoder, "replaces module 'lm_head' as [6, 8], expected [5, 8] by the decoder");
    adapter.put(TinyAdapter::name("lm_head", "weight"), 5, 8);
    adapter.put(TinyAdapter::name("model.embed_tokens", "weight"), 6, 8);
    not_bound<FormatError>(adapter, decoder, "replaces module 'model.embed_tokens' by [6, 8], expected [5, 8] without one by the decoder");
  }
  SECTION("biases of the base, all of them or of what is adapted") {
    for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
      tiny.put(layer + "self_attn.q_proj.bias", 8, 1);
      tiny.put(layer + "self_attn.v_proj.bias", 4, 1);
    }
    TinyCheckpoint other = tiny;
    adapter.config["target_modules"] = {"q_proj"};
    for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
      adapter.lora(layer + "self_attn.q_proj", 8, 2, 8);
      other.tensors.at(layer + "self_attn.q_proj.bias") = adapter.put(TinyAdapter::name(layer + "self_attn.q_proj", "base_layer.bias"), 8);
      other.tensors.at(layer + "self_attn.q_proj.weight") += product(adapter, layer + "self_attn.q_proj", 2);
    }
    adapter.config["bias"] = "lora_only";
    const Decoder<float> decoder = tiny_decoder(tiny);
    const auto check = [&] {
      const ModelAdapter<float> loaded = bound(adapter, decoder);
      const Matrix<float> expected = logits_of(tiny_decoder(other));
      CHECK(pith_test::near(logits_of(decoder, &loaded), expected, 1e-4 * expected.cwiseAbs().maxCoeff()));
    };
    check();
    adapter.config["bias"] = "all";
    not_bound<FormatError>(adapter, decoder, "holds no bias of module 'model.layers.0.self_attn.v_proj', which its bias mode promises");
    for (const std::string layer : {"model.layers.0.", "model.layers.1."})
      other.tensors.at(layer + "self_attn.v_proj.bias") = adapter.put(TinyAdapter::name(layer + "self_attn.v_proj", "bias"), 4);
    check();
    adapter.put(TinyAdapter::name("model.layers.1.self_attn.k_proj", "bias"), 4);
    not_bound<FormatError>(adapter, decoder, "replaces the bias of module 'model.layers.1.self_attn.k_proj' by 4 numbers, expected 0");
    adapter.tensors.erase(TinyAdapter::name("model.layers.1.self_attn.k_proj", "bias"));
    adapter.config["bias"] = "lora_only";
    for (const std::string layer : {"model.layers.0.", "model.layers.1."})
      adapter.tensors.erase(TinyAdapter::name(layer + "self_attn.v_proj", "bias"));
    adapter.tensors.erase(TinyAdapter::name(bound_q, "base_layer.bias"));
    not_bound<FormatError>(adapter, decoder, "holds no bias of module '" + bound_q + "', which its bias mode promises");
  }
}

TEST_CASE("load_adapter: the base's own table and head, saved along", "[io]") {
  const std::string table = "model.embed_tokens", head = "lm_head";
  TinyCheckpoint tiny;
  TinyAdapter adapter;
  const auto logits = [](const TinyCheckpoint& of, const TinyAdapter& with) {
    const Decoder<float> decoder = tiny_decoder(of);
    const ModelAdapter<float> loaded = bound(with, decoder);
    return logits_of(decoder, &loaded);
  };
  const auto along = [&](const std::string& module, const Matrix<float>& rows, const char* part = "weight") {
    adapter.put(TinyAdapter::name(module, part), rows.rows(), rows.cols()) = rows;
  };
  const Matrix<float> own_table = tiny.tensors.at(table + ".weight"), own_head = tiny.tensors.at(head + ".weight");
  const Matrix<float> other_table = random_matrix<float>(5, 8, 1), other_head = random_matrix<float>(5, 8, 2);
  TinyCheckpoint tied = tiny;
  tied.config.insert(1, "\"tie_word_embeddings\":true,");
  tied.tensors.erase(head + ".weight");

  SECTION("the same numbers change nothing, in every layout") {
    const TinyAdapter plain = adapter;
    along(table, own_table);
    along(head, own_head);
    for (const LoadOptions& options : {LoadOptions{}, LoadOptions{.weights = WeightsLayout::mapped},
                                       LoadOptions{.weights = WeightsLayout::int8}, LoadOptions{.weights = WeightsLayout::int4}}) {
      const Decoder<float> decoder = tiny_decoder(tiny, options);
      const ModelAdapter<float> loaded = bound(adapter, decoder);
      CHECK(loaded.fingerprint() == bound(plain, decoder).fingerprint());
      CHECK(loaded.lm_head() == nullptr);
    }
  }
  SECTION("other numbers that nothing asks for are refused by name") {
    along(table, other_table);
    not_bound<FormatError>(adapter, tiny_decoder(tiny), "holds a whole weight of module 'model.embed_tokens' with other numbers");
    adapter.tensors.erase(TinyAdapter::name(table, "weight"));
    along(head, other_head);
    not_bound<FormatError>(adapter, tiny_decoder(tiny), "holds a whole weight of module 'lm_head' with other numbers");
    not_bound<FormatError>(adapter, tiny_decoder(tied), "holds a whole weight of module 'lm_head' with other numbers");
  }
  SECTION("other numbers under an adapter stand in the base's place") {
    along(table, other_table, "base_layer.weight");
    along(head, other_head, "base_layer.weight");
    TinyCheckpoint other = tiny;
    other.tensors.at(table + ".weight") = other_table;
    other.tensors.at(head + ".weight") = other_head;
    CHECK(same_bits(logits(tiny, adapter), logits(other, TinyAdapter())));
  }
  SECTION("a resized vocabulary names the remedy") {
    along(table, random_matrix<float>(7, 8, 1));
    not_bound<FormatError>(adapter, tiny_decoder(tiny),
                           "saves module 'model.embed_tokens' along as [7, 8], expected [5, 8] by the decoder");
    not_bound<FormatError>(adapter, tiny_decoder(tiny), "resize_token_embeddings(7) of the base, load the adapter, merge_and_unload()");
    adapter.tensors.erase(TinyAdapter::name(table, "weight"));
    along(head, random_matrix<float>(7, 8, 1));
    not_bound<FormatError>(adapter, tiny_decoder(tiny), "saves module 'lm_head' along as [7, 8], expected [5, 8] by the decoder");
  }
  SECTION("a head that is adapted, LoRA and DoRA") {
    adapter.config["target_modules"].push_back("lm_head");
    adapter.lora(head, 5, 2, 8);
    if (GENERATE(false, true)) {
      adapter.config["use_dora"] = true;
      adapter.put(TinyAdapter::name(head, "lora_magnitude_vector"), 5);
      for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
        adapter.put(TinyAdapter::name(layer + "self_attn.q_proj", "lora_magnitude_vector"), 8);
        adapter.put(TinyAdapter::name(layer + "mlp.up_proj", "lora_magnitude_vector"), 6);
      }
    }
    const TinyAdapter plain = adapter;
    along(head, own_head, "base_layer.weight");
    CHECK(same_bits(logits(tiny, adapter), logits(tiny, plain)));
    along(head, other_head, "base_layer.weight");
    TinyCheckpoint other = tiny;
    other.tensors.at(head + ".weight") = other_head;
    CHECK(same_bits(logits(tiny, adapter), logits(other, plain)));
    CHECK_FALSE(same_bits(logits(tiny, adapter), logits(tiny, plain)));
    other = tied;  // the tied parameter is the table too
    other.tensors.at(table + ".weight") = other_head;
    CHECK(same_bits(logits(tied, adapter), logits(other, plain)));
  }
  SECTION("tied: one parameter in PEFT, saved once or twice") {
    along(table, other_table, "base_layer.weight");
    TinyCheckpoint other = tied;
    other.tensors.at(table + ".weight") = other_table;
    CHECK(same_bits(logits(tied, adapter), logits(other, TinyAdapter())));
    along(head, other_table, "base_layer.weight");
    CHECK(same_bits(logits(tied, adapter), logits(other, TinyAdapter())));
    along(head, other_head, "base_layer.weight");
    not_bound<FormatError>(adapter, tiny_decoder(tied), "saves other numbers of 'lm_head' along than of 'model.embed_tokens'");
  }
  SECTION("tied: a table of modules_to_save leaves the head, unless ensure_weight_tying") {
    adapter.config["modules_to_save"] = {"embed_tokens"};
    along(table, other_table);
    TinyCheckpoint untied = tiny;  // what the two are then
    untied.tensors.at(table + ".weight") = other_table;
    untied.tensors.at(head + ".weight") = own_table;
    CHECK(same_bits(logits(tied, adapter), logits(untied, TinyAdapter())));
    adapter.config["ensure_weight_tying"] = true;
    TinyCheckpoint both = tied;
    both.tensors.at(table + ".weight") = other_table;
    CHECK(same_bits(logits(tied, adapter), logits(both, TinyAdapter())));
    along(head, other_table);  // as PEFT saves it
    CHECK(same_bits(logits(tied, adapter), logits(both, TinyAdapter())));
    adapter.tensors.erase(TinyAdapter::name(head, "weight"));
    untied.tensors.at(head + ".weight") = own_head;
    CHECK(same_bits(logits(tiny, adapter), logits(untied, TinyAdapter())));  // nothing is tied: as without
  }
}

TEST_CASE("load_adapter: a folder and a decoder that do not fit are refused by the module's name", "[io]") {
  const Decoder<float> decoder = tiny_decoder({});
  TinyAdapter adapter;
  SECTION("shapes") {
    adapter.lora(bound_q, 8, 2, 6);
    not_bound<FormatError>(adapter, decoder, "adapts module '" + bound_q + "' as [8, 6], expected [8, 8] by the decoder");
    adapter.lora(bound_q, 6, 2, 8);
    not_bound<FormatError>(adapter, decoder, "adapts module '" + bound_q + "' as [6, 8], expected [8, 8] by the decoder");
  }
  SECTION("modules it does not have") {
    adapter.lora("model.layers.2.self_attn.q_proj", 8, 2, 8);
    not_bound<FormatError>(adapter, decoder, "changes module 'model.layers.2.self_attn.q_proj', which the decoder does not have");
    adapter = {};
    adapter.lora("vision.q_proj", 8, 2, 8);
    not_bound<FormatError>(adapter, decoder, "changes module 'vision.q_proj', which the decoder does not have");
  }
  SECTION("modules that are asked for and missing") {
    adapter.config["target_modules"] = {"q_proj", "up_proj", "k_proj"};
    not_bound<FormatError>(adapter, decoder, "holds no lora_A of module 'model.layers.0.self_attn.k_proj', which its target_modules name");
    adapter.config["layers_to_transform"] = {7};
    not_bound<FormatError>(adapter, decoder, "is of a module that the config's target_modules do not name");
    adapter.config.erase("layers_to_transform");
    adapter.config["target_modules"] = "all-linear";
    not_bound<FormatError>(adapter, decoder, "holds no lora_A of module 'model.layers.0.self_attn.k_proj'");
    adapter.config["exclude_modules"] = ".*(k|v|o|gate|down)_proj";
    CHECK_NOTHROW(bound(adapter, decoder));
    adapter.config["target_modules"] = R"(.*\.(q|up)_proj)";
    CHECK_NOTHROW(bound(adapter, decoder));
    adapter.config["target_modules"] = {"q_proj", "up_proj", "lm_head"};
    not_bound<FormatError>(adapter, decoder, "holds no lora_A of module 'lm_head'");
    adapter.lora("lm_head", 5, 2, 8);
    CHECK(bound(adapter, decoder).lm_head() != nullptr);
  }
  SECTION("a base whose numbers nobody sees") {
    struct Opaque {
      using Scalar = float;
      Index in() const { return 8; }
      Index out() const { return 8; }
      void forward(ConstMatrixRef<float>, MatrixRef<float> y, Workspace&) const { y.setZero(); }
    };
    const TempFolder folder;
    adapter.write(folder);
    CHECK_NOTHROW(load_linear_adapter(PeftFolder(folder.path()), bound_q, AnyLinear<float>(Opaque{})));  // plain LoRA needs none
    adapter.config["use_dora"] = true;
    for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
      adapter.put(TinyAdapter::name(layer + "self_attn.q_proj", "lora_magnitude_vector"), 8);
      adapter.put(TinyAdapter::name(layer + "mlp.up_proj", "lora_magnitude_vector"), 6);
    }
    adapter.write(folder);
    CHECK_THROWS_AS(load_linear_adapter(PeftFolder(folder.path()), bound_q, AnyLinear<float>(Opaque{})), UnsupportedError);
  }
}

TEST_CASE("load_adapter and load_prefix: prompts", "[io]") {
  const Decoder<float> decoder = tiny_decoder({});
  TinyAdapter soft;
  soft.tensors.clear();
  soft.config = nlohmann::ordered_json::parse(R"({"peft_type":"PROMPT_TUNING","num_virtual_tokens":3,"token_dim":8})");
  const Matrix<float> rows = soft.put("prompt_embeddings", 3, 8);
  CHECK(bound(soft, decoder).parts().prompt == rows);
  soft.put("prompt_embeddings", 3, 6);
  soft.config["token_dim"] = 6;
  not_bound<FormatError>(soft, decoder, "is a prompt of 6 features, expected the decoder's 8");

  // What a session has cached, written as a learned prefix: the next token sees the same.
  auto session = decoder.start();
  const std::vector<Token> start(bound_ids.begin(), bound_ids.begin() + 4);
  session.prefill(start);
  TinyAdapter prefix;
  prefix.tensors.clear();
  prefix.config = nlohmann::ordered_json::parse(
      R"({"peft_type":"PREFIX_TUNING","num_virtual_tokens":4,"token_dim":4,"num_layers":2,"num_attention_heads":1})");
  Matrix<float>& learned = prefix.put("prompt_embeddings", 4, 16);
  for (std::size_t l = 0; l < 2; ++l)
    for (Index row = 0; row < 4; ++row) {
      const Index token = session.caches()[l].positions(0)[static_cast<std::size_t>(row)];
      learned.row(token).segment(static_cast<Index>(l) * 8, 4) = session.caches()[l].keys(0).row(row);
      learned.row(token).segment(static_cast<Index>(l) * 8 + 4, 4) = session.caches()[l].values(0).row(row);
    }
  const TempFolder folder;
  prefix.write(folder);
  const KvPrefix rows_before = load_prefix(folder.path(), decoder);
  CHECK(rows_before.learned());
  CHECK(rows_before.next_position() == 4);
  auto behind = decoder.start(Dense{}, {.prefix = rows_before});
  const Matrix<float> expected = session.decode(Token{2});
  CHECK(pith_test::near(Matrix<float>(behind.decode(Token{2})), expected, 1e-5 * expected.cwiseAbs().maxCoeff()));
  auto rounded = decoder.start<bfloat16>(Dense{}, {.prefix = load_prefix<bfloat16>(folder.path(), decoder)});
  CHECK(pith_test::near(Matrix<float>(rounded.decode(Token{2})), expected, 0.05 * expected.cwiseAbs().maxCoeff()));

  CHECK_THROWS_WITH(load_adapter(folder.path(), decoder),
                    contains("is prefix tuning, which fills caches") && contains(".prefix = load_prefix"));
  const auto refused = [&](const std::string& key, int value, const std::string& text) {
    TinyAdapter changed = prefix;
    changed.config[key] = value;
    if (key == "token_dim" || key == "num_layers")
      changed.put("prompt_embeddings", 4, 2 * changed.config["num_layers"].get<int>() * changed.config["token_dim"].get<int>());
    changed.write(folder);
    CHECK_THROWS_AS(load_prefix(folder.path(), decoder), FormatError);
    CHECK_THROWS_WITH(load_prefix(folder.path(), decoder), contains(text));
  };
  refused("num_layers", 3, "has num_layers 3, expected 2 by the decoder");
  refused("token_dim", 8, "has token_dim 8, expected 4 by the decoder");
  refused("num_attention_heads", 2, "has num_attention_heads 2, expected 1 by the decoder");
  prefix.config.erase("token_dim");
  prefix.put("prompt_embeddings", 4, 15);
  prefix.write(folder);
  CHECK_THROWS_WITH(load_prefix(folder.path(), decoder), contains("is a prefix of 15 numbers a token, expected 16 by the decoder"));
  TinyAdapter().write(folder);
  CHECK_THROWS_WITH(load_prefix(folder.path(), decoder), contains("is no prefix tuning: use load_adapter()"));
}

TEST_CASE("session files know the adapter that filled them", "[io]") {
  const Decoder<float> decoder = tiny_decoder({});
  const ModelAdapter<float> adapter = bound({}, decoder);
  const TempFolder folder;
  auto session = decoder.start(), other = decoder.start();
  session.use(&adapter);
  session.prefill(bound_ids);
  save_session(session, folder / "session");
  CHECK_THROWS_AS(load_session(other, folder / "session"), FormatError);
  CHECK_THROWS_WITH(
      load_session(other, folder / "session"),
      contains("is a session filled under adapter " + std::to_string(adapter.fingerprint()) + "; this session uses no adapter"));
  other.use(&adapter);
  load_session(other, folder / "session");
  CHECK(same_bits(Matrix<float>(session.decode(Token{1})), Matrix<float>(other.decode(Token{1}))));
  KvCache<> cache({.num_heads = 2, .num_kv_heads = 1, .head_dim = 4});
  CHECK_THROWS_WITH(load_cache(cache, folder / "session"), contains("was saved under an adapter: a cache alone knows none"));
}

TEST_CASE("LoRA folders that are written are read back, number by number", "[io]") {
  const TempFolder folder;
  const Decoder<float> decoder = tiny_decoder({});
  LoraFolderWriter<float> writer({.base_model = "tiny \"quoted\""});
  const std::string up1 = "model.layers.1.mlp.up_proj", k1 = "model.layers.1.self_attn.k_proj", head = "lm_head";
  const LoraAdapter<float> q(random_matrix<float>(2, 8, 1), random_matrix<float>(8, 2, 2), {.alpha = 7});
  const LoraAdapter<float> up(random_matrix<float>(3, 8, 3), random_matrix<float>(6, 3, 4), {.alpha = 0.1});
  const LowRankTerm<float> uneven{random_matrix<float>(2, 8, 5), random_matrix<float>(2, 4, 6), random_matrix<float>(2, 1, 7)};
  const LoraAdapter<float> off(random_matrix<float>(1, 8, 8), random_matrix<float>(5, 1, 9), {.alpha = 0});
  writer.add(bound_q, q);
  writer.add(up1, up);
  writer.add(k1, uneven);
  writer.add(head, off);
  writer.write(folder / "made" / "here");
  const PeftFolder read(folder / "made" / "here");
  CHECK(read.config().base_model == "tiny \"quoted\"");
  CHECK(read.modules() == std::vector<std::string>{head, bound_q, up1, k1});
  const auto check = [&](const std::string& module, const auto& adapter) {
    INFO(module);
    const PeftModule<float> tensors = read.load<float>(module);
    CHECK(same_bits(tensors.down, Matrix<float>(adapter.down())));
    CHECK(same_bits(tensors.up, Matrix<float>(adapter.up())));
    CHECK(same_bits(tensors.gain, Vector<float>(adapter.gain())));
  };
  check(bound_q, q);
  check(up1, up);
  const PeftModule<float> k = read.load<float>(k1);
  CHECK(k.gain == Vector<float>::Ones(2));
  CHECK(k.up == pith_test::with_scaled_columns(uneven.b_rows.transpose(), uneven.gains).cast<float>());
  CHECK(read.load<float>(head).up == Matrix<float>::Zero(5, 1));
  const ModelAdapter<float> loaded = load_adapter(read, decoder);
  CHECK(loaded.projection(0, Projection::q) != nullptr);

  SECTION("written from what was read: the same folder") {
    LoraFolderWriter<float> again({.base_model = read.config().base_model});
    for (const std::string& module : read.modules()) {
      const PeftModule<float> tensors = read.load<float>(module);
      again.add(module, LowRankTerm<float>{tensors.down, tensors.up.transpose(), tensors.gain});
    }
    again.write(folder / "again");
    const TempFolder& f = folder;
    for (const char* file : {"adapter_config.json", "adapter_model.safetensors"})
      CHECK(f.read(std::string("again/") + file) == f.read(std::string("made/here/") + file));
  }
  SECTION("biases, of all or of none") {
    LoraFolderWriter<float> biased;
    const LoraAdapter<float> with(random_matrix<float>(2, 8, 1), random_matrix<float>(8, 2, 2), {.alpha = 8},
                                  Vector<float>(random_matrix<float>(8, 1, 3).col(0)));
    biased.add(bound_q, with);
    biased.write(folder / "biased");
    CHECK(PeftFolder(folder / "biased").load<float>(bound_q).up_bias == Vector<float>(with.scaled_bias()));  // a scale of 4: exact
    CHECK(load_adapter(folder / "biased", decoder).projection(0, Projection::q)->bias == Vector<float>(with.scaled_bias()));
    biased.add(up1, up);
    CHECK_THROWS_AS(biased.write(folder / "biased"), FormatError);
    CHECK_THROWS_WITH(biased.write(folder / "biased"), contains("has no bias, but others have one"));
  }
  SECTION("AdaLoRA's triplets become plain LoRA") {
    LoraFolderWriter<float> flat;
    const AdaLoraAdapter<float> ada(random_matrix<float>(3, 8, 1), random_matrix<float>(3, 1, 2).col(0), random_matrix<float>(8, 3, 3));
    flat.add(bound_q, ada);
    flat.write(folder / "flat");
    const PeftModule<float> tensors = PeftFolder(folder / "flat").load<float>(bound_q);
    using pith_test::times, pith_test::with_scaled_columns;
    CHECK(pith_test::near(times(with_scaled_columns(tensors.up, tensors.gain), tensors.down),
                          times(with_scaled_columns(ada.up(), ada.gain()), ada.down()), 1e-5));
  }
  SECTION("what PEFT could not read") {
    const auto refused = [](const std::string& module, const LowRankTerm<float>& term, const std::string& text) {
      LoraFolderWriter<float> one;
      CHECK_THROWS_WITH(one.add(module, term), contains(text));
    };
    refused("a..b", uneven, "module 'a..b' is no module path");
    refused("../a", uneven, "is no module path");
    refused("q", {Matrix<float>(0, 8), Matrix<float>(0, 4), Vector<float>(0)}, "has rank 0");
    LowRankTerm<float> bad = uneven;
    bad.a_rows(0, 0) = std::nanf("");
    refused("q", bad, "has numbers that are not finite");
    bad = uneven;
    bad.gains[0] = 1e38f, bad.b_rows(0, 0) = 1e38f;
    refused("q", bad, "overflows where its scale is taken in or out");
    bad.gains.resize(1);
    refused("q", bad, "gain is [1, 1], expected [2, 1]");
    CHECK_THROWS_WITH(writer.add(bound_q, q), contains("is given twice"));
    CHECK_THROWS_WITH(LoraFolderWriter<float>().write(folder.path()), contains("nothing was added"));
    folder.write("file", "x");
    CHECK_THROWS_AS(writer.write(folder / "file"), FormatError);
  }
}
