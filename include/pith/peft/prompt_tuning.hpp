#pragma once

#include <cmath>
#include <random>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/random.hpp>
#include <pith/core/view.hpp>
#include <pith/nn/embedding.hpp>
#include <pith/peft/lora_init.hpp>

namespace pith { inline namespace v0 {

/// Prompt tuning: a soft prompt P of learned rows before the embedded text, input = [P; E[tokens]].
///
/// The rows stand before any padding; the text begins at position size().
///
/// Shapes   rows [virtual tokens, features]
/// Paper    Prompt tuning: arXiv:2104.08691
template <class S = float> class PromptTuning {
 public:
  using Scalar = S;

  PromptTuning() = default;
  explicit PromptTuning(Matrix<S> rows) : rows_(std::move(rows)) {}
  /// Does not compile: column-major rows would be copied into another layout.
  template <detail::ColumnMajor M> explicit PromptTuning(const M&) { detail::bindable<S, M>(); }

  /// Rows drawn from N(0, 1).
  template <std::uniform_random_bit_generator Rng> static PromptTuning random(Index tokens, Index features, Rng& rng) {
    check_sizes(tokens, features);
    Matrix<S> rows(tokens, features);
    detail::fill_normal<S>(rows, 1, rng);
    return PromptTuning(std::move(rows));
  }
  /// The embeddings of tokens drawn uniformly from the vocabulary.
  template <std::uniform_random_bit_generator Rng> static PromptTuning sampled(Index tokens, const Embedding<S>& table, Rng& rng) {
    check_source(tokens, table.rows(), "vocabulary");
    std::vector<Token> ids;
    for (Index i = 0; i < tokens; ++i) ids.push_back(static_cast<Token>(canonical<double>(rng) * double(table.rows())));
    return of_tokens(ids, table);
  }
  /// The embeddings of a text, cut off at `tokens` or repeated to that length.
  static PromptTuning from_text(Index tokens, std::span<const Token> text, const Embedding<S>& table) {
    check_source(tokens, static_cast<Index>(text.size()), "text");
    std::vector<Token> ids;
    for (std::size_t i = 0; i < static_cast<std::size_t>(tokens); ++i) ids.push_back(text[i % text.size()]);
    return of_tokens(ids, table);
  }

  /// out = [P; E[tokens]], as a decoder's prefill() takes it.
  ///
  /// Shapes   out [rows() + tokens, features]
  /// Heap     none
  /// Throws   ShapeError if shapes disagree or a token is outside the vocabulary, before out is touched
  void prepend_to(std::span<const Token> tokens, const Embedding<S>& table, MatrixRef<S> out) const {
    prepend(ConstMatrixRef<S>(rows_), table, tokens, out);
  }

  const Matrix<S>& rows() const { return rows_; }
  Index size() const { return rows_.rows(); }
  MatrixRef<S> rows() { return rows_; }  ///< for training: its gradient is the gradient of the input's first rows
  template <class F> void each_parameter(ConstMatrixRef<S> gradient, F&& f) { f("prompt_embeddings", rows(), gradient); }
  Index parameters() const { return rows_.size(); }

 private:
  static void check_sizes(Index tokens, Index features) {
    if (tokens < 0 || features < 0) [[unlikely]]
      raise<ShapeError>("pith::PromptTuning: ", tokens, " rows of ", features, " features, expected 0 or more of each");
    detail::checked_product("PromptTuning", tokens, features);
  }
  static void check_source(Index rows, Index tokens, const char* source) {
    check_sizes(rows, 0);
    if (tokens < 1) [[unlikely]]
      raise<ShapeError>("pith::PromptTuning: a ", source, " of 0 tokens, expected 1 or more to take rows from");
  }
  static PromptTuning of_tokens(std::span<const Token> ids, const Embedding<S>& table) {
    Matrix<S> rows(static_cast<Index>(ids.size()), table.cols());
    table.gather(ids, rows);
    return PromptTuning(std::move(rows));
  }

  Matrix<S> rows_;
};

}}  // namespace pith::v0
