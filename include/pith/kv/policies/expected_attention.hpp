#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numbers>
#include <utility>

#include <pith/attention/rope.hpp>
#include <pith/kv/detail/average_rotation.hpp>
#include <pith/kv/policy.hpp>
#include <pith/nn/softmax.hpp>

namespace pith { inline namespace v0 {

/// Expected attention: ranks rows by the weight that future queries are expected to give them.
///
///   score_r = (mean_{g ∈ group} softmax_r(μ·k_r/√d + k_rᵀΣk_r/2d) + epsilon)·‖v_r‖
///
/// μ and Σ, mean and covariance of query head g's unrotated queries in the prompt, are rotated on average to the next `future` positions.
///
/// Keeps    `keep` rows by expected weight, the first `sinks` among them, when a prompt ends
/// Needs    queries, keys and values; no attention weights
/// Cost     head_dim² per query head and query of the prompt while watching, and per query head and row, once
/// Paper    Expected Attention: arXiv:2510.00636
template <class S = float> struct ExpectedAttention {
  static constexpr Index most_future = Index(1) << 20;

  std::shared_ptr<const Rope<S>> rope;  ///< the rope that rotated the layer's queries: Decoder::rope(layer)
  Index keep = 1024;                    ///< rows kept
  Index sinks = 4;                      ///< initial tokens, always kept; their queries are left out of the Gaussian
  Index future = 512;                   ///< next positions that the rotation is averaged over
  S epsilon = S(0.02);                  ///< added to the weight before it is multiplied by the value's norm
  bool covariance = true;               ///< false: only the mean query counts
  S scale = 0;                          ///< the layer's attention scale, in place of 1/√d; 0: 1/√d

  Index budget() const { return keep; }
  /// Throws   ShapeError for invalid numbers, without a rope and with one of another head_dim; UnsupportedError for dynamic rope and for a
  ///          longrope of two tables, because their queries cannot be rotated back
  void check(const AttentionShape& shape) const {
    check_count("ExpectedAttention", "keep", keep, 1);
    check_count("ExpectedAttention", "sinks", sinks, 0, keep - 1, "the newest row is kept as well");
    check_count("ExpectedAttention", "future", future, 1, most_future);
    check_amount("ExpectedAttention", "epsilon", static_cast<double>(epsilon));
    check_amount("ExpectedAttention", "scale", static_cast<double>(scale));
    if (rope == nullptr) raise<ShapeError>("pith::ExpectedAttention: rope is null, expected that of the model");
    if (rope->options().head_dim != shape.head_dim)
      raise<ShapeError>("pith::ExpectedAttention: the rope turns heads of ", rope->options().head_dim, ", the layer has heads of ",
                        shape.head_dim);
    if (rope->options().by_length())
      raise<UnsupportedError>("pith::ExpectedAttention: under ",
                              rope->options().scaling.type == RopeType::dynamic ? "dynamic rope" : "longrope",
                              " a query's angle depends on the length it was rotated at: choose another policy");
  }
  PolicyTraits traits() const { return {.prompt_only = true, .reads_rows = true, .needs_queries = true}; }
  Index stats(const AttentionShape&) const { return 0; }
  /// Per query head: the number of queries, their sum [d], the sum of their outer products [d, d].
  Index memory(const AttentionShape& shape) const { return shape.group() * per_head(shape.head_dim); }

  void observe(const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S>, VectorRef<S> memory) const {
    const Index d = rows.shape.head_dim, group = rows.shape.group();
    S plain[Rope<S>::max_head_dim];
    for (Index q = 0; q < seen.queries.rows(); ++q) {
      const Position position = rows.positions[static_cast<std::size_t>(seen.first_row + q / group)];
      if (position - rows.first < sinks) continue;
      VectorRef<S> query(plain, d);
      query = seen.queries.row(q);
      const Position back = -position;
      rope->rotate_by(MatrixRef<S>(plain, 1, d), {&back, 1});
      S* const moments = memory.data() + q % group * per_head(d);
      moments[0] += S(1);
      VectorRef<S>(moments + 1, d) += query;
      for (Index i = 0; covariance && i < d; ++i) VectorRef<S>(moments + 1 + d + i * d, d) += plain[i] * query;
    }
  }

  void score(const KvRows<S>& rows, VectorRef<S> out) const {
    const Index d = rows.shape.head_dim, group = rows.shape.group(), n = rows.size();
    S cosines[Rope<S>::max_head_dim / 2], sines[Rope<S>::max_head_dim / 2];
    detail::average_rotation(*rope, rows.next, future, cosines, sines);
    out.setZero();
    for (Index g = 0; g < group; ++g) {
      const S* const moments = rows.memory.data() + g * per_head(d);
      for (Index r = 0; r < n; ++r)
        rows.scratch[r] = is_sink(rows, r) ? -std::numeric_limits<S>::infinity() : expected(moments, rows, r, cosines, sines);
      softmax(MatrixRef<S>(rows.scratch, 1, n));
      out += ConstVectorRef<S>(rows.scratch, n) / static_cast<S>(group);
    }
    for (Index r = 0; r < n; ++r)
      out[r] = is_sink(rows, r) ? std::numeric_limits<S>::infinity() : (out[r] + epsilon) * rows.values.row(r).norm();
  }

 private:
  static Index per_head(Index d) { return 1 + d + d * d; }
  bool is_sink(const KvRows<S>& rows, Index r) const { return rows.positions[static_cast<std::size_t>(r)] - rows.first < sinks; }

  /// μ·R̄ᵀk/√d + (R̄ᵀk)ᵀ Σ (R̄ᵀk) / 2d: rotating the key back is cheaper than rotating the Gaussian forward.
  S expected(const S* moments, const KvRows<S>& rows, Index r, const S* cosines, const S* sines) const {
    const Index d = rows.shape.head_dim;
    const auto pairs = rope->pairs();
    S turned[Rope<S>::max_head_dim];
    for (Index i = pairs.width; i < d; ++i) turned[i] = rows.keys(r, i);
    for (Index i = 0; i < pairs.half(); ++i) {
      const S a = rows.keys(r, pairs.first(i)), b = rows.keys(r, pairs.second(i));
      turned[pairs.first(i)] = cosines[i] * a + sines[i] * b;
      turned[pairs.second(i)] = cosines[i] * b - sines[i] * a;
    }
    const S count = (std::max)(moments[0], S(1));
    const ConstVectorRef<S> key(turned, d), sum(moments + 1, d);
    const S mean = sum.dot(key) / count;
    S second = 0;
    for (Index i = 0; covariance && i < d; ++i) second += turned[i] * ConstVectorRef<S>(moments + 1 + d + i * d, d).dot(key);
    const S spread = covariance ? second / count - mean * mean : S(0);
    if (scale > 0) return scale * mean + scale * scale / 2 * spread;
    return mean / std::sqrt(static_cast<S>(d)) + spread / static_cast<S>(2 * d);
  }
};

}}  // namespace pith::v0
