#pragma once

#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// StreamingLLM: the first tokens, on which attention parks what it does not need ("attention sinks"), and the newest.
///
/// Read at cache positions, as published, the sinks count as direct neighbours of the window, so no distance ever exceeds the cache and a
/// stream may run past the trained length. No stored key is rotated again for it: rotation sees only differences, the window's rows
/// have the right ones already, and the sinks are read by a second query (KvCache::gap()).
///
/// Keeps    the first `sinks` and the newest `window` tokens
/// Needs    nothing
/// Cost     one row moved per token, however many rows; at cache positions one more rotation of the query
/// Paper    StreamingLLM: arXiv:2309.17453
struct SinkWindow {
  Index sinks = 4;                                 ///< initial tokens, never evicted
  Index window = 1020;                             ///< newest rows kept besides
  RopePositions positions = RopePositions::cache;  ///< as published; stream: sinks stay as far away as they are in the text
  Index budget() const { return detail::sum_of_rows(sinks, window); }
  void check(const AttentionShape&) const {
    detail::check_count("SinkWindow", "window", window, 1);
    detail::check_count("SinkWindow", "sinks", sinks, 0, detail::most_rows - window);
  }
  Index initial() const { return sinks; }
  PolicyTraits traits() const { return {.positions = positions}; }
};

}}  // namespace pith::v0
