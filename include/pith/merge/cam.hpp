#pragma once

#include <algorithm>
#include <random>

#include <pith/core/check.hpp>
#include <pith/core/random.hpp>
#include <pith/core/view.hpp>

namespace pith { inline namespace v0 {

/// How the value of a row that leaves is spread over those behind it.
struct CamSpread {
  Index row = 0;         ///< the row that leaves
  Index followers = 32;  ///< rows behind it that take a share each (m of the paper)
  bool whole_sum =
      false;  ///< fewer rows than that behind it: they take all of it; otherwise a share each, as published, and the rest is lost
};

/// Adds the value of a row to the next ones, in equal shares; the row itself is left as it is. Returns how many took a share.
///
/// Shapes   values [rows, dim], in the order of their tokens
/// Cost     followers·dim adds
/// Heap     none
/// Throws   ShapeError if there is no such row or no followers are asked for, before anything changes
/// Law      the sum of the rows behind grows by the row's value times those that took a share over `followers`
/// Paper    CaM: Cache Merging for Memory-efficient LLMs Inference, ICML 2024
template <class S> Index cam_spread(MatrixRef<S> values, const CamSpread& spread) {
  if (spread.row < 0 || spread.row >= values.rows())
    raise<ShapeError>(detail::text("pith::cam_spread: row ", spread.row, ", expected 0 .. ", values.rows() - 1));
  if (spread.followers < 1) raise<ShapeError>(detail::text("pith::cam_spread: ", spread.followers, " followers, expected 1 or more"));
  const Index behind = (std::min)(spread.followers, values.rows() - 1 - spread.row);
  const S share = S(1) / static_cast<S>(spread.whole_sum ? (std::max)(Index(1), behind) : spread.followers);
  for (Index i = 1; i <= behind; ++i) values.row(spread.row + i) += share * values.row(spread.row);
  return behind;
}

/// Which rows the attention of the leaving one is compared with: the first and the last of the cache.
struct CamRows {
  Index row = 0;    ///< the row that leaves
  Index sinks = 0;  ///< rows at the start
  Index from = 0;   ///< the first of those at the end
};

/// What a row attracts, over the mean of what the others do: above 1 it is worth keeping. 0 where neither attracts anything, infinite where
/// it alone does.
///
/// The released code for GPT-NeoX and OPT compares row T - recent with the sinks and the newest `recent` and merges above 1; that for Llama
/// compares row T - recent + 1 with those behind it, and merges with a probability, cam_merges().
///
/// Shapes   attention [rows] of the newest query
/// Heap     none
/// Throws   ShapeError if there are no such rows
template <class S> S cam_ratio(ConstVectorRef<S> attention, const CamRows& rows) {
  const Index n = attention.size();
  if (rows.row < 0 || rows.row >= n || rows.sinks < 0 || rows.from < rows.sinks || rows.from > n)
    raise<ShapeError>(
        detail::text("pith::cam_ratio: row ", rows.row, " beside ", rows.sinks, " sinks and rows from ", rows.from, " on, of ", n));
  const S sum = attention.head(rows.sinks).sum() + attention.tail(n - rows.from).sum();
  const S ratio = attention[rows.row] * static_cast<S>(rows.sinks + n - rows.from) / sum;
  return ratio == ratio ? ratio : S(0);
}

/// Whether a row is merged: with probability min(ratio, 1), from one draw in [0, 1) whatever the ratio.
template <class S> bool cam_merges(S ratio, S uniform) { return uniform < std::clamp(ratio, S(0), S(1)); }
template <class S, std::uniform_random_bit_generator Rng> bool cam_merges(S ratio, Rng& rng) {
  return cam_merges(ratio, canonical<S>(rng));
}

}}  // namespace pith::v0
