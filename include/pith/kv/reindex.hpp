#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>

#include <pith/attention/rope.hpp>
#include <pith/core/check.hpp>
#include <pith/kv/storage.hpp>

namespace pith::inline v0::detail {

/// Gives the rows of a head the angles first, first + 1, … in the order they have, and turns each key by what its angle moved.
///
/// Cost     two looks at every row; a turn of each key behind the first gap
template <class S> void close_angles(KvSlab<S>& slab, Index head, Index rows, Position first, Position next_angle, const Rope<S>& rope) {
  Position* const angles = slab.angles(head);
  std::int32_t* const scratch = slab.victims();
  const std::span<Position> deltas(scratch + slab.most_rows(), static_cast<std::size_t>(rows));
  if (const Index span = next_angle - first; span <= slab.rows(head)) {  // few gaps: count the angles that are there below each
    std::fill_n(scratch, span, 0);
    for (Index r = 0; r < rows; ++r) scratch[angles[r] - first] = 1;
    std::int32_t below = first;
    for (Index a = 0; a < span; ++a) below += std::exchange(scratch[a], below);
    for (std::size_t r = 0; r < deltas.size(); ++r) deltas[r] = scratch[angles[r] - first] - angles[r];
  } else {
    std::copy_n(angles, rows, scratch);
    std::sort(scratch, scratch + rows);
    for (std::size_t r = 0; r < deltas.size(); ++r)
      deltas[r] = first + static_cast<Position>(std::lower_bound(scratch, scratch + rows, angles[r]) - scratch) - angles[r];
  }
  rope.rotate_by(MatrixRef<S>(slab.keys(head), rows, slab.shape().head_dim), deltas);
  for (std::size_t r = 0; r < deltas.size(); ++r) angles[r] += deltas[r];
}

}  // namespace pith::inline v0::detail
