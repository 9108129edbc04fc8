#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <random>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include <pith/text.hpp>

#include "support/alloc_counter.hpp"
#include "support/catch.hpp"
#include "text/tiny_tokenizer.hpp"

using namespace pith;
using namespace pith_test;

namespace {

// A byte-level tokenizer.json of that many tokens, each joined from two earlier ones.
std::string joined_tokens(std::size_t size) {
  std::mt19937 rng(1);
  std::vector<std::string> tokens;
  std::unordered_set<std::string> known;
  for (int b = 0; b < 256; ++b) {
    const char byte = static_cast<char>(b);
    tokens.push_back(detail::ByteMap::table().names({&byte, 1}));
  }
  std::string vocab, merges;
  const auto quoted = [](std::string& out, std::string_view text) { detail::append_json_text(out, text); };
  while (tokens.size() < size) {
    const std::string &left = tokens[rng() % tokens.size()], &right = tokens[rng() % 256];
    if (left.size() + right.size() > 16 || !known.insert(left + right).second) continue;
    merges += merges.empty() ? "[" : ",[";
    quoted(merges, left);
    merges += ',';
    quoted(merges, right);
    merges += ']';
    tokens.push_back(left + right);
  }
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    vocab += vocab.empty() ? "" : ",\n";
    quoted(vocab, tokens[i]);
    vocab += ": " + std::to_string(i);
  }
  return R"({"version":"1.0","pre_tokenizer":{"type":"ByteLevel"},"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{)" + vocab +
         R"(},"merges":[)" + merges + "]}}";
}

}  // namespace

TEST_CASE("loading a tokenizer takes five times its file at most", "[text]") {
  if (!counting_available()) return;
  const std::string json = joined_tokens(50'000);
  const TempFolder folder;
  folder.write("tokenizer.json", json);
  tokenizer_of(byte_level_json());  // tables that every tokenizer shares
  const PeakScope peak;
  const Tokenizer tokenizer = load_tokenizer(folder.path());
  CHECK(tokenizer.size() == 50'000);
  CAPTURE(peak.bytes(), json.size());
  CHECK(peak.bytes() <= 5 * json.size());
}

TEST_CASE("a tokenizer whose loading or use finds no memory says so and leaves none behind", "[text]") {
  if (!counting_available()) return;
  const TempFolder folder;
  folder.write("tokenizer.json", byte_level_json());
  folder.write("tokenizer_config.json", R"({"eos_token":"<end>","added_tokens_decoder":{"300":{"content":"<more>"}}})");
  const auto use = [&] {
    const Tokenizer tokenizer = load_tokenizer(folder.path());
    const std::vector<Token> ids = tokenizer.encode("abc it's <end> \xC3\xA9");
    Detokenizer stream(tokenizer);
    std::string shown;
    for (const Token id : ids) shown += stream.add(id);
    if (shown + stream.finish() != tokenizer.decode(ids)) FAIL("streamed and decoded text differ");
    ChatFormat::named("chatml").encode(tokenizer, {{"user", "Hi"}});
  };
  std::uint64_t refused = 0;
  for (const bool first : {true, false}) {  // the first time, tables are made that everything shares
    for (std::uint64_t k = 1;; ++k) {
      const std::size_t before = live_bytes();
      std::size_t after = 0;
      bool failed = false, only_memory = true;
      {
        const FailingAllocation failing(k);
        try {
          use();
        } catch (const std::bad_alloc&) {
          ++refused;
        } catch (const FormatError& error) {  // what the system says of a file's buffer
          ++refused;
          only_memory = std::strstr(error.what(), std::strerror(ENOMEM)) != nullptr;
        }
        failed = failing.failed();
      }
      after = live_bytes();
      if (!failed) break;
      CAPTURE(k);
      CHECK(only_memory);
      if (!first) CHECK(after == before);
    }
  }
  CHECK(refused > 100);
}
