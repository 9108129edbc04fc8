#pragma once

#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/decode/token_model.hpp>

namespace pith_test {

using pith::Index;
using pith::Position;
using pith::Token;

/// A TokenModel small enough to enumerate: row s of `transition` holds the probabilities of the token after state s.
///
/// [vocab, vocab]: the state is the last token. [vocab², vocab]: it is the last two, previous·vocab + last, so that a wrong crop shows.
/// What precedes the text counts as token 0. Every crop needs a checkpoint, as in a cache that evicts.
template <class S = float> class MarkovModel {
 public:
  using Scalar = S;

  explicit MarkovModel(const pith::Matrix<S>& transition) : logits_of_(transition.unaryExpr([](S p) { return std::log(p); })) {
    const Index vocab = transition.cols();
    if (vocab == 0 || (transition.rows() != vocab && transition.rows() != vocab * vocab))
      pith::raise<pith::ShapeError>("MarkovModel: transition is neither [vocab, vocab] nor [vocab * vocab, vocab]");
  }

  Index vocab_size() const { return logits_of_.cols(); }
  Position next_position() const { return static_cast<Position>(text_.size()); }
  std::span<const Token> text() const { return text_; }  ///< every token fed
  Index calls() const { return calls_; }                 ///< of decode()

  pith::ConstMatrixRef<S> prefill(std::span<const Token> tokens) {
    if (journal_ >= 0) pith::raise<pith::StateError>("MarkovModel: prefill inside a journal: call crop() first");
    feed(tokens);
    return logits_.bottomRows(1);
  }

  pith::ConstMatrixRef<S> decode(std::span<const Token> tokens) {
    feed(tokens);
    ++calls_;
    return logits_;
  }

  void checkpoint() { journal_ = next_position(); }

  void crop(Position p) {
    if (journal_ < 0) pith::raise<pith::StateError>("MarkovModel: crop without a checkpoint");
    if (p < journal_ || p > next_position()) pith::raise<pith::StateError>("MarkovModel: crop to a position outside the journal");
    text_.resize(static_cast<std::size_t>(p));
    journal_ = -1;
  }

 private:
  void feed(std::span<const Token> tokens) {
    if (tokens.empty()) pith::raise<pith::ShapeError>("MarkovModel: no tokens");
    for (const Token token : tokens)
      if (token < 0 || token >= vocab_size()) pith::raise<pith::StateError>("MarkovModel: a token outside the vocabulary");
    logits_.resize(static_cast<Index>(tokens.size()), vocab_size());
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      text_.push_back(tokens[i]);
      logits_.row(static_cast<Index>(i)) = logits_of_.row(state());
    }
  }

  Index state() const {
    const Index last = text_.back(), previous = text_.size() > 1 ? text_[text_.size() - 2] : 0;
    return logits_of_.rows() == vocab_size() ? last : previous * vocab_size() + last;
  }

  pith::Matrix<S> logits_of_, logits_;
  std::vector<Token> text_;
  Position journal_ = -1;
  Index calls_ = 0;
};

/// Three tokens, every transition possible and no two rows alike.
template <class S = float> pith::Matrix<S> three_token_chain() {
  pith::Matrix<S> transition(3, 3);
  transition << S(.2), S(.5), S(.3), S(.6), S(.1), S(.3), S(.25), S(.35), S(.4);
  return transition;
}

/// The same with a memory of two tokens.
template <class S = float> pith::Matrix<S> three_token_chain_of_two() {
  pith::Matrix<S> transition(9, 3);
  for (Index s = 0; s < 9; ++s) {
    const S a = S(.1) + S(.05) * S(s), b = S(.4) - S(.03) * S(s);
    transition.row(s) << a, b, 1 - a - b;
  }
  return transition;
}

}  // namespace pith_test
