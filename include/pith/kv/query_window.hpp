#pragma once

#include <algorithm>

#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// Tracks the last `window` queries of a prompt: a policy's sums of their weights are then exact for every cut of the prompt into pieces.
///
/// The last queries of a piece leave the window when another piece follows. So a policy keeps for each row its sums and one slot per query
/// of the window, and for each head memory_size numbers that record which queries the sums hold. Rows do not move before a prompt has
/// ended, so the row of a query's token determines its slot.
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

  Index slot(Index row) const { return row % window_; }  ///< slot of the query whose token is in this row
  /// Number of queries in the window: fewer than its length if the prompt has fewer. `memory`: KvRows::memory, in score() or combine().
  static Index held(const ConstVectorRef<S>& memory) { return whole(memory[0]); }

  /// Adds the queries of a block to the window. Calls rebuild(first, end) if the sums must be recomputed from the slots of these rows.
  template <class Rebuild> void slide(const AttentionBlock<S>& seen, const KvRows<S>& rows, Rebuild&& rebuild) {
    const Index first = seen.first_row, end = end_row(), held = (std::min)(whole(memory_[0]), first);
    // A gap before `first` means that the window has already passed the queries before it.
    const Index stays = first == end ? std::clamp(end - (rows.size() - window_), Index(0), held) : Index(0);
    if (stays < held) rebuild(end - stays, end);
    const Index next = first + seen.weights.rows() / rows.shape.group();
    memory_[0] = static_cast<S>(stays + next - first);
    memory_[1] = static_cast<S>(next / digit);
    memory_[2] = static_cast<S>(next % digit);
  }

 private:
  static constexpr Index digit = Index(1) << 15;  // a float is exact up to 2^24, row numbers exceed that
  Index end_row() const { return whole(memory_[1]) * digit + whole(memory_[2]); }
  /// A number of the memory; 0 for what slide() never writes, as a damaged file may hold.
  static Index whole(S number) { return number >= S(0) && number < static_cast<S>(digit * digit) ? static_cast<Index>(number) : Index(0); }

  Index window_;
  VectorRef<S> memory_;  ///< number of queries in the sums, and the row after the newest of them in two digits
};

}}  // namespace pith::v0
