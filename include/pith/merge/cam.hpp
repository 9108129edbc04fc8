#pragma once
// CaM: adds part of an evicted row's value to the values of the rows behind it.

#include <algorithm>
#include <random>

#include <pith/core/check.hpp>
#include <pith/core/random.hpp>
#include <pith/core/view.hpp>

namespace pith { inline namespace v0 {

/// Options of cam_spread().
struct CamSpread {
  Index row = 0;         ///< the evicted row
  Index followers = 32;  ///< number of rows behind it that take a share each (m of the paper)
  /// Applies if fewer rows than `followers` lie behind: true: they share the whole value; false, as published: the missing shares are lost.
  bool whole_sum = false;
};

/// Adds the value of an evicted row to the m next rows in equal shares, v'_j = v_j + v / m, and returns how many rows took one.
///
/// The evicted row itself stays as it is.
///
/// Shapes   values [rows, dim], in the order of their tokens
/// Cost     followers·dim adds
/// Heap     none
/// Throws   ShapeError if there is no such row or `followers` is below 1, before anything changes
/// Law      the sum of the rows behind grows by the row's value, times the number of shares taken, over `followers`
/// Paper    CaM: Cache Merging for Memory-efficient LLMs Inference, ICML 2024
template <class S> Index cam_spread(MatrixRef<S> values, const CamSpread& spread) {
  if (spread.row < 0 || spread.row >= values.rows())
    raise<ShapeError>("pith::cam_spread: row ", spread.row, ", expected 0 .. ", values.rows() - 1);
  if (spread.followers < 1) raise<ShapeError>("pith::cam_spread: ", spread.followers, " followers, expected 1 or more");
  const Index behind = (std::min)(spread.followers, values.rows() - 1 - spread.row);
  const S share = S(1) / static_cast<S>(spread.whole_sum ? (std::max)(Index(1), behind) : spread.followers);
  for (Index i = 1; i <= behind; ++i) values.row(spread.row + i) += share * values.row(spread.row);
  return behind;
}

/// The rows that cam_ratio() compares: the evicted row with the first and the last rows of the cache.
struct CamRows {
  Index row = 0;    ///< the evicted row
  Index sinks = 0;  ///< number of rows at the start
  Index from = 0;   ///< the first of the rows at the end
};

/// The attention a row receives over the mean attention of the sinks and the last rows. Above 1, the row is worth keeping.
///
/// The ratio is 0 if none of them receives attention and infinite if only the row does. The released code for GPT-NeoX and OPT compares
/// row T - recent with the sinks and the newest `recent` rows and merges above 1. The code for Llama compares row T - recent + 1 with the
/// rows behind it and merges with a probability (cam_merges()).
///
/// Shapes   attention [rows] of the newest query
/// Heap     none
/// Throws   ShapeError if there are no such rows
template <class S> S cam_ratio(ConstVectorRef<S> attention, const CamRows& rows) {
  const Index n = attention.size();
  if (rows.row < 0 || rows.row >= n || rows.sinks < 0 || rows.from < rows.sinks || rows.from > n)
    raise<ShapeError>("pith::cam_ratio: row ", rows.row, " beside ", rows.sinks, " sinks and rows from ", rows.from, " on, of ", n);
  const S sum = attention.head(rows.sinks).sum() + attention.tail(n - rows.from).sum();
  const S ratio = attention[rows.row] * static_cast<S>(rows.sinks + n - rows.from) / sum;
  return ratio == ratio ? ratio : S(0);
}

/// Decides at random whether a row is merged: with probability min(ratio, 1), by exactly one draw in [0, 1).
template <class S> bool cam_merges(S ratio, S uniform) { return uniform < std::clamp(ratio, S(0), S(1)); }
template <class S, std::uniform_random_bit_generator Rng> bool cam_merges(S ratio, Rng& rng) {
  return cam_merges(ratio, canonical<S>(rng));
}

}}  // namespace pith::v0
