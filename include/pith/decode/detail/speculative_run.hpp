#pragma once

#include <algorithm>
#include <cstddef>
#include <random>
#include <span>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/decode/detail/speculative_step.hpp>
#include <pith/decode/logit_rules.hpp>
#include <pith/decode/rejection_sampler.hpp>
#include <pith/decode/speculative_options.hpp>
#include <pith/decode/token_model.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// The guesses of one speculative step and what the target makes of them: everything but the models.
///
/// open(), then sees() for each row of the draft until it returns false, close(), judge().
template <class S, class D> class SpeculativeRun {
 public:
  SpeculativeRun(const SpeculativeOptions& options, Index vocab_size)
      : sampler_(options.sampler, vocab_size, options.draft_tokens),
        vocab_size_(vocab_size),
        feed_(static_cast<std::size_t>(options.draft_tokens) + 1),
        run_(feed_.size()),
        text_(options.rules, vocab_size, reserved_text),
        ruled_(text_.any() ? vocab_size : 0),
        ruled_draft_(ruled_.size()) {}

  Index vocab_size() const { return vocab_size_; }
  std::size_t most() const { return feed_.size(); }  ///< tokens of one step
  bool greedy() const { return sampler_.greedy(); }
  RuledText& text() { return text_; }
  std::span<const Token> tokens() const { return run_; }

  /// The first token after a prompt, from the logits that follow it.
  template <std::uniform_random_bit_generator Rng> void first(const ConstVectorRef<S>& logits, Rng& rng) {
    run_[0] = sampler_.sample(text_.template apply<S>(logits, ruled_), rng);
  }
  /// Begins a step of up to `most` guesses after the pending token.
  void open(Token pending, Index most) {
    feed_[0] = pending;
    drafted_ = 0;
    wanted_ = most;
    unguessed_ = text_.size();
  }
  Index drafted() const { return drafted_; }
  std::span<const Token> newest_guess() const { return std::span<const Token>(feed_).subspan(static_cast<std::size_t>(drafted_), 1); }
  /// The pending token and the guesses.
  std::span<const Token> feed() const { return std::span<const Token>(feed_).first(static_cast<std::size_t>(drafted_) + 1); }

  /// Guesses from the draft's logits; returns whether the draft is to read the guess.
  template <std::uniform_random_bit_generator Rng> bool sees(const ConstMatrixRef<D>& rows, Rng& rng) {
    check_shape("SpeculativeDecoder", "the draft's logits", rows, any_extent, vocab_size_);
    const ConstVectorRef<D> last = rows.row(rows.rows() - 1);
    if (drafted_ == wanted_ || no_guess<D>(last)) return false;
    const ConstVectorRef<D> row = text_.template apply<D>(last, ruled_draft_);
    if (text_.any() && no_guess<D>(row)) return false;  // the rules ban every token the draft would guess
    const Token token = feed_[static_cast<std::size_t>(drafted_) + 1] = sampler_.guess(drafted_, row, rng);
    text_.push(token);
    return ++drafted_ < wanted_;
  }
  /// Takes the guesses out of the text.
  void close() { text_.shrink(unguessed_); }

  /// Accepts guesses by the target's logits, and chooses the token behind them; returns how many were accepted.
  template <std::uniform_random_bit_generator Rng> Index judge(const ConstMatrixRef<S>& rows, Rng& rng) {
    check_shape("SpeculativeDecoder", "the target's logits", rows, drafted_ + 1, vocab_size_);
    const Guessed accepting(text_);
    const auto row = [&](Index i) { return text_.template apply<S>(rows.row(i), ruled_); };
    Index accepted = 0;
    // accept guess x with probability min(1, p(x) / q(x)), else draw from max(0, p - q), normalised, and end the step (RejectionSampler)
    for (; accepted < drafted_; ++accepted) {
      const std::size_t i = static_cast<std::size_t>(accepted);
      if ((run_[i] = sampler_.verify(accepted, row(accepted), rng)) != feed_[i + 1]) break;
      text_.push(run_[i]);
    }
    // all accepted: the same pass of the target gives one more token
    if (accepted == drafted_) run_[static_cast<std::size_t>(drafted_)] = sampler_.sample(row(drafted_), rng);
    return accepted;
  }

 private:
  static constexpr std::size_t reserved_text = 4096;

  RejectionSampler<S, D> sampler_;
  Index vocab_size_;
  std::vector<Token> feed_, run_;  ///< [draft_tokens + 1] the pending token and the guesses; the tokens of a step
  RuledText text_;                 ///< under rules: all tokens read or generated
  Vector<S> ruled_;                ///< a row of the target under the rules
  Vector<D> ruled_draft_;          ///< a row of the draft under the rules
  Index drafted_ = 0, wanted_ = 0;
  std::size_t unguessed_ = 0;  ///< tokens of text_ without the guesses
};

}}}  // namespace pith::v0::detail
