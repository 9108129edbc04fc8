#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>

#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// CUR: keeps rows whose keys and values have high leverage within their block of `block` rows.
///
///   score_r = ‖k_r‖² / Σ_{block} ‖k‖² · ‖v_r‖² / Σ_{block} ‖v‖²
///
/// Keeps    `keep` rows by leverage, the first `sinks` among them, when a prompt ends
/// Needs    keys and values
/// Cost     one sweep of both, once
/// Paper    CurDKV: arXiv:2509.15038
struct Cur {
  Index keep = 1024;  ///< rows kept
  Index sinks = 4;    ///< initial tokens, always kept
  Index block = 16;   ///< rows compared with each other
  Index budget() const { return keep; }
  void check(const AttentionShape&) const {
    check_count("Cur", "keep", keep, 1);
    check_count("Cur", "sinks", sinks, 0, keep - 1, "the newest row is kept as well");
    check_count("Cur", "block", block, 1);
  }
  PolicyTraits traits() const { return {.prompt_only = true, .ordered = true, .reads_rows = true}; }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    const Index n = rows.size();
    for (Index first = 0; first < n; first += block) {
      const Index size = (std::min)(block, n - first);
      S keys = 0, values = 0;
      for (Index r = first; r < first + size; ++r) {
        keys += rows.keys.row(r).squaredNorm();
        values += rows.values.row(r).squaredNorm();
      }
      const S scale = S(1) / (std::max)(keys * values, (std::numeric_limits<S>::min)());
      for (Index r = first; r < first + size; ++r) out[r] = rows.keys.row(r).squaredNorm() * rows.values.row(r).squaredNorm() * scale;
    }
    for (Index r = 0; r < n; ++r)
      if (rows.positions[static_cast<std::size_t>(r)] - rows.first < sinks) out[r] = std::numeric_limits<S>::infinity();
  }
};

}}  // namespace pith::v0
