#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include <pith/core/check.hpp>
#include <pith/kv/policy.hpp>
#include <pith/kv/query_window.hpp>

namespace pith { inline namespace v0 {

/// SnapKV: when a prompt ends, keeps the rows that its last queries attend to, and their neighbours.
///
///   score_r = pool_{|j - r| ≤ kernel/2} mean_{q ∈ last window} softmax(q Kᵀ / √d)_j
///
/// Keeps    `keep` rows by pooled attention of the last `window` queries, including the tokens of those queries
/// Needs    attention weights of the last `window` queries
/// Cost     one add per weight of the window; `kernel` reads per row, once; memory for `window` numbers a row, group() times as many for
///          Group::largest, so that a prompt may come in pieces
/// Paper    SnapKV: arXiv:2404.14469
struct SnapKv {
  enum class Pool : std::uint8_t { average, largest };
  enum class Group : std::uint8_t { mean, largest };
  Index keep = 1024;          ///< rows kept, the window included
  Index window = 32;          ///< last queries watched; their tokens stay
  Index kernel = 5;           ///< rows pooled together, odd
  Pool pool = Pool::average;  ///< average: rows past the ends count as 0
  Group group = Group::mean;  ///< how the query heads of a kv head are combined, before pooling
  Index budget() const { return keep; }
  void check(const AttentionShape&) const {
    check_count("SnapKv", "keep", keep, 1);
    check_count("SnapKv", "window", window, 1, keep, "the window is part of keep");
    check_count("SnapKv", "kernel", kernel, 1);
    if (kernel % 2 == 0) raise<ShapeError>("pith::SnapKv: kernel is ", kernel, ", expected an odd number: as many rows before as behind");
  }
  PolicyTraits traits() const { return {.prompt_only = true, .ordered = true, .watches = window}; }
  Index stats(const AttentionShape& shape) const { return sums(shape) * (1 + window); }
  Index memory(const AttentionShape&) const { return QueryWindow<float>::memory_size; }
  template <class S> void observe(const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S> stats, VectorRef<S> memory) const {
    const Index n = sums(rows.shape), heads = rows.shape.group();
    QueryWindow<S> last(window, memory);
    const auto slot = [&](Index row) { return stats.middleRows(n * (1 + last.slot(row)), n); };
    last.slide(seen, rows, [&](Index first, Index end) {
      stats.topRows(n).setZero();
      for (Index row = first; row < end; ++row) stats.topRows(n) += slot(row);
    });
    for (Index q = 0; q < seen.weights.rows(); q += heads) {
      auto one = slot(seen.first_row + q / heads);
      one = seen.weights.middleRows(q, n);
      for (Index g = n; g < heads; ++g) one.row(0) += seen.weights.row(q + g);
      stats.topRows(n) += one;
    }
  }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    const Index candidates = (std::max)(Index(0), rows.size() - window), reach = kernel / 2;
    const Index n = sums(rows.shape), added = window * rows.shape.group() / n;  // weights per sum
    for (Index r = 0; r < candidates; ++r) rows.scratch[r] = rows.stats.col(r).head(n).maxCoeff() / static_cast<S>(added);
    for (Index r = 0; r < candidates; ++r) {
      const Index first = (std::max)(Index(0), r - reach), last = (std::min)(candidates - 1, r + reach);
      const ConstVectorRef<S> seen(rows.scratch + first, last - first + 1);
      out[r] = pool == Pool::average ? seen.sum() / static_cast<S>(2 * reach + 1) : seen.maxCoeff();
    }
    out.tail(rows.size() - candidates).setConstant(std::numeric_limits<S>::infinity());
  }

 private:
  Index sums(const AttentionShape& shape) const { return group == Group::mean ? 1 : shape.group(); }
};

}}  // namespace pith::v0
