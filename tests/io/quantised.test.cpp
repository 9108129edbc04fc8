#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "io/quantised_folder.hpp"
#include "io/temp_folder.hpp"
#include "io/tiny_adapter.hpp"
#include "support/catch.hpp"

using namespace pith;
using namespace pith_test;
using Json = nlohmann::json;

namespace {

/// What became of the codes of four or eight bits.
enum class Kept { int4, int8, floats };

Checkpoint<float> quantised_of(const QuantisedFolder& folder, LoadOptions options = {}) {
  const TempFolder at;
  folder.write(at);
  return load_checkpoint(at / ".", options);
}

/// Every coded projection holds exactly the numbers that its codes stand for, in panels of this kind, and the decoder computes with them.
void check_quantised(const QuantisedFolder& folder, Kept kept, double bound) {
  const TempFolder at, twin;
  folder.write(at);
  folder.write_twin(twin);
  Checkpoint<float> loaded = load_checkpoint(at / ".");
  std::size_t seen = 0, named = 0;
  const auto check = [&](const std::string& name, const AnyLinear<float>& linear) {
    const auto expected = folder.weights.find(name);
    if (expected == folder.weights.end()) return;
    INFO(name);
    ++seen;
    Matrix<float> ours(linear.out(), linear.in());
    linear.copy_weight(0, ours);
    CHECK(ours == expected->second);
    const double bytes = double(linear.bytes()) / double((linear.out() + 31) / 32 * 32 * linear.in());
    CHECK((kept == Kept::int4 ? bytes < 1 : kept == Kept::int8 ? bytes >= 1 && bytes < 2 : bytes >= 4));
  };
  detail::for_each_projection(
      loaded.weights.layers[0], loaded.config,
      [&](const char* module, const AnyLinear<float>& linear, Index, Index) { check("model.layers.0." + std::string(module), linear); });
  check("lm_head", loaded.weights.lm_head);
  CHECK(seen == folder.weights.size());
  for (const StoredModule& module : loaded.modules) {
    CHECK(module.quantised() == (folder.weights.count(module.name) == 1));
    named += module.quantised();
  }
  CHECK(named == seen);
  CHECK(loaded.modules.size() == 8);

  const Decoder<float> decoder(std::move(loaded.config), std::move(loaded.weights)), floats = load_decoder(twin / ".");
  const std::vector<Token> ids{1, 7, 3, 30, 2};
  const Matrix<float> ours = decoder.forward(ids), theirs = floats.forward(ids);
  CHECK((ours - theirs).cwiseAbs().maxCoeff() <= bound * theirs.cwiseAbs().maxCoeff());
  ThreadPool pool(3);
  CHECK(load_decoder(at / ".", {.weights = WeightsLayout::mapped, .executor = pool}).forward(ids) == ours);
  CHECK(decoder.fingerprint() != floats.fingerprint());
}

constexpr double in_floats = 2e-5, in_15_bits = 2e-3;

Json ct_rule(Json weights, Json targets = {"Linear"}) {
  return {{"targets", targets}, {"weights", weights}, {"input_activations", nullptr}};
}
Json ct_config(const std::string& format, Json weights) {
  return {{"quant_method", "compressed-tensors"},
          {"format", format},
          {"quantization_status", "compressed"},
          {"ignore", {"lm_head"}},
          {"config_groups", {{"group_0", ct_rule(std::move(weights))}}}};
}
Json gptq_config(int bits, int group, Json more = Json::object()) {
  Json out = {{"quant_method", "gptq"}, {"bits", bits}, {"group_size", group}, {"desc_act", false}, {"sym", false}};
  out.update(more);
  return out;
}
Json awq_config(int group) {
  return {{"quant_method", "awq"}, {"bits", 4}, {"group_size", group}, {"zero_point", true}, {"version", "GEMM"}};
}

template <class Make> QuantisedFolder quantised(Json config, const Make& make, QuantisedFolder::Sizes sizes = {}) {
  QuantisedFolder folder(std::move(config), sizes);
  folder.modules([&](const std::string& name, int out, int in) { make(folder, name, out, in); });
  return folder;
}

}  // namespace

TEST_CASE("quantised: AWQ, groups of 32 and of a whole row, outputs that are no multiple of 32", "[io]") {
  const auto make = [](int group) {
    return [group](QuantisedFolder& f, const std::string& name, int out, int in) { f.awq(name, f.random(out, in, 4, group)); };
  };
  check_quantised(quantised(awq_config(32), make(32)), Kept::int4, in_15_bits);
  check_quantised(quantised(awq_config(-1), make(0), {.inner = 40}), Kept::int4, in_15_bits);
  Json llm = awq_config(32);
  llm["backend"] = "llm-awq";
  CHECK_THROWS_AS(quantised_of(quantised(llm, make(32))), UnsupportedError);
}

TEST_CASE("quantised: GPTQ, its zeros, bits, groups and orders", "[io]") {
  const auto make = [](int bits, int group, int less, bool g_idx, int middle = -1) {
    return [=](QuantisedFolder& f, const std::string& name, int out, int in) {
      f.gptq(name, f.random(out, in, bits, group, middle), less, g_idx);
    };
  };
  // v1, without g_idx: random zeros, so that 0 is among them, which is stored as 15.
  check_quantised(quantised(gptq_config(4, 32), make(4, 32, 1, false)), Kept::int4, in_15_bits);
  check_quantised(quantised(gptq_config(4, 32, {{"checkpoint_format", "gptq_v2"}}), make(4, 32, 0, true)), Kept::int4, in_15_bits);
  check_quantised(quantised(gptq_config(4, 32, {{"format", "gptq"}, {"sym", true}}), make(4, 32, 1, true, 8)), Kept::int4, in_15_bits);
  check_quantised(quantised(gptq_config(4, -1), make(4, 0, 1, false)), Kept::int4, in_15_bits);
  check_quantised(quantised(gptq_config(8, 32), make(8, 32, 1, true)), Kept::floats, in_floats);
  check_quantised(quantised(gptq_config(8, -1), make(8, 0, 1, true, 128)), Kept::int8, in_floats);
  check_quantised(quantised(gptq_config(8, -1), make(8, 0, 1, true, 127)), Kept::floats, in_floats);
  // The last group of 104 inputs is short.
  check_quantised(quantised(gptq_config(4, 64), make(4, 64, 1, true), {.hidden = 104, .inner = 104}), Kept::int4, in_15_bits);
}

TEST_CASE("quantised: GPTQ in act-order, a quantised head, modules of their own bits", "[io]") {
  const auto shuffled = [](int group, bool even) {
    return [=](QuantisedFolder& f, const std::string& name, int out, int in) {
      RandomCodes c = f.random(out, in, 4, group);
      std::shuffle(c.group_of.begin(), c.group_of.end(), f.rng);
      if (!even) c.group_of[0] = c.group_of[1] = c.group_of[2] = 1 - c.group_of[0];
      f.gptq(name, c, 1, true);
    };
  };
  const Json act = gptq_config(4, 32, {{"desc_act", true}});
  QuantisedFolder folder = quantised(act, shuffled(32, true));
  check_quantised(folder, Kept::int4, in_15_bits);
  CHECK(quantised_of(folder).modules.front().act_order);
  check_quantised(quantised(gptq_config(4, 64), shuffled(64, true), {.hidden = 104, .inner = 104}), Kept::int4, in_15_bits);

  QuantisedFolder uneven = quantised(act, [](QuantisedFolder& f, const std::string& name, int out, int in) {
    RandomCodes c = f.random(out, in, 4, 32);
    c.group_of[0] = 1;  // 31 inputs in group 0, 33 in group 1
    f.gptq(name, c, 1, true);
  });
  check_quantised(uneven, Kept::floats, in_floats);

  folder.tensors.erase("lm_head.weight");
  folder.config["quantization_config"]["lm_head"] = true;
  folder.gptq("lm_head", folder.random(40, 64, 4, 32), 1, true);
  check_quantised(folder, Kept::int4, in_15_bits);
  folder.config["tie_word_embeddings"] = true;
  CHECK_THROWS_WITH(quantised_of(folder), contains("lm_head.") && contains("tie_word_embeddings is true"));

  const Json dynamic = {{"+:.*\\.mlp\\.", {{"group_size", 64}}}, {"-:.*k_proj", Json::object()}};
  QuantisedFolder own(gptq_config(4, 32, {{"dynamic", dynamic}}), {.inner = 104});
  own.modules([&](const std::string& name, int out, int in) {
    if (name.find("k_proj") != std::string::npos) return own.floats(name, out, in);
    own.gptq(name, own.random(out, in, 4, name.find(".mlp.") != std::string::npos ? 64 : 32), 1, true);
  });
  check_quantised(own, Kept::int4, in_15_bits);
}

TEST_CASE("quantised: compressed-tensors in words and bytes", "[io]") {
  const auto words = [](int bits, int group, bool zeros) {
    return [=](QuantisedFolder& f, const std::string& name, int out, int in) {
      f.packed(name, f.random(out, in, bits, group, zeros ? -1 : 1 << (bits - 1)), zeros);
    };
  };
  const auto bytes = [](int group, bool zeros) {
    return [=](QuantisedFolder& f, const std::string& name, int out, int in) {
      f.bytes(name, f.random(out, in, 8, group, zeros ? -1 : 128), zeros);
    };
  };
  const auto rule = [](int bits, const char* strategy, int group) {
    Json out = {{"num_bits", bits}, {"type", "int"}, {"symmetric", true}, {"strategy", strategy}};
    if (group > 0) out["group_size"] = group;
    return out;
  };
  const std::string pack = "pack-quantized", ints = "int-quantized";
  check_quantised(quantised(ct_config(pack, rule(4, "group", 32)), words(4, 32, false)), Kept::int4, in_15_bits);
  check_quantised(quantised(ct_config(pack, rule(4, "group", 32)), words(4, 32, true)), Kept::int4, in_15_bits);
  check_quantised(quantised(ct_config(pack, rule(8, "group", 32)), words(8, 32, true)), Kept::floats, in_floats);
  // Rows of 36 codes end within a word, and zeros of 36 outputs too.
  check_quantised(quantised(ct_config(pack, rule(4, "channel", 0)), words(4, 0, true), {.hidden = 36, .inner = 36}), Kept::int4,
                  in_15_bits);
  check_quantised(quantised(ct_config(pack, rule(8, "channel", 0)), words(8, 0, false), {.hidden = 36, .inner = 36}), Kept::int8,
                  in_floats);
  check_quantised(quantised(ct_config(ints, rule(8, "channel", 0)), bytes(0, false)), Kept::int8, in_floats);
  check_quantised(quantised(ct_config(ints, rule(8, "channel", 0)), bytes(0, true)), Kept::floats, in_floats);
  check_quantised(quantised(ct_config("naive-quantized", rule(8, "group", 32)), bytes(32, true)), Kept::floats, in_floats);

  QuantisedFolder ordered =
      quantised(ct_config(pack, rule(4, "group", 32)), [](QuantisedFolder& f, const std::string& name, int out, int in) {
        RandomCodes c = f.random(out, in, 4, 32, 8);
        std::shuffle(c.group_of.begin(), c.group_of.end(), f.rng);
        f.packed(name, c, false);
        f.tensors[name + ".weight_g_idx"] = RawTensor::of(DType::i32, {in}, c.group_of);
      });
  check_quantised(ordered, Kept::int4, in_15_bits);
  QuantisedFolder none = quantised(ct_config(pack, rule(4, "group", 32)), [](QuantisedFolder& f, const std::string& name, int out, int in) {
    f.packed(name, f.random(out, in, 4, 32, 8), false);
    f.tensors[name + ".weight_g_idx"] = RawTensor::of(DType::i32, {in}, std::vector<std::int32_t>(std::size_t(in), -1));
  });
  check_quantised(none, Kept::int4, in_15_bits);

  QuantisedFolder old = quantised(ct_config(pack, rule(4, "group", 32)), words(4, 32, false));
  old.config["compression_config"] = old.config["quantization_config"];
  CHECK_THROWS_AS(quantised_of(old), FormatError);  // two of them
  old.config.erase("quantization_config");
  old.config["compression_config"].erase("quant_method");
  check_quantised(old, Kept::int4, in_15_bits);
}

TEST_CASE("quantised: rules of compressed-tensors choose by name, expression and class", "[io]") {
  const auto group = [](int bits, int size) {
    return Json{{"num_bits", bits}, {"type", "int"}, {"strategy", "group"}, {"group_size", size}, {"symmetric", true}};
  };
  Json config = ct_config("pack-quantized", group(4, 32));
  config["config_groups"]["group_1"] = ct_rule(group(8, 16), {"re:.*down_proj", "re:.*never"});
  config["config_groups"]["group_2"] = ct_rule(group(4, 16), {"model.layers.0.self_attn.q_proj"});
  config["config_groups"]["group_3"] = ct_rule(group(8, 64), {"re:q_proj", "re:self_attn"});  // matched from the start only
  config["ignore"] = {"lm_head", "re:.*v_proj"};
  QuantisedFolder folder(config);
  folder.modules([&](const std::string& name, int out, int in) {
    const auto ends = [&](const char* end) { return name.ends_with(end); };
    if (ends("v_proj")) return folder.floats(name, out, in);
    const int bits = ends("down_proj") ? 8 : 4, size = ends("down_proj") || ends("q_proj") ? 16 : 32;
    folder.packed(name, folder.random(out, in, bits, size, 1 << (bits - 1)), false);
  });
  const Checkpoint<float> loaded = quantised_of(folder);
  for (const StoredModule& module : loaded.modules) {
    INFO(module.name);
    const bool down = module.name.ends_with("down_proj"), q = module.name.ends_with("q_proj");
    if (!module.quantised()) continue;
    CHECK(module.bits == (down ? 8 : 4));
    CHECK(module.group == (down || q ? 16 : 32));
    if (!down && !q && !module.name.ends_with("o_proj")) continue;
    const Matrix<float>& expected = folder.weights[module.name];
    Matrix<float> ours(expected.rows(), expected.cols());
    (down ? loaded.weights.layers[0].down_proj
     : q  ? loaded.weights.layers[0].q_proj
          : loaded.weights.layers[0].o_proj)
        .copy_weight(0, ours);
    CHECK(ours == expected);
  }
  folder.config["quantization_config"]["ignore"] = {"lm_head", "re:.*_proj"};
  CHECK_THROWS_WITH(quantised_of(folder), contains("q_proj.weight_packed' holds codes, but no target"));
}

TEST_CASE("quantised: floats of eight bits under every grid of scales", "[io]") {
  const auto scaled = [](int rows, int cols, const std::string& end, DType type, std::vector<Index> shape = {}) {
    return [=](QuantisedFolder& f, const std::string& name, int out, int in) {
      const std::vector<float> scales = f.float8(name, out, in, rows == 0 ? out : rows, cols == 0 ? in : cols);
      const std::vector<Index> grid{rows == 0 ? 1 : (out + rows - 1) / rows, cols == 0 ? 1 : (in + cols - 1) / cols};
      std::vector<std::uint8_t> powers;
      for (const float scale : scales) powers.push_back(static_cast<std::uint8_t>(127 + std::ilogb(scale)));
      const std::vector<Index> its = rows == 0 && cols == 0 ? shape : grid;
      f.tensors[name + end] = type == DType::f32    ? RawTensor::of(type, its, scales)
                              : type == DType::bf16 ? RawTensor::of(type, its, QuantisedFolder::bfloats(scales))
                                                    : RawTensor::of(type, its, powers);
    };
  };
  const auto rule = [](const char* strategy, Json more = Json::object()) {
    Json out = {{"num_bits", 8}, {"type", "float"}, {"strategy", strategy}, {"symmetric", true}};
    out.update(more);
    return ct_config("float-quantized", out);
  };
  const std::string ct = ".weight_scale", inv = ".weight_scale_inv";
  const auto check = [](const QuantisedFolder& folder) { check_quantised(folder, Kept::floats, in_floats); };
  check(quantised(rule("channel"), scaled(1, 0, ct, DType::bf16)));
  check(quantised(rule("tensor"), scaled(0, 0, ct, DType::f32, {1})));
  check(quantised(rule("tensor"), scaled(0, 0, ct, DType::bf16, {})));
  check(quantised(rule("group", {{"group_size", 32}}), scaled(1, 32, ct, DType::bf16)));
  check(quantised(rule("block", {{"block_structure", {48, 40}}}), scaled(48, 40, ct, DType::f32)));
  const auto fp8 = [](Json block) {
    return Json{{"quant_method", "fp8"}, {"activation_scheme", "dynamic"}, {"weight_block_size", std::move(block)}};
  };
  check(quantised(fp8({48, 40}), scaled(48, 40, inv, DType::f32)));
  check(quantised(fp8({32, 32}), scaled(32, 32, inv, DType::bf16)));
  check(quantised(fp8({32, 32}), scaled(32, 32, inv, DType::f8_e8m0)));
  check(quantised(fp8(nullptr), scaled(0, 0, inv, DType::bf16, {})));

  // Scales of activations are no part of a weight.
  QuantisedFolder with_static = quantised({{"quant_method", "fp8"}, {"activation_scheme", "static"}, {"weight_block_size", nullptr}},
                                          scaled(0, 0, inv, DType::f32, {1}));
  with_static.modules([&](const std::string& name, int, int) {
    with_static.tensors[name + ".activation_scale"] = RawTensor::of(DType::f32, {}, std::vector<float>{2});
  });
  check(with_static);
  CHECK(quantised_of(with_static).ignored.size() == 7);

  // A code of NaN.
  with_static.tensors["model.layers.0.mlp.up_proj.weight"].bytes[5] = std::byte{0xff};
  with_static.tensors["model.layers.0.mlp.up_proj.weight"].bytes[64 * 70] = std::byte{0x7f};
  ThreadPool pool(3);
  for (const ExecutorRef executor : {ExecutorRef(serial), ExecutorRef(pool)})  // the first of two
    CHECK_THROWS_WITH(quantised_of(with_static, {.executor = executor}), contains("up_proj.weight': value 5 is NaN"));
  CHECK_NOTHROW(quantised_of(with_static, {.check_finite = false}));
}

TEST_CASE("quantised: bitsandbytes in four and eight bits", "[io]") {
  const Json four = {{"quant_method", "bitsandbytes"}, {"load_in_4bit", true}, {"bnb_4bit_quant_type", "nf4"}};
  const auto table = [](const char* type, int block, DType storage, bool nested) {
    return [=](QuantisedFolder& f, const std::string& name, int out, int in) { f.table4(name, out, in, type, block, storage, nested); };
  };
  // Blocks of 64 straddle rows of 72 and of 100.
  check_quantised(quantised(four, table("nf4", 64, DType::u8, false), {.hidden = 72, .inner = 100}), Kept::floats, in_floats);
  check_quantised(quantised(four, table("nf4", 64, DType::u8, true), {.hidden = 72, .inner = 100}), Kept::floats, in_floats);
  check_quantised(quantised(four, table("fp4", 128, DType::u8, false)), Kept::floats, in_floats);
  check_quantised(quantised(four, table("nf4", 64, DType::bf16, false)), Kept::floats, in_floats);

  const Json eight = {{"quant_method", "bitsandbytes"}, {"load_in_8bit", true}, {"load_in_4bit", false}};
  QuantisedFolder bytes = quantised(eight, [](QuantisedFolder& f, const std::string& name, int out, int in) {
    RandomCodes c = f.random(out, in, 8, 0, 128);
    f.bytes(name, c, false);
    f.tensors.erase(name + ".weight_scale");
    f.tensors[name + ".SCB"] = RawTensor::of(DType::f32, {out}, c.scale);
    f.tensors[name + ".weight_format"] = RawTensor::of(DType::u8, {}, std::vector<std::uint8_t>{0});
    for (float& scale : c.scale) scale /= 127;
    f.weights[name] = c.weight();
  });
  check_quantised(bytes, Kept::int8, in_floats);
  bytes.tensors["model.layers.0.mlp.up_proj.weight_format"].bytes[0] = std::byte{1};
  CHECK_THROWS_WITH(quantised_of(bytes), contains("up_proj.weight_format' is 1, expected 0"));
}

TEST_CASE("quantised: float modules are rounded as asked, codes stay as they are", "[io]") {
  QuantisedFolder folder = quantised(awq_config(32), [](QuantisedFolder& f, const std::string& name, int out, int in) {
    if (name.ends_with("down_proj")) return f.floats(name, out, in);
    f.awq(name, f.random(out, in, 4, 32));
  });
  const Checkpoint<float> packed = quantised_of(folder), int8 = quantised_of(folder, {.weights = WeightsLayout::int8});
  CHECK(int8.weights.layers[0].q_proj.bytes() == packed.weights.layers[0].q_proj.bytes());
  CHECK(int8.weights.layers[0].down_proj.bytes() < packed.weights.layers[0].down_proj.bytes() / 3);

  const Json fp8 = {{"quant_method", "fp8"}, {"weight_block_size", nullptr}};
  QuantisedFolder floats = quantised(fp8, [](QuantisedFolder& f, const std::string& name, int out, int in) {
    f.tensors[name + ".weight_scale_inv"] = RawTensor::of(DType::f32, {1}, f.float8(name, out, in, out, in));
  });
  const Checkpoint<float> rounded = quantised_of(floats, {.weights = WeightsLayout::int8});
  Matrix<float> ours(64, 64);
  rounded.weights.layers[0].q_proj.copy_weight(0, ours);
  const Matrix<float>& exact = floats.weights["model.layers.0.self_attn.q_proj"];
  CHECK((ours - exact).cwiseAbs().maxCoeff() <= exact.cwiseAbs().maxCoeff() / 250);
  CHECK(quantised_of(floats, {.weights = WeightsLayout::int4}).weights.layers[0].q_proj.bytes() == 64 * 64 / 32 * 18);

  const TempFolder at;
  folder.write(at);
  Matrix<double> wide(64, 64);
  load_checkpoint<double>(at / ".").weights.layers[0].q_proj.copy_weight(0, wide);
  CHECK(wide == folder.weights["model.layers.0.self_attn.q_proj"].cast<double>());
}

TEST_CASE("quantised: adapters trained over codes", "[io]") {
  TinyAdapter adapter;
  adapter.tensors.clear();
  adapter.config["use_dora"] = true;
  adapter.lora("model.layers.0.self_attn.q_proj", 64, 2, 64);
  adapter.lora("model.layers.0.mlp.up_proj", 96, 2, 64);
  adapter.put(adapter.name("model.layers.0.self_attn.q_proj", "lora_magnitude_vector"), 64);
  adapter.put(adapter.name("model.layers.0.mlp.up_proj", "lora_magnitude_vector"), 96);
  const Json four = {{"quant_method", "bitsandbytes"}, {"load_in_4bit", true}, {"bnb_4bit_quant_type", "nf4"}};
  const std::vector<Token> ids{1, 7, 3, 30, 2};
  const auto logits = [&](const TempFolder& base) {
    const TempFolder at;
    adapter.write(at);
    const Decoder<float> decoder = load_decoder(base / ".");
    const ModelAdapter<float> overlay = load_adapter(at / ".", decoder);
    auto session = decoder.start(Dense{}, {.max_draft = static_cast<Index>(ids.size())});
    session.use(&overlay);
    return Matrix<float>(session.decode(ids));
  };
  for (const QuantisedFolder& folder : {quantised(four, [](QuantisedFolder&f, const std::string&name, int out,
                                                           int in) { f.table4(name, out, in, "nf4", 64, DType::u8, true); }),
                                        quantised(gptq_config(4, 32), [](QuantisedFolder&f, const std::string&name, int out, int in) {
                                          f.gptq(name, f.random(out, in, 4, 32), 1, true);
                                        })}) {
    const TempFolder base, twin;
    folder.write(base);
    folder.write_twin(twin);
    const Matrix<float> ours = logits(base), theirs = logits(twin), without = load_decoder(twin / ".").forward(ids);
    CHECK((ours - theirs).cwiseAbs().maxCoeff() <= in_15_bits * theirs.cwiseAbs().maxCoeff());
    CHECK((without - theirs).cwiseAbs().maxCoeff() > .1f * theirs.cwiseAbs().maxCoeff());
  }
}

TEST_CASE("quantised: folders that contradict themselves are refused by tensor", "[io]") {
  const auto make = [](QuantisedFolder& f, const std::string& name, int out, int in) { f.gptq(name, f.random(out, in, 4, 32), 1, true); };
  const QuantisedFolder sound = quantised(gptq_config(4, 32), make);
  CHECK_NOTHROW(quantised_of(sound));
  const std::string q = "model.layers.0.self_attn.q_proj";
  const auto refused = [&](const std::string& message, const auto& change) {
    QuantisedFolder folder = sound;
    change(folder);
    INFO(message);
    CHECK_THROWS_WITH(quantised_of(folder), contains(message));
  };
  refused("q_proj.qzeros' is missing", [&](QuantisedFolder& f) { f.tensors.erase(q + ".qzeros"); });
  refused("q_proj.scales' is missing", [&](QuantisedFolder& f) { f.tensors.erase(q + ".scales"); });
  refused("q_proj.weight' is missing", [&](QuantisedFolder& f) { f.tensors.erase(q + ".qweight"); });
  refused("q_proj.g_idx' has no place", [&](QuantisedFolder& f) {
    f.floats(q, 64, 64);
    f.tensors.erase(q + ".qweight");
    f.tensors.erase(q + ".qzeros");
    f.tensors.erase(q + ".scales");
  });
  refused("q_proj.weight' has no place in a llama decoder", [&](QuantisedFolder& f) { f.floats(q, 64, 64); });
  refused("q_proj.qweight' is [8, 32], expected [8, 64]", [&](QuantisedFolder& f) { f.gptq(q, f.random(32, 64, 4, 32), 1, true); });
  refused("q_proj.qweight' is [8, 64], expected [16, 64]", [&](QuantisedFolder& f) { f.config["quantization_config"]["bits"] = 8; });
  refused("q_proj.qzeros' is [2, 8], expected [1, 8]", [&](QuantisedFolder& f) { f.config["quantization_config"]["group_size"] = 64; });
  refused("q_proj.qweight' is I64, expected I32", [&](QuantisedFolder& f) {
    f.tensors[q + ".qweight"] = RawTensor::of(DType::i64, {8, 64}, std::vector<std::int64_t>(512));
  });
  refused("q_proj.g_idx' sends input 3 to group 2, expected one from 0 to 1",
          [&](QuantisedFolder& f) { f.tensors[q + ".g_idx"].bytes[12] = std::byte{2}; });
  refused("q_proj.g_idx' sends input 0 to group -1",
          [&](QuantisedFolder& f) { std::fill_n(f.tensors[q + ".g_idx"].bytes.begin(), 4, std::byte{0xff}); });
  refused("has no 'model.layers.0.self_attn.q_proj.g_idx' beside it", [&](QuantisedFolder& f) {
    f.tensors.erase(q + ".g_idx");
    f.config["quantization_config"]["desc_act"] = true;
  });
  refused("q_proj.qweight' holds codes, but the config leaves its module in float",
          [&](QuantisedFolder& f) { f.config["quantization_config"]["modules_to_not_convert"] = {"self_attn"}; });
  refused("q_proj.qweight' has codes, but `dynamic`", [&](QuantisedFolder& f) {
    f.config["quantization_config"]["dynamic"] = {{"-:.*q_proj", Json::object()}};
  });
  refused("belongs to a quantised checkpoint, but the config has no quantization_config",
          [&](QuantisedFolder& f) { f.config.erase("quantization_config"); });
  refused("scale 3 is NaN or infinite", [&](QuantisedFolder& f) {
    f.tensors[q + ".scales"].bytes[2 * 65] = std::byte{0x80};  // output 1, group 1
    f.tensors[q + ".scales"].bytes[2 * 65 + 1] = std::byte{0x7f};
  });
}

TEST_CASE("quantised: the states of bitsandbytes are checked", "[io]") {
  const Json four = {{"quant_method", "bitsandbytes"}, {"load_in_4bit", true}, {"bnb_4bit_quant_type", "nf4"}};
  const QuantisedFolder sound = quantised(
      four, [](QuantisedFolder& f, const std::string& name, int out, int in) { f.table4(name, out, in, "nf4", 64, DType::u8, true); });
  const std::string q = "model.layers.0.self_attn.q_proj.weight", state = q + ".quant_state.bitsandbytes__nf4";
  const auto refused = [&](const std::string& message, const auto& change) {
    QuantisedFolder folder = sound;
    change(folder);
    INFO(message);
    CHECK_THROWS_WITH(quantised_of(folder), contains(message));
  };
  const auto say = [&](QuantisedFolder& f, const char* key, Json value) {
    const std::vector<std::byte>& bytes = f.tensors[state].bytes;
    Json says = Json::parse(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
    says[key] = std::move(value);
    const std::string text = says.dump();
    f.tensors[state] = RawTensor::of(DType::u8, {Index(text.size())}, std::vector<char>(text.begin(), text.end()));
  };
  refused("key 'shape' is a list of 2, expected [64, 64]", [&](QuantisedFolder& f) { say(f, "shape", {64, 63}); });
  refused("key 'blocksize' is '0'", [&](QuantisedFolder& f) { say(f, "blocksize", 0); });
  refused("absmax' is [64], expected [128]", [&](QuantisedFolder& f) { say(f, "blocksize", 32); });
  refused("key 'quant_type' is '\"int4\"'", [&](QuantisedFolder& f) { say(f, "quant_type", "int4"); });
  refused("nested_absmax' is missing", [&](QuantisedFolder& f) { f.tensors.erase(q + ".nested_absmax"); });
  refused("not valid JSON", [&](QuantisedFolder& f) { f.tensors[state].bytes[0] = std::byte{'x'}; });
  refused("holds 2047 bytes, expected 2048", [&](QuantisedFolder& f) {
    f.tensors[q] = RawTensor::of(DType::u8, {2047, 1}, std::vector<std::uint8_t>(2047));
  });
  refused("has no quant_state beside it",
          [&](QuantisedFolder& f) { std::erase_if(f.tensors, [&](const auto& one) { return one.first.starts_with(q + "."); }); });
  refused("is of codes of 4 bits", [&](QuantisedFolder& f) {
    f.config["quantization_config"] = {{"quant_method", "bitsandbytes"}, {"load_in_8bit", true}};
  });
}
