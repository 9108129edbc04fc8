#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include <pith/core/check.hpp>
#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// R-KV: for long reasoning. While decoding, keeps rows that the last queries attend to and that are not near copies of others.
///
///   score_r = lambda·A_r - (1 - lambda)·C_r
///   A = pool_max(mean_q softmax over rows before the window of max_{g ∈ group} q·k/√d), C = softmax_r(mean_i cos(k_i, k_r))
///
/// In each row i one cosine above `threshold` is spared: that of the newest similar row r, so that one of a family of copies stays.
///
/// Keeps    `keep` rows, the window included; rows_per_eviction leave at once
/// Needs    the last `window` queries, keys
/// Cost     rows²·head_dim when evicting; a copy of each query
/// Paper    R-KV: arXiv:2505.24133
struct RKv {
  enum class Spare : std::uint8_t {
    newest,  ///< the newest similar row; a row without one spares the first column, as released
    first,   ///< as released: the first column, unless every row is similar
  };
  Index keep = 1024;              ///< rows kept, the window included
  Index window = 8;               ///< last queries watched; their tokens stay
  Index kernel = 7;               ///< rows pooled together, odd
  Index rows_per_eviction = 128;  ///< rows that leave at once
  double lambda = 0.07;           ///< weight of attention
  double threshold = 0.5;         ///< cosine above which rows are similar
  Spare spare = Spare::newest;

  Index budget() const { return keep; }
  Index retain() const { return keep - rows_per_eviction + 1; }
  void check(const AttentionShape&) const {
    check_count("RKv", "keep", keep, 1);
    check_count("RKv", "window", window, 1, keep, "the window is part of keep");
    check_count("RKv", "kernel", kernel, 1);
    check_count("RKv", "rows_per_eviction", rows_per_eviction, 1, keep - window + 1, "the window stays");
    check_share("RKv", "lambda", lambda);
    if (kernel % 2 == 0) raise<ShapeError>("pith::RKv: kernel is ", kernel, ", expected an odd number: as many rows before as behind");
    if (!std::isfinite(threshold)) raise<ShapeError>("pith::RKv: threshold is ", threshold, ", expected a finite number");
  }
  PolicyTraits traits() const { return {.ordered = true, .reads_rows = true, .watches = window, .needs_queries = true}; }
  Index stats(const AttentionShape&) const { return 0; }
  /// The number of queries seen, and a ring of `window` slots, each with the queries of a token.
  Index memory(const AttentionShape& shape) const { return 1 + window * shape.group() * shape.head_dim; }

  template <class S> void observe(const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S>, VectorRef<S> memory) const {
    const Index group = rows.shape.group(), width = group * rows.shape.head_dim;
    for (Index q = 0; q < seen.queries.rows(); q += group) {
      const Index count = queries_seen(memory[0]);
      S* const slot = memory.data() + 1 + count % window * width;
      for (Index g = 0; g < group; ++g) VectorRef<S>(slot + g * rows.shape.head_dim, rows.shape.head_dim) = seen.queries.row(q + g);
      memory[0] = static_cast<S>(count + 1 < 2 * window ? count + 1 : window);  // bounded, so that it stays exact
    }
  }

  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    const Index n = rows.size(), before = (std::max)(Index(0), n - window), reach = kernel / 2;
    similarity(rows, out);
    attention(rows, before);
    for (Index r = 0; r < before; ++r) {
      const Index first = (std::max)(Index(0), r - reach), last = (std::min)(before - 1, r + reach);
      const S seen = ConstVectorRef<S>(rows.scratch + first, last - first + 1).maxCoeff();
      out[r] = static_cast<S>(lambda) * seen - static_cast<S>(1 - lambda) * out[r];
    }
    out.tail(n - before).setConstant(std::numeric_limits<S>::infinity());
  }

 private:
  /// The count in the memory; 0 for what observe() never writes, as a damaged file may hold.
  template <class S> Index queries_seen(S count) const {
    return count > S(0) && count < static_cast<S>(2 * window) ? static_cast<Index>(count) : Index(0);
  }
  /// out = C.
  template <class S> void similarity(const KvRows<S>& rows, VectorRef<S> out) const {
    const Index n = rows.size();
    S* const inverse = rows.scratch;
    for (Index r = 0; r < n; ++r) inverse[r] = S(1) / (rows.keys.row(r).norm() + S(1e-8));
    out.setZero();
    for (Index i = 0; i < n; ++i) {
      const auto cosine = [&](Index r) { return r == i ? S(0) : rows.keys.row(i).dot(rows.keys.row(r)) * inverse[i] * inverse[r]; };
      Index spared = 0;
      bool found = false, all = true;
      for (Index r = n - 1; r >= 0; --r) {
        const S c = cosine(r);
        const bool similar = c > static_cast<S>(threshold);
        if (similar && !found) spared = r;
        found = found || similar;
        all = all && similar;
        out[r] += c;
      }
      if (spare == Spare::first && !all) spared = 0;
      out[spared] -= cosine(spared);
    }
    out /= static_cast<S>(n);
    const S top = out.maxCoeff();
    out = (out.array() - top).exp();
    out /= out.sum();
  }
  /// scratch = A of the rows before the window, not pooled yet.
  template <class S> void attention(const KvRows<S>& rows, Index before) const {
    const Index d = rows.shape.head_dim, group = rows.shape.group(), count = queries_seen(rows.memory[0]), held = (std::min)(count, window);
    const S scale = S(1) / std::sqrt(static_cast<S>(d));
    std::fill_n(rows.scratch, before, S(0));
    for (Index q = 0; q < held && before > 0; ++q) {
      const Index slot = (count - 1 - q) % window;
      const auto logit = [&](Index r) {
        S most = -std::numeric_limits<S>::infinity();
        for (Index g = 0; g < group; ++g)
          most = (std::max)(most, ConstVectorRef<S>(rows.memory.data() + 1 + (slot * group + g) * d, d).dot(rows.keys.row(r)));
        return most * scale;
      };
      S top = -std::numeric_limits<S>::infinity(), total = 0;
      for (Index r = 0; r < before; ++r) top = (std::max)(top, logit(r));
      for (Index r = 0; r < before; ++r) total += std::exp(logit(r) - top);
      for (Index r = 0; r < before; ++r) rows.scratch[r] += std::exp(logit(r) - top) / (total * static_cast<S>(held));
    }
  }
};

}}  // namespace pith::v0
