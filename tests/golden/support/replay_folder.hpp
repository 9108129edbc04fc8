#pragma once

#include <cstdio>
#include <filesystem>
#include <map>
#include <string>

#include "golden/support/golden_file.hpp"
#include "golden/support/golden_folder.hpp"
#include "support/catch.hpp"

namespace pith_test {

/// What replays a golden file, by the word that says what it is; null: another program does.
using Replays = std::map<std::string, void (*)(Golden&)>;

/// Replays all files of a folder by their word `key`. A file without a replay fails, unless `others` leaves it to other programs; so does a
/// tensor that its replay does not read.
inline void replay_folder(const char* folder, const char* key, const Replays& replays, bool others = false) {
  int replayed = 0;
  const std::filesystem::path path = golden_folder(folder);
  REQUIRE(std::filesystem::is_directory(path));
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    if (entry.is_regular_file() && entry.path().extension() == ".md") continue;
    INFO(entry.path().string());
    if (!entry.is_regular_file() || entry.path().extension() != ".safetensors") {
      FAIL_CHECK("nobody tests it");
      continue;
    }
    Golden golden(entry.path());
    const auto found = replays.find(golden.word(key));
    if (found == replays.end()) {
      if (!others) FAIL_CHECK("nobody replays the " << key << ' ' << golden.word(key));
      continue;
    }
    if (found->second == nullptr) continue;
    found->second(golden);
    golden.done();
    ++replayed;
  }
  CHECK(replayed > 0);
  std::printf("golden.%s: %d files replayed by %s\n", folder, replayed, key);
}

}  // namespace pith_test
