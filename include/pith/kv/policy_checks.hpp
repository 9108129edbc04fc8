#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include <pith/attention/shape.hpp>
#include <pith/core/check.hpp>
#include <pith/core/types.hpp>

// Checks of single numbers, for the check() of a policy.

namespace pith { inline namespace v0 {

inline constexpr Index max_head_rows = (std::numeric_limits<std::int32_t>::max)() / 2;  ///< no head of a cache holds more

/// Checks a number of rows or tokens; `why` explains the bound in the message.
///
/// Throws   ShapeError unless least <= value <= most, CapacityError for more than a cache can hold
inline void check_count(std::string_view policy, std::string_view name, Index value, Index least, Index most = max_head_rows,
                        std::string_view why = {}) {
  if (value >= least && value <= most) return;
  const std::string wrong =
      detail::text("pith::", policy, ": ", name, " is ", value, ", expected ", least, " .. ", most, why.empty() ? "" : ": ", why);
  value > max_head_rows ? raise<CapacityError>(wrong) : raise<ShapeError>(wrong);
}

/// Checks a share of something.
///
/// Throws   ShapeError unless 0 <= value <= 1
inline void check_share(std::string_view policy, std::string_view name, double value) {
  if (!(value >= 0 && value <= 1)) raise<ShapeError>("pith::", policy, ": ", name, " is ", value, ", expected 0 .. 1");
}

/// Checks a weight, a scale or another amount.
///
/// Throws   ShapeError unless the number is finite and not negative
inline void check_amount(std::string_view policy, std::string_view name, double value) {
  if (!(value >= 0 && value <= (std::numeric_limits<double>::max)()))
    raise<ShapeError>("pith::", policy, ": ", name, " is ", value, ", expected a finite number, 0 or more");
}

/// a + b, for budgets such as heavy + recent. For numbers that check() refuses, returns a number that no cache accepts.
inline constexpr Index sum_of_rows(Index a, Index b) {
  constexpr Index most = (std::numeric_limits<Index>::max)();
  if (a < 0 || b < 0) return 0;
  return a > most - b ? most : a + b;
}

}}  // namespace pith::v0
