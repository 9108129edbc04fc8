#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "golden/support/golden_file.hpp"
#include "golden/support/model_trace.hpp"
#include "golden/support/parity.hpp"
#include "support/catch.hpp"

// Traces of LOOK-M's and CSP's own code over a model with images in its prompt.
namespace pith_test {

inline constexpr double vlm_logits_bound = 5e-4, vlm_rows_bound = 1e-3;  // what the files' README allows

/// The projected image: patch p is (row[p / 24] + col[p % 24]) + tex[p % 17].
inline pith::Matrix<float> vlm_image(const std::filesystem::path& path) {
  const pith::Safetensors file = pith::Safetensors::map(path);
  const auto rows = file.load_matrix<float>("image_row"), cols = file.load_matrix<float>("image_col"),
             tex = file.load_matrix<float>("image_tex");
  pith::Matrix<float> image(rows.rows() * cols.rows(), rows.cols());
  for (Index p = 0; p < image.rows(); ++p) image.row(p) = (rows.row(p / cols.rows()) + cols.row(p % cols.rows())) + tex.row(p % tex.rows());
  return image;
}

/// What a trace does when its prompt ends.
struct VlmRun {
  pith::AnyPolicy<float> policy = pith::Dense{};
  pith::AnyMerge<float> merge = {};
};

/// By the trace's kind; `tokens` of the prompt. Without an image nothing is compressed.
inline VlmRun vlm_run(Golden& trace, Index tokens, Index images) {
  using namespace pith;
  if (!trace.says("kind") || images == 0) return {};
  const std::string kind = trace.word("kind");
  const HeavyHitter scores{.heavy = rows_at_keep_ratio(tokens, trace.real("hh_ratio")),
                           .recent = rows_at_keep_ratio(tokens, trace.real("recent_ratio"))};
  if (kind == "csp") {
    const double bias = trace.real("kv_recent_bias");
    return {Csp{.heavy = scores.heavy,
                .recent = scores.recent,
                .protects = static_cast<Index>(std::floor(double(scores.recent) * bias)),
                .cross_ratio = trace.real("cross_ratio")}};
  }
  const std::string rule = kind.starts_with("text_") ? kind.substr(5) : kind;
  const std::map<std::string, AnyMerge<float>> rules{
      {"evict", Drop{}}, {"pivot", Pivotal{}}, {"weighted", SlotGate(Weighted{})}, {"avg", SlotGate(Averaged{}, /*is_misaligned=*/true)}};
  INFO("kind " << kind);
  REQUIRE(rules.count(rule) == 1);
  const PromptOnly<HeavyHitter> once(scores);
  if (kind != rule) return {Protect(once, {.kind = TokenKind::text}), rules.at(rule)};
  return {Protect(once, {.sinks = 4}), rules.at(rule)};
}

/// Norms and leading numbers of every cached row, matched by position. A row may be held twice: it has mass 2 from here on.
inline void check_vlm_cache(pith::Session<float>& session, Golden& trace, bool twice) {
  const Tensor kept = trace.get("kept"), k_norm = trace.get("k_norm"), v_norm = trace.get("v_norm");
  const Tensor k_first = trace.get("k_dims01"), v_first = trace.get("v_dims01");
  auto snapshot = session.snapshot();
  for (Index l = 0; l < kept.extent(0); ++l) {
    const auto& cache = session.caches()[static_cast<std::size_t>(l)];
    std::size_t first = 0;
    for (Index h = 0; h < kept.extent(1); ++h) {
      INFO("layer " << l << ", head " << h);
      const auto positions = kept.id_row({l, h});
      std::vector<int> times(static_cast<std::size_t>(cache.size(h)), 0);
      for (std::size_t r = 0; r < positions.size(); ++r) {
        const Index row = row_at(cache, h, positions[r]);
        REQUIRE(row < cache.size(h));
        ++times[static_cast<std::size_t>(row)];
        const auto key = cache.keys(h).row(row), value = cache.values(h).row(row);
        CHECK(std::abs(double(key.norm()) - k_norm.row({l, h})[r]) < vlm_rows_bound);
        CHECK(std::abs(double(value.norm()) - v_norm.row({l, h})[r]) < vlm_rows_bound);
        CHECK(distance(key.head(2), k_first.row({l, h, static_cast<Index>(r)})) < vlm_rows_bound);
        CHECK(distance(value.head(2), v_first.row({l, h, static_cast<Index>(r)})) < vlm_rows_bound);
      }
      CHECK(std::count(times.begin(), times.end(), 0) == 0);
      std::vector<float>& masses = snapshot.layers[static_cast<std::size_t>(l)].masses;
      REQUIRE((twice || *std::max_element(times.begin(), times.end()) == 1));
      for (std::size_t r = 0; twice && r < times.size(); ++r) masses[first + r] = static_cast<float>(times[r]);
      first += times.size();
    }
  }
  if (twice) session.restore(snapshot);
}

inline void replay_vlm(const std::filesystem::path& image_path, Golden& trace) {
  using namespace pith;
  const Decoder<float> decoder = load(golden_folder("model") / trace.word("model"), "config.json", WeightsLayout::packed);
  const Matrix<float> image = vlm_image(image_path);
  const std::vector<Token> ids = trace.ids("prompt_ids"), fed = trace.ids("decode_ids");
  const auto images = std::count(ids.begin(), ids.end(), Token(-200));
  const std::vector<MediaRows<float>> media(static_cast<std::size_t>(images), MediaRows<float>{.rows = image});  // the same each time
  const SplicedPrompt<float> prompt =
      splice<float>(decoder.weights().embed_tokens, ids, -200, std::span(media), Placeholders::one_an_image);
  if (trace.has("image_spans")) {
    const Tensor spans = trace.get("image_spans");
    REQUIRE(spans.extent(0) == static_cast<Index>(prompt.spans.size()));
    for (std::size_t i = 0; i < prompt.spans.size(); ++i) {
      CHECK(spans.id_row({static_cast<Index>(i)})[0] == prompt.spans[i].first);
      CHECK(spans.id_row({static_cast<Index>(i)})[1] == prompt.spans[i].end);
    }
  }
  const Index tokens = prompt.embeddings.rows();
  const VlmRun run = vlm_run(trace, tokens, static_cast<Index>(images));
  SessionOptions options = room_for(static_cast<std::size_t>(tokens));
  options.keep_masses = trace.says("kind") && trace.word("kind") == "csp";  // some rows are stored twice
  auto session = decoder.start(run.policy, options, run.merge);
  const Tensor logits = trace.get("logits");
  const auto check = [&](ConstMatrixRef<float> row, Index call) {
    INFO("call " << call);
    CHECK(distance(row.row(0), logits.row({call})) < vlm_logits_bound);
  };
  check(session.prefill(prompt.embeddings, prompt.kinds), 0);
  if (trace.has("kept")) check_vlm_cache(session, trace, options.keep_masses);
  for (std::size_t i = 0; i < fed.size(); ++i) check(session.decode(fed[i]), static_cast<Index>(i) + 1);
}

}  // namespace pith_test
