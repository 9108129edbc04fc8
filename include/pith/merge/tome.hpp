#pragma once
// ToMe (token merging): bipartite matching of similar tokens, and proportional attention.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/merge/similarity.hpp>
#include <pith/merge/token_map.hpp>
#include <pith/merge/top_rows.hpp>

namespace pith { inline namespace v0 {

/// Options of match_bipartite().
struct BipartiteOptions {
  Index r = 0;        ///< number of tokens to merge, at most half of the unprotected tokens; 0 or less: none
  Index protect = 0;  ///< number of first tokens that are never merged: 1 with a class token, 2 with a distillation token behind it
  /// Published: protected tokens, then the even tokens that stay (by falling cosine if no token is protected), then the odd tokens.
  RowOrder order = RowOrder::spatial;
};

/// Options of match_every_kth().
struct EveryKthOptions {
  Index k = 2;             ///< tokens k-1, 2k-1, … stay
  bool drop_tail = false;  ///< true, as published: drops the tokens behind the last one that stays; false: merges them like all others
};

/// The number of tokens merged when r are requested: between 0 and half of the unprotected tokens.
///
/// Throws   ShapeError if a number of tokens is negative
inline Index clipped_r(Index tokens, const BipartiteOptions& options) {
  if (tokens < 0 || options.protect < 0)
    raise<ShapeError>("pith::clipped_r: ", tokens, " tokens, ", options.protect, " protected, expected 0 or more");
  return std::clamp(options.r, Index(0), (std::max)(Index(0), tokens - options.protect) / 2);
}

namespace detail {

/// Every `step`-th row from `first` on.
template <class S> ConstMatrixRef<S> every_row(const ConstMatrixRef<S>& rows, Index first, Index step) {
  const Index count = first < rows.rows() ? (rows.rows() - first + step - 1) / step : 0;
  return {count > 0 ? rows.data() + first * rows.outerStride() : nullptr, count, rows.cols(), step * rows.outerStride()};
}

}  // namespace detail

/// ToMe's bipartite matching: pairs each even token with the odd token most similar to it and merges the r most similar pairs.
///
///   pair(a) = argmax_b cos(k_a, k_b),   a even, b odd, k the metric;   a joins pair(a) for the r largest cosines
///
/// Of equal cosines the lowest token wins, on both sides. A row of zeros has cosine 0 to all rows. An even token whose cosines are all NaN
/// (some rows hold NaN or infinity) stays.
///
/// Shapes   metric [tokens, dim]: the keys of the layer, averaged over its heads (mean_over_heads())
/// Cost     tokens²/2·dim flops and a sort of tokens/2 numbers
/// Heap     none, given ws of token_match_workspace_bytes<S>(tokens, dim, workers)
/// Throws   CapacityError if map has no room for the tokens or ws is too small, ShapeError if protect is negative
/// Law      map.rows() == tokens - clipped_r(tokens, options) if all numbers are finite
/// Paper    ToMe, arXiv:2210.09461, section 3
template <class S>
void match_bipartite(std::type_identity_t<ConstMatrixRef<S>> metric, const BipartiteOptions& options, TokenMap<S>& map, Workspace& ws) {
  const Index tokens = metric.rows(), r = clipped_r(tokens, options);
  map.start(tokens);
  if (r == 0) return;
  const Index first_even = (options.protect + 1) / 2 * 2, first_odd = options.protect / 2 * 2 + 1;
  const ConstMatrixRef<S> even = detail::every_row(metric, first_even, 2), odd = detail::every_row(metric, first_odd, 2);
  const Workspace::Scope scope(ws);
  const std::span match(ws.take<std::int32_t>(even.rows()), static_cast<std::size_t>(even.rows()));
  VectorRef<S> cosine = ws.vector<S>(even.rows());
  nearest_rows<S>(even, odd, match, cosine, ws);
  std::int32_t* const best = ws.take<std::int32_t>(even.rows());
  const bool all_in_order = options.order == RowOrder::published && options.protect == 0;
  detail::best_first(cosine.data(), even.rows(), all_in_order ? even.rows() : r, best);
  Index merged = 0;
  for (; merged < r && match[static_cast<std::size_t>(best[merged])] >= 0; ++merged) {
    const Index e = best[merged];
    map.merge_into(first_even + 2 * e, first_odd + 2 * match[static_cast<std::size_t>(e)], cosine[e]);
  }
  if (options.order == RowOrder::spatial) return map.place();
  if (options.protect > 0) std::sort(best + merged, best + even.rows());
  std::int32_t* const order = ws.take<std::int32_t>(tokens);
  Index rows = 0;
  const auto put = [&](Index token) { order[rows++] = static_cast<std::int32_t>(token); };
  for (Index t = 0; t < options.protect; ++t) put(t);
  for (Index i = merged; i < even.rows(); ++i) put(first_even + 2 * best[i]);
  for (Index o = 0; o < odd.rows(); ++o) put(first_odd + 2 * o);
  map.place({order, static_cast<std::size_t>(rows)});
}

/// Bytes of workspace that match_bipartite() and match_every_kth() need.
template <class S> std::size_t token_match_workspace_bytes(Index tokens, Index dim, Index workers = 1) {
  return 2 * Workspace::bytes_for<std::int32_t>(tokens) + Workspace::bytes_for<S>(tokens) +
         nearest_workspace_bytes<S>(tokens, dim, workers);
}

namespace detail {

/// A map that match(map, workspace) fills.
template <class S, class Match> TokenMap<S> matched(const ConstMatrixRef<S>& metric, Match&& match) {
  TokenMap<S> map(metric.rows());
  Workspace ws(token_match_workspace_bytes<S>(metric.rows(), metric.cols()));
  match(map, ws);
  return map;
}

}  // namespace detail

/// The same with memory of its own: `match_bipartite(keys, {.r = 16}).merged(x)`.
///
/// Heap     the map and a workspace
template <detail::EigenDense M> TokenMap<detail::scalar_t<M>> match_bipartite(const M& metric, const BipartiteOptions& options) {
  using S = detail::scalar_t<M>;
  return detail::matched<S>(metric, [&](auto& map, Workspace& ws) { match_bipartite<S>(metric, options, map, ws); });
}

/// ToMe with a fixed ratio: of every k tokens the last one stays, and each other token joins the most similar token that stays.
///
/// Fewer than k tokens all stay, and so does a token whose cosines are all NaN. Of equal cosines the lowest token wins.
///
/// Shapes   metric [tokens, dim]
/// Cost     2·tokens²/k·dim flops
/// Heap     none, given ws of token_match_workspace_bytes<S>(tokens, dim, workers)
/// Throws   ShapeError if k is below 1, CapacityError if map has no room for the tokens or ws is too small
/// Paper    ToMe, arXiv:2210.09461; its code offers this beside the method
template <class S>
void match_every_kth(std::type_identity_t<ConstMatrixRef<S>> metric, const EveryKthOptions& options, TokenMap<S>& map, Workspace& ws) {
  const Index tokens = metric.rows(), k = options.k;
  if (k < 1) raise<ShapeError>("pith::match_every_kth: every ", k, "-th token, expected 1 or more");
  map.start(tokens);
  if (k == 1 || k > tokens) return;
  const ConstMatrixRef<S> stay = detail::every_row(metric, k - 1, k);
  const Index end = options.drop_tail ? stay.rows() * k : tokens;
  const Workspace::Scope scope(ws);
  const Index most = (tokens + k - 1) / k;
  std::int32_t* const match = ws.take<std::int32_t>(most);
  S* const cosine = ws.take<S>(most);
  for (Index first = 0; first + 1 < k; ++first) {  // the strides skip the tokens that stay: they need no match
    const ConstMatrixRef<S> leave = detail::every_row(ConstMatrixRef<S>(metric.topRows(end)), first, k);
    nearest_rows<S>(leave, stay, {match, static_cast<std::size_t>(leave.rows())}, {cosine, leave.rows()}, ws);
    for (Index i = 0; i < leave.rows(); ++i)
      if (match[i] >= 0) map.merge_into(first + i * k, k - 1 + match[i] * k, cosine[i]);
  }
  for (Index t = end; t < tokens; ++t) map.drop(t);
  map.place();
}

/// The same with memory of its own.
///
/// Heap     the map and a workspace
template <detail::EigenDense M> TokenMap<detail::scalar_t<M>> match_every_kth(const M& metric, const EveryKthOptions& options) {
  using S = detail::scalar_t<M>;
  return detail::matched<S>(metric, [&](auto& map, Workspace& ws) { match_every_kth<S>(metric, options, map, ws); });
}

/// ToMe's metric, by which tokens are compared: their keys, averaged over the heads.
///
/// Shapes   keys [tokens, num_heads*dim] · out [tokens, dim]
/// Heap     none
/// Throws   ShapeError if the shapes disagree
template <class S> void mean_over_heads(ConstMatrixRef<S> keys, std::type_identity_t<MatrixRef<S>> out) {
  const Index dim = out.cols(), heads = dim > 0 ? keys.cols() / dim : 0;
  check_shape("mean_over_heads", "out", out, keys.rows(), any_extent);
  if (heads < 1 || keys.cols() != heads * dim)
    raise<ShapeError>("pith::mean_over_heads: keys of ", keys.cols(), " numbers are no heads of ", dim);
  out = keys.leftCols(dim);
  for (Index h = 1; h < heads; ++h) out += keys.middleCols(h * dim, dim);
  out /= static_cast<S>(heads);
}

/// Proportional attention: out = log(mass), which is added to the logits of a row that stands for `mass` tokens (KvRun::log_mass).
///
///   softmax(q Kᵀ / √d + log m)
///
/// Shapes   mass [rows] · out [rows]
/// Heap     none
/// Throws   ShapeError if the lengths differ or a mass is not finite and above 0, before anything changes
/// Law      a row of mass n weighs as much as n equal rows of mass 1
/// Paper    ToMe, arXiv:2210.09461, eq. 1
template <class S> void log_masses(ConstVectorRef<S> mass, VectorRef<float> out) {
  if (out.size() != mass.size()) raise<ShapeError>("pith::log_masses: room for ", out.size(), " of ", mass.size(), " masses");
  for (Index r = 0; r < mass.size(); ++r)
    if (!(mass[r] > S(0)) || mass[r] > (std::numeric_limits<S>::max)())
      raise<ShapeError>("pith::log_masses: the mass of row ", r, " is ", mass[r], ", expected a finite number above 0");
  for (Index r = 0; r < mass.size(); ++r) out[r] = static_cast<float>(std::log(mass[r]));
}

}}  // namespace pith::v0
