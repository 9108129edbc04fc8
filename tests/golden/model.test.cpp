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

#include "golden/support/checkpoint_replay.hpp"
#include "golden/support/golden_file.hpp"
#include "golden/support/model_trace.hpp"
#include "support/catch.hpp"

using namespace pith;
using namespace pith_test;
namespace fs = std::filesystem;

namespace golden_model {
namespace {

fs::path golden() { return golden_folder("model"); }

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
      CheckpointReplay(entry.path(), {}).check();
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

}  // namespace golden_model
