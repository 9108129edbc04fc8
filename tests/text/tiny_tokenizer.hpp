#pragma once

#include <string>
#include <string_view>

#include <pith/text.hpp>

#include "io/temp_folder.hpp"

namespace pith_test {

/// tokenizer.json of a byte-level model: all bytes, "ab", "bc", "abc", " a", and <x>, <end> as added tokens.
inline std::string byte_level_json(std::string_view added = {}, std::string_view pre = {}) {
  std::string vocab, out;
  for (int b = 0; b < 256; ++b) {
    const char byte = static_cast<char>(b);
    std::string name;
    pith::detail::append_json_text(name, pith::detail::ByteMap::table().names({&byte, 1}));
    vocab += name + ":" + std::to_string(b) + ",";
  }
  out = R"({"version":"1.0","added_tokens":[)";
  out += added.empty()
             ? std::string_view(
                   R"({"id":260,"content":"<x>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":false},
    {"id":261,"content":"<end>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true})")
             : added;
  out += R"(],"normalizer":null,"pre_tokenizer":)";
  out += pre.empty() ? std::string_view(R"({"type":"ByteLevel","add_prefix_space":false})") : pre;
  out += R"(,"post_processor":null,"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{)" + vocab +
         R"("ab":256,"bc":257,"abc":258,"Ġa":259},"merges":["b c","a b","a bc","Ġ a"]}})";
  return out;
}

inline pith::Tokenizer tokenizer_of(const std::string& json, const std::string& config = {}) {
  const TempFolder folder;
  folder.write("tokenizer.json", json);
  if (!config.empty()) folder.write("tokenizer_config.json", config);
  return pith::load_tokenizer(folder.path());
}

}  // namespace pith_test
