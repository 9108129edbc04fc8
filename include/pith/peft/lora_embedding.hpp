#pragma once

#include <cstddef>
#include <span>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/nn/embedding.hpp>
#include <pith/peft/lora.hpp>

namespace pith { inline namespace v0 {

/// LoRA on a table of embeddings: out = E[token] + scale · B A[:, token].
///
/// Shapes   table [vocabulary, features] · down A [rank, vocabulary] · up B [features, rank], as PEFT stores them
/// Cost     2·tokens·rank·features flops in addition to the base
/// Heap     none in gather()
/// Throws   ShapeError if the shapes disagree
/// Law      at scale 0, out has the bits of the table
/// Paper    LoRA: arXiv:2106.09685
template <class S = float> class LoraEmbedding {
 public:
  using Scalar = S;

  LoraEmbedding(Embedding<S> table, ConstMatrixRef<S> down, ConstMatrixRef<S> up, const LoraOptions& options = {})
      : table_(std::move(table)), scale_(static_cast<S>(lora_scale(options, down.rows()))) {
    check_shape("LoraEmbedding", "down", down, any_extent, table_.rows());
    check_shape("LoraEmbedding", "up", up, table_.cols(), down.rows());
    tokens_ = down.transpose();
    up_ = up.transpose();
  }

  /// out[i] = adapted row of tokens[i].
  ///
  /// Shapes   out [tokens, features]
  /// Throws   as Embedding::gather()
  void gather(std::span<const Token> tokens, MatrixRef<S> out) const {
    table_.gather(tokens, out);
    for (std::size_t i = 0; i < tokens.size(); ++i) add_to(tokens[i], out, static_cast<Index>(i));
  }

  /// A new table: E + scale (B A)ᵀ.
  Embedding<S> merged() const {
    Matrix<S> rows(table_.rows(), table_.cols());
    table_.copy_rows(0, rows);
    for (Index token = 0; token < rows.rows(); ++token) add_to(token, rows, token);
    return Embedding<S>(std::move(rows));
  }

  const Embedding<S>& table() const { return table_; }
  Index rank() const { return tokens_.cols(); }
  S scale() const { return scale_; }

 private:
  void add_to(Index token, MatrixRef<S> out, Index row) const {
    if (scale_ == S(0)) return;
    for (Index r = 0; r < rank(); ++r) out.row(row) += (scale_ * tokens_(token, r)) * up_.row(r);
  }

  Embedding<S> table_;
  Matrix<S> tokens_, up_;  // Aᵀ, with a row for each token; Bᵀ
  S scale_;
};

}}  // namespace pith::v0
