#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/types.hpp>
#include <pith/text/detail/added_tokens.hpp>
#include <pith/text/detail/bpe.hpp>
#include <pith/text/detail/normalizer.hpp>
#include <pith/text/detail/pre_tokenizer.hpp>
#include <pith/text/detail/token_decoder.hpp>

// The data of a loaded tokenizer, and encoding with it.
namespace pith { inline namespace v0 { namespace detail {

/// Buffers of one encode().
struct EncodeScratch {
  AddedTokenSplitter::Scratch raw, normalized;
  Bpe::Scratch bpe;
};

/// All data of a tokenizer, constant after loading.
struct TokenizerParts {
  std::string file;  // for messages
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  Bpe model;
  TokenDecoder decoder;
  std::vector<AddedToken> added = {};            // by ascending id
  AddedTokenSplitter raw = {}, normalized = {};  // point into `added`
  std::vector<Token> prefix = {}, suffix = {};   // added around a text
  std::vector<Token> stop_tokens = {};
  std::string chat_template = {};
  std::vector<std::string> ignored = {};
  std::size_t id_limit = 0;

  const AddedToken* find_added(Token id) const {
    const auto at = std::lower_bound(added.begin(), added.end(), id, [](const AddedToken& t, Token i) { return t.id < i; });
    return at != added.end() && at->id == id ? &*at : nullptr;
  }
  bool is_special(Token id) const {
    const AddedToken* token = find_added(id);
    return token != nullptr && token->special;
  }
  std::optional<std::string> token(Token id) const {
    if (const AddedToken* token = find_added(id)) return token->content;
    if (id >= 0 && model.has(static_cast<std::uint32_t>(id))) return model.token(static_cast<std::uint32_t>(id));
    return std::nullopt;
  }
  std::optional<Token> id(std::string_view token) const {
    for (const AddedToken& t : added)
      if (t.content == token) return t.id;
    const std::uint32_t id = model.find(token);
    return id == no_id ? std::nullopt : std::optional(static_cast<Token>(id));
  }

  /// The token's text as the decoder takes it; nullopt if it is omitted.
  std::optional<std::string> piece(Token id, bool skip_special) const {
    const AddedToken* const added_token = find_added(id);
    if (added_token != nullptr && skip_special && added_token->special) return std::nullopt;
    if (added_token == nullptr && (id < 0 || !model.has(static_cast<std::uint32_t>(id)))) return std::nullopt;
    if (decoder.kind != TokenDecoder::Kind::byte_level) return token(id);
    if (added_token == nullptr && model.byte_level()) return std::string(model.bytes(static_cast<std::uint32_t>(id)));
    std::string spelled = *token(id);
    auto bytes = ByteMap::table().bytes(spelled);
    return bytes ? std::move(*bytes) : std::move(spelled);
  }

  /// Encodes the text between added tokens of the raw splitter. `at_start`: it begins the whole text.
  void encode_text(std::string_view text, bool at_start, bool match_special, std::vector<Token>& out, EncodeScratch& scratch) const {
    std::string normal;
    if (!normalizer.changes_nothing()) text = normal = normalizer(text);
    const auto may = [&](const AddedToken& token, std::size_t, std::size_t) { return match_special || !token.special; };
    normalized.split(text, scratch.normalized, may, [&](const TextPiece& piece) {
      if (piece.token != nullptr) return out.push_back(piece.token->id);
      pre_tokenizer(text.substr(piece.begin, piece.end - piece.begin), at_start && piece.begin == 0,
                    [&](std::string_view word) { model.encode(word, out, scratch.bpe); });
    });
  }
};

}}}  // namespace pith::v0::detail
