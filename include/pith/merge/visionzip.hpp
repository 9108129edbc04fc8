#pragma once
// VisionZip: keeps dominant image tokens and merges the rest into contextual tokens.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/merge/merge_rule.hpp>
#include <pith/merge/similarity.hpp>
#include <pith/merge/token_map.hpp>
#include <pith/merge/top_rows.hpp>

namespace pith { inline namespace v0 {

/// Options of match_visionzip().
struct VisionZipOptions {
  Index dominant = 54;                   ///< tokens that receive most attention from the class token; they stay, and so does that token
  Index contextual = 10;                 ///< tokens picked from the rest at even distances; each takes in the tokens most similar to it
  RowOrder order = RowOrder::published;  ///< published: dominant tokens, then contextual tokens, each ascending
};

/// VisionZip's rule: a contextual token plus the mean of the n tokens it takes in, x' = x + Σ e / n. The row's norm roughly doubles.
struct TargetPlusMean {
  template <class S> S weight(const MergePair<S>&) const { return 1; }
  template <class S> MergeMix<S> mix(S, S count, S) const { return {count, count}; }
};

/// VisionZip: keeps the class token and the dominant tokens; each other token joins the contextual token of highest cosine.
///
/// Dominant tokens have the largest Σ_heads attention. Apply the map with map.merge(hidden, out, TargetPlusMean{}, ws) or another rule. A
/// token is dropped if there is no contextual token or all its cosines are NaN. Of equal numbers the lowest token wins.
///
/// Shapes   attention [heads, tokens] of the class token, which is token 0 · metric [tokens, dim]
/// Cost     2·contextual·tokens·dim flops and a sort
/// Heap     none, given ws of visionzip_workspace_bytes<S>(tokens, dim, workers)
/// Throws   ShapeError if the shapes disagree or `dominant` exceeds the number of patches, CapacityError if map or ws are too small
/// Law      map.rows() == 1 + dominant + min(contextual, tokens - 1 - dominant)
/// Paper    VisionZip: arXiv:2412.04467
template <class S>
void match_visionzip(std::type_identity_t<ConstMatrixRef<S>> attention, std::type_identity_t<ConstMatrixRef<S>> metric,
                     const VisionZipOptions& options, TokenMap<S>& map, Workspace& ws) {
  const Index tokens = metric.rows(), patches = tokens - 1;
  check_shape("match_visionzip", "attention", attention, any_extent, tokens);
  if (attention.rows() == 0 || tokens == 0) raise<ShapeError>("pith::match_visionzip: no heads or no class token, expected one or more");
  if (options.dominant < 0 || options.dominant > patches || options.contextual < 0)
    raise<ShapeError>("pith::match_visionzip: ", options.dominant, " dominant and ", options.contextual,
                      " contextual tokens, expected 0 or more and no more dominant ones than the ", patches, " patches");
  map.start(tokens);
  const Workspace::Scope scope(ws);
  const Index rest = patches - options.dominant, targets = (std::min)(options.contextual, rest), others = rest - targets;
  std::int32_t* const order = ws.take<std::int32_t>(tokens);  // dominant patches, then the rest
  VectorRef<S> scores = ws.vector<S>(patches);
  scores = attention.rightCols(patches).colwise().sum().transpose();
  detail::best_first(scores.data(), patches, options.dominant, order + 1);
  for (Index i = 1; i < tokens; ++i) ++order[i];
  order[0] = 0;
  std::sort(order, order + 1 + options.dominant);
  std::sort(order + 1 + options.dominant, order + tokens);

  MatrixRef<S> target_rows = ws.matrix<S>(targets, metric.cols()), other_rows = ws.matrix<S>(others, metric.cols());
  std::int32_t* const other_tokens = ws.take<std::int32_t>(others);
  std::int32_t* const kept = order + 1 + options.dominant;  // the contextual tokens are moved to its front
  const Index step = targets > 0 ? rest / targets : 1;
  Index t = 0, o = 0;
  for (Index i = 0; i < rest; ++i) {
    const std::int32_t token = kept[i];
    if (i % step == 0 && t < targets) {
      target_rows.row(t) = metric.row(token);
      kept[t++] = token;
    } else {
      other_rows.row(o) = metric.row(token);
      other_tokens[o++] = token;
    }
  }
  const std::span match(ws.take<std::int32_t>(others), static_cast<std::size_t>(others));
  VectorRef<S> cosine = ws.vector<S>(others);
  std::fill(match.begin(), match.end(), -1);
  if (targets > 0) nearest_rows<S>(other_rows, target_rows, match, cosine, ws);
  for (Index i = 0; i < others; ++i) {
    if (const std::int32_t target = match[static_cast<std::size_t>(i)]; target >= 0)
      map.merge_into(other_tokens[i], kept[target], cosine[i]);
    else
      map.drop(other_tokens[i]);
  }
  if (options.order == RowOrder::spatial) return map.place();
  map.place({order, static_cast<std::size_t>(1 + options.dominant + targets)});
}

/// Bytes of workspace that match_visionzip() needs.
template <class S> std::size_t visionzip_workspace_bytes(Index tokens, Index dim, Index workers = 1) {
  return 4 * Workspace::bytes_for<std::int32_t>(tokens) + Workspace::bytes_for<S>(tokens) +
         2 * Workspace::bytes_for<S>(detail::checked_product("visionzip_workspace_bytes", tokens, dim)) +
         nearest_workspace_bytes<S>(tokens, dim, workers);
}

/// The same with memory of its own: `match_visionzip(attention, metric, {.dominant = 54}).merged(x, TargetPlusMean{})`.
///
/// Heap     the map and a workspace
template <detail::EigenDense M>
TokenMap<detail::scalar_t<M>> match_visionzip(const M& attention, std::type_identity_t<ConstMatrixRef<detail::scalar_t<M>>> metric,
                                              const VisionZipOptions& options) {
  using S = detail::scalar_t<M>;
  TokenMap<S> map(metric.rows());
  Workspace ws(visionzip_workspace_bytes<S>(metric.rows(), metric.cols()));
  match_visionzip<S>(attention, metric, options, map, ws);
  return map;
}

}}  // namespace pith::v0
