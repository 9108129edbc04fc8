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
#include <pith/decode/sampling.hpp>
#include <pith/decode/token_model.hpp>

namespace pith::inline v0 {

struct GenerateOptions {
  Index max_tokens = 256;                   ///< tokens reported at most
  SamplerOptions sampler = {};              ///< how each is chosen
  std::span<const Token> stop_tokens = {};  ///< any of these ends the text: pass all of a model's end-of-sequence tokens
};

enum class StopReason : std::uint8_t { max_tokens, stop_token, callback };

struct GenerateResult {
  Index count = 0;  ///< tokens reported; a stop token is not one of them
  StopReason reason = StopReason::max_tokens;
  Token pending = -1;  ///< chosen last and not fed to the model: the last token reported, or the stop token; -1 if max_tokens was 0
};

/// Is told every token as it is chosen. May return nothing, or a bool: false ends the text after this token.
template <class F>
concept TokenCallback = std::invocable<F&, Token> &&
    (std::is_void_v<std::invoke_result_t<F&, Token>> || std::same_as<std::invoke_result_t<F&, Token>, bool>);

/// Lets a model go on with a text: chooses a token, reports it, feeds it, until something says stop.
///
/// The last token chosen is left pending: to go on, feed `result.pending` first, alone or at the head of what you add to the text.
///
/// Shapes   logits [any, vocab_size()]: what prefill() or decode() returned; the last row chooses the first token
/// Cost     one decode() of a single token for every token chosen but the first
/// Heap     the sampler's buffers, before the first token
/// Throws   StateError if an option is out of range; what Sampler, model and callback throw: the token reported last is pending then
/// Law      n tokens, then decode(pending) and m tokens, are n + m tokens at once: same tokens, same rng
template <TokenModel M, std::uniform_random_bit_generator Rng, TokenCallback OnToken>
GenerateResult generate(M& model, ConstMatrixRef<typename M::Scalar> logits, const GenerateOptions& options, Rng& rng, OnToken&& on_token) {
  using S = typename M::Scalar;
  if (options.max_tokens < 0) [[unlikely]]
    raise<StateError>(detail::text("pith::generate: max_tokens is ", options.max_tokens, ", expected 0 or more"));
  const auto vocab_size = static_cast<Index>(model.vocab_size());
  Sampler<S> sampler(options.sampler, vocab_size);
  const auto choose = [&](const ConstMatrixRef<S>& rows) {
    check_shape("generate", "logits", rows, any_extent, vocab_size);
    if (rows.rows() == 0) [[unlikely]]
      raise<ShapeError>(detail::text("pith::generate: logits is [0, ", vocab_size, "], expected the row of the last token"));
    return sampler.sample(rows.row(rows.rows() - 1), rng);
  };

  GenerateResult result;
  if (options.max_tokens == 0) return result;
  result.pending = choose(logits);
  for (;;) {
    const Token token = result.pending;
    if (std::find(options.stop_tokens.begin(), options.stop_tokens.end(), token) != options.stop_tokens.end()) {
      result.reason = StopReason::stop_token;
      return result;
    }
    ++result.count;
    if constexpr (std::is_void_v<std::invoke_result_t<OnToken&, Token>>) {
      on_token(token);
    } else if (!on_token(token)) {
      result.reason = StopReason::callback;
      return result;
    }
    if (result.count == options.max_tokens) return result;
    result.pending = choose(model.decode(std::span<const Token>(&token, 1)));
  }
}

/// The same, collected: the tokens reported. Whether a stop token followed them only the other overload tells.
template <TokenModel M, std::uniform_random_bit_generator Rng>
std::vector<Token> generate(M& model, ConstMatrixRef<typename M::Scalar> logits, const GenerateOptions& options, Rng& rng) {
  std::vector<Token> tokens;
  generate(model, logits, options, rng, [&](Token token) { tokens.push_back(token); });
  return tokens;
}

}  // namespace pith::inline v0
