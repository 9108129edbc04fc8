#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/kv/policy_checks.hpp>

namespace pith { inline namespace v0 {

/// PyramidKV: budgets per layer, more rows for the first layers and fewer for the last, with a given average.
///
///   budget_l = high - l·(high - low)/(layers - 1), low = rows/beta, high = 2·rows - low, rows = the average, high ≤ the prompt
///
/// Shapes   returns a budget per layer, the window included
/// Throws   ShapeError for invalid options
/// Paper    PyramidKV: arXiv:2406.02069
struct Pyramid {
  Index layers = 1;
  Index window = 32;  ///< rows of each budget for the tokens of the last queries
  Index beta = 20;    ///< steepness: the last layer keeps about 1/beta of the average besides the window

  /// The released formula: integers, applied to the rows besides the window, for `rows` rows per layer on average and a prompt of `tokens`.
  std::vector<Index> budgets(Index rows, Index tokens) const {
    check(rows, tokens);
    const Index beside = rows - window, most = (std::max)(Index(0), tokens - window);
    Index low = beside / beta, high = 2 * beside - low;
    if (high >= most) {
      high = most;
      low = 2 * beside - high;
    }
    const Index step = layers > 1 ? (high - low) / (layers - 1) : 0;
    std::vector<Index> out;
    for (Index l = 0; l < layers; ++l) out.push_back(window + high - l * step);
    return out;
  }

  /// The other published formula: real numbers, for a share `ratio` of `tokens` removed. All budgets are equal if the pyramid does not fit.
  std::vector<Index> budgets_at(double ratio, Index tokens) const {
    check(window, tokens);
    check_share("Pyramid", "ratio", ratio);
    const double length = static_cast<double>(tokens), rows = length * (1 - ratio), most = length - static_cast<double>(window);
    double low = rows / static_cast<double>(beta), high = 2 * rows - low;
    if (high >= most) {
      high = most;
      low = 2 * rows - high;
    }
    if (!(length >= high && high >= low && low >= static_cast<double>(window))) low = high = rows;
    const double step = layers > 1 ? (high - low) / static_cast<double>(layers - 1) : 0;
    std::vector<Index> out;
    for (Index l = 0; l < layers; ++l) out.push_back(static_cast<Index>(std::nearbyint(high - static_cast<double>(l) * step)));
    return out;
  }

 private:
  void check(Index rows, Index tokens) const {
    constexpr Index most = max_head_rows;
    if (layers < 1 || layers > most || window < 0 || beta < 1 || rows < window || rows > most || tokens < 0 || tokens > most)
      raise<ShapeError>("pith::Pyramid: ", layers, " layers, window ", window, ", beta ", beta, ", ", rows, " rows of ", tokens,
                        " tokens: expected at least 1 layer, beta 1 and a window's rows");
  }
};

}}  // namespace pith::v0
