#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <type_traits>
#include <vector>

#include <pith/attention/detail/rope_pairs.hpp>
#include <pith/attention/rope_options.hpp>
#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>

namespace pith { inline namespace v0 {

/// Rotary position embedding (rope): rotates queries and keys by their position. Of every head, the first D = rotary_width() features turn
/// in pairs, feature i with i + D/2 or, interleaved, 2i with 2i + 1; the others stay.
///
///   (a, b) ← A·(a cos φ - b sin φ, b cos φ + a sin φ), φ = position · theta^(-2i/D), scaled; A = attention_factor()
///
/// Angles are computed in S throughout, as in training. A Rope is immutable; layers and threads share it.
///
/// Cost     6 flops a pair; sines and cosines once per token for all its heads, from a table for the first table_positions positions
/// Heap     at construction only
/// Law      a token is rotated to the same bits alone or in a batch
/// Paper    arXiv:2104.09864; yarn: arXiv:2309.00071; longrope: arXiv:2402.13753
template <class S> class Rope {
 public:
  static constexpr Index max_head_dim = detail::max_rope_head_dim;
  static constexpr Index table_positions = 4096;

  /// Throws   ShapeError for widths that are odd, not positive or over max_head_dim, and for constants that give no finite frequencies
  explicit Rope(const RopeOptions& options);

  /// Rotates every head of x [tokens, heads*head_dim], in place, by its token's position.
  ///
  /// `length`: text length for dynamic scaling and longrope, at the end of the call in prefill, at the token in decoding; 0: the largest
  /// position + 1.
  ///
  /// Throws   ShapeError if x does not hold whole heads and one row per position, or a position is negative
  void rotate(std::type_identity_t<MatrixRef<S>> x, std::span<const Position> positions, Position length = 0) const;

  /// Rotates every head of x [tokens, heads*head_dim], in place, by a difference of positions, which may be negative. The attention factor
  /// was applied by rotate() and is not applied again.
  ///
  /// Law      rotate(p) then rotate_by(d) == rotate(p + d), up to rounding
  /// Throws   ShapeError as rotate(); UnsupportedError if angles depend on the length of the text (RopeOptions::by_length)
  void rotate_by(std::type_identity_t<MatrixRef<S>> x, std::span<const Position> deltas) const;

  /// [rotary_width()/2] radians per position, scaled; dynamic: for short texts; longrope: for texts of this length.
  ConstVectorRef<S> inv_freq(Position length = 0) const { return inv_of(beyond(length)); }
  S attention_factor() const { return factor_; }  ///< A, which multiplies the rotated features
  const RopeOptions& options() const { return options_; }
  /// The pairs that turn, for code that turns rows by itself; longrope: for short texts.
  detail::RopePairs<S> pairs() const { return pairs_of(inv_freq_); }

 private:
  struct Table {
    detail::RopePairs<S> pairs;
    const S* turns;  ///< [positions][cosines of half(), sines of half()]
    Index positions;
  };

  void check_call(const char* where, const MatrixRef<S>& x, std::size_t tokens) const;
  void fill(bool beyond, std::vector<S>& inv, std::vector<S>& table) const;
  void turn(const MatrixRef<S>& x, std::span<const Position> positions, const Table& table, S factor) const;

  bool beyond(Index length) const {
    return options_.by_length() && options_.scaling.type == RopeType::longrope &&
           length > options_.scaling.original_max_position_embeddings;
  }
  const std::vector<S>& inv_of(bool beyond) const { return beyond ? inv_beyond_ : inv_freq_; }
  detail::RopePairs<S> pairs_of(const std::vector<S>& inv) const { return {inv.data(), options_.rotary_width(), options_.interleaved}; }
  Table table_of(bool beyond) const {
    const std::vector<S>& table = beyond ? table_beyond_ : table_;
    return {pairs_of(inv_of(beyond)), table.data(), static_cast<Index>(table.size()) / options_.rotary_width()};
  }

  RopeOptions options_;
  S factor_ = S(1);
  std::vector<S> inv_freq_, inv_beyond_;  ///< beyond: longrope's long texts
  std::vector<S> table_, table_beyond_;   ///< [positions][cosines of half, sines of half]
};

template <class S> Rope<S>::Rope(const RopeOptions& options) : options_(options) {
  detail::check_rope("Rope", options_);
  if (options_.scaling.type == RopeType::identity) return;
  factor_ = static_cast<S>(detail::rope_attention_factor(options_));
  fill(false, inv_freq_, table_);
  if (options_.by_length() && options_.scaling.type == RopeType::longrope) fill(true, inv_beyond_, table_beyond_);
}

template <class S> void Rope<S>::fill(bool beyond, std::vector<S>& inv, std::vector<S>& table) const {
  const Index width = options_.rotary_width();
  inv.resize(static_cast<std::size_t>(width / 2));
  detail::rope_frequencies(options_, options_.theta, beyond, inv.data());
  for (const S one : inv)
    if (!std::isfinite(one))
      raise<ShapeError>("pith::Rope: theta ", options_.theta, " gives no finite frequencies for head_dim ", options_.head_dim);
  const Index positions = (std::min)(table_positions, options_.max_position_embeddings);
  table.resize(static_cast<std::size_t>(positions * width));
  for (Index p = 0; p < positions; ++p) {
    S* const cosines = table.data() + p * width;
    pairs_of(inv).angles(static_cast<Position>(p), cosines, cosines + width / 2);
  }
}

template <class S> void Rope<S>::check_call(const char* where, const MatrixRef<S>& x, std::size_t tokens) const {
  check_shape(where, "x", x, static_cast<Index>(tokens), any_extent);
  if (x.cols() % options_.head_dim != 0)
    raise<ShapeError>("pith::", where, ": x has ", x.cols(), " features, expected whole heads of ", options_.head_dim);
}

template <class S> void Rope<S>::rotate(std::type_identity_t<MatrixRef<S>> x, std::span<const Position> positions, Position length) const {
  check_call("Rope::rotate", x, positions.size());
  for (const Position p : positions)
    if (p < 0) raise<ShapeError>("pith::Rope::rotate: position ", p, ", expected 0 or more; differences go to rotate_by()");
  if (length < 0) raise<ShapeError>("pith::Rope::rotate: length ", length, ", expected 0 or more");
  if (positions.empty() || options_.scaling.type == RopeType::identity) return;
  if (!options_.by_length()) return turn(x, positions, table_of(false), factor_);
  const Index seen = length > 0 ? Index(length) : Index(*std::max_element(positions.begin(), positions.end())) + 1;
  if (options_.scaling.type == RopeType::dynamic && seen > options_.max_position_embeddings) {
    const double d = static_cast<double>(options_.rotary_width()), f = options_.scaling.factor;
    const double stretch = f * static_cast<double>(seen) / static_cast<double>(options_.max_position_embeddings) - (f - 1);
    S inv[max_head_dim / 2];
    detail::rope_frequencies(options_, options_.theta * std::pow(stretch, d / (d - 2)), false, inv);
    return turn(x, positions, {{inv, options_.rotary_width(), options_.interleaved}, nullptr, 0}, factor_);
  }
  turn(x, positions, table_of(beyond(seen)), factor_);
}

template <class S> void Rope<S>::rotate_by(std::type_identity_t<MatrixRef<S>> x, std::span<const Position> deltas) const {
  check_call("Rope::rotate_by", x, deltas.size());
  if (options_.by_length())
    raise<UnsupportedError>("pith::Rope::rotate_by: under ", options_.scaling.type == RopeType::dynamic ? "dynamic scaling" : "longrope",
                            " a key's angle depends on the length it was rotated at: rotate the plain key instead");
  if (options_.scaling.type != RopeType::identity) turn(x, deltas, table_of(false), S(1));
}

template <class S> void Rope<S>::turn(const MatrixRef<S>& x, std::span<const Position> positions, const Table& table, S factor) const {
  const Index d = options_.head_dim, width = table.pairs.width, half = width / 2;
  S computed[max_head_dim], scaled[max_head_dim];
  Position computed_at = 0, scaled_at = -1;
  for (Index t = 0; t < x.rows(); ++t) {
    const Position p = positions[static_cast<std::size_t>(t)];
    if (p == 0 && factor == S(1)) continue;
    const S* turns = computed;
    if (p >= 0 && p < table.positions) {
      turns = table.turns + p * width;
    } else if (p != computed_at || p == 0) {
      table.pairs.angles(p, computed, computed + half);
      computed_at = p;
    }
    if (factor != S(1)) {
      if (p != scaled_at)
        for (Index i = 0; i < width; ++i) scaled[i] = turns[i] * factor;
      scaled_at = p;
      turns = scaled;
    }
    S* const row = const_cast<S*>(x.data()) + t * x.outerStride();
    for (Index column = 0; column < x.cols(); column += d) table.pairs.turn(row + column, turns, turns + half);
  }
}

}}  // namespace pith::v0
