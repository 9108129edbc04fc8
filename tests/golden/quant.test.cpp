// Replays every quantised folder under <golden>/quant: its weights against the published dequantisation, and what its decoder computes; and
// the configs that have to be refused.
#include <nlohmann/json.hpp>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "golden/support/checkpoint_replay.hpp"
#include "golden/support/golden_folder.hpp"
#include "support/catch.hpp"

using namespace pith;
using namespace pith_test;
namespace fs = std::filesystem;

namespace golden_quant {
namespace {

/// Four-bit codes multiply activations of 15 bits; nested scales of nf4 are rounded in an order that is left open.
CheckpointBounds bounds_of(const fs::path& folder) {
  CheckpointBounds bounds;
  for (const StoredModule& module : load_checkpoint(folder).modules) {
    const bool table = module.format == "nf4" || module.format == "fp4";
    if (module.quantised() && module.bits == 4 && !table) bounds.logits = 1e-2;
    if (table || module.format == "int8") bounds.weights_ulps = 2;
  }
  return bounds;
}

int check_quantised_configs(const fs::path& path) {
  std::ifstream file(path);
  const nlohmann::json refusals = nlohmann::json::parse(file);
  for (const auto& refusal : refusals) {
    INFO(refusal.dump());
    nlohmann::json config = {{"model_type", "llama"}, {"vocab_size", 8}, {"hidden_size", 8}, {"num_attention_heads", 2}};
    CHECK_NOTHROW(parse_config(config.dump()));
    config["quantization_config"] = refusal["quantization_config"];
    CHECK_THROWS_AS(parse_config(config.dump()), UnsupportedError);
    CHECK_THROWS_WITH(parse_config(config.dump()), contains("config.json") && contains("quantization_config"));
  }
  return static_cast<int>(refusals.size());
}

}  // namespace

TEST_CASE("golden.quant: every quantised folder and every refused config", "[golden]") {
  int folders = 0, refused = 0;
  for (const auto& entry : fs::directory_iterator(golden_folder("quant"))) {
    INFO(entry.path().string());
    const std::string name = entry.path().filename().string();
    if (name == "README.md" || name == "blocks.safetensors") continue;  // blocks of GGUF: no folder has them
    if (name == "refusals.json") {
      refused += check_quantised_configs(entry.path());
    } else {
      REQUIRE(entry.is_directory());
      CheckpointReplay(entry.path(), bounds_of(entry.path())).check();
      ++folders;
    }
  }
  CHECK(folders > 0);
  CHECK(refused > 0);
  std::printf("golden.quant: %d folders replayed, %d configs refused\n", folders, refused);
}

}  // namespace golden_quant
