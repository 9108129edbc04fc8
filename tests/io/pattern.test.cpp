#include <chrono>
#include <regex>
#include <string>
#include <vector>

#include <pith/io/detail/pattern.hpp>

#include "support/catch.hpp"

namespace {

using namespace pith;
using detail::Pattern;
using pith_test::contains;

bool whole_match(const std::string& expression, const std::string& text) {
  std::size_t steps = 1 << 20;
  return Pattern(expression, "here").matches(text, steps);
}

}  // namespace

TEST_CASE("pattern: agrees with the standard library's matcher where that can be trusted", "[io]") {
  const std::vector<std::string> expressions = {"",
                                                "a",
                                                "ab",
                                                "a|b",
                                                "a*",
                                                "a+b?",
                                                "(a|b)*c",
                                                "[a-c]+",
                                                "[^a]b",
                                                "a.c",
                                                "(ab){2}",
                                                "a{2,3}",
                                                "a{1,}b",
                                                "^a$",
                                                "(?:a|)b",
                                                "a*?b",
                                                "(a+)+b",
                                                "\\w+\\.\\d",
                                                "[\\w.]+c",
                                                "(?=ab)a.",
                                                "(?!ab).*",
                                                "(?!.*c).*a.*",
                                                "\\ba\\b",
                                                "a\\Bb",
                                                "[]a]+",
                                                "[a\\-c]+",
                                                "((a|b)|(c|ab))+",
                                                "x*",
                                                "(|a)(b|)",
                                                "(?=.*b)(?!b).*",
                                                "\\s",
                                                "\\S\\D",
                                                "a\\.b",
                                                "[.]",
                                                "{",
                                                "a{b",
                                                ".*\\.(a|b)"};
  const std::string letters = "abc.1 ";
  std::vector<std::string> texts = {""};
  for (std::size_t first = 0, length = 0; length < 4; ++length) {
    const std::size_t last = texts.size();
    for (; first < last; ++first)
      for (const char c : letters) texts.push_back(texts[first] + c);
  }
  for (const std::string& expression : expressions) {
    if (expression == "[]a]+" || expression.find('{') == 0 || expression == "a{b") continue;  // Python's reading, not ECMAScript's: below
    const std::regex reference(expression);
    INFO(expression);
    std::size_t different = 0;
    for (const std::string& text : texts) different += whole_match(expression, text) != std::regex_match(text, reference);
    CHECK(different == 0);
  }
}

TEST_CASE("pattern: reads what only Python writes, as Python does", "[io]") {
  CHECK(whole_match("[]a]+", "]a]"));
  CHECK(whole_match("{", "{"));
  CHECK(whole_match("a{b", "a{b"));
  CHECK(whole_match("a{,2}", "aa"));
  CHECK(whole_match("a{,2}", ""));
  CHECK_FALSE(whole_match("a{,2}", "aaa"));
  CHECK(whole_match("(?P<name>a)b", "ab"));
  CHECK(whole_match("\\Aab\\Z", "ab"));
  CHECK(whole_match("a??b", "b"));
  const std::string unsloth =
      R"((?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|k_proj))|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|k_proj))))";
  CHECK(whole_match(unsloth, "model.layers.12.self_attn.q_proj"));
  CHECK(whole_match(unsloth, "text_model.layers.1.mlp.k_proj"));
  CHECK_FALSE(whole_match(unsloth, "model.layers.12.self_attn.v_proj"));
  CHECK_FALSE(whole_match(unsloth, "vision.layers.1.self_attn.q_proj"));
}

TEST_CASE("pattern: what would take for ever does not", "[io]") {
  const std::string many_a(400, 'a');
  CHECK_FALSE(whole_match("(a*)*b", many_a));
  CHECK_FALSE(whole_match("(a|a)*b", many_a));
  CHECK_FALSE(whole_match("(a|aa)+$b", many_a));
  CHECK(whole_match("(((){8000}){8000}){8000}", ""));
  CHECK_THROWS_AS(whole_match("((a{100}){100}){100}", "a"), FormatError);
  CHECK_THROWS_WITH(whole_match("((a{100}){100}){100}", "a"), contains("here: expression") && contains("more than 8192 states"));
  CHECK_THROWS_WITH(whole_match(std::string(33, '(') + std::string(33, ')'), ""), contains("nests groups deeper than 32"));
  CHECK_THROWS_WITH(whole_match(std::string(5000, 'a'), ""), contains("has 5000 bytes, expected at most 4096"));
  std::size_t steps = 1 << 16;  // a look to the end from every letter
  const Pattern looks("((?!a*c)a)*d", "here");
  CHECK_THROWS_AS(looks.matches(many_a, steps), FormatError);
  CHECK_THROWS_WITH(looks.matches(many_a, steps), contains("here: expression '((?!a*c)a)*d' takes too long on 'aaa"));
  CHECK_FALSE(whole_match("((?!a*c)a)*d", many_a));
}

TEST_CASE("pattern: refuses what is broken, and what it does not read", "[io]") {
  const auto broken = [](const std::string& expression, const std::string& why) {
    INFO(expression);
    CHECK_THROWS_AS(Pattern(expression, "here"), FormatError);
    CHECK_THROWS_WITH(Pattern(expression, "here"), contains("here: expression '") && contains(why));
  };
  broken("(a", "opens a group that is not closed");
  broken("a)b", "closes a group at byte 1 that was not opened");
  broken("[a", "opens a class that is not closed");
  broken("*a", "repeats nothing at byte 0");
  broken("a**", "repeats a repetition at byte 2");
  broken("a{3,2}", "repeats at least 3 and at most 2 times");
  broken("a{9999999999999999999999}", "repeats more than 8192 times");
  broken("[c-a]", "has an impossible range before byte 4");
  broken("[\\w-a]", "has an impossible range");
  broken("a\\", "ends in a backslash");
  broken("(?P<name", "names a group without an end");
  const auto other = [](const std::string& expression, const std::string& what) {
    INFO(expression);
    CHECK_THROWS_AS(Pattern(expression, "here"), UnsupportedError);
    CHECK_THROWS_WITH(Pattern(expression, "here"), contains(what) && contains("list the names"));
  };
  other("(a)\\1", "'\\1'");
  other("\\n", "'\\n'");
  other("(?<=a)b", "a group of another kind");
  other("(?i)a", "a group of another kind");
  other("(?P=name)", "a group of another kind");
  other("a*+", "a possessive repetition");
  other("\xc3\xa4", "letters beyond ASCII");
}
