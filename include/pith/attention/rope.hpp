#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>
#include <span>
#include <type_traits>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>

namespace pith { inline namespace v0 {

// Rotary position embedding (rope): rotates queries and keys by their position.

/// How a model scales its frequencies for texts beyond its trained length.
enum class RopeType {
  none,
  linear,   ///< all frequencies divided by the factor
  dynamic,  ///< NTK: a larger theta once the length exceeds max_position_embeddings
  llama3,   ///< frequencies of long wavelengths divided by the factor, short ones kept, a blend between
};

/// Members are named as in rope_scaling of config.json; each type reads its own.
struct RopeScaling {
  RopeType type = RopeType::none;
  double factor = 1;                           ///< linear, dynamic, llama3
  double low_freq_factor = 1;                  ///< llama3
  double high_freq_factor = 4;                 ///< llama3
  Index original_max_position_embeddings = 0;  ///< llama3: the length before scaling
};

struct RopeOptions {
  Index head_dim = 0;  ///< even
  double theta = 10000;
  RopeScaling scaling = {};
  Index max_position_embeddings = 2048;  ///< dynamic: longest text without scaling
};

/// Rotary position embedding: rotates feature i of every head together with feature i + head_dim/2 (the pairing of Hugging Face files).
///
///   (a, b) ← (a cos φ - b sin φ, b cos φ + a sin φ), φ = position · theta^(-2i/head_dim)
///
/// Angles are computed in S throughout, as in training. A Rope is immutable; all layers and threads share it.
///
/// Cost     6 flops a pair; sines and cosines once per token for all its heads, from a table for the first table_positions positions
/// Heap     at construction only
/// Law      a token is rotated to the same bits alone or in a batch
/// Paper    arXiv:2104.09864
template <class S> class Rope {
 public:
  static constexpr Index max_head_dim = 1024;
  static constexpr Index table_positions = 4096;

  /// Throws   ShapeError for a head_dim that is odd, not positive or over max_head_dim, and for constants that give no finite frequencies
  explicit Rope(const RopeOptions& options);

  /// Rotates every head of x [tokens, heads*head_dim], in place, by its token's position.
  ///
  /// `length`: text length for dynamic scaling, at the end of the call in prefill, at the token in decoding; 0: the largest position + 1.
  ///
  /// Throws   ShapeError if x does not hold whole heads and one row per position, or a position is negative
  void rotate(std::type_identity_t<MatrixRef<S>> x, std::span<const Position> positions, Position length = 0) const;

  /// Rotates every head of x [tokens, heads*head_dim], in place, by a difference of positions, which may be negative.
  ///
  /// Law      rotate(p) then rotate_by(d) == rotate(p + d), up to rounding
  /// Throws   ShapeError as rotate(); UnsupportedError under dynamic scaling, where equal differences have different angles
  void rotate_by(std::type_identity_t<MatrixRef<S>> x, std::span<const Position> deltas) const;

  ConstVectorRef<S> inv_freq() const { return inv_freq_; }  ///< [head_dim/2] radians per position, scaled; dynamic: for short texts
  const RopeOptions& options() const { return options_; }

 private:
  void check_options() const;
  void check_call(const char* where, const MatrixRef<S>& x, std::size_t tokens) const;
  void frequencies(double theta, S* inv) const;
  void turn(const MatrixRef<S>& x, std::span<const Position> positions, const S* inv, bool tabled) const;

  Index half() const { return options_.head_dim / 2; }

  RopeOptions options_;
  std::vector<S> inv_freq_;
  std::vector<S> table_;  ///< [positions][cosines of half(), sines of half()]
};

namespace detail {

template <class S> void rope_angles(Position position, const S* inv, Index half, S* cosines, S* sines) {
  for (Index i = 0; i < half; ++i) {
    const S angle = static_cast<S>(position) * inv[i];
    cosines[i] = std::cos(angle);
    sines[i] = std::sin(angle);
  }
}

/// (a, b) = (a cos - b sin, b cos + a sin)
template <class S> void rope_turn(S* a, S* b, Index half, const S* cosines, const S* sines) {
  using V = Simd<S>;
  const auto pair = [](auto x, auto y, auto c, auto s, auto& to_x, auto& to_y) {
    to_x = V::madd(x, c, V::sub(V::zero(), V::mul(y, s)));
    to_y = V::madd(y, c, V::mul(x, s));
  };
  typename V::Packet x, y;
  Index i = 0;
  for (; i + V::width <= half; i += V::width) {
    pair(V::load(a + i), V::load(b + i), V::load(cosines + i), V::load(sines + i), x, y);
    V::store(a + i, x);
    V::store(b + i, y);
  }
  if (const Index n = half - i; n > 0) {
    const auto part = [n](const S* p) { return V::load_part(p, n, S(0)); };
    pair(part(a + i), part(b + i), part(cosines + i), part(sines + i), x, y);
    V::store_part(a + i, n, x);
    V::store_part(b + i, n, y);
  }
}

}  // namespace detail

template <class S> Rope<S>::Rope(const RopeOptions& options) : options_(options) {
  check_options();
  inv_freq_.resize(static_cast<std::size_t>(half()));
  frequencies(options_.theta, inv_freq_.data());
  for (const S inv : inv_freq_)
    if (!std::isfinite(inv))
      raise<ShapeError>("pith::Rope: theta ", options_.theta, " gives no finite frequencies for head_dim ", options_.head_dim);
  const Index positions = (std::min)(table_positions, options_.max_position_embeddings);
  table_.resize(static_cast<std::size_t>(positions * options_.head_dim));
  for (Index p = 0; p < positions; ++p) {
    S* const cosines = table_.data() + p * options_.head_dim;
    detail::rope_angles(static_cast<Position>(p), inv_freq_.data(), half(), cosines, cosines + half());
  }
}

template <class S> void Rope<S>::check_options() const {
  const auto refuse = [](const std::string& what) { raise<ShapeError>("pith::Rope: " + what); };
  const auto positive = [](double x) { return std::isfinite(x) && x > 0; };
  const RopeScaling& s = options_.scaling;
  const Index d = options_.head_dim;
  using detail::text;
  if (d < 2 || d % 2 != 0 || d > max_head_dim)
    refuse(text("head_dim is ", d, ", expected an even number from 2 to ", max_head_dim, ": feature i turns with i + head_dim/2"));
  if (!positive(options_.theta)) refuse(text("theta is ", options_.theta, ", expected a finite number > 0"));
  if (options_.max_position_embeddings < 1)
    refuse(text("max_position_embeddings is ", options_.max_position_embeddings, ", expected at least 1"));
  if (s.type == RopeType::none) return;
  if (!positive(s.factor)) refuse(text("the scaling factor is ", s.factor, ", expected a finite number > 0"));
  if (s.type == RopeType::dynamic) {
    if (d == 2) refuse("dynamic scaling raises to head_dim/(head_dim - 2) and needs a head_dim of 4 or more");
    if (s.factor < 1) refuse(text("the factor of dynamic scaling is ", s.factor, ", expected at least 1"));
  }
  if (s.type != RopeType::llama3) return;
  if (!positive(s.low_freq_factor) || !positive(s.high_freq_factor) || s.low_freq_factor >= s.high_freq_factor)
    refuse(text("llama3 scaling has low_freq_factor ", s.low_freq_factor, " and high_freq_factor ", s.high_freq_factor,
                ", expected 0 < low < high"));
  if (s.original_max_position_embeddings < 1)
    refuse(text("llama3 scaling has original_max_position_embeddings ", s.original_max_position_embeddings,
                ", expected the length before stretching; it stands inside rope_scaling"));
}

template <class S> void Rope<S>::frequencies(double theta, S* inv) const {
  const RopeScaling& s = options_.scaling;
  const S factor = static_cast<S>(s.factor);
  for (Index i = 0; i < half(); ++i) {
    const S exponent = static_cast<S>(2 * i) / static_cast<S>(options_.head_dim);
    inv[i] = S(1) / std::pow(static_cast<S>(theta), exponent);
    if (s.type == RopeType::linear) inv[i] /= factor;
    if (s.type != RopeType::llama3) continue;
    const S wavelength = S(2 * std::numbers::pi) / inv[i], length = static_cast<S>(s.original_max_position_embeddings);
    const S low = static_cast<S>(s.low_freq_factor), high = static_cast<S>(s.high_freq_factor);
    if (wavelength < length / high) continue;
    const S kept = wavelength > length / low ? S(0) : (length / wavelength - low) / (high - low);
    inv[i] = (S(1) - kept) * inv[i] / factor + kept * inv[i];
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
  if (positions.empty()) return;
  if (options_.scaling.type == RopeType::dynamic) {
    const Index seen = length > 0 ? Index(length) : Index(*std::max_element(positions.begin(), positions.end())) + 1;
    if (seen > options_.max_position_embeddings) {
      const double d = static_cast<double>(options_.head_dim), f = options_.scaling.factor;
      const double stretch = f * static_cast<double>(seen) / static_cast<double>(options_.max_position_embeddings) - (f - 1);
      S inv[max_head_dim / 2];
      frequencies(options_.theta * std::pow(stretch, d / (d - 2)), inv);
      return turn(x, positions, inv, false);
    }
  }
  turn(x, positions, inv_freq_.data(), true);
}

template <class S> void Rope<S>::rotate_by(std::type_identity_t<MatrixRef<S>> x, std::span<const Position> deltas) const {
  check_call("Rope::rotate_by", x, deltas.size());
  if (options_.scaling.type == RopeType::dynamic)
    raise<UnsupportedError>(
        "pith::Rope::rotate_by: under dynamic scaling a key's angle depends on the length it was rotated at: rotate the plain key instead");
  turn(x, deltas, inv_freq_.data(), true);
}

template <class S> void Rope<S>::turn(const MatrixRef<S>& x, std::span<const Position> positions, const S* inv, bool tabled) const {
  const Index d = options_.head_dim, in_table = tabled ? static_cast<Index>(table_.size()) / d : 0;
  S computed[max_head_dim];
  Position computed_at = 0;
  for (Index t = 0; t < x.rows(); ++t) {
    const Position p = positions[static_cast<std::size_t>(t)];
    if (p == 0) continue;
    const S* cosines = computed;
    if (p > 0 && p < in_table) {
      cosines = table_.data() + p * d;
    } else if (p != computed_at) {
      detail::rope_angles(p, inv, half(), computed, computed + half());
      computed_at = p;
    }
    S* const row = const_cast<S*>(x.data()) + t * x.outerStride();
    for (Index column = 0; column < x.cols(); column += d)
      detail::rope_turn(row + column, row + column + half(), half(), cosines, cosines + half());
  }
}

}}  // namespace pith::v0
