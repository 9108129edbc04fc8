#pragma once

#include <cstddef>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/random.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/decode/token_model.hpp>

namespace pith_test {

struct TokenModelLaws {
  pith::Index max_tokens = 4;  ///< of one decode() and of one journal; a Session: max_draft + 1
  pith::Index rounds = 4;      ///< times every law is tried, on one model that grows by about max_tokens² / 2 tokens meanwhile
  unsigned seed = 1;           ///< of the tokens fed
};

namespace laws {

using Tokens = std::vector<pith::Token>;

inline Tokens random_tokens(pith::Index count, pith::Index vocab, std::mt19937_64& rng) {
  Tokens tokens(static_cast<std::size_t>(count));
  for (pith::Token& token : tokens) token = static_cast<pith::Token>(pith::canonical<double>(rng) * static_cast<double>(vocab));
  return tokens;
}

/// decode(), copied: what it returns lives only until the next call.
template <pith::TokenModel M> pith::Matrix<typename M::Scalar> decoded(M& model, std::span<const pith::Token> tokens) {
  return pith::ConstMatrixRef<typename M::Scalar>(model.decode(tokens));
}

template <pith::TokenModel M> pith::Matrix<typename M::Scalar> decoded_one_by_one(M& model, std::span<const pith::Token> tokens) {
  pith::Matrix<typename M::Scalar> rows(static_cast<pith::Index>(tokens.size()), static_cast<pith::Index>(model.vocab_size()));
  for (std::size_t i = 0; i < tokens.size(); ++i) rows.row(static_cast<pith::Index>(i)) = decoded(model, tokens.subspan(i, 1)).row(0);
  return rows;
}

/// Empty if the two are the same bits, else where they first differ.
template <class S> std::string difference(const pith::Matrix<S>& found, const pith::Matrix<S>& expected) {
  using pith::detail::text;
  if (found.rows() != expected.rows() || found.cols() != expected.cols())
    return text("logits ", pith::detail::shape_text(found.rows(), found.cols()), ", expected ",
                pith::detail::shape_text(expected.rows(), expected.cols()));
  for (pith::Index r = 0; r < found.rows(); ++r)
    for (pith::Index c = 0; c < found.cols(); ++c)
      if (std::memcmp(&found(r, c), &expected(r, c), sizeof(S)) != 0)
        return text("logit [", r, ", ", c, "] is ", found(r, c), ", expected ", expected(r, c), " bit for bit");
  return {};
}

}  // namespace laws

/// The laws of the TokenModel concept, for equal models from `make()`, fresh or after a prompt. Each returns what is broken, or "".

/// Law 7: a chunk gives the rows of its tokens decoded one by one, and leaves the same state.
template <class Make> std::string chunk_law(Make&& make, const TokenModelLaws& options = {}) {
  using pith::detail::text;
  auto whole = make(), single = make();
  std::mt19937_64 rng(options.seed);
  for (pith::Index round = 0; round < options.rounds; ++round)
    for (pith::Index count = 1; count <= options.max_tokens; ++count) {
      const auto at = text(" (round ", round, ", chunk of ", count, ", seed ", options.seed, ")");
      const auto tokens = laws::random_tokens(count, whole.vocab_size(), rng);
      const auto found = laws::decoded(whole, tokens);
      const auto expected = laws::decoded_one_by_one(single, tokens);
      if (const auto broken = laws::difference(found, expected); !broken.empty()) return text("chunk: ", broken, at);
      if (whole.next_position() != single.next_position())
        return text("chunk: next_position() is ", whole.next_position(), ", expected ", single.next_position(), at);
    }
  return {};
}

/// Law 8 seen from outside: after a crop the model is one that never saw the tokens cropped, however many were accepted, and however
/// the journal was fed.
template <class Make> std::string crop_law(Make&& make, const TokenModelLaws& options = {}) {
  using pith::detail::text;
  auto tried = make(), plain = make();
  std::mt19937_64 rng(options.seed);
  for (pith::Index round = 0; round < options.rounds; ++round)
    for (pith::Index accepted = 0; accepted <= options.max_tokens; ++accepted) {
      const auto at = text(" (round ", round, ", ", accepted, " of ", options.max_tokens, " accepted, seed ", options.seed, ")");
      const auto draft = laws::random_tokens(options.max_tokens, tried.vocab_size(), rng);
      const std::span<const pith::Token> kept = std::span(draft).first(static_cast<std::size_t>(accepted));
      const pith::Position start = tried.next_position();
      tried.checkpoint();
      (round + accepted) % 2 == 0 ? laws::decoded(tried, draft) : laws::decoded_one_by_one(tried, draft);
      tried.crop(start + static_cast<pith::Position>(accepted));
      if (tried.next_position() != start + static_cast<pith::Position>(accepted))
        return text("crop: next_position() is ", tried.next_position(), ", expected ", start + accepted, at);
      if (!kept.empty()) laws::decoded_one_by_one(plain, kept);
      const auto more = laws::random_tokens(2, tried.vocab_size(), rng);
      const auto broken = laws::difference(laws::decoded_one_by_one(tried, more), laws::decoded_one_by_one(plain, more));
      if (!broken.empty()) return text("crop: after it ", broken, at);
    }
  return {};
}

/// A checkpoint inside a journal restarts it, a crop to the start gives back what the same tokens gave before.
template <class Make> std::string checkpoint_law(Make&& make, const TokenModelLaws& options = {}) {
  using pith::detail::text;
  auto model = make();
  std::mt19937_64 rng(options.seed);
  for (pith::Index round = 0; round < options.rounds; ++round) {
    const auto at = text(" (round ", round, ", seed ", options.seed, ")");
    model.checkpoint();
    laws::decoded(model, laws::random_tokens(1, model.vocab_size(), rng));
    const auto draft = laws::random_tokens(options.max_tokens, model.vocab_size(), rng);
    const pith::Position start = model.next_position();
    model.checkpoint();
    const auto expected = laws::decoded(model, draft);
    model.crop(start);
    model.checkpoint();
    const auto found = laws::decoded(model, draft);
    if (const auto broken = laws::difference(found, expected); !broken.empty()) return text("checkpoint: again ", broken, at);
    model.crop(model.next_position());
    if (model.next_position() != start + static_cast<pith::Position>(options.max_tokens))
      return text("checkpoint: accepting all left next_position() at ", model.next_position(), ", expected ", start + options.max_tokens,
                  at);
  }
  return {};
}

/// The first broken law of all, or "".
template <class Make> std::string broken_token_model_law(Make&& make, const TokenModelLaws& options = {}) {
  if (auto broken = chunk_law(make, options); !broken.empty()) return broken;
  if (auto broken = crop_law(make, options); !broken.empty()) return broken;
  return checkpoint_law(make, options);
}

}  // namespace pith_test
