#pragma once

#include <atomic>

#include <pith/core/types.hpp>

namespace pith { inline namespace v0 {

/// How much of a cache attend() read, added up over calls, tiles and kv heads. Several threads may add to it.
struct AttentionReads {
  Index rows = 0;    ///< rows that some query of a tile could see
  Index values = 0;  ///< rows of them whose values were read
  Index keys = 0;    ///< rows of them whose keys were read: all, if no scout codes exclude some
  Index needed = 0;  ///< rows of them that had to be read; the others may have been, where reading all in order is faster

  void add(const AttentionReads& more) {
    std::atomic_ref(rows).fetch_add(more.rows, std::memory_order_relaxed);
    std::atomic_ref(values).fetch_add(more.values, std::memory_order_relaxed);
    std::atomic_ref(keys).fetch_add(more.keys, std::memory_order_relaxed);
    std::atomic_ref(needed).fetch_add(more.needed, std::memory_order_relaxed);
  }
};

}}  // namespace pith::v0
