#include <string>
#include <string_view>
#include <vector>

#include <pith/text.hpp>

#include "support/catch.hpp"
#include "text/tiny_tokenizer.hpp"

using namespace pith;
using namespace pith_test;

namespace {

using Ids = std::vector<Token>;

Ids stops(std::string_view config, std::string_view generation, std::string_view tokenizer_config) {
  const TempFolder folder;
  folder.write("tokenizer.json", byte_level_json());
  const auto write = [&](const char* name, std::string_view text) {
    if (!text.empty()) folder.write(name, std::string(text));
  };
  write("config.json", config);
  write("generation_config.json", generation);
  write("tokenizer_config.json", tokenizer_config);
  const Tokenizer t = load_tokenizer(folder.path());
  return Ids(t.stop_tokens().begin(), t.stop_tokens().end());
}

}  // namespace

TEST_CASE("a folder's stop tokens are those that transformers would use", "[text]") {
  CHECK(stops("", "", "") == Ids{});
  CHECK(stops("", "", R"({"eos_token":"<end>"})") == Ids{261});
  CHECK(stops("", "", R"({"eos_token":{"content":"<end>"}})") == Ids{261});
  CHECK(stops(R"({"eos_token_id":5})", "", R"({"eos_token":"<end>"})") == Ids{5});
  CHECK(stops(R"({"eos_token_id":5})", R"({"eos_token_id":7,})", "") == Ids{5});  // not JSON, as some published files are
  CHECK(stops(R"({"eos_token_id":5})", R"({"eos_token_id":-1})", "") == Ids{5});
  CHECK(stops(R"({"eos_token_id":1})", R"({"eos_token_id":[1,9]})", "") == Ids{1, 9});
  CHECK(stops(R"({"eos_token_id":1})", R"({"eos_token_id":null})", "") == Ids{1});
  CHECK(stops(R"({"text_config":{"eos_token_id":[2,3]}})", "", R"({"eos_token":"<end>"})") == Ids{2, 3});  // a model with a vision tower
  CHECK(stops(R"({"eos_token_id":5,"text_config":{"eos_token_id":2}})", "", "") == Ids{5});
  CHECK(stops(R"({"text_config":7})", "", R"({"eos_token":"<end>"})") == Ids{261});
}

TEST_CASE("a tokenizer that asks for a first token gets it", "[text]") {
  const std::string json = byte_level_json();
  CHECK(tokenizer_of(json, R"({"add_bos_token":true,"bos_token":"<end>"})").encode("a") == Ids{261, 'a'});
  CHECK(tokenizer_of(json, R"({"add_bos_token":true,"bos_token":"<end>"})").encode("a", {.add_special = false}) == Ids{'a'});
  const std::string templated = detail::replaced(
      json, R"("post_processor":null)",
      R"("post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<x>","type_id":0}},{"Sequence":{"id":"A","type_id":0}},
      {"SpecialToken":{"id":"two","type_id":0}}],"special_tokens":{"<x>":{"id":"<x>","ids":[260]},"two":{"id":"two","ids":[261,261]}}})");
  CHECK(tokenizer_of(templated).encode("a") == Ids{260, 'a', 261, 261});
  const Tokenizer denied = tokenizer_of(templated, R"({"add_bos_token":false,"bos_token":"<x>"})");
  CHECK(denied.encode("a") == Ids{260, 'a', 261, 261});
  REQUIRE(denied.ignored().size() == 1);
  CHECK_THAT(denied.ignored()[0], contains("add_bos_token false"));
}

TEST_CASE("a chat template is read wherever a folder has it", "[text]") {
  const TempFolder folder;
  folder.write("tokenizer.json", byte_level_json());
  const auto found = [&] { return load_tokenizer(folder.path()).chat_template(); };
  CHECK(found().empty());
  folder.write("chat_template.json", R"({"chat_template":"of the processor"})");
  CHECK(found() == "of the processor");
  folder.write("tokenizer_config.json", R"({"chat_template":null})");
  CHECK(found() == "of the processor");
  folder.write("tokenizer_config.json",
               R"({"chat_template":[{"name":"tools","template":"no"},{"name":"default","template":"of the list"}]})");
  CHECK(found() == "of the list");
  folder.write("tokenizer_config.json", R"({"chat_template":"of the tokenizer"})");
  CHECK(found() == "of the tokenizer");
  folder.write("chat_template.jinja", "a file of its own");
  CHECK(found() == "a file of its own");
}

TEST_CASE("added tokens that only tokenizer_config.json names are added", "[text]") {
  const Tokenizer t =
      tokenizer_of(byte_level_json(), R"({"added_tokens_decoder":{"260":{"content":"<x>"},"300":{"content":"<more>","special":true}}})");
  CHECK(t.id("<more>") == 300);
  CHECK(t.is_special(300));
  CHECK(t.encode("a<more>") == Ids{'a', 300});
}

TEST_CASE("a key of a later version in an added token changes nothing, with any value", "[text]") {
  const std::string json = byte_level_json();
  for (const char* later :
       {R"("later":{"id":[1,{"content":"no"}],"special":{}})", R"("later":[[],{"id":1},"a",true,null,2])", R"("later":{})"}) {
    const std::string with = detail::replaced(json, R"({"id":261,)", "{" + std::string(later) + R"(,"id":261,)");
    REQUIRE(with != json);
    CHECK(tokenizer_of(with).encode("a<end>b") == Ids{'a', 261, 'b'});
  }
}

TEST_CASE("what a folder lacks or a tokenizer asks for beyond reach is named", "[text]") {
  const TempFolder empty;
  CHECK_THROWS_AS(load_tokenizer(empty.path()), FormatError);
  CHECK_THROWS_WITH(load_tokenizer(empty.path()), contains("holds no tokenizer.json"));
  const auto refused = [](std::string_view from, std::string_view to, std::string_view says) {
    CAPTURE(to);
    CHECK_THROWS_WITH(tokenizer_of(detail::replaced(byte_level_json(), from, to)), contains(std::string(says)));
  };
  refused(R"("type":"ByteLevel","add_prefix_space":false)", R"("type":"WhitespaceSplit")", "pre_tokenizer is 'WhitespaceSplit'");
  refused(R"("normalizer":null)", R"("normalizer":{"type":"Sequence","normalizers":[{"type":"NFC"},{"type":"Lowercase"}]})",
          "normalizer.normalizers[1] is 'Lowercase'");
  refused(R"("decoder":{"type":"ByteLevel"})", R"("decoder":{"type":"WordPiece"})", "decoder is 'WordPiece'");
  refused(R"("post_processor":null)", R"("post_processor":{"type":"BertProcessing"})", "post_processor is 'BertProcessing'");
  refused(R"("type":"BPE")", R"("type":"Unigram")", "model is 'Unigram'");
  refused(R"("b c","a b")", R"("b c","a z")", "model.merges[1]: 'az' is not in model.vocab");
  refused(R"("ab":256)", R"("ab":-1)", "model.vocab gives token 'ab' the id '-1'");
  refused(R"("ab":256)", R"("ab":4294967296)", "expected a whole number below 16777216");
  refused(R"("ab":256)", R"("ab":257)", "gives id 257 to two tokens");
  refused(R"("ab":256)", R"("ab":"256")", "model.vocab gives token 'ab' the id '256'");
  refused(R"("ab":256)", R"("ab":[256])", "model.vocab gives token 'ab' the id 'a list'");
  refused(R"("id":260)", R"("id":-260)", "added_tokens[0].id is -260");
  refused(R"("id":260)", R"("id":261)", "has the id of added token");
  refused(R"("id":260)", R"("id":97)", "takes the id of 'a'");
  refused(R"("content":"<x>")", R"("content":"ab")", "is in model.vocab under id 256");
  refused(R"("version":"1.0")", R"("version":"2.0")", "version");
  refused(R"("merges":[)", R"("merges":null,"merges_2":[)", "model has no list 'merges'");
  refused(R"("merges":[)", R"("merges":7,"merges_2":[)", "model has no list 'merges'");
  refused(R"("merges":[)", R"("merges":{"a":1},"merges_2":[)", "model has no list 'merges'");
  refused(R"({"version")", R"([{"version")", "expected an object");
}
