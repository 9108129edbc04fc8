#pragma once

#include <cmath>

#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>

// The kernel of rope: which features turn together, and how.
namespace pith { inline namespace v0 { namespace detail {

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

/// The pairs of a head that turn, with plain angles: no attention factor.
template <class S> struct RopePairs {
  const S* inv = nullptr;  ///< [width/2] radians per position
  Index width = 0;         ///< features that rotate, the first ones of the head
  bool interleaved = false;

  Index half() const { return width / 2; }
  /// The features of pair i.
  Index first(Index i) const { return interleaved ? 2 * i : i; }
  Index second(Index i) const { return interleaved ? 2 * i + 1 : i + half(); }

  /// Angles are computed in S, as in training.
  void angles(Position position, S* cosines, S* sines) const {
    for (Index i = 0; i < half(); ++i) {
      const S angle = static_cast<S>(position) * inv[i];
      cosines[i] = std::cos(angle);
      sines[i] = std::sin(angle);
    }
  }
  void turn(S* head, const S* cosines, const S* sines) const {
    if (!interleaved) return rope_turn(head, head + half(), half(), cosines, sines);
    for (Index i = 0; i < half(); ++i) {
      const S a = head[2 * i], b = head[2 * i + 1];
      head[2 * i] = a * cosines[i] - b * sines[i];
      head[2 * i + 1] = b * cosines[i] + a * sines[i];
    }
  }
};

}}}  // namespace pith::v0::detail
