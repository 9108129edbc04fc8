#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/kv/detail/select.hpp>
#include <pith/kv/policy_checks.hpp>

// Which rows of all layers stay, by a score of each: for budgets that heads, layers or a whole model share.

namespace pith { inline namespace v0 {

/// How many rows stay, and who shares them.
struct RowBudget {
  enum class Share : std::uint8_t {
    head,   ///< every kv head keeps `rows`
    layer,  ///< the heads of a layer keep heads·rows together, the best of all of them (AdaKV)
    model,  ///< the heads of all layers do
  };
  Index rows = 256;                 ///< rows a kv head keeps, on average where heads share
  Share share = Share::head;        ///< who shares them
  double floor = 0;                 ///< share of `rows` that every head keeps in any case
  Index sinks = 4;                  ///< initial tokens that every head keeps, as part of its rows
  Index recent = 4;                 ///< newest tokens that every head keeps, as part of its rows
  std::vector<Index> of_head = {};  ///< [layers · kv heads] a budget for each head instead of `rows`; empty: equal

  /// Throws   ShapeError for numbers out of range, or a wrong number of budgets
  void check(std::size_t heads) const {
    check_count("RowBudget", "rows", rows, 1);
    check_count("RowBudget", "sinks", sinks, 0, rows, "sinks are part of the rows");
    check_count("RowBudget", "recent", recent, 0, rows - sinks, "sinks and newest rows are part of the rows");
    check_share("RowBudget", "floor", floor);
    if (!of_head.empty() && of_head.size() != heads)
      raise<ShapeError>("pith::RowBudget: of_head has ", of_head.size(), " budgets, expected ", heads, ", one a kv head of each layer");
    for (const Index each : of_head) check_count("RowBudget", "of_head", each, 0);
  }
};

/// Budgets for heads from the share of rows that each may lose: (1 - removed)·rows, rounded so that the sum is the rounded sum (LU-KV).
///
/// Shapes   removed, result [heads]; each result 1 .. rows
/// Throws   ShapeError for a share outside 0 .. 1
inline std::vector<Index> head_budgets(Index rows, std::span<const float> removed) {
  check_count("head_budgets", "rows", rows, 1);
  std::vector<float> ideal, rest;
  std::vector<Index> kept;
  for (const float share : removed) {
    check_share("head_budgets", "removed", static_cast<double>(share));
    ideal.push_back((1.f - share) * static_cast<float>(rows));
    kept.push_back(static_cast<Index>(std::floor(ideal.back())));
    rest.push_back(ideal.back() - std::floor(ideal.back()));
  }
  const float total = std::accumulate(ideal.begin(), ideal.end(), 0.f);
  const Index missing = static_cast<Index>(std::nearbyint(total)) - std::accumulate(kept.begin(), kept.end(), Index(0));
  std::vector<std::size_t> order(kept.size());
  std::iota(order.begin(), order.end(), std::size_t(0));
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return rest[a] > rest[b]; });
  for (Index i = 0; i < (std::min)(missing, static_cast<Index>(order.size())); ++i) ++kept[order[static_cast<std::size_t>(i)]];
  for (Index& each : kept) each = std::clamp(each, Index(1), rows);
  return kept;
}

/// A score for each row of every kv head of every layer, and the rows that stay by them. A head without scores keeps all its rows and takes
/// no part in a shared budget.
class RowScores {
 public:
  /// One head: the positions of its rows and their scores; -inf: leaves first.
  struct Head {
    std::span<const Position> positions = {};
    std::vector<double> scores = {};
  };

  RowScores(Index layers, Index kv_heads) : kv_heads_(kv_heads), heads_(static_cast<std::size_t>(layers * kv_heads)) {}

  Index kv_heads() const { return kv_heads_; }
  std::size_t size() const { return heads_.size(); }
  Head& head(Index layer, Index kv_head) { return heads_[static_cast<std::size_t>(layer * kv_heads_ + kv_head)]; }
  const Head& head(Index layer, Index kv_head) const { return heads_[static_cast<std::size_t>(layer * kv_heads_ + kv_head)]; }

  /// The rows that stay: [layers · kv heads], row indices of each head by age. `first`: position of the first token; `next`: of the next.
  ///
  /// Cost     a sort of the scores of those that share
  /// Throws   ShapeError for an invalid budget
  /// Law      among equal scores newer rows win, then lower heads; NaN leaves before every number
  std::vector<std::vector<Index>> best(const RowBudget& budget, Position first, Position next) const {
    budget.check(heads_.size());
    std::vector<std::vector<Index>> kept(heads_.size());
    const std::size_t together = budget.share == RowBudget::Share::head    ? 1
                                 : budget.share == RowBudget::Share::layer ? static_cast<std::size_t>(kv_heads_)
                                                                           : heads_.size();
    for (std::size_t begin = 0; begin < heads_.size(); begin += together) share_out(budget, first, next, begin, begin + together, kept);
    for (std::size_t h = 0; h < heads_.size(); ++h) {
      const std::span<const Position> positions = heads_[h].positions;
      std::sort(kept[h].begin(), kept[h].end(),
                [&](Index a, Index b) { return positions[static_cast<std::size_t>(a)] < positions[static_cast<std::size_t>(b)]; });
    }
    return kept;
  }

 private:
  struct Ranked {
    std::int64_t rank;
    Position position;
    std::size_t head;
    Index row;
    /// Better rows first.
    friend bool operator<(const Ranked& a, const Ranked& b) {
      if (a.rank != b.rank) return a.rank > b.rank;
      return a.position != b.position ? a.position > b.position : a.head < b.head;
    }
  };

  void share_out(const RowBudget& budget, Position first, Position next, std::size_t begin, std::size_t end,
                 std::vector<std::vector<Index>>& kept) const {
    std::vector<Ranked> all;
    Index left = 0;
    for (std::size_t h = begin; h < end; ++h) {
      const Head& head = heads_[h];
      const Index rows = static_cast<Index>(head.positions.size());
      if (head.scores.empty()) {
        for (Index r = 0; r < rows; ++r) kept[h].push_back(r);
        continue;
      }
      if (head.scores.size() != head.positions.size())
        raise<ShapeError>("pith::RowScores: head ", h, " has ", head.scores.size(), " scores for ", rows, " rows");
      const Index wanted = budget.of_head.empty() ? budget.rows : budget.of_head[h];
      std::vector<Ranked> ranked;
      Index kept_anyway = 0;
      for (Index r = 0; r < rows; ++r) {
        const auto i = static_cast<std::size_t>(r);
        const bool stays = head.positions[i] - first < budget.sinks || Index(next) - head.positions[i] <= budget.recent;
        kept_anyway += stays;
        ranked.push_back({detail::ordered(stays ? std::numeric_limits<double>::infinity() : head.scores[i]), head.positions[i], h, r});
      }
      std::sort(ranked.begin(), ranked.end());
      const bool alone = end - begin == 1;
      const Index certain = alone ? wanted : static_cast<Index>(budget.floor * static_cast<double>(wanted));
      const auto taken = static_cast<std::size_t>((std::min)(rows, (std::max)(certain, kept_anyway)));
      for (std::size_t i = 0; i < taken; ++i) kept[h].push_back(ranked[i].row);
      all.insert(all.end(), ranked.begin() + static_cast<std::ptrdiff_t>(taken), ranked.end());
      left += alone ? 0 : wanted - static_cast<Index>(taken);
    }
    std::sort(all.begin(), all.end());
    const auto more = static_cast<std::size_t>(std::clamp(left, Index(0), static_cast<Index>(all.size())));
    for (std::size_t i = 0; i < more; ++i) kept[all[i].head].push_back(all[i].row);
  }

  Index kv_heads_;
  std::vector<Head> heads_;
};

}}  // namespace pith::v0
