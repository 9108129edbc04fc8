#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>

#include <pith/attention/rope.hpp>
#include <pith/core/check.hpp>
#include <pith/kv/detail/slab.hpp>

// Reindexing: renumbers the rows of a head without gaps and rotates their keys to match.

namespace pith { inline namespace v0 { namespace detail {

/// By how much the angles of a head's rows must change to become first, first + 1, … in their present order; in the slab's scratch.
///
/// Cost     two reads of every row
template <class S>
std::span<const Position> angle_gaps(const KvSlab<S>& slab, Index head, Index rows, Position first, Position next_rope_position) {
  const Position* const angles = slab.angles(head);
  std::int32_t* const scratch = slab.victims();
  const std::span<Position> deltas(scratch + slab.most_rows(), static_cast<std::size_t>(rows));
  if (const Index span = next_rope_position - first; span <= slab.rows(head)) {  // few gaps: count the angles below each one
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
  return deltas;
}

/// Rotates the keys of a head by the changes of their angles.
///
/// Cost     a rotation of each key behind the first gap
template <class S> void turn_rows(KvSlab<S>& slab, Index head, std::span<const Position> deltas, const Rope<S>& rope) {
  rope.rotate_by(MatrixRef<S>(slab.keys(head), static_cast<Index>(deltas.size()), slab.shape().head_dim), deltas);
  for (std::size_t r = 0; r < deltas.size(); ++r) {
    if (deltas[r] == 0) continue;
    slab.angles(head)[r] += deltas[r];
    slab.scout(head, static_cast<Index>(r), 1);
  }
}

}}}  // namespace pith::v0::detail
