#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>

namespace pith { inline namespace v0 {

/// A row with its score as an order-preserving integer: the first row to evict compares lowest; among equals that is the older one.
template <class S> struct RankedRow {
  std::conditional_t<sizeof(S) == 8, std::int64_t, std::int32_t> rank;
  Position position;
  std::int32_t row;
  friend bool operator<(const RankedRow& a, const RankedRow& b) { return a.rank != b.rank ? a.rank < b.rank : a.position < b.position; }
};

namespace detail {

/// Maps a score to an integer, preserving order: -inf lowest, then NaN, then the numbers (both zeros equal), +inf highest.
template <class S> auto ordered(S score) {
  using Int = std::conditional_t<sizeof(S) == 8, std::int64_t, std::int32_t>;
  constexpr Int lowest = (std::numeric_limits<Int>::min)();
  const Int bits = detail::bits_as<Int>(score + S(0));
  const Int number = bits ^ ((bits >> (sizeof(S) * 8 - 1)) & (std::numeric_limits<Int>::max)());
  if (score != score) return static_cast<Int>(lowest + 1);
  return score == -std::numeric_limits<S>::infinity() ? lowest : number;
}

}  // namespace detail

}}  // namespace pith::v0
