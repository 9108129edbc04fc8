#pragma once
// Prompts of text and images: which tokens an image becomes, and the rows that a session reads.

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/model/session_options.hpp>
#include <pith/model/splice.hpp>
#include <pith/nn/embedding.hpp>
#include <pith/vision/image_recipe.hpp>
#include <pith/vision/image_rows.hpp>
#include <pith/vision/vlm_spec.hpp>

namespace pith { inline namespace v0 {

/// What an image becomes in the text of a prompt, piece by piece: each is a token of the model's tokenizer. `run_tokens`: image tokens of
/// each run (ImageRows::runs), before any reduction. Written one after the other they are the text to tokenize: newlines may become one
/// token with those beside them.
///
/// Throws   ShapeError if the runs are not those of such tiles
inline std::vector<std::string> image_text(const VlmSpec& spec, const ImageTiles& tiles, std::span<const Index> run_tokens) {
  const Index grid = tiles.rows * tiles.cols, runs = static_cast<Index>(run_tokens.size());
  const bool one_a_tile = spec.marks != ImageMarks::none;
  if (one_a_tile ? runs != tiles.count() : runs != 1)
    raise<ShapeError>("pith::image_text: ", runs, " runs of image tokens for ", tiles.count(), " tiles, expected ",
                      one_a_tile ? "one for each" : "one");
  std::vector<std::string> out;
  const auto add_image = [&](Index run) {
    out.insert(out.end(), static_cast<std::size_t>(run_tokens[static_cast<std::size_t>(run)]), spec.image_word);
  };
  switch (spec.marks) {
    case ImageMarks::none:
      add_image(0);
      break;
    case ImageMarks::bounds: {
      const auto add_bound = [&](Index run) {
        for (const char* word : {"\n\n", "<start_of_image>"}) out.emplace_back(word);
        add_image(run);
        for (const char* word : {"<end_of_image>", "\n\n"}) out.emplace_back(word);
      };
      if (runs > 1) out.emplace_back("Here is the original image ");
      add_bound(0);
      if (runs > 1) out.emplace_back(" and here are some crops to help you see better ");
      for (Index run = 1; run < runs; ++run) {
        if (run > 1) out.emplace_back(" ");
        add_bound(run);
      }
      break;
    }
    case ImageMarks::tiles: {
      const std::string fake = "<fake_token_around_image>";
      for (Index r = 0; r < tiles.rows; ++r) {
        for (Index c = 0; c < tiles.cols; ++c) {
          out.push_back(fake);
          out.push_back(detail::text("<row_", r + 1, "_col_", c + 1, ">"));
          add_image(r * tiles.cols + c);
        }
        out.emplace_back(r + 1 < tiles.rows ? "\n" : "\n\n");  // the last line's and the whole image's are one token
      }
      out.push_back(fake);
      out.emplace_back("<global-img>");
      add_image(grid);
      out.push_back(fake);
    }
  }
  return out;
}
template <class S> std::vector<std::string> image_text(const VlmSpec& spec, const ImageTiles& tiles, const ImageRows<S>& rows) {
  std::vector<Index> tokens;
  for (const auto& run : rows.runs) tokens.push_back(run.tokens);
  return image_text(spec, tiles, tokens);
}

/// Puts the tokens of images where a prompt has placeholders, in order.
///
/// Throws   ShapeError if their numbers differ
inline std::vector<Token> expand_images(std::span<const Token> prompt, Token placeholder, std::span<const std::vector<Token>> images) {
  const auto places = static_cast<std::size_t>(std::count(prompt.begin(), prompt.end(), placeholder));
  if (places != images.size())
    raise<ShapeError>("pith::expand_images: ", images.size(), " images for ", places, " placeholders, expected one for each");
  std::vector<Token> out;
  std::size_t next = 0;
  for (const Token token : prompt) {
    if (token != placeholder)
      out.push_back(token);
    else
      out.insert(out.end(), images[next].begin(), images[next].end()), ++next;
  }
  return out;
}

/// A prompt of text and images: session.prefill(prompt.embeddings, prompt.kinds, prompt.options()).
template <class S = float> struct VisionPrompt : SplicedPrompt<S> {
  std::vector<Position> sight;  ///< [tokens] the last token that each one sees; empty: itself

  /// The spans in it point into this prompt, which must outlive them.
  PrefillOptions options() const { return {.masses = this->masses, .sight = sight}; }
};

/// Builds a prompt from tokens in which every row of every image has its image token: text becomes rows of the table, image tokens become
/// the images' rows, in order, and images see each other where the model wants it. The image token is never looked up in the table.
///
/// Law      the rows left of a reduced image still see each other
/// Throws   ShapeError where splice() does: other numbers of image tokens than the images have, or another width
template <class S>
VisionPrompt<S> vision_prompt(const VlmSpec& spec, const Embedding<S>& table, std::span<const Token> tokens,
                              std::type_identity_t<std::span<const ImageRows<S>>> images) {
  std::vector<MediaRows<S>> media;
  for (const ImageRows<S>& image : images)
    for (const MediaRows<S>& run : image.media()) media.push_back(run);
  VisionPrompt<S> out{{splice<S>(table, tokens, spec.image_token, media)}, {}};
  if (spec.sight == ImageSight::causal) return out;
  const std::size_t n = out.kinds.size();
  out.sight.resize(n);
  for (std::size_t t = n; t-- > 0;) {
    const bool with_next =
        t + 1 < n && (spec.sight == ImageSight::prompt || (out.kinds[t] == TokenKind::image && out.kinds[t + 1] == TokenKind::image));
    out.sight[t] = with_next ? out.sight[t + 1] : static_cast<Position>(t);
  }
  return out;
}

}}  // namespace pith::v0
