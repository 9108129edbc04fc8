// Replays every checkpoint and cache trace of the published reference code under <golden>/model.
//
// Everything (shapes, budgets, rules) comes from the files: a directory is what it holds, a trace is what its metadata says. Adapter
// folders, image prompts and the traces of other tests are known by the same marks and left to them; anything else fails.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "golden/support/golden_file.hpp"
#include "golden/support/model_trace.hpp"
#include "support/catch.hpp"

using namespace pith;
using namespace pith_test;
namespace fs = std::filesystem;

namespace {

constexpr double logits_bound = 1e-4;  // what the files' README allows a float32 implementation

fs::path golden() { return golden_folder("model"); }

Token argmax(ConstVectorRef<float> row) {
  Index best = 0;
  for (Index i = 1; i < row.size(); ++i)
    if (row[i] > row[best]) best = i;
  return static_cast<Token>(best);
}

// ------------------------------------------------------------------------------------------------------------ checkpoints

/// One call at a time after a prefill: rows of logits as the calls return them.
void check_steps(const Decoder<float>& decoder, std::span<const Token> ids, const Tensor& expected) {
  auto session = decoder.start(Dense{}, room_for(ids.size()));
  const std::size_t prompt = ids.size() - static_cast<std::size_t>(expected.extent(0)) + 1;
  CHECK(distance(session.prefill(ids.first(prompt)).row(0), expected.row({0})) < logits_bound);
  for (std::size_t i = prompt; i < ids.size(); ++i)
    CHECK(distance(session.decode(ids[i]).row(0), expected.row({static_cast<Index>(i - prompt + 1)})) < logits_bound);
}

void check_greedy(const Decoder<float>& decoder, std::span<const Token> prompt, Golden& golden) {
  const std::vector<Token> expected = golden.ids("greedy_ids");
  const Tensor margin = golden.get("greedy_margin");
  auto session = decoder.start(Dense{}, room_for(prompt.size() + expected.size()));
  Vector<float> row = session.prefill(prompt).row(0);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    REQUIRE(argmax(row) == expected[i]);
    const float top = row[expected[i]];
    row[expected[i]] = -std::numeric_limits<float>::infinity();
    CHECK(std::abs(double(top - row.maxCoeff()) - margin.values[static_cast<Index>(i)]) < 2 * logits_bound);
    row = session.decode(expected[i]).row(0);
  }
}

/// Cached decoding is full recomputation: bit for bit where the angles of a token do not depend on who follows it.
void check_cached(const Decoder<float>& decoder, std::span<const Token> ids, const Matrix<float>& full) {
  const bool moving =
      decoder.config().rope_scaling.type == RopeType::dynamic && static_cast<Index>(ids.size()) > decoder.config().max_position_embeddings;
  if (moving) return;
  auto session = decoder.start(Dense{}, room_for(ids.size()));
  const std::size_t prompt = ids.size() / 2;
  CHECK(session.prefill(ids.first(prompt)).row(0) == full.row(static_cast<Index>(prompt) - 1));
  for (std::size_t i = prompt; i < ids.size(); ++i) CHECK(session.decode(ids[i]).row(0) == full.row(static_cast<Index>(i)));
}

void check_config(const fs::path& folder, const std::string& config, const fs::path& golden_file) {
  INFO(folder.string() << ", " << config << " against " << golden_file.filename().string());
  const Decoder<float> decoder = load(folder, config, WeightsLayout::packed);
  Golden golden(golden_file);
  const std::vector<Token> ids = golden.ids("input_ids");
  const Tensor logits = golden.get("logits");
  std::optional<Tensor> states;
  if (golden.has("hidden_states")) states = golden.get("hidden_states");
  Index layers_seen = 0;
  const Matrix<float> full = decoder.forward(ids, [&](Index layer, ConstMatrixRef<float> hidden) {
    ++layers_seen;
    if (!states) return;
    for (Index t = 0; t < states->extent(1); ++t) CHECK(distance(hidden.row(t), states->row({layer, t})) < logits_bound);
  });
  CHECK(layers_seen == (states ? states->extent(0) : layers_seen));
  REQUIRE(full.rows() == logits.extent(0));
  for (Index t = 0; t < full.rows(); ++t) CHECK(distance(full.row(t), logits.row({t})) < logits_bound);
  CHECK(load(folder, config, WeightsLayout::mapped).forward(ids) == full);  // mapped weights: the same bits
  check_cached(decoder, ids, full);
  if (golden.has("step_logits")) check_steps(decoder, ids, golden.get("step_logits"));
  if (golden.has("greedy_ids")) check_greedy(decoder, ids, golden);
  if (golden.has("inv_freq")) {
    const Tensor inv_freq = golden.get("inv_freq");
    const DecoderConfig& c = decoder.config();
    const Rope<float> rope(
        {.head_dim = c.head_dim, .theta = c.rope_theta, .scaling = c.rope_scaling, .max_position_embeddings = c.max_position_embeddings});
    for (Index i = 0; i < inv_freq.width(); ++i)
      CHECK(std::abs(double(rope.inv_freq()[i]) - inv_freq.values[i]) <=
            4 * double(std::numeric_limits<float>::epsilon()) * inv_freq.values[i]);
  }
  golden.done();
}

/// golden.X.safetensors is of config.X.json; a config without its own is another spelling of config.json.
void check_checkpoint(const fs::path& folder) {
  std::map<std::string, fs::path> goldens;
  std::vector<std::string> configs;
  const auto middle = [](const std::string& name, std::string_view before, std::string_view after) -> std::optional<std::string> {
    if (name.size() < before.size() + after.size() || name.rfind(before, 0) != 0 || !name.ends_with(after)) return {};
    return name.substr(before.size(), name.size() - before.size() - after.size());
  };
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (const auto suffix = middle(name, "golden", ".safetensors"))
      goldens[*suffix] = entry.path();
    else if (middle(name, "config", ".json"))
      configs.push_back(name);
    else if (!middle(name, "model", ".safetensors") && name != "model.safetensors.index.json")
      FAIL_CHECK("nobody tests " << entry.path().string());
  }
  std::set<std::string> used;
  for (const std::string& config : configs) {
    const std::string suffix = *middle(config, "config", ".json");
    const std::string of = goldens.count(suffix) == 1 ? suffix : "";
    REQUIRE(goldens.count(of) == 1);
    used.insert(of);
    check_config(folder, config, goldens[of]);
  }
  for (const auto& [suffix, path] : goldens)
    if (used.count(suffix) == 0) FAIL_CHECK("no config for " << path.string());
}

// ------------------------------------------------------------------------------------------------------------ traces

AnyPolicy<float> policy_of(const Golden& trace) {
  if (trace.says("heavy")) return HeavyHitter{.heavy = trace.number("heavy"), .recent = trace.number("recent")};
  if (!trace.says("sinks")) return Dense{};
  if (trace.number("sinks") == 0) return Window{.window = trace.number("recent")};
  return SinkWindow{.sinks = trace.number("sinks"), .window = trace.number("recent")};
}

}  // namespace

TEST_CASE("golden.model: every checkpoint, config spelling and cache trace", "[golden]") {
  int checkpoints = 0, traces = 0, left_to_others = 0;
  ThreadPool pool(2);
  REQUIRE(fs::is_directory(golden()));
  for (const auto& entry : fs::directory_iterator(golden())) {
    if (entry.is_regular_file() && entry.path().extension() == ".md") continue;
    REQUIRE(entry.is_directory());
    if (fs::exists(entry.path() / "adapter_config.json")) {
      ++left_to_others;  // golden.peft
    } else if (fs::exists(entry.path() / "config.json")) {
      check_checkpoint(entry.path());
      ++checkpoints;
    } else {
      for (const auto& file : fs::directory_iterator(entry.path())) {
        if (file.path().extension() != ".safetensors") {
          FAIL_CHECK("nobody tests " << file.path().string());
          continue;
        }
        Golden trace(file.path());
        switch (owner(trace)) {
          case Owner::model:
            check_trace(file.path(), trace, policy_of(trace), traces % 2 == 0 ? ExecutorRef(serial) : ExecutorRef(pool));
            ++traces;
            break;
          case Owner::nobody:
            FAIL_CHECK("nobody tests " << file.path().string());
            break;
          default:
            ++left_to_others;
        }
      }
    }
  }
  CHECK(checkpoints > 0);
  CHECK(traces > 0);
  std::printf("golden.model: %d checkpoints, %d traces replayed; %d left to golden.kv, golden.peft and golden.merge\n", checkpoints, traces,
              left_to_others);
}
