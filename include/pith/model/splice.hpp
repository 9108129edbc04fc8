#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/nn/embedding.hpp>

// Puts images into a prompt.
namespace pith { inline namespace v0 {

/// An image, or other non-text input, as embedding rows that replace the placeholders of a prompt.
template <class S = float> struct MediaRows {
  ConstMatrixRef<S> rows;                     ///< [rows, hidden_size] the projector's output
  std::span<const std::int32_t> row_of = {};  ///< if tokens were merged: the row that each token became part of (TokenMap::row_of()), -1:
                                              ///< dropped; empty: each row is one token
  ConstVectorRef<S> masses = {};              ///< [rows] number of tokens in each row; empty: 1 each
  TokenKind kind = TokenKind::image;          ///< policies may treat kinds differently
  Index tokens() const { return row_of.empty() ? rows.rows() : static_cast<Index>(row_of.size()); }
};

/// How a prompt marks its images.
enum class Placeholders : std::uint8_t {
  one_a_token,   ///< one placeholder for each token of the image before merging
  one_an_image,  ///< one placeholder for each image
};

/// A prompt of text and images, ready for Session::prefill(embeddings, kinds).
template <class S = float> struct SplicedPrompt {
  struct Span {
    Position first, end;
  };
  Matrix<S> embeddings;            ///< [tokens, hidden_size]
  std::vector<TokenKind> kinds;    ///< [tokens]
  std::vector<float> masses;       ///< [tokens] number of tokens merged into each (PrefillOptions::masses); empty: 1 each
  std::vector<Span> spans;         ///< for each image: its rows are first .. end - 1
  std::vector<Position> moved_to;  ///< [tokens before merging] the position each has in this prompt; -1: dropped
};

namespace detail {

/// The token at which the placeholders of each image begin; throws if placeholders and images do not match.
template <class S>
std::vector<std::size_t> places_of(const Embedding<S>& table, std::span<const Token> tokens, Token placeholder,
                                   std::span<const MediaRows<S>> images, Placeholders form) {
  const auto refuse = [](const std::string& what) { raise<ShapeError>("pith::splice: " + what); };
  Index total = static_cast<Index>(tokens.size());
  for (std::size_t i = 0; i < images.size(); ++i) {
    const MediaRows<S>& image = images[i];
    check_shape("splice", "the rows of an image", image.rows, any_extent, table.cols());
    if (image.masses.size() != 0 && image.masses.size() != image.rows.rows())
      refuse(text("image ", i, ": ", image.masses.size(), " masses for ", image.rows.rows(), " rows"));
    if (image.tokens() < 1) refuse(text("image ", i, " has no tokens"));
    for (const std::int32_t row : image.row_of)
      if (row < -1 || row >= image.rows.rows())
        refuse(text("image ", i, ": a token became row ", row, ", expected -1 .. ", image.rows.rows() - 1));
    total += (std::max)(image.tokens(), image.rows.rows());
    if (total > (std::numeric_limits<Position>::max)()) refuse(text("a prompt of ", total, " tokens or more"));
  }
  std::vector<std::size_t> begins;
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    if (tokens[t] != placeholder) continue;
    if (begins.size() == images.size()) refuse(text("a placeholder at token ", t, ", but there are only ", images.size(), " images"));
    const Index places = form == Placeholders::one_an_image ? 1 : images[begins.size()].tokens();
    for (Index i = 1; i < places; ++i)
      if (t + static_cast<std::size_t>(i) == tokens.size() || tokens[t + static_cast<std::size_t>(i)] != placeholder)
        refuse(text(i, " placeholders from token ", t, " on, but image ", begins.size(), " has ", places, " tokens"));
    begins.push_back(t);
    t += static_cast<std::size_t>(places) - 1;
  }
  if (begins.size() < images.size()) refuse(text(images.size(), " images, but placeholders for ", begins.size()));
  return begins;
}

}  // namespace detail

/// Replaces the placeholders of a prompt by images, in order. An image merged to fewer rows takes fewer positions, and the text after it
/// moves up.
///
/// Shapes   returns [text tokens + image rows, table.cols()]
/// Heap     the prompt it returns
/// Throws   ShapeError if placeholders and images do not match, a row has another width, or a token is outside the vocabulary
template <class S>
SplicedPrompt<S> splice(const Embedding<S>& table, std::span<const Token> tokens, Token placeholder,
                        std::type_identity_t<std::span<const MediaRows<S>>> images, Placeholders form = Placeholders::one_a_token) {
  const std::vector<std::size_t> begins = detail::places_of<S>(table, tokens, placeholder, images, form);
  const auto places = [&](std::size_t i) {
    return form == Placeholders::one_an_image ? std::size_t(1) : static_cast<std::size_t>(images[i].tokens());
  };
  std::size_t rows = tokens.size();
  for (std::size_t i = 0; i < images.size(); ++i) rows += static_cast<std::size_t>(images[i].rows.rows()) - places(i);
  SplicedPrompt<S> out{
      .embeddings = Matrix<S>(static_cast<Index>(rows), table.cols()), .kinds = {}, .masses = {}, .spans = {}, .moved_to = {}};
  const auto next = [&] { return static_cast<Position>(out.kinds.size()); };
  const auto add_text = [&](std::size_t first, std::size_t end) {
    table.gather(tokens.subspan(first, end - first), out.embeddings.middleRows(next(), static_cast<Index>(end - first)));
    for (std::size_t t = first; t < end; ++t) {
      out.moved_to.push_back(next());
      out.kinds.push_back(TokenKind::text);
    }
  };
  std::size_t done = 0;
  for (std::size_t i = 0; i < images.size(); ++i) {
    const MediaRows<S>& image = images[i];
    add_text(done, begins[i]);
    const Position first = next();
    out.embeddings.middleRows(first, image.rows.rows()) = image.rows;
    for (Index t = 0; t < image.tokens(); ++t) {
      const std::int32_t row = image.row_of.empty() ? static_cast<std::int32_t>(t) : image.row_of[static_cast<std::size_t>(t)];
      out.moved_to.push_back(row < 0 ? -1 : first + row);
    }
    out.kinds.insert(out.kinds.end(), static_cast<std::size_t>(image.rows.rows()), image.kind);
    if (image.masses.size() > 0) {
      out.masses.resize(rows, 1.f);
      for (Index r = 0; r < image.masses.size(); ++r) out.masses[static_cast<std::size_t>(first + r)] = static_cast<float>(image.masses[r]);
    }
    out.spans.push_back({first, next()});
    done = begins[i] + places(i);
  }
  add_text(done, tokens.size());
  return out;
}

}}  // namespace pith::v0
