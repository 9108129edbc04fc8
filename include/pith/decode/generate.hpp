#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <random>
#include <span>
#include <type_traits>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/decode/logit_rules.hpp>
#include <pith/decode/sampling.hpp>
#include <pith/decode/token_model.hpp>

// Generates text: choose a token from the logits, report it, feed it to the model, repeat.
namespace pith { inline namespace v0 {

struct GenerateOptions {
  Index max_tokens = 256;                   ///< the most tokens to report
  SamplerOptions sampler = {};              ///< how each token is chosen
  std::span<const Token> stop_tokens = {};  ///< each of these ends the text: pass all end-of-sequence tokens of the model
  LogitRules rules = {};                    ///< applied to the logits before the sampler
  std::span<const Token> text = {};         ///< what the model has read (prompt and earlier tokens); only the rules use it
};

enum class StopReason : std::uint8_t { max_tokens, stop_token, callback };

struct GenerateResult {
  Index count = 0;  ///< tokens reported, without a stop token
  StopReason reason = StopReason::max_tokens;
  Token pending = -1;  ///< the last token chosen, not yet fed: the last one reported, or the stop token; -1 if max_tokens was 0
};

/// Called with each token as it is chosen. Returns nothing, or a bool: false ends the text after this token.
template <class F>
concept TokenCallback = std::invocable<F&, Token> &&
    (std::is_void_v<std::invoke_result_t<F&, Token>> || std::same_as<std::invoke_result_t<F&, Token>, bool>);

namespace detail {

/// Reports a token; returns false, with the reason in `result`, if the text ends with it.
template <TokenCallback OnToken>
bool goes_on(Token token, std::span<const Token> stop_tokens, Index max_tokens, GenerateResult& result, OnToken& on_token) {
  result.pending = token;
  if (std::find(stop_tokens.begin(), stop_tokens.end(), token) != stop_tokens.end()) {
    result.reason = StopReason::stop_token;
    return false;
  }
  ++result.count;
  if constexpr (std::is_void_v<std::invoke_result_t<OnToken&, Token>>) {
    on_token(token);
  } else if (!on_token(token)) {
    result.reason = StopReason::callback;
    return false;
  }
  return result.count < max_tokens;
}

inline void check_max_tokens(Index max_tokens) {
  if (max_tokens < 0) [[unlikely]]
    raise<StateError>("pith::generate: max_tokens is ", max_tokens, ", expected 0 or more");
}

}  // namespace detail

/// Generates tokens: chooses one from the logits, reports it, feeds it, until a stop token, the limit or the callback ends the text.
///
/// The last token chosen is left pending. To continue, feed `result.pending` first, alone or at the head of the text you add.
///
/// Shapes   logits [any, vocab_size()]: the result of prefill() or decode(); the first token is chosen from the last row
/// Cost     one decode() of one token for each token chosen after the first
/// Heap     before the first token: the sampler's buffers and, under rules, the text's
/// Throws   StateError if an option is out of range; what Sampler, model and callback throw: the last token reported is then pending
/// Law      n tokens, then decode(pending) and m tokens, give the same tokens and the same rng as n + m tokens at once
template <TokenModel M, std::uniform_random_bit_generator Rng, TokenCallback OnToken>
GenerateResult generate(M& model, ConstMatrixRef<typename M::Scalar> logits, const GenerateOptions& options, Rng& rng, OnToken&& on_token) {
  using S = typename M::Scalar;
  detail::check_max_tokens(options.max_tokens);
  const auto vocab_size = static_cast<Index>(model.vocab_size());
  Sampler<S> sampler(options.sampler, vocab_size);
  detail::RuledText so_far(options.rules, vocab_size,
                           options.text.size() + static_cast<std::size_t>((std::min)(options.max_tokens, Index(1) << 16)));
  so_far.push(options.text);
  Vector<S> ruled(so_far.any() ? vocab_size : 0);
  const auto choose = [&](const ConstMatrixRef<S>& rows) {
    check_shape("generate", "logits", rows, any_extent, vocab_size);
    if (rows.rows() == 0) [[unlikely]]
      raise<ShapeError>("pith::generate: logits is [0, ", vocab_size, "], expected the row of the last token");
    return sampler.sample(so_far.apply<S>(rows.row(rows.rows() - 1), ruled), rng);
  };

  GenerateResult result;
  if (options.max_tokens == 0) return result;
  Token token = choose(logits);
  while (detail::goes_on(token, options.stop_tokens, options.max_tokens, result, on_token)) {
    so_far.push(token);
    token = choose(model.decode(std::span<const Token>(&token, 1)));
  }
  return result;
}

/// Overload that returns the tokens reported, without the stop reason.
template <TokenModel M, std::uniform_random_bit_generator Rng>
std::vector<Token> generate(M& model, ConstMatrixRef<typename M::Scalar> logits, const GenerateOptions& options, Rng& rng) {
  std::vector<Token> tokens;
  generate(model, logits, options, rng, [&](Token token) { tokens.push_back(token); });
  return tokens;
}

/// Reads a prompt with prefill(), then generates as above. The rules see the prompt unless options.text is given.
template <TokenModel M, std::uniform_random_bit_generator Rng, TokenCallback OnToken>
requires requires(M& m, std::span<const Token> prompt) { m.prefill(prompt); }
GenerateResult generate(M& model, std::span<const Token> prompt, GenerateOptions options, Rng& rng, OnToken&& on_token) {
  if (options.text.empty()) options.text = prompt;
  const ConstMatrixRef<typename M::Scalar> logits = model.prefill(prompt);
  return generate(model, logits, options, rng, on_token);
}
template <TokenModel M, std::uniform_random_bit_generator Rng>
requires requires(M& m, std::span<const Token> prompt) { m.prefill(prompt); }
std::vector<Token> generate(M& model, std::span<const Token> prompt, const GenerateOptions& options, Rng& rng) {
  std::vector<Token> tokens;
  generate(model, prompt, options, rng, [&](Token token) { tokens.push_back(token); });
  return tokens;
}

template <TokenModel Target, TokenModel Draft> class SpeculativeDecoder;

/// Limits of one generate() with a SpeculativeDecoder.
struct GenerateLimits {
  Index max_tokens = 256;                   ///< the most tokens to report
  std::span<const Token> stop_tokens = {};  ///< each of these ends the text
};

/// Overload for a SpeculativeDecoder (decode/speculative.hpp), which has its own sampler; continues from its prompt or pending token. The
/// text may end in the middle of a speculative step; both models then stand just before `result.pending`.
///
/// Throws   StateError if an option is out of range; what the models and the callback throw: the last token reported is then pending
template <TokenModel Target, TokenModel Draft, std::uniform_random_bit_generator Rng, TokenCallback OnToken>
GenerateResult generate(SpeculativeDecoder<Target, Draft>& decoder, const GenerateLimits& limits, Rng& rng, OnToken&& on_token) {
  detail::check_max_tokens(limits.max_tokens);
  GenerateResult result;
  result.pending = decoder.pending();
  bool more = limits.max_tokens > 0;
  while (more) {
    decoder.step(rng, limits.max_tokens - result.count,
                 [&](Token token) { return more = detail::goes_on(token, limits.stop_tokens, limits.max_tokens, result, on_token); });
  }
  return result;
}

}}  // namespace pith::v0
