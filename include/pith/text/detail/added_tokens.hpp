#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/types.hpp>
#include <pith/text/detail/unicode.hpp>
#include <pith/text/detail/vocabulary.hpp>
#include <pith/text/text_range.hpp>

// Finds added tokens, such as special tokens, in a text.
namespace pith { inline namespace v0 { namespace detail {

/// A token that is cut out of the text before the model's own tokens are found.
struct AddedToken {
  Token id = 0;
  std::string content;
  bool single_word = false;  ///< matches only whole words
  bool lstrip = false;       ///< also takes the white space before it
  bool rstrip = false;       ///< also takes the white space after it
  bool normalized = false;   ///< matches in normalised text
  bool special = false;      ///< can be omitted from decoded text
};

/// Finds the longest of many strings at each place of a text, from left to right, without overlaps.
///
/// An Aho-Corasick automaton reads the text backwards, so that it knows at each byte the longest string that begins there; a forward pass
/// then takes the leftmost matches.
///
/// Cost     linear in the text, for any strings
class StringMatcher {
 public:
  struct Match {
    std::size_t begin;
    std::uint32_t which;
  };

  StringMatcher() = default;
  explicit StringMatcher(const std::vector<std::string_view>& strings) {
    std::size_t total = 0;
    for (const auto s : strings) total += s.size();
    if (total == 0) return;
    nodes_.reserve(total + 1);
    nodes_.emplace_back();
    edges_.resize(std::bit_ceil(2 * total + 2));
    for (std::size_t k = 0; k < strings.size(); ++k) {
      std::uint32_t at = 0;
      for (std::size_t i = strings[k].size(); i-- > 0;) at = grow(at, byte_of(strings[k], i));
      if (at != 0) nodes_[at].longest = static_cast<std::uint32_t>(k);
    }
    // Nodes in order of depth: the node to fall back to is shallower.
    std::vector<std::uint32_t> order(nodes_.size());
    for (std::uint32_t n = 0; n < order.size(); ++n) order[n] = n;
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return nodes_[a].depth < nodes_[b].depth; });
    for (const std::uint32_t n : order) {
      if (n == 0) continue;
      Node& node = nodes_[n];
      node.fallback = node.parent == 0 ? 0 : next(nodes_[node.parent].fallback, node.byte);
      if (node.longest == no_id) node.longest = nodes_[node.fallback].longest;
    }
  }

  bool empty() const { return nodes_.empty(); }

  /// Finds all places where a string begins, last first, with the longest string there.
  void find(std::string_view text, std::vector<Match>& matches) const {
    matches.clear();
    if (empty()) return;
    std::uint32_t at = 0;
    for (std::size_t i = text.size(); i-- > 0;) {
      const unsigned byte = byte_of(text, i);
      at = at == 0 ? roots_[byte] : next(at, byte);
      if (nodes_[at].longest != no_id) matches.push_back({i, nodes_[at].longest});
    }
  }

 private:
  struct Node {
    std::uint32_t fallback = 0, longest = no_id, parent = 0, depth = 0;
    std::uint8_t byte = 0;
  };
  struct Edge {
    std::uint64_t key = 0;  // node and byte
    std::uint32_t to = 0;   // 0: none
  };
  Edge& edge(std::uint32_t from, unsigned byte) { return edges_[place(from, byte)]; }
  std::size_t place(std::uint32_t from, unsigned byte) const {
    const std::uint64_t key = std::uint64_t{from} << 8 | byte;
    const std::size_t mask = edges_.size() - 1;
    std::size_t at = static_cast<std::size_t>(hash_(key)) & mask;
    while (edges_[at].to != 0 && edges_[at].key != key) at = (at + 1) & mask;
    return at;
  }
  std::uint32_t grow(std::uint32_t from, unsigned byte) {
    Edge& e = edge(from, byte);
    if (e.to == 0) {
      e = {std::uint64_t{from} << 8 | byte, static_cast<std::uint32_t>(nodes_.size())};
      nodes_.push_back({.parent = from, .depth = nodes_[from].depth + 1, .byte = static_cast<std::uint8_t>(byte)});
      if (from == 0) roots_[byte] = e.to;
    }
    return e.to;
  }
  std::uint32_t next(std::uint32_t from, unsigned byte) const {
    for (; from != 0; from = nodes_[from].fallback)
      if (const std::uint32_t to = edges_[place(from, byte)].to; to != 0) return to;
    return roots_[byte];
  }

  SeededHash hash_;
  std::vector<Node> nodes_;
  std::vector<Edge> edges_;
  std::array<std::uint32_t, 256> roots_{};
};

/// A part of a text: an added token, or ordinary text.
struct TextPiece {
  std::size_t begin, end;
  const AddedToken* token;  ///< nullptr: text
};

/// Splits a text at added tokens, either in raw or in normalised text.
class AddedTokenSplitter {
 public:
  AddedTokenSplitter() = default;
  /// `patterns`: the text of each token, in the order of `tokens`.
  AddedTokenSplitter(std::vector<const AddedToken*> tokens, const std::vector<std::string>& patterns)
      : tokens_(std::move(tokens)), matcher_(std::vector<std::string_view>(patterns.begin(), patterns.end())) {
    for (const auto& p : patterns) sizes_.push_back(p.size());
  }

  /// Buffer of split(), reused between texts.
  using Scratch = std::vector<StringMatcher::Match>;

  /// Calls take(piece) for the non-empty parts of `text`, in order. A token refused by may(token, begin, end) is ordinary text.
  template <class May, class Take> void split(std::string_view text, Scratch& matches, May&& may, Take&& take) const {
    matcher_.find(text, matches);
    std::size_t done = 0;    // end of the last piece
    std::size_t search = 0;  // earlier matches overlap a taken one
    TextRange white;         // taken by the last rstrip; a token of white space matches within it again, so it is not read twice
    while (!matches.empty()) {
      const StringMatcher::Match match = matches.back();
      matches.pop_back();
      if (match.begin < search) continue;
      const AddedToken& token = *tokens_[match.which];
      std::size_t begin = match.begin, end = begin + sizes_[match.which];
      search = end;
      if ((token.single_word && continues_word(text, begin, end)) || !may(token, begin, end)) continue;
      if (token.lstrip)
        while (begin > done && is_white_space(code_point(text, before(text, begin)).value)) begin = before(text, begin);
      if (token.rstrip) {
        if (end < white.begin || end > white.end) white = {end, end + white_space(text.substr(end))};
        end = white.end;
      }
      if (begin > done) take(TextPiece{done, begin, nullptr});
      take(TextPiece{begin, end, &token});
      done = end;
    }
    if (done < text.size()) take(TextPiece{done, text.size(), nullptr});
  }

 private:
  /// Bytes of white space at the front.
  static std::size_t white_space(std::string_view text) {
    std::size_t i = 0;
    while (i < text.size() && is_white_space(code_point(text, i).value)) i += code_point(text, i).size;
    return i;
  }
  static bool continues_word(std::string_view text, std::size_t begin, std::size_t end) {
    const auto word = [&](std::size_t i) { return (CharClasses::table()[code_point(text, i).value] & char_class::word) != 0; };
    return (begin > 0 && word(before(text, begin))) || (end < text.size() && word(end));
  }

  std::vector<const AddedToken*> tokens_;
  std::vector<std::size_t> sizes_;
  StringMatcher matcher_;
};

}}}  // namespace pith::v0::detail
