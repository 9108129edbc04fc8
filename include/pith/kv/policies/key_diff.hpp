#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <pith/kv/detail/channels.hpp>
#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// KeyDiff: keeps the keys least similar to the mean key.
///
///   score_r = -cos(k_r, mean_j k_j/‖k_j‖)
///
/// Keeps    the `keep` rows least similar to the others, and the newest row
/// Needs    keys
/// Cost     two sweeps of the keys when evicting, which happens every `rows_per_eviction` tokens
/// Paper    KeyDiff: arXiv:2504.15364
struct KeyDiff {
  Index keep = 1024;            ///< rows kept at most
  Index rows_per_eviction = 1;  ///< rows evicted at once; more: fewer sweeps
  Index budget() const { return keep; }
  void check(const AttentionShape&) const {
    check_count("KeyDiff", "keep", keep, 1);
    check_count("KeyDiff", "rows_per_eviction", rows_per_eviction, 1, keep);
  }
  Index retain() const { return keep + 1 - rows_per_eviction; }
  PolicyTraits traits() const { return {.reads_rows = true}; }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    const Index d = rows.shape.head_dim;
    for (Index r = 0; r < rows.size(); ++r) rows.scratch[r] = S(1) / (std::max)(rows.keys.row(r).norm(), (std::numeric_limits<S>::min)());
    out.setZero();
    S anchor_norm = 0;
    detail::for_channels(d, [&](Index first, Index count) {
      S anchor[detail::channels_together] = {};
      for (Index r = 0; r < rows.size(); ++r)
        for (Index i = 0; i < count; ++i) anchor[i] += rows.keys(r, first + i) * rows.scratch[r];
      for (Index i = 0; i < count; ++i) anchor_norm += anchor[i] * anchor[i];
      for (Index r = 0; r < rows.size(); ++r)
        for (Index i = 0; i < count; ++i) out[r] -= anchor[i] * rows.keys(r, first + i);
    });
    anchor_norm = (std::max)(std::sqrt(anchor_norm), (std::numeric_limits<S>::min)());
    for (Index r = 0; r < rows.size(); ++r) out[r] *= rows.scratch[r] / anchor_norm;
  }
};

}}  // namespace pith::v0
