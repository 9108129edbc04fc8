#pragma once
// Which rows of a cache its policy evicts.

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>

#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/kv/any_policy.hpp>
#include <pith/kv/detail/cache_state.hpp>
#include <pith/kv/detail/row_compaction.hpp>
#include <pith/kv/detail/select.hpp>
#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// The rows of a head from `first` on, as a policy sees them.
template <KvStorage T> KvRows<arithmetic_t<T>> rows_of(const CacheState<T>& state, Index h, Index first, bool with_rows) {
  using S = arithmetic_t<T>;
  const KvSlab<T>& slab = state.slab();
  const Index n = state.size(h) - first, d = state.rules.shape.head_dim;
  const auto [keys, values] = with_rows ? slab.widened_rows(h, first, n) : std::pair<const S*, const S*>();
  const auto count = static_cast<std::size_t>(n);
  return {.kv_head = h,
          .shape = state.rules.shape,
          .next = state.next,
          .positions = {slab.positions(h) + first, count},
          .kinds = {slab.kinds(h) + first, count},
          .stats = state.stats(h, first, n),
          .first = state.rules.first(),
          .keys = ConstMatrixRef<S>(keys, with_rows ? n : 0, d),
          .values = ConstMatrixRef<S>(values, with_rows ? n : 0, d),
          .memory = ConstVectorRef<S>(state.memory.row(h)),
          .scratch = slab.scratch(),
          .candidates = slab.candidates()};
}

/// Selects the rows to evict from a cache by its policy and the cache's own rules.
template <KvStorage T> struct Selection {
  using S = arithmetic_t<T>;

  const AnyPolicy<S>& policy;
  CacheState<T>& state;

  /// Scores all heads, for a policy whose heads decide together.
  void score_together(Index retain) {
    for (Index h = 0; h < state.heads(); ++h) {
      score(h);
      overrule(h);
    }
    LayerScores<S> layer = state.layer(retain);
    policy.combine(layer);
  }

  /// Scores a head, unless `scored`, and returns the number of rows to evict from it.
  Index count_victims(Index h, Index retain, bool scored) {
    if (state.rules.by_age()) return (std::max<Index>)(state.size(h) - retain, 0);
    if (!scored) score(h);
    overrule(h);
    return count_to_evict(std::span<const S>(scores(h), static_cast<std::size_t>(state.size(h))), retain);
  }

  /// The rows to evict from a scored head, ascending, valid until the next choice; none under a policy by age, which needs their number
  /// alone.
  std::span<const std::int32_t> victims(Index h, Index count) {
    if (state.rules.by_age()) return {};
    const KvSlab<T>& slab = state.slab();
    const auto n = static_cast<std::size_t>(state.size(h));
    choose_victims<S>({scores(h), n}, {slab.positions(h), n}, count, slab.candidates(), slab.victims());
    return {slab.victims(), static_cast<std::size_t>(count)};
  }

 private:
  S* scores(Index h) const { return state.slab().scores(h); }
  void score(Index h) { policy.score(rows_of(state, h, 0, state.rules.facts.traits.reads_rows), VectorRef<S>(scores(h), state.size(h))); }
  void overrule(Index h) {
    detail::overrule(rows_of(state, h, 0, false), state.rules.facts.traits.keeps_newest, state.rules.options.window,
                     VectorRef<S>(scores(h), state.size(h)));
  }
};

}}}  // namespace pith::v0::detail
