#pragma once

#include <cstddef>
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
    check_count("Leverage", "keep", keep, 1);
    check_count("Leverage", "sinks", sinks, 0, keep - 1, "the newest row is kept as well");
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

}}  // namespace pith::v0
