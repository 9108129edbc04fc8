#pragma once
// Replays a checkpoint folder: config.json, config.X.json, model.safetensors (or shards), and golden.safetensors, golden.X.safetensors with
// what the published code computes.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "golden/support/golden_file.hpp"
#include "golden/support/model_trace.hpp"
#include "support/catch.hpp"

namespace pith_test {

/// What the README of a set allows a float32 implementation.
struct CheckpointBounds {
  double logits = 1e-4;
  double states_relative = 0;                                           ///< hidden states: as logits, and this part of the largest entry
  double inv_freq = 4 * double(std::numeric_limits<float>::epsilon());  ///< relative
  double attention_factor = 1e-6;
  double weights_ulps = 0;  ///< of dequantised.*: units in the last place
};

/// One checkpoint folder, every config and golden file of it.
class CheckpointReplay {
 public:
  CheckpointReplay(std::filesystem::path folder, CheckpointBounds bounds) : folder_(std::move(folder)), bounds_(bounds) {}

  /// golden.X.safetensors is of config.X.json. A config without its own, config.X.Y.json, is another spelling of config.X.json.
  void check() {
    std::vector<std::string> configs;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      const std::string name = entry.path().filename().string();
      if (const auto suffix = middle(name, "golden", ".safetensors"))
        goldens_[*suffix] = entry.path();
      else if (const auto config = middle(name, "config", ".json"))
        configs.push_back(*config);
      else if (!middle(name, "model", ".safetensors") && name != "model.safetensors.index.json")
        FAIL_CHECK("nobody tests " << entry.path().string());
    }
    std::set<std::string> used;
    for (const std::string& suffix : configs) {
      std::string of = suffix;
      while (goldens_.count(of) == 0 && !of.empty()) of.erase(of.rfind('.'));
      INFO(folder_.string() << ": config" << suffix << ".json");
      REQUIRE(goldens_.count(of) == 1);
      used.insert(of);
      if (of != suffix) check_spelling(suffix, of);
      check_config("config" + suffix + ".json", goldens_[of]);
    }
    for (const auto& [suffix, path] : goldens_)
      if (used.count(suffix) == 0) FAIL_CHECK("no config for " << path.string());
  }

 private:
  static std::optional<std::string> middle(const std::string& name, std::string_view before, std::string_view after) {
    if (name.size() < before.size() + after.size() || name.rfind(before, 0) != 0 || !name.ends_with(after)) return {};
    return name.substr(before.size(), name.size() - before.size() - after.size());
  }

  static Token argmax(pith::ConstVectorRef<float> row) {
    Index best = 0;
    for (Index i = 1; i < row.size(); ++i)
      if (row[i] > row[best]) best = i;
    return static_cast<Token>(best);
  }

  /// Two spellings of one model are one model: the same configuration, and sessions saved under one resume under the other.
  void check_spelling(const std::string& suffix, const std::string& of) const {
    const auto loaded = [&](const std::string& name) {
      pith::LoadOptions options{.weights = pith::WeightsLayout::mapped};
      options.config = "config" + name + ".json";
      return pith::load_checkpoint(folder_, options);
    };
    const auto other = loaded(suffix), first = loaded(of);
    CHECK(other.config == first.config);
    CHECK(other.weights.fingerprint == first.weights.fingerprint);
  }

  void check_config(const std::string& config, const std::filesystem::path& golden_file) const {
    INFO(folder_.string() << ", " << config << " against " << golden_file.filename().string());
    const pith::Decoder<float> decoder = load(folder_, config, pith::WeightsLayout::packed);
    Golden golden(golden_file);
    const std::vector<Token> ids = golden.ids("input_ids");
    const Tensor logits = golden.get("logits");
    std::optional<Tensor> states;
    if (golden.has("hidden_states")) states = golden.get("hidden_states");
    const double states_bound = bounds_.logits + (states ? bounds_.states_relative * states->values.cwiseAbs().maxCoeff() : 0);
    Index layers_seen = 0;
    const pith::Matrix<float> full = decoder.forward(ids, [&](Index layer, pith::ConstMatrixRef<float> hidden) {
      ++layers_seen;
      if (!states) return;
      for (Index t = 0; t < states->extent(1); ++t) CHECK(distance(hidden.row(t), states->row({layer, t})) < states_bound);
    });
    CHECK(layers_seen == (states ? states->extent(0) : layers_seen));
    REQUIRE(full.rows() == logits.extent(0));
    for (Index t = 0; t < full.rows(); ++t) CHECK(distance(full.row(t), logits.row({t})) < bounds_.logits);
    CHECK(load(folder_, config, pith::WeightsLayout::mapped).forward(ids) == full);  // mapped weights: the same bits
    check_cached(decoder, ids, full);
    if (golden.has("step_logits")) check_steps(decoder, ids, golden);
    if (golden.has("greedy_ids")) check_greedy(decoder, ids, golden);
    check_ropes(decoder.config(), static_cast<pith::Position>(ids.size()), golden);
    check_weights(config, golden);
    golden.done();
  }

  /// Cached decoding is full recomputation, bit for bit, where the angles of a token do not depend on who follows it. Of longrope's two
  /// tables, the one in force is that of the text so far.
  void check_cached(const pith::Decoder<float>& decoder, std::span<const Token> ids, const pith::Matrix<float>& full) const {
    const pith::DecoderConfig& c = decoder.config();
    const auto length = static_cast<Index>(ids.size());
    bool dynamic = false, two_tables = false;
    for (std::size_t i = 0; i < c.ropes.size(); ++i) {
      const pith::RopeScaling& scaling = c.ropes[i].scaling;
      dynamic = dynamic || (scaling.type == pith::RopeType::dynamic && length > c.max_position_embeddings);
      two_tables = two_tables || (scaling.type == pith::RopeType::longrope && length > scaling.original_max_position_embeddings);
    }
    if (dynamic) return;
    auto session = decoder.start(pith::Dense{}, room_for(ids.size()));
    const std::size_t prompt = ids.size() / 2;
    const auto row = [&](std::size_t i) -> pith::Vector<float> {
      if (two_tables) return decoder.forward(ids.first(i + 1)).bottomRows(1).transpose();
      return full.row(static_cast<Index>(i));
    };
    CHECK(pith::Vector<float>(session.prefill(ids.first(prompt)).row(0)) == row(prompt - 1));
    for (std::size_t i = prompt; i < ids.size(); ++i) CHECK(pith::Vector<float>(session.decode(ids[i]).row(0)) == row(i));
  }

  /// One call at a time after a prefill: rows of logits as the calls return them. step_logits_keep is what a cache gives that should have
  /// been recomputed: some row of ours is far from it.
  void check_steps(const pith::Decoder<float>& decoder, std::span<const Token> ids, Golden& golden) const {
    const Tensor expected = golden.get("step_logits");
    std::optional<Tensor> kept;
    if (golden.has("step_logits_keep")) kept = golden.get("step_logits_keep");
    double from_kept = 0;
    auto session = decoder.start(pith::Dense{}, room_for(ids.size()));
    const std::size_t prompt = ids.size() - static_cast<std::size_t>(expected.extent(0)) + 1;
    const auto check = [&](const pith::Vector<float>& row, Index step) {
      CHECK(distance(row, expected.row({step})) < bounds_.logits);
      if (kept) from_kept = std::max(from_kept, distance(row, kept->row({step})));
    };
    check(session.prefill(ids.first(prompt)).row(0), 0);
    for (std::size_t i = prompt; i < ids.size(); ++i) check(session.decode(ids[i]).row(0), static_cast<Index>(i - prompt + 1));
    if (kept) CHECK(from_kept > 100 * bounds_.logits);
  }

  /// dequantised.<tensor>: the projection that the folder stores as codes.
  void check_weights(const std::string& config, Golden& golden) const {
    const pith::Checkpoint<float> loaded = pith::load_checkpoint(folder_, {.config = config});
    for (pith::Index l = 0; l < loaded.config.num_hidden_layers; ++l)
      pith::detail::for_each_projection(loaded.weights.layers[static_cast<std::size_t>(l)], loaded.config,
                                        [&](const char* module, const pith::AnyLinear<float>& linear, Index rows, Index cols) {
                                          const std::string name =
                                              "dequantised.model.layers." + std::to_string(l) + "." + module + ".weight";
                                          if (!golden.has(name)) return;
                                          INFO(name);
                                          const Tensor expected = golden.get(name);
                                          pith::Matrix<float> ours(rows, cols);
                                          linear.copy_weight(0, ours);
                                          REQUIRE(expected.shape == std::vector<Index>{rows, cols});
                                          double worst = 0;
                                          for (Index i = 0; i < ours.size(); ++i) {
                                            const auto theirs = static_cast<float>(expected.values[i]);
                                            const double unit = double(std::nextafter(std::abs(theirs), 1e30f)) - double(std::abs(theirs));
                                            worst = std::max(worst, std::abs(double(ours.data()[i]) - double(theirs)) / unit);
                                          }
                                          CHECK(worst <= bounds_.weights_ulps);
                                        });
  }

  void check_greedy(const pith::Decoder<float>& decoder, std::span<const Token> prompt, Golden& golden) const {
    const std::vector<Token> expected = golden.ids("greedy_ids");
    const Tensor margin = golden.get("greedy_margin");
    auto session = decoder.start(pith::Dense{}, room_for(prompt.size() + expected.size()));
    pith::Vector<float> row = session.prefill(prompt).row(0);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      REQUIRE(argmax(row) == expected[i]);
      const float top = row[expected[i]];
      row[expected[i]] = -std::numeric_limits<float>::infinity();
      CHECK(std::abs(double(top - row.maxCoeff()) - margin.values[static_cast<Index>(i)]) < 2 * bounds_.logits);
      row = session.decode(expected[i]).row(0);
    }
  }

  /// inv_freq and attention_factor, or those of each layer type, in force for a text of this length.
  void check_ropes(const pith::DecoderConfig& c, pith::Position length, Golden& golden) const {
    for (const std::string of : {"", ".full_attention", ".sliding_attention"}) {
      INFO("rope" << of);
      const auto rope_of_layers = [&]() -> Index {
        for (Index l = 0; l < c.num_hidden_layers; ++l)
          if (of.empty() ? c.layer(l).rope >= 0 : (c.layer(l).window > 0) == (of == ".sliding_attention")) return c.layer(l).rope;
        return pith::LayerSpec::no_rope;
      };
      if (!golden.has("inv_freq" + of) && !golden.has("attention_factor" + of)) continue;
      const Index index = rope_of_layers();
      REQUIRE(index >= 0);
      const pith::RopeOptions options = c.rope(index).at_length(length);
      if (golden.has("inv_freq" + of)) {
        const Tensor inv_freq = golden.get("inv_freq" + of);
        const pith::Rope<float> rope(options);
        REQUIRE(rope.inv_freq().size() == inv_freq.width());
        for (Index i = 0; i < inv_freq.width(); ++i)
          CHECK(std::abs(double(rope.inv_freq()[i]) - inv_freq.values[i]) <= bounds_.inv_freq * inv_freq.values[i]);
      }
      if (golden.has("attention_factor" + of))
        CHECK(std::abs(pith::detail::rope_attention_factor(options) - golden.get("attention_factor" + of).values[0]) <=
              bounds_.attention_factor);
    }
  }

  std::filesystem::path folder_;
  CheckpointBounds bounds_;
  std::map<std::string, std::filesystem::path> goldens_;
};

}  // namespace pith_test
