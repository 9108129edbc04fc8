#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/kv/detail/cache_rules.hpp>
#include <pith/kv/detail/journal.hpp>
#include <pith/kv/detail/row_compaction.hpp>
#include <pith/kv/detail/slab.hpp>
#include <pith/merge/any_merge.hpp>
#include <pith/merge/gates.hpp>
#include <pith/merge/merge_rows.hpp>
#include <pith/merge/similarity.hpp>

// Merging evicted rows into kept ones.

namespace pith { inline namespace v0 { namespace detail {

/// The memory a cache needs for merging in its own rows; none if it drops evicted rows.
template <KvStorage T> struct MergeState {
  using S = arithmetic_t<T>;

  MergeState(const CacheRules& rules, Index rows)
      : gate(Vector<S>::Zero(rules.merge.memory)),
        heads(rules.merge.merges ? static_cast<std::size_t>(rules.shape.num_kv_heads) : 0),
        ws(rules.merge.merges
               ? merging_bytes<S>(rows, rows_together(rules.shape.head_dim), rules.shape.head_dim, rules.options.executor.size())
               : 0,
           rules.options.executor) {}
  std::size_t bytes() const { return ws.bytes() + static_cast<std::size_t>(gate.size()) * sizeof(S); }

  Vector<S> gate;  ///< numbers that the gate keeps for the layer
  std::vector<typename LayerMatches<S>::Head> heads;
  Workspace ws;
};

/// Merges the evicted rows of one layer into the kept ones: matches all of them, lets the rule's gate see the matches, then updates each
/// head from the old rows only. Evicted rows lie behind the kept ones; a row is rounded once for any number of rows merged into it.
template <KvStorage T> struct LayerMerge {
  using S = arithmetic_t<T>;

  const CacheRules& rules;
  KvSlab<T>& slab;
  KvJournal<T>& journal;
  Workspace& ws;
  Position next;
  bool at_home;

  /// `staying`: number of rows that head h keeps, its first ones.
  void run(const AnyMerge<S>& rule, std::span<const HeadState> heads, std::span<const Index> staying, MergeState<T>& state) {
    const auto for_heads = [&](auto&& f) {
      for (std::size_t h = 0; h < heads.size(); ++h) f(static_cast<Index>(h), staying[h], heads[h].size - staying[h]);
    };
    for_heads([&](Index h, Index kept, Index evicted) {
      RowCompaction<T>{slab, journal, h, true}.sort_victims(kept, kept + evicted);
      match(h, kept, evicted);
      state.heads[static_cast<std::size_t>(h)] = {{slab.matches(h), static_cast<std::size_t>(evicted)}, {slab.cosines(h), evicted}, kept};
    });
    LayerMatches<S> layer(state.heads);
    rule.gate(layer, VectorRef<S>(state.gate));
    for_heads([&](Index h, Index kept, Index evicted) { update(h, kept, evicted, rule); });
  }

 private:
  /// Finds the nearest kept row for each evicted one. Rows that no query of a sliding-window layer can see are not merged.
  void match(Index h, Index kept, Index evicted) {
    std::int32_t* const rows = slab.matches(h);
    if (evicted == 0 || kept == 0) {
      std::fill_n(rows, evicted, -1);
      return;
    }
    const Index d = rules.shape.head_dim;
    const S* const keys = slab.widened_rows(h, 0, kept + evicted).first;
    const Index most = at_home ? rows_together(d) : evicted;  // at home the workspace holds a panel of rows, not all
    for (Index e = 0; e < evicted; e += most) {
      const Index count = (std::min)(most, evicted - e);
      nearest_rows(ConstMatrixRef<S>(keys + (kept + e) * d, count, d), ConstMatrixRef<S>(keys, kept, d),
                   {rows + e, static_cast<std::size_t>(count)}, VectorRef<S>(slab.cosines(h) + e, count), ws,
                   {slab.positions(h), static_cast<std::size_t>(kept)});
    }
    for (Index e = 0; e < evicted; ++e)
      if (rules.unseen(slab.positions(h)[kept + e], next)) rows[e] = -1;
  }

  void update(Index h, Index kept, Index evicted, const AnyMerge<S>& rule) {
    const std::span<std::int32_t> rows(slab.matches(h), static_cast<std::size_t>(evicted));
    for (std::int32_t& c : rows) {
      PITH_ASSERT(c >= -1 && c < kept);
      if (c < 0 || c >= kept) c = -1;
      if (c >= 0 && journal.recording()) journal.save_merged(slab, h, c);
    }
    const Index d = rules.shape.head_dim;
    const auto [k, v] = opened(h, kept, rows);
    mix_rows<S>({.keys = {k, kept, d}, .values = {v, kept, d}, .mass = {slab.masses(h), kept}},
                {.keys = {k + kept * d, evicted, d}, .values = {v + kept * d, evicted, d}, .mass = {slab.masses(h) + kept, evicted}},
                {.row = rows, .cosine = {slab.cosines(h), evicted}}, rule, ws);
    for (const std::int32_t c : rows) {
      if (c < 0) continue;
      slab.set_mass(h, c, slab.masses(h)[c]);
      if constexpr (!std::is_same_v<T, S>) {
        narrow_key<T>(k + c * d, slab.key(h, c), d);
        narrow_value<T>(v + c * d, slab.value(h, c), d);
      }
      slab.scout(h, c, 1);
    }
  }

  /// Keys and values in the arithmetic type: in place, or copied to the slab's scratch, of the kept rows only those that change.
  std::pair<S*, S*> opened(Index h, Index kept, std::span<const std::int32_t> rows) {
    if constexpr (std::is_same_v<T, S>) {
      return {slab.keys(h), slab.values(h)};
    } else {
      const Index d = rules.shape.head_dim, n = kept + static_cast<Index>(rows.size());
      S* const k = slab.widened();
      S* const v = k + n * d;
      const auto widen_row = [&](Index row) {
        widen_key(slab.key(h, row), k + row * d, d);
        widen_value(slab.value(h, row), v + row * d, d);
      };
      for (std::size_t e = 0; e < rows.size(); ++e) {
        if (rows[e] < 0) continue;
        widen_row(rows[e]);
        widen_row(kept + static_cast<Index>(e));
      }
      return {k, v};
    }
  }
};

}}}  // namespace pith::v0::detail
