#pragma once
// The rows of highest score.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <type_traits>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>

namespace pith { inline namespace v0 {

namespace detail {

/// The key that scores are ranked by: NaN ranks with -inf.
template <class S> S rank_of(S score) { return score == score ? score : -std::numeric_limits<S>::infinity(); }

/// Fills order[0 … n) with a permutation of 0 … n-1: the best `count` first, in falling order; of equal scores the lowest index first.
template <class S> void best_first(const S* scores, Index n, Index count, std::int32_t* order) {
  std::iota(order, order + n, 0);
  std::partial_sort(order, order + count, order + n, [scores](std::int32_t a, std::int32_t b) {
    const S x = rank_of(scores[a]), y = rank_of(scores[b]);
    return x != y ? x > y : a < b;
  });
}

inline void check_rows_fit(const char* where, Index rows) {
  if (rows > (std::numeric_limits<std::int32_t>::max)())
    raise<CapacityError>("pith::", where, ": ", rows, " rows, expected no more than 32 bits can number");
}

inline void check_part(const char* where, Index count, Index rows) {
  if (count < 0 || count > rows) raise<ShapeError>("pith::", where, ": ", count, " of ", rows, " rows, expected 0 .. ", rows);
}

}  // namespace detail

/// Fills `best` with the rows of the highest scores, best first. Of equal scores the lowest row comes first; NaN comes last.
///
/// Shapes   scores [rows] · best [any number up to rows]
/// Cost     a partial sort
/// Heap     none, given ws of top_rows_workspace_bytes(rows)
/// Throws   ShapeError if `best` is longer than scores, CapacityError if ws is too small
template <class S> void top_rows(ConstVectorRef<S> scores, std::span<std::int32_t> best, Workspace& ws) {
  const Index n = scores.size(), count = static_cast<Index>(best.size());
  if (count > n) raise<ShapeError>("pith::top_rows: the best ", count, " of ", n, " rows");
  detail::check_rows_fit("top_rows", n);
  const Workspace::Scope scope(ws);
  std::int32_t* const order = ws.take<std::int32_t>(n);
  detail::best_first(scores.data(), n, count, order);
  std::copy_n(order, count, best.begin());
}

/// Bytes of workspace that top_rows() needs.
inline std::size_t top_rows_workspace_bytes(Index rows) { return Workspace::bytes_for<std::int32_t>(rows); }

/// The same with memory of its own: the `count` rows of the highest scores, best first.
///
/// Heap     the rows and a workspace
template <detail::EigenDense V> std::vector<std::int32_t> top_rows(const V& scores, Index count) {
  using S = detail::scalar_t<V>;
  detail::check_part("top_rows", count, scores.size());
  std::vector<std::int32_t> best(static_cast<std::size_t>(count));
  Workspace ws(top_rows_workspace_bytes(scores.size()));
  top_rows<S>(scores, best, ws);
  return best;
}

enum class Rounding { down, nearest };

/// The number of rows that a ratio keeps. Rounding::nearest rounds a half to the even neighbour.
///
/// Throws   ShapeError if the ratio is not in 0 .. 1 or `rows` is negative
inline Index rows_at_keep_ratio(Index rows, double ratio, Rounding rounding = Rounding::down) {
  if (!(ratio >= 0 && ratio <= 1) || rows < 0)
    raise<ShapeError>("pith::rows_at_keep_ratio: ", ratio, " of ", rows, " rows, expected a ratio in 0 .. 1 of 0 or more");
  const double kept = static_cast<double>(rows) * ratio;
  return (std::min)(rows, static_cast<Index>(rounding == Rounding::down ? std::floor(kept) : std::nearbyint(kept)));
}

}}  // namespace pith::v0
