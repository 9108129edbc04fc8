#pragma once
// Replays an adapter folder over the checkpoint folder beside it.

#include <cmath>
#include <cstddef>
#include <filesystem>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "golden/support/golden_file.hpp"
#include "golden/support/model_trace.hpp"
#include "support/catch.hpp"

namespace pith_test {

/// All files of a folder are known.
inline void check_files(const std::filesystem::path& folder, const std::set<std::string>& expected) {
  std::set<std::string> found;
  for (const auto& file : std::filesystem::directory_iterator(folder)) found.insert(file.path().filename().string());
  INFO(folder.string() << ": a file that nobody reads");
  CHECK(found == expected);
}

/// Logits and continuations of the base under the adapter, `bound`: what the README of the set allows a float32 implementation. The base
/// lies beside the adapter, or in `bases`.
inline void check_adapter(const std::filesystem::path& path, double bound = 1e-4, std::filesystem::path bases = {}) {
  using namespace pith;
  check_files(path, {"adapter_config.json", "adapter_model.safetensors", "golden.safetensors"});
  const PeftFolder folder(path);
  Golden golden(path / "golden.safetensors");
  const std::vector<Token> ids = golden.ids("input_ids"), greedy = golden.ids("greedy_ids");
  const Tensor logits = golden.get("logits"), margin = golden.get("greedy_margin");
  Matrix<float> first;
  for (const WeightsLayout layout : {WeightsLayout::packed, WeightsLayout::mapped}) {
    const Decoder<float> decoder = load((bases.empty() ? path.parent_path() : bases) / folder.config().base_model, "config.json", layout);
    const ModelAdapter<float> adapter = load_adapter(folder, decoder);
    auto session = decoder.start(Dense{}, {.max_draft = static_cast<Index>(ids.size()) - 1});
    session.use(&adapter);
    const Matrix<float> rows = session.decode(ids);
    REQUIRE(rows.rows() == logits.extent(0));
    for (Index t = 0; t < rows.rows(); ++t) CHECK(distance(rows.row(t), logits.row({t})) < bound);
    if (first.rows() == 0) first = rows;
    CHECK(rows == first);  // mapped weights: the same bits

    // The continuation, from a prompt read in one go, alone and in a batch with sessions without the adapter.
    auto alone = decoder.start(), together = decoder.start(), base = decoder.start();
    alone.use(&adapter);
    together.use(&adapter);
    Vector<float> row = alone.prefill(ids).row(0);
    together.prefill(ids);
    base.prefill(ids);
    const std::vector<Session<float>*> both{&base, &together};
    Workspace ws(decoder.together_workspace_bytes(both));
    Matrix<float> next(2, decoder.vocab_size());
    CHECK(row == Vector<float>(first.row(first.rows() - 1)));
    for (std::size_t i = 0; i < greedy.size(); ++i) {
      Index best = 0;
      const float top = row.maxCoeff(&best);
      REQUIRE(best == greedy[i]);
      row[best] = -std::numeric_limits<float>::infinity();
      CHECK(std::abs(double(top - row.maxCoeff()) - margin.values[static_cast<Index>(i)]) < 2 * bound);
      row = alone.decode(greedy[i]).row(0);
      const std::vector<Token> tokens(2, greedy[i]);
      decoder.decode_together(both, tokens, next, ws);
      CHECK(Vector<float>(next.row(1)) == row);
    }
  }
  golden.done();
}

}  // namespace pith_test
