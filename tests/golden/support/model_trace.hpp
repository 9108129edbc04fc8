#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "golden/support/golden_file.hpp"
#include "support/catch.hpp"

namespace pith_test {

inline constexpr double trace_bound = 2e-4;  // what the files' README allows a float32 implementation

inline pith::Decoder<float> load(const std::filesystem::path& folder, const std::string& config, pith::WeightsLayout layout) {
  pith::LoadOptions options;
  options.config = config;
  options.weights = layout;
  return pith::load_decoder(folder, options);
}

inline pith::SessionOptions room_for(std::size_t tokens) {
  return {.max_prompt = static_cast<Index>(std::max<std::size_t>(tokens, 1)), .max_tokens = static_cast<Index>(tokens) + 128};
}

/// Positions of one head after a call, from [calls, rows] (all layers and heads alike) or [calls, layers, heads, rows]; -1: unused.
inline std::vector<pith::Position> kept_by(const Tensor& kept, Index call, Index layer, Index h) {
  std::vector<pith::Position> out;
  for (const Token p : kept.shape.size() == 2 ? kept.id_row({call}) : kept.id_row({call, layer, h}))
    if (p >= 0) out.push_back(p);
  return out;
}

inline void check_kept(const pith::Session<float>& session, const Tensor& kept, Index call) {
  for (std::size_t layer = 0; layer < session.caches().size(); ++layer) {
    const auto& cache = session.caches()[layer];
    for (Index h = 0; h < cache.shape().num_kv_heads; ++h) {
      std::vector<pith::Position> ours(cache.positions(h).begin(), cache.positions(h).end());
      std::vector<pith::Position> theirs = kept_by(kept, call, static_cast<Index>(layer), h);
      std::sort(ours.begin(), ours.end());
      std::sort(theirs.begin(), theirs.end());
      INFO("call " << call << ", layer " << layer << ", head " << h);
      REQUIRE(ours == theirs);
    }
  }
}

template <class Cache> Index row_at(const Cache& cache, Index h, pith::Position p) {
  const auto positions = cache.positions(h);
  return std::find(positions.begin(), positions.end(), p) - positions.begin();
}

/// Accumulated attention [layers, heads, rows], matched by position.
inline void check_scores(const pith::Session<float>& session, const Tensor& scores, const Tensor& kept, Index call) {
  for (std::size_t layer = 0; layer < session.caches().size(); ++layer) {
    const auto& cache = session.caches()[layer];
    for (Index h = 0; h < cache.shape().num_kv_heads; ++h) {
      const std::vector<pith::Position> positions = kept_by(kept, call, static_cast<Index>(layer), h);
      const auto expected = scores.row({static_cast<Index>(layer), h});
      REQUIRE(positions.size() <= expected.size());
      for (std::size_t r = 0; r < positions.size(); ++r)
        CHECK(std::abs(double(cache.stats(h)(0, row_at(cache, h, positions[r]))) - expected[r]) < trace_bound);
    }
  }
}

/// The leading features of layer 0's rows after the last call, as the reference keeps them: keys before rotation.
inline void check_rows(const pith::Decoder<float>& decoder, const pith::Session<float>& session, Golden& golden, const Tensor& kept,
                       Index call) {
  const pith::Rope<float> rope(decoder.config().rope());
  const Tensor k = golden.get("k0_final"), v = golden.get("v0_final");
  const auto& cache = session.caches()[0];
  for (Index h = 0; h < k.extent(0); ++h) {
    const std::vector<pith::Position> positions = kept_by(kept, call, 0, h);
    for (std::size_t r = 0; r < positions.size(); ++r) {
      const Index row = row_at(cache, h, positions[r]);
      pith::Matrix<float> key = cache.keys(h, cache.rope_positions()).row(row);
      const pith::Position back = -positions[r];
      rope.rotate_by(key, std::span(&back, 1));
      CHECK(distance(key.row(0).head(k.width()), k.row({h, static_cast<Index>(r)})) < trace_bound);
      CHECK(distance(cache.values(h).row(row).head(v.width()), v.row({h, static_cast<Index>(r)})) < trace_bound);
    }
  }
}

enum class Owner { model, kv, merge, nobody };

/// How far a session under this policy ends from the trace's last logits.
inline double last_distance(Golden& trace, const pith::AnyPolicy<float>& policy) {
  const pith::Decoder<float> decoder = load(golden_folder("model") / trace.word("model"), "config.json", pith::WeightsLayout::packed);
  const std::vector<Token> prompt = trace.ids("prefill_ids"), fed = trace.ids("decode_ids");
  auto session = decoder.start(policy, room_for(prompt.size() + fed.size()));
  session.prefill(prompt);
  for (const Token token : std::span(fed).first(fed.size() - 1)) session.decode(token);
  const Tensor logits = trace.get("logits");
  return distance(session.decode(fed.back()).row(0), logits.row({logits.extent(0) - 1}));
}

/// Heavy hitters come in two readings and the files do not say which: it is the one that ends nearer. Whether it is near enough is for
/// check_trace() to see.
inline bool at_cache_positions(Golden& trace) {
  const pith::HeavyHitter policy{.heavy = trace.number("heavy"), .recent = trace.number("recent")};
  return last_distance(trace, pith::AtCachePositions(policy)) < last_distance(trace, policy);
}

/// Who replays a trace, by what it says of itself.
inline Owner owner(Golden& trace) {
  if (trace.has("image_spans") || trace.has("prompt_ids") || trace.says("kind")) return Owner::merge;
  if (!trace.says("model")) return trace.has("image_row") ? Owner::merge : Owner::nobody;
  if (trace.says("max_gen_len")) return Owner::kv;
  if (trace.says("heavy") && trace.says("recent")) return at_cache_positions(trace) ? Owner::kv : Owner::model;
  if (trace.says("sinks") && trace.says("recent")) return Owner::model;
  return trace.has("prefill_ids") ? Owner::model : Owner::nobody;
}

/// A prompt and its tokens, or tokens alone, under this policy.
inline void check_trace(const std::filesystem::path& path, Golden& trace, const pith::AnyPolicy<float>& policy,
                        pith::ExecutorRef executor) {
  INFO(path.string());
  const auto set = path.parent_path().parent_path();  // its checkpoints lie beside the folder of traces
  const pith::Decoder<float> decoder = load(set / trace.word("model"), "config.json", pith::WeightsLayout::packed);
  const bool prompted = trace.has("prefill_ids");
  const std::vector<Token> prompt = prompted ? trace.ids("prefill_ids") : std::vector<Token>{};
  const std::vector<Token> fed = trace.ids(prompted ? "decode_ids" : "ids");
  const Tensor logits = trace.get("logits");
  std::optional<Tensor> kept;
  if (trace.has("kept")) kept = trace.get("kept");
  pith::SessionOptions options = room_for(prompt.size() + fed.size());
  options.executor = executor;
  auto session = decoder.start(policy, options);

  Index call = 0;
  REQUIRE(logits.extent(0) == static_cast<Index>(fed.size()) + (prompted ? 1 : 0));
  const auto check = [&](pith::ConstMatrixRef<float> row) {
    INFO("call " << call);
    CHECK(distance(row.row(0), logits.row({call})) < trace_bound);
    if (kept) check_kept(session, *kept, call);
    ++call;
  };
  if (prompted) check(session.prefill(prompt));
  if (trace.has("score_prefill")) check_scores(session, trace.get("score_prefill"), *kept, 0);
  for (const Token token : fed) check(session.decode(token));
  if (trace.has("score_final")) check_scores(session, trace.get("score_final"), *kept, call - 1);
  if (trace.has("k0_final")) check_rows(decoder, session, trace, *kept, call - 1);
  trace.done();
}

}  // namespace pith_test
