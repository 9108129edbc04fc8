#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <random>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/random.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/decode/sampling.hpp>

namespace pith { inline namespace v0 {

/// Turns a draft's guesses into tokens of the target: the acceptance rule that makes speculative decoding lossless.
///
/// Accepts guess x ~ q with probability min(1, p(x) / q(x)), else draws from max(0, p - q), normalised. p and q are the target's and the
/// draft's distributions under the same Sampler options.
///
/// Shapes   logits [vocab_size]
/// Cost     guess() and verify(): that of a Sampler, and two sweeps of the vocabulary for a rejected guess
/// Heap     at construction only: guesses + 1 rows of the vocabulary and both samplers; no rows if greedy
/// Throws   StateError where Sampler does, ShapeError for a negative number of guesses, CapacityError for a guess beyond that number
/// Law      verify() is distributed as Sampler::sample() of the target's logits, for any draft; greedy calls leave rng alone
/// Paper    arXiv:2211.17192, algorithm 1; arXiv:2302.01318
template <std::floating_point S = float, std::floating_point D = S> class RejectionSampler {
 public:
  RejectionSampler(const SamplerOptions& options, Index vocab_size, Index guesses)
      : target_(options, vocab_size),
        draft_(options, vocab_size),
        p_(greedy() ? 0 : vocab_size),
        q_(greedy() ? 0 : checked(guesses, vocab_size), vocab_size),
        guessed_(static_cast<std::size_t>(checked(guesses, vocab_size)), Token(0)) {}

  bool greedy() const { return target_.greedy(); }

  /// Draws a token from the target alone.
  template <std::uniform_random_bit_generator Rng> Token sample(ConstVectorRef<S> logits, Rng& rng) { return target_.sample(logits, rng); }

  /// Draws guess i from the draft's logits.
  template <std::uniform_random_bit_generator Rng> Token guess(Index i, ConstVectorRef<D> logits, Rng& rng) {
    check_guess("guess", i);
    Token& token = guessed_[static_cast<std::size_t>(i)];
    if (greedy()) return token = draft_.sample(logits, rng);
    draft_.distribution(logits, q_.row(i));
    return token = draft_.draw(q_.row(i), rng);
  }

  /// Returns guess i if the target accepts it, else the token that replaces it.
  template <std::uniform_random_bit_generator Rng> Token verify(Index i, ConstVectorRef<S> logits, Rng& rng) {
    check_guess("verify", i);
    if (greedy()) return target_.sample(logits, rng);
    const Token guessed = guessed_[static_cast<std::size_t>(i)];
    target_.distribution(logits, p_);
    // accept x with probability min(1, p(x) / q(x)), else draw from max(0, p - q), normalised
    if (canonical<double>(rng) * double(q_(i, guessed)) < double(p_[guessed])) return guessed;
    const auto short_of = [&](Index token) { return static_cast<S>((std::max)(0.0, double(p_[token]) - double(q_(i, token)))); };
    bool any = false;
    for (Index token = 0; token < p_.size() && !any; ++token) any = short_of(token) > 0;
    if (any)  // else p and q differ only by rounding
      for (Index token = 0; token < p_.size(); ++token) p_[token] = short_of(token);
    return target_.draw(p_, rng);
  }

 private:
  static Index checked(Index guesses, Index vocab_size) {
    if (guesses < 0) raise<ShapeError>("pith::RejectionSampler: ", guesses, " guesses, expected 0 or more");
    detail::checked_product("RejectionSampler", guesses, detail::checked_product("RejectionSampler", vocab_size, Index(sizeof(D))));
    return guesses;
  }
  void check_guess(const char* where, Index i) const {
    const Index room = static_cast<Index>(guessed_.size());
    if (i < 0 || i >= room) [[unlikely]]
      raise<CapacityError>("pith::RejectionSampler::", where, ": guess ", i, ", expected 0 .. ", room - 1,
                           ": construct it with more guesses");
  }

  Sampler<S> target_;
  Sampler<D> draft_;
  Vector<S> p_;                 ///< [vocab] the target's distribution
  Matrix<D> q_;                 ///< [guesses, vocab] the distribution of each guess
  std::vector<Token> guessed_;  ///< [guesses]
};

}}  // namespace pith::v0
