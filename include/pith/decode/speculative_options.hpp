#pragma once

#include <cstdint>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/decode/logit_rules.hpp>
#include <pith/decode/sampling.hpp>

namespace pith { inline namespace v0 {

enum class DraftLength : std::uint8_t { fixed, adapted };

struct SpeculativeOptions {
  Index draft_tokens = 4;                   ///< guesses before a pass of the target, at most (γ)
  SamplerOptions sampler = {};              ///< how the target chooses; the draft's guesses are drawn in the same way
  DraftLength length = DraftLength::fixed;  ///< adapted: of 1 .. draft_tokens what pays most at the acceptance seen lately
  LogitRules rules = {};    ///< what happens to the logits of both before; the mask may see a text longer than the final one
  float guess_cost = 0.1f;  ///< adapted: time of one guess, made and verified, over that of a pass without any (c)

  void check() const {
    if (draft_tokens < 1 || draft_tokens > 1'000'000)
      raise<StateError>(detail::text("pith::SpeculativeDecoder: draft_tokens is ", draft_tokens, ", expected 1 .. 1000000"));
    if (!(guess_cost >= 0 && guess_cost < 1e6f))
      raise<StateError>(detail::text("pith::SpeculativeDecoder: guess_cost is ", guess_cost, ", expected a number of 0 or more"));
  }
};

struct SpeculativeStats {
  Index steps = 0;     ///< passes of the target
  Index drafted = 0;   ///< guesses it was shown
  Index accepted = 0;  ///< those it would have said as well
  Index rejected = 0;  ///< passes that ended at a guess; the guesses behind it were not looked at
  Index tokens = 0;    ///< emitted, the first one, which the prompt's logits choose, among them
  double acceptance_rate() const { return drafted > 0 ? double(accepted) / double(drafted) : 0; }
};

namespace detail {

/// How many guesses pay, from how many were accepted lately.
class DraftPace {
 public:
  void saw(Index accepted, bool rejected) {
    hits_ = memory * hits_ + double(accepted);
    tries_ = memory * tries_ + double(accepted + rejected);
  }

  /// The γ in 1 .. most with the most tokens for its time, (1 + α + … + α^γ) / (1 + γ c); never 0, or nothing would be learnt any more.
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
  static constexpr double memory = .9;  // what was seen ten steps ago counts a third
  double hits_ = 0, tries_ = 0;
};

}  // namespace detail

}}  // namespace pith::v0
