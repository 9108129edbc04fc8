#pragma once

#include <algorithm>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include <pith/attention/kv_view.hpp>
#include <pith/core/check.hpp>
#include <pith/kv/detail/cache_rules.hpp>
#include <pith/kv/detail/head_runs.hpp>
#include <pith/kv/detail/journal.hpp>
#include <pith/kv/detail/merging.hpp>
#include <pith/kv/detail/prompt_buffer_lease.hpp>
#include <pith/kv/detail/slab.hpp>
#include <pith/kv/layer_scores.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// The rows of a cache, where they lie, and the questions about them that do not depend on the policy's code.
template <KvStorage T> class CacheRows : public Progress {
 public:
  using S = arithmetic_t<T>;

  explicit CacheRows(const CacheRules& r)
      : rules(r),
        home({.heads = r.shape.num_kv_heads,
              .rows = r.home_rows(),
              .head_dim = r.shape.head_dim,
              .stats = r.facts.stats,
              .angles = r.angles(),
              .scores = r.facts.eviction == Eviction::by_score,
              .combines = r.facts.combines,
              .widened = (r.facts.traits.reads_rows || r.facts.admits || r.merge.merges) && !std::is_same_v<T, S>,
              .masses = r.masses(),
              .log_masses = r.options.keep_masses,
              .merges = r.merge.merges,
              .scouts = checked_scouts(r.options.scout_keys)}),
        merging(rules, home.most_rows()),
        heads_(static_cast<std::size_t>(r.shape.num_kv_heads), {.cursor = r.facts.initial}),
        sizes_after_(heads_.size()),
        layer_(r.facts.combines ? heads_.size() : 0),
        runs_(rules) {
    next = next_rope_position = rules.first();
    memory = Matrix<S>::Zero(heads(), rules.facts.memory);
    if (rules.keeps_journal()) {
      SlabShape journaled = home.shape();
      if (rules.prompt_only()) journaled.stats = 0;  // a journal never watches attention
      journal = KvJournal<T>(journaled, {.tokens = rules.options.max_draft + 1,
                                         .swaps = rules.max_swaps(),
                                         .merges = rules.max_merges(),
                                         .gate_memory = rules.merge.memory,
                                         .memory = rules.prompt_only() ? 0 : rules.facts.memory});
    }
    refresh();
  }

  Index heads() const { return rules.shape.num_kv_heads; }
  HeadState& head(Index h) { return heads_[static_cast<std::size_t>(h)]; }
  const HeadState& head(Index h) const { return heads_[static_cast<std::size_t>(h)]; }
  Index size(Index h) const { return head(h).size; }
  std::span<const KvRun<T>> runs() const { return runs_.all(); }
  std::size_t bytes() const {
    return home.bytes() + journal.bytes() + merging.bytes() + 2 * sizeof(S) * static_cast<std::size_t>(memory.size());
  }
  bool in_prompt_buffer() const { return prompt_buffer_.held(); }
  KvSlab<T>& slab() { return in_prompt_buffer() ? prompt_buffer_->slab() : home; }
  const KvSlab<T>& slab() const { return in_prompt_buffer() ? prompt_buffer_->slab() : home; }
  /// [stats, count] numbers that the policy keeps for rows; a prompt buffer may hold more numbers per row than this policy uses.
  MatrixRef<S> stats(Index h, Index first, Index count) const {
    return {slab().stats(h, first, count).data(), rules.facts.stats, count, slab().stats_stride()};
  }
  /// Number of rows in front that a policy by age never evicts: its first tokens, without those that drop() has removed.
  Index initial() const { return rules.facts.initial - lost_initial; }
  /// At cache positions: number of evicted tokens between the sinks and the window.
  Position gap() const {
    return rules.by_age() && rules.facts.traits.positions == RopePositions::cache ? static_cast<Position>(next - rules.first() - size(0))
                                                                                  : 0;
  }
  /// The row of the first of `queries` tokens: the newest ones, or those from a position on. Tokens not yet evicted lie in order.
  Index first_row(Index h, Position first_query, Index queries) const {
    const Position* const positions = slab().positions(h);
    Index row = size(h) - queries;
    while (first_query >= 0 && row > 0 && positions[row] > first_query) --row;
    if (row < 0 || (first_query >= 0 && positions[row] != first_query))
      raise<ShapeError>("pith::KvCache::observe: ", queries, " queries from position ", first_query, " on, of ", size(h),
                        " rows: expected queries of tokens that were appended");
    return row;
  }
  /// Throws   StateError if a policy of the last queries is not shown the tokens in these rows next: its window would pass the others
  void check_order(Index h, Index first, Index queries) const {
    if (rules.facts.traits.watches == all_queries) return;
    const Index token = first - (size(h) - unevicted), due = due_query(h);
    if (token != due)
      raise<StateError>("pith::KvCache::observe: queries ", token, " .. ", token + queries - 1, " of the ", unevicted,
                        " tokens since the last evict(), but query ", due,
                        " is next: show the last queries of a kv head once each, in order");
  }
  /// Records that the policy was shown the attention of this many queries.
  void note_observed(Index h, Index queries) {
    head(h).observed = (rules.facts.traits.watches == all_queries ? head(h).observed : due_query(h)) + queries;
  }
  Index largest_size() const {
    Index largest = 0;
    for (const HeadState& state : heads_) largest = (std::max)(largest, state.size);
    return largest;
  }

  bool fits(Index tokens, const KvSlab<T>& where) const {
    for (Index h = 0; h < heads(); ++h)
      if (tokens > where.rows(h) - size(h)) return false;
    return true;
  }
  Index room() const {
    Index free = slab().rows(0) - size(0);
    for (Index h = 1; h < heads(); ++h) free = (std::min)(free, slab().rows(h) - size(h));
    const Index positions = (std::numeric_limits<Position>::max)() - next;
    return free < 1 || rules.never_evicts() || rules.prompt_only() ? (std::min)(free, positions) : positions;
  }
  /// Checks what append() checks for this many tokens, except their room.
  void check_append(Index tokens, const AppendOptions& options) const {
    rules.check_marks(options, tokens, next);
    rules.check_prompt(options, journal.open());
    journal.check_room(tokens);
  }
  /// Throws   what reserve() throws
  void check_reserve(Index tokens, const KvPromptBuffer<T>* prompt_buffer) const {
    rules.check_range(next, tokens);
    journal.check_room(tokens);
    if (fits(tokens, slab())) return;
    if (rules.never_evicts() || prompt_buffer == nullptr || in_prompt_buffer()) check_fits(tokens, slab());
    if (journal.open())
      raise<StateError>("pith::KvCache: a chunk longer than the budget cannot be taken back: crop() to end the journal first");
    prompt_buffer->check_fits(home.shape(), largest_size() + tokens);
  }
  /// Checks a prompt that is reserved in the prompt buffer and evicted once, or other tokens, which are evicted one by one.
  void check_room(Index tokens, const AppendOptions& options, const KvPromptBuffer<T>* prompt_buffer) const {
    rules.check_range(next, tokens);
    check_append(tokens, options);
    if (options.phase == Phase::prefill) return check_reserve(tokens, prompt_buffer);
    if (rules.never_evicts() || rules.prompt_only()) return check_fits(tokens, slab());
    if (unevicted == 0 && largest_size() > rules.facts.budget && !fits(1, slab())) rules.raise_protected(largest_size() + 1);
    check_fits(1, slab());
  }

  /// Plans the eviction of `evicted` rows of a head, and throws if it is impossible while nothing has changed yet.
  Index plan_head(Index h, Index evicted) {
    sizes_after_[static_cast<std::size_t>(h)] = size(h) - evicted;
    if (in_prompt_buffer()) check_home(h);
    if (rules.angles() && size(h) == size(0) && evicted != size(0) - sizes_after_[0])
      rules.raise_uneven(sizes_after_[0], size(h) - evicted);
    if (rules.merge.merges && journal.recording())
      journal.check_merges(h, evicted - rules.unseen({slab().positions(h), std::size_t(size(h))}, next));
    return evicted;
  }
  /// Number of rows that plan_head() has planned to evict from a head.
  Index planned_evictions(Index h) const { return size(h) - sizes_after_[static_cast<std::size_t>(h)]; }
  /// The scores of all heads, as combine() sees them.
  LayerScores<S> layer(Index retain) {
    for (Index h = 0; h < heads(); ++h)
      layer_[static_cast<std::size_t>(h)] = {.size = size(h),
                                             .positions = slab().positions(h),
                                             .kinds = slab().kinds(h),
                                             .stats = stats(h, 0, size(h)).data(),
                                             .scores = slab().scores(h),
                                             .memory = {memory.row(h).data(), static_cast<std::size_t>(memory.cols())}};
    return {rules.shape, rules.first(), next, retain, rules.facts.stats, slab().stats_stride(), layer_, slab().candidates()};
  }

  /// Updates the runs after rows, sizes or positions have changed.
  void refresh() {
    const Index sinks = gap() > 0 ? initial() : -1;
    for (Index h = 0; h < heads(); ++h) runs_.set(h, slab(), size(h), sinks, home.shape().scouts && decoding);
  }

  CacheRules rules;
  KvSlab<T> home;
  KvJournal<T> journal;
  Matrix<S> memory;  ///< [heads, memory] numbers that a policy keeps for each head
  MergeState<T> merging;
  bool decoding = true;  ///< the newest tokens were decoded: a prompt reads all keys

 protected:
  /// The query, of the tokens since the last eviction, that a policy of the last queries is shown next.
  Index due_query(Index h) const { return (std::max)(unevicted - rules.facts.traits.watches, head(h).observed); }

  void check_fits(Index tokens, const KvSlab<T>& where) const {
    if (!fits(tokens, where)) rules.raise_full(largest_size(), where.shape().rows, tokens);
  }

  static bool checked_scouts(bool wanted) {
    if (wanted && !(std::is_same_v<S, float> && PlainStorage<coded_t<typename KvParts<T>::Key>>))
      raise<UnsupportedError>("pith::KvCacheOptions: scout_keys for keys that are stored as codes or doubles: leave it off");
    return wanted;
  }

  /// Throws   CapacityError if the rows of head h do not fit at home: in its own share, or behind the heads before it
  void check_home(Index h) const {
    const auto after = sizes_after_.begin();
    const Index rows = after[h],
                room = rules.facts.traits.ragged ? home.total_rows() - std::accumulate(after, after + h, Index(0)) : home.rows(h);
    if (rows > room) rules.raise_protected(rows);
  }

  PromptBufferLease<T> prompt_buffer_;  ///< holds the rows during a chunk too long for home
  std::vector<HeadState> heads_;
  std::vector<Index> sizes_after_;
  std::vector<typename LayerScores<S>::Head> layer_;
  HeadRuns<T> runs_;
};

}}}  // namespace pith::v0::detail
