#pragma once

#include <algorithm>

#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// The last `window` queries of a prompt, for a policy that sums what they looked at: exact however the prompt is cut into pieces.
///
/// Queries that were the last when a piece ended leave the window when another piece follows. So the policy keeps, beside each row, its
/// sums and one slot a query of the window; of the head as a whole, memory_size numbers that say which queries the sums hold. Rows do not
/// move before a prompt has ended, so the row of a query's token names its slot.
///
///   QueryWindow<S> last(window, memory);
///   last.slide(seen, rows, [&](Index first, Index end) { … sums = the slots of rows first .. end - 1, in this order … });
///   … each query: write its slot, then add it to the sums …
///
/// Law      the sums have the same bits for every cut
/// Cost     nothing for a prompt in one piece; window adds a row where a piece is shorter than the window
template <class S> class QueryWindow {
 public:
  static constexpr Index memory_size = 3;

  QueryWindow(Index window, VectorRef<S> memory) : window_(window), memory_(memory) {}

  Index slot(Index row) const { return row % window_; }  ///< of the query whose token stands in this row

  /// Takes the queries of a block into the window. Calls rebuild(first, end) if the sums have to be made anew from the slots of these rows.
  template <class Rebuild> void slide(const AttentionBlock<S>& seen, const KvRows<S>& rows, Rebuild&& rebuild) {
    const Index first = seen.first_row, end = end_row(), held = static_cast<Index>(memory_[0]);
    // Queries that were not shown have left the window already, and all before them.
    const Index stays = first == end ? std::clamp(end - (rows.size() - window_), Index(0), held) : Index(0);
    if (stays < held) rebuild(end - stays, end);
    const Index next = first + seen.weights.rows() / rows.shape.group();
    memory_[0] = static_cast<S>(stays + next - first);
    memory_[1] = static_cast<S>(next / digit);
    memory_[2] = static_cast<S>(next % digit);
  }

 private:
  static constexpr Index digit = Index(1) << 15;  // a float is exact up to 2^24, rows go further
  Index end_row() const { return static_cast<Index>(memory_[1]) * digit + static_cast<Index>(memory_[2]); }

  Index window_;
  VectorRef<S> memory_;  ///< how many queries the sums hold, and the row behind the newest of them in two digits
};

}}  // namespace pith::v0
