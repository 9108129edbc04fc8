#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <type_traits>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/decode/any_draft.hpp>
#include <pith/decode/detail/speculative_engine.hpp>
#include <pith/decode/speculative_options.hpp>
#include <pith/model/session.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// One conversation of a SpeculativeBatch: says which session is to read which tokens next, and takes the logits.
template <class S, KvStorage T, class Rng> class SpeculativeMember {
 public:
  template <class Draft>
  SpeculativeMember(Session<S, T>& target, Draft& draft, const SpeculativeOptions& options, Rng rng)
      : target_(target), draft_(draft), engine_(target_, draft_, options), rng_(std::move(rng)) {
    if (draft_.address() == static_cast<const void*>(&target))
      raise<StateError>("pith::SpeculativeBatch::add: target and draft are one object, expected two: start another session for the draft");
    if constexpr (std::is_same_v<Draft, Session<S, T>>) draft_session_ = all_[1] = &draft;
  }
  SpeculativeMember(const SpeculativeMember&) = delete;
  SpeculativeMember& operator=(const SpeculativeMember&) = delete;

  bool active() const { return active_; }
  Index vocab_size() const { return target_.vocab_size(); }
  Index most_rows() const { return (std::max)(engine_.options().draft_tokens + 1, Index(2)); }
  bool uses(const void* model) const { return model == &target_ || model == draft_.address(); }
  std::span<Session<S, T>* const> sessions() const { return std::span(all_).first(draft_session_ != nullptr ? 2 : 1); }
  Token pending() const { return engine_.pending(); }
  const SpeculativeStats& stats() const { return engine_.stats(); }

  void prefill(std::span<const Token> tokens) {
    give_up();
    engine_.prefill(tokens);
    active_ = true;
  }
  void resume(ConstMatrixRef<S> logits, std::span<const Token> text) {
    state_ = State::idle;
    before_.reset();
    engine_.resume(logits, text);
    active_ = true;
  }
  void stop() {
    give_up();
    engine_.settle();
    active_ = false;
  }

  /// Undoes the step that is under way.
  void give_up() {
    if (state_ != State::idle) {
      engine_.give_up();
      if (before_) rng_ = *before_;
    }
    state_ = State::idle;
    before_.reset();
  }

  /// Comes to where a session is to read something: the draft a token, or the target all guesses. Tokens that need no model are reported.
  template <class Report> void prepare(Report&& report) {
    if (state_ == State::idle) {
      engine_.prepare();
      if (engine_.choose_first(rng_)) tell(report);
      if (!active_) return;
      before_.emplace(rng_);
      state_ = State::guessed;
      if (engine_.open(engine_.guesses(engine_.options().draft_tokens + 1))) state_ = State::drafting;
    }
    if (state_ == State::drafting && draft_session_ == nullptr) {
      bool more = true;
      engine_.asked([&] {
        while (more) more = engine_.sees(draft_.decode(engine_.draft_feed()), rng_);
      });
      state_ = State::guessed;
    }
    if (state_ == State::guessed) {
      engine_.close();
      state_ = State::verifying;
    }
    const Session<S, T>* session = asks();
    at_ = session->next_position();
  }
  /// The session that is to read feed(); nullptr: none.
  Session<S, T>* asks() const {
    return !active_ || state_ == State::idle ? nullptr : state_ == State::drafting ? draft_session_ : &target_;
  }
  std::span<const Token> feed() const { return state_ == State::drafting ? engine_.draft_feed() : engine_.target_feed(); }
  void answer(ConstMatrixRef<S> logits) { logits_ = logits; }

  /// Takes the answer. A session that refused its tokens is asked again alone, as a SpeculativeDecoder asks it.
  template <class Report> void take(Report&& report) {
    if (state_ == State::idle) return;
    if (asks()->next_position() != at_ + static_cast<Position>(feed().size())) {
      give_up();
      engine_.choose(engine_.options().draft_tokens + 1, rng_);
      return tell(report);
    }
    if (state_ == State::drafting) {
      if (!engine_.sees(logits_, rng_)) state_ = State::guessed;
      return;
    }
    engine_.judge(logits_, rng_);
    state_ = State::idle;
    before_.reset();
    tell(report);
  }

 private:
  enum class State : std::uint8_t { idle, drafting, guessed, verifying };

  /// Reports the tokens that were chosen; one that ends the text is pending.
  template <class Report> void tell(Report&& report) {
    for (std::size_t left = engine_.run().size(); left > 0 && active_; --left) active_ = report(engine_.report());
    engine_.settle();
  }

  Session<S, T>& target_;
  AnyDraft<S> draft_;
  Session<S, T>* draft_session_ = nullptr;
  std::array<Session<S, T>*, 2> all_{&target_, nullptr};
  SpeculativeEngine<Session<S, T>, AnyDraft<S>> engine_;
  Rng rng_;
  std::optional<Rng> before_;  ///< the generator before the step that is under way
  ConstMatrixRef<S> logits_;
  Position at_ = 0;  ///< where the session that is asked stood
  State state_ = State::idle;
  bool active_ = false;
};

}}}  // namespace pith::v0::detail
