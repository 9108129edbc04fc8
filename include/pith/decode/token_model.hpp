#pragma once

#include <concepts>
#include <limits>
#include <span>

#include <pith/core/types.hpp>
#include <pith/core/view.hpp>

namespace pith { inline namespace v0 {

/// A conversation with any model that predicts the next token; decoding needs no more of a model than this.
///
/// Shapes   decode(tokens): logits [tokens, vocab_size()], row i follows token i; valid until the next call. A row of -inf: no guess
/// Law      decode([a, b, c]) gives bit for bit the rows of decode([a]), decode([b]), decode([c])
///          checkpoint() starts or restarts the journal; crop(p) restores exactly the state before the token at p and ends the journal;
///          crop(next_position()) accepts every token since
///
/// Three more members are used if present: max_chunk(), the most tokens of one decode() and of one journal; room(), the tokens it can read
/// before it is full; prefill(tokens), which reads a prompt of any length and returns logits whose last row follows it.
template <class M>
concept TokenModel = requires(M& m, const M& c, std::span<const Token> tokens, Position p) {
  typename M::Scalar;
  { c.vocab_size() } -> std::convertible_to<Index>;
  { c.next_position() } -> std::same_as<Position>;
  { m.decode(tokens) } -> std::convertible_to<ConstMatrixRef<typename M::Scalar>>;
  m.checkpoint();
  m.crop(p);
};

/// Whether a row of logits means "no guess": every entry is -inf.
template <class S> bool no_guess(const ConstVectorRef<S>& logits) {
  for (Index i = 0; i < logits.size(); ++i)
    if (!(logits[i] == -std::numeric_limits<S>::infinity())) return false;
  return true;
}

}}  // namespace pith::v0
