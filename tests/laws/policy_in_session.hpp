#pragma once

#include <span>
#include <vector>

#include <pith/model.hpp>

#include "support/catch.hpp"
#include "support/tiny_model.hpp"

namespace pith_test {

/// Law 7 for any policy of yours, in a session: tokens decoded together are the tokens decoded one by one, bit for bit, in the logits and
/// in every layer's cache, and a draft that was taken back has left nothing.
template <class T = float, class P> void policy_in_session(const P& policy, unsigned seed = 1) {
  INFO("seed " << seed);
  const pith::DecoderConfig config = tiny_config();
  const pith::Decoder<float> decoder = random_decoder<float>(config);
  const std::vector<pith::Token> all = random_tokens(80, seed);
  const std::span<const pith::Token> tokens(all);
  const pith::SessionOptions options{.max_prompt = 20, .max_tokens = 100, .max_generated = 100, .max_draft = 6};
  auto one = decoder.start<T>(policy, options), together = decoder.start<T>(policy, options);
  REQUIRE(one.prefill(tokens.first(20)) == together.prefill(tokens.first(20)));
  for (std::size_t at = 20, n = 1; at + n <= tokens.size(); at += n, n = n % 7 + 1) {
    together.checkpoint();
    together.decode(tokens.subspan(3 + at % 11, 1 + at % 6));
    together.crop(static_cast<pith::Position>(at));
    const pith::Matrix<float> logits = together.decode(tokens.subspan(at, n));
    for (std::size_t t = 0; t < n; ++t) REQUIRE(one.decode(tokens.subspan(at + t, 1)).row(0) == logits.row(static_cast<pith::Index>(t)));
    for (std::size_t l = 0; l < one.caches().size(); ++l) REQUIRE(one.caches()[l].snapshot() == together.caches()[l].snapshot());
  }
}

}  // namespace pith_test
