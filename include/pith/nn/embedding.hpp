#pragma once
// Token embeddings: a table with a row for each token.

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>

namespace pith { inline namespace v0 {

/// The types an embedding table may be stored in.
template <class T>
concept EmbeddingStorage = std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, bfloat16> || std::same_as<T, half>;

/// A table of token rows [vocabulary, features], stored in the type of its file; each row is widened to S when it is read.
///
/// It owns its rows, or maps another owner's rows and keeps that owner alive. It is immutable, and copies share the table.
template <class S = float> class Embedding {
 public:
  using Scalar = S;

  Embedding() = default;

  /// Owns the rows.
  template <EmbeddingStorage T> explicit Embedding(Matrix<T> rows) {
    auto owned = std::make_shared<const Matrix<T>>(std::move(rows));
    *this = Embedding(ConstMatrixRef<T>(*owned), owned);
  }
  /// Does not compile: column-major rows would be copied into another layout.
  template <detail::ColumnMajor M> explicit Embedding(const M&) { detail::bindable<S, M>(); }

  /// Maps rows that `keep_alive` owns; without `keep_alive` the rows must outlive the embedding and its copies.
  template <EmbeddingStorage T>
  explicit Embedding(ConstMatrixRef<T> rows, std::shared_ptr<const void> keep_alive = nullptr)
      : owner_(std::move(keep_alive)),
        data_(rows.data()),
        widen_(&widen<T>),
        rows_(rows.rows()),
        cols_(rows.cols()),
        row_bytes_(static_cast<std::size_t>(rows.outerStride()) * sizeof(T)),
        value_bytes_(sizeof(T)) {}

  Index rows() const { return rows_; }  ///< size of the vocabulary
  Index cols() const { return cols_; }  ///< features of each token
  std::size_t bytes() const { return static_cast<std::size_t>(rows_) * static_cast<std::size_t>(cols_) * value_bytes_; }

  /// The same table with every row multiplied by a number when a token is looked up, as some models do. copy_rows() stays as stored.
  Embedding scaled(S scale) const {
    Embedding copy = *this;
    copy.scale_ = scale;
    return copy;
  }
  S scale() const { return scale_; }

  /// out[i] = row of tokens[i], widened, times scale().
  ///
  /// Shapes   out [tokens, cols]
  /// Heap     none
  /// Throws   ShapeError for a token outside the vocabulary, or an out of another shape, before out is touched
  void gather(std::span<const Token> tokens, MatrixRef<S> out) const {
    check_shape("Embedding::gather", "out", out, static_cast<Index>(tokens.size()), cols_);
    for (std::size_t i = 0; i < tokens.size(); ++i)
      if (tokens[i] < 0 || tokens[i] >= rows_) [[unlikely]]
        raise<ShapeError>("pith::Embedding::gather: token ", tokens[i], " at index ", i, " is outside the vocabulary of ", rows_);
    for (std::size_t i = 0; i < tokens.size(); ++i) copy_row(tokens[i], &out.coeffRef(static_cast<Index>(i), 0));
    if (scale_ != S(1)) out *= scale_;
  }

  /// out[i] = row of first + i, widened, as stored.
  ///
  /// Shapes   out [any, cols]
  /// Heap     none
  /// Throws   ShapeError if the rows are not all in the table, or out has another width
  void copy_rows(Index first, MatrixRef<S> out) const {
    check_shape("Embedding::copy_rows", "out", out, any_extent, cols_);
    if (first < 0 || first > rows_ || out.rows() > rows_ - first) [[unlikely]]
      raise<ShapeError>("pith::Embedding::copy_rows: rows ", first, " to ", first, " + ", out.rows(), " of a table of ", rows_);
    for (Index i = 0; i < out.rows(); ++i) copy_row(first + i, &out.coeffRef(i, 0));
  }

 private:
  template <class T> static void widen(const void* from, Index n, S* to) {
    const T* row = static_cast<const T*>(from);
    if constexpr (std::same_as<T, bfloat16>) {
      for (Index i = 0; i < n; ++i) to[i] = static_cast<S>(detail::bits_as<float>(std::uint32_t(row[i].value) << 16));
    } else if constexpr (std::same_as<T, half>) {
      for (Index i = 0; i < n; ++i) to[i] = static_cast<S>(static_cast<float>(row[i]));
    } else {
      for (Index i = 0; i < n; ++i) to[i] = static_cast<S>(row[i]);
    }
  }
  void copy_row(Index row, S* to) const {
    if (cols_ > 0) widen_(static_cast<const std::byte*>(data_) + static_cast<std::size_t>(row) * row_bytes_, cols_, to);
  }

  std::shared_ptr<const void> owner_;
  const void* data_ = nullptr;
  void (*widen_)(const void*, Index, S*) = nullptr;
  Index rows_ = 0, cols_ = 0;
  std::size_t row_bytes_ = 0, value_bytes_ = 0;
  S scale_ = S(1);
};

template <EmbeddingStorage T> Embedding(Matrix<T>) -> Embedding<arithmetic_t<T>>;
template <EmbeddingStorage T> Embedding(ConstMatrixRef<T>) -> Embedding<arithmetic_t<T>>;
template <EmbeddingStorage T> Embedding(ConstMatrixRef<T>, std::shared_ptr<const void>) -> Embedding<arithmetic_t<T>>;

/// out = [soft prompt; E[tokens]]: the soft prompt's rows, then the rows of the tokens, as a decoder reads them under prompt tuning.
///
/// Shapes   soft_rows [soft, features] · out [soft + tokens, features]
/// Heap     none
/// Throws   ShapeError if shapes disagree or a token is outside the vocabulary, before out is touched
/// Paper    Prompt tuning: arXiv:2104.08691
template <class S>
void prepend(std::type_identity_t<ConstMatrixRef<S>> soft_rows, const Embedding<S>& table, std::span<const Token> tokens,
             std::type_identity_t<MatrixRef<S>> out) {
  check_shape("prepend", "soft_rows", soft_rows, any_extent, table.cols());
  check_shape("prepend", "out", out, soft_rows.rows() + static_cast<Index>(tokens.size()), table.cols());
  table.gather(tokens, out.bottomRows(static_cast<Index>(tokens.size())));
  out.topRows(soft_rows.rows()) = soft_rows;
}

/// out = [soft prompt; token rows], for tokens that are embedded already.
///
/// Shapes   soft_rows [soft, features] · token_rows [tokens, features] · out [soft + tokens, features]
/// Heap     none
/// Throws   ShapeError if shapes disagree, before out is touched
template <detail::EigenDense Soft, class S = typename detail::expression_t<Soft>::Scalar>
void prepend(const Soft& soft_rows, std::type_identity_t<ConstMatrixRef<S>> token_rows, std::type_identity_t<MatrixRef<S>> out) {
  const ConstMatrixRef<S> soft = soft_rows;
  check_shape("prepend", "token_rows", token_rows, any_extent, soft.cols());
  check_shape("prepend", "out", out, soft.rows() + token_rows.rows(), soft.cols());
  out.bottomRows(token_rows.rows()) = token_rows;
  out.topRows(soft.rows()) = soft;
}

}}  // namespace pith::v0
