#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <pith/attention/rope.hpp>
#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/kv/detail/slab.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Records rotations ("turns") of keys so that crop() can undo them. A turn rounds, so turning back would not restore the old bits: the
/// journal saves each key before its first turn since the checkpoint, and the angle of every turn; crop() repeats the turns that remain.
///
/// Heap     all of it at construction
template <class S> class TurnJournal {
 public:
  TurnJournal() = default;
  /// `turns`: most turns to record; `fresh`: rows, besides those of the home, that may arrive or change between them.
  TurnJournal(const SlabShape& home, Index turns, Index fresh)
      : heads_(home.heads), rows_(home.rows), head_dim_(home.head_dim), slots_(home.rows + fresh) {
    const auto count = [](Index a, Index b) { return static_cast<std::size_t>(checked_product("KvCache", a, b)); };
    const Index all = checked_product("KvCache", heads_, slots_);
    slot_of_.resize(count(heads_, rows_), none);
    used_.resize(static_cast<std::size_t>(heads_));
    used_before_.resize(count(heads_, turns));
    keys_.resize(count(all, head_dim_));
    angles_.resize(static_cast<std::size_t>(all));
    deltas_.resize(count(all, turns));
    turned_.resize(static_cast<std::size_t>(turns));
    inv_freq_.resize(static_cast<std::size_t>(head_dim_ / 2));
  }

  bool keeps() const { return heads_ > 0; }
  /// Whether turn number `turn` was made.
  bool turned(Index turn) const { return keeps() && turned_[static_cast<std::size_t>(turn)] != 0; }
  void forget() {
    if (std::none_of(turned_.begin(), turned_.end(), [](char t) { return t != 0; })) return;
    std::fill(turned_.begin(), turned_.end(), char(0));
    std::fill(used_.begin(), used_.end(), Index(0));
    std::fill(slot_of_.begin(), slot_of_.end(), none);
  }

  /// Begins the append after which turn number `turn` may be made.
  void begin_append(Index turn) {
    if (keeps()) std::copy(used_.begin(), used_.end(), used_before_.begin() + turn * heads_);
  }
  /// Forgets the turns from number `to` on, after undo(): the saved keys of rows that only they turned are again the rows' own.
  void forget_from(Index to) {
    if (!keeps()) return;
    std::fill(turned_.begin() + to, turned_.end(), char(0));
    std::copy_n(used_before_.begin() + to * heads_, heads_, used_.begin());
    for (Index head = 0; head < heads_; ++head)
      for (Index row = 0; row < rows_; ++row)
        if (std::int32_t& slot = slot_of(head, row); slot >= used_[static_cast<std::size_t>(head)]) slot = none;
  }

  /// Throws   StateError for other pairs or frequencies than those of earlier turns
  void check(const RopePairs<S>& rope) const {
    if (std::any_of(turned_.begin(), turned_.end(), [](char t) { return t != 0; }) &&
        (rope.width != width_ || rope.interleaved != interleaved_ || !std::equal(rope.inv, rope.inv + rope.half(), inv_freq_.begin())))
      raise<StateError>("pith::KvCache: reindex() with another rope inside a journal: crop() to end it first");
  }
  void begin(Index turn, const RopePairs<S>& rope) {
    std::copy_n(rope.inv, rope.half(), inv_freq_.begin());
    width_ = rope.width;
    interleaved_ = rope.interleaved;
    std::fill_n(deltas(turn, 0), heads_ * slots_, 0);
    turned_[static_cast<std::size_t>(turn)] = 1;
  }
  /// Saves the keys of a head that are about to be turned.
  void save(const KvSlab<S>& slab, Index head, Index turn, std::span<const Position> by) {
    for (std::size_t r = 0; r < by.size(); ++r) {
      if (by[r] == 0) continue;
      const Index row = static_cast<Index>(r);
      std::int32_t& slot = slot_of(head, row);
      if (slot == none) {
        slot = static_cast<std::int32_t>(used_[static_cast<std::size_t>(head)]++);
        PITH_ASSERT(slot < slots_);
        std::copy_n(slab.key(head, row), head_dim_, key(head, slot));
        angles_[static_cast<std::size_t>(head * slots_ + slot)] = slab.angles(head)[row];
      }
      deltas(turn, head)[slot] = by[r];
    }
  }

  void swap_rows(Index head, Index a, Index b) {
    if (keeps()) std::swap(slot_of(head, a), slot_of(head, b));
  }
  /// Called before a row receives another key. When the old key is back, pass the returned slot to attach().
  std::int32_t detach(Index head, Index row) { return keeps() ? std::exchange(slot_of(head, row), none) : none; }
  void attach(Index head, Index row, std::int32_t slot) {
    if (keeps()) slot_of(head, row) = slot;
  }

  /// Restores the keys and angles that the first `rows` rows of a head had before turn number `to`, of `turns` made.
  void undo(KvSlab<S>& slab, Index head, Index rows, Index to, Index turns) const {
    S cosines[Rope<S>::max_head_dim];
    Position computed_at = 0;
    const RopePairs<S> rope{inv_freq_.data(), width_, interleaved_};
    for (Index row = 0; row < rows; ++row) {
      const std::int32_t slot = slot_of_[static_cast<std::size_t>(head * rows_ + row)];
      const auto delta = [&](Index turn) { return turned(turn) ? deltas(turn, head)[slot] : 0; };
      Index next = to;
      while (slot != none && next < turns && delta(next) == 0) ++next;
      if (slot == none || next == turns) continue;  // not turned since
      S* const k = slab.key(head, row);
      std::copy_n(key(head, slot), head_dim_, k);
      Position angle = angles_[static_cast<std::size_t>(head * slots_ + slot)];
      for (Index turn = 0; turn < to; ++turn) {
        const Position by = delta(turn);
        if (by == 0) continue;
        if (by != computed_at) rope.angles(by, cosines, cosines + rope.half());
        computed_at = by;
        rope.turn(k, cosines, cosines + rope.half());
        angle += by;
      }
      slab.angles(head)[row] = angle;
      slab.scout(head, row, 1);
    }
  }

  std::size_t bytes() const {
    return slot_of_.capacity() * sizeof(std::int32_t) + (used_.capacity() + used_before_.capacity()) * sizeof(Index) +
           (keys_.capacity() + inv_freq_.capacity()) * sizeof(S) + (angles_.capacity() + deltas_.capacity()) * sizeof(Position) +
           turned_.capacity();
  }

 private:
  static constexpr std::int32_t none = -1;
  std::int32_t& slot_of(Index head, Index row) { return slot_of_[static_cast<std::size_t>(head * rows_ + row)]; }
  S* key(Index head, Index slot) { return keys_.data() + (head * slots_ + slot) * head_dim_; }
  const S* key(Index head, Index slot) const { return keys_.data() + (head * slots_ + slot) * head_dim_; }
  Position* deltas(Index turn, Index head) { return deltas_.data() + (turn * heads_ + head) * slots_; }
  const Position* deltas(Index turn, Index head) const { return deltas_.data() + (turn * heads_ + head) * slots_; }

  Index heads_ = 0, rows_ = 0, head_dim_ = 0, slots_ = 0;
  std::vector<std::int32_t> slot_of_;  ///< [heads][rows] slot of a row's saved key, or none
  std::vector<Index> used_;            ///< [heads] number of saved keys
  std::vector<Index> used_before_;     ///< [turns][heads] the same before the append of each turn
  std::vector<S> keys_;                ///< [heads][slots][head_dim] keys before their first turn
  std::vector<Position> angles_;       ///< [heads][slots] angles of these keys
  std::vector<Position> deltas_;       ///< [turns][heads][slots] angle added by each turn
  std::vector<char> turned_;           ///< [turns] whether the turn was made
  std::vector<S> inv_freq_;            ///< [head_dim / 2] frequencies of the rope, the first width_ / 2
  Index width_ = 0;                    ///< features that its pairs cover
  bool interleaved_ = false;
};

}}}  // namespace pith::v0::detail
