#pragma once
// FastV and PyramidDrop: keep the image tokens that receive most attention.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/merge/top_rows.hpp>

namespace pith { inline namespace v0 {

/// The image within a prompt, and the number of its tokens to keep.
struct ImageTokens {
  Index first = 0;  ///< first token of the image
  Index count = 0;  ///< number of image tokens
  Index keep = 0;   ///< number of image tokens to keep
};

namespace detail {

inline void check_image(const char* where, const ImageTokens& image, Index tokens) {
  if (image.first < 0 || image.count < 0 || image.first > tokens || image.count > tokens - image.first)
    raise<ShapeError>("pith::", where, ": an image of ", image.count, " tokens from ", image.first, " on, of ", tokens);
  if (image.keep < 0 || image.keep > image.count)
    raise<ShapeError>("pith::", where, ": ", image.keep, " of an image of ", image.count, " tokens");
}

}  // namespace detail

/// FastV: keeps all non-image tokens and the `keep` image tokens that receive most attention from the last query, averaged over heads.
///
/// PyramidDrop ranks the same way, layer after layer, by the attention of the instruction's last token. Of equal weights the lowest token
/// is kept; kept tokens keep their positions.
///
/// Shapes   attention [heads, tokens] of one query · kept [tokens - count + keep], ascending
/// Cost     reads each weight of the image once, and a partial sort
/// Heap     none, given ws of keep_image_workspace_bytes<S>(image.count)
/// Throws   ShapeError if the image does not lie within the tokens, `keep` exceeds `count`, or kept has another size
/// Paper    FastV: arXiv:2403.06764; PyramidDrop: arXiv:2410.17247
template <class S>
void keep_image_tokens(ConstMatrixRef<S> attention, const ImageTokens& image, std::span<std::int32_t> kept, Workspace& ws) {
  const Index tokens = attention.cols();
  detail::check_image("keep_image_tokens", image, tokens);
  if (static_cast<Index>(kept.size()) != tokens - image.count + image.keep)
    raise<ShapeError>("pith::keep_image_tokens: room for ", kept.size(), " tokens, expected ", tokens - image.count + image.keep);
  if (attention.rows() == 0) raise<ShapeError>("pith::keep_image_tokens: no heads, expected one or more");
  detail::check_rows_fit("keep_image_tokens", tokens);
  const Workspace::Scope scope(ws);
  VectorRef<S> scores = ws.vector<S>(image.count);
  scores.setZero();
  for (Index h = 0; h < attention.rows(); ++h) scores += attention.row(h).segment(image.first, image.count).transpose();
  const std::span<std::int32_t> best = kept.subspan(static_cast<std::size_t>(image.first), static_cast<std::size_t>(image.keep));
  top_rows<S>(scores, best, ws);
  std::sort(best.begin(), best.end());
  for (std::int32_t& token : best) token += static_cast<std::int32_t>(image.first);
  std::iota(kept.begin(), kept.begin() + image.first, 0);
  std::iota(kept.begin() + image.first + image.keep, kept.end(), static_cast<std::int32_t>(image.first + image.count));
}

/// Bytes of workspace that keep_image_tokens() needs.
template <class S> std::size_t keep_image_workspace_bytes(Index image_tokens) {
  return Workspace::bytes_for<S>(image_tokens) + 2 * Workspace::bytes_for<std::int32_t>(image_tokens);
}

/// The same with memory of its own: the tokens kept, ascending.
///
/// Heap     the tokens and a workspace
template <detail::EigenDense M> std::vector<std::int32_t> keep_image_tokens(const M& attention, const ImageTokens& image) {
  using S = detail::scalar_t<M>;
  detail::check_image("keep_image_tokens", image, attention.cols());
  std::vector<std::int32_t> kept(static_cast<std::size_t>(attention.cols() - image.count + image.keep));
  Workspace ws(keep_image_workspace_bytes<S>(image.count));
  keep_image_tokens<S>(attention, image, kept, ws);
  return kept;
}

}}  // namespace pith::v0
