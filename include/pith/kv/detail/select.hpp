#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>
#include <pith/kv/ranked_row.hpp>

// Choosing the rows of lowest score.

namespace pith { inline namespace v0 { namespace detail {

/// Finds the row to evict if a single one must go: packets find the blocks that hold the lowest score, a scalar pass its oldest row.
template <class S> std::int32_t first_to_leave(std::span<const S> score, std::span<const Position> positions) {
  using V = Simd<S>;
  constexpr int chains = 4;  // a maximum has a longer latency than a load
  constexpr Index block = 16 * V::width;
  const Index n = static_cast<Index>(score.size());
  const auto lowest = V::broadcast(std::numeric_limits<S>::lowest());  // stands for NaN here; the scalar pass ranks NaN below it
  S least = std::numeric_limits<S>::infinity();
  Index first = 0, last = 0;
  for (Index begin = 0; begin < n; begin += block) {
    const Index end = (std::min)(begin + block, n);
    typename V::Packet most[chains];  // maxima of the negated scores
    for (auto& m : most) m = V::broadcast(-std::numeric_limits<S>::infinity());
    const auto look = [&](auto& m, auto x) { m = V::larger(m, V::sub(V::zero(), V::select(V::equal(x, x), x, lowest))); };
    Index i = begin;
    for (; i + chains * V::width <= end; i += chains * V::width)
      for (int c = 0; c < chains; ++c) look(most[c], V::load(score.data() + i + c * V::width));
    for (; i + V::width <= end; i += V::width) look(most[0], V::load(score.data() + i));
    if (i < end) look(most[1], V::load_part(score.data() + i, end - i, std::numeric_limits<S>::infinity()));
    const S here = -V::largest(V::larger(V::larger(most[0], most[1]), V::larger(most[2], most[3])));
    if (here < least) first = begin;
    if (here <= least) last = begin;
    least = (std::min)(least, here);
  }
  const auto candidate = [&](Index i) {
    const auto at = static_cast<std::size_t>(i);
    return RankedRow<S>{ordered(score[at]), positions[at], static_cast<std::int32_t>(i)};
  };
  RankedRow<S> leaves = candidate(first);
  for (Index i = first; i < (std::min)(last + block, n); ++i) {
    if (score[static_cast<std::size_t>(i)] > least) continue;
    if (const auto c = candidate(i); c < leaves) leaves = c;
  }
  return leaves.row;
}

/// Number of scored rows to evict so that `retain` stay; -inf always leaves, +inf never.
template <class S> Index count_to_evict(std::span<const S> score, Index retain) {
  constexpr S inf = std::numeric_limits<S>::infinity();
  std::int32_t kept = 0, gone = 0;  // as wide as a float: the loop runs in packets
  for (const S s : score) {
    kept += s == inf;
    gone += s == -inf;
  }
  const Index n = static_cast<Index>(score.size());
  return (std::min)((std::max)(n - retain, Index(gone)), n - kept);
}

/// Chooses the `count` rows to evict and writes their indices to `victims`, ascending.
///
/// Cost     one pass in packets if a single row leaves, one nth_element otherwise
/// Law      independent of the order of rows; among equal scores the older row leaves; NaN leaves before every number
template <class S>
void choose_victims(std::span<const S> score, std::span<const Position> positions, Index count, RankedRow<S>* candidates,
                    std::int32_t* victims) {
  const std::size_t n = score.size();
  if (count == 0) return;
  if (count == 1) {
    victims[0] = first_to_leave(score, positions);
    return;
  }
  for (std::size_t i = 0; i < n; ++i) candidates[i] = {ordered(score[i]), positions[i], static_cast<std::int32_t>(i)};
  if (count < static_cast<Index>(n)) std::nth_element(candidates, candidates + count, candidates + n);
  for (Index i = 0; i < count; ++i) victims[i] = candidates[i].row;
  std::sort(victims, victims + count);
}

}}}  // namespace pith::v0::detail
