#pragma once
// TokenMap: which tokens became which rows; merges and unmerges any rows of these tokens.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/merge/mass_weighted.hpp>
#include <pith/merge/merge_rows.hpp>
#include <pith/merge/merge_rule.hpp>

namespace pith { inline namespace v0 {

/// The order of the rows after a merge.
enum class RowOrder {
  spatial,   ///< the order of the tokens that stay
  published  ///< the order of the method's published code
};

/// The number of tokens that each row stands for, before and after a merge.
template <class S> struct TokenMasses {
  ConstVectorRef<S> before = {};  ///< [tokens]; empty: 1 each
  VectorRef<S> after = {};        ///< [rows]; leave empty if not needed
};

/// Maps each token to the row it becomes part of. A merging method fills it; merge() then applies it to any rows of these tokens.
///
/// A method calls start(), then merge_into() or drop() for every token that does not stay, and ends with place(). A token that stays keeps
/// its own row, and the tokens merged into it become part of that row.
///
/// Heap     at construction only
template <class S> class TokenMap {
 public:
  /// Throws   CapacityError if max_tokens is negative or does not fit 32 bits
  explicit TokenMap(Index max_tokens) {
    if (max_tokens < 0 || max_tokens > (std::numeric_limits<std::int32_t>::max)())
      raise<CapacityError>("pith::TokenMap: room for ", max_tokens, " tokens, expected 0 .. 2147483647");
    const auto room = static_cast<std::size_t>(max_tokens);
    target_.resize(room);
    row_of_.resize(room);
    leaves_to_.resize(room);
    token_of_.resize(room);
    cosine_.resize(room);
  }

  Index max_tokens() const { return static_cast<Index>(target_.size()); }
  Index tokens() const { return tokens_; }        ///< number of tokens before the merge
  Index rows() const { return rows_; }            ///< number of rows after it
  Index merged() const { return merged_; }        ///< number of tokens merged into another token's row
  std::span<const std::int32_t> row_of() const {  ///< [tokens] the row that each token became part of; -1: dropped
    return {row_of_.data(), static_cast<std::size_t>(tokens_)};
  }
  std::span<const std::int32_t> token_of() const {  ///< [rows] the token that stayed in each row
    return {token_of_.data(), static_cast<std::size_t>(rows_)};
  }
  std::span<const std::int32_t> leaves_to() const {  ///< [tokens] the row that a token was merged into; -1: it stayed or was dropped
    return {leaves_to_.data(), static_cast<std::size_t>(tokens_)};
  }
  ConstVectorRef<S> cosine() const { return {cosine_.data(), tokens_}; }  ///< [tokens] of each merged token with the token it joined

  /// Computes the rows after the merge: for each token that stayed, its row x and the rows merged into it, mixed by the rule.
  ///
  /// Shapes   x [tokens, features] · out [rows, features], which overlaps nothing
  /// Heap     none, given ws of workspace_bytes(tokens)
  /// Throws   ShapeError if shapes disagree or a mass is not above 0, CapacityError if ws is too small
  /// Law      the row of a token that no other token joined keeps its bits; tokens that join are added in ascending order
  template <MergeRule<S> Rule>
  void merge(ConstMatrixRef<S> x, MatrixRef<S> out, const Rule& rule, Workspace& ws, TokenMasses<S> mass = {}) const {
    check_shape("TokenMap::merge", "x", x, tokens_, any_extent);
    check_shape("TokenMap::merge", "out", out, rows_, x.cols());
    check_masses(mass);
    const Workspace::Scope scope(ws);
    const bool needed = mass.before.size() > 0 && mass.after.size() == 0;  // weights by mass also need the mass of the kept row
    VectorRef<S> after = needed ? ws.vector<S>(rows_) : mass.after;
    for (Index r = 0; r < rows_; ++r) {
      const Index token = token_of_[static_cast<std::size_t>(r)];
      out.row(r) = x.row(token);
      if (after.size() > 0) after[r] = mass.before.size() > 0 ? mass.before[token] : S(1);
    }
    merge_rows<S>({{}, out, after}, {{}, x, mass.before}, {leaves_to(), cosine()}, rule, ws);
  }

  /// The same with memory of its own: the rows after the merge. Where all masses are 1, MassWeighted is the mean.
  ///
  /// Heap     the rows and a workspace
  template <MergeRule<S> Rule = MassWeighted> Matrix<S> merged(ConstMatrixRef<S> x, const Rule& rule = {}) const {
    Matrix<S> out(rows_, x.cols());
    Workspace ws(workspace_bytes(tokens_));
    merge(x, out, rule, ws);
    return out;
  }

  /// Gives each token a row again: a copy of the row it became part of, or zeros if it was dropped.
  ///
  /// Shapes   merged [rows, features] · out [tokens, features], which overlaps nothing
  /// Heap     none
  /// Throws   ShapeError if shapes disagree
  void unmerge(ConstMatrixRef<S> merged, MatrixRef<S> out) const {
    check_shape("TokenMap::unmerge", "merged", merged, rows_, any_extent);
    check_shape("TokenMap::unmerge", "out", out, tokens_, merged.cols());
    for (Index t = 0; t < tokens_; ++t) {
      if (const Index r = row_of_[static_cast<std::size_t>(t)]; r >= 0)
        out.row(t) = merged.row(r);
      else
        out.row(t).setZero();
    }
  }

  /// Follows tokens through successive merges: each entry, a row before this merge or -1, becomes the row after it.
  ///
  /// Throws   ShapeError if an entry is out of range, before anything changes
  void follow(std::span<std::int32_t> where) const {
    for (const std::int32_t r : where)
      if (r < -1 || r >= tokens_) raise<ShapeError>("pith::TokenMap::follow: row ", r, ", expected -1 .. ", tokens_ - 1);
    for (std::int32_t& r : where)
      if (r >= 0) r = row_of_[static_cast<std::size_t>(r)];
  }

  /// Bytes of workspace that merge() needs at most.
  static std::size_t workspace_bytes(Index tokens) { return Workspace::bytes_for<S>(tokens) + merge_workspace_bytes<S>(tokens, tokens); }

  /// Begins a merge of `tokens` tokens; at first each of them stays in a row of its own.
  ///
  /// Throws   CapacityError if there is no room for them
  void start(Index tokens) {
    if (tokens < 0 || tokens > max_tokens())
      raise<CapacityError>("pith::TokenMap: ", tokens, " tokens, but there is room for ", max_tokens(), ": construct it with as many");
    tokens_ = tokens;
    for (Index t = 0; t < tokens; ++t) target_[static_cast<std::size_t>(t)] = static_cast<std::int32_t>(t);
    std::fill_n(cosine_.begin(), tokens, S(0));
    place();
  }
  /// Merges a token into one that stays.
  ///
  /// Throws   ShapeError if there are no such tokens
  void merge_into(Index token, Index stays, S cosine) {
    check_token(token);
    check_token(stays);
    target_[static_cast<std::size_t>(token)] = static_cast<std::int32_t>(stays);
    cosine_[static_cast<std::size_t>(token)] = cosine;
  }
  /// Drops a token: it becomes part of no row.
  ///
  /// Throws   ShapeError if there is no such token
  void drop(Index token) {
    check_token(token);
    target_[static_cast<std::size_t>(token)] = -1;
  }
  /// Throws   ShapeError if there is no such token
  bool stays(Index token) const {
    check_token(token);
    return is_target(token);
  }

  /// Ends the merge, with the rows in the order of the tokens that stay.
  ///
  /// Throws   StateError if a token was merged into one that does not stay
  void place() {
    check_targets();
    rows_ = 0;
    for (Index t = 0; t < tokens_; ++t)
      if (is_target(t)) token_of_[static_cast<std::size_t>(rows_++)] = static_cast<std::int32_t>(t);
    number_rows();
  }
  /// Ends the merge, with the rows in a given order: `order` lists each token that stays exactly once.
  ///
  /// Throws   StateError as above, ShapeError if the order lists another token or one twice
  void place(std::span<const std::int32_t> order) {
    check_targets();
    Index staying = 0;
    for (Index t = 0; t < tokens_; ++t) staying += is_target(t);
    const auto refuse = [&](const auto&... what) {
      place();
      raise<ShapeError>("pith::TokenMap::place: ", what..., ", expected each of the ", staying, " tokens that stay once");
    };
    if (static_cast<Index>(order.size()) != staying) refuse("an order of ", order.size(), " tokens");
    std::fill_n(row_of_.begin(), tokens_, -1);
    for (const std::int32_t t : order) {
      if (t < 0 || t >= tokens_ || !is_target(t) || row_of_[static_cast<std::size_t>(t)] != -1) refuse("token ", t, " in the order");
      row_of_[static_cast<std::size_t>(t)] = 0;
    }
    std::copy(order.begin(), order.end(), token_of_.begin());
    rows_ = staying;
    number_rows();
  }

 private:
  bool is_target(Index token) const { return target_[static_cast<std::size_t>(token)] == token; }
  void check_token(Index token) const {
    if (token < 0 || token >= tokens_) raise<ShapeError>("pith::TokenMap: token ", token, ", expected 0 .. ", tokens_ - 1);
  }
  void check_targets() const {
    for (Index t = 0; t < tokens_; ++t) {
      const std::int32_t to = target_[static_cast<std::size_t>(t)];
      if (to >= 0 && !is_target(to))
        raise<StateError>("pith::TokenMap::place: token ", t, " is merged into ", to, ", which does not stay itself");
    }
  }
  void check_masses(const TokenMasses<S>& mass) const {
    const auto check = [](const char* what, Index found, Index expected) {
      if (found != 0 && found != expected)
        raise<ShapeError>("pith::TokenMap::merge: ", found, " masses ", what, ", expected ", expected, " or none");
    };
    check("before", mass.before.size(), tokens_);
    check("after", mass.after.size(), rows_);
    if (!(mass.before.array() > S(0)).all())
      raise<ShapeError>("pith::TokenMap::merge: a mass is not above 0: a row stands for one token or more");
  }
  void number_rows() {
    for (Index r = 0; r < rows_; ++r)
      row_of_[static_cast<std::size_t>(token_of_[static_cast<std::size_t>(r)])] = static_cast<std::int32_t>(r);
    merged_ = 0;
    for (std::size_t t = 0; t < static_cast<std::size_t>(tokens_); ++t) {
      const std::int32_t to = target_[t];
      leaves_to_[t] = -1;
      if (to < 0) row_of_[t] = -1;
      if (to < 0 || is_target(static_cast<Index>(t))) continue;
      leaves_to_[t] = row_of_[t] = row_of_[static_cast<std::size_t>(to)];
      ++merged_;
    }
  }

  Index tokens_ = 0, rows_ = 0, merged_ = 0;
  std::vector<std::int32_t> target_, row_of_, leaves_to_, token_of_;
  std::vector<S> cosine_;
};

}}  // namespace pith::v0
