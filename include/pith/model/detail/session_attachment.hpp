#pragma once
// The adapter that a session uses.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/kv/options.hpp>
#include <pith/kv/prefix.hpp>
#include <pith/peft/detail/rows_by_adapter.hpp>
#include <pith/peft/model_adapter.hpp>

namespace pith { inline namespace v0 { namespace detail {

template <class S, KvStorage T> class TogetherPass;  // decodes several sessions at once

/// Holds the adapter that a session uses and checks calls against it. `next` is the session's next position.
template <class S> class SessionAttachment {
 public:
  SessionAttachment(const AdapterTarget& target, KvPrefix prefix, Index max_prompt)
      : target_(target),
        prefix_(std::move(prefix)),
        max_prompt_(max_prompt),
        kinds_(static_cast<std::size_t>(max_prompt)),
        masses_(kinds_.size()) {}

  const ModelAdapter<S>* get() const { return adapter_; }
  std::uint64_t fingerprint() const { return get() != nullptr ? get()->fingerprint() : 0; }
  /// The adapters of rows from position `first` on: before an activated LoRA begins, they are the base's. `places`: where each row stands
  /// behind the first, if some were left out.
  RowsByAdapter<S> runs(Position first, std::span<const Position> places = {}) const {
    const bool all = start_ <= first && begun();
    const std::size_t count = get() == nullptr || !(all || begun()) ? 0 : all ? 1 : 2;
    runs_[count == 2 ? 1 : 0] = {get()};
    if (count == 2) {
      const Position behind = start_ - first;
      runs_[0] = {nullptr, places.empty() ? Index(behind) : std::lower_bound(places.begin(), places.end(), behind) - places.begin()};
    }
    return {std::span<const RowsOfAdapter<S>>(runs_).first(count)};
  }
  /// The adapter that changes the next token; nullptr: none, or an activated LoRA that has not begun.
  const ModelAdapter<S>* acting() const { return begun() ? get() : nullptr; }
  /// Identifies the rows in the cache: the fingerprint of the adapter that changed some of them, or 0 for the base's.
  std::uint64_t key() const { return begun() ? fingerprint() : 0; }
  /// The position from which on an activated LoRA changes rows; -1: it has not begun, or the adapter is none.
  Position start() const { return gated() && begun() ? start_ : -1; }

  void use(const ModelAdapter<S>* adapter, Position next, bool whole) {
    const std::uint64_t coming = adapter != nullptr ? adapter->fingerprint() : 0;
    if (adapter != nullptr && !(adapter->target() == target_))
      raise<ShapeError>("pith::Session::use: an adapter of another decoder: load it for this one");
    const bool same = coming == fingerprint(), empty = next == first();
    // Rows of the base serve the base and every activated LoRA.
    const bool shared = key() == 0 && (adapter == nullptr || activated(*adapter));
    if (!same && (!whole || !(empty || shared)))
      raise<StateError>(text("pith::Session::use: rows are cached under ", name(key()), ", which are of no use under ", name(coming), ": ",
                             gated() ? text("crop(", start_, "), where it began, or clear() first") : std::string("clear() first")));
    if (adapter != nullptr && adapter->parts().prompt.rows() >= max_prompt_)
      raise<CapacityError>(text("pith::Session::use: the adapter's prompt has ", adapter->parts().prompt.rows(),
                                " rows, expected fewer than max_prompt = ", max_prompt_, ": start the session with a larger max_prompt"));
    adapter_ = adapter;
    if (!same || empty) begin(next);
  }

  /// Decides where an activated LoRA begins in a prompt whose first token comes to position next: at the last occurrence of its invocation,
  /// or at token `from`, if that is not -1.
  ///
  /// Throws   StateError if it has begun and is invoked again, ShapeError for a `from` outside the prompt; before anything changes
  void invoke(std::span<const Token> tokens, Position next, Index from) {
    const Index n = static_cast<Index>(tokens.size());
    check_from(from, n);
    if (!gated()) return;
    if (from < 0) from = last_invocation(tokens, get()->parts().invocation);
    if (from < 0 || from == n) return;
    if (begun())
      raise<StateError>(text("pith::Session::prefill: the adapter began at position ", start_, ", and token ", from,
                             " of this prompt invokes it again: rows between them would be the base's: crop(", start_,
                             "), and read on from there"));
    start_ = next + static_cast<Position>(from);
  }
  /// The same for a prompt of embeddings, in which no token invokes anything.
  void invoke_rows(Index n, Position next, Index from) {
    check_from(from, n);
    if (!gated() || begun()) return;
    if (from < 0)
      raise<UnsupportedError>(
          "pith::Session::prefill: embeddings under an activated LoRA: say where it begins "
          "(PrefillOptions::adapted_from), or use() it behind them");
    if (from < n) start_ = next + static_cast<Position>(from);
  }
  /// Forgets a start that rows before p do not show: call it when the conversation is cut to p.
  void cut(Position p) {
    if (start_ >= p && gated()) start_ = never;
  }
  /// Call at clear() and restore().
  void begin(Position next, Position start = -1) {
    start_ = start >= 0 && start < next ? start : never;
    if (!gated()) start_ = always;
    if (begun_in_prefix()) start_ = first() - 1;
  }

  /// Rows of the adapter's prompt that precede the next token.
  Index prompt_rows(Position next) const { return next == first() ? prompt_rows() : 0; }
  /// Writes the adapter's prompt into the first rows of hidden and returns the number of rows.
  Index lay_prompt(Position next, MatrixRef<S> hidden) const {
    const Index soft = prompt_rows(next);
    if (soft > 0) hidden.topRows(soft) = adapter_->parts().prompt;
    return soft;
  }
  /// Extends kinds and masses, where given, to cover the adapter's prompt too.
  void mark_prompt(Position next, AppendOptions& marks) {
    const Index soft = prompt_rows(next);
    if (soft == 0) return;
    put_before(soft, TokenKind::text, kinds_, marks.kinds);
    put_before(soft, 1.f, masses_, marks.masses);
  }

  /// Refuses rows cached under another adapter, and decode() where the adapter's prompt must come first.
  void check(Position next, bool prompt) const {
    if (frozen() && prefix_.adapter() != fingerprint() && !(gated() && prefix_.adapter() == 0))
      raise<StateError>(text("pith::Session: its prefix was read under ", name(prefix_.adapter()), " and it uses ", name(fingerprint()),
                             ": use() the adapter of the prefix"));
    if (!prompt && prompt_rows(next) > 0)
      raise<StateError>("pith::Session: the adapter's prompt goes before the first token: begin with prefill()");
  }
  void check_crop(Position p) const {
    if (p > first() && p < first() + prompt_rows())
      raise<StateError>(text("pith::Session::crop: position ", p, " is inside the adapter's prompt: crop(", first(), ") drops all of it"));
  }
  /// The reason why a snapshot filled under that adapter is refused; empty: it is accepted.
  std::string problem(std::uint64_t adapter, Position start, Position next) const {
    const bool of_base = gated() && adapter == 0 && !begun_in_prefix();
    if (gated() && adapter == fingerprint() && (start < 0 || start >= next))
      return text("filled under an adapter that began at ", start, " of ", next, " tokens");
    return adapter == fingerprint() || of_base ? std::string()
                                               : text("filled under ", name(adapter), "; this session uses ", name(fingerprint()));
  }

 private:
  template <class X> static void put_before(Index soft, X value, std::vector<X>& memory, std::span<const X>& marks) {
    if (marks.empty()) return;
    std::fill_n(memory.begin(), soft, value);
    std::copy(marks.begin(), marks.end(), memory.begin() + soft);
    marks = std::span<const X>(memory).first(static_cast<std::size_t>(soft) + marks.size());
  }
  static std::string name(std::uint64_t fingerprint) {
    return fingerprint == 0 ? std::string("no adapter") : text("adapter ", fingerprint);
  }
  Position first() const { return prefix_.next_position(); }
  /// A prefix that was read under the adapter already contains the adapter's prompt.
  bool frozen() const { return prefix_ && !prefix_.learned(); }
  Index prompt_rows() const { return adapter_ != nullptr && !frozen() ? adapter_->parts().prompt.rows() : 0; }

  static constexpr Position never = (std::numeric_limits<Position>::max)(), always = (std::numeric_limits<Position>::min)();
  static bool activated(const ModelAdapter<S>& adapter) { return !adapter.parts().invocation.empty(); }
  /// Whether the adapter is an activated LoRA.
  bool gated() const { return adapter_ != nullptr && activated(*adapter_); }
  bool begun() const { return start_ != never; }
  bool begun_in_prefix() const { return gated() && frozen() && prefix_.adapter() == fingerprint(); }
  static void check_from(Index from, Index n) {
    if (from < -1 || from > n)
      raise<ShapeError>("pith::Session::prefill: adapted_from is ", from, ", expected 0 .. ", n, ", or -1: the last invocation");
  }

  AdapterTarget target_;
  KvPrefix prefix_;
  Index max_prompt_;
  const ModelAdapter<S>* adapter_ = nullptr;
  Position start_ = always;  ///< rows from here on are the adapter's; never: it has not begun
  mutable std::array<RowsOfAdapter<S>, 2> runs_;
  std::vector<TokenKind> kinds_;  ///< kinds of a prompt, the adapter's rows first
  std::vector<float> masses_;     ///< masses of the same
};

}}}  // namespace pith::v0::detail
