#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <span>
#include <vector>

#include <pith/core/types.hpp>
#include <pith/kv/detail/cache_rules.hpp>
#include <pith/kv/detail/slab.hpp>
#include <pith/kv/detail/turns.hpp>

// The journal of a cache, from which crop() restores an earlier state bit for bit.

namespace pith { inline namespace v0 { namespace detail {

/// Capacities of a journal, besides the shape of the home whose changes it records.
struct JournalShape {
  Index tokens = 0;       ///< tokens that can be undone
  Index swaps = 0;        ///< swaps of two rows, per head
  Index merges = 0;       ///< rows changed by merges, per head
  Index gate_memory = 0;  ///< numbers that a merge's gate keeps for the layer
  Index memory = 0;       ///< numbers that a policy keeps for a head as a whole
};

/// Per-head bookkeeping: row count, ring cursor, observed queries.
struct HeadState {
  Index size = 0;      ///< number of rows
  Index cursor = 0;    ///< policies by age: the oldest row behind the initial ones
  Index observed = 0;  ///< tokens since the last eviction whose attention the policy saw; with a query window: index after the last seen
  Index live = 0;      ///< an open journal may bring back rows below this index
};

/// Records everything needed to undo changes since a checkpoint. Evicted rows are swapped behind the last retained one, so the swaps undo
/// an eviction; only rows that a later append overwrites are lost, and the journal saves these.
///
/// Heap     all of it at construction; recording allocates nothing
template <KvStorage T> class KvJournal {
 public:
  using S = arithmetic_t<T>;
  struct Swap {
    std::int32_t head, a, b;
  };
  /// One append and all changes until the next one.
  struct Append {
    Position first;   ///< position of its first token
    Progress before;  ///< progress of the cache before it
    Index tokens;
    std::size_t first_saved;  ///< index of its first overwritten row, in the order of saving
    std::size_t first_swap;   ///< index of its first swap
    std::size_t first_merge;  ///< index of its first row changed by a merge
  };
  /// A row saved before an append or a merge changed it: row `row` of `head`, copied to row `slot` of a slab.
  struct Saved {
    std::int32_t head, row, slot;
    std::int32_t turned;  ///< slot of its key before the first turn
  };
  KvJournal() = default;
  KvJournal(const SlabShape& home, const JournalShape& shape)
      : heads_(home.heads),
        tokens_(shape.tokens),
        rows_(home.rows),
        stats_(home.stats),
        gate_memory_(shape.gate_memory),
        memory_(checked_product("KvCache", home.heads, shape.memory)),
        saved_rows_(saved_shape(home, tokens_)),
        merged_rows_(saved_shape(home, shape.merges)),
        stats_before_(count(checked_product("KvCache", tokens_, home.heads), checked_product("KvCache", home.stats, home.rows))),
        heads_before_(count(tokens_, home.heads)),
        gates_before_(count(tokens_, gate_memory_)),
        memory_before_(count(tokens_, memory_)) {
    if constexpr (std::same_as<T, S>)  // rounded keys are never turned
      if (home.angles) turns_ = TurnJournal<S>(home, tokens_, tokens_ + shape.merges);
    appends_.reserve(static_cast<std::size_t>(tokens_));
    saved_.reserve(count(tokens_, home.heads));
    swaps_.reserve(count(shape.swaps, home.heads));
    merges_.reserve(count(shape.merges, home.heads));
    merges_of_.resize(static_cast<std::size_t>(home.heads));
  }

  bool open() const { return open_; }
  void start() {
    close();
    open_ = true;
  }
  void close() {
    open_ = false;
    tokens_used_ = 0;
    appends_.clear();
    saved_.clear();
    swaps_.clear();
    merges_.clear();
    std::fill(merges_of_.begin(), merges_of_.end(), 0);
    turns_.forget();
  }

  void check_room(Index tokens) const {
    if (open_ && tokens > tokens_ - tokens_used_)
      raise<StateError>("pith::KvCache: ", tokens, " tokens, but the open journal can take back ", tokens_ - tokens_used_,
                        " more: crop() or checkpoint() first, or construct with a larger max_draft");
  }
  bool recording() const { return open_ && !appends_.empty(); }
  Index newest() const { return static_cast<Index>(appends_.size()) - 1; }
  const Append& append(Index i) const { return appends_[static_cast<std::size_t>(i)]; }
  /// Index of the append that began at p, or behind a gap that began there; -1: none.
  Index find(Position p) const {
    for (std::size_t i = 0; i < appends_.size(); ++i)
      if (appends_[i].first == p || appends_[i].before.next == p) return static_cast<Index>(i);
    return -1;
  }

  /// Records the state before an append of `tokens` at position `first`.
  void record(Position first, const Progress& before, Index tokens, std::span<const HeadState> heads, const KvSlab<T>& slab,
              const Vector<S>& gate, const Matrix<S>& memory) {
    appends_.push_back({.first = first,
                        .before = before,
                        .tokens = tokens,
                        .first_saved = saved_.size(),
                        .first_swap = swaps_.size(),
                        .first_merge = merges_.size()});
    tokens_used_ += tokens;
    turns_.begin_append(newest());
    std::copy(heads.begin(), heads.end(), heads_before(newest()));
    std::copy_n(gate.data(), gate_memory_, gates_before_.data() + newest() * gate_memory_);
    std::copy_n(memory.data(), memory_, memory_before_.data() + newest() * memory_);
    for (Index h = 0; stats_ > 0 && h < heads_; ++h)
      stats_before(newest(), h, heads[static_cast<std::size_t>(h)].size) = stats_of(slab, heads, h);
  }

  /// Saves row `row` of `slab`, which token number `token` of the newest append is about to overwrite.
  void save_row(const KvSlab<T>& slab, Index head, Index row, Index token) {
    const Index slot = tokens_used_ - appends_.back().tokens + token;
    saved_rows_.copy_row(head, slot, slab, row);
    saved_.push_back(
        {static_cast<std::int32_t>(head), static_cast<std::int32_t>(row), static_cast<std::int32_t>(slot), turns_.detach(head, row)});
  }
  /// Throws   CapacityError if a merge of this many rows of a head could change more rows than the journal can save
  void check_merges(Index head, Index rows) const {
    if (rows > merged_rows_.shape().rows - merges_of_[static_cast<std::size_t>(head)])
      raise<CapacityError>("pith::KvCache: ", rows, " rows of a head leave at once and an open journal can keep ",
                           merged_rows_.shape().rows - merges_of_[static_cast<std::size_t>(head)],
                           " more merged ones: score fewer -inf, or construct with a larger max_draft");
  }
  /// Saves a row that a merge is about to change.
  void save_merged(const KvSlab<T>& slab, Index head, Index row) {
    const Index slot = merges_of_[static_cast<std::size_t>(head)]++;
    merged_rows_.copy_row(head, slot, slab, row);
    merges_.push_back(
        {static_cast<std::int32_t>(head), static_cast<std::int32_t>(row), static_cast<std::int32_t>(slot), turns_.detach(head, row)});
  }
  void record_swap(Index head, Index a, Index b) {
    PITH_ASSERT(swaps_.size() < swaps_.capacity());
    swaps_.push_back({static_cast<std::int32_t>(head), static_cast<std::int32_t>(a), static_cast<std::int32_t>(b)});
    turns_.swap_rows(head, a, b);
  }

  /// Throws   StateError for a turn that could not be undone
  void check_turn(const RopePairs<S>& rope) const {
    if (!recording()) return;  // before the first append there is nothing to undo
    if (turns_.turned(newest()))
      raise<StateError>("pith::KvCache: reindex() twice after one append inside a journal: call it once, after evict(), or crop() first");
    turns_.check(rope);
  }
  void begin_turn(const RopePairs<S>& rope) {
    if (recording()) turns_.begin(newest(), rope);
  }
  /// Saves the keys of a head that are about to be turned by these differences.
  void save_turn(const KvSlab<S>& slab, Index head, std::span<const Position> by) {
    if (recording()) turns_.save(slab, head, newest(), by);
  }

  /// Undoes all appends from number `to` on and returns the progress before that one.
  Progress undo_to(Index to, std::span<HeadState> heads, KvSlab<T>& slab, Vector<S>& gate, Matrix<S>& memory) {
    const Progress before = append(to).before;
    const Index made = static_cast<Index>(appends_.size());
    for (; newest() >= to; appends_.pop_back()) {
      undo(appends_.back(), slab);
      tokens_used_ -= appends_.back().tokens;
    }
    std::copy_n(heads_before(to), heads_, heads.begin());
    std::copy_n(gates_before_.data() + to * gate_memory_, gate_memory_, gate.data());
    std::copy_n(memory_before_.data() + to * memory_, memory_, memory.data());
    if constexpr (std::same_as<T, S>)
      for (Index h = 0; turns_.keeps() && h < heads_; ++h) turns_.undo(slab, h, heads[static_cast<std::size_t>(h)].size, to, made);
    turns_.forget_from(to);
    for (Index h = 0; stats_ > 0 && h < heads_; ++h)
      stats_of(slab, heads, h) = stats_before(to, h, heads[static_cast<std::size_t>(h)].size);
    return before;
  }

  void copy_state(const KvJournal& other) {
    open_ = other.open_;
    tokens_used_ = other.tokens_used_;
    appends_ = other.appends_;
    saved_ = other.saved_;
    swaps_ = other.swaps_;
    merges_ = other.merges_;
    merges_of_ = other.merges_of_;
    appends_.reserve(other.appends_.capacity());
    saved_.reserve(other.saved_.capacity());
    swaps_.reserve(other.swaps_.capacity());
    merges_.reserve(other.merges_.capacity());
    saved_rows_.copy_all(other.saved_rows_);
    merged_rows_.copy_all(other.merged_rows_);
    stats_before_ = other.stats_before_;
    heads_before_ = other.heads_before_;
    gates_before_ = other.gates_before_;
    memory_before_ = other.memory_before_;
    turns_ = other.turns_;
  }

  std::size_t bytes() const {
    return saved_rows_.bytes() + merged_rows_.bytes() + turns_.bytes() +
           (stats_before_.capacity() + gates_before_.capacity() + memory_before_.capacity()) * sizeof(S) +
           heads_before_.capacity() * sizeof(HeadState) + appends_.capacity() * sizeof(Append) +
           (saved_.capacity() + merges_.capacity()) * sizeof(Saved) + swaps_.capacity() * sizeof(Swap);
  }

 private:
  static std::size_t count(Index a, Index b) { return static_cast<std::size_t>(checked_product("KvCache", a, b)); }
  HeadState* heads_before(Index append) { return heads_before_.data() + append * heads_; }
  MatrixRef<S> stats_before(Index append, Index head, Index rows) {
    return {stats_before_.data() + (append * heads_ + head) * stats_ * rows_, stats_, rows, rows_};
  }
  static MatrixRef<S> stats_of(const KvSlab<T>& slab, std::span<const HeadState> heads, Index head) {
    return slab.stats(head, 0, heads[static_cast<std::size_t>(head)].size);
  }

  static SlabShape saved_shape(const SlabShape& home, Index rows) {
    return {.heads = home.heads, .rows = rows, .head_dim = home.head_dim, .angles = home.angles, .masses = home.masses};
  }

  /// Undoes one append, the newest change first: its merges, its evictions, then the rows it overwrote. Keys are turned back at the end.
  void undo(const Append& append, KvSlab<T>& slab) {
    for (; merges_.size() > append.first_merge; merges_.pop_back()) {
      restore(slab, merged_rows_, merges_.back());
      --merges_of_[static_cast<std::size_t>(merges_.back().head)];
    }
    for (; swaps_.size() > append.first_swap; swaps_.pop_back()) {
      const Swap& swap = swaps_.back();
      slab.swap_rows(swap.head, swap.a, swap.b);
      turns_.swap_rows(swap.head, swap.a, swap.b);
    }
    for (; saved_.size() > append.first_saved; saved_.pop_back()) restore(slab, saved_rows_, saved_.back());
  }
  void restore(KvSlab<T>& slab, const KvSlab<T>& from, const Saved& saved) {
    slab.copy_row(saved.head, saved.row, from, saved.slot);
    turns_.attach(saved.head, saved.row, saved.turned);
  }

  Index heads_ = 0, tokens_ = 0, rows_ = 0, stats_ = 0, gate_memory_ = 0, memory_ = 0, tokens_used_ = 0;
  bool open_ = false;
  std::vector<Append> appends_;
  std::vector<Saved> saved_;
  std::vector<Swap> swaps_;
  std::vector<Saved> merges_;
  std::vector<std::int32_t> merges_of_;  ///< [heads] number of saved rows
  KvSlab<T> saved_rows_, merged_rows_;
  std::vector<S> stats_before_;
  std::vector<HeadState> heads_before_;
  std::vector<S> gates_before_;   ///< [appends][gate_memory]
  std::vector<S> memory_before_;  ///< [appends][heads*memory]
  TurnJournal<S> turns_;
};

}}}  // namespace pith::v0::detail
