// Replays every folder under <golden>/families: checkpoints of each family, adapters over them, traces of evicting caches, and configs
// alone, with what they resolve to or why they are refused.
//
// Everything comes from the files: what a directory is, it holds; anything that no test reads fails.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "golden/support/adapter_replay.hpp"
#include "golden/support/checkpoint_replay.hpp"
#include "golden/support/golden_file.hpp"
#include "golden/support/model_trace.hpp"
#include "support/catch.hpp"

using namespace pith;
using namespace pith_test;
namespace fs = std::filesystem;

namespace golden_families {
namespace {

// What the files' README allows a float32 implementation.
constexpr CheckpointBounds bounds{.logits = 1e-4, .states_relative = 3e-6, .inv_freq = 1e-6, .attention_factor = 1e-6};

nlohmann::json read_json(const fs::path& path) {
  std::ifstream file(path);
  INFO(path.string());
  REQUIRE(file.good());
  return nlohmann::json::parse(file);
}

// ------------------------------------------------------------------------------------------------------------ configs

bool same(double ours, double theirs, double relative) { return std::abs(ours - theirs) <= relative * std::abs(theirs); }
double number_or(const nlohmann::json& value, double if_null) { return value.is_null() ? if_null : value.get<double>(); }

/// The table of a rope against a list, or nothing where the list is absent.
void check_table(const RopeOptions& options, const nlohmann::json& rope, const char* key) {
  INFO(key);
  if (!rope.contains(key)) return;
  const Rope<float> ours(options);
  REQUIRE(static_cast<std::size_t>(ours.inv_freq().size()) == rope[key].size());
  for (Index i = 0; i < ours.inv_freq().size(); ++i) CHECK(same(double(ours.inv_freq()[i]), rope[key][std::size_t(i)], bounds.inv_freq));
}

void check_rope(const RopeOptions& ours, const nlohmann::json& rope) {
  constexpr const char* kinds[] = {"default", "linear", "dynamic", "llama3", "yarn", "longrope"};
  CHECK(kinds[static_cast<int>(ours.scaling.type)] == rope["kind"].get<std::string>());
  CHECK(ours.theta == rope["theta"].get<double>());
  CHECK(ours.rotary_width() == rope["rotary_dim"].get<Index>());
  CHECK(ours.interleaved == rope["interleaved"].get<bool>());
  if (rope.contains("original_max_position_embeddings"))
    CHECK(ours.scaling.original_max_position_embeddings == rope["original_max_position_embeddings"].get<Index>());
  CHECK(std::abs(pith::detail::rope_attention_factor(ours) - rope["attention_factor"].get<double>()) <= bounds.attention_factor);
  check_table(ours.at_length(1), rope, "inv_freq");
  check_table(ours.at_length(max_config_size), rope, "inv_freq_long");
}

/// What a config resolves to, field by field.
void check_resolved(const DecoderConfig& c, const nlohmann::json& expected) {
  const pith::detail::Family* family = pith::detail::find_family(c.model_type);
  REQUIRE(family != nullptr);
  std::set<std::string> read;
  const auto at = [&](const char* key) -> const nlohmann::json& {
    INFO(key);
    REQUIRE(expected.contains(key));
    read.insert(key);
    return expected[key];
  };
  CHECK(c.model_type == at("family").get<std::string>());
  CHECK(c.num_attention_heads == at("num_attention_heads").get<Index>());
  CHECK(c.num_key_value_heads == at("num_key_value_heads").get<Index>());
  CHECK(c.head_dim == at("head_dim").get<Index>());
  CHECK(c.hidden_size == at("hidden_size").get<Index>());
  CHECK(c.intermediate_size == at("intermediate_size").get<Index>());
  CHECK(c.num_hidden_layers == at("num_hidden_layers").get<Index>());
  CHECK(c.norm_eps == at("eps").get<double>());
  CHECK((c.norm == NormKind::rms ? "rms" : "layer") == at("norm").get<std::string>());
  CHECK(c.norm_plus_one == at("norm_plus_one").get<bool>());
  constexpr const char* activations[] = {"silu", "gelu_pytorch_tanh", "gelu"};
  CHECK(activations[static_cast<int>(c.activation)] == at("activation").get<std::string>());
  CHECK(c.tie_word_embeddings == at("tied").get<bool>());
  CHECK(same(c.embedding_scale * c.input_scale, at("embedding_scale").get<double>(), 1e-12));
  CHECK(same(c.logits_scale, at("logits_scale").get<double>(), 1e-12));
  CHECK(c.logits_softcap == number_or(at("logits_softcap"), 0));
  CHECK(family->fused_qkv == at("fused_qkv").get<bool>());
  CHECK(family->fused_gate_up == at("fused_gate_up").get<bool>());

  const double scale = at("attention_scale").get<double>(), cap = number_or(at("attention_softcap"), 0),
               residual = at("residual_scale").get<double>();
  const nlohmann::json &qk_norm = at("qk_norm"), &query_scale = at("query_scale"), &windows = at("window"), &ropes = at("rope"),
                       &list = at("ropes");
  const QkNorm norm = qk_norm.is_null() ? QkNorm::none : qk_norm == "head" ? QkNorm::head : QkNorm::projection;
  const bool parallel = at("parallel").get<bool>();
  const std::set<std::string> norms = at("norms");
  REQUIRE(windows.size() == static_cast<std::size_t>(c.num_hidden_layers));
  REQUIRE(ropes.size() == windows.size());
  for (Index l = 0; l < c.num_hidden_layers; ++l) {
    INFO("layer " << l);
    const LayerSpec layer = c.layer(l);
    CHECK(layer.window == windows[std::size_t(l)].get<Index>());
    CHECK(layer.rope == ropes[std::size_t(l)].get<Index>());
    CHECK(layer.qk_norm == norm);
    CHECK(layer.parallel == parallel);
    CHECK(same(layer.attention_scale > 0 ? layer.attention_scale : 1 / std::sqrt(static_cast<double>(c.head_dim)), scale, 1e-12));
    CHECK(layer.attention_softcap == cap);
    CHECK(layer.residual_scale == residual);
    CHECK((layer.query_scale.on() ? layer.query_scale.beta : 0) == (query_scale.is_null() ? 0 : query_scale[0].get<double>()));
    if (layer.query_scale.on()) CHECK(layer.query_scale.length == query_scale[1].get<Index>());
    std::set<std::string> ours;
    if (layer.pre_attention) ours.insert("pre_attn");
    if (layer.post_attention) ours.insert("post_attn");
    if (layer.pre_mlp) ours.insert("pre_mlp");
    if (layer.post_mlp) ours.insert("post_mlp");
    CHECK(ours == norms);
  }
  REQUIRE(c.ropes.size() == list.size());
  for (std::size_t i = 0; i < list.size(); ++i) {
    INFO("rope " << i);
    check_rope(c.rope(static_cast<Index>(i)), list[i]);
  }
  for (const auto& [key, value] : expected.items())
    if (read.count(key) == 0) FAIL_CHECK("nobody tests " << key);
}

void check_refused(const fs::path& folder) {
  const nlohmann::json reasons = read_json(folder / "reasons.json");
  std::set<std::string> named, found;
  for (const auto& [name, reason] : reasons.items()) named.insert(name);
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().filename() == "reasons.json") continue;
    INFO(entry.path().string());
    found.insert(entry.path().stem().string());
    try {
      read_config(entry.path());
      FAIL_CHECK("accepted");
    } catch (const FormatError& error) {
      CHECK_THAT(error.what(), contains(entry.path().filename().string()));
    } catch (const UnsupportedError& error) {
      CHECK_THAT(error.what(), contains(entry.path().filename().string()));
    }
  }
  CHECK(found == named);
}

int check_configs(const fs::path& folder) {
  const nlohmann::json expected = read_json(folder / "expected.json");
  std::set<std::string> named, found;
  for (const auto& [name, values] : expected.items()) named.insert(name);
  for (const auto& entry : fs::directory_iterator(folder)) {
    INFO(entry.path().string());
    if (entry.is_directory()) {
      REQUIRE(entry.path().filename() == "refused");
      check_refused(entry.path());
    } else if (entry.path().filename() != "expected.json") {
      const std::string name = entry.path().stem().string();
      found.insert(name);
      REQUIRE(named.count(name) == 1);
      check_resolved(read_config(entry.path()), expected[name]);
    }
  }
  CHECK(found == named);
  return static_cast<int>(found.size());
}

// ------------------------------------------------------------------------------------------------------------ traces

void check_streaming(const fs::path& path, ExecutorRef executor) {
  Golden trace(path);
  INFO(path.string());
  REQUIRE(trace.word("kind") == "streaming");
  check_trace(path, trace, SinkWindow{.sinks = trace.number("initial"), .window = trace.number("recent")}, executor);
}

}  // namespace

TEST_CASE("golden.families: every checkpoint, adapter, trace and config", "[golden]") {
  int checkpoints = 0, adapters = 0, traces = 0, configs = 0;
  ThreadPool pool(2);
  const fs::path root = golden_folder("families");
  REQUIRE(fs::is_directory(root));
  for (const auto& entry : fs::directory_iterator(root)) {
    if (entry.is_regular_file() && entry.path().extension() == ".md") continue;
    REQUIRE(entry.is_directory());
    if (fs::exists(entry.path() / "adapter_config.json")) {
      check_adapter(entry.path(), bounds.logits);
      ++adapters;
    } else if (fs::exists(entry.path() / "config.json")) {
      CheckpointReplay(entry.path(), bounds).check();
      ++checkpoints;
    } else if (fs::exists(entry.path() / "expected.json")) {
      configs += check_configs(entry.path());
    } else {
      for (const auto& file : fs::directory_iterator(entry.path())) {
        REQUIRE(file.path().extension() == ".safetensors");
        check_streaming(file.path(), traces % 2 == 0 ? ExecutorRef(serial) : ExecutorRef(pool));
        ++traces;
      }
    }
  }
  CHECK(checkpoints > 0);
  CHECK(adapters > 0);
  CHECK(traces > 0);
  CHECK(configs > 0);
  std::printf("golden.families: %d checkpoints, %d adapters, %d traces replayed, %d configs resolved\n", checkpoints, adapters, traces,
              configs);
}

}  // namespace golden_families
