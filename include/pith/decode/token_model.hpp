#pragma once

#include <concepts>
#include <limits>
#include <span>

#include <pith/core/types.hpp>
#include <pith/core/view.hpp>

namespace pith { inline namespace v0 {

/// One conversation with anything that guesses the next token: all that decoding knows of a model.
///
/// Shapes   decode(tokens): logits [tokens, vocab_size()], row i follows token i; valid until the next call. An all -inf row: no guess
/// Law      decode([a, b, c]) gives the rows of decode([a]), decode([b]), decode([c]), bit for bit
///          checkpoint() starts or restarts the journal here; crop(p) leaves the state exactly as it was before the token at p
///          and ends the journal; crop(next_position()) accepts every token since
///
/// Three members more are used where a model has them: max_chunk(), how many tokens one decode() takes and one journal takes back at most;
/// room(), how many it can read before it is full; and prefill(tokens), which reads a prompt of any length and returns logits whose last
/// row follows it.
template <class M>
concept TokenModel = requires(M& m, const M& c, std::span<const Token> tokens, Position p) {
  typename M::Scalar;
  { c.vocab_size() } -> std::convertible_to<Index>;
  { c.next_position() } -> std::same_as<Position>;
  { m.decode(tokens) } -> std::convertible_to<ConstMatrixRef<typename M::Scalar>>;
  m.checkpoint();
  m.crop(p);
};

/// Whether a row of logits says "no guess": every entry is -inf.
template <class S> bool no_guess(const ConstVectorRef<S>& logits) {
  for (Index i = 0; i < logits.size(); ++i)
    if (!(logits[i] == -std::numeric_limits<S>::infinity())) return false;
  return true;
}

}}  // namespace pith::v0
