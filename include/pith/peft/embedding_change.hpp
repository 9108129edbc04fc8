#pragma once
// What an adapter changes in the table of embeddings without a table of its own: a low-rank delta, or single rows.

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/fingerprint.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/peft/projection_change.hpp>

namespace pith { inline namespace v0 {

/// row(token) ← W[token] + A[:, token] B, or the replaced row of the token. Each part may be empty.
///
/// Shapes   token_rows Aᵀ [vocabulary, rank] · up_rows [rank, features], scale folded in · ids [k], each once · rows [k, features]
template <class S = float> struct EmbeddingChange {
  Matrix<S> token_rows = {};
  Matrix<S> up_rows = {};
  std::vector<Token> ids = {};
  Matrix<S> rows = {};

  bool empty() const { return token_rows.rows() == 0 && ids.empty(); }

  /// Throws   ShapeError if it does not fit a table [vocabulary, features]
  void check(Index vocabulary, Index features) const {
    if (token_rows.rows() > 0) {
      check_shape("EmbeddingChange", "token_rows", token_rows, vocabulary, any_extent);
      check_shape("EmbeddingChange", "up_rows", up_rows, token_rows.cols(), features);
    }
    if (!ids.empty()) check_shape("EmbeddingChange", "rows", rows, static_cast<Index>(ids.size()), features);
    std::vector<bool> taken(ids.empty() ? 0 : static_cast<std::size_t>(vocabulary));
    for (const Token id : ids) {
      if (id < 0 || id >= vocabulary || taken[static_cast<std::size_t>(id)])
        raise<ShapeError>("pith::EmbeddingChange: token ", id, " twice, or outside the vocabulary of ", vocabulary);
      taken[static_cast<std::size_t>(id)] = true;
    }
  }

  /// The same for a table whose rows are multiplied by a number when they are looked up_rows.
  EmbeddingChange scaled(S scale) const {
    EmbeddingChange out = *this;
    out.up_rows *= scale;
    out.rows *= scale;
    return out;
  }

  /// Changes the rows that a table gave for these tokens, which were checked.
  ///
  /// Shapes   out [tokens, features]
  /// Cost     2·tokens·rank·features flops, and a look at each replaced id
  /// Heap     none
  void apply(std::span<const Token> tokens, MatrixRef<S> out) const {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      S* row = out.data() + static_cast<Index>(i) * out.outerStride();
      for (Index r = 0; r < token_rows.cols(); ++r) {
        const S weight = token_rows(tokens[i], r);
        const S* b = up_rows.data() + r * up_rows.cols();
        for (Index c = 0; c < up_rows.cols(); ++c) row[c] += weight * b[c];
      }
      if (const auto found = std::find(ids.begin(), ids.end(), tokens[i]); found != ids.end())
        std::copy_n(rows.data() + (found - ids.begin()) * rows.cols(), rows.cols(), row);
    }
  }

  std::size_t bytes() const {
    return static_cast<std::size_t>(token_rows.size() + up_rows.size() + rows.size()) * sizeof(S) + ids.size() * sizeof(Token);
  }
  void hash(detail::Fingerprint& f) const {
    detail::hash_numbers(f, token_rows);
    detail::hash_numbers(f, up_rows);
    for (const Token id : ids) f.number(id);
    detail::hash_numbers(f, rows);
  }
};

}}  // namespace pith::v0
