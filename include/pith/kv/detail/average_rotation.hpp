#pragma once

#include <algorithm>
#include <limits>

#include <pith/attention/rope.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// R̄, the mean of the rotations at the next `future` positions (not itself a rotation): cosines, sines [rotary_width()/2].
template <class S> void average_rotation(const Rope<S>& rope, Position next, Index future, S* cosines, S* sines) {
  const RopePairs<S> pairs = rope.pairs();
  const Index d = rope.options().head_dim, half = pairs.half();
  std::fill_n(cosines, half, S(0));
  std::fill_n(sines, half, S(0));
  S turned[Rope<S>::max_head_dim];
  for (Index t = 0; t < future; ++t) {
    std::fill_n(turned, d, S(0));
    for (Index i = 0; i < half; ++i) turned[pairs.first(i)] = S(1);
    const auto at = static_cast<Position>((std::min)(Index(next) + t, Index((std::numeric_limits<Position>::max)())));
    rope.rotate_by(MatrixRef<S>(turned, 1, d), {&at, 1});
    for (Index i = 0; i < half; ++i) {
      cosines[i] += turned[pairs.first(i)] / static_cast<S>(future);
      sines[i] += turned[pairs.second(i)] / static_cast<S>(future);
    }
  }
}

/// to = R̄ x.
template <class S> void rotate_on_average(const RopePairs<S>& pairs, Index d, const S* cosines, const S* sines, const S* x, S* to) {
  for (Index i = pairs.width; i < d; ++i) to[i] = x[i];
  for (Index i = 0; i < pairs.half(); ++i) {
    const S a = x[pairs.first(i)], b = x[pairs.second(i)];
    to[pairs.first(i)] = cosines[i] * a - sines[i] * b;
    to[pairs.second(i)] = sines[i] * a + cosines[i] * b;
  }
}

}}}  // namespace pith::v0::detail
