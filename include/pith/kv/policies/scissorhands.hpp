#pragma once

#include <algorithm>
#include <cstddef>

#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// Scissorhands: a query marks the rows it attends to above average; an eviction drops the half of the rows with the fewest marks.
///
///   score_r = #{q of the last `history` queries: softmax(q Kᵀ / √d)_r > 1/t_q}, t_q = rows that q can see
///
/// The history is counted in two halves, so it covers between half and all of the last `history` queries.
///
/// Keeps    half of `keep` by marks, the newest `recent` among them; then fills up again
/// Needs    attention weights
/// Cost     one compare and add per weight while watching; one eviction every keep/2 tokens
/// Paper    Scissorhands: arXiv:2305.17118
struct Scissorhands {
  Index keep = 1024;    ///< rows kept at most (B in the paper)
  Index history = 400;  ///< queries whose marks count (w)
  Index recent = 10;    ///< newest rows, always kept (r)
  Index budget() const { return keep; }
  void check(const AttentionShape&) const {
    check_count("Scissorhands", "keep", keep, 1);
    check_count("Scissorhands", "history", history, 2);
    check_count("Scissorhands", "recent", recent, 0, retain(), "half of keep is left after an eviction");
  }
  Index retain() const { return keep - keep / 2; }        // evicts m = B/2 at once
  Index stats(const AttentionShape&) const { return 3; }  // marks in this half of the history, in the previous half, index of this half
  template <class S> void observe(const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S> stats) const {
    const Index group = rows.shape.group(), half_history = (std::max)(Index(1), history / 2);
    for (Index q = 0; q < seen.weights.rows(); ++q) {
      const Position position = rows.positions[static_cast<std::size_t>(seen.first_row + q / group)];
      const S half = static_cast<S>(position / half_history);
      const auto sees = [&](Position p) { return p <= position; };
      const auto visible = std::count_if(rows.positions.begin(), rows.positions.end(), sees);
      for (Index r = 0; r < rows.size(); ++r) {
        if (const S passed = half - stats(2, r); passed > S(0)) {
          stats(1, r) = passed == S(1) ? stats(0, r) : S(0);
          stats(0, r) = S(0);
          stats(2, r) = half;
        }
        if (seen.weights(q, r) * static_cast<S>(visible) > S(1)) stats(0, r) += S(1);
      }
    }
  }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    out = rows.stats.row(0) + rows.stats.row(1);
    keep_newest(rows, recent, out);
  }
};

}}  // namespace pith::v0
