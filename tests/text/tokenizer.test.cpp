#include <random>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <pith/text.hpp>

#include "support/catch.hpp"
#include "text/tiny_tokenizer.hpp"

using namespace pith;
using namespace pith_test;

namespace {

using Ids = std::vector<Token>;

std::string random_text(std::mt19937& rng, std::size_t characters) {
  std::string out;
  for (std::size_t i = 0; i < characters; ++i) {
    switch (rng() % 8) {
      case 0:
        out += ' ';
        break;
      case 1:
        out += "abc'sS\n\r\t."[rng() % 11];
        break;
      case 2:
        detail::append_code_point(out, static_cast<char32_t>(rng() % 0xD800));
        break;
      case 3:
        detail::append_code_point(out, static_cast<char32_t>(0xE000 + rng() % 0x102000));
        break;
      default:
        detail::append_code_point(out, static_cast<char32_t>(rng() % 0x180));
        break;
    }
  }
  return out;
}

constexpr std::string_view split_json =
    R"({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"PATTERN"},"behavior":"Isolated","invert":false},
    {"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})";

std::vector<std::string> pre_tokenizers() {
  std::vector<std::string> out{
      R"({"type":"ByteLevel","add_prefix_space":false})",
      R"({"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},{"type":"ByteLevel","add_prefix_space":false}]})"};
  for (const std::string_view pattern :
       {detail::split_text::qwen, detail::split_text::cl100k, detail::split_text::o200k, detail::split_text::tekken}) {
    std::string quoted;
    detail::append_json_text(quoted, pattern);
    out.push_back(detail::replaced(split_json, "\"PATTERN\"", quoted));
  }
  return out;
}

}  // namespace

TEST_CASE("a byte-level tokenizer cuts, merges and names its tokens", "[text]") {
  const Tokenizer t = tokenizer_of(byte_level_json());
  CHECK(t.encode("abc") == Ids{258});  // "b c" is the first merge, then "a bc"
  CHECK(t.encode("ab") == Ids{256});
  CHECK(t.token(259) == "Ġa");
  CHECK(t.id("Ġa") == 259);
  CHECK(t.id("<end>") == 261);
  CHECK(!t.id("nothing"));
  CHECK(!t.token(-1));
  CHECK(!t.token(262));
  CHECK(t.size() == 262);
  CHECK(t.is_special(261));
  CHECK(!t.is_special(260));
  CHECK(t.encode("x<end>a a") == Ids{'x', 261, 'a', 259});
  CHECK(t.decode(Ids{'x', 261, -5, 1'000'000, 'a'}) == "x<end>a");
  CHECK(t.decode(Ids{'x', 261, 260, 'a'}, {.skip_special = true}) == "x<x>a");
}

TEST_CASE("special tokens in a text can be plain text, everywhere or in places", "[text]") {
  const Tokenizer t = tokenizer_of(byte_level_json());
  const std::string text = "<end><x><end>";
  CHECK(t.encode(text) == Ids{261, 260, 261});
  CHECK(t.encode(text, {.match_special = false}) == Ids{'<', 'e', 'n', 'd', '>', 260, '<', 'e', 'n', 'd', '>'});
  const std::vector<TextRange> plain{{8, 9}};
  CHECK(t.encode(text, {.plain = plain}) == Ids{261, 260, '<', 'e', 'n', 'd', '>'});
  CHECK_THROWS_WITH(t.encode("\xFF<end>", {.plain = plain}), contains("not UTF-8"));
}

TEST_CASE("decode(encode(text)) is the text, under every split pattern", "[text]") {
  std::mt19937 rng(11);
  for (const std::string& pre : pre_tokenizers()) {
    const Tokenizer t = tokenizer_of(byte_level_json({}, pre));
    CAPTURE(pre);
    for (int round = 0; round < 300; ++round) {
      const std::string text = random_text(rng, rng() % 40);
      CAPTURE(text);
      CHECK(t.decode(t.encode(text)) == text);
    }
  }
}

TEST_CASE("text that is not UTF-8 is read with U+FFFD in place of what is none", "[text]") {
  const Tokenizer t = tokenizer_of(byte_level_json());
  CHECK(t.decode(t.encode("a\xE4\xBD z")) == "a\xEF\xBF\xBD z");
}

TEST_CASE("a stream of tokens gives the text of the whole, wherever it is cut", "[text]") {
  const Tokenizer t = tokenizer_of(byte_level_json());
  std::mt19937 rng(13);
  for (int round = 0; round < 200; ++round) {
    Ids ids;
    for (std::size_t i = 0, n = rng() % 30; i < n; ++i) ids.push_back(static_cast<Token>(rng() % 263));
    Detokenizer stream(t);
    std::string shown;
    for (std::size_t k = 0; k < ids.size(); ++k) {
      shown += stream.add(ids[k]);
      CHECK(detail::valid_utf8(shown) == shown.size());
      Detokenizer cut = stream;
      CHECK(shown + cut.finish() == t.decode(std::span(ids).first(k + 1)));
    }
    CHECK(shown + stream.finish() == t.decode(ids));
  }
}

TEST_CASE("several threads may use one tokenizer", "[text]") {
  const Tokenizer t = tokenizer_of(byte_level_json());
  const std::string text = "abc abc <end> äöü 123";
  const Ids expected = t.encode(text);
  std::vector<int> wrong(4);
  std::vector<std::thread> threads;
  for (int& w : wrong)
    threads.emplace_back([&, copy = t] {
      for (int i = 0; i < 200; ++i) w += copy.encode(text) != expected;
    });
  for (std::thread& thread : threads) thread.join();
  for (const int w : wrong) CHECK(w == 0);
}

TEST_CASE("a tokenizer and a model must belong together", "[text]") {
  const Tokenizer t = tokenizer_of(byte_level_json());
  CHECK_NOTHROW(t.check_vocabulary(262));
  CHECK_NOTHROW(t.check_vocabulary(512));  // padded tables are common
  CHECK_THROWS_WITH(t.check_vocabulary(261), contains("token '<end>' of id 261"));
}

TEST_CASE("a word of a million characters is no slower than its length", "[text]") {
  const Tokenizer t = tokenizer_of(byte_level_json({}, R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":false})"));
  const std::string text(1'000'000, 'a');
  CHECK(t.encode(text) == Ids(1'000'000, 'a'));
  std::string pairs;
  for (int i = 0; i < 400'000; ++i) pairs += "bc";
  CHECK(t.encode(pairs) == Ids(400'000, 257));
}

TEST_CASE("a hostile set of added tokens does not make a text quadratic", "[text]") {
  // Each place of the text begins a match of 100,000 characters that fails at the last.
  const std::string added =
      R"({"id":260,"content":")" + std::string(100'000, 'a') + R"(b","single_word":false,"lstrip":false,"rstrip":false,
    "normalized":false,"special":false},{"id":261,"content":"a","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":false})";
  const TempFolder folder;
  const std::string vocab = detail::replaced(byte_level_json(added), "\"a\":97,", "\"a\":261,");  // "a" is one token
  folder.write("tokenizer.json", vocab);
  const Tokenizer t = load_tokenizer(folder.path());
  CHECK(t.encode(std::string(1'000'000, 'a')) == Ids(1'000'000, 261));
}

TEST_CASE("a token of white space that strips white space does not make a text quadratic", "[text]") {
  const std::string added =
      R"({"id":260,"content":"\t","single_word":false,"lstrip":true,"rstrip":true,"normalized":false,"special":false})";
  const Tokenizer t = tokenizer_of(byte_level_json(added));
  CHECK(t.encode("a\t b") == Ids{'a', 260, 'b'});
  CHECK(t.encode("\t\t") == Ids{260, 260});  // the second begins in what the first has taken, as in the reference
  CHECK(t.encode(std::string(1'000'000, '\t')) == Ids(1'000'000, 260));
}

TEST_CASE("a million random letters are merged in a moment", "[text]") {
  const Tokenizer t = tokenizer_of(byte_level_json({}, R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":false})"));
  std::mt19937 rng(17);
  std::string text;
  for (int i = 0; i < 1'000'000; ++i) text.push_back(static_cast<char>('a' + rng() % 4));
  Ids expected;  // "bc" merges first, then "ab", then "a" and "bc": from left to right, at each place the longest of them, but no "ab"
                 // before c
  for (std::size_t i = 0; i < text.size();) {
    const std::string_view rest = std::string_view(text).substr(i);
    const Token id = rest.starts_with("abc") ? 258 : rest.starts_with("ab") ? 256 : rest.starts_with("bc") ? 257 : rest[0];
    expected.push_back(id);
    i += id == 258 ? 3 : id > 255 ? 2 : 1;
  }
  CHECK(t.encode(text) == expected);
}
