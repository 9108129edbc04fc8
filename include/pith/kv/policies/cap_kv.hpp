#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include <pith/attention/rope.hpp>
#include <pith/core/check.hpp>
#include <pith/kv/detail/average_rotation.hpp>
#include <pith/kv/detail/small_cholesky.hpp>
#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// CapKV: keeps rows whose values lie outside of what the others span, weighted by how much future queries are expected to see of them.
///
///   w_r = exp(tau·(cos(μ, k_r) - max)), A = I + Σ (w + 1e-6) v vᵀ, score_r = mean_{g ∈ group} w_r v_r A⁻¹ v_rᵀ, sinks left out
///
/// μ is the mean of query head g's queries in the prompt, without rope, turned on average to the next `future` positions.
///
/// Keeps    `keep` rows, the first `sinks` among them, when a prompt ends
/// Needs    queries, keys and values
/// Cost     head_dim² per query head and row, once; heads of at most 128
template <class S = float> struct CapKv {
  std::shared_ptr<const Rope<S>> rope;  ///< the rope that rotated the layer's queries: Decoder::rope(layer)
  Index keep = 1024;                    ///< rows kept
  Index sinks = 4;                      ///< initial tokens, always kept; their queries are left out of the mean
  Index future = 512;                   ///< next positions that the rotation is averaged over
  double tau = 5;                       ///< sharpness of the weights

  Index budget() const { return keep; }
  void check(const AttentionShape& shape) const {
    check_count("CapKv", "keep", keep, 1);
    check_count("CapKv", "sinks", sinks, 0, keep - 1, "the newest row is kept as well");
    check_count("CapKv", "future", future, 1, Index(1) << 20);
    check_amount("CapKv", "tau", tau);
    if (rope == nullptr || rope->options().head_dim != shape.head_dim)
      raise<ShapeError>("pith::CapKv: expected a rope for heads of ", shape.head_dim, ": Decoder::rope(layer)");
    if (rope->options().by_length())
      raise<UnsupportedError>(
          "pith::CapKv: a query's angle depends on the length of the text, so it cannot be turned back: choose another policy");
    if (shape.head_dim > detail::SmallCholesky<S>::most)
      raise<UnsupportedError>("pith::CapKv: heads of ", shape.head_dim, ", expected at most ", detail::SmallCholesky<S>::most);
  }
  PolicyTraits traits() const { return {.prompt_only = true, .ordered = true, .reads_rows = true, .needs_queries = true}; }
  Index stats(const AttentionShape&) const { return 0; }
  /// Per query head: the number of queries and their sum.
  Index memory(const AttentionShape& shape) const { return shape.group() * (1 + shape.head_dim); }
  void observe(const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S>, VectorRef<S> memory) const {
    const Index d = rows.shape.head_dim, group = rows.shape.group();
    S plain[Rope<S>::max_head_dim];
    for (Index q = 0; q < seen.queries.rows(); ++q) {
      const Position position = rows.positions[static_cast<std::size_t>(seen.first_row + q / group)], back = -position;
      if (position - rows.first < sinks) continue;
      VectorRef<S>(plain, d) = seen.queries.row(q);
      rope->rotate_by(MatrixRef<S>(plain, 1, d), {&back, 1});
      S* const sums = memory.data() + q % group * (1 + d);
      sums[0] += S(1);
      VectorRef<S>(sums + 1, d) += VectorRef<S>(plain, d);
    }
  }
  void score(const KvRows<S>& rows, VectorRef<S> out) const {
    const Index d = rows.shape.head_dim, group = rows.shape.group(), n = rows.size();
    S cosines[Rope<S>::max_head_dim / 2], sines[Rope<S>::max_head_dim / 2], mean[Rope<S>::max_head_dim];
    detail::average_rotation(*rope, rows.next, future, cosines, sines);
    out.setZero();
    for (Index g = 0; g < group; ++g) {
      detail::rotate_on_average(rope->pairs(), d, cosines, sines, rows.memory.data() + g * (1 + d) + 1, mean);
      const ConstVectorRef<S> mu(mean, d);
      const S norm = (std::max)(mu.norm(), (std::numeric_limits<S>::min)());
      S top = -std::numeric_limits<S>::infinity();
      for (Index r = 0; r < n; ++r) {
        if (is_sink(rows, r)) continue;
        rows.scratch[r] = mu.dot(rows.keys.row(r)) / (norm * (std::max)(rows.keys.row(r).norm(), (std::numeric_limits<S>::min)()));
        top = (std::max)(top, rows.scratch[r]);
      }
      detail::SmallCholesky<S> spread(d, S(1));
      for (Index r = 0; r < n; ++r) {
        if (is_sink(rows, r)) continue;
        rows.scratch[r] = std::exp(static_cast<S>(tau) * (rows.scratch[r] - top));
        spread.add(&rows.values.coeffRef(r, 0), rows.scratch[r] + S(1e-6));
      }
      spread.factor();
      for (Index r = 0; r < n; ++r)
        if (!is_sink(rows, r)) out[r] += rows.scratch[r] * spread.form(&rows.values.coeffRef(r, 0)) / static_cast<S>(group);
    }
    for (Index r = 0; r < n; ++r)
      if (is_sink(rows, r)) out[r] = std::numeric_limits<S>::infinity();
  }

 private:
  bool is_sink(const KvRows<S>& rows, Index r) const { return rows.positions[static_cast<std::size_t>(r)] - rows.first < sinks; }
};

}}  // namespace pith::v0
