// Replays every folder of <golden>/peft_kinds over the checkpoint of <golden>/model that its config names, and every change of
// refusals.json, which a loader must refuse.
//
// A folder without its files fails, as do a tensor of a golden file that no test asks for and a change that is loaded.
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "golden/support/adapter_replay.hpp"
#include "golden/support/golden_file.hpp"
#include "io/temp_folder.hpp"
#include "support/catch.hpp"

using namespace pith;
using namespace pith_test;
namespace fs = std::filesystem;

namespace golden_peft_kinds {
namespace {

const Decoder<float>& base_named(const std::string& name) {
  static std::map<std::string, Decoder<float>> loaded;
  const auto found = loaded.find(name);
  return found != loaded.end() ? found->second : loaded.emplace(name, load_decoder(golden_folder("model") / name)).first->second;
}

nlohmann::json json_of(const fs::path& path) { return nlohmann::json::parse(std::ifstream(path)); }

/// A folder with the changes of one entry of refusals.json.
void write_changed(const fs::path& from, const nlohmann::json& entry, const TempFolder& to) {
  nlohmann::json config = json_of(from / "adapter_config.json");
  const Safetensors file = Safetensors::read(from / "adapter_model.safetensors");
  const auto part = [&](const char* key) { return entry.contains(key) ? entry[key] : nlohmann::json(); };
  const nlohmann::json set = part("set"), unset = part("unset"), drop = part("drop"), rename = part("rename"), cut = part("rows");
  for (const auto& [key, value] : set.items()) config[key] = value;
  for (const auto& key : unset) config.erase(std::string(key));
  std::set<std::string> names;
  for (const TensorInfo& tensor : file.tensors()) names.insert(tensor.name);
  const auto meant = [&](const std::string& ending) {
    for (const std::string& name : names)
      if (name.ends_with(ending)) return name;
    FAIL("no tensor ends in " << ending);
    return std::string();
  };
  std::map<std::string, std::string> renamed;
  std::map<std::string, Index> rows;
  std::set<std::string> dropped;
  for (const auto& ending : drop) dropped.insert(meant(ending));
  for (const auto& [ending, name] : rename.items()) {
    const std::string whole = meant(ending);
    renamed[whole] = whole.substr(0, whole.size() - ending.size()) + std::string(name);
  }
  for (const auto& [ending, n] : cut.items()) rows[meant(ending)] = n;
  SafetensorsWriter writer;
  for (const TensorInfo& tensor : file.tensors()) {
    if (dropped.count(tensor.name) != 0) continue;
    std::vector<Index> shape = tensor.shape;
    std::span<const std::byte> bytes = file.bytes(tensor);
    if (const auto kept = rows.find(tensor.name); kept != rows.end()) {
      bytes = bytes.first(bytes.size() / static_cast<std::size_t>(shape[0]) * static_cast<std::size_t>(kept->second));
      shape[0] = kept->second;
    }
    const auto name = renamed.find(tensor.name);
    writer.add(name == renamed.end() ? tensor.name : name->second, tensor.dtype, shape, bytes);
  }
  to.write("adapter_config.json", config.dump());
  writer.write(to / "adapter_model.safetensors");
}

/// A prefix: logits of the real tokens.
void check_cartridge(const fs::path& path) {
  const PeftFolder folder(path);
  Golden golden(path / "golden.safetensors");
  const Decoder<float>& decoder = base_named(folder.config().base_model);
  const KvPrefix prefix = load_prefix(folder, decoder);
  const std::vector<Token> ids = golden.ids("input_ids"), greedy = golden.ids("greedy_ids");
  const Tensor logits = golden.get("logits");
  auto session = decoder.start(Dense{}, {.max_draft = static_cast<Index>(ids.size()) - 1, .prefix = prefix});
  const Matrix<float> rows = session.decode(ids);
  REQUIRE(rows.rows() == logits.extent(0));
  for (Index t = 0; t < rows.rows(); ++t) CHECK(distance(rows.row(t), logits.row({t})) < 1e-4);
  Vector<float> row = rows.row(rows.rows() - 1);
  for (const Token expected : greedy) {
    Index best = 0;
    row.maxCoeff(&best);
    REQUIRE(best == expected);
    row = session.decode(expected).row(0);
  }
  CHECK(golden.get("greedy_margin").values.size() == static_cast<Index>(greedy.size()));
  golden.done();
}

/// An activated LoRA: rows before the invocation are the base's, and the start is fixed by the prompt.
void check_activated(const fs::path& path) {
  const PeftFolder folder(path);
  Golden golden(path / "golden.safetensors");
  const Decoder<float>& decoder = base_named(folder.config().base_model);
  const ModelAdapter<float> adapter = load_adapter(folder, decoder);
  const std::vector<Token> ids = golden.ids("input_ids"), greedy = golden.ids("greedy_ids"), decoded = golden.ids("decode_ids"),
                           absent = golden.ids("absent_ids");
  const Tensor logits = golden.get("logits"), steps = golden.get("step_logits"), without = golden.get("absent_logits");
  const Index first = golden.ids("first_adapted_row").front();
  CHECK(last_invocation(ids, adapter.parts().invocation) == first);
  CHECK(last_invocation(absent, adapter.parts().invocation) == -1);
  const auto started = [&](std::span<const Token> prompt) {
    auto session = decoder.start();
    session.use(&adapter);
    session.prefill(prompt);
    return session;
  };
  // Row by row: the last row of each prompt that begins as this one does, with the start that the whole prompt fixes.
  for (Index t = 0; t < logits.extent(0); ++t) {
    auto session = decoder.start(), base = decoder.start();
    session.use(&adapter);
    const std::span<const Token> part = std::span(ids).first(static_cast<std::size_t>(t) + 1);
    const Vector<float> row = session.prefill(part, {.adapted_from = std::min(first, t + 1)}).row(0);
    CHECK(distance(row, logits.row({t})) < 1e-4);
    CHECK((Vector<float>(base.prefill(part).row(0)) == row) == (t < first));
    CHECK(session.adapter_start() == (t < first ? -1 : first));
  }
  // Tokens one by one and as a chunk, the decoded ones with the invocation among them: nothing starts again.
  auto session = started(ids), chunked = started(ids);
  CHECK(session.adapter_start() == first);
  CHECK(distance(session.logits().row(0), steps.row({0})) < 1e-4);
  const Matrix<float> all = chunked.decode(std::span(decoded).first(8));
  for (std::size_t i = 0; i < decoded.size(); ++i) {
    const Vector<float> row = session.decode(decoded[i]).row(0);
    CHECK(distance(row, steps.row({static_cast<Index>(i) + 1})) < 1e-4);
    if (i < 8) CHECK(Vector<float>(all.row(static_cast<Index>(i))) == row);
  }
  auto greedily = started(ids);
  for (const Token expected : greedy) {
    Index best = 0;
    greedily.logits().row(0).maxCoeff(&best);
    REQUIRE(best == expected);
    greedily.decode(expected);
  }
  CHECK(golden.get("greedy_margin").values.size() == static_cast<Index>(greedy.size()));
  auto base = decoder.start();
  auto uninvoked = started(absent);
  base.prefill(absent);
  CHECK(Matrix<float>(base.logits()) == Matrix<float>(uninvoked.logits()));
  CHECK(distance(base.logits().row(0), without.row({without.extent(0) - 1})) < 1e-4);
  golden.done();
}

}  // namespace

TEST_CASE("golden.peft_kinds: every folder", "[golden]") {
  int plain = 0, activated = 0, prefixes = 0;
  for (const auto& entry : fs::directory_iterator(golden_folder("peft_kinds"))) {
    if (!entry.is_directory()) continue;
    INFO(entry.path().string());
    const nlohmann::json config = json_of(entry.path() / "adapter_config.json");
    if (config["peft_type"] == "CARTRIDGE") {
      check_cartridge(entry.path());
      ++prefixes;
    } else if (const auto invocation = config.find("alora_invocation_tokens"); invocation != config.end() && !invocation->is_null()) {
      check_activated(entry.path());
      ++activated;
    } else {
      check_adapter(entry.path(), 1e-4, golden_folder("model"));
      ++plain;
    }
  }
  CHECK(plain > 0);
  CHECK(activated > 0);
  std::printf("golden.peft_kinds: %d folders, %d activated, %d prefixes\n", plain, activated, prefixes);
}

TEST_CASE("golden.peft_kinds: every refusal", "[golden]") {
  const fs::path root = golden_folder("peft_kinds");
  int refused = 0;
  const nlohmann::json entries = json_of(root / "refusals.json");
  for (const auto& entry : entries) {
    const fs::path from = root / std::string(entry["folder"]);
    INFO(entry.dump());
    REQUIRE(fs::exists(from));
    const TempFolder changed;
    write_changed(from, entry, changed);
    std::string why;
    try {
      const PeftFolder folder(changed.path());
      const Decoder<float>& decoder = base_named(folder.config().base_model);
      if (folder.config().type == PeftType::prefix_tuning)
        static_cast<void>(load_prefix(folder, decoder));
      else
        static_cast<void>(load_adapter(folder, decoder));
    } catch (const FormatError& error) {
      why = error.what();
    } catch (const UnsupportedError& error) {
      why = error.what();
    }
    CHECK(why.starts_with("pith: "));
    if (std::getenv("PITH_SHOW_REFUSALS") != nullptr) std::printf("%s\n  %s\n", entry.dump().c_str(), why.c_str());
    ++refused;
  }
  CHECK(refused > 0);
}

}  // namespace golden_peft_kinds
