// Folders of kinds beyond LoRA over a checkpoint whose weights were changed by plain loops, and what is refused of them.
#include <cmath>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "io/tiny_adapter.hpp"
#include "io/tiny_checkpoint.hpp"
#include "support/alloc_counter.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/random_matrix.hpp"

namespace {

using namespace pith;
using pith_test::contains;
using pith_test::same_bits;
using pith_test::TempFolder;
using pith_test::TinyAdapter;
using pith_test::TinyCheckpoint;

Decoder<float> decoder_of_kinds(const TinyCheckpoint& tiny) {
  const TempFolder folder;
  tiny.write(folder);
  return load_decoder(folder.path());
}
ModelAdapter<float> kind_bound(const TinyAdapter& adapter, const Decoder<float>& decoder) {
  const TempFolder folder;
  adapter.write(folder);
  return load_adapter(folder.path(), decoder);
}
Matrix<float> kind_logits(const Decoder<float>& decoder, const ModelAdapter<float>* adapter = nullptr) {
  auto session = decoder.start();
  session.use(adapter);
  return session.decode(std::vector<Token>{1, 4, 0, 2, 3, 3, 1});
}
/// The folder over the base gives what the changed checkpoint gives, up to rounding.
void check_kind(const TinyCheckpoint& tiny, const TinyAdapter& adapter, const TinyCheckpoint& changed) {
  const Decoder<float> decoder = decoder_of_kinds(tiny);
  const ModelAdapter<float> loaded = kind_bound(adapter, decoder);
  const Matrix<float> expected = kind_logits(decoder_of_kinds(changed)), found = kind_logits(decoder, &loaded);
  const double size = expected.cwiseAbs().maxCoeff();
  CHECK(pith_test::near(found, expected, 1e-4 * size));
  CHECK_FALSE(pith_test::near(kind_logits(decoder), expected, 1e-3 * size));
}

TinyAdapter kind_folder(const char* config) {
  TinyAdapter adapter;
  adapter.tensors.clear();
  adapter.config = nlohmann::ordered_json::parse(config);
  return adapter;
}
template <class Error> void kind_refused(const TinyAdapter& adapter, const std::string& text) {
  const Decoder<float> decoder = decoder_of_kinds({});
  CHECK_THROWS_AS(kind_bound(adapter, decoder), Error);
  CHECK_THROWS_WITH(kind_bound(adapter, decoder), contains(text));
}

const std::string kind_layers[] = {"model.layers.0.", "model.layers.1."};

}  // namespace

TEST_CASE("LoHa: ranks and alphas by pattern", "[io]") {
  TinyAdapter adapter = kind_folder(
      R"({"peft_type":"LOHA","r":2,"alpha":3,"rank_pattern":{"layers\\.1\\.self_attn\\.q_proj":3},"alpha_pattern":{"q_proj":6},)"
      R"("target_modules":["q_proj","up_proj"],"module_dropout":0.5})");
  const TinyCheckpoint tiny;
  TinyCheckpoint changed = tiny;
  for (const std::string& layer : kind_layers)
    for (const std::string name : {"self_attn.q_proj", "mlp.up_proj"}) {
      const bool q = name == "self_attn.q_proj";
      const Index r = q && layer == kind_layers[1] ? 3 : 2, out = q ? 8 : 6;
      const double alpha = q ? 6 : 3;
      const auto put = [&](const char* part, Index rows, Index cols) {
        return adapter.put(TinyAdapter::name(layer + name, part), rows, cols) /= 4;
      };
      const Matrix<float> a1 = put("hada_w1_a", out, r), b1 = put("hada_w1_b", r, 8), a2 = put("hada_w2_a", out, r),
                          b2 = put("hada_w2_b", r, 8);
      Matrix<float>& w = changed.tensors.at(layer + name + ".weight");
      for (Index o = 0; o < out; ++o)
        for (Index i = 0; i < 8; ++i) {
          double one = 0, two = 0;
          for (Index k = 0; k < r; ++k) one += double(a1(o, k)) * b1(k, i), two += double(a2(o, k)) * b2(k, i);
          w(o, i) += static_cast<float>(alpha / double(r) * one * two);
        }
    }
  check_kind(tiny, adapter, changed);
}

TEST_CASE("BOFT: one factor, given by the number of blocks, over a biased projection", "[io]") {
  TinyAdapter adapter =
      kind_folder(R"({"peft_type":"BOFT","boft_block_size":0,"boft_block_num":4,"target_modules":["q_proj"],"bias":"none"})");
  TinyCheckpoint tiny;
  for (const std::string& layer : kind_layers) tiny.put(layer + "self_attn.q_proj.bias", 8, 1);
  TinyCheckpoint changed = tiny;
  pith::SafetensorsWriter writer;
  for (const std::string& layer : kind_layers) {
    Matrix<float> r = adapter.put("r", 1, 16);
    const Matrix<float> s = adapter.put(TinyAdapter::name(layer + "self_attn.q_proj", "boft_s"), 8, 1);
    adapter.tensors.erase("r");
    const std::string name = TinyAdapter::name(layer + "self_attn.q_proj", "boft_R");
    writer.add(name, DType::f32, {1, 4, 2, 2}, std::as_bytes(std::span(r.data(), 16)));
    writer.add(TinyAdapter::name(layer + "self_attn.q_proj", "boft_s"), DType::f32, {8, 1}, std::as_bytes(std::span(s.data(), 8)));
    Matrix<float>& w = changed.tensors.at(layer + "self_attn.q_proj.weight");
    for (Index o = 0; o < 8; ++o)
      for (Index block = 0; block < 4; ++block) {
        // Q = [[0, q], [-q, 0]], (I + Q)⁻¹ (I - Q) = [[1 - q², -2 q], [2 q, 1 - q²]] / (1 + q²); W' = diag(s) W Cᵀ
        const double q = (double(r(0, block * 4 + 1)) - double(r(0, block * 4 + 2))) / 2, n = 1 + q * q;
        const double c = (1 - q * q) / n, d = 2 * q / n, x = w(o, 2 * block), y = w(o, 2 * block + 1);
        w(o, 2 * block) = static_cast<float>(double(s(o, 0)) * (c * x - d * y));
        w(o, 2 * block + 1) = static_cast<float>(double(s(o, 0)) * (d * x + c * y));
      }
  }
  const TempFolder folder;
  folder.write("adapter_config.json", adapter.config.dump());
  writer.write(folder / "adapter_model.safetensors");
  const Decoder<float> decoder = decoder_of_kinds(tiny);
  const ModelAdapter<float> loaded = load_adapter(folder.path(), decoder);
  const Matrix<float> expected = kind_logits(decoder_of_kinds(changed));
  CHECK(pith_test::near(kind_logits(decoder, &loaded), expected, 1e-4 * expected.cwiseAbs().maxCoeff()));
}

TEST_CASE("LoRA on table and head of an untied base", "[io]") {
  TinyAdapter adapter =
      kind_folder(R"({"peft_type":"LORA","r":2,"lora_alpha":1,"target_modules":["embed_tokens","lm_head"],"bias":"none"})");
  const TinyCheckpoint tiny;
  TinyCheckpoint changed = tiny;
  const Matrix<float> a = adapter.put(TinyAdapter::name("model.embed_tokens", "lora_embedding_A"), 2, 5),
                      b = adapter.put(TinyAdapter::name("model.embed_tokens", "lora_embedding_B"), 8, 2);
  adapter.lora("lm_head", 5, 2, 8);
  adapter.put(TinyAdapter::name("model.embed_tokens", "base_layer.weight"), 5, 8) = tiny.tensors.at("model.embed_tokens.weight");
  adapter.put(TinyAdapter::name("lm_head", "base_layer.weight"), 5, 8) = tiny.tensors.at("lm_head.weight");
  const Matrix<float>&head_a = adapter.tensors.at(TinyAdapter::name("lm_head", "lora_A.weight")),
        &head_b = adapter.tensors.at(TinyAdapter::name("lm_head", "lora_B.weight"));
  for (Index token = 0; token < 5; ++token)
    for (Index i = 0; i < 8; ++i)
      for (Index k = 0; k < 2; ++k) {
        changed.tensors.at("model.embed_tokens.weight")(token, i) += 0.5f * a(k, token) * b(i, k);
        changed.tensors.at("lm_head.weight")(token, i) += 0.5f * head_b(token, k) * head_a(k, i);
      }
  check_kind(tiny, adapter, changed);
  adapter.tensors.erase(TinyAdapter::name("lm_head", "lora_A.weight"));
  kind_refused<FormatError>(adapter, "holds no lora_A of module 'lm_head'");
  adapter.lora("lm_head", 5, 2, 8);
  adapter.put(TinyAdapter::name("model.embed_tokens", "lora_embedding_A"), 2, 6);
  adapter.put(TinyAdapter::name("model.embed_tokens", "base_layer.weight"), 6, 8);
  kind_refused<FormatError>(adapter, "adapts module 'model.embed_tokens' as [6, 8], expected [5, 8] by the decoder");
}

TEST_CASE("IA3 over a module that is adapted twice, and other files that contradict themselves", "[io]") {
  SECTION("one tensor under two names") {
    TinyAdapter adapter = kind_folder(R"({"peft_type":"IA3","target_modules":["k_proj"],"feedforward_modules":[]})");
    for (const std::string& layer : kind_layers) adapter.put(TinyAdapter::name(layer + "self_attn.k_proj", "ia3_l"), 4, 1);
    CHECK_NOTHROW(kind_bound(adapter, decoder_of_kinds({})));
    adapter.put(TinyAdapter::name(kind_layers[0] + "self_attn.k_proj", "ia3_l.default"), 4, 1);
    kind_refused<FormatError>(adapter, "is the same part as '");
  }
  SECTION("a vector of neither side, and one that does not fit") {
    TinyAdapter adapter = kind_folder(R"({"peft_type":"IA3","target_modules":["k_proj"]})");
    for (const std::string& layer : kind_layers) adapter.put(TinyAdapter::name(layer + "self_attn.k_proj", "ia3_l"), 2, 2);
    kind_refused<FormatError>(adapter, "ia3_l' is [2, 2], expected [out, 1] or [1, in]");
    for (const std::string& layer : kind_layers) adapter.put(TinyAdapter::name(layer + "self_attn.k_proj", "ia3_l"), 5, 1);
    kind_refused<FormatError>(adapter, "adapts module 'model.layers.0.self_attn.k_proj' as [5, 8], expected [4, 8] by the decoder");
    adapter.tensors.erase(TinyAdapter::name(kind_layers[1] + "self_attn.k_proj", "ia3_l"));
    adapter.put(TinyAdapter::name(kind_layers[0] + "self_attn.k_proj", "ia3_l"), 4, 1);
    kind_refused<FormatError>(adapter, "holds no ia3_l of module 'model.layers.1.self_attn.k_proj', which its target_modules name");
  }
  SECTION("RandLoRA's shared matrices are repeated as they are") {
    TinyAdapter adapter =
        kind_folder(R"({"peft_type":"RANDLORA","r":2,"randlora_alpha":2,"target_modules":["layers.0.self_attn.k_proj"]})");
    const TempFolder folder;
    const auto write = [&](float other) {
      pith::SafetensorsWriter writer;
      std::vector<float> numbers(64, 0.5f), repeated = numbers;
      repeated[3] = other;
      const auto add = [&](const std::string& name, std::vector<Index> shape, const std::vector<float>& from) {
        Index n = 1;
        for (const Index extent : shape) n *= extent;
        writer.add(name, DType::f32, shape, std::as_bytes(std::span(from)).first(static_cast<std::size_t>(n) * 4));
      };
      const std::string module = kind_layers[0] + "self_attn.k_proj";
      add("base_model.randlora_A", {2, 1, 8}, numbers);
      add("base_model.randlora_B", {8, 4, 2}, numbers);
      add(TinyAdapter::name(module, "randlora_A"), {2, 1, 8}, numbers);
      add(TinyAdapter::name(module, "randlora_B"), {8, 4, 2}, repeated);
      add(TinyAdapter::name(module, "randlora_lambda"), {2, 2}, numbers);
      add(TinyAdapter::name(module, "randlora_gamma"), {2, 4}, numbers);
      writer.write(folder / "adapter_model.safetensors");
    };
    folder.write("adapter_config.json", adapter.config.dump());
    write(0.5f);
    const Decoder<float> decoder = decoder_of_kinds({});
    CHECK_NOTHROW(load_adapter(folder.path(), decoder));
    write(0.25f);
    CHECK_THROWS_WITH(load_adapter(folder.path(), decoder), contains("differs from 'base_model.randlora_B'"));
  }
  SECTION("a direction of length zero, and blocks that do not fill the input") {
    TinyAdapter hra = kind_folder(R"({"peft_type":"HRA","r":2,"target_modules":["layers.0.self_attn.k_proj"]})");
    hra.put(TinyAdapter::name(kind_layers[0] + "self_attn.k_proj", "hra_u"), 8, 2).setZero();
    kind_refused<FormatError>(hra, "has a column 0 without a direction");
    TinyAdapter oft = kind_folder(
        R"({"peft_type":"OFT","peft_version":"0.18.1","oft_block_size":3,"block_share":true,"target_modules":["layers.0.self_attn.k_proj"]})");
    oft.put(TinyAdapter::name(kind_layers[0] + "self_attn.k_proj", "oft_R.weight"), 1, 3);
    kind_refused<FormatError>(oft, "has blocks of 3, which do not fill the decoder's 8 inputs");
    oft.put(TinyAdapter::name(kind_layers[0] + "self_attn.k_proj", "oft_R.weight"), 1, 2);
    kind_refused<FormatError>(oft, "has 2 columns, expected b (b - 1) / 2");
  }
  SECTION("single rows: of a head that nothing names, and of other numbers in a tied base") {
    TinyAdapter rows = kind_folder(R"({"peft_type":"TRAINABLE_TOKENS","token_indices":[3,1],"target_modules":["embed_tokens"]})");
    rows.put(TinyAdapter::name("model.embed_tokens", "trainable_tokens_delta"), 2, 8);
    TinyCheckpoint tied;
    tied.config.insert(1, "\"tie_word_embeddings\":true,");
    tied.tensors.erase("lm_head.weight");
    CHECK_NOTHROW(kind_bound(rows, decoder_of_kinds(tied)));
    rows.put(TinyAdapter::name("lm_head", "trainable_tokens_delta"), 2, 8);
    kind_refused<FormatError>(rows, "replaces rows of 'lm_head', which the config does not name");
    CHECK_THROWS_WITH(kind_bound(rows, decoder_of_kinds(tied)),
                      contains("by other numbers than of 'model.embed_tokens', which the decoder ties"));
  }
}

namespace {

/// What loading takes beyond what is there already, refused or not.
std::size_t kind_peak(const TinyAdapter& adapter, const Decoder<float>& decoder) {
  const TempFolder folder;
  adapter.write(folder);
  const pith_test::PeakScope scope;
  try {
    load_adapter(folder.path(), decoder);
  } catch (const FormatError&) {
  }
  return scope.bytes();
}
/// Loading takes no more than a few times the folder's numbers.
void check_peak(const TinyAdapter& adapter) {
  std::size_t numbers = 0;
  for (const auto& tensor : adapter.tensors) numbers += static_cast<std::size_t>(tensor.second.size());
  const Decoder<float> decoder = decoder_of_kinds({});
  if (pith_test::counting_available()) CHECK(kind_peak(adapter, decoder) < 4 * sizeof(double) * numbers + (1 << 20));
}

const std::string only_q = kind_layers[0] + "self_attn.q_proj", only_up = kind_layers[1] + "mlp.up_proj";

}  // namespace

// Each of these folders has a few MB; taken at its word, it would keep the loader busy for hours or ask for gigabytes.
TEST_CASE("No number of a small folder makes it cost more than its size and the decoder's", "[io]") {
  SECTION("OFT: terms of a series") {
    TinyAdapter oft = kind_folder(
        R"({"peft_type":"OFT","peft_version":"0.18.1","oft_block_size":2,"num_cayley_neumann_terms":2147483647,"target_modules":["layers.0.self_attn.q_proj"]})");
    oft.put(TinyAdapter::name(only_q, "oft_R.weight"), 4, 1);
    kind_refused<FormatError>(oft, "key 'num_cayley_neumann_terms' is '2147483647', expected a whole number from 1 to 32");
    oft.config["num_cayley_neumann_terms"] = 32;
    CHECK_NOTHROW(kind_bound(oft, decoder_of_kinds({})));
    oft.config["num_cayley_neumann_terms"] = 2147483647;
    oft.config["use_cayley_neumann"] = false;  // then nothing reads it
    CHECK_NOTHROW(kind_bound(oft, decoder_of_kinds({})));
  }
  SECTION("HRA: more reflections than inputs") {
    for (const bool orthogonal : {false, true})
      for (const Index r : {Index(9), Index(100'000)}) {
        TinyAdapter hra = kind_folder(R"({"peft_type":"HRA","target_modules":["layers.0.self_attn.q_proj"]})");
        hra.config["r"] = r;
        hra.config["apply_GS"] = orthogonal;
        hra.put(TinyAdapter::name(only_q, "hra_u"), 8, r);
        kind_refused<FormatError>(hra, "hra_u' holds " + std::to_string(r) + " reflections of 8 inputs, expected at most one for each");
        check_peak(hra);
      }
    TinyAdapter all = kind_folder(R"({"peft_type":"HRA","r":8,"target_modules":["layers.0.self_attn.q_proj"]})");
    all.put(TinyAdapter::name(only_q, "hra_u"), 8, 8);
    CHECK_NOTHROW(kind_bound(all, decoder_of_kinds({})));
  }
  SECTION("VeRA: matrices that are drawn") {
    TinyAdapter vera =
        kind_folder(R"({"peft_type":"VERA","r":1025,"save_projection":false,"target_modules":["layers.0.self_attn.q_proj"]})");
    vera.put(TinyAdapter::name(only_q, "vera_lambda_b"), 8);
    vera.put(TinyAdapter::name(only_q, "vera_lambda_d"), 1025);
    kind_refused<FormatError>(vera, "r is 1025 and save_projection false, expected an r of at most 1024 for the decoder's [8, 8]");
    vera.put(TinyAdapter::name(only_q, "vera_lambda_d"), 1'000'000);
    vera.config["r"] = 1'000'000;
    kind_refused<FormatError>(vera, "r is 1000000 and save_projection false");
    check_peak(vera);
    vera.put(TinyAdapter::name(only_q, "vera_lambda_d"), 1024);
    vera.config["r"] = 1024;
    CHECK_NOTHROW(kind_bound(vera, decoder_of_kinds({})));
  }
  SECTION("RandLoRA: a rank above that of any weight") {
    for (const Index r : {Index(1024), Index(1025)}) {
      TinyAdapter random = kind_folder(R"({"peft_type":"RANDLORA","randlora_alpha":2,"target_modules":["layers.0.self_attn.q_proj"]})");
      random.config["r"] = r;
      random.put("base_model.randlora_A", r, 8);
      random.put("base_model.randlora_B", 8, r);
      random.shapes = {{"base_model.randlora_A", {r, 1, 8}}, {"base_model.randlora_B", {8, 1, r}}};
      random.put(TinyAdapter::name(only_q, "randlora_lambda"), r, 1);
      random.put(TinyAdapter::name(only_q, "randlora_gamma"), 1, 8);
      if (r == 1024)
        CHECK_NOTHROW(kind_bound(random, decoder_of_kinds({})));
      else
        kind_refused<FormatError>(random, "randlora_lambda' is of rank 1025, expected at most 1024 for the decoder's [8, 8]");
    }
  }
  SECTION("LoHa: of a high rank ΔW itself is kept, not its pairs of components") {
    const Index r = 3000;
    TinyAdapter loha = kind_folder(R"({"peft_type":"LOHA","r":3000,"alpha":2,"target_modules":["layers.1.mlp.up_proj"]})");
    const Matrix<float> a1 = loha.put(TinyAdapter::name(only_up, "hada_w1_a"), 6, r),
                        b1 = loha.put(TinyAdapter::name(only_up, "hada_w1_b"), r, 8),
                        a2 = loha.put(TinyAdapter::name(only_up, "hada_w2_a"), 6, r),
                        b2 = loha.put(TinyAdapter::name(only_up, "hada_w2_b"), r, 8);
    const TinyCheckpoint tiny;
    TinyCheckpoint changed = tiny;
    for (Index o = 0; o < 6; ++o)
      for (Index i = 0; i < 8; ++i) {
        double one = 0, two = 0;
        for (Index k = 0; k < r; ++k) one += double(a1(o, k)) * b1(k, i), two += double(a2(o, k)) * b2(k, i);
        changed.tensors.at(only_up + ".weight")(o, i) += static_cast<float>(2 / double(r) * one * two);
      }
    check_kind(tiny, loha, changed);
    check_peak(loha);
  }
  SECTION("MiSS: rows of D that no input reads") {
    const Index r = 300'000;
    TinyAdapter miss =
        kind_folder(R"({"peft_type":"MISS","r":300000,"mini_r":3,"init_weights":"mini","target_modules":["layers.1.mlp.up_proj"]})");
    const Matrix<float> d = miss.put(TinyAdapter::name(only_up, "miss_block"), r, 3);
    const TinyCheckpoint tiny;
    TinyCheckpoint changed = tiny;
    for (Index o = 0; o < 6; ++o)
      for (Index i = 0; i < 8; ++i) changed.tensors.at(only_up + ".weight")(o, i) += d(i, o % 3);  // input i reads row i mod r
    check_kind(tiny, miss, changed);
    check_peak(miss);
  }
  SECTION("OFT: one block shared by all inputs") {
    TinyAdapter oft = kind_folder(
        R"({"peft_type":"OFT","oft_block_size":2,"block_share":true,"use_cayley_neumann":false,"target_modules":["layers.0.self_attn.q_proj"]})");
    const double q = double(oft.put(TinyAdapter::name(only_q, "oft_R.weight"), 1, 1)(0, 0)), n = 1 + q * q;
    const TinyCheckpoint tiny;
    TinyCheckpoint changed = tiny;
    Matrix<float>& w = changed.tensors.at(only_q + ".weight");
    for (Index o = 0; o < 8; ++o)
      for (Index i = 0; i < 8; i += 2) {  // W' = W Rᵀ with R = (I + Q)⁻¹ (I - Q) = [[1 - q², -2 q], [2 q, 1 - q²]] / (1 + q²)
        const double c = (1 - q * q) / n, s = 2 * q / n, x = w(o, i), y = w(o, i + 1);
        w(o, i) = static_cast<float>(c * x - s * y);
        w(o, i + 1) = static_cast<float>(s * x + c * y);
      }
    check_kind(tiny, oft, changed);
  }
}
