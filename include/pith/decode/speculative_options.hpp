#pragma once

#include <cstdint>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/decode/logit_rules.hpp>
#include <pith/decode/sampling.hpp>

// Options and statistics of speculative decoding, and how many guesses pay.
namespace pith { inline namespace v0 {

enum class DraftLength : std::uint8_t { fixed, adapted };

struct SpeculativeOptions {
  Index draft_tokens = 4;                   ///< the most guesses per pass of the target (γ)
  SamplerOptions sampler = {};              ///< how the target chooses; the draft samples its guesses in the same way
  DraftLength length = DraftLength::fixed;  ///< adapted: the length in 1 .. draft_tokens that is fastest at the recent acceptance rate
  LogitRules rules = {};                    ///< applied to the logits of both models; the mask may see guesses that are rejected later
  float guess_cost = 0.1f;                  ///< adapted: time to make and verify one guess, relative to a pass without guesses (c)

  void check() const {
    if (draft_tokens < 1 || draft_tokens > 1'000'000)
      raise<StateError>("pith::SpeculativeDecoder: draft_tokens is ", draft_tokens, ", expected 1 .. 1000000");
    if (!(guess_cost >= 0 && guess_cost < 1e6f))
      raise<StateError>("pith::SpeculativeDecoder: guess_cost is ", guess_cost, ", expected a number of 0 or more");
  }
};

struct SpeculativeStats {
  Index steps = 0;     ///< passes of the target
  Index drafted = 0;   ///< guesses made
  Index accepted = 0;  ///< guesses the target accepted
  Index rejected = 0;  ///< passes that ended at a rejected guess; later guesses of the pass count only as drafted
  Index tokens = 0;    ///< tokens generated, including the first one after a prompt
  double acceptance_rate() const { return drafted > 0 ? double(accepted) / double(drafted) : 0; }
};

namespace detail {

/// Chooses the number of guesses from recent acceptance.
class DraftPace {
 public:
  void saw(Index accepted, bool rejected) {
    hits_ = memory * hits_ + double(accepted);
    tries_ = memory * tries_ + double(accepted + rejected);
  }

  /// The γ in 1 .. most that maximises tokens per time, (1 + α + … + α^γ) / (1 + γ c); at least 1, so that α stays measured.
  ///
  /// Paper    arXiv:2211.17192, theorem 3.8
  Index length(Index most, double guess_cost) const {
    const double alpha = (hits_ + 1) / (tries_ + 1);
    double power = 1, tokens = 1, best = 0;
    Index length = 1;
    for (Index n = 1; n <= most; ++n) {
      tokens += power *= alpha;
      if (const double pace = tokens / (1 + double(n) * guess_cost); pace > best) {
        best = pace;
        length = n;
      }
    }
    return length;
  }

 private:
  static constexpr double memory = .9;  // weight per step: after ten steps an observation counts a third
  double hits_ = 0, tries_ = 0;
};

}  // namespace detail

}}  // namespace pith::v0
