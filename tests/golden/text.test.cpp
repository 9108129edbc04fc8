// Compares with the published tokenizer library and with published chat templates: every file of <golden>/text.
//
// A folder with a tokenizer.json is a kind; `real-…` folders whose tokenizer.json is not there are skipped, and said to be. So are parts
// that a set named by PITH_GOLDEN_DIR lacks; the set beside the tests has all of them.
#include <nlohmann/json.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/text.hpp>

#include "golden/support/golden_folder.hpp"
#include "io/temp_folder.hpp"
#include "support/catch.hpp"
#include "support/sha256.hpp"

using namespace pith;
using namespace pith_test;
namespace fs = std::filesystem;
using nlohmann::json;

namespace golden_text {
namespace {

std::string file_text(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  REQUIRE(in);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<json> lines_of(const fs::path& path) {
  std::vector<json> out;
  std::istringstream in(file_text(path));
  for (std::string line; std::getline(in, line);)
    if (!line.empty()) out.push_back(json::parse(line));
  return out;
}

// A file or folder of the set, unless a set of the user's own lacks it.
std::optional<fs::path> part(const std::string& name) {
  const fs::path path = golden_folder("text") / name;
  if (fs::exists(path)) return path;
  WARN("skipped " << name << ": not in this set");
  REQUIRE(std::getenv("PITH_GOLDEN_DIR") != nullptr);
  return std::nullopt;
}

std::vector<fs::path> kinds() {
  std::vector<fs::path> out;
  if (!part("")) return out;
  for (const auto& entry : fs::directory_iterator(golden_folder("text"))) {
    if (!entry.is_directory() || !fs::exists(entry.path() / "cases.jsonl")) continue;
    if (fs::exists(entry.path() / "tokenizer.json")) {
      out.push_back(entry.path());
    } else {
      WARN("skipped " << entry.path().filename() << ": no tokenizer.json beside its cases");
    }
  }
  REQUIRE((!out.empty() || std::getenv("PITH_GOLDEN_DIR") != nullptr));
  return out;
}

std::vector<Token> ids_of(const json& list) { return list.get<std::vector<Token>>(); }

void check_case(const Tokenizer& tokenizer, const json& c, bool decodes = true) {
  const std::string text = c.at("text");
  CAPTURE(text);
  const std::vector<Token> ids = tokenizer.encode(text);
  CHECK(ids == ids_of(c.at("ids")));
  CHECK(tokenizer.encode(text, {.add_special = false}) == ids_of(c.at("ids_plain")));
  if (!decodes) return;
  CHECK(tokenizer.decode(ids) == c.at("decoded"));
  CHECK(tokenizer.decode(ids, {.skip_special = true}) == c.at("decoded_skip"));
  if (c.contains("decoded_skip_clean"))
    CHECK(tokenizer.decode(ids, {.skip_special = true, .clean_up_spaces = true}) == c.at("decoded_skip_clean"));
}

void check_stream(const Tokenizer& tokenizer, const json& c, const char* key, bool skip_special) {
  const std::vector<Token> ids = ids_of(c.at("ids"));
  const auto expected = c.at(key).get<std::vector<std::string>>();
  REQUIRE(expected.size() == ids.size() + 1);
  Detokenizer stream(tokenizer, skip_special);
  for (int turn = 0; turn < 2; ++turn) {  // finish() makes it as new
    std::vector<std::string> shown;
    for (const Token id : ids) shown.push_back(stream.add(id));
    shown.push_back(stream.finish());
    CHECK(shown == expected);
  }
}

// A dotted path into JSON; a number is a place in a list, at its end a new one.
void patch(json& file, const std::string& path, const json& value) {
  json* at = &file;
  std::istringstream steps(path);
  for (std::string step; std::getline(steps, step, '.');) {
    if (at->is_array()) {
      const std::size_t index = std::stoul(step);
      if (index == at->size()) at->push_back(nullptr);
      at = &at->at(index);
    } else {
      at = &(*at)[step];
    }
  }
  *at = value;
}

// The reference numbers added tokens itself: from the size of the vocabulary on. Where that is not what the file says (a vocabulary that
// goes on behind them), its decoded text names other tokens than the file's ids.
bool numbered_as_in_file(const json& file) {
  const json& vocab = file.at("model").at("vocab");
  std::size_t next = vocab.size();
  for (const json& t : file.at("added_tokens"))
    if (!vocab.contains(t.at("content").get<std::string>()) && t.at("id") != next++) return false;
  return true;
}

}  // namespace

TEST_CASE("golden.text: text is encoded and decoded as published") {
  for (const fs::path& kind : kinds()) {
    CAPTURE(kind.filename());
    const Tokenizer tokenizer = load_tokenizer(kind);
    const auto cases = lines_of(kind / "cases.jsonl");
    CHECK(!cases.empty());
    for (const json& c : cases) check_case(tokenizer, c);
  }
}

TEST_CASE("golden.text: tokens become text as published, all at once and one by one") {
  for (const fs::path& kind : kinds()) {
    if (!fs::exists(kind / "decode.jsonl")) continue;
    CAPTURE(kind.filename());
    const Tokenizer tokenizer = load_tokenizer(kind);
    for (const json& c : lines_of(kind / "decode.jsonl")) {
      const std::vector<Token> ids = ids_of(c.at("ids"));
      CAPTURE(ids);
      CHECK(tokenizer.decode(ids) == c.at("decoded"));
      CHECK(tokenizer.decode(ids, {.skip_special = true}) == c.at("decoded_skip"));
      check_stream(tokenizer, c, "stream", false);
      check_stream(tokenizer, c, "stream_skip", true);
    }
  }
}

TEST_CASE("golden.text: options that no kind has do as published") {
  const auto variants = part("variants.jsonl");
  if (!variants) return;
  for (const json& variant : lines_of(*variants)) {
    const std::string name = variant.at("name");
    CAPTURE(name);
    const auto base = part(variant.at("base").get<std::string>() + "/tokenizer.json");
    if (!base) continue;
    json file = json::parse(file_text(*base));
    for (const json& p : variant.at("patch")) patch(file, p.at(0), p.at(1));
    const TempFolder folder;
    folder.write("tokenizer.json", file.dump());
    const Tokenizer tokenizer = load_tokenizer(folder.path());
    for (const json& c : variant.at("cases")) check_case(tokenizer, c, numbered_as_in_file(file));
  }
}

TEST_CASE("golden.text: hostile tokenizer files are refused or understood as said") {
  const auto hostile = part("hostile");
  if (!hostile) return;
  const json expected = json::parse(file_text(*hostile / "expected.json"));
  for (const auto& [name, says] : expected.items()) {
    CAPTURE(name, says.at("why").get<std::string>());
    const TempFolder folder;
    folder.write("tokenizer.json", file_text(*hostile / name));
    if (says.at("pith") == "refuse") {
      try {
        load_tokenizer(folder.path());
        FAIL("it loads");
      } catch (const FormatError& error) {
        CHECK_THAT(error.what(), contains("tokenizer.json"));
      } catch (const UnsupportedError& error) {
        CHECK_THAT(error.what(), contains("tokenizer.json"));
      }
      continue;
    }
    const Tokenizer tokenizer = load_tokenizer(folder.path());
    if (name == "added_hole.json") {  // the reference numbers the token anew
      CHECK(tokenizer.id("<x>") == Token(9));
      continue;
    }
    for (const auto& [text, ids] : says.at("rust_ids").items()) {
      CAPTURE(text);
      CHECK(tokenizer.encode(text) == ids_of(ids));
    }
  }
}

TEST_CASE("golden.text: very long words are encoded as published") {
  const auto file = part("bigword.json");
  if (!file) return;
  const json kinds_of_words = json::parse(file_text(*file));
  for (const auto& [kind, words] : kinds_of_words.items()) {
    CAPTURE(kind);
    if (!part(kind + "/tokenizer.json")) continue;
    const Tokenizer tokenizer = load_tokenizer(golden_folder("text") / kind);
    for (const json& word : words) {
      const std::string unit = word.at("unit");
      const std::size_t repeat = word.at("repeat");
      CAPTURE(unit, repeat);
      std::string text;
      for (std::size_t i = 0; i < repeat; ++i) text += unit;
      const std::vector<Token> ids = tokenizer.encode(text, {.add_special = false});
      CHECK(ids.size() == word.at("n_ids"));
      std::string bytes;
      for (const Token id : ids)
        for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<char>(static_cast<std::uint32_t>(id) >> shift));
      CHECK(sha256(bytes) == word.at("sha256_ids_le32"));
    }
  }
}

TEST_CASE("golden.text: conversations are written as published") {
  // Formats whose file's name says an option.
  const auto format_name = [](std::string name) {
    for (const std::string_view option : {"-nothink", "-npm"})
      if (name.ends_with(option)) name.resize(name.size() - option.size());
    return name;
  };
  const auto folder = part("chat");
  if (!folder) return;
  std::size_t files = 0;
  for (const auto& entry : fs::directory_iterator(*folder)) {
    const json file = json::parse(file_text(entry.path()));
    CAPTURE(entry.path().filename());
    ChatFormat format = ChatFormat::named(format_name(file.at("format")));
    for (const auto& [option, value] : file.at("options").items()) {
      if (option == "enable_thinking") {
        format.thinking = value;
      } else if (option == "date" || option == "today" || option == "date_string") {
        format.date = value;
      } else {
        FAIL("an option that no test knows: " << option);
      }
    }
    CHECK(format.stop() == file.at("stop").get<std::vector<std::string>>());
    for (const json& c : file.at("cases")) {
      std::vector<Message> messages;
      for (const json& m : c.at("messages")) messages.push_back({m.at("role"), m.at("content")});
      CAPTURE(c.at("messages").dump());
      if (c.contains("error")) {
        CHECK_THROWS_WITH(format.render(messages, c.at("add_generation_prompt")), contains(c.at("error").get<std::string>()));
        continue;
      }
      const RenderedChat chat = format.render(messages, c.at("add_generation_prompt"));
      CHECK(chat.text == c.at("rendered"));
      std::size_t end = 0;
      for (const TextRange& range : chat.contents) {
        CHECK((range.begin >= end && range.end > range.begin && range.end <= chat.text.size()));
        end = range.end;
      }
    }
    ++files;
  }
  CHECK(files > 0);
}

}  // namespace golden_text
