#pragma once

#include <algorithm>
#include <limits>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include <pith/attention/kv_view.hpp>
#include <pith/core/check.hpp>
#include <pith/kv/detail/cache_rules.hpp>
#include <pith/kv/detail/head_runs.hpp>
#include <pith/kv/detail/journal.hpp>
#include <pith/kv/detail/merging.hpp>
#include <pith/kv/detail/prompt_buffer_lease.hpp>
#include <pith/kv/detail/reindex.hpp>
#include <pith/kv/detail/row_compaction.hpp>
#include <pith/kv/detail/slab.hpp>
#include <pith/kv/layer_scores.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// The rows of a cache and their history: everything in KvCache that does not depend on the policy.
template <KvStorage T> class CacheState : public Progress {
 public:
  using S = arithmetic_t<T>;

  explicit CacheState(const CacheRules& r)
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
              .merges = r.merge.merges}),
        merging(rules, home.most_rows()),
        heads_(static_cast<std::size_t>(r.shape.num_kv_heads), {.cursor = r.facts.initial}),
        sizes_after_(heads_.size()),
        layer_(r.facts.combines ? heads_.size() : 0),
        runs_(rules) {
    next = next_rope_position = rules.first();
    memory = memory_before_prompt_ = Matrix<S>::Zero(heads(), rules.facts.memory);
    heads_before_prompt_ = heads_;
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
      raise<ShapeError>(text("pith::KvCache::observe: ", queries, " queries from position ", first_query, " on, of ", size(h),
                             " rows: expected queries of tokens that were appended"));
    return row;
  }
  /// Records that the policy was shown the attention of the tokens in these rows.
  void note_observed(Index h, Index first, Index queries) {
    HeadState& state = head(h);
    if (rules.facts.traits.watches == all_queries) {
      state.observed += queries;
    } else {
      const Index token = first - (state.size - unevicted), needed = (std::max)(unevicted - rules.facts.traits.watches, state.observed);
      if (token <= needed) state.observed = (std::max)(state.observed, token + queries);
    }
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

  void reserve(Index tokens, KvPromptBuffer<T>* prompt_buffer) {
    check_reserve(tokens, prompt_buffer);
    if (fits(tokens, slab())) return;
    PromptBufferLease<T> lease(*prompt_buffer);
    for (Index h = 0; h < heads(); ++h)
      RowCompaction<T>{home, journal, h}.move_in(prompt_buffer->slab(), head(h), rules.facts.budget, initial());
    before_prompt_ = *this;
    heads_before_prompt_ = heads_;
    memory_before_prompt_ = memory;
    prompt_buffer_ = std::move(lease);
    refresh();
  }

  void append(const ConstMatrixRef<S>& k, const ConstMatrixRef<S>& v, const AppendOptions& options) {
    const Index tokens = k.rows(), d = rules.shape.head_dim;
    check_shape("KvCache::append", "k", k, any_extent, rules.width());
    check_shape("KvCache::append", "v", v, tokens, rules.width());
    check_append(tokens, options);
    check_fits(tokens, slab());
    if (tokens == 0) return;
    const auto position = [&](Index t) { return mark_of(options.positions, t, static_cast<Position>(next + t)); };
    // Prompt pieces appended without `more` and followed by a single evict() count as one prompt.
    const bool forgets = rules.begins_prompt(options, last) && (unevicted == 0 || last.phase == Phase::decode);
    if (forgets) forget_attention();
    if (journal.open()) journal.record(position(0), *this, tokens, heads_, home, merging.gate, memory);
    for (Index h = 0; h < heads(); ++h) {
      HeadState& state = head(h);
      for (Index t = 0; t < tokens; ++t) {
        const Index row = state.size + t;
        if (row < state.live) journal.save_row(slab(), h, row, t);
        slab().write_row(h, row, &k.coeffRef(t, h * d), &v.coeffRef(t, h * d), position(t), static_cast<Position>(next_rope_position + t),
                         mark_of(options.kinds, t, TokenKind::text), mark_of(options.masses, t, S(1)));
      }
      if (rules.facts.stats > 0) stats(h, state.size, tokens).setZero();
      if (forgets && rules.facts.observes) state.observed = unevicted;  // tokens before this prompt: their attention is not needed
      state.size += tokens;
      if (journal.open()) state.live = (std::max)(state.live, state.size);
    }
    next = position(tokens - 1) + 1;
    next_rope_position = rules.angles() ? static_cast<Position>(next_rope_position + tokens) : next;
    unevicted += tokens;
    if (!rules.never_evicts()) last = {.phase = options.phase, .more = options.more};
    refresh();
  }

  /// Plans the eviction of `leaving` rows of a head, and throws if it is impossible while nothing has changed yet.
  Index plan_head(Index h, Index leaving) {
    sizes_after_[static_cast<std::size_t>(h)] = size(h) - leaving;
    if (in_prompt_buffer()) check_home(h);
    if (rules.angles() && size(h) == size(0) && leaving != size(0) - sizes_after_[0])
      rules.raise_uneven(sizes_after_[0], size(h) - leaving);
    if (rules.merge.merges && journal.recording())
      journal.check_merges(h, leaving - rules.unseen({slab().positions(h), std::size_t(size(h))}, next));
    return leaving;
  }
  Index leaving(Index h) const { return size(h) - sizes_after_[static_cast<std::size_t>(h)]; }
  /// Removes the victims of a head from its storage; a policy by age names none, and the oldest rows leave.
  void close_head(Index h, std::span<const std::int32_t> victims, Index coming) {
    if (in_prompt_buffer() && rules.facts.traits.ragged) home.put_head(h, size(h) - leaving(h));
    RowCompaction<T>{home, journal, h, rules.merge.merges}.close(head(h), slab(), rules.facts, victims, initial(), leaving(h), coming > 0);
  }

  /// Merges the victims, which close_head() has put behind the survivors, into the survivors.
  void merge(const AnyMerge<S>& rule) {
    LayerMerge<T>{rules, slab(), journal, in_prompt_buffer() ? prompt_buffer_->merging() : merging.ws, next, !in_prompt_buffer()}.run(
        rule, heads_, sizes_after_, merging);
  }

  void end_eviction(Index coming) {
    for (std::size_t h = 0; h < heads_.size(); ++h) {
      HeadState& state = heads_[h];
      if (in_prompt_buffer() && rules.merge.merges) RowCompaction<T>{home, journal, static_cast<Index>(h)}.settle(slab(), sizes_after_[h]);
      if (in_prompt_buffer() || coming > 0) state.cursor = initial();
      state.size = sizes_after_[h];
      state.observed = 0;
      // Rows evicted before the first append of a journal never come back.
      if (journal.open() && !journal.recording()) state.live = state.size;
    }
    if (rules.facts.traits.ragged && (in_prompt_buffer() || rules.may_evict(last))) home.divide([this](Index h) { return size(h); });
    prompt_buffer_ = {};
    unevicted = 0;
    refresh();
  }

  /// The scores of all heads, as combine() sees them.
  LayerScores<S> layer(Index retain) {
    for (Index h = 0; h < heads(); ++h)
      layer_[static_cast<std::size_t>(h)] = {.size = size(h),
                                             .positions = slab().positions(h),
                                             .kinds = slab().kinds(h),
                                             .stats = stats(h, 0, size(h)).data(),
                                             .scores = slab().scores(h)};
    return {rules.shape, rules.first(), next, retain, rules.facts.stats, slab().stats_stride(), layer_, slab().candidates()};
  }

  void checkpoint() {
    if (rules.never_evicts()) return;
    if (!rules.keeps_journal()) raise<StateError>("pith::KvCache: checkpoint() on a cache constructed with max_draft = 0");
    if (in_prompt_buffer()) rules.raise_mid_prompt("checkpoint()");
    journal.start();
    for (HeadState& state : heads_) state.live = state.size;
  }

  bool can_crop(Position p) const {
    if (in_prompt_buffer()) return false;
    return p == next || (rules.never_evicts() ? p >= rules.first() && p < next : journal.open() && journal.find(p) >= 0);
  }

  void crop(Position p) {
    if (in_prompt_buffer()) rules.raise_mid_prompt("crop()");
    if (!can_crop(p)) rules.raise_crop(p, next, journal.open());
    rewind(p);
    end_journal();
    refresh();
  }

  /// Records what take_back() needs, until end_guard(): in the open journal, or in a new one.
  void guard() {
    if (journal.open() || !rules.keeps_journal()) return;
    checkpoint();
    guarded_ = true;
  }
  void end_guard() {
    if (guarded_) end_journal();
  }
  /// Returns to before the token at p if possible; a journal that was open then stays open. Returns whether it did.
  bool take_back(Position p) {
    if (in_prompt_buffer() && before_prompt_.next == p) {  // home is unchanged
      heads_ = heads_before_prompt_;
      memory = memory_before_prompt_;
      static_cast<Progress&>(*this) = before_prompt_;
      prompt_buffer_ = {};
    }
    const bool can = can_crop(p);
    if (can && p != next) rewind(p);
    end_guard();
    refresh();
    return can;
  }

  /// Undoes everything from p on; requires can_crop(p).
  void rewind(Position p) {
    if (rules.never_evicts()) {
      for (Index h = 0; h < heads(); ++h) {
        const Position* first = home.positions(h);
        head(h).size = std::lower_bound(first, first + head(h).size, p) - first;
      }
      next = next_rope_position = p;
      unevicted = 0;
    } else if (p != next) {
      static_cast<Progress&>(*this) = journal.undo_to(journal.find(p), heads_, home, merging.gate, memory);
    }
  }

  void reindex(const Rope<S>& rope) requires std::same_as<T, S> {
    if (in_prompt_buffer()) rules.raise_mid_prompt("reindex()");
    for (Index h = 1; h < heads(); ++h)
      if (size(h) != size(0)) rules.raise_uneven(size(0), size(h));
    if (next_rope_position - rules.first() == size(0)) return;  // no gap
    rules.check_rope(rope.options());
    journal.check_turn(rope.inv_freq());
    journal.begin_turn(rope.inv_freq());
    for (Index h = 0; h < heads(); ++h) {
      const std::span<const Position> deltas = angle_gaps(home, h, size(h), rules.first(), next_rope_position);
      journal.save_turn(home, h, deltas);
      turn_rows(home, h, deltas, rope);
    }
    next_rope_position = rules.first() + static_cast<Position>(size(0));
  }

  /// Removes the tokens at first .. end - 1 from every head; the others move together and keep their order.
  Index drop(Position first, Position end) {
    if (in_prompt_buffer()) rules.raise_mid_prompt("drop()");
    if (journal.open()) raise<StateError>("pith::KvCache: drop() inside a journal: crop() to end it first");
    if (rules.by_age() && rules.facts.traits.positions == RopePositions::cache)
      raise<StateError>("pith::KvCache: drop() from a window at cache positions would leave a gap in it: use RopePositions::text");
    Index dropped = 0, sinks = 0;
    for (Index r = 0; r < (std::min)(initial(), size(0)); ++r) sinks += home.positions(0)[r] >= first && home.positions(0)[r] < end;
    for (Index h = 0; h < heads(); ++h) {
      const Index left = RowCompaction<T>{home, journal, h}.remove(head(h), rules.facts.budget, initial(), first, end);
      dropped += size(h) - left;
      head(h).size = left;
    }
    lost_initial += sinks;
    for (HeadState& state : heads_) state.cursor = initial();
    refresh();
    return dropped;
  }

  void clear() {
    for (HeadState& state : heads_) state = {.cursor = rules.facts.initial};
    prompt_buffer_ = {};
    static_cast<Progress&>(*this) = {.next = rules.first(), .next_rope_position = rules.first()};
    memory.setZero();
    merging.gate.setZero();
    home.divide_evenly();
    end_journal();
    refresh();
  }

  void copy(const CacheState& from) {
    if (from.in_prompt_buffer()) rules.raise_mid_prompt("clone()");
    home.copy_all(from.home);
    journal.copy_state(from.journal);
    heads_ = from.heads_;
    static_cast<Progress&>(*this) = from;
    memory = from.memory;
    merging.gate = from.merging.gate;
    refresh();
  }

  /// Updates the runs after rows, sizes or positions have changed.
  void refresh() {
    const Index sinks = gap() > 0 ? initial() : -1;
    for (Index h = 0; h < heads(); ++h) runs_.set(h, slab(), size(h), sinks);
  }

  CacheRules rules;
  KvSlab<T> home;
  KvJournal<T> journal;
  Matrix<S> memory;  ///< [heads, memory] numbers that a policy keeps for each head
  MergeState<T> merging;

 private:
  void check_fits(Index tokens, const KvSlab<T>& where) const {
    if (!fits(tokens, where)) rules.raise_full(largest_size(), where.shape().rows, tokens);
  }

  /// Throws   CapacityError if the rows of head h do not fit at home: in its own share, or behind the heads before it
  void check_home(Index h) const {
    const auto after = sizes_after_.begin();
    const Index rows = after[h],
                room = rules.facts.traits.ragged ? home.total_rows() - std::accumulate(after, after + h, Index(0)) : home.rows(h);
    if (rows > room) rules.raise_protected(rows);
  }

  /// Clears what a prompt-only policy saw of an earlier prompt: it does not count for the next one.
  void forget_attention() {
    for (Index h = 0; h < heads() && !rules.facts.admits; ++h) stats(h, 0, size(h)).setZero();
    memory.setZero();
  }

  void end_journal() {
    journal.close();
    guarded_ = false;
    for (HeadState& state : heads_) state.live = 0;
  }

  bool guarded_ = false;    ///< guard() has opened the journal
  Progress before_prompt_;  ///< progress when the rows moved to the prompt buffer; home does not change until they return
  std::vector<HeadState> heads_before_prompt_;
  Matrix<S> memory_before_prompt_;
  PromptBufferLease<T> prompt_buffer_;  ///< holds the rows during a chunk too long for home
  std::vector<HeadState> heads_;
  std::vector<Index> sizes_after_;
  std::vector<typename LayerScores<S>::Head> layer_;
  HeadRuns<T> runs_;
};

}}}  // namespace pith::v0::detail
