// Folders whose tensors lie as other families keep them, against a Llama's folder of the same numbers: they are the same decoder.
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <pith/io/checkpoint.hpp>
#include <pith/io/peft_adapter.hpp>

#include "io/temp_folder.hpp"
#include "io/tiny_adapter.hpp"
#include "io/tiny_checkpoint.hpp"
#include "support/alloc_counter.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/random_matrix.hpp"

namespace { namespace of_folders {

using namespace pith;
using pith_test::contains;
using pith_test::same_bits;
using pith_test::TempFolder;
using pith_test::TinyAdapter;
using pith_test::TinyCheckpoint;

const std::vector<Token> family_ids{1, 4, 0, 2, 3, 3, 1};
const std::string layer_0 = "model.layers.0.", layer_1 = "model.layers.1.";

Checkpoint<float> loaded(const TinyCheckpoint& tiny, WeightsLayout layout = WeightsLayout::packed) {
  const TempFolder folder;
  tiny.write(folder);
  return load_checkpoint(folder.path(), {.weights = layout});
}
Decoder<float> decoder_of(const TinyCheckpoint& tiny, WeightsLayout layout = WeightsLayout::packed) {
  Checkpoint<float> checkpoint = loaded(tiny, layout);
  return Decoder<float>(std::move(checkpoint.config), std::move(checkpoint.weights));
}
ModelAdapter<float> bound(const TinyAdapter& adapter, const Decoder<float>& decoder) {
  const TempFolder folder;
  adapter.write(folder);
  return load_adapter(folder.path(), decoder);
}
Matrix<float> logits_under(const Decoder<float>& decoder, const ModelAdapter<float>* adapter = nullptr) {
  auto session = decoder.start();
  session.use(adapter);
  return session.decode(family_ids);
}

void join(TinyCheckpoint& tiny, const std::string& to, const std::vector<std::string>& from) {
  Index rows = 0, cols = 0;
  for (const std::string& name : from) rows += tiny.tensors.at(name).rows(), cols = tiny.tensors.at(name).cols();
  Matrix<float> all(rows, cols);
  rows = 0;
  for (const std::string& name : from) {
    const Matrix<float>& one = tiny.tensors.at(name);
    all.middleRows(rows, one.rows()) = one;
    rows += one.rows();
    tiny.tensors.erase(name);
  }
  tiny.tensors[to] = all;
}

/// The same numbers as phi3 keeps them: q, k and v in one tensor, gate and up in another.
TinyCheckpoint fused(TinyCheckpoint tiny) {
  tiny.config.replace(tiny.config.find("llama"), 5, "phi3");
  tiny.config.insert(1, "\"rms_norm_eps\":1e-6,");
  for (const std::string& layer : {layer_0, layer_1})
    for (const std::string part : {".weight", ".bias"}) {
      if (part == ".bias" && tiny.tensors.count(layer + "self_attn.q_proj.bias") == 0) continue;
      join(tiny, layer + "self_attn.qkv_proj" + part,
           {layer + "self_attn.q_proj" + part, layer + "self_attn.k_proj" + part, layer + "self_attn.v_proj" + part});
      if (part == ".weight") join(tiny, layer + "mlp.gate_up_proj.weight", {layer + "mlp.gate_proj.weight", layer + "mlp.up_proj.weight"});
    }
  return tiny;
}

TinyCheckpoint renamed(const TinyCheckpoint& tiny, const std::function<std::string(const std::string&)>& name) {
  TinyCheckpoint out = tiny;
  out.tensors.clear();
  for (const auto& [old, values] : tiny.tensors) out.tensors[name(old)] = values;
  return out;
}
std::string put_before(const std::string& prefix, const std::string& name) {
  return name.starts_with("model.") ? prefix + name.substr(6) : name;
}

/// An adapter's tensor with the rows of others, one after the other.
void join_rows(TinyAdapter& to, const TinyAdapter& from, const std::string& module, const std::vector<std::string>& modules,
               const std::string& part, bool vector) {
  Index rows = 0;
  for (const std::string& one : modules) rows += from.tensors.at(TinyAdapter::name(one, part)).rows();
  const Index cols = from.tensors.at(TinyAdapter::name(modules[0], part)).cols();
  Matrix<float>& all = to.put(TinyAdapter::name(module, part), rows, vector ? -1 : cols);
  rows = 0;
  for (const std::string& one : modules) {
    const Matrix<float>& own = from.tensors.at(TinyAdapter::name(one, part));
    all.middleRows(rows, own.rows()) = own;
    rows += own.rows();
  }
  to.tensors[TinyAdapter::name(module, part)] = all;
}

/// LoRA on q, k, v, gate and up, with one A for q, k and v and one for gate and up; and its fused twin.
std::pair<TinyAdapter, TinyAdapter> split_and_fused(bool dora, bool biased) {
  TinyAdapter split, joined;
  split.tensors.clear();
  joined.tensors.clear();
  split.config["target_modules"] = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"};
  joined.config["target_modules"] = {"qkv_proj", "gate_up_proj"};
  for (TinyAdapter* adapter : {&split, &joined}) {
    adapter->config["use_dora"] = dora;
    if (biased) adapter->config["bias"] = "lora_only";
  }
  const struct {
    std::string module;
    std::vector<std::pair<std::string, Index>> parts;
    bool bias;
  } modules[] = {{"self_attn.qkv_proj", {{"self_attn.q_proj", 8}, {"self_attn.k_proj", 4}, {"self_attn.v_proj", 4}}, biased},
                 {"mlp.gate_up_proj", {{"mlp.gate_proj", 6}, {"mlp.up_proj", 6}}, false}};
  for (const std::string& layer : {layer_0, layer_1})
    for (const auto& [module, parts, bias] : modules) {
      std::vector<std::string> names;
      for (const auto& [name, out] : parts) {
        names.push_back(layer + name);
        split.lora(layer + name, out, 2, 8);
        if (dora) split.put(TinyAdapter::name(layer + name, "lora_magnitude_vector"), out);
        if (bias) split.put(TinyAdapter::name(layer + name, "base_layer.bias"), out);
      }
      const std::string down = "lora_A.weight";
      const Matrix<float> shared = split.tensors.at(TinyAdapter::name(names[0], down));
      for (const std::string& name : names) split.tensors[TinyAdapter::name(name, down)] = shared;
      joined.put(TinyAdapter::name(layer + module, down), 2, 8) = shared;
      join_rows(joined, split, layer + module, names, "lora_B.weight", false);
      if (dora) join_rows(joined, split, layer + module, names, "lora_magnitude_vector", true);
      if (bias) join_rows(joined, split, layer + module, names, "base_layer.bias", true);
    }
  return {split, joined};
}

TEST_CASE("family folders: a dense Granite 4 is the Granite of the same numbers", "[io]") {
  TinyCheckpoint granite, granite4;
  const std::string keys = R"("rms_norm_eps":1e-5,"attention_multiplier":0.25,"residual_multiplier":0.5,"logits_scaling":4,)";
  granite.config.replace(granite.config.find("llama"), 5, "granite").insert(1, keys);
  granite4.config.replace(granite4.config.find("llama"), 5, "granitemoehybrid")
      .insert(1, keys + R"("num_local_experts":0,"mamba_d_state":16,"position_embedding_type":"rope","shared_intermediate_size":6,)"
                        R"("layer_types":["attention","attention"],)");
  TinyAdapter over, over4;
  over.tensors.clear();
  over4.tensors.clear();
  over.config["target_modules"] = {"gate_proj", "up_proj", "down_proj"};
  over4.config["target_modules"] = {"input_linear", "output_linear"};
  for (const std::string& layer : {layer_0, layer_1}) {
    const std::string gate = layer + "mlp.gate_proj", up = layer + "mlp.up_proj", down = layer + "mlp.down_proj";
    const std::string in = layer + "shared_mlp.input_linear", out = layer + "shared_mlp.output_linear", a = "lora_A.weight";
    join(granite4, in + ".weight", {gate + ".weight", up + ".weight"});
    join(granite4, out + ".weight", {down + ".weight"});
    over.lora(gate, 6, 2, 8);
    over.lora(up, 6, 2, 8);
    over.lora(down, 8, 2, 6);
    over4.lora(out, 8, 2, 6);
    for (const std::string part : {"lora_A.weight", "lora_B.weight"})
      over4.tensors[TinyAdapter::name(out, part)] = over.tensors.at(TinyAdapter::name(down, part));
    over4.put(TinyAdapter::name(in, a), 2, 8) = over.tensors[TinyAdapter::name(up, a)] = over.tensors.at(TinyAdapter::name(gate, a));
    join_rows(over4, over, in, {gate, up}, "lora_B.weight", false);
  }
  for (const WeightsLayout layout : {WeightsLayout::packed, WeightsLayout::mapped, WeightsLayout::int8, WeightsLayout::int4}) {
    const Decoder<float> one = decoder_of(granite, layout), other = decoder_of(granite4, layout);
    CHECK(same_bits(other.forward(family_ids), one.forward(family_ids)));
    const ModelAdapter<float> adapter = bound(over, one), adapter4 = bound(over4, other);
    CHECK(same_bits(logits_under(other, &adapter4), logits_under(one, &adapter)));
    CHECK_FALSE(same_bits(logits_under(other, &adapter4), logits_under(other)));
  }
  granite4.put(layer_1 + "block_sparse_moe.router.layer.weight", 2, 8);
  CHECK_THROWS_AS(loaded(granite4), UnsupportedError);
}

TEST_CASE("family folders: adapters of every kind on projections in one tensor change its rows", "[io]") {
  TinyCheckpoint llama;
  for (const std::string& layer : {layer_0, layer_1})
    for (const auto& [name, out] : {std::pair<std::string, Index>{"q", 8}, {"k", 4}, {"v", 4}})
      llama.put(layer + "self_attn." + name + "_proj.bias", out, 1);
  const TinyCheckpoint base = fused(llama);
  const Decoder<float> decoder = decoder_of(base);
  const Matrix<float> plain = logits_under(decoder);
  const auto folder_of = [](const std::string& config) {
    TinyAdapter adapter;
    adapter.tensors.clear();
    adapter.config = nlohmann::ordered_json::parse(config);
    adapter.config["target_modules"] = {"qkv_proj", "gate_up_proj"};
    return adapter;
  };
  using Number = std::function<double(Index, Index)>;
  /// change(put, W, b) puts the tensors of one module and changes the module's weight and bias; put(part, rows, cols) returns numbers
  /// within ±1/2. A bias of no numbers: the module has none.
  const auto check = [&](TinyAdapter adapter, const auto& change) {
    INFO(adapter.config.dump());
    TinyCheckpoint changed = base;
    for (const std::string& layer : {layer_0, layer_1})
      for (const std::string name : {"self_attn.qkv_proj", "mlp.gate_up_proj"}) {
        const auto put = [&](const char* part, Index rows, Index cols) {
          return Matrix<float>(adapter.tensors[TinyAdapter::name(layer + name, part)] =
                                   adapter.put(TinyAdapter::name(layer + name, part), rows, cols) / 4);
        };
        Matrix<double> w = changed.tensors.at(layer + name + ".weight").cast<double>(), b;
        const bool biased = name == "self_attn.qkv_proj";
        if (biased) b = changed.tensors.at(layer + name + ".bias").cast<double>();
        const auto shape = [&](const char* part, std::vector<Index> of) { adapter.shapes[TinyAdapter::name(layer + name, part)] = of; };
        change(put, shape, w, b);
        changed.tensors.at(layer + name + ".weight") = w.cast<float>();
        if (biased) changed.tensors.at(layer + name + ".bias") = b.cast<float>();
      }
    const ModelAdapter<float> adapted = bound(adapter, decoder);
    const Matrix<float> expected = decoder_of(changed).forward(family_ids), found = logits_under(decoder, &adapted);
    const double size = expected.cwiseAbs().maxCoeff();
    CHECK(pith_test::near(found, expected, 1e-4 * size));
    CHECK_FALSE(pith_test::near(plain, expected, 1e-3 * size));
  };
  const auto add = [](Matrix<double>& w, const Number& delta) {
    for (Index o = 0; o < w.rows(); ++o)
      for (Index i = 0; i < w.cols(); ++i) w(o, i) += delta(o, i);
  };
  /// Pairs of columns turned by the Cayley transform of [[0, q], [-q, 0]].
  const auto turn = [](Matrix<double>& w, Index pair, double q) {
    const double n = 1 + q * q, c = (1 - q * q) / n, d = 2 * q / n;
    for (Index o = 0; o < w.rows(); ++o) {
      const double x = w(o, 2 * pair), y = w(o, 2 * pair + 1);
      w(o, 2 * pair) = c * x - d * y;
      w(o, 2 * pair + 1) = d * x + c * y;
    }
  };

  check(folder_of(R"({"peft_type":"IA3","feedforward_modules":["gate_up_proj"]})"), [](auto put, auto, auto& w, auto& b) {
    const bool outputs = b.size() > 0;
    const Matrix<float> l = outputs ? put("ia3_l", w.rows(), 1) : put("ia3_l", 1, w.cols());
    for (Index o = 0; o < w.rows(); ++o)
      for (Index i = 0; i < w.cols(); ++i) w(o, i) *= double(outputs ? l(o, 0) : l(0, i));
    for (Index o = 0; o < b.size(); ++o) b(o, 0) *= double(l(o, 0));
  });
  TinyAdapter vera = folder_of(R"({"peft_type":"VERA","r":2})");
  const Matrix<float> vera_a = vera.put("base_model.vera_A", 2, 8), vera_b = vera.put("base_model.vera_B", 16, 2);
  check(vera, [&](auto put, auto, auto& w, auto&) {
    const Matrix<float> b = put("vera_lambda_b", w.rows(), -1), d = put("vera_lambda_d", 2, -1);
    add(w, [&](Index o, Index i) {
      double sum = 0;
      for (Index k = 0; k < 2; ++k) sum += double(b(o, 0)) * double(vera_b(o, k)) * double(d(k, 0)) * double(vera_a(k, i));
      return sum;
    });
  });
  check(folder_of(R"({"peft_type":"LOHA","r":2,"alpha":3})"), [&](auto put, auto, auto& w, auto&) {
    const Matrix<float> a1 = put("hada_w1_a", w.rows(), 2), b1 = put("hada_w1_b", 2, 8), a2 = put("hada_w2_a", w.rows(), 2),
                        b2 = put("hada_w2_b", 2, 8);
    add(w, [&](Index o, Index i) {
      double one = 0, two = 0;
      for (Index k = 0; k < 2; ++k) one += double(a1(o, k)) * double(b1(k, i)), two += double(a2(o, k)) * double(b2(k, i));
      return 1.5 * one * two;
    });
  });
  check(folder_of(R"({"peft_type":"LOKR","r":2,"alpha":3})"), [&](auto put, auto, auto& w, auto&) {  // blocks of 4 rows: k has one
    const Matrix<float> w1 = put("lokr_w1", w.rows() / 4, 2), w2 = put("lokr_w2", 4, 4);
    add(w, [&](Index o, Index i) { return 1.5 * double(w1(o / 4, i / 4)) * double(w2(o % 4, i % 4)); });
  });
  check(folder_of(R"({"peft_type":"LOKR","r":2,"alpha":3,"decompose_both":true})"), [&](auto put, auto, auto& w, auto&) {
    const Matrix<float> a = put("lokr_w1_a", 2, 2), b = put("lokr_w1_b", 2, 2), w2 = put("lokr_w2", w.rows() / 2, 4);  // over the borders
    add(w, [&](Index o, Index i) {
      const Index c = o / (w.rows() / 2), d = i / 4;
      const double w1 = double(a(c, 0)) * double(b(0, d)) + double(a(c, 1)) * double(b(1, d));
      return 1.5 * w1 * double(w2(o % (w.rows() / 2), i % 4));
    });
  });
  check(folder_of(R"({"peft_type":"OFT","peft_version":"0.18.1","oft_block_size":2,"use_cayley_neumann":false})"),
        [&](auto put, auto, auto& w, auto&) {
          const Matrix<float> q = put("oft_R.weight", 4, 1);
          for (Index pair = 0; pair < 4; ++pair) turn(w, pair, double(q(pair, 0)));
        });
  check(folder_of(R"({"peft_type":"BOFT","boft_block_size":2,"boft_block_num":0})"), [&](auto put, auto shape, auto& w, auto&) {
    const Matrix<float> r = put("boft_R", 4, 4), s = put("boft_s", w.rows(), 1);
    shape("boft_R", {1, 4, 2, 2});
    for (Index pair = 0; pair < 4; ++pair) turn(w, pair, (double(r(pair, 1)) - double(r(pair, 2))) / 2);
    for (Index o = 0; o < w.rows(); ++o) w.row(o) *= double(s(o, 0));
  });
  check(folder_of(R"({"peft_type":"HRA","r":2})"), [](auto put, auto, auto& w, auto&) {
    const Matrix<float> u = put("hra_u", 8, 2);
    for (Index k = 0; k < 2; ++k) {
      double length = 0;
      for (Index i = 0; i < 8; ++i) length += double(u(i, k)) * double(u(i, k));
      for (Index o = 0; o < w.rows(); ++o) {
        double along = 0;
        for (Index i = 0; i < 8; ++i) along += w(o, i) * double(u(i, k));
        for (Index i = 0; i < 8; ++i) w(o, i) -= 2 * along * double(u(i, k)) / length;
      }
    }
  });
  check(folder_of(R"({"peft_type":"MISS","r":3})"), [&](auto put, auto, auto& w, auto&) {
    const Matrix<float> d = put("miss_block", 3, w.rows());
    add(w, [&](Index o, Index i) { return double(d(i % 3, o)); });
  });
  check(folder_of(R"({"peft_type":"MISS","r":3,"mini_r":4,"init_weights":"mini"})"), [&](auto put, auto, auto& w, auto&) {
    const Matrix<float> d = put("miss_block", 3, 4);
    add(w, [&](Index o, Index i) { return double(d(i % 3, o % 4)); });
  });
  check(folder_of(R"({"peft_type":"MISS","r":2,"init_weights":"bat"})"), [&](auto put, auto shape, auto& w, auto&) {
    const Matrix<float> d = put("miss_block", w.rows() / 2, 4);
    shape("miss_block", {w.rows() / 2, 2, 2});
    const Matrix<double> old = w;
    add(w, [&](Index o, Index i) {
      double sum = double(d(o / 2, o % 2 * 2 + i % 2));
      for (Index k = 0; k < 2; ++k) sum += old(o, i / 2 * 2 + k) * double(d(o / 2, k * 2 + i % 2));
      return sum;
    });
  });
  TinyAdapter random = folder_of(R"({"peft_type":"RANDLORA","r":2,"randlora_alpha":3})");
  const Matrix<float> a = random.put("base_model.randlora_A", 2, 8), b = random.put("base_model.randlora_B", 16, 8);
  random.shapes = {{"base_model.randlora_A", {2, 1, 8}}, {"base_model.randlora_B", {16, 4, 2}}};
  check(random, [&](auto put, auto, auto& w, auto&) {
    const Matrix<float> lambda = put("randlora_lambda", 2, 4), gamma = put("randlora_gamma", 4, 8);
    add(w, [&](Index o, Index i) {
      double sum = 0;
      for (Index k = 0; k < 2; ++k)
        for (Index n = 0; n < 4; ++n) sum += double(b(o, k * 4 + n)) * double(lambda(k, n)) * double(a(k, i)) * double(gamma(n, i));
      return 1.5 * sum;
    });
  });

  TinyAdapter straddling = folder_of(R"({"peft_type":"MISS","r":8,"init_weights":"bat"})");  // k has 4 outputs
  straddling.config["target_modules"] = {"qkv_proj"};
  for (const std::string& layer : {layer_0, layer_1}) {
    const std::string name = TinyAdapter::name(layer + "self_attn.qkv_proj", "miss_block");
    straddling.put(name, 16, 8);
    straddling.shapes[name] = {2, 8, 8};
  }
  CHECK_THROWS_AS(bound(straddling, decoder), FormatError);
  CHECK_THROWS_WITH(bound(straddling, decoder), contains("has blocks of 8, which do not fill the decoder's [4, 8]"));
}

TEST_CASE("family folders: projections in one tensor are those of their rows, in every layout", "[io]") {
  TinyCheckpoint plain;
  for (const std::string& layer : {layer_0, layer_1}) {
    plain.put(layer + "self_attn.q_proj.bias", 8, 1);
    plain.put(layer + "self_attn.k_proj.bias", 4, 1);
    plain.put(layer + "self_attn.v_proj.bias", 4, 1);
  }
  for (const bool biased : {false, true}) {
    TinyCheckpoint split = plain;
    if (!biased) split = TinyCheckpoint();
    const TinyCheckpoint joined = fused(split);
    for (const WeightsLayout layout : {WeightsLayout::packed, WeightsLayout::mapped, WeightsLayout::int8, WeightsLayout::int4}) {
      CHECK(same_bits(decoder_of(joined, layout).forward(family_ids), decoder_of(split, layout).forward(family_ids)));
      const Checkpoint<float> checkpoint = loaded(joined, layout);
      CHECK(checkpoint.weights.layers[1].k_proj.bias().size() == (biased ? 4 : 0));
      CHECK(checkpoint.weights.layers[1].gate_proj.out() == 6);
    }
    TinyCheckpoint wide = joined;  // read in a type that it is not computed in, and so converted
    wide.dtypes[layer_0 + "self_attn.qkv_proj.weight"] = wide.dtypes[layer_1 + "mlp.gate_up_proj.weight"] = DType::f64;
    for (const WeightsLayout layout : {WeightsLayout::packed, WeightsLayout::mapped})
      CHECK(same_bits(decoder_of(wide, layout).forward(family_ids), decoder_of(split, layout).forward(family_ids)));
  }
}

TEST_CASE("family folders: projections in one mapped tensor are not copied", "[io]") {
  TinyCheckpoint big = fused({});
  const std::string size = "\"hidden_size\":8,\"intermediate_size\":6,";
  big.config.replace(big.config.find(size), size.size(), "\"hidden_size\":8,\"intermediate_size\":60000,");
  for (const std::string& layer : {layer_0, layer_1}) {
    big.put(layer + "mlp.gate_up_proj.weight", 120000, 8);
    big.put(layer + "mlp.down_proj.weight", 8, 60000);
  }
  const TempFolder folder;
  big.write(folder);
  const pith_test::PeakScope peak;
  const Checkpoint<float> checkpoint = load_checkpoint(folder.path(), {.weights = WeightsLayout::mapped});
  const std::size_t tensor = std::size_t{120000} * 8 * sizeof(float);
  CHECK(checkpoint.weights.layers[0].up_proj.bytes() == tensor / 2);
  if (pith_test::counting_available()) CHECK(peak.bytes() < tensor / 4);
  Matrix<float> row(1, 8);
  checkpoint.weights.layers[1].up_proj.copy_weight(59999, row);
  CHECK(same_bits(row, Matrix<float>(big.tensors.at(layer_1 + "mlp.gate_up_proj.weight").row(119999))));
}

TEST_CASE("family folders: tensors of wrong shapes and of other layouts are refused", "[io]") {
  const TinyCheckpoint sound = fused({});
  for (const std::string name : {"self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight"}) {
    TinyCheckpoint tiny = sound;
    const Index rows = tiny.tensors.at(layer_1 + name).rows();
    tiny.put(layer_1 + name, rows - 1, 8);
    CHECK_THROWS_AS(loaded(tiny), FormatError);
    CHECK_THROWS_WITH(loaded(tiny), contains("'" + layer_1 + name + "' is [" + std::to_string(rows - 1) + ", 8], expected [" +
                                             std::to_string(rows) + ", 8] by the config"));
    tiny.tensors.erase(layer_1 + name);
    CHECK_THROWS_WITH(loaded(tiny), contains("'" + layer_1 + name + "' is missing"));
  }
  TinyCheckpoint both = sound;  // a projection of its own beside the common tensor
  both.put(layer_0 + "self_attn.q_proj.weight", 8, 8);
  CHECK_THROWS_AS(loaded(both), UnsupportedError);
  CHECK_THROWS_WITH(loaded(both), contains("self_attn.q_proj.weight' has no place in a phi3 decoder"));
}

TEST_CASE("family folders: norms by their names, and as w - 1", "[io]") {
  // One checkpoint of a Gemma 2 and one of a Gemma 3, whose norms hold what their names say.
  const auto gemma = [](const std::string& type, const std::vector<std::pair<std::string, Index>>& norms) {
    TinyCheckpoint tiny;
    tiny.config.replace(tiny.config.find("llama"), 5, type);
    tiny.config.insert(1, "\"head_dim\":4,");
    tiny.tensors.erase("lm_head.weight");
    for (const std::string& layer : {layer_0, layer_1})
      for (const auto& [name, width] : norms) tiny.put(layer + name + ".weight", width, 1);
    return tiny;
  };
  const std::vector<std::pair<std::string, Index>> four{
      {"input_layernorm", 8}, {"post_attention_layernorm", 8}, {"pre_feedforward_layernorm", 8}, {"post_feedforward_layernorm", 8}};
  std::vector<std::pair<std::string, Index>> six = four;
  six.insert(six.end(), {{"self_attn.q_norm", 4}, {"self_attn.k_norm", 4}});
  for (const auto& [type, norms] : {std::pair{std::string("gemma2"), four}, {"gemma3_text", six}}) {
    INFO(type);
    const TinyCheckpoint tiny = gemma(type, norms);
    const Checkpoint<float> checkpoint = loaded(tiny);
    const LayerWeights<float>& layer = checkpoint.weights.layers[1];
    const Vector<float>* const places[] = {
        &layer.pre_attention_norm, &layer.post_attention_norm, &layer.pre_mlp_norm, &layer.post_mlp_norm, &layer.q_norm, &layer.k_norm};
    for (std::size_t n = 0; n < norms.size(); ++n)
      CHECK(*places[n] == (tiny.tensors.at(layer_1 + norms[n].first + ".weight").col(0).array() + 1).matrix());
    CHECK(checkpoint.weights.norm == (tiny.tensors.at("model.norm.weight").col(0).array() + 1).matrix());
    for (const auto& [name, width] : norms) {
      TinyCheckpoint broken = tiny;
      broken.tensors.erase(layer_0 + name + ".weight");
      CHECK_THROWS_WITH(loaded(broken), contains("'" + layer_0 + name + ".weight' is missing"));
      broken.put(layer_0 + name + ".weight", width + 1, 1);
      CHECK_THROWS_WITH(loaded(broken), contains(name) && contains("expected [" + std::to_string(width) + "] by the config"));
    }

    // A trained norm of an adapter is stored in the same way.
    const Decoder<float> decoder = decoder_of(tiny);
    TinyAdapter adapter;
    adapter.tensors.clear();
    adapter.config["target_modules"] = nullptr;
    adapter.config["modules_to_save"] = {"norm", "layernorm"};
    TinyCheckpoint changed = tiny;
    for (const std::string& module : {layer_1 + norms.back().first, std::string("model.norm"), layer_0 + "input_layernorm"})
      changed.tensors.at(module + ".weight") = adapter.put(TinyAdapter::name(module, "weight"), tiny.tensors.at(module + ".weight").rows());
    const ModelAdapter<float> trained = bound(adapter, decoder);
    CHECK(same_bits(logits_under(decoder, &trained), logits_under(decoder_of(changed))));
    CHECK_FALSE(same_bits(logits_under(decoder, &trained), logits_under(decoder)));
  }
}

TEST_CASE("family folders: decoders inside larger models, by their tensors' place", "[io]") {
  const TinyCheckpoint plain;
  const Checkpoint<float> expected = loaded(plain);
  const Matrix<float> logits = decoder_of(plain).forward(family_ids);
  const struct {
    const char *wrapper, *prefix, *head, *tower;
  } places[] = {{"llava", "model.language_model.", "lm_head.weight", "model.vision_tower.x.weight"},
                {"llava", "language_model.model.", "language_model.lm_head.weight", "vision_tower.layers.0.input_layernorm.weight"},
                {"smolvlm", "model.text_model.", "lm_head.weight", "model.vision_model.x.weight"},
                {"idefics3", "model.", "lm_head.weight", "visual.blocks.0.attn.qkv.weight"}};
  for (const auto& [wrapper, prefix, head, tower] : places) {
    INFO(prefix);
    TinyCheckpoint tiny = renamed(plain, [&, p = std::string(prefix), h = std::string(head)](const std::string& name) {
      return name == "lm_head.weight" ? h : put_before(p, name);
    });
    tiny.config = R"({"model_type":")" + std::string(wrapper) + R"(","text_config":)" + tiny.config + "}";
    tiny.put(tower, 3, 2);
    tiny.put("multi_modal_projector.linear_1.weight", 3, 2);
    const Checkpoint<float> checkpoint = loaded(tiny);
    CHECK(checkpoint.config == expected.config);
    CHECK(checkpoint.weights.fingerprint == expected.weights.fingerprint);  // sessions move between them
    std::vector<std::string> ignored{tower, "multi_modal_projector.linear_1.weight"};
    std::sort(ignored.begin(), ignored.end());
    CHECK(checkpoint.ignored == ignored);
    CHECK(same_bits(decoder_of(tiny).forward(family_ids), logits));

    TinyCheckpoint moved = tiny;  // a head where another place has it
    const std::string elsewhere = std::string(head) == "lm_head.weight" ? "language_model.lm_head.weight" : "lm_head.weight";
    moved.tensors[elsewhere] = moved.tensors.at(head);
    moved.tensors.erase(head);
    CHECK(same_bits(decoder_of(moved).forward(family_ids), logits));

    TinyCheckpoint broken = tiny;
    broken.tensors.erase(head);
    CHECK_THROWS_WITH(loaded(broken), contains("'" + std::string(head) + "' is missing; tie_word_embeddings is false"));
    broken.config.insert(1, "\"tie_word_embeddings\":true,");
    CHECK_NOTHROW(loaded(broken));
    broken = tiny;
    broken.put(std::string(prefix) + "layers.1.mlp.router.weight", 2, 2);
    CHECK_THROWS_AS(loaded(broken), UnsupportedError);

    // An adapter names its modules as the model that it was trained on does.
    TinyAdapter adapter, inside;
    inside.tensors.clear();
    for (const auto& [name, values] : adapter.tensors) {
      const std::string start = "base_model.model.";
      inside.put(start + put_before(prefix, name.substr(start.size())), values.rows(), values.cols()) = values;
    }
    const Decoder<float> decoder = decoder_of(plain), within = decoder_of(tiny);
    const ModelAdapter<float> outer = bound(adapter, decoder), inner = bound(inside, within);
    CHECK(inner.fingerprint() == outer.fingerprint());
    CHECK(same_bits(logits_under(within, &inner), logits_under(decoder, &outer)));
    inside.lora("vision_tower.layers.0.q_proj", 8, 2, 8);
    CHECK_THROWS_WITH(bound(inside, within), contains("changes module 'vision_tower.layers.0.q_proj', which the decoder does not have"));
  }
}

TEST_CASE("family folders: adapters of joined modules change the rows of each projection", "[io]") {
  TinyCheckpoint plain;
  for (const std::string& layer : {layer_0, layer_1}) {
    plain.put(layer + "self_attn.q_proj.bias", 8, 1);
    plain.put(layer + "self_attn.k_proj.bias", 4, 1);
    plain.put(layer + "self_attn.v_proj.bias", 4, 1);
  }
  for (const bool dora : {false, true})
    for (const bool biased : {false, true}) {
      INFO((dora ? "DoRA" : "LoRA") << (biased ? " with biases" : ""));
      const TinyCheckpoint split_base = biased ? plain : TinyCheckpoint(), fused_base = fused(split_base);
      const auto [split, joined] = split_and_fused(dora, biased);
      const Decoder<float> decoder = decoder_of(split_base), fused_decoder = decoder_of(fused_base);
      const ModelAdapter<float> expected = bound(split, decoder), adapter = bound(joined, fused_decoder);
      CHECK(adapter.fingerprint() == expected.fingerprint());  // the same numbers in the same places
      CHECK(same_bits(logits_under(fused_decoder, &adapter), logits_under(decoder, &expected)));
      CHECK_FALSE(same_bits(logits_under(fused_decoder, &adapter), logits_under(fused_decoder)));
      const Decoder<float> mapped = decoder_of(fused_base, WeightsLayout::mapped);
      const ModelAdapter<float> over_mapped = bound(joined, mapped);
      CHECK(same_bits(logits_under(mapped, &over_mapped), logits_under(fused_decoder, &adapter)));
    }
}

TEST_CASE("family folders: patterns, targets and saved modules go by the joined name", "[io]") {
  const TinyCheckpoint base = fused({});
  const Decoder<float> decoder = decoder_of(base);
  TinyAdapter adapter;
  adapter.tensors.clear();
  adapter.config["target_modules"] = {"qkv_proj"};
  adapter.config["rank_pattern"] = {{"layers.1.self_attn.qkv_proj", 3}};
  adapter.config["alpha_pattern"] = {{"layers.1.self_attn.qkv_proj", 6}};
  adapter.lora(layer_0 + "self_attn.qkv_proj", 16, 2, 8);
  adapter.lora(layer_1 + "self_attn.qkv_proj", 16, 3, 8);
  const ModelAdapter<float> bound_to = bound(adapter, decoder);
  for (const Projection p : {Projection::q, Projection::k, Projection::v}) {
    CHECK(bound_to.projection(0, p)->terms[0].rank() == 2);
    CHECK(bound_to.projection(1, p)->terms[0].rank() == 3);
    CHECK(bound_to.projection(1, p)->terms[0].gains == Vector<float>::Constant(3, 2));
  }
  CHECK(bound_to.projection(0, Projection::o) == nullptr);

  // The same change, made in the weights.
  TinyCheckpoint merged = base;
  for (const std::string& layer : {layer_0, layer_1}) {
    const std::string module = layer + "self_attn.qkv_proj";
    merged.tensors.at(module + ".weight") += 2.f * (adapter.tensors.at(TinyAdapter::name(module, "lora_B.weight")) *
                                                    adapter.tensors.at(TinyAdapter::name(module, "lora_A.weight")));
  }
  const Matrix<float> expected = logits_under(decoder_of(merged));
  CHECK(pith_test::near(logits_under(decoder, &bound_to), expected, 1e-4 * expected.cwiseAbs().maxCoeff()));

  TinyAdapter saved;
  saved.tensors.clear();
  saved.config["target_modules"] = nullptr;
  saved.config["modules_to_save"] = {"gate_up_proj"};
  TinyCheckpoint changed = base;
  for (const std::string& layer : {layer_0, layer_1})
    changed.tensors.at(layer + "mlp.gate_up_proj.weight") = saved.put(TinyAdapter::name(layer + "mlp.gate_up_proj", "weight"), 12, 8);
  const ModelAdapter<float> replaced = bound(saved, decoder);
  CHECK(same_bits(logits_under(decoder, &replaced), logits_under(decoder_of(changed))));

  const auto refused = [&](const TinyAdapter& wrong, const std::string& message) {
    CHECK_THROWS_AS(bound(wrong, decoder), FormatError);
    CHECK_THROWS_WITH(bound(wrong, decoder), contains(message));
  };
  TinyAdapter narrow = adapter;
  narrow.put(TinyAdapter::name(layer_0 + "self_attn.qkv_proj", "lora_B.weight"), 15, 2);
  refused(narrow, "adapts module 'model.layers.0.self_attn.qkv_proj' as [15, 8], expected [16, 8] by the decoder");
  TinyAdapter missing = adapter;
  missing.tensors.erase(TinyAdapter::name(layer_1 + "self_attn.qkv_proj", "lora_A.weight"));
  missing.tensors.erase(TinyAdapter::name(layer_1 + "self_attn.qkv_proj", "lora_B.weight"));
  refused(missing, "holds no lora_A of module 'model.layers.1.self_attn.qkv_proj', which its target_modules name");
  refused(TinyAdapter(), "changes module 'model.layers.0.mlp.up_proj', which the decoder does not have");
  TinyAdapter part = saved;
  part.put(TinyAdapter::name(layer_0 + "mlp.gate_up_proj", "weight"), 6, 8);
  refused(part, "replaces module 'model.layers.0.mlp.gate_up_proj' as [6, 8], expected [12, 8] by the decoder");
}

TEST_CASE("family folders: saved sessions know every field of a config", "[io]") {
  const auto hash = [](const DecoderConfig& config) {
    pith::detail::Fingerprint f;
    pith::detail::hash_config(f, config);
    return f.value();
  };
  DecoderConfig base = parse_config(R"({"model_type":"olmo3","rope_theta":500,"num_hidden_layers":3,"vocab_size":5})");
  base.ropes[0].scaling = {.type = RopeType::longrope, .short_factor = {1, 2}, .long_factor = {3, 4}};
  const std::function<void(DecoderConfig&)> changes[] = {
      [](auto& c) { c.model_type = "olmo2"; },
      [](auto& c) { ++c.vocab_size; },
      [](auto& c) { ++c.hidden_size; },
      [](auto& c) { ++c.intermediate_size; },
      [](auto& c) { c.num_hidden_layers = 2; },
      [](auto& c) { ++c.num_attention_heads; },
      [](auto& c) { ++c.num_key_value_heads; },
      [](auto& c) { ++c.head_dim; },
      [](auto& c) { ++c.max_position_embeddings; },
      [](auto& c) { c.norm = NormKind::layer; },
      [](auto& c) { c.norm_eps *= 2; },
      [](auto& c) { c.norm_plus_one = true; },
      [](auto& c) { c.activation = GateActivation::gelu; },
      [](auto& c) { c.embedding_scale = 2; },
      [](auto& c) { c.input_scale = 2; },
      [](auto& c) { c.logits_scale = 2; },
      [](auto& c) { c.logits_softcap = 2; },
      [](auto& c) { c.tie_word_embeddings = true; },
      [](auto& c) { c.layers[1].window = 7; },
      [](auto& c) { c.layers[1].rope = LayerSpec::no_rope; },
      [](auto& c) { c.layers[1].qk_norm = QkNorm::head; },
      [](auto& c) { c.layers[1].pre_attention = true; },
      [](auto& c) { c.layers[1].pre_mlp = true; },
      [](auto& c) { c.layers[1].post_attention = false; },
      [](auto& c) { c.layers[1].post_mlp = false; },
      [](auto& c) { c.layers[1].parallel = true; },
      [](auto& c) { c.layers[1].attention_scale = 2; },
      [](auto& c) { c.layers[1].attention_softcap = 2; },
      [](auto& c) { c.layers[1].residual_scale = 2; },
      [](auto& c) { c.layers[1].query_scale.beta = 2; },
      [](auto& c) { c.layers[1].query_scale.length = 2; },
      [](auto& c) { c.ropes.pop_back(); },
      [](auto& c) { c.ropes[0].theta = 501; },
      [](auto& c) { c.ropes[0].rotary_dim = 8; },
      [](auto& c) { c.ropes[0].interleaved = true; },
      [](auto& c) { c.ropes[0].scaling.type = RopeType::yarn; },
      [](auto& c) { c.ropes[0].scaling.factor = 2; },
      [](auto& c) { c.ropes[0].scaling.low_freq_factor = 2; },
      [](auto& c) { c.ropes[0].scaling.high_freq_factor = 2; },
      [](auto& c) { c.ropes[0].scaling.original_max_position_embeddings = 2; },
      [](auto& c) { c.ropes[0].scaling.beta_fast = 2; },
      [](auto& c) { c.ropes[0].scaling.beta_slow = 2; },
      [](auto& c) { c.ropes[0].scaling.truncate = false; },
      [](auto& c) { c.ropes[0].scaling.mscale = 2; },
      [](auto& c) { c.ropes[0].scaling.mscale_all_dim = 2; },
      [](auto& c) { c.ropes[0].scaling.attention_factor = 2; },
      [](auto& c) { c.ropes[0].scaling.short_factor[1] = 3; },
      [](auto& c) { c.ropes[0].scaling.long_factor.push_back(5); },
      [](auto& c) {
        c.ropes[0].scaling.short_factor = {1, 2, 3}, c.ropes[0].scaling.long_factor = {4};
      },
  };
  std::vector<std::uint64_t> seen{hash(base)};
  for (const auto& change : changes) {
    DecoderConfig changed = base;
    change(changed);
    CHECK_FALSE(changed == base);
    const std::uint64_t value = hash(changed);
    CHECK(std::find(seen.begin(), seen.end(), value) == seen.end());
    seen.push_back(value);
  }
  DecoderConfig other = base;  // what ends a text and what files hold change no cached row
  other.eos_token_id = {7};
  other.bos_token_id = 7;
  other.attention_bias = other.mlp_bias = true;
  CHECK(hash(other) == hash(base));
}

}}  // namespace
