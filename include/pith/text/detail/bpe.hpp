#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/text/detail/byte_map.hpp>
#include <pith/text/detail/utf8.hpp>
#include <pith/text/detail/vocabulary.hpp>
#include <pith/text/detail/word_merges.hpp>

// Byte pair encoding.
namespace pith { inline namespace v0 { namespace detail {

/// A BPE model as its file states it, unchecked.
struct BpeFile {
  StringList keys;
  std::vector<std::uint32_t> ids;  ///< [keys]
  StringList merges;               ///< one "left right" each, or left and right alternating
  bool merges_in_pairs = false;
  bool byte_fallback = false, fuse_unk = false, ignore_merges = false;
  std::optional<std::string> unk_token;
};

/// Byte pair encoding: merges the pair of lowest rank (leftmost of equals) among a word's symbols until no pair merges.
///
/// Cost     n log n for a word of n symbols
class Bpe {
 public:
  /// `byte_level`: words are bytes, and keys spell them by GPT-2's map.
  ///
  /// Throws   FormatError naming `file` and the faulty entry
  Bpe(const BpeFile& file, bool byte_level, std::string_view name) : byte_level_(byte_level), ignore_merges_(file.ignore_merges) {
    build_vocabulary(file, name);
    build_merges(file, name);
    for (std::size_t b = 0; b < first_.size(); ++b) {
      const char byte = static_cast<char>(b);
      first_[b] = vocabulary_.find({&byte, 1});
    }
    mark_ = vocabulary_.find(space_mark);
    build_fallback(file, name);
    build_cut();
  }

  /// Buffers of encode(), reused between words.
  struct Scratch {
    std::vector<std::uint32_t> symbols;
    WordScratch word;
  };

  /// Appends the ids of a word. A text without word breaks is cut where no merge can cross, so that it is as fast as text with breaks.
  void encode(std::string_view word, std::vector<Token>& out, Scratch& scratch) const {
    if (ignore_merges_)
      if (const std::uint32_t id = vocabulary_.find(word); id != no_id) return out.push_back(static_cast<Token>(id));
    while (!word.empty()) {
      const std::size_t length = cuts_ ? piece_length(word) : word.size();
      encode_piece(word.substr(0, length), out, scratch);
      word.remove_prefix(length);
    }
  }

  /// The id of the token with this spelling in the file.
  std::uint32_t find(std::string_view token) const {
    if (!byte_level_) return vocabulary_.find(token);
    if (const auto bytes = ByteMap::table().bytes(token)) return vocabulary_.find(*bytes);
    return literal_.find(token);
  }
  bool has(std::uint32_t id) const { return vocabulary_.has(id) || literal_.has(id); }
  /// The token's spelling in the file.
  std::string token(std::uint32_t id) const {
    if (literal_.has(id)) return std::string(literal_.key(id));
    return byte_level_ ? ByteMap::table().names(vocabulary_.key(id)) : std::string(vocabulary_.key(id));
  }
  /// The bytes of a token in a byte-level model; otherwise its text.
  std::string_view bytes(std::uint32_t id) const { return literal_.has(id) ? literal_.key(id) : vocabulary_.key(id); }
  std::size_t id_limit() const { return vocabulary_.id_limit(); }
  bool byte_level() const { return byte_level_; }

 private:
  static constexpr std::string_view space_mark = "\xE2\x96\x81";  // U+2581, sentencepiece's space

  void build_vocabulary(const BpeFile& file, std::string_view name) {
    std::size_t limit = 0;
    for (const std::uint32_t id : file.ids) limit = (std::max)(limit, std::size_t{id} + 1);
    vocabulary_ = Vocabulary(file.keys.size(), limit);
    std::vector<std::size_t> literals;
    const auto add = [&](Vocabulary& to, std::string_view key, std::size_t i) {
      if (vocabulary_.has(file.ids[i]) || literal_.has(file.ids[i]))
        raise<FormatError>("pith: '", name, "': model.vocab gives id ", file.ids[i], " to two tokens");
      if (!to.add(key, file.ids[i])) raise<FormatError>("pith: '", name, "': model.vocab has token '", file.keys[i], "' twice");
    };
    for (std::size_t i = 0; i < file.keys.size(); ++i) {
      const std::string_view key = file.keys[i];
      if (key.empty()) raise<FormatError>("pith: '", name, "': model.vocab has an empty token");
      if (!byte_level_) {
        add(vocabulary_, key, i);
      } else if (const auto bytes = ByteMap::table().bytes(key)) {
        add(vocabulary_, *bytes, i);
      } else {
        literals.push_back(i);
      }
    }
    if (literals.empty()) return;
    literal_ = Vocabulary(literals.size(), limit);
    for (const std::size_t i : literals) add(literal_, file.keys[i], i);
  }

  void build_merges(const BpeFile& file, std::string_view name) {
    const std::size_t step = file.merges_in_pairs ? 2 : 1, count = file.merges.size() / step;
    merges_ = MergeTable(count);
    std::string result;
    for (std::size_t i = 0; i < count; ++i) {
      const auto refuse = [&](std::string_view what) { raise<FormatError>("pith: '", name, "': model.merges[", i, "]: ", what); };
      std::string_view left = file.merges[i * step], right;
      if (file.merges_in_pairs) {
        right = file.merges[i * step + 1];
      } else {
        const std::size_t space = left.find(' ');
        if (space == std::string_view::npos || left.find(' ', space + 1) != std::string_view::npos)
          refuse(text("'", left, "', expected two tokens and one space between them"));
        right = left.substr(space + 1);
        left = left.substr(0, space);
      }
      const auto known = [&](std::string_view token) {
        const std::uint32_t id = find(token);
        if (id == no_id) refuse(text("'", token, "' is not in model.vocab"));
        return id;
      };
      const std::uint32_t a = known(left), b = known(right);
      result.assign(left).append(right);
      const std::uint32_t id = known(result);
      merges_.set(a, b, {static_cast<std::uint32_t>(i), id});
      if (!byte_level_) note_joins(result);
    }
  }

  void build_fallback(const BpeFile& file, std::string_view name) {
    if (file.unk_token) {
      unk_ = find(*file.unk_token);
      if (unk_ == no_id) raise<FormatError>("pith: '", name, "': model.unk_token '", *file.unk_token, "' is not in model.vocab");
      fuse_unk_ = file.fuse_unk;
    }
    fallback_.fill(no_id);
    if (!file.byte_fallback) return;
    std::size_t found = 0;
    constexpr std::string_view digits = "0123456789ABCDEF";
    for (std::size_t b = 0; b < fallback_.size(); ++b) {
      fallback_[b] = find(std::string("<0x") + digits[b >> 4] + digits[b & 15] + '>');
      found += fallback_[b] != no_id;
    }
    if (found != 0 && found != fallback_.size())
      raise<FormatError>("pith: '", name, "': model.byte_fallback with ", found, " of the 256 byte tokens <0x00> .. <0xFF> in model.vocab");
  }

  // A text may be cut before a space mark that follows another character, unless a merge joins the two, the mark is not a symbol, or text
  // between two marks may be dropped.
  void note_joins(std::string_view token) {
    for (std::size_t at = token.find(space_mark, 1); at != std::string_view::npos; at = token.find(space_mark, at + 1))
      if (!token.substr(0, at).ends_with(space_mark)) joins_space_[byte_of(token, at - 1)] = true;
  }
  void build_cut() { cuts_ = !byte_level_ && mark_ != no_id && (unk_ != no_id || fallback_[0] != no_id); }
  std::size_t piece_length(std::string_view word) const {
    for (std::size_t at = word.find(space_mark, 1); at != std::string_view::npos; at = word.find(space_mark, at + 1))
      if (!word.substr(0, at).ends_with(space_mark) && !joins_space_[byte_of(word, at - 1)]) return at;
    return word.size();
  }

  void add_symbols(std::string_view word, std::vector<std::uint32_t>& symbols) const {
    bool unknown = false;  // the last character was unknown
    const auto missing = [&](std::string_view character) {
      if (fallback_[0] != no_id) {
        for (const char c : character) symbols.push_back(fallback_[static_cast<unsigned char>(c)]);
        unknown = false;
      } else if (unk_ != no_id && !(fuse_unk_ && unknown)) {
        symbols.push_back(unk_);
        unknown = true;
      }
    };
    if (byte_level_) {
      for (const char c : word) {
        const auto byte = static_cast<unsigned char>(c);
        if (first_[byte] != no_id) {
          symbols.push_back(first_[byte]);
          unknown = false;
        } else {
          std::string character;
          ByteMap::table().append_name(character, byte);
          missing(character);
        }
      }
      return;
    }
    for (std::size_t i = 0, size = 0; i < word.size(); i += size) {
      size = code_point(word, i).size;
      const std::uint32_t id = size == 1                            ? first_[byte_of(word, i)]
                               : word.substr(i, size) == space_mark ? mark_
                                                                    : vocabulary_.find(word.substr(i, size));
      if (id != no_id) {
        symbols.push_back(id);
        unknown = false;
      } else {
        missing(word.substr(i, size));
      }
    }
  }

  void encode_piece(std::string_view word, std::vector<Token>& out, Scratch& scratch) const {
    scratch.symbols.clear();
    add_symbols(word, scratch.symbols);
    merge_word(merges_, scratch.symbols, scratch.word);
    out.insert(out.end(), scratch.symbols.begin(), scratch.symbols.end());
  }

  bool byte_level_, ignore_merges_, fuse_unk_ = false, cuts_ = false;
  std::uint32_t unk_ = no_id, mark_ = no_id;
  Vocabulary vocabulary_;  // byte-level: keys are bytes
  Vocabulary literal_;     // byte-level: tokens whose spelling is not a byte string; unreachable by encoding
  MergeTable merges_;
  std::array<bool, 256> joins_space_{};        // [last byte of a character] whether a merge joins it to a space mark after it
  std::array<std::uint32_t, 256> first_{};     // the token of each byte; not byte-level: of ASCII
  std::array<std::uint32_t, 256> fallback_{};  // <0x00> .. <0xFF>, if the model has them
};

}}}  // namespace pith::v0::detail
