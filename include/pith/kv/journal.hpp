#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <span>
#include <vector>

#include <pith/core/types.hpp>
#include <pith/kv/cache_rules.hpp>
#include <pith/kv/storage.hpp>

namespace pith::inline v0::detail {

/// One head besides its rows.
struct HeadState {
  Index size = 0;      ///< rows
  Index cursor = 0;    ///< policies by age: the oldest row behind the initial ones
  Index observed = 0;  ///< tokens since the last eviction whose attention the policy was shown; with a window: up to which it was
  Index live = 0;      ///< rows that an open journal may bring back lie below this
};

/// What undoing needs, from a checkpoint on. Evicted rows are swapped behind the last retained one, so an eviction is undone by its swaps;
/// the only rows lost are those a later append lands on, and these are saved here. Keys that reindex() turns are saved as they were:
/// turning them back would round.
///
/// Heap     all of it at construction; recording allocates nothing
template <KvStorage T> class KvJournal {
 public:
  using S = arithmetic_t<T>;
  struct Swap {
    std::int32_t head, a, b;
  };
  /// One append and everything until the next.
  struct Append {
    Position first;   ///< of its tokens
    Progress before;  ///< how far the cache was
    Index tokens;
    std::size_t first_saved;  ///< its first overwritten row, in the order of saving
    std::size_t first_swap;   ///< its first swap
    std::size_t first_merge;  ///< its first row changed by a merge
    Index turned = 0;         ///< rows of each head whose keys were turned …
    std::size_t turn = 0;     ///< … before this swap
  };
  /// A row that was about to be lost, to an append or a merge: row `row` of `head`, kept as row `slot` of a slab.
  struct Saved {
    std::int32_t head, row, slot;
  };
  KvJournal() = default;
  KvJournal(const SlabShape& home, Index max_draft, Index max_swaps, Index max_merges, Index gate_memory)
      : heads_(home.heads),
        tokens_(max_draft + 1),
        rows_(home.rows),
        stats_(home.stats),
        gate_memory_(gate_memory),
        saved_rows_(saved_shape(home, tokens_)),
        merged_rows_(saved_shape(home, max_merges)),
        stats_before_(static_cast<std::size_t>(checked_product("KvCache", tokens_ * home.heads, home.stats * home.rows))),
        heads_before_(static_cast<std::size_t>(tokens_ * home.heads)),
        gates_before_(static_cast<std::size_t>(checked_product("KvCache", tokens_, gate_memory))),
        head_dim_(home.angles ? home.head_dim : 0),
        turned_keys_(static_cast<std::size_t>(checked_product("KvCache", tokens_ * home.heads * head_dim_, home.rows))),
        turned_angles_(static_cast<std::size_t>(home.angles ? tokens_ * home.heads * home.rows : 0)) {
    appends_.reserve(static_cast<std::size_t>(tokens_));
    saved_.reserve(static_cast<std::size_t>(tokens_ * home.heads));
    swaps_.reserve(static_cast<std::size_t>(checked_product("KvCache", max_swaps, home.heads)));
    merges_.reserve(static_cast<std::size_t>(checked_product("KvCache", max_merges, home.heads)));
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
  }

  void check_room(Index tokens) const {
    if (open_ && tokens > tokens_ - tokens_used_)
      raise<StateError>(text("pith::KvCache: ", tokens, " tokens, but the open journal can take back ", tokens_ - tokens_used_,
                             " more: crop() or checkpoint() first, or construct with a larger max_draft"));
  }
  bool recording() const { return open_ && !appends_.empty(); }
  Index newest() const { return static_cast<Index>(appends_.size()) - 1; }
  const Append& append(Index i) const { return appends_[static_cast<std::size_t>(i)]; }
  /// Index of the append that began at p, or -1.
  Index find(Position p) const {
    for (std::size_t i = 0; i < appends_.size(); ++i)
      if (appends_[i].first == p) return static_cast<Index>(i);
    return -1;
  }

  /// Notes how things stand before an append of `tokens` at position `first`.
  void record(Position first, const Progress& before, Index tokens, std::span<const HeadState> heads, const KvSlab<T>& slab,
              const Vector<S>& gate) {
    appends_.push_back({.first = first,
                        .before = before,
                        .tokens = tokens,
                        .first_saved = saved_.size(),
                        .first_swap = swaps_.size(),
                        .first_merge = merges_.size()});
    tokens_used_ += tokens;
    std::copy(heads.begin(), heads.end(), heads_before(newest()));
    std::copy_n(gate.data(), gate_memory_, gates_before_.data() + newest() * gate_memory_);
    for (Index h = 0; stats_ > 0 && h < heads_; ++h)
      stats_before(newest(), h, heads[static_cast<std::size_t>(h)].size) = stats_of(slab, heads, h);
  }

  /// Keeps row `row` of `slab`, which the k-th token of the newest append is about to overwrite.
  void save_row(const KvSlab<T>& slab, Index head, Index row, Index token) {
    const Index slot = tokens_used_ - appends_.back().tokens + token;
    saved_rows_.copy_row(head, slot, slab, row);
    saved_.push_back({static_cast<std::int32_t>(head), static_cast<std::int32_t>(row), static_cast<std::int32_t>(slot)});
  }
  /// Refuses to merge so many rows of a head that not all they go to could be kept.
  void check_merges(Index head, Index rows) const {
    if (rows > merged_rows_.shape().rows - merges_of_[static_cast<std::size_t>(head)])
      raise<CapacityError>(text("pith::KvCache: ", rows, " rows of a head leave at once and an open journal can keep ",
                                merged_rows_.shape().rows - merges_of_[static_cast<std::size_t>(head)],
                                " more merged ones: score fewer -inf, or construct with a larger max_draft"));
  }
  /// Keeps a row that a merge is about to change.
  void save_merged(const KvSlab<T>& slab, Index head, Index row) {
    const Index slot = merges_of_[static_cast<std::size_t>(head)]++;
    merged_rows_.copy_row(head, slot, slab, row);
    merges_.push_back({static_cast<std::int32_t>(head), static_cast<std::int32_t>(row), static_cast<std::int32_t>(slot)});
  }
  void record_swap(Index head, Index a, Index b) {
    PITH_ASSERT(swaps_.size() < swaps_.capacity());
    swaps_.push_back({static_cast<std::int32_t>(head), static_cast<std::int32_t>(a), static_cast<std::int32_t>(b)});
  }

  /// Keeps the keys and angles of all heads, which are about to be turned.
  void save_turn(KvSlab<S>& slab, Index rows) {
    if (!recording()) return;  // before the first append: nothing to return to
    Append& append = appends_.back();
    if (append.turned > 0)
      raise<StateError>("pith::KvCache: reindex() twice after one append inside a journal: call it once, after evict(), or crop() first");
    append.turned = rows;
    append.turn = swaps_.size();
    for (Index h = 0; h < heads_; ++h) {
      std::copy_n(slab.keys(h), rows * head_dim_, keys_before(newest(), h));
      std::copy_n(slab.angles(h), rows, angles_before(newest(), h));
    }
  }

  /// Takes back all appends from number `to` on and returns how far things were before that one.
  Progress undo_to(Index to, std::span<HeadState> heads, KvSlab<T>& slab, Vector<S>& gate) {
    const Progress before = append(to).before;
    for (; newest() >= to; appends_.pop_back()) {
      undo(appends_.back(), slab);
      tokens_used_ -= appends_.back().tokens;
    }
    std::copy_n(heads_before(to), heads_, heads.begin());
    std::copy_n(gates_before_.data() + to * gate_memory_, gate_memory_, gate.data());
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
    turned_keys_ = other.turned_keys_;
    turned_angles_ = other.turned_angles_;
  }

  std::size_t bytes() const {
    return saved_rows_.bytes() + merged_rows_.bytes() +
           (stats_before_.capacity() + gates_before_.capacity() + turned_keys_.capacity()) * sizeof(S) +
           turned_angles_.capacity() * sizeof(Position) + heads_before_.capacity() * sizeof(HeadState) +
           appends_.capacity() * sizeof(Append) + (saved_.capacity() + merges_.capacity()) * sizeof(Saved) +
           swaps_.capacity() * sizeof(Swap);
  }

 private:
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

  S* keys_before(Index append, Index head) { return turned_keys_.data() + (append * heads_ + head) * rows_ * head_dim_; }
  Position* angles_before(Index append, Index head) { return turned_angles_.data() + (append * heads_ + head) * rows_; }

  /// Its turn, its merges, its evictions, then the rows it landed on: the newest change first.
  void undo(const Append& append, KvSlab<T>& slab) {
    const auto unswap = [&](std::size_t down_to) {
      for (; swaps_.size() > down_to; swaps_.pop_back()) slab.swap_rows(swaps_.back().head, swaps_.back().a, swaps_.back().b);
    };
    if constexpr (std::same_as<T, S>) {
      if (append.turned > 0) unswap(append.turn);
      for (Index h = 0; append.turned > 0 && h < heads_; ++h) {
        std::copy_n(keys_before(newest(), h), append.turned * head_dim_, slab.keys(h));
        std::copy_n(angles_before(newest(), h), append.turned, slab.angles(h));
      }
    }
    for (; merges_.size() > append.first_merge; merges_.pop_back()) {
      slab.copy_row(merges_.back().head, merges_.back().row, merged_rows_, merges_.back().slot);
      --merges_of_[static_cast<std::size_t>(merges_.back().head)];
    }
    unswap(append.first_swap);
    for (; saved_.size() > append.first_saved; saved_.pop_back())
      slab.copy_row(saved_.back().head, saved_.back().row, saved_rows_, saved_.back().slot);
  }

  Index heads_ = 0, tokens_ = 0, rows_ = 0, stats_ = 0, gate_memory_ = 0, tokens_used_ = 0;
  bool open_ = false;
  std::vector<Append> appends_;
  std::vector<Saved> saved_;
  std::vector<Swap> swaps_;
  std::vector<Saved> merges_;
  std::vector<std::int32_t> merges_of_;  ///< [heads] rows kept for each
  KvSlab<T> saved_rows_, merged_rows_;
  std::vector<S> stats_before_;
  std::vector<HeadState> heads_before_;
  std::vector<S> gates_before_;  ///< [appends][gate_memory]
  Index head_dim_ = 0;           ///< 0 where no key is ever turned
  std::vector<S> turned_keys_;
  std::vector<Position> turned_angles_;
};

}  // namespace pith::inline v0::detail
