#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/text/chat_message.hpp>
#include <pith/text/detail/chat_styles.hpp>
#include <pith/text/detail/chat_templates.hpp>
#include <pith/text/detail/utf8.hpp>
#include <pith/text/tokenizer.hpp>

// Writes conversations in the chat format of a model family.
namespace pith { inline namespace v0 {

struct ChatOptions {
  bool add_generation_prompt = true;  ///< ends with the opening of the assistant's answer
  bool match_special = false;         ///< special tokens written in a message become special tokens, as in transformers
};

/// The chat format of a model family, one of the published formats. Templates are not interpreted.
///
///   const ChatFormat format = ChatFormat::of(tokenizer);   // by the folder's chat_template, or
///   const ChatFormat format = ChatFormat::named("llama3"); // by name
///   const auto ids = format.encode(tokenizer, {{"system", "Be brief."}, {"user", "Hello"}});
class ChatFormat {
 public:
  /// The format with this name: see names().
  ///
  /// Throws   UnsupportedError listing the names
  static ChatFormat named(std::string_view name) {
    for (const detail::ChatStyle& style : detail::chat_styles)
      if (style.name == name) return ChatFormat(style);
    raise<UnsupportedError>("pith::ChatFormat: no format '", name, "'; there are ", listed());
  }
  /// Finds the format of the folder's chat template by comparing texts: the published template, with or without a last newline.
  ///
  /// Throws   UnsupportedError listing the names, one of which may be given to named()
  static ChatFormat of(const Tokenizer& tokenizer) {
    if (tokenizer.chat_template().empty())
      raise<UnsupportedError>("pith::ChatFormat: the folder has no chat template; name a format: ", listed());
    if (const detail::ChatStyle* style = detail::find_chat_template(tokenizer.chat_template())) return ChatFormat(*style);
    raise<UnsupportedError>("pith::ChatFormat: the folder's chat template is unknown; name the format that it follows: ", listed());
  }
  static std::vector<std::string_view> names() {
    std::vector<std::string_view> out;
    for (const detail::ChatStyle& style : detail::chat_styles) out.push_back(style.name);
    return out;
  }

  std::string_view name() const { return style_->name; }
  /// Texts of the tokens that end an answer.
  std::vector<std::string> stop() const {
    std::vector<std::string> out;
    for (const std::string_view s : style_->stop)
      if (!s.empty()) out.emplace_back(s);
    return out;
  }

  std::string date;  ///< today, as the format writes it: llama3.1 "26 Jul 2024", granite3.3 "April 07, 2025", smollm3 "04 September 2026"
  bool thinking;     ///< qwen3, smollm3 and exaone4: the model may reason before it answers; at first as the published template has it

  /// Writes the conversation as text, with the ranges of the messages. The text contains special tokens, so encode it with
  /// add_special = false. Invalid UTF-8 in a message becomes U+FFFD, as in Tokenizer::encode().
  ///
  /// Throws   FormatError if the format has no place for a message; StateError if it needs a date
  RenderedChat render(std::span<const Message> messages, bool add_generation_prompt = true) const {
    if (style_->needs_date && date.empty())
      raise<StateError>("pith::ChatFormat ", name(), ": the system text names the day: set `date`, such as \"", style_->date, "\"");
    std::vector<Message> mended;
    const auto broken = [](std::string_view s) { return detail::valid_utf8(s) != s.size(); };
    if (std::any_of(messages.begin(), messages.end(), [&](const Message& m) { return broken(m.role) || broken(m.content); })) {
      for (const Message& m : messages) mended.push_back({whole(m.role), whole(m.content)});
      messages = mended;
    }
    const std::string day = whole(date);
    detail::ChatWriter out;
    style_->write(out, {name(), messages, add_generation_prompt, day, thinking});
    return out.take();
  }
  RenderedChat render(std::initializer_list<Message> messages, bool add_generation_prompt = true) const {
    return render(std::span(messages.begin(), messages.size()), add_generation_prompt);
  }

  /// Writes the conversation as ids.
  std::vector<Token> encode(const Tokenizer& tokenizer, std::span<const Message> messages, const ChatOptions& options = {}) const {
    const RenderedChat chat = render(messages, options.add_generation_prompt);
    return tokenizer.encode(chat.text,
                            {.add_special = false, .plain = options.match_special ? std::span<const TextRange>() : chat.contents});
  }
  std::vector<Token> encode(const Tokenizer& tokenizer, std::initializer_list<Message> messages, const ChatOptions& options = {}) const {
    return encode(tokenizer, std::span(messages.begin(), messages.size()), options);
  }

  /// Ids that end an answer: those of the tokenizer and of the format.
  std::vector<Token> stop_tokens(const Tokenizer& tokenizer) const {
    std::vector<Token> out(tokenizer.stop_tokens().begin(), tokenizer.stop_tokens().end());
    for (const std::string& s : stop())
      if (const auto id = tokenizer.id(s); id && std::find(out.begin(), out.end(), *id) == out.end()) out.push_back(*id);
    return out;
  }

 private:
  explicit ChatFormat(const detail::ChatStyle& style)
      : date(style.needs_date ? "" : style.date), thinking(style.thinking), style_(&style) {}
  static std::string whole(std::string_view s) {
    std::string out;
    detail::append_utf8(out, s);
    return out;
  }
  static std::string listed() {
    std::string out;
    for (const detail::ChatStyle& style : detail::chat_styles) out.append(out.empty() ? "" : ", ").append(style.name);
    return out;
  }
  const detail::ChatStyle* style_;
};

}}  // namespace pith::v0
