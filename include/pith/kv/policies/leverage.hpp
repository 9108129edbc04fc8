#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>

#include <pith/attention/rope.hpp>
#include <pith/core/check.hpp>
#include <pith/kv/detail/small_cholesky.hpp>
#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// Leverage of keys: keeps rows whose keys, before rope, lie outside of what the others span.
///
///   score_r = x_r (Xᵀ X + 0.01 I)⁻¹ x_rᵀ, X = the keys without rope, centred, times a sketch if there is one
///
/// Keeps    `keep` rows by leverage, the first `sinks` among them, when a prompt ends
/// Needs    keys
/// Cost     head_dim² per row, once; heads of at most 128
/// Paper    a half of Compactor: arXiv:2507.08143
template <class S = float> struct Leverage {
  std::shared_ptr<const Rope<S>> rope;           ///< the rope that rotated the layer's keys: Decoder::rope(layer)
  Index keep = 1024;                             ///< rows kept
  Index sinks = 4;                               ///< initial tokens, always kept
  std::shared_ptr<const Matrix<S>> sketch = {};  ///< [num_kv_heads*head_dim, k] as published; null: exact

  Index budget() const { return keep; }
  void check(const AttentionShape& shape) const {
    detail::check_count("Leverage", "keep", keep, 1);
    detail::check_count("Leverage", "sinks", sinks, 0, keep - 1, "the newest row is kept as well");
    if (rope == nullptr || rope->options().head_dim != shape.head_dim)
      raise<ShapeError>("pith::Leverage: expected a rope for heads of ", shape.head_dim, ": Decoder::rope(layer)");
    if (rope->options().by_length())
      raise<UnsupportedError>(
          "pith::Leverage: a key's angle depends on the length of the text, so it cannot be turned back: choose another policy");
    if (shape.head_dim > detail::SmallCholesky<S>::most)
      raise<UnsupportedError>("pith::Leverage: heads of ", shape.head_dim, ", expected at most ", detail::SmallCholesky<S>::most);
    if (sketch != nullptr) {
      check_shape("Leverage", "sketch", *sketch, shape.num_kv_heads * shape.head_dim, any_extent);
      if (sketch->cols() < 1 || sketch->cols() > detail::SmallCholesky<S>::most)
        raise<ShapeError>("pith::Leverage: a sketch of ", sketch->cols(), " columns, expected 1 .. ", detail::SmallCholesky<S>::most);
    }
  }
  PolicyTraits traits() const { return {.prompt_only = true, .ordered = true, .reads_rows = true}; }
  void score(const KvRows<S>& rows, VectorRef<S> out) const {
    raw(rows, 0, rows.size(), out.data());
    for (Index r = 0; r < rows.size(); ++r)
      if (rows.positions[static_cast<std::size_t>(r)] - rows.first < sinks) out[r] = std::numeric_limits<S>::infinity();
  }
  /// Scores of the rows first .. end - 1 among themselves: out[first .. end - 1].
  void raw(const KvRows<S>& rows, Index first, Index end, S* out) const {
    const Index d = rows.shape.head_dim, k = sketch == nullptr ? d : sketch->cols();
    S mean[detail::SmallCholesky<S>::most] = {}, key[detail::SmallCholesky<S>::most], x[detail::SmallCholesky<S>::most];
    const auto plain = [&](Index r) {
      for (Index i = 0; i < d; ++i) key[i] = rows.keys(r, i);
      const Position back = -rows.positions[static_cast<std::size_t>(r)];
      rope->rotate_by(MatrixRef<S>(key, 1, d), {&back, 1});
    };
    const auto centred = [&](Index r) {
      plain(r);
      for (Index i = 0; i < d; ++i) key[i] -= mean[i];
      for (Index j = 0; j < k; ++j) {
        x[j] = sketch == nullptr ? key[j] : S(0);
        for (Index i = 0; sketch != nullptr && i < d; ++i) x[j] += key[i] * (*sketch)(rows.kv_head * d + i, j);
      }
    };
    for (Index r = first; r < end; ++r) {
      plain(r);
      for (Index i = 0; i < d; ++i) mean[i] += key[i] / static_cast<S>(end - first);
    }
    detail::SmallCholesky<S> gram(k, S(0.01));
    for (Index r = first; r < end; ++r) {
      centred(r);
      gram.add(x, S(1));
    }
    gram.factor();
    for (Index r = first; r < end; ++r) {
      centred(r);
      out[r] = gram.form(x);
    }
  }
};

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
    detail::check_count("NonCausal", "keep", keep, 1);
    detail::check_count("NonCausal", "sinks", sinks, 0, keep - 1, "the newest row is kept as well");
    detail::check_count("NonCausal", "chunk", chunk, 1);
    detail::check_count("NonCausal", "kernel", kernel, 1);
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

/// Compactor: leverage of keys and attention without a causal mask, each in deviations from its mean in the head.
///
///   score_r = blend · z(leverage_r) + z(non-causal_r)
///
/// Released code takes the deviations over all heads together, where its comments say head by head.
///
/// Keeps    `keep` rows, the first `sinks` and the newest `recent` among them, when a prompt ends
/// Needs    queries, keys and values
/// Cost     of both
/// Paper    Compactor: arXiv:2507.08143
template <class S = float> struct Compactor {
  Leverage<S> leverage;
  NonCausal attention = {};
  double blend = 0.35;  ///< weight of the leverage
  Index recent = 4;     ///< newest tokens, always kept

  Index budget() const { return leverage.keep; }
  void check(const AttentionShape& shape) const {
    leverage.check(shape);
    attention.check(shape);
    detail::check_amount("Compactor", "blend", blend);
    detail::check_count("Compactor", "recent", recent, 0, leverage.keep - leverage.sinks, "sinks and newest rows are part of keep");
  }
  PolicyTraits traits() const { return attention.traits(); }
  Index stats(const AttentionShape& shape) const { return attention.stats(shape); }
  void observe(const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S> stats) const { attention.observe(seen, rows, stats); }
  void score(const KvRows<S>& rows, VectorRef<S> out) const {
    Index first = 0, end = rows.size();
    while (first < end && rows.positions[static_cast<std::size_t>(first)] - rows.first < leverage.sinks) ++first;
    while (end > first && rows.positions[static_cast<std::size_t>(end - 1)] >= rows.next - recent) --end;
    out.setConstant(std::numeric_limits<S>::infinity());
    if (end - first < 2) {
      out.segment(first, end - first).setZero();
      return;
    }
    const auto spread = [&](S* x) {
      VectorRef<S> v(x + first, end - first);
      const S mean = v.mean();
      const S deviation = std::sqrt((v.array() - mean).square().sum() / static_cast<S>(end - first - 1));
      v = (v.array() - mean) / (std::max)(deviation, (std::numeric_limits<S>::min)());
    };
    attention.raw(rows, first, end, out.data(), rows.scratch);
    spread(out.data());
    leverage.raw(rows, first, end, rows.scratch);
    spread(rows.scratch);
    for (Index r = first; r < end; ++r) out[r] += static_cast<S>(blend) * rows.scratch[r];
  }
};

}}  // namespace pith::v0
