#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include <pith/core/types.hpp>

namespace pith::inline v0::detail {

/// A score as an integer of the same order: -inf lowest, then NaN, then the numbers (both zeros equal), +inf highest.
template <class S> auto ordered(S score) {
  using Int = std::conditional_t<sizeof(S) == 8, std::int64_t, std::int32_t>;
  constexpr Int lowest = std::numeric_limits<Int>::min();
  const Int bits = std::bit_cast<Int>(score + S(0));
  const Int number = bits ^ ((bits >> (sizeof(S) * 8 - 1)) & std::numeric_limits<Int>::max());
  if (score != score) return static_cast<Int>(lowest + 1);
  return score == -std::numeric_limits<S>::infinity() ? lowest : number;
}

/// One row in the race: the first to leave compares lowest, and of equals the older leaves.
template <class S> struct Candidate {
  decltype(ordered(S{})) rank;
  Position position;
  std::int32_t row;
  friend bool operator<(const Candidate& a, const Candidate& b) { return a.rank != b.rank ? a.rank < b.rank : a.position < b.position; }
};

/// How many of these scored rows leave when `retain` should stay: -inf always, +inf never.
template <class S> Index leaving(std::span<const S> score, Index retain) {
  constexpr S inf = std::numeric_limits<S>::infinity();
  Index kept = 0, gone = 0;
  for (const S s : score) {
    kept += s == inf;
    gone += s == -inf;
  }
  const Index n = static_cast<Index>(score.size());
  return std::min(std::max(n - retain, gone), n - kept);
}

/// Chooses which `count` rows leave: writes their indices to `victims`, ascending.
///
/// Cost     one pass when a single row leaves, one nth_element otherwise
/// Law      independent of the order of rows; of equal scores the older row leaves; NaN leaves before every number
template <class S>
void choose_victims(std::span<const S> score, std::span<const Position> positions, Index count, Candidate<S>* race, std::int32_t* victims) {
  const std::size_t n = score.size();
  if (count == 0) return;
  if (count == 1) {
    Candidate<S> first{ordered(score[0]), positions[0], 0};
    for (std::size_t i = 1; i < n; ++i) {
      const auto rank = ordered(score[i]);
      if (rank < first.rank || (rank == first.rank && positions[i] < first.position))
        first = {rank, positions[i], static_cast<std::int32_t>(i)};
    }
    victims[0] = first.row;
    return;
  }
  for (std::size_t i = 0; i < n; ++i) race[i] = {ordered(score[i]), positions[i], static_cast<std::int32_t>(i)};
  if (count < static_cast<Index>(n)) std::nth_element(race, race + count, race + n);
  for (Index i = 0; i < count; ++i) victims[i] = race[i].row;
  std::sort(victims, victims + count);
}

}  // namespace pith::inline v0::detail
