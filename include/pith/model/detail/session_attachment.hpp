#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
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

  const ModelAdapter<S>* get() const { return run_.adapter; }
  std::uint64_t fingerprint() const { return run_.adapter != nullptr ? run_.adapter->fingerprint() : 0; }
  RowsByAdapter<S> runs() const { return {std::span(&run_, run_.adapter != nullptr ? 1 : 0)}; }

  void use(const ModelAdapter<S>* adapter, Position next, bool whole) {
    const std::uint64_t coming = adapter != nullptr ? adapter->fingerprint() : 0;
    if (adapter != nullptr && !(adapter->target() == target_))
      raise<ShapeError>("pith::Session::use: an adapter of another decoder: load it for this one");
    if (coming != fingerprint() && (next != first() || !whole))
      raise<StateError>(text("pith::Session::use: rows are cached under ", name(fingerprint()), ", which are of no use under ",
                             name(coming), ": clear() first"));
    if (adapter != nullptr && adapter->parts().prompt.rows() >= max_prompt_)
      raise<CapacityError>(text("pith::Session::use: the adapter's prompt has ", adapter->parts().prompt.rows(),
                                " rows, expected fewer than max_prompt = ", max_prompt_, ": start the session with a larger max_prompt"));
    run_.adapter = adapter;
  }

  /// Rows of the adapter's prompt that precede the next token.
  Index prompt_rows(Position next) const { return next == first() ? prompt_rows() : 0; }
  /// Writes the adapter's prompt into the first rows of hidden and returns the number of rows.
  Index lay_prompt(Position next, MatrixRef<S> hidden) const {
    const Index soft = prompt_rows(next);
    if (soft > 0) hidden.topRows(soft) = run_.adapter->parts().prompt;
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
    if (frozen() && prefix_.adapter() != fingerprint())
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
  std::string problem(std::uint64_t adapter) const {
    return adapter == fingerprint() ? std::string() : text("filled under ", name(adapter), "; this session uses ", name(fingerprint()));
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
  Index prompt_rows() const { return run_.adapter != nullptr && !frozen() ? run_.adapter->parts().prompt.rows() : 0; }

  AdapterTarget target_;
  KvPrefix prefix_;
  Index max_prompt_;
  RowsOfAdapter<S> run_;          ///< the adapter in use, for all rows
  std::vector<TokenKind> kinds_;  ///< kinds of a prompt, the adapter's rows first
  std::vector<float> masses_;     ///< masses of the same
};

}}}  // namespace pith::v0::detail
