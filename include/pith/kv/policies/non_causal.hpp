#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include <pith/core/check.hpp>
#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// Attention without a causal mask within chunks: keeps rows that their chunk's queries look at, before or behind.
///
///   score_r = pool_avg(‖v_r‖ · mean_{g ∈ group} Σ_{q ∈ chunk} softmax over the chunk (q·k)_r), without 1/√d
///
/// Keeps    `keep` rows by this score, the first `sinks` among them, when a prompt ends
/// Needs    queries, keys and values
/// Cost     2·chunk·head_dim per query head and row, once; group·head_dim numbers a row for the queries
/// Paper    a half of Compactor: arXiv:2507.08143
struct NonCausal {
  Index keep = 1024;          ///< rows kept
  Index sinks = 4;            ///< initial tokens, always kept
  Index chunk = 256;          ///< rows that look at each other
  Index kernel = 3;           ///< rows pooled together, odd; rows past the ends count as 0
  bool padded_chunk = false;  ///< as released: the last chunk is filled up with keys of logit 0, and queries that look at all alike

  Index budget() const { return keep; }
  void check(const AttentionShape&) const {
    check_count("NonCausal", "keep", keep, 1);
    check_count("NonCausal", "sinks", sinks, 0, keep - 1, "the newest row is kept as well");
    check_count("NonCausal", "chunk", chunk, 1);
    check_count("NonCausal", "kernel", kernel, 1);
    if (kernel % 2 == 0)
      raise<ShapeError>("pith::NonCausal: kernel is ", kernel, ", expected an odd number: as many rows before as behind");
  }
  PolicyTraits traits() const { return {.prompt_only = true, .ordered = true, .reads_rows = true, .needs_queries = true}; }
  Index stats(const AttentionShape& shape) const { return shape.group() * shape.head_dim; }
  template <class S> void observe(const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S> stats) const {
    const Index group = rows.shape.group(), d = rows.shape.head_dim;
    for (Index q = 0; q < seen.queries.rows(); ++q)
      for (Index i = 0; i < d; ++i) stats(q % group * d + i, seen.first_row + q / group) = seen.queries(q, i);
  }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    raw(rows, 0, rows.size(), out.data(), rows.scratch);
    for (Index r = 0; r < rows.size(); ++r)
      if (rows.positions[static_cast<std::size_t>(r)] - rows.first < sinks) out[r] = std::numeric_limits<S>::infinity();
  }
  /// Scores of the rows first .. end - 1 among themselves: out[first .. end - 1]; `scratch` [end].
  template <class S> void raw(const KvRows<S>& rows, Index first, Index end, S* out, S* scratch) const {
    const Index d = rows.shape.head_dim, group = rows.shape.group();
    for (Index from = first; from < end; from += chunk) {
      const Index to = (std::min)(end, from + chunk), missing = padded_chunk ? from + chunk - to : Index(0);
      std::fill(scratch + from, scratch + to, static_cast<S>(group * missing) / static_cast<S>(chunk));
      for (Index g = 0; g < group; ++g)
        for (Index q = from; q < to; ++q) {
          S top = missing > 0 ? S(0) : -std::numeric_limits<S>::infinity(), total = 0;
          for (Index r = from; r < to; ++r) {
            out[r] = 0;
            for (Index i = 0; i < d; ++i) out[r] += rows.stats(g * d + i, q) * rows.keys(r, i);
            top = (std::max)(top, out[r]);
          }
          for (Index r = from; r < to; ++r) total += out[r] = std::exp(out[r] - top);
          total += static_cast<S>(missing) * std::exp(-top);
          for (Index r = from; r < to; ++r) scratch[r] += out[r] / total;
        }
      for (Index r = from; r < to; ++r) scratch[r] *= rows.values.row(r).norm() / static_cast<S>(group);
    }
    const Index reach = kernel / 2;
    for (Index r = first; r < end; ++r) {
      out[r] = 0;
      for (Index j = (std::max)(first, r - reach); j <= (std::min)(end - 1, r + reach); ++j) out[r] += scratch[j] / static_cast<S>(kernel);
    }
  }
};

}}  // namespace pith::v0
