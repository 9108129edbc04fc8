#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <pith/text.hpp>

#include "support/catch.hpp"

using namespace pith;
using namespace pith_test;

namespace {

std::string mended(std::string_view s) {
  std::string out;
  detail::append_utf8(out, s);
  return out;
}

// What StringMatcher finds, by trying every string at every place.
std::vector<std::pair<std::size_t, std::uint32_t>> found_slowly(std::string_view text, const std::vector<std::string_view>& strings) {
  std::vector<std::pair<std::size_t, std::uint32_t>> out;
  for (std::size_t i = text.size(); i-- > 0;) {
    std::size_t longest = 0, which = 0;
    for (std::size_t k = 0; k < strings.size(); ++k)
      if (strings[k].size() > longest && text.substr(i).starts_with(strings[k])) {
        longest = strings[k].size();
        which = k;
      }
    if (longest > 0) out.emplace_back(i, static_cast<std::uint32_t>(which));
  }
  return out;
}

// The rule of BPE word by word: the pair of least rank, the leftmost of equals, merges until none can.
std::vector<Token> merged_slowly(std::string_view word, const std::vector<std::pair<std::string, std::string>>& merges,
                                 const std::vector<std::string>& vocabulary) {
  std::vector<std::string> symbols;
  for (const char c : word) symbols.emplace_back(1, c);
  for (;;) {
    std::size_t best_rank = merges.size(), best = 0;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i)
      for (std::size_t rank = 0; rank < best_rank; ++rank)
        if (merges[rank] == std::pair(symbols[i], symbols[i + 1])) {
          best_rank = rank;
          best = i;
        }
    if (best_rank == merges.size()) break;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
  std::vector<Token> ids;
  for (const auto& s : symbols) ids.push_back(static_cast<Token>(std::find(vocabulary.begin(), vocabulary.end(), s) - vocabulary.begin()));
  return ids;
}

}  // namespace

TEST_CASE("bytes that are no UTF-8 become one U+FFFD for each maximal part", "[text]") {
  const std::string r = "\xEF\xBF\xBD";
  CHECK(mended("a\xE4\xBD") == "a" + r);
  CHECK(mended("\xF0\x9F\x98") == r);
  CHECK(mended("\xFF\xFF") == r + r);
  CHECK(mended("\xE0\x80") == r + r);
  CHECK(mended("\xED\xA0\x80") == r + r + r);  // a surrogate
  CHECK(mended("\xC0\xAF") == r + r);          // overlong
  CHECK(mended("\xF4\x90\x80\x80") == r + r + r + r);
  CHECK(mended("\xE4z\xF0\x9F\x98\x80") == r + "z\xF0\x9F\x98\x80");
  CHECK(mended(std::string_view("\0\xEF\xBF\xBF", 4)) == std::string_view("\0\xEF\xBF\xBF", 4));  // NUL and non-characters are text
}

TEST_CASE("characters survive being read and written", "[text]") {
  for (const char32_t c : {U'\0', U'a', U'\x7F', U'\x80', U'\u07FF', U'\u0800', U'\uFFFD', U'\U00010000', U'\U0010FFFF'}) {
    std::string s;
    detail::append_code_point(s, c);
    const auto read = detail::code_point(s, 0);
    CHECK(read.value == c);
    CHECK(read.size == s.size());
    CHECK(detail::valid_utf8(s) == s.size());
  }
}

TEST_CASE("white space is Unicode's and no other", "[text]") {
  for (char32_t c = 0; c < 0x3100; ++c) {
    const bool white = (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
                       c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
    CHECK(((detail::CharClasses::table()[c] & detail::char_class::space) != 0) == white);
  }
}

TEST_CASE("NFC is utf8proc's, for any order of marks", "[text]") {
  std::mt19937 rng(3);
  const std::array<char32_t, 14> characters{U'a',      U'e',      U'\u0301', U'\u0323', U'\u0302', U'\u1E0B', U'\u0307',
                                            U'\u1100', U'\u1161', U'\u11A8', U'\u0F71', U'\u0F72', U'\u2126', U'\u4E2D'};
  for (int round = 0; round < 500; ++round) {
    std::string s;
    for (int i = 0; i < 12; ++i) detail::append_code_point(s, characters[rng() % characters.size()]);
    auto* const expected = reinterpret_cast<char*>(utf8proc_NFC(reinterpret_cast<const utf8proc_uint8_t*>(s.c_str())));
    REQUIRE(expected != nullptr);
    CHECK(detail::nfc(s) == expected);
    std::free(expected);
  }
}

TEST_CASE("a long run of marks in the wrong order is put in order at once", "[text]") {
  std::string s = "a", expected = "a";  // U+0323 sorts before U+0301; utf8proc alone would take 10^11 steps
  constexpr int pairs = 300'000;
  for (int i = 0; i < pairs; ++i) s += "\xCC\x81\xCC\xA3";
  const std::string out = detail::nfc(s);
  // a + U+0323 + U+0301 composes to U+1EA1 + U+0301: the first mark of each class is taken up or stays.
  CHECK(out.size() == std::string("\xE1\xBA\xA1").size() + 2 * (pairs - 1) + 2 * pairs);
  CHECK(out.starts_with("\xE1\xBA\xA1\xCC\xA3\xCC\xA3"));
  CHECK(out.ends_with("\xCC\x81\xCC\x81"));
}

TEST_CASE("strings are found as by trying each at every place", "[text]") {
  std::mt19937 rng(5);
  for (int round = 0; round < 300; ++round) {
    std::vector<std::string> owned;
    for (std::size_t k = 0, n = 1 + rng() % 6; k < n; ++k) {
      std::string s;
      for (std::size_t i = 0, size = 1 + rng() % 5; i < size; ++i) s.push_back(static_cast<char>('a' + rng() % 3));
      if (std::find(owned.begin(), owned.end(), s) == owned.end()) owned.push_back(s);
    }
    const std::vector<std::string_view> strings(owned.begin(), owned.end());
    std::string text;
    for (std::size_t i = 0, size = rng() % 40; i < size; ++i) text.push_back(static_cast<char>('a' + rng() % 3));
    const detail::StringMatcher matcher(strings);
    std::vector<detail::StringMatcher::Match> matches;
    matcher.find(text, matches);
    const auto expected = found_slowly(text, strings);
    CAPTURE(text, owned);
    REQUIRE(matches.size() == expected.size());
    for (std::size_t i = 0; i < matches.size(); ++i) CHECK(std::pair(matches[i].begin, matches[i].which) == expected[i]);
  }
}

TEST_CASE("words merge as by looking for the best pair each time, short or long", "[text]") {
  std::mt19937 rng(7);
  for (int round = 0; round < 60; ++round) {
    detail::BpeFile file;
    std::vector<std::string> vocabulary{"a", "b", "c"};
    std::vector<std::pair<std::string, std::string>> merges;
    for (int k = 0; k < 12; ++k) {
      const std::string left = vocabulary[rng() % vocabulary.size()], right = vocabulary[rng() % vocabulary.size()];
      if (std::find(merges.begin(), merges.end(), std::pair(left, right)) != merges.end()) continue;
      merges.emplace_back(left, right);
      if (std::find(vocabulary.begin(), vocabulary.end(), left + right) == vocabulary.end()) vocabulary.push_back(left + right);
    }
    for (std::size_t i = 0; i < vocabulary.size(); ++i) {
      file.keys.push_back(vocabulary[i]);
      file.ids.push_back(static_cast<std::uint32_t>(i));
    }
    for (const auto& [left, right] : merges) file.merges.push_back(left + " " + right);
    const detail::Bpe bpe(file, false, "tokenizer.json");
    detail::Bpe::Scratch scratch;
    for (const std::size_t size : std::initializer_list<std::size_t>{0, 1, 2, 5, 31, 32, 33, 34, 90}) {
      std::string word;
      for (std::size_t i = 0; i < size; ++i) word.push_back(static_cast<char>('a' + rng() % 3));
      std::vector<Token> ids;
      bpe.encode(word, ids, scratch);
      CAPTURE(word, vocabulary);
      CHECK(ids == merged_slowly(word, merges, vocabulary));
    }
  }
}
