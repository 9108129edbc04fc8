#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>

namespace pith::inline v0::detail {

/// A score as an integer of the same order: -inf lowest, then NaN, then the numbers (both zeros equal), +inf highest.
template <class S> auto ordered(S score) {
  using Int = std::conditional_t<sizeof(S) == 8, std::int64_t, std::int32_t>;
  constexpr Int lowest = (std::numeric_limits<Int>::min)();
  const Int bits = detail::bits_as<Int>(score + S(0));
  const Int number = bits ^ ((bits >> (sizeof(S) * 8 - 1)) & (std::numeric_limits<Int>::max)());
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

/// The row that leaves when a single one does: packets find the blocks that hold the least score, a closer look its oldest row.
template <class S> std::int32_t first_to_leave(std::span<const S> score, std::span<const Position> positions) {
  using V = Simd<S>;
  constexpr int chains = 4;  // a maximum takes longer than a load
  constexpr Index block = 16 * V::width;
  const Index n = static_cast<Index>(score.size());
  const auto lowest = V::broadcast(std::numeric_limits<S>::lowest());  // NaN counts as this here, and as less in the closer look
  S least = std::numeric_limits<S>::infinity();
  Index first = 0, last = 0;
  for (Index begin = 0; begin < n; begin += block) {
    const Index end = (std::min)(begin + block, n);
    typename V::Packet most[chains];  // of the scores negated
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
    return Candidate<S>{ordered(score[at]), positions[at], static_cast<std::int32_t>(i)};
  };
  Candidate<S> leaves = candidate(first);
  for (Index i = first; i < (std::min)(last + block, n); ++i) {
    if (score[static_cast<std::size_t>(i)] > least) continue;
    if (const auto c = candidate(i); c < leaves) leaves = c;
  }
  return leaves.row;
}

/// How many of these scored rows leave when `retain` should stay: -inf always, +inf never.
template <class S> Index leaving(std::span<const S> score, Index retain) {
  constexpr S inf = std::numeric_limits<S>::infinity();
  std::int32_t kept = 0, gone = 0;  // as wide as a float: the loop runs in packets
  for (const S s : score) {
    kept += s == inf;
    gone += s == -inf;
  }
  const Index n = static_cast<Index>(score.size());
  return (std::min)((std::max)(n - retain, Index(gone)), n - kept);
}

/// Chooses which `count` rows leave: writes their indices to `victims`, ascending.
///
/// Cost     one pass in packets when a single row leaves, one nth_element otherwise
/// Law      independent of the order of rows; of equal scores the older row leaves; NaN leaves before every number
template <class S>
void choose_victims(std::span<const S> score, std::span<const Position> positions, Index count, Candidate<S>* race, std::int32_t* victims) {
  const std::size_t n = score.size();
  if (count == 0) return;
  if (count == 1) {
    victims[0] = first_to_leave(score, positions);
    return;
  }
  for (std::size_t i = 0; i < n; ++i) race[i] = {ordered(score[i]), positions[i], static_cast<std::int32_t>(i)};
  if (count < static_cast<Index>(n)) std::nth_element(race, race + count, race + n);
  for (Index i = 0; i < count; ++i) victims[i] = race[i].row;
  std::sort(victims, victims + count);
}

}  // namespace pith::inline v0::detail
