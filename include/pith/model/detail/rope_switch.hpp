#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Which table of a longrope the rows of a session are rotated by, and the tokens to read again when a text first exceeds the short table:
/// rows of one table are of no use under the other. A model without longrope has no limit, and nothing here costs anything.
///
/// Heap     at construction: the tokens of one short text, if the session can read them again
class RopeSwitch {
 public:
  /// `limit`: longest text of the short table; 0: none. `text_length`: that the session is made for. `first`: position of its first token.
  /// `keeps_all`: no layer evicts.
  RopeSwitch(Index limit, Index text_length, Position first, bool keeps_all)
      : limit_(limit),
        first_(first),
        always_(limit > 0 && text_length > limit),
        rereads_(limit > 0 && !always_ && keeps_all && first == 0) {
    if (rereads_) tokens_.reserve(static_cast<std::size_t>(limit));
    beyond_ = always_ || wants(first);
    if (always_ && first > 0 && first <= limit)
      raise<UnsupportedError>("pith::Session: a prefix of ", first, " positions was read under the longrope's table for texts of up to ",
                              limit, ", and text_length is ", text_length, ": read the prefix with that text_length");
  }

  RopeSwitch(const RopeSwitch& other) { *this = other; }
  RopeSwitch& operator=(const RopeSwitch& other) {
    limit_ = other.limit_, first_ = other.first_;
    always_ = other.always_, rereads_ = other.rereads_, beyond_ = other.beyond_, known_ = other.known_;
    if (rereads_) tokens_.reserve(static_cast<std::size_t>(limit_));  // a copy allocates nothing later, either
    tokens_ = other.tokens_;
    return *this;
  }
  RopeSwitch(RopeSwitch&&) = default;
  RopeSwitch& operator=(RopeSwitch&&) = default;

  bool on() const { return limit_ > 0; }
  bool beyond() const { return beyond_; }
  /// Number of the next n tokens that one table covers.
  Index run(Position next, Index n) const { return !on() || always_ || next >= limit_ ? n : (std::min)(n, limit_ - next); }
  /// Tokens that can be read before a table is exceeded that the session cannot leave.
  Index room(Position next, Index room) const {
    return !on() || beyond_ || can_reread() || next == 0 ? room : (std::min)(room, (std::max)(Index(0), limit_ - next));
  }

  /// Whether rows cached so far must be read again for a call that brings the text to this length.
  bool stale(Position next, Index length) const { return on() && next != 0 && wants(length) != beyond_; }
  /// Refuses a call that needs them read again, where that is impossible; `first`: the length after the call's first token or prompt.
  void check(Position next, Index first, Index length) const {
    if ((!stale(next, first) && !stale(next, length)) || can_reread()) return;
    raise<CapacityError>("pith::Session: a text of ", length, " tokens exceeds the ", limit_,
                         " of the longrope's table that the cached rows were rotated by, and they cannot be read again: clear() and "
                         "read the text anew, or start the session with text_length = the length it will reach");
  }
  /// Chooses the table of a call that brings the text to this length; no rows are cached, or those read under the same table.
  void choose(Index length) { beyond_ = wants(length); }

  void note(std::span<const Token> tokens) {
    if (!rereads_ || !known_) return;
    const std::size_t room = static_cast<std::size_t>(limit_) - tokens_.size();
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>((std::min)(room, tokens.size())));
  }
  void note_unknown() { known_ = false; }  ///< rows that no tokens stand for, or rows of a snapshot
  std::span<const Token> tokens() const { return tokens_; }
  void crop(Index tokens) { tokens_.resize((std::min)(tokens_.size(), static_cast<std::size_t>((std::max)(tokens, Index(0))))); }
  void clear() {
    tokens_.clear();
    known_ = true;
    beyond_ = always_ || wants(first_);
  }
  void restored(Position next) {
    clear();
    known_ = next == first_;
    beyond_ = wants(next);
  }

  /// Whether crop() left rows of a table that a text of this length does not use.
  bool misplaced(Position next) const { return on() && next != first_ && beyond_ != wants(next); }
  void check_placed(const char* what, Position next) const {
    if (misplaced(next))
      raise<StateError>("pith::Session: ", what, " after crop() to a text that uses the longrope's other table: decode() first");
  }
  void check_freeze(Position next) const {
    if (mark(next) != 0)
      raise<StateError>(
          "pith::Session: freeze() of a text that is shorter than those of the longrope's long table: freeze it without "
          "text_length");
  }
  /// Distinguishes the snapshots of rows that are rotated by the long table although the text is short.
  std::uint64_t mark(Position next) const { return always_ && next <= limit_ ? 0x6C6F6E67726F7065u : 0; }

 private:
  bool wants(Index length) const { return on() && (always_ || length > limit_); }
  bool can_reread() const { return rereads_ && known_; }

  Index limit_ = 0;
  Position first_ = 0;
  bool always_ = false, rereads_ = false;
  bool beyond_ = false;
  bool known_ = true;  ///< tokens_ are all tokens read, up to the limit
  std::vector<Token> tokens_;
};

}}}  // namespace pith::v0::detail
