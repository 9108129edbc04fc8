#pragma once

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/kv/detail/cache_rows.hpp>
#include <pith/kv/detail/journal.hpp>
#include <pith/kv/detail/merging.hpp>
#include <pith/kv/detail/prompt_buffer_lease.hpp>
#include <pith/kv/detail/reindex.hpp>
#include <pith/kv/detail/row_compaction.hpp>
#include <pith/kv/detail/slab.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// The history of a cache's rows: everything in KvCache that changes them and does not depend on the policy's code.
template <KvStorage T> class CacheState : public CacheRows<T> {
  using Rows = CacheRows<T>;
  using Rows::heads_, Rows::sizes_after_, Rows::prompt_buffer_, Rows::check_fits;

 public:
  using S = arithmetic_t<T>;
  using Rows::fits, Rows::largest_size, Rows::check_append, Rows::check_reserve, Rows::refresh;
  using Rows::heads, Rows::head, Rows::size, Rows::slab, Rows::stats, Rows::initial, Rows::planned_evictions, Rows::in_prompt_buffer;
  using Rows::next, Rows::next_rope_position, Rows::unevicted, Rows::lost_initial, Rows::last;
  using Rows::rules, Rows::home, Rows::journal, Rows::memory, Rows::merging, Rows::decoding;

  explicit CacheState(const CacheRules& r) : Rows(r), heads_before_prompt_(heads_), memory_before_prompt_(memory) {}

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
    decoding = options.phase == Phase::decode;
    if (!rules.never_evicts()) last = {.phase = options.phase, .more = options.more};
    refresh();
  }

  /// Removes the victims of a head from its storage; a policy by age names none, and the oldest rows leave.
  void close_head(Index h, std::span<const std::int32_t> victims, Index coming) {
    if (in_prompt_buffer() && rules.facts.traits.ragged) home.put_head(h, size(h) - planned_evictions(h));
    RowCompaction<T>{home, journal, h, rules.merge.merges}.close(head(h), slab(), rules.facts, victims, initial(), planned_evictions(h),
                                                                 coming > 0);
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
    journal.check_turn(rope.pairs());
    journal.begin_turn(rope.pairs());
    for (Index h = 0; h < heads(); ++h) {
      const std::span<const Position> deltas = angle_gaps(home, h, size(h), rules.first(), next_rope_position);
      journal.save_turn(home, h, deltas);
      turn_rows(home, h, deltas, rope);
    }
    next_rope_position = rules.first() + static_cast<Position>(size(0));
  }

  /// Throws   StateError where drop() is impossible
  void check_drop(Position first, Position end) const {
    if (in_prompt_buffer()) rules.raise_mid_prompt("drop()");
    if (journal.open()) raise<StateError>("pith::KvCache: drop() inside a journal: crop() to end it first");
    if (rules.by_age() && rules.facts.traits.positions == RopePositions::cache)
      raise<StateError>("pith::KvCache: drop() from a window at cache positions would leave a gap in it: use RopePositions::text");
    const auto gone = [&](Index h) {
      const Position* const p = home.positions(h);
      return std::count_if(p, p + size(h), [=](Position at) { return at >= first && at < end; });
    };
    for (Index h = 1; rules.angles() && h < heads(); ++h)
      if (gone(h) != gone(0)) rules.raise_uneven(size(0) - gone(0), size(h) - gone(h));
  }

  /// Removes the tokens at first .. end - 1 from every head; the others move together and keep their order.
  Index drop(Position first, Position end) {
    check_drop(first, end);
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

 private:
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
};

}}}  // namespace pith::v0::detail
