#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <random>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/decode/detail/speculative_step.hpp>
#include <pith/decode/generate.hpp>
#include <pith/decode/logit_rules.hpp>
#include <pith/decode/rejection_sampler.hpp>
#include <pith/decode/speculative_options.hpp>
#include <pith/decode/token_model.hpp>

namespace pith { inline namespace v0 {

/// Speculative decoding: a cheap draft guesses tokens, the target verifies all guesses in one pass over its weights.
///
/// Between steps exactly one token is pending: emitted, but fed to neither model. Target and draft may start at different positions (a
/// prefix), but must have read the same text, and only this object may feed them.
///
/// Cost     per step: up to draft_tokens decode() of one token by the draft, one decode() of up to draft_tokens + 1 tokens by the target
/// Heap     at construction only: a RejectionSampler and a row of the vocabulary; in prefill() and step() what the models need, and under
///          rules the text beyond 4,096 tokens, where it doubles
/// Throws   ShapeError for two vocabularies, StateError for an option out of range or the same model twice, CapacityError if a model's
///          max_chunk() is below draft_tokens + 1; a model without max_chunk() throws by itself when a step is too long for it
/// Law      generates as many tokens as without a draft: where the target has little room() left, or refuses guesses with CapacityError,
///          drafts are shortened, down to none; a full draft is not used any more (drafting()) and never ends the text
/// Law      the text is distributed as that of Sampler over the target alone; greedy text is identical
///          after a step both models are in the state of having read only the text, bit for bit if their crop() is
///          a step that throws is undone in both models and, if it can be copied, in rng, except for tokens already passed to the
///          callback: the next call continues after them
/// Paper    arXiv:2211.17192 (Leviathan et al.); arXiv:2302.01318 (Chen et al.)
template <TokenModel Target, TokenModel Draft> class SpeculativeDecoder {
 public:
  using Scalar = typename Target::Scalar;

  SpeculativeDecoder(Target& target, Draft& draft, const SpeculativeOptions& options = {})
      : target_(&target),
        draft_(&draft),
        options_(checked(target, draft, options)),
        sampler_(options.sampler, static_cast<Index>(target.vocab_size()), options.draft_tokens),
        logits_(static_cast<Index>(target.vocab_size())),
        feed_(static_cast<std::size_t>(options.draft_tokens) + 1),
        run_(feed_.size()),
        text_(options.rules, logits_.size(), reserved_text),
        ruled_(text_.any() ? logits_.size() : 0),
        ruled_draft_(ruled_.size()) {}
  SpeculativeDecoder(SpeculativeDecoder&&) = default;
  SpeculativeDecoder& operator=(SpeculativeDecoder&&) = default;

  /// Both models read a prompt, or the next turn after the pending token: by prefill() if a model has it, else by decode() of up to
  /// draft_tokens + 1 tokens at a time.
  ///
  /// Throws   ShapeError for no tokens; what the models throw, except a CapacityError of the draft. If one model has read more than
  ///          the other, every later call throws StateError: see resume()
  void prefill(std::span<const Token> tokens) {
    if (tokens.empty()) [[unlikely]]
      raise<ShapeError>("pith::SpeculativeDecoder::prefill: no tokens, expected 1 or more");
    settle();
    check_in_step();
    if (pending_ >= 0) read_pending();
    read(*target_, tokens, [&](const ConstMatrixRef<Scalar>& rows) { keep(rows); });
    text_.push(tokens);
    if (drafting_) asked([&] { read(*draft_, tokens, [](const auto&) {}); });
    note_positions();
  }

  /// Starts from here, once target and draft have read the same text by themselves (embeddings, a saved session, their own prefill()).
  ///
  /// `text`: the text they have read, for SpeculativeOptions::rules.
  ///
  /// Shapes   logits [any, vocab_size()] returned by the target; the next token is chosen from the last row
  void resume(ConstMatrixRef<Scalar> logits, std::span<const Token> text = {}) {
    check_shape("SpeculativeDecoder::resume", "logits", logits, any_extent, logits_.size());
    if (logits.rows() == 0) [[unlikely]]
      raise<ShapeError>("pith::SpeculativeDecoder::resume: logits has no row, expected the one of the last token");
    keep(logits);
    text_.clear();
    text_.push(text);
    stepping_ = target_open_ = draft_open_ = false;
    drafting_ = true;
    lag_ = 0;
    note_positions();
  }

  /// Generates the next 1 .. draft_tokens + 1 tokens, valid until the next call; the first step after a prompt generates one.
  /// Greedy steps leave rng alone.
  ///
  /// Throws   StateError before a prompt, or if a model was moved from outside; what the models and Sampler throw
  template <std::uniform_random_bit_generator Rng> std::span<const Token> step(Rng& rng) {
    choose(options_.draft_tokens + 1, rng);
    reported_ = chosen_;
    settle();
    return std::span<const Token>(run_).first(static_cast<std::size_t>(chosen_));
  }

  /// Overload for at most `most` tokens, passed to a callback one by one; if it returns false, its token ends the step and is pending.
  template <std::uniform_random_bit_generator Rng, TokenCallback OnToken>
  std::span<const Token> step(Rng& rng, Index most, OnToken&& on_token) {
    if (most < 1) [[unlikely]]
      raise<StateError>("pith::SpeculativeDecoder::step: at most ", most, " tokens, expected 1 or more");
    choose(most, rng);
    for (bool more = true; more && reported_ < chosen_;) {
      const Token token = run_[static_cast<std::size_t>(reported_++)];
      if constexpr (std::is_void_v<std::invoke_result_t<OnToken&, Token>>) {
        on_token(token);
      } else {
        more = on_token(token);
      }
    }
    const Index emitted = reported_;
    settle();
    return std::span<const Token>(run_).first(static_cast<std::size_t>(emitted));
  }

  const SpeculativeOptions& options() const { return options_; }
  const SpeculativeStats& stats() const { return stats_; }
  /// Whether the draft is still used: not once it was full, until resume(), when both have read the same text.
  bool drafting() const { return drafting_; }
  /// The last token generated; -1 after a prompt, before the first step.
  Token pending() const { return reported_ > 0 && stepping_ ? run_[static_cast<std::size_t>(reported_) - 1] : pending_; }

 private:
  using DraftScalar = typename Draft::Scalar;
  static constexpr std::size_t reserved_text = 4096;

  static const SpeculativeOptions& checked(const Target& target, const Draft& draft, const SpeculativeOptions& options) {
    options.check();
    if (static_cast<const void*>(&target) == static_cast<const void*>(&draft))
      raise<StateError>("pith::SpeculativeDecoder: target and draft are one object, expected two: start another session for the draft");
    if (Index(target.vocab_size()) != Index(draft.vocab_size()))
      raise<ShapeError>("pith::SpeculativeDecoder: the target has ", Index(target.vocab_size()), " tokens, the draft ",
                        Index(draft.vocab_size()), ", expected one vocabulary");
    check_chunk("target", target, options.draft_tokens);
    check_chunk("draft", draft, options.draft_tokens);
    return options;
  }
  template <class M> static void check_chunk(const char* name, const M& model, Index draft_tokens) {
    if constexpr (requires {
                    { model.max_chunk() } -> std::convertible_to<Index>;
                  })
      if (draft_tokens >= Index(model.max_chunk()))
        raise<CapacityError>("pith::SpeculativeDecoder: draft_tokens is ", draft_tokens, ", but the ", name, " takes only ",
                             Index(model.max_chunk()), " tokens at once, expected ", draft_tokens,
                             " + 1: start it with max_draft = ", draft_tokens, " or more");
  }

  /// Feeds a prompt; calls sees(rows) with logits whose last row follows the tokens read so far.
  template <class M, class Sees> void read(M& model, std::span<const Token> tokens, Sees&& sees) {
    using Rows = ConstMatrixRef<typename M::Scalar>;
    if constexpr (requires {
                    { model.prefill(tokens) } -> std::convertible_to<Rows>;
                  }) {
      sees(Rows(model.prefill(tokens)));
    } else {
      for (std::size_t at = 0; at < tokens.size(); at += feed_.size())
        sees(Rows(model.decode(tokens.subspan(at, (std::min)(feed_.size(), tokens.size() - at)))));
    }
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
    checkpoint_target();
    if (drafting_) asked([&] { feed_draft([](const auto&) {}); });
    const auto& rows = target_->decode(std::span<const Token>(&pending_, 1));
    const Position target_end = target_->next_position(), draft_end = draft_->next_position();
    keep(rows);
    trace.keep();
    target_->crop(target_end);
    if (draft_open_) draft_->crop(draft_end);
    stepping_ = target_open_ = draft_open_ = false;
    lag_ = 0;
    note_positions();
  }

  /// Undoes the effect of a call on both models if it throws.
  class Trace {
   public:
    explicit Trace(SpeculativeDecoder& decoder) : decoder_(&decoder) {}
    ~Trace() {
      if (decoder_ != nullptr) decoder_->undo();
    }
    Trace(const Trace&) = delete;
    Trace& operator=(const Trace&) = delete;
    void keep() { decoder_ = nullptr; }

   private:
    SpeculativeDecoder* decoder_;
  };
  void undo() {
    chosen_ = reported_ = 0;
    if (stepping_ && pending_ >= 0) {
      if (target_open_) detail::try_crop(*target_, target_next_);
      if (draft_open_) detail::try_crop(*draft_, (std::min)(draft_next_, draft_->next_position()));
    }
    stepping_ = target_open_ = draft_open_ = false;
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
    if (draft_open_) detail::try_crop(*draft_, (std::min)(draft_next_, draft_->next_position()));
    draft_open_ = drafting_ = false;
  }

  void begin() {
    stepping_ = true;
    reported_ = chosen_ = 0;
  }
  void checkpoint_target() {
    target_->checkpoint();
    target_open_ = true;
  }

  /// Feeds the draft the tokens it has not read yet, the pending token last.
  template <class Sees> void feed_draft(Sees&& sees) {
    draft_->checkpoint();
    draft_open_ = true;
    const std::array<Token, 2> late{late_, pending_};
    sees(draft_->decode(std::span<const Token>(late).last(static_cast<std::size_t>(lag_) + 1)));
  }

  /// Chooses the tokens of a step into run_; settle() crops both models afterwards.
  template <std::uniform_random_bit_generator Rng> void choose(Index most, Rng& rng) {
    settle();
    check_in_step();
    if (target_next_ < 0) [[unlikely]]
      raise<StateError>("pith::SpeculativeDecoder::step: nothing has been read: call prefill() or resume() first");
    detail::Dice<Rng> dice(rng, sampler_.greedy() || pending_ < 0);
    if (pending_ < 0) {
      run_[0] = sampler_.sample(text_.template apply<Scalar>(logits_, ruled_), rng);
      begin();
      chosen_ = 1;
      return dice.keep();
    }
    const bool adapted = options_.length == DraftLength::adapted;
    const Index length = adapted ? pace_.length(options_.draft_tokens, double(options_.guess_cost)) : options_.draft_tokens;
    const Index wanted = (std::min)({length, most - 1, (std::max)(detail::room_of(*target_), Index(1)) - 1});
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

  /// Lets the target verify up to `most` guesses after the pending token.
  template <std::uniform_random_bit_generator Rng> void verify(Index most, Rng& rng) {
    Trace trace(*this);
    begin();
    feed_[0] = pending_;
    const Index drafted = guess(most, rng);
    checkpoint_target();
    const auto& logits = target_->decode(std::span<const Token>(feed_).first(static_cast<std::size_t>(drafted) + 1));
    const ConstMatrixRef<Scalar> rows = logits;
    check_shape("SpeculativeDecoder", "the target's logits", rows, drafted + 1, logits_.size());
    const detail::Guessed accepting(text_);
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
    if (const Index room = detail::room_of(*draft_) - lag_; drafting_ && room < 1) dismiss_draft();
    if (!drafting_) return made;
    most = (std::min)(most, detail::room_of(*draft_) - lag_);
    const detail::Guessed guesses(text_);
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
      while (more) more = sees(draft_->decode(std::span<const Token>(feed_).subspan(static_cast<std::size_t>(made), 1)));
    });
    return made;
  }

  /// Ends a step: crops both models to just before the last token reported, which becomes pending.
  void settle() {
    if (!stepping_) return;
    if (pending_ >= 0) {
      if (target_open_) target_->crop(target_next_ + static_cast<Position>(reported_));
      target_open_ = false;
      const Position read = draft_next_ + static_cast<Position>(reported_ > 0 ? lag_ + reported_ : 0);
      if (draft_open_) draft_->crop((std::min)(read, draft_->next_position()));
      draft_open_ = false;
      if (reported_ > 0 && drafting_) {
        lag_ = read - draft_->next_position();
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

  void note_positions() {
    target_next_ = target_->next_position();
    draft_next_ = draft_->next_position();
  }
  void check_in_step() const {
    if (target_next_ >= 0 && (target_->next_position() != target_next_ || (drafting_ && draft_->next_position() != draft_next_)))
        [[unlikely]]
      raise<StateError>("pith::SpeculativeDecoder: target and draft are at positions ", target_->next_position(), " and ",
                        draft_->next_position(), ", expected ", target_next_, " and ", draft_next_,
                        ": another caller fed one of them, or a prompt failed half-way; let both read the same text and call resume()");
  }

  Target* target_;
  Draft* draft_;
  SpeculativeOptions options_;
  RejectionSampler<Scalar, DraftScalar> sampler_;
  Vector<Scalar> logits_;                        ///< the target's logits after a prompt
  std::vector<Token> feed_, run_;                ///< [draft_tokens + 1] the pending token and the guesses; the tokens of a step
  detail::RuledText text_;                       ///< under rules: all tokens read or generated
  Vector<Scalar> ruled_;                         ///< a row of the target under the rules
  Vector<DraftScalar> ruled_draft_;              ///< a row of the draft under the rules
  Index chosen_ = 0, reported_ = 0;              ///< number of tokens in run_
  Token pending_ = -1, late_ = -1;               ///< late_: the token before pending_, if the draft has not read it yet
  Index lag_ = 0;                                ///< 1: the draft has not read late_
  Position target_next_ = -1, draft_next_ = -1;  ///< positions at the end of the last call; -1: nothing has been read
  bool drafting_ = true;                         ///< the draft has read the same text as the target
  bool stepping_ = false, target_open_ = false, draft_open_ = false;
  detail::DraftPace pace_;
  SpeculativeStats stats_;
};

}}  // namespace pith::v0
