// A tokenizer folder: tokenizer.json, and behind lines "=== name" the files beside it, a text to encode ("text") and ids to decode ("ids",
// two bytes each). Refused, or a tokenizer whose ids have tokens and whose stream is its decoded text; conversations in every format.
#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <pith/text.hpp>

#include "fuzz/fuzz.hpp"

namespace pith_fuzz {
namespace {

void converse(const pith::Tokenizer& tokenizer, std::string_view text) {
  const std::size_t third = text.size() / 3;
  const std::vector<pith::Message> messages{{"system", std::string(text.substr(0, third))},
                                            {"user", std::string(text.substr(third, third))},
                                            {text.size() % 2 == 0 ? "assistant" : "user", std::string(text.substr(2 * third))}};
  for (const std::string_view name : pith::ChatFormat::names()) {
    pith::ChatFormat format = pith::ChatFormat::named(name);
    format.date = "01 May 2026";
    format.thinking = text.size() % 5 != 0;
    pith::RenderedChat chat;
    const Outcome outcome = attempt([&] { chat = format.render(messages, text.size() % 7 != 0); });
    demand(outcome == Outcome::done || outcome == Outcome::format || outcome == Outcome::memory, "a conversation is written or refused");
    if (outcome != Outcome::done) continue;
    std::size_t end = 0;
    for (const pith::TextRange& range : chat.contents) {
      demand(range.begin >= end && range.begin < range.end && range.end <= chat.text.size(), "contents lie in the text, in order");
      end = range.end;
    }
    const Outcome encoded = attempt([&] { format.encode(tokenizer, messages); });
    demand(encoded == Outcome::done || encoded == Outcome::format || encoded == Outcome::memory, "a conversation is encoded or refused");
  }
}

}  // namespace

void run_tokenizer(Bytes bytes) {
  const std::filesystem::path folder = scratch() / "tokenizer";
  std::error_code ignored;
  std::filesystem::remove_all(folder, ignored);
  demand(std::filesystem::create_directory(folder), "the scratch folder takes folders");
  std::string text = "it's  \xC3\xA9\xE2\x96\x81 <s>\n";
  std::vector<pith::Token> ids{0, -1, 5, 70'000};
  for_files(bytes, "tokenizer.json", [&](std::string_view name, std::string_view part) {
    if (name == "text") text = part;
    for (std::size_t i = 0; name == "ids" && i + 1 < part.size(); i += 2)
      ids.push_back(static_cast<unsigned char>(part[i]) * 256 + static_cast<unsigned char>(part[i + 1]));
    for (const std::string_view known : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
                                         "config.json", "chat_template.jinja", "chat_template.json"})
      if (name == known) write_file(folder / name, part);
  });

  std::optional<pith::Tokenizer> tokenizer;
  const Outcome outcome = attempt([&] { tokenizer = pith::load_tokenizer(folder); });
  demand(outcome == Outcome::done || outcome == Outcome::format || outcome == Outcome::unsupported || outcome == Outcome::memory,
         "a tokenizer is refused as a file");
  if (outcome != Outcome::done) return;
  const auto round = [&](const std::vector<pith::Token>& list) {
    for (const bool skip : {false, true}) {
      const std::string whole = tokenizer->decode(list, {.skip_special = skip});
      demand(pith::detail::valid_utf8(whole) == whole.size(), "decoded text is UTF-8");
      pith::Detokenizer stream(*tokenizer, skip);
      std::string shown;
      for (const pith::Token id : list) shown += stream.add(id);
      shown += stream.finish();
      demand(pith::detail::valid_utf8(shown) == shown.size(), "streamed text is UTF-8");
      const bool may_differ = std::any_of(list.begin(), list.end(), [&](pith::Token id) {
        return pith::detail::fallback_byte(tokenizer->token(id).value_or("")).has_value();
      });
      demand(may_differ || shown == whole, "a stream gives the text of the whole");
    }
    tokenizer->decode(list, {.clean_up_spaces = true});
  };
  std::vector<pith::Token> encoded;
  for (const bool special : {true, false}) {
    if (attempt([&] { encoded = tokenizer->encode(text, {.add_special = special, .match_special = special}); }) == Outcome::memory) return;
    for (const pith::Token id : encoded) demand(id < tokenizer->size() && tokenizer->token(id).has_value(), "every id has a token");
    round(encoded);
  }
  round(ids);
  for (const pith::Token id : tokenizer->stop_tokens()) demand(id >= 0, "a token that ends a text is one");
  attempt([&] { pith::ChatFormat::of(*tokenizer); });
  converse(*tokenizer, text);
}

}  // namespace pith_fuzz
