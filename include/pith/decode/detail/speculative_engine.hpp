#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <random>
#include <span>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/decode/detail/speculative_step.hpp>
#include <pith/decode/detail/stepped_model.hpp>
#include <pith/decode/logit_rules.hpp>
#include <pith/decode/rejection_sampler.hpp>
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
        sampler_(options.sampler, static_cast<Index>(target.vocab_size()), options.draft_tokens),
        logits_(static_cast<Index>(target.vocab_size())),
        feed_(static_cast<std::size_t>(options.draft_tokens) + 1),
        run_(feed_.size()),
        text_(options.rules, logits_.size(), reserved_text),
        ruled_(text_.any() ? logits_.size() : 0),
        ruled_draft_(ruled_.size()) {}

  const SpeculativeOptions& options() const { return options_; }
  const SpeculativeStats& stats() const { return stats_; }
  bool drafting() const { return drafting_; }
  Token pending() const { return reported_ > 0 && stepping_ ? run_[static_cast<std::size_t>(reported_) - 1] : pending_; }

  /// Lets both models read a prompt, after the pending token.
  void prefill(std::span<const Token> tokens) {
    settle();
    check_in_step();
    if (pending_ >= 0) read_pending();
    target_.read(tokens, feed_.size(), [&](const ConstMatrixRef<Scalar>& rows) { keep(rows); });
    text_.push(tokens);
    if (drafting_) asked([&] { draft_.read(tokens, feed_.size(), [](const auto&) {}); });
    note_positions();
  }
  /// Starts from here: both models have read this text, and the next token is chosen from the last row of logits.
  void resume(ConstMatrixRef<Scalar> logits, std::span<const Token> text) {
    check_shape("SpeculativeDecoder::resume", "logits", logits, any_extent, logits_.size());
    if (logits.rows() == 0) [[unlikely]]
      raise<ShapeError>("pith::SpeculativeDecoder::resume: logits has no row, expected the one of the last token");
    keep(logits);
    text_.clear();
    text_.push(text);
    target_.forget_journal();
    draft_.forget_journal();
    stepping_ = false;
    drafting_ = true;
    lag_ = 0;
    note_positions();
  }

  /// Chooses the tokens of a step into run_; settle() crops both models afterwards.
  template <std::uniform_random_bit_generator Rng> void choose(Index most, Rng& rng) {
    settle();
    check_in_step();
    if (target_.next() < 0) [[unlikely]]
      raise<StateError>("pith::SpeculativeDecoder::step: nothing has been read: call prefill() or resume() first");
    Dice<Rng> dice(rng, sampler_.greedy() || pending_ < 0);
    if (pending_ < 0) {
      run_[0] = sampler_.sample(text_.template apply<Scalar>(logits_, ruled_), rng);
      begin();
      chosen_ = 1;
      return dice.keep();
    }
    const bool adapted = options_.length == DraftLength::adapted;
    const Index length = adapted ? pace_.length(options_.draft_tokens, double(options_.guess_cost)) : options_.draft_tokens;
    const Index wanted = (std::min)({length, most - 1, (std::max)(target_.room(), Index(1)) - 1});
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

  /// Tokens chosen by choose(), first to last, of which the caller has reported some.
  std::span<const Token> run() const { return std::span<const Token>(run_).first(static_cast<std::size_t>(chosen_)); }
  Token report() { return run_[static_cast<std::size_t>(reported_++)]; }
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
        late_ = reported_ > 1 ? run_[static_cast<std::size_t>(reported_) - 2] : pending_;
      }
    }
    if (reported_ > 0) {
      text_.push(std::span<const Token>(run_).first(static_cast<std::size_t>(reported_)));
      pending_ = run_[static_cast<std::size_t>(reported_) - 1];
      stats_.tokens += reported_;
      note_positions();
    }
    stepping_ = false;
  }

 private:
  static constexpr std::size_t reserved_text = 4096;
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
    Trace trace(*this);
    begin();
    target_.checkpoint();
    if (drafting_) asked([&] { feed_draft([](const auto&) {}); });
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
      if (engine_ != nullptr) engine_->undo();
    }
    Trace(const Trace&) = delete;
    Trace& operator=(const Trace&) = delete;
    void keep() { engine_ = nullptr; }

   private:
    SpeculativeEngine* engine_;
  };
  void undo() {
    chosen_ = reported_ = 0;
    target_.undo();
    draft_.undo();
    stepping_ = false;
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
  void dismiss_draft() {
    draft_.undo();
    drafting_ = false;
  }
  void begin() {
    stepping_ = true;
    reported_ = chosen_ = 0;
  }

  /// Feeds the draft the tokens it has not read yet, the pending token last.
  template <class Sees> void feed_draft(Sees&& sees) {
    draft_.checkpoint();
    const std::array<Token, 2> late{late_, pending_};
    sees(draft_.model().decode(std::span<const Token>(late).last(static_cast<std::size_t>(lag_) + 1)));
  }

  /// Lets the target verify up to `most` guesses after the pending token.
  template <std::uniform_random_bit_generator Rng> void verify(Index most, Rng& rng) {
    Trace trace(*this);
    begin();
    feed_[0] = pending_;
    const Index drafted = guess(most, rng);
    target_.checkpoint();
    const auto& logits = target_.model().decode(std::span<const Token>(feed_).first(static_cast<std::size_t>(drafted) + 1));
    const ConstMatrixRef<Scalar> rows = logits;
    check_shape("SpeculativeDecoder", "the target's logits", rows, drafted + 1, logits_.size());
    const Guessed accepting(text_);
    const auto row = [&](Index i) { return text_.template apply<Scalar>(rows.row(i), ruled_); };
    Index accepted = 0;
    // accept guess x with probability min(1, p(x) / q(x)), else draw from max(0, p - q), normalised, and end the step (RejectionSampler)
    for (; accepted < drafted; ++accepted) {
      const std::size_t i = static_cast<std::size_t>(accepted);
      if ((run_[i] = sampler_.verify(accepted, row(accepted), rng)) != feed_[i + 1]) break;
      text_.push(run_[i]);
    }
    // all accepted: the same pass of the target gives one more token
    if (accepted == drafted) run_[static_cast<std::size_t>(drafted)] = sampler_.sample(row(drafted), rng);
    chosen_ = accepted + 1;

    ++stats_.steps;
    stats_.drafted += drafted;
    stats_.accepted += accepted;
    stats_.rejected += accepted < drafted;
    if (drafted > 0) pace_.saw(accepted, accepted < drafted);
    trace.keep();
  }

  /// Writes the draft's guesses into feed_[1 ..] and returns their number: fewer than `most` if the draft has no more.
  template <std::uniform_random_bit_generator Rng> Index guess(Index most, Rng& rng) {
    Index made = 0;
    if (const Index room = draft_.room() - lag_; drafting_ && room < 1) dismiss_draft();
    if (!drafting_) return made;
    most = (std::min)(most, draft_.room() - lag_);
    const Guessed guesses(text_);
    const auto sees = [&](const ConstMatrixRef<DraftScalar>& rows) {
      check_shape("SpeculativeDecoder", "the draft's logits", rows, any_extent, logits_.size());
      const ConstVectorRef<DraftScalar> last = rows.row(rows.rows() - 1);
      if (made == most || no_guess<DraftScalar>(last)) return false;
      const ConstVectorRef<DraftScalar> row = text_.template apply<DraftScalar>(last, ruled_draft_);
      if (text_.any() && no_guess<DraftScalar>(row)) return false;  // the rules ban every token the draft would guess
      const Token token = feed_[static_cast<std::size_t>(made) + 1] = sampler_.guess(made, row, rng);
      text_.push(token);
      ++made;
      return made < most;
    };
    asked([&] {
      bool more = false;
      feed_draft([&](const ConstMatrixRef<DraftScalar>& rows) { more = sees(rows); });
      while (more) more = sees(draft_.model().decode(std::span<const Token>(feed_).subspan(static_cast<std::size_t>(made), 1)));
    });
    return made;
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
  RejectionSampler<Scalar, DraftScalar> sampler_;
  Vector<Scalar> logits_;            ///< the target's logits after a prompt
  std::vector<Token> feed_, run_;    ///< [draft_tokens + 1] the pending token and the guesses; the tokens of a step
  RuledText text_;                   ///< under rules: all tokens read or generated
  Vector<Scalar> ruled_;             ///< a row of the target under the rules
  Vector<DraftScalar> ruled_draft_;  ///< a row of the draft under the rules
  Index chosen_ = 0, reported_ = 0;  ///< number of tokens in run_
  Token pending_ = -1, late_ = -1;   ///< late_: the token before pending_, if the draft has not read it yet
  Index lag_ = 0;                    ///< 1: the draft has not read late_
  bool drafting_ = true;             ///< the draft has read the same text as the target
  bool stepping_ = false;
  DraftPace pace_;
  SpeculativeStats stats_;
};

}}}  // namespace pith::v0::detail
