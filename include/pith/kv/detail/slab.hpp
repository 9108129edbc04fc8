#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/attention/detail/stored_rows.hpp>
#include <pith/attention/kv_view.hpp>
#include <pith/attention/scout.hpp>
#include <pith/core/bulk.hpp>
#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/kv/detail/select.hpp>
#include <pith/merge/merge_rows.hpp>
#include <pith/merge/similarity.hpp>

// The memory of a cache: rows of all kv heads of a layer in one allocation.

namespace pith { inline namespace v0 { namespace detail {

/// Workspace bytes for matching up to `evicted` rows of a head at once and merging any of its rows.
template <class S> std::size_t merging_bytes(Index rows, Index evicted, Index head_dim, Index workers) {
  return (std::max)(nearest_workspace_bytes<S>(rows, head_dim, workers, evicted), merge_workspace_bytes<S>(rows, rows));
}

/// Sizes and optional parts of a slab; they determine every byte count and offset.
struct SlabShape {
  Index heads = 0, rows = 0, head_dim = 0, stats = 0;
  bool angles = false;      ///< a second position per row, the one its key is rotated at
  bool scores = false;      ///< memory for the scores of all heads' rows and for selecting among one head's
  bool combines = false;    ///< memory for selecting among the rows of all heads
  bool widened = false;     ///< memory for one head's keys and values in the arithmetic type
  bool masses = false;      ///< the number of tokens that each row stands for
  bool log_masses = false;  ///< … and its logarithm, for attention
  bool merges = false;      ///< memory for the match of each evicted row
  bool scouts = false;      ///< scout codes of the keys
};

/// The rows of every kv head of one layer with their keys, values, positions and stats, in one allocation. Heads follow one another, each
/// with `rows` rows until divide() changes their shares.
///
/// Heap     one allocation, at construction; pages are touched as rows arrive
template <KvStorage T> class KvSlab {
 public:
  using S = arithmetic_t<T>;

  KvSlab() = default;
  explicit KvSlab(const SlabShape& shape)
      : shape_(shape), key_units_(key_units<T>(shape.head_dim)), value_units_(value_units<T>(shape.head_dim)) {
    std::size_t offset = 0;
    const auto part = [&]<class X>(X*, Index count) {
      const std::size_t at = offset;
      const Index bytes = checked_product("KvCache", count, static_cast<Index>(sizeof(X)));
      if (bytes > max_bytes - static_cast<Index>(offset)) raise<CapacityError>("pith::KvCache: ", shape.rows, " rows are too many");
      offset += Workspace::bytes_for<X>(count);
      return at;
    };
    const Index all = checked_product("KvCache", shape.heads, shape.rows);
    const Index most = most_rows();
    keys_ = part(static_cast<T*>(nullptr), checked_product("KvCache", all, key_units_));
    values_ = part(static_cast<T*>(nullptr), checked_product("KvCache", all, value_units_));
    positions_ = part(static_cast<Position*>(nullptr), all);
    angles_ = part(static_cast<Position*>(nullptr), shape.angles ? all : 0);
    kinds_ = part(static_cast<TokenKind*>(nullptr), all);
    stats_ = part(static_cast<S*>(nullptr), checked_product("KvCache", all, shape.stats));
    scores_ = part(static_cast<S*>(nullptr), shape.scores ? all : 0);
    scratch_ = part(static_cast<S*>(nullptr), shape.scores ? most : 0);
    candidates_ = part(static_cast<RankedRow<S>*>(nullptr), shape.scores || shape.merges ? most : 0);
    victims_ = part(static_cast<std::int32_t*>(nullptr), shape.scores ? (shape.angles ? 2 : 1) * most : 0);
    widened_ = part(static_cast<S*>(nullptr), shape.widened ? checked_product("KvCache", 2 * most, shape.head_dim) : 0);
    masses_ = part(static_cast<S*>(nullptr), shape.masses ? all : 0);
    log_masses_ = part(static_cast<float*>(nullptr), shape.log_masses ? all : 0);
    matches_ = part(static_cast<std::int32_t*>(nullptr), shape.merges ? all : 0);
    cosines_ = part(static_cast<S*>(nullptr), shape.merges ? all : 0);
    scouts_ = part(static_cast<std::byte*>(nullptr), shape.scouts ? checked_product("KvCache", all, scout_row_bytes(shape.head_dim)) : 0);
    bytes_ = offset;
    memory_ = allocate_bulk(bytes_);
    starts_.resize(static_cast<std::size_t>(shape.heads + 1));
    divide_evenly();
  }

  const SlabShape& shape() const { return shape_; }
  std::size_t bytes() const { return bytes_; }
  Index total_rows() const { return shape_.heads * shape_.rows; }
  Index rows(Index head) const { return start(head + 1) - start(head); }
  /// The most rows that a head can hold; if heads share their rows, one head can hold nearly all.
  Index most_rows() const { return shape_.combines ? total_rows() : shape_.rows; }
  void divide_evenly() {
    for (Index h = 0; h <= shape_.heads; ++h) starts_[static_cast<std::size_t>(h)] = h * shape_.rows;
  }
  /// Gives a head `rows` rows, or as many as are left, behind the heads before it.
  void put_head(Index head, Index rows) { starts_[static_cast<std::size_t>(head + 1)] = (std::min)(start(head) + rows, total_rows()); }
  /// Gives every head its own rows and an equal share of the free ones: packs all rows in front, then spreads the heads, last one first.
  template <class Size> void divide(Size&& size) {
    const auto move = [this](Index to, Index from) {
      if (to != from) copy_row(0, to, *this, from);
    };
    Index end = 0;
    for (Index h = 0; h < shape_.heads; end += size(h++))
      for (Index r = 0; r < size(h); ++r) move(end + r, start(h) + r);
    const Index room = (total_rows() - end) / shape_.heads;
    starts_.back() = total_rows();
    for (Index h = shape_.heads - 1; h >= 0; --h) {
      end -= size(h);
      for (Index r = size(h) - 1; r >= 0; --r) move(end + h * room + r, end + r);
      starts_[static_cast<std::size_t>(h)] = end + h * room;
    }
  }
  Index start(Index head) const { return starts_[static_cast<std::size_t>(head)]; }

  Index key_stride() const { return key_units_; }  ///< units of T from one row to the next
  Index value_stride() const { return value_units_; }
  T* keys(Index head) const { return at<T>(keys_) + start(head) * key_units_; }
  T* values(Index head) const { return at<T>(values_) + start(head) * value_units_; }
  T* key(Index head, Index row) const { return keys(head) + row * key_units_; }
  T* value(Index head, Index row) const { return values(head) + row * value_units_; }
  Position* positions(Index head) const { return at<Position>(positions_) + start(head); }
  Position* angles(Index head) const { return at<Position>(angles_) + start(head); }
  TokenKind* kinds(Index head) const { return at<TokenKind>(kinds_) + start(head); }
  /// [stats, count] stats of the rows from `first` on.
  MatrixRef<S> stats(Index head, Index first, Index count) const {
    return {at<S>(stats_) + start(head) + first, shape_.stats, count, stats_stride()};
  }
  Index stats_stride() const { return total_rows(); }
  S* scores(Index head) const { return at<S>(scores_) + start(head); }
  S* scratch() const { return at<S>(scratch_); }
  RankedRow<S>* candidates() const { return at<RankedRow<S>>(candidates_); }
  std::int32_t* victims() const { return at<std::int32_t>(victims_); }
  S* masses(Index head) const { return at<S>(masses_) + start(head); }
  const float* log_masses(Index head) const { return shape_.log_masses ? at<float>(log_masses_) + start(head) : nullptr; }
  void set_mass(Index head, Index row, S mass) {
    if (!shape_.masses) return;
    masses(head)[row] = mass;
    if (shape_.log_masses) at<float>(log_masses_)[start(head) + row] = std::log(static_cast<float>(mass));
  }
  std::int32_t* matches(Index head) const { return at<std::int32_t>(matches_) + start(head); }
  S* cosines(Index head) const { return at<S>(cosines_) + start(head); }
  S* widened() const { return at<S>(widened_); }
  /// Keys and values of n rows in the arithmetic type: in place, or widened into the slab's own scratch.
  std::pair<const S*, const S*> widened_rows(Index head, Index first, Index n) const {
    if constexpr (std::is_same_v<T, S>) {
      return {key(head, first), value(head, first)};
    } else {
      S* const k = widened();
      S* const v = k + n * shape_.head_dim;
      for (Index r = 0; r < n; ++r) {
        widen_key(key(head, first + r), k + r * shape_.head_dim, shape_.head_dim);
        widen_value(value(head, first + r), v + r * shape_.head_dim, shape_.head_dim);
      }
      return {k, v};
    }
  }

  /// Scout codes of a head's keys; nullptr if the slab has none.
  std::byte* scouts(Index head) const {
    return shape_.scouts ? at<std::byte>(scouts_) + start(head) * scout_row_bytes(shape_.head_dim) : nullptr;
  }
  /// Writes the scout codes of rows whose keys have changed.
  void scout(Index head, Index first, Index count) {
    using Key = typename KvParts<T>::Key;
    if constexpr (std::is_same_v<S, float> && PlainStorage<coded_t<Key>>)
      for (Index r = first; shape_.scouts && r < first + count; ++r)
        scout_encode(reinterpret_cast<const coded_t<Key>*>(key(head, r)), shape_.head_dim,
                     scouts(head) + r * scout_row_bytes(shape_.head_dim));
  }

  /// Stores a row given in the arithmetic type, rounded once.
  void write_row(Index head, Index row, const S* k, const S* v, Position position, Position angle, TokenKind kind, S mass) {
    narrow_key<T>(k, key(head, row), shape_.head_dim);
    narrow_value<T>(v, value(head, row), shape_.head_dim);
    positions(head)[row] = position;
    if (shape_.angles) angles(head)[row] = angle;
    kinds(head)[row] = kind;
    set_mass(head, row, mass);
    scout(head, row, 1);
  }

  /// Copies one row with its position, kind, stats and mass from another slab or another place in this one. Either slab may lack parts that
  /// the other has.
  void copy_row(Index head, Index to, const KvSlab& from, Index from_row) {
    const auto bytes = [](Index units) { return static_cast<std::size_t>(units) * sizeof(T); };
    std::memcpy(key(head, to), from.key(head, from_row), bytes(key_units_));
    std::memcpy(value(head, to), from.value(head, from_row), bytes(value_units_));
    positions(head)[to] = from.positions(head)[from_row];
    kinds(head)[to] = from.kinds(head)[from_row];
    if (shape_.angles && from.shape_.angles) angles(head)[to] = from.angles(head)[from_row];
    S* const ours = stats(head, to, 1).data();
    const S* const theirs = from.stats(head, from_row, 1).data();
    for (Index s = 0; s < (std::min)(shape_.stats, from.shape_.stats); ++s) ours[s * stats_stride()] = theirs[s * from.stats_stride()];
    set_mass(head, to, from.shape_.masses ? from.masses(head)[from_row] : S(1));
    if (shape_.scouts && from.shape_.scouts) {
      const Index n = scout_row_bytes(shape_.head_dim);
      std::memcpy(scouts(head) + to * n, from.scouts(head) + from_row * n, static_cast<std::size_t>(n));
    } else {
      scout(head, to, 1);
    }
  }

  void swap_rows(Index head, Index a, Index b) {
    std::swap_ranges(key(head, a), key(head, a) + key_units_, key(head, b));
    std::swap_ranges(value(head, a), value(head, a) + value_units_, value(head, b));
    std::swap(positions(head)[a], positions(head)[b]);
    std::swap(kinds(head)[a], kinds(head)[b]);
    if (shape_.angles) std::swap(angles(head)[a], angles(head)[b]);
    S* const of_a = stats(head, a, 1).data();
    S* const of_b = stats(head, b, 1).data();
    for (Index s = 0; s < shape_.stats; ++s) std::swap(of_a[s * stats_stride()], of_b[s * stats_stride()]);
    if (shape_.scouts) {
      const Index n = scout_row_bytes(shape_.head_dim);
      std::swap_ranges(scouts(head) + a * n, scouts(head) + (a + 1) * n, scouts(head) + b * n);
    }
    if (shape_.masses) {
      const S mass = masses(head)[a];
      set_mass(head, a, masses(head)[b]);
      set_mass(head, b, mass);
    }
  }

  void copy_all(const KvSlab& from) {
    starts_ = from.starts_;
    if (bytes_ > 0) std::memcpy(memory_.get(), from.memory_.get(), bytes_);
  }

 private:
  static constexpr Index max_bytes = (std::numeric_limits<Index>::max)() / 2;
  template <class X> X* at(std::size_t offset) const { return reinterpret_cast<X*>(memory_.get() + offset); }

  SlabShape shape_;
  Index key_units_ = 0, value_units_ = 0;
  std::size_t keys_ = 0, values_ = 0, positions_ = 0, angles_ = 0, kinds_ = 0, stats_ = 0, scores_ = 0, scratch_ = 0, candidates_ = 0,
              victims_ = 0, widened_ = 0, masses_ = 0, log_masses_ = 0, matches_ = 0, cosines_ = 0, scouts_ = 0, bytes_ = 0;
  Bulk memory_;
  std::vector<Index> starts_;  ///< [heads + 1] first row of each head
};

}}}  // namespace pith::v0::detail
