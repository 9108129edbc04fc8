#pragma once

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>

// A draft model for speculative decoding that copies from the text so far.
namespace pith { inline namespace v0 {

struct PromptLookupOptions {
  Index ngram = 3;      ///< the longest match to try, in tokens; then shorter ones …
  Index min_ngram = 1;  ///< … down to this length
  Index memory = 4096;  ///< matches end at one of this many newest tokens
  Index max_draft = 8;  ///< decode() takes, and crop() takes back, up to max_draft + 1 tokens

  void check() const;
};

namespace detail {

/// Hash table of the latest occurrence of each n-gram that ends at one of the newest `memory` tokens. Open addressing, one slot per n-gram.
class NgramIndex {
 public:
  NgramIndex(Index n, Index memory, std::size_t ring)
      : n_(static_cast<Position>(n)),
        memory_(static_cast<Position>(memory)),
        slots_(std::bit_ceil(2 * static_cast<std::size_t>(memory) + 2), nowhere),
        earlier_(ring, nowhere) {}

  /// Records the n-gram that ends at the new token i. Returns where the same n-gram ended before, or `nowhere`.
  Position add(std::span<const Token> text, Position i) {
    Position& found = earlier_[static_cast<std::size_t>(i) & (earlier_.size() - 1)];
    found = nowhere;
    if (const Position old = i - memory_; whole(old))
      if (const std::size_t s = slot_of(text, old); slots_[s] == old) erase(text, s);
    if (!whole(i)) return nowhere;
    Position& slot = slots_[slot_of(text, i)];
    found = slot;
    slot = i;
    return found;
  }
  /// Undoes add() of the newest token.
  void remove(std::span<const Token> text, Position i) {
    if (whole(i)) {
      const std::size_t s = slot_of(text, i);
      const Position earlier = earlier_[static_cast<std::size_t>(i) & (earlier_.size() - 1)];
      if (earlier == nowhere) {
        erase(text, s);
      } else {
        slots_[s] = earlier;
      }
    }
    if (const Position old = i - memory_; whole(old))  // restored, unless the n-gram has occurred again since
      if (Position& slot = slots_[slot_of(text, old)]; slot == nowhere) slot = old;
  }
  void clear() { std::fill(slots_.begin(), slots_.end(), nowhere); }

  static constexpr Position nowhere = -1;

 private:
  bool whole(Position end) const { return end >= n_ - 1; }  ///< an n-gram ends there
  static Token at(std::span<const Token> text, Position i) { return text[static_cast<std::size_t>(i) & (text.size() - 1)]; }

  std::size_t home(std::span<const Token> text, Position end) const {
    std::uint64_t hash = 0;
    for (Position k = 0; k < n_; ++k) {
      hash = (hash ^ static_cast<std::uint64_t>(at(text, end - k))) * 0x9E3779B97F4A7C15u;
      hash ^= hash >> 29;
    }
    return static_cast<std::size_t>(hash) & (slots_.size() - 1);
  }
  bool same(std::span<const Token> text, Position a, Position b) const {
    for (Position k = 0; k < n_; ++k)
      if (at(text, a - k) != at(text, b - k)) return false;
    return true;
  }
  /// The slot of the n-gram that ends at `end`, or the empty slot where it belongs.
  std::size_t slot_of(std::span<const Token> text, Position end) const {
    std::size_t s = home(text, end);
    while (slots_[s] != nowhere && !same(text, slots_[s], end)) s = (s + 1) & (slots_.size() - 1);
    return s;
  }
  /// Empties a slot and moves up the entries that collisions had pushed behind it.
  void erase(std::span<const Token> text, std::size_t hole) {
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t s = (hole + 1) & mask; slots_[s] != nowhere; s = (s + 1) & mask)
      if (((s - home(text, slots_[s])) & mask) >= ((s - hole) & mask)) {
        slots_[hole] = slots_[s];
        hole = s;
      }
    slots_[hole] = nowhere;
  }

  Position n_, memory_;
  std::vector<Position> slots_;    ///< [slot] where the n-gram last ended
  std::vector<Position> earlier_;  ///< [position] the result of add(), which remove() restores
};

}  // namespace detail

/// Draft without weights: guesses that the text continues as it did after the latest occurrence of its last few tokens.
///
/// Finds the longest n-gram that occurred before; the token after its latest occurrence gets logit 0, every other token -inf. Without a
/// match the row is all -inf: no guess. Good for repetitive text: code, quotes, answers about a document.
///
///   PromptLookup draft{target.vocab_size(), {.ngram = 3}};
///
/// Shapes   decode(tokens): logits [tokens, vocab_size()], valid until the next call
/// Cost     a few table look-ups per token and n, for any length of text
/// Heap     at construction only: max_draft + 1 rows of the vocabulary and about 12 bytes per token of memory and n
/// Throws   ShapeError for no tokens or one outside the vocabulary; CapacityError for more than max_draft + 1 at once; StateError for more
///          than max_draft + 1 in a journal, for prefill() inside a journal, and for crop() outside of one
/// Law      all laws of TokenModel hold; crop() also restores n-grams that had been dropped
/// Paper    arXiv:2304.04487 copies from a reference text in the same way
template <std::floating_point S = float> class PromptLookup {
 public:
  using Scalar = S;

  explicit PromptLookup(Index vocab_size, const PromptLookupOptions& options = {})
      : options_(checked(vocab_size, options)),
        text_(std::bit_ceil(static_cast<std::size_t>(options.memory + options.ngram + options.max_draft) + 1), Token(0)),
        rows_(Matrix<S>::Constant(options.max_draft + 1, vocab_size, -std::numeric_limits<S>::infinity())),
        guesses_(static_cast<std::size_t>(options.max_draft) + 1, none) {
    for (Index n = options.ngram; n >= options.min_ngram; --n) orders_.emplace_back(n, options.memory, text_.size());
  }

  Index vocab_size() const { return rows_.cols(); }
  Position next_position() const { return next_; }
  Index max_chunk() const { return options_.max_draft + 1; }
  const PromptLookupOptions& options() const { return options_; }

  ConstMatrixRef<S> decode(std::span<const Token> tokens) {
    check(tokens, "decode");
    if (static_cast<Index>(tokens.size()) > max_chunk())
      raise<CapacityError>("pith::PromptLookup::decode: ", tokens.size(), " tokens, expected at most max_draft + 1 = ", max_chunk(),
                           ": construct it with a larger max_draft, or use prefill()");
    if (journal_ != closed && next_ - journal_ + static_cast<Index>(tokens.size()) > max_chunk())
      raise<StateError>("pith::PromptLookup::decode: ", tokens.size(), " tokens after ", next_ - journal_,
                        " in a journal of at most max_draft + 1 = ", max_chunk(), ": call crop() or checkpoint() first");
    for (std::size_t i = 0; i < tokens.size(); ++i) show(i, add(tokens[i]));
    return rows_.topRows(static_cast<Index>(tokens.size()));
  }

  /// Reads a prompt of any length.
  ///
  /// Shapes   returns logits [1, vocab_size()]
  ConstMatrixRef<S> prefill(std::span<const Token> tokens) {
    check(tokens, "prefill");
    if (journal_ != closed) raise<StateError>("pith::PromptLookup::prefill: inside a journal: call crop() first");
    Token guess = none;
    for (const Token token : tokens) guess = add(token);
    show(0, guess);
    return rows_.topRows(1);
  }

  void checkpoint() { journal_ = next_; }
  void crop(Position p) {
    if (journal_ == closed) raise<StateError>("pith::PromptLookup::crop: no checkpoint: call checkpoint() before the tokens to take back");
    if (p < journal_ || p > next_)
      raise<StateError>("pith::PromptLookup::crop: position ", p, ", expected ", journal_, " .. ", next_,
                        ", the tokens since the checkpoint");
    while (next_ > p) {
      --next_;
      for (detail::NgramIndex& order : orders_) order.remove(text_, next_);
    }
    journal_ = closed;
  }
  /// Drops the text; no memory is freed or allocated.
  void clear() {
    for (detail::NgramIndex& order : orders_) order.clear();
    next_ = 0;
    journal_ = closed;
  }

 private:
  static constexpr Token none = -1;
  static constexpr Position closed = -1;

  static const PromptLookupOptions& checked(Index vocab_size, const PromptLookupOptions& options) {
    options.check();
    if (vocab_size < 1 || vocab_size > (std::numeric_limits<Token>::max)())
      raise<ShapeError>("pith::PromptLookup: vocab_size is ", vocab_size, ", expected 1 .. 2147483647");
    return options;
  }
  void check(std::span<const Token> tokens, const char* where) const {
    if (tokens.empty()) raise<ShapeError>("pith::PromptLookup::", where, ": no tokens, expected 1 or more");
    for (const Token token : tokens)
      if (token < 0 || token >= vocab_size())
        raise<ShapeError>("pith::PromptLookup::", where, ": token ", token, ", expected 0 .. ", vocab_size() - 1);
    if (tokens.size() > static_cast<std::size_t>((std::numeric_limits<Position>::max)() - next_))
      raise<CapacityError>("pith::PromptLookup::", where, ": positions end at ", (std::numeric_limits<Position>::max)());
  }

  /// Returns the guess for the token after this one, or none.
  Token add(Token token) {
    text_[static_cast<std::size_t>(next_) & (text_.size() - 1)] = token;
    Position end = detail::NgramIndex::nowhere;
    for (detail::NgramIndex& order : orders_)  // longest n first
      if (const Position found = order.add(text_, next_); end == detail::NgramIndex::nowhere) end = found;
    ++next_;
    return end == detail::NgramIndex::nowhere ? none : text_[static_cast<std::size_t>(end + 1) & (text_.size() - 1)];
  }

  void show(std::size_t row, Token guess) {
    const Index r = static_cast<Index>(row);
    if (guesses_[row] != none) rows_(r, guesses_[row]) = -std::numeric_limits<S>::infinity();
    if (guess != none) rows_(r, guess) = 0;
    guesses_[row] = guess;
  }

  PromptLookupOptions options_;
  std::vector<Token> text_;  ///< ring of the newest tokens, including those that crop() may need
  std::vector<detail::NgramIndex> orders_;
  Matrix<S> rows_;              ///< [max_draft + 1, vocab_size]
  std::vector<Token> guesses_;  ///< [max_draft + 1] the guess in each row
  Position next_ = 0, journal_ = closed;
};

inline void PromptLookupOptions::check() const {
  const auto refuse = [](const char* option, Index found, const char* expected) {
    raise<ShapeError>("pith::PromptLookup: ", option, " is ", found, ", expected ", expected);
  };
  if (ngram < 1 || ngram > 64) refuse("ngram", ngram, "1 .. 64");
  if (min_ngram < 1 || min_ngram > ngram) refuse("min_ngram", min_ngram, "1 .. ngram");
  if (memory < 1 || memory > (1 << 28)) refuse("memory", memory, "1 .. 268435456");
  if (max_draft < 0 || max_draft > (1 << 20)) refuse("max_draft", max_draft, "0 .. 1048576");
}

}}  // namespace pith::v0
