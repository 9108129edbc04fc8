#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/random.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>

// Chooses a token from logits: temperature, top-k, top-p, min-p.
namespace pith { inline namespace v0 {

/// How a token is chosen from logits. The filters apply from top to bottom, each to the tokens left by the one above, as in Hugging Face.
struct SamplerOptions {
  float temperature = 1;  ///< p = softmax(logits / temperature); 0: greedy, the largest logit, of equals the lowest token
  Index top_k = 0;        ///< keeps exactly the k largest logits, of equals the lowest tokens; 0: all
  float top_p = 1;        ///< in (0, 1]: keeps the fewest likeliest tokens whose share of those left reaches top_p; of equals the lowest
  float min_p = 0;        ///< in [0, 1]: keeps tokens with p >= min_p * max(p)
};

/// Chooses tokens from logits: greedily, or at random after temperature, top-k, top-p and min-p.
///
/// Shapes   logits and probabilities [vocab_size]
/// Cost     four sweeps of the vocabulary and one exp per token that top_k keeps (all without top_k); no full sort
/// Heap     at construction only
/// Throws   StateError if an option is out of range, a logit is NaN or +inf, or all are -inf; ShapeError if sizes differ
/// Law      sample(logits, rng) == draw(distribution(logits), rng), and a logit of -inf is never drawn
///          equal logits and random bits give equal tokens on every platform whose exp agrees
/// Paper    top-p: arXiv:1904.09751; min-p: arXiv:2407.01082
template <std::floating_point S = float> class Sampler {
 public:
  using Scalar = S;

  Sampler(const SamplerOptions& options, Index vocab_size) : options_(options) {
    check_options(vocab_size);
    if (!greedy()) inverse_temperature_ = 1 / double(options.temperature);
    probabilities_.setZero(vocab_size);
    if (options.top_k > 0 || options.top_p < 1) candidates_.resize(static_cast<std::size_t>(vocab_size));
  }

  const SamplerOptions& options() const { return options_; }
  Index vocab_size() const { return probabilities_.size(); }
  bool greedy() const { return options_.temperature == 0; }

  /// Greedy sampling leaves rng alone; otherwise one canonical<double> is drawn from it.
  template <std::uniform_random_bit_generator Rng> Token sample(ConstVectorRef<S> logits, Rng& rng) {
    const Token best = largest(logits);
    if (greedy()) return best;
    weigh(logits, best, probabilities_);
    return draw(probabilities_, rng);
  }

  /// Writes the distribution that sample() draws from; `probabilities` may be `logits` itself.
  void distribution(ConstVectorRef<S> logits, VectorRef<S> probabilities) {
    check_shape("Sampler::distribution", "probabilities", probabilities, vocab_size(), 1);
    const Token best = largest(logits);
    if (!greedy()) return weigh(logits, best, probabilities);
    probabilities.setZero();
    probabilities[best] = 1;
  }

  /// Draws an index with probability proportional to its weight; the weights need not sum to 1.
  ///
  /// Throws   StateError if a weight is negative or not finite, or none is positive
  template <std::uniform_random_bit_generator Rng> static Token draw(ConstVectorRef<S> weights, Rng& rng) {
    double total = 0;
    for (Index i = 0; i < weights.size(); ++i) {
      const double weight = weights[i];
      if (!(weight >= 0)) [[unlikely]]
        raise<StateError>("pith::Sampler::draw: weight ", i, " is ", weight, ", expected 0 or more");
      total += weight;
    }
    if (!(total > 0 && total < std::numeric_limits<double>::infinity())) [[unlikely]]
      raise<StateError>("pith::Sampler::draw: ", weights.size(), " weights sum to ", total, ", expected a positive number");
    const double target = canonical<double>(rng) * total;  // below total, which the sum below reaches
    double sum = 0;
    for (Index i = 0;; ++i)
      if ((sum += double(weights[i])) > target) return static_cast<Token>(i);
  }

 private:
  struct Candidate {
    S logit;
    Token token;
    std::uint64_t weight = 0;
    bool ahead_of(const Candidate& other) const { return logit > other.logit || (logit == other.logit && token < other.token); }
  };
  static constexpr S infinity = std::numeric_limits<S>::infinity();
  static bool ahead(const Candidate& a, const Candidate& b) { return a.ahead_of(b); }

  void check_options(Index vocab_size) const {
    const auto refuse = [](const char* option, auto found, const char* expected) {
      raise<StateError>("pith::Sampler: ", option, " is ", found, ", expected ", expected);
    };
    if (!(options_.temperature >= 0 && std::isfinite(options_.temperature)))
      refuse("temperature", options_.temperature, "a finite number, 0 (greedy) or more");
    if (options_.top_k < 0) refuse("top_k", options_.top_k, "0 (off) or more");
    if (!(options_.top_p > 0 && options_.top_p <= 1)) refuse("top_p", options_.top_p, "a number in (0, 1]; 1 is off");
    if (!(options_.min_p >= 0 && options_.min_p <= 1)) refuse("min_p", options_.min_p, "a number in [0, 1]; 0 is off");
    if (vocab_size < 1 || vocab_size > (std::numeric_limits<Token>::max)()) refuse("vocab_size", vocab_size, "1 .. 2147483647");
  }

  Token largest(const ConstVectorRef<S>& logits) const {
    check_shape("Sampler", "logits", logits, vocab_size(), 1);
    Index best = -1;
    S most = -infinity;
    for (Index i = 0; i < logits.size(); ++i) {
      if (!(logits[i] < infinity)) [[unlikely]]
        raise<StateError>("pith::Sampler: logit ", i, " is ", std::isnan(logits[i]) ? "NaN" : "+inf",
                          ", expected a finite number or -inf: the model's numbers overflowed");
      if (logits[i] > most) {
        most = logits[i];
        best = i;
      }
    }
    if (best < 0) [[unlikely]]
      raise<StateError>("pith::Sampler: all ", logits.size(),
                        " logits are -inf: no token can be drawn; test a model that may have no guess with no_guess()");
    return static_cast<Token>(best);
  }

  double weight(S logit, S top) const { return std::exp((double(logit) - double(top)) * inverse_temperature_); }

  /// Every filter keeps a prefix of one order (largest logit first, then lowest token), so the last token kept describes it.
  void weigh(const ConstVectorRef<S>& logits, Token best, VectorRef<S> out) {
    const S top = logits[best];
    Candidate last{-infinity, (std::numeric_limits<Token>::max)()};
    if (options_.top_k > 0 && options_.top_k < logits.size()) last = kth(logits);
    if (options_.top_p < 1) last = nucleus(logits, top, last);
    double total = 0;
    for (Index i = 0; i < logits.size(); ++i) {
      // w = exp((logit - top) / temperature); min-p compares w with w(top) = 1
      const double w = last.ahead_of({logits[i], Token(i)}) ? 0.0 : weight(logits[i], top);
      out[i] = w >= double(options_.min_p) ? S(w) : S(0);
      total += double(out[i]);
    }
    for (Index i = 0; i < logits.size(); ++i) out[i] = S(double(out[i]) / total);
  }

  Candidate kth(const ConstVectorRef<S>& logits) {
    for (Index i = 0; i < logits.size(); ++i) candidates_[std::size_t(i)] = {logits[i], Token(i)};
    const auto k = candidates_.begin() + options_.top_k - 1;
    if (options_.top_k <= logits.size() / 64) {
      std::partial_sort(candidates_.begin(), k + 1, candidates_.end(), ahead);  // about one comparison per token
    } else {
      std::nth_element(candidates_.begin(), k, candidates_.end(), ahead);
    }
    return *k;
  }

  /// Finds the lightest token of the nucleus (top-p) among those up to `last`, by bisection without a sort. Weights are integers, so their
  /// sums do not depend on the order in which nth_element leaves them.
  Candidate nucleus(const ConstVectorRef<S>& logits, S top, const Candidate& last) {
    const auto size = static_cast<std::uint64_t>(logits.size());
    const double unit = std::ldexp(1.0, 62 - int(std::bit_width(size)));  // weight of `top`; all weights together stay below 2^62
    std::uint64_t total = 0;
    auto first = candidates_.begin(), end = first;
    for (Index i = 0; i < logits.size(); ++i) {
      Candidate c{logits[i], Token(i)};
      if (last.ahead_of(c)) continue;
      c.weight = static_cast<std::uint64_t>(weight(logits[i], top) * unit);
      total += c.weight;
      *end++ = c;
    }
    const auto share = static_cast<std::uint64_t>(std::ceil(double(options_.top_p) * double(total)));
    // Tokens lighter than this together weigh less than total - share, so the others contain the nucleus.
    const std::uint64_t lightest = (total - share) / size;
    end = std::remove_if(first, end, [&](const Candidate& c) { return c.weight < lightest; });
    for (std::uint64_t before = 0; end - first > 1;) {
      const auto middle = first + (end - first) / 2;
      std::nth_element(first, middle, end, ahead);
      std::uint64_t heavier = before;
      for (auto c = first; c != middle; ++c) heavier += c->weight;
      if (heavier >= share) {
        end = middle;
      } else {
        before = heavier;
        first = middle;
      }
    }
    return *first;
  }

  SamplerOptions options_;
  double inverse_temperature_ = 0;
  Vector<S> probabilities_;
  std::vector<Candidate> candidates_;
};

}}  // namespace pith::v0
