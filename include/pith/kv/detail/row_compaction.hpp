#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>

#include <pith/kv/detail/journal.hpp>
#include <pith/kv/detail/select.hpp>
#include <pith/kv/detail/slab.hpp>
#include <pith/kv/policy.hpp>

// Compaction: removes evicted rows from a head's storage.

namespace pith { inline namespace v0 { namespace detail {

/// Overrides the policy's scores by the cache's rules: keeps the newest token, drops rows that a sliding-window model cannot see any more.
template <class S> void overrule(const KvRows<S>& rows, bool keeps_newest, Index window, VectorRef<S> score) {
  constexpr S inf = std::numeric_limits<S>::infinity();
  const Index n = rows.size();
  const auto position = [&](Index i) { return Index(rows.positions[static_cast<std::size_t>(i)]); };
  if (window > 0)
    for (Index i = 0; i < n; ++i)
      if (rows.next - position(i) >= window) score[i] = -inf;
  if (!keeps_newest) return;
  for (Index i = n - 1; i >= 0; --i)  // appended last: found at once
    if (position(i) == rows.next - 1) {
      score[i] = inf;
      return;
    }
}

/// Removes the victims of one head from its storage: survivors end up in front, without holes.
///
/// While a journal records, or if victims are to be merged, they are swapped behind the survivors, where crop() or the merge finds them;
/// otherwise survivors are copied over them.
template <KvStorage T> struct RowCompaction {
  KvSlab<T>& home;
  KvJournal<T>& journal;
  Index head;
  bool merges = false;  ///< victims are to be merged

  /// `slab`: the slab with the rows, home or the prompt buffer. `evicted`: number of rows to evict; `victims`: which, unless the policy is
  /// by age. `initial`: rows in front that policies by age never evict. `more`: the eviction makes room for further tokens.
  void close(HeadState& state, KvSlab<T>& slab, const PolicyFacts& facts, std::span<const std::int32_t> victims, Index initial,
             Index evicted, bool more) {
    const bool by_age = facts.eviction == Eviction::by_age;
    if (&slab == &home) {
      close_in_place(state, facts, victims, initial, evicted, more);
    } else if (merges) {
      HeadState straight = state;
      straight.cursor = initial;  // rows land in order of age
      RowCompaction<T>{slab, journal, head, true}.close_in_place(straight, facts, victims, initial, evicted, true);
    } else {
      by_age ? bring_home_by_age(slab, state.size, evicted, initial) : bring_home(slab, state.size, victims);
    }
  }

  /// Puts the victims behind `survivors` rows in order of age.
  void sort_victims(Index survivors, Index n) {
    RankedRow<typename KvSlab<T>::S>* const candidates = home.candidates();
    for (Index row = survivors; row < n; ++row)
      candidates[row - survivors] = {0, home.positions(head)[row], static_cast<std::int32_t>(row)};
    std::sort(candidates, candidates + (n - survivors));
    for (Index row = survivors; row < n; ++row) {
      Index from = candidates[row - survivors].row;
      while (from < row) from = candidates[from - survivors].row;  // follows rows that were swapped before
      if (from != row) replace(row, from);
    }
  }

  /// Copies the survivors in a prompt buffer, which close() has put in front, back home.
  void settle(const KvSlab<T>& prompt_buffer, Index survivors) {
    for (Index row = 0; row < survivors; ++row) home.copy_row(head, row, prompt_buffer, row);
  }

  /// Copies a head into a prompt buffer, under policies by age in order of age.
  void move_in(KvSlab<T>& prompt_buffer, const HeadState& state, Index budget, Index initial) {
    const Index ring = (std::min)(state.size, budget) - initial;
    for (Index row = 0; row < state.size; ++row) {
      const bool turned = row >= initial && row - initial < ring;
      prompt_buffer.copy_row(head, row, home, turned ? initial + (state.cursor - initial + row - initial) % ring : row);
    }
  }

  /// Removes the rows at positions first .. last - 1; under policies by age the rest ends up in order of age. Returns the rows left.
  Index remove(const HeadState& state, Index budget, Index initial, Position first, Position last) {
    straighten(state, budget, initial);
    Index to = 0;
    for (Index row = 0; row < state.size; ++row)
      if (const Position p = home.positions(head)[row]; p < first || p >= last) {
        if (to != row) home.copy_row(head, to, home, row);
        ++to;
      }
    return to;
  }

 private:
  void close_in_place(HeadState& state, const PolicyFacts& facts, std::span<const std::int32_t> victims, Index initial, Index evicted,
                      bool more) {
    if (evicted > 0 && facts.eviction != Eviction::by_age) {
      close_up(state.size, victims, facts.traits.ordered);
    } else if (evicted > 0 && !more && facts.retain == facts.budget) {
      close_ring(state, evicted, initial);
    } else if (evicted > 0) {
      close_by_age(state, facts.budget, evicted, initial);
    }
  }

  /// Overwrites the oldest `evicted` rows of a window's ring, in order of age from the cursor, by the newest rows.
  void close_ring(HeadState& state, Index evicted, Index initial) {
    const Index ring = state.size - evicted - initial, moved = (std::min)(evicted, ring), oldest = state.cursor - initial;
    const auto around = [&](Index steps) { return initial + oldest + steps - (oldest + steps < ring ? 0 : ring); };  // avoids a division
    for (Index i = 0; i < moved; ++i) replace(around(i), state.size - moved + i);
    state.cursor = around(moved);
  }

  /// The same if fewer rows than the whole ring stay: they end up in order of age.
  void close_by_age(const HeadState& state, Index budget, Index evicted, Index initial) {
    straighten(state, budget, initial);
    for (Index to = initial; to < state.size - evicted; ++to) replace(to, to + evicted);
  }

  /// Fills the holes of the victims with the last survivors; with `ordered`, survivors move up and keep their order.
  void close_up(Index n, std::span<const std::int32_t> victims, bool ordered) {
    const Index survivors = n - static_cast<Index>(victims.size());
    std::size_t next_victim = 0, hole = 0;
    if (!ordered) next_victim = static_cast<std::size_t>(std::lower_bound(victims.begin(), victims.end(), survivors) - victims.begin());
    Index to = victims.front();
    for (Index row = ordered ? to : survivors; row < n; ++row) {
      if (next_victim < victims.size() && victims[next_victim] == row) {
        ++next_victim;
      } else {
        replace(ordered ? to++ : victims[hole++], row);
      }
    }
  }

  void bring_home(const KvSlab<T>& prompt_buffer, Index n, std::span<const std::int32_t> victims) {
    Index to = 0;
    std::size_t next_victim = 0;
    for (Index row = 0; row < n; ++row) {
      if (next_victim < victims.size() && victims[next_victim] == row) {
        ++next_victim;
      } else {
        home.copy_row(head, to++, prompt_buffer, row);
      }
    }
  }

  void bring_home_by_age(const KvSlab<T>& prompt_buffer, Index n, Index evicted, Index initial) {
    for (Index to = 0; to < n - evicted; ++to) home.copy_row(head, to, prompt_buffer, to < initial ? to : to + evicted);
  }

  void replace(Index to, Index from) {
    if (merges || journal.recording()) {
      home.swap_rows(head, to, from);
      if (journal.recording()) journal.record_swap(head, to, from);
    } else {
      home.copy_row(head, to, home, from);
    }
  }

  /// Rotates a ring so that its oldest row comes first.
  void straighten(const HeadState& state, Index budget, Index initial) {
    if (state.cursor == initial) return;
    const auto reverse = [&](Index first, Index last) {
      for (; first < --last; ++first) home.swap_rows(head, first, last);
    };
    const Index end = (std::min)(state.size, budget);
    reverse(initial, state.cursor);
    reverse(state.cursor, end);
    reverse(initial, end);
  }
};

}}}  // namespace pith::v0::detail
