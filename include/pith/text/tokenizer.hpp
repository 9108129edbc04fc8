#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/text/detail/tokenizer_parts.hpp>
#include <pith/text/text_range.hpp>

// Text to token ids, and ids to text.
namespace pith { inline namespace v0 {

struct EncodeOptions {
  bool add_special = true;    ///< adds the folder's tokens around a text, such as <s>; not for text that already has them (chats)
  bool match_special = true;  ///< special tokens written in the text become special tokens, else ordinary text
  std::span<const TextRange> plain = {};  ///< ranges in order; a special token that overlaps one is always ordinary text
};

struct DecodeOptions {
  bool skip_special = false;     ///< omits special tokens
  bool clean_up_spaces = false;  ///< "a , b" → "a, b" and the like, as transformers does if a folder asks for it; damages code
};

/// Text ↔ token ids, by the tokenizer.json of a Hugging Face folder. Copies share the tables, and any number of
/// threads may use one.
///
/// Law      under byte-level tokenizers that do not normalise, decode(encode(text)) == text for every UTF-8 text
class Tokenizer {
 public:
  /// Invalid UTF-8 is read as U+FFFD, one for each maximal part that could begin a character.
  ///
  /// Cost     linear in the text and n log n in its longest word
  std::vector<Token> encode(std::string_view text, const EncodeOptions& options = {}) const;

  /// Skips ids without a token: an embedding table may have more rows than there are tokens.
  std::string decode(std::span<const Token> ids, const DecodeOptions& options = {}) const;

  /// The token as the file spells it, such as "Ġhello" or "▁hello"; nullopt for an id without a token.
  std::optional<std::string> token(Token id) const { return parts_->token(id); }
  /// The id of the token with this spelling.
  std::optional<Token> id(std::string_view token) const { return parts_->id(token); }
  /// Whether decoding can omit this token.
  bool is_special(Token id) const { return parts_->is_special(id); }

  /// Tokens that end a text, chosen as in transformers: from generation_config.json, else config.json, else the tokenizer.
  std::span<const Token> stop_tokens() const { return parts_->stop_tokens; }
  /// The folder's chat template, verbatim; empty: none. ChatFormat::of() recognises it.
  const std::string& chat_template() const { return parts_->chat_template; }
  /// Settings of the folder that loading did not follow, one sentence each.
  std::span<const std::string> ignored() const { return parts_->ignored; }

  /// The largest id + 1.
  Index size() const { return static_cast<Index>(parts_->id_limit); }
  /// Refuses a tokenizer that has tokens outside this vocabulary.
  ///
  /// Throws   FormatError naming the token
  void check_vocabulary(Index vocab_size) const {
    if (size() > vocab_size)
      raise<FormatError>("pith: '", parts_->file, "' has token '", token(static_cast<Token>(size() - 1)).value_or(""), "' of id ",
                         size() - 1, ", the model a vocabulary of ", vocab_size, ": they do not belong together");
  }

  /// Called by load_tokenizer().
  explicit Tokenizer(std::shared_ptr<const detail::TokenizerParts> parts) : parts_(std::move(parts)) {}

 private:
  friend class Detokenizer;
  std::shared_ptr<const detail::TokenizerParts> parts_;
};

inline std::vector<Token> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  const detail::TokenizerParts& parts = *parts_;
  std::string mended;
  if (detail::valid_utf8(text) != text.size()) {
    if (!options.plain.empty()) raise<FormatError>("pith::Tokenizer: EncodeOptions::plain names bytes of a text that is not UTF-8");
    detail::append_utf8(mended, text);
    text = mended;
  }
  std::vector<Token> out;
  if (options.add_special) out = parts.prefix;
  std::size_t range = 0;  // the first of `plain` that ends after the current match
  const auto may = [&](const detail::AddedToken& token, std::size_t begin, std::size_t end) {
    if (!token.special) return true;
    if (!options.match_special) return false;
    while (range < options.plain.size() && options.plain[range].end <= begin) ++range;
    return range == options.plain.size() || options.plain[range].begin >= end;
  };
  detail::EncodeScratch scratch;
  parts.raw.split(text, scratch.raw, may, [&](const detail::TextPiece& piece) {
    if (piece.token != nullptr) return out.push_back(piece.token->id);
    parts.encode_text(text.substr(piece.begin, piece.end - piece.begin), piece.begin == 0, options.match_special, out, scratch);
  });
  if (options.add_special) out.insert(out.end(), parts.suffix.begin(), parts.suffix.end());
  return out;
}

inline std::string Tokenizer::decode(std::span<const Token> ids, const DecodeOptions& options) const {
  std::string out;
  detail::TextStream stream(parts_->decoder, false);
  for (const Token id : ids)
    if (const auto piece = parts_->piece(id, options.skip_special)) stream.add(*piece, out);
  stream.finish(out);
  if (!options.clean_up_spaces) return out;
  constexpr std::string_view cleaned[][2] = {{" .", "."},     {" ?", "?"},   {" !", "!"},   {" ,", ","},     {" ' ", "'"},
                                             {" n't", "n't"}, {" 'm", "'m"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& [from, to] : cleaned) out = detail::replaced(out, from, to);
  return out;
}

}}  // namespace pith::v0
