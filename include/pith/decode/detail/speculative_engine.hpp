#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <random>
#include <span>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/decode/detail/speculative_run.hpp>
#include <pith/decode/detail/speculative_step.hpp>
#include <pith/decode/detail/stepped_model.hpp>
#include <pith/decode/logit_rules.hpp>
#include <pith/decode/speculative_options.hpp>
#include <pith/decode/token_model.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// The steps of a SpeculativeDecoder: draft, verify, settle.
///
/// choose() fills run(); the caller reports its tokens one by one; settle() crops both models to what was reported.
template <TokenModel Target, TokenModel Draft> class SpeculativeEngine {
 public:
  using Scalar = typename Target::Scalar;
  using DraftScalar = typename Draft::Scalar;

  SpeculativeEngine(Target& target, Draft& draft, const SpeculativeOptions& options)
      : target_(target),
        draft_(draft),
        options_(checked(target, draft, options)),
        run_(options_, static_cast<Index>(target.vocab_size())),
        logits_(run_.vocab_size()) {}

  const SpeculativeOptions& options() const { return options_; }
  const SpeculativeStats& stats() const { return stats_; }
  bool drafting() const { return drafting_; }
  Token pending() const { return reported_ > 0 && stepping_ ? run_.tokens()[static_cast<std::size_t>(reported_) - 1] : pending_; }

  /// Lets both models read a prompt, after the pending token.
  void prefill(std::span<const Token> tokens) {
    settle();
    check_in_step();
    if (pending_ >= 0) read_pending();
    target_.read(tokens, run_.most(), [&](const ConstMatrixRef<Scalar>& rows) { keep(rows); });
    run_.text().push(tokens);
    if (drafting_) asked([&] { draft_.read(tokens, run_.most(), [](const auto&) {}); });
    note_positions();
  }
  /// Starts from here: both models have read this text, and the next token is chosen from the last row of logits.
  void resume(ConstMatrixRef<Scalar> logits, std::span<const Token> text) {
    check_shape("SpeculativeDecoder::resume", "logits", logits, any_extent, logits_.size());
    if (logits.rows() == 0) [[unlikely]]
      raise<ShapeError>("pith::SpeculativeDecoder::resume: logits has no row, expected the one of the last token");
    keep(logits);
    run_.text().clear();
    run_.text().push(text);
    target_.forget_journal();
    draft_.forget_journal();
    stepping_ = false;
    drafting_ = true;
    lag_ = 0;
    note_positions();
  }

  /// Chooses the tokens of a step into run_; settle() crops both models afterwards.
  template <std::uniform_random_bit_generator Rng> void choose(Index most, Rng& rng) {
    prepare();
    Dice<Rng> dice(rng, run_.greedy() || pending_ < 0);
    if (choose_first(rng)) return dice.keep();
    const Index wanted = guesses(most);
#if PITH_HAS_EXCEPTIONS
    if (wanted > 0) {
      try {
        verify(wanted, rng);
        return dice.keep();
      } catch (const CapacityError&) {
        dice.throw_again();  // the target may still take the pending token alone
      }
    }
    verify(0, rng);
#else
    verify(wanted, rng);
#endif
    dice.keep();
  }

  // A step whose caller feeds the models, together with others: prepare(), choose_first() or open(guesses(most)); while that, or
  // sees(), says so, the draft reads draft_feed(); then close(), the target reads target_feed(), judge(). give_up() undoes it in between.

  /// Ends the last step, and checks that both models are still where it left them.
  void prepare() {
    settle();
    check_in_step();
    if (target_.next() < 0) [[unlikely]]
      raise<StateError>("pith::SpeculativeDecoder::step: nothing has been read: call prefill() or resume() first");
  }
  /// After a prompt, chooses one token from the logits that follow it; returns false where a token is pending.
  template <std::uniform_random_bit_generator Rng> bool choose_first(Rng& rng) {
    if (pending_ >= 0) return false;
    run_.first(logits_, rng);
    begin();
    chosen_ = 1;
    return true;
  }
  /// How many guesses a step of at most `most` tokens should make.
  Index guesses(Index most) const {
    const bool adapted = options_.length == DraftLength::adapted;
    const Index length = adapted ? pace_.length(options_.draft_tokens, double(options_.guess_cost)) : options_.draft_tokens;
    return (std::min)({length, most - 1, (std::max)(target_.room(), Index(1)) - 1});
  }
  /// Begins a step of up to `most` guesses; returns whether the draft is to read draft_feed().
  bool open(Index most) {
    target_.refuse_if_full(pending_);
    begin();
    fed_ = false;
    run_.open(pending_, 0);
    if (const Index room = draft_.room() - lag_; drafting_ && room < 1) dismiss_draft();
    if (!drafting_) return false;
    run_.open(pending_, (std::min)(most, draft_.room() - lag_));
    draft_.checkpoint();
    late_feed_ = {late_, pending_};
    return true;
  }
  /// First the tokens that the draft has not read yet, the pending token last; then the newest guess.
  std::span<const Token> draft_feed() const {
    return fed_ ? run_.newest_guess() : std::span<const Token>(late_feed_).last(static_cast<std::size_t>(lag_) + 1);
  }
  /// Guesses from the draft's logits; returns whether the draft is to read draft_feed() again.
  template <std::uniform_random_bit_generator Rng> bool sees(const ConstMatrixRef<DraftScalar>& rows, Rng& rng) {
    fed_ = true;
    return run_.sees(rows, rng);
  }
  /// Ends the guessing: the target is to read target_feed().
  void close() {
    run_.close();
    target_.checkpoint();
  }
  std::span<const Token> target_feed() const { return run_.feed(); }
  /// Accepts guesses by the target's logits, and chooses the token behind them.
  template <std::uniform_random_bit_generator Rng> void judge(const ConstMatrixRef<Scalar>& rows, Rng& rng) {
    const Index accepted = run_.judge(rows, rng), drafted = run_.drafted();
    chosen_ = accepted + 1;
    ++stats_.steps;
    stats_.drafted += drafted;
    stats_.accepted += accepted;
    stats_.rejected += accepted < drafted;
    if (drafted > 0) pace_.saw(accepted, accepted < drafted);
  }
  /// Runs a call of the draft; if the draft is full, undoes the call and stops using the draft.
  template <class Ask> void asked(Ask&& ask) {
#if PITH_HAS_EXCEPTIONS
    try {
      ask();
    } catch (const CapacityError&) {
      dismiss_draft();
    }
#else
    ask();
#endif
  }
  void give_up() {
    chosen_ = reported_ = 0;
    if (stepping_ && pending_ >= 0) run_.close();
    target_.undo();
    draft_.undo();
    stepping_ = false;
  }

  /// Tokens chosen by choose(), first to last, of which the caller has reported some.
  std::span<const Token> run() const { return run_.tokens().first(static_cast<std::size_t>(chosen_)); }
  Token report() { return run_.tokens()[static_cast<std::size_t>(reported_++)]; }
  void report_all() { reported_ = chosen_; }

  /// Ends a step: crops both models to just before the last token reported, which becomes pending.
  void settle() {
    if (!stepping_) return;
    if (pending_ >= 0) {
      target_.end(target_.next() + static_cast<Position>(reported_));
      const Position read = draft_.next() + static_cast<Position>(reported_ > 0 ? lag_ + reported_ : 0);
      draft_.end(read);
      if (reported_ > 0 && drafting_) {
        lag_ = read - draft_.next_position();
        late_ = reported_ > 1 ? run_.tokens()[static_cast<std::size_t>(reported_) - 2] : pending_;
      }
    }
    if (reported_ > 0) {
      run_.text().push(run_.tokens().first(static_cast<std::size_t>(reported_)));
      pending_ = run_.tokens()[static_cast<std::size_t>(reported_) - 1];
      stats_.tokens += reported_;
      note_positions();
    }
    stepping_ = false;
  }

 private:
  static const SpeculativeOptions& checked(const Target& target, const Draft& draft, const SpeculativeOptions& options) {
    options.check();
    if (static_cast<const void*>(&target) == static_cast<const void*>(&draft))
      raise<StateError>("pith::SpeculativeDecoder: target and draft are one object, expected two: start another session for the draft");
    if (Index(target.vocab_size()) != Index(draft.vocab_size()))
      raise<ShapeError>("pith::SpeculativeDecoder: the target has ", Index(target.vocab_size()), " tokens, the draft ",
                        Index(draft.vocab_size()), ", expected one vocabulary");
    SteppedModel<Target>::check_chunk("target", target, options.draft_tokens);
    SteppedModel<Draft>::check_chunk("draft", draft, options.draft_tokens);
    return options;
  }
  void keep(const ConstMatrixRef<Scalar>& rows) {
    check_shape("SpeculativeDecoder", "the target's logits", rows, any_extent, logits_.size());
    logits_ = rows.row(rows.rows() - 1).transpose();
    pending_ = -1;
  }

  /// Feeds the pending token to both models and keeps the logits that follow it.
  void read_pending() {
    target_.refuse_if_full(pending_);
    Trace trace(*this);
    begin();
    run_.open(pending_, 0);
    target_.checkpoint();
    if (drafting_)
      asked([&] {
        draft_.checkpoint();
        late_feed_ = {late_, pending_}, fed_ = false;
        draft_.model().decode(draft_feed());
      });
    keep(target_.model().decode(std::span<const Token>(&pending_, 1)));
    trace.keep();
    target_.end(target_.next_position());
    draft_.end(draft_.next_position());
    stepping_ = false;
    lag_ = 0;
    note_positions();
  }

  /// Undoes the effect of a call on both models if it throws.
  class Trace {
   public:
    explicit Trace(SpeculativeEngine& engine) : engine_(&engine) {}
    ~Trace() {
      if (engine_ != nullptr) engine_->give_up();
    }
    Trace(const Trace&) = delete;
    Trace& operator=(const Trace&) = delete;
    void keep() { engine_ = nullptr; }

   private:
    SpeculativeEngine* engine_;
  };
  void dismiss_draft() {
    draft_.undo();
    drafting_ = false;
  }
  void begin() {
    stepping_ = true;
    reported_ = chosen_ = 0;
  }

  /// Lets the target verify up to `most` guesses after the pending token.
  template <std::uniform_random_bit_generator Rng> void verify(Index most, Rng& rng) {
    Trace trace(*this);
    bool more = open(most);
    asked([&] {
      while (more) more = sees(draft_.model().decode(draft_feed()), rng);
    });
    close();
    const auto& logits = target_.model().decode(target_feed());
    judge(ConstMatrixRef<Scalar>(logits), rng);
    trace.keep();
  }

  void note_positions() {
    target_.note_position();
    draft_.note_position();
  }
  void check_in_step() const {
    if (target_.next() >= 0 && (target_.moved() || (drafting_ && draft_.moved()))) [[unlikely]]
      raise<StateError>("pith::SpeculativeDecoder: target and draft are at positions ", target_.next_position(), " and ",
                        draft_.next_position(), ", expected ", target_.next(), " and ", draft_.next(),
                        ": another caller fed one of them, or a prompt failed half-way; let both read the same text and call resume()");
  }

  SteppedModel<Target> target_;
  SteppedModel<Draft> draft_;
  SpeculativeOptions options_;
  SpeculativeRun<Scalar, DraftScalar> run_;
  Vector<Scalar> logits_;             ///< the target's logits after a prompt
  Index chosen_ = 0, reported_ = 0;   ///< of the tokens of run_
  Token pending_ = -1, late_ = -1;    ///< late_: the token before pending_, if the draft has not read it yet
  std::array<Token, 2> late_feed_{};  ///< what the draft reads first in a step
  bool fed_ = false;                  ///< the draft has read late_feed_
  Index lag_ = 0;                     ///< 1: the draft has not read late_
  bool drafting_ = true;              ///< the draft has read the same text as the target
  bool stepping_ = false;
  DraftPace pace_;
  SpeculativeStats stats_;
};

}}}  // namespace pith::v0::detail
