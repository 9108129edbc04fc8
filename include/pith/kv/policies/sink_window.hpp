#pragma once

#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// StreamingLLM: keeps the newest tokens and the first ones, which absorb attention that no other token claims ("attention sinks").
///
///   kept = [0, sinks) ∪ [n - window, n); at cache positions a query at p reads the sinks as if at p - gap, gap = n - sinks - window
///
/// n is the number of tokens so far. At cache positions, as published, the sinks are direct neighbours of the window, so no distance
/// exceeds the cache and a stream may run past the trained length. No stored key is rotated again: rope depends on differences only, those
/// within the window are right already, and a second query reads the sinks (KvCache::gap()).
///
/// Keeps    the first `sinks` and the newest `window` tokens
/// Needs    nothing
/// Cost     one row moved per token, for any number of rows; at cache positions one more rotation of the query
/// Paper    StreamingLLM: arXiv:2309.17453
struct SinkWindow {
  Index sinks = 4;                                 ///< initial tokens, never evicted
  Index window = 1020;                             ///< newest rows kept besides
  RopePositions positions = RopePositions::cache;  ///< cache: as published; text: sinks keep their distance in the text
  Index budget() const { return sum_of_rows(sinks, window); }
  void check(const AttentionShape&) const {
    check_count("SinkWindow", "window", window, 1);
    check_count("SinkWindow", "sinks", sinks, 0, max_head_rows - window);
  }
  Index initial() const { return sinks; }
  PolicyTraits traits() const { return {.positions = positions}; }
};

}}  // namespace pith::v0
