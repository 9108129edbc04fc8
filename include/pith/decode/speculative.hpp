#pragma once

#include <cstddef>
#include <random>
#include <span>
#include <type_traits>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/decode/detail/speculative_engine.hpp>
#include <pith/decode/generate.hpp>
#include <pith/decode/speculative_options.hpp>
#include <pith/decode/token_model.hpp>

namespace pith { inline namespace v0 {

/// Speculative decoding: a cheap draft guesses tokens, the target verifies all guesses in one pass over its weights.
///
///   accept a guess x ~ q with probability min(1, p(x) / q(x)); instead of a refused one draw from max(0, p - q) / Σ max(0, p - q)
///
/// p and q are the distributions of target and draft. After a refusal the later guesses are dropped; if all are accepted, one more token is
/// drawn from p. RejectionSampler does this.
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

  SpeculativeDecoder(Target& target, Draft& draft, const SpeculativeOptions& options = {}) : engine_(target, draft, options) {}
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
    engine_.prefill(tokens);
  }

  /// Starts from here, once target and draft have read the same text by themselves (embeddings, a saved session, their own prefill()).
  ///
  /// `text`: the text they have read, for SpeculativeOptions::rules.
  ///
  /// Shapes   logits [any, vocab_size()] returned by the target; the next token is chosen from the last row
  void resume(ConstMatrixRef<Scalar> logits, std::span<const Token> text = {}) { engine_.resume(logits, text); }

  /// Generates the next 1 .. draft_tokens + 1 tokens, valid until the next call; the first step after a prompt generates one.
  /// Greedy steps leave rng alone.
  ///
  /// Throws   StateError before a prompt, or if a model was moved from outside; what the models and Sampler throw
  template <std::uniform_random_bit_generator Rng> std::span<const Token> step(Rng& rng) {
    engine_.choose(options().draft_tokens + 1, rng);
    engine_.report_all();
    engine_.settle();
    return engine_.run();
  }

  /// Overload for at most `most` tokens, passed to a callback one by one; if it returns false, its token ends the step and is pending.
  template <std::uniform_random_bit_generator Rng, TokenCallback OnToken>
  std::span<const Token> step(Rng& rng, Index most, OnToken&& on_token) {
    if (most < 1) [[unlikely]]
      raise<StateError>("pith::SpeculativeDecoder::step: at most ", most, " tokens, expected 1 or more");
    engine_.choose(most, rng);
    const std::size_t chosen = engine_.run().size();
    std::size_t emitted = 0;
    for (bool more = true; more && emitted < chosen;) {
      const Token token = engine_.report();
      ++emitted;
      if constexpr (std::is_void_v<std::invoke_result_t<OnToken&, Token>>) {
        on_token(token);
      } else {
        more = on_token(token);
      }
    }
    engine_.settle();
    return engine_.run().first(emitted);
  }

  const SpeculativeOptions& options() const { return engine_.options(); }
  const SpeculativeStats& stats() const { return engine_.stats(); }
  /// Whether the draft is still used: not once it was full, until resume(), when both have read the same text.
  bool drafting() const { return engine_.drafting(); }
  /// The last token generated; -1 after a prompt, before the first step.
  Token pending() const { return engine_.pending(); }

 private:
  detail::SpeculativeEngine<Target, Draft> engine_;
};

}}  // namespace pith::v0
