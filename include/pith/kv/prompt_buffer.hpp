#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <type_traits>

#include <pith/attention/kv_view.hpp>
#include <pith/attention/shape.hpp>
#include <pith/core/check.hpp>
#include <pith/kv/detail/slab.hpp>

// A buffer for prompts longer than a cache's budget, shared by the layers of a session.

namespace pith { inline namespace v0 {

namespace detail {
template <KvStorage T> class PromptBufferLease;
}  // namespace detail

/// What a prompt buffer must provide for the caches that will use it: of each number, the largest that any of them needs.
struct KvPromptBufferOptions {
  Index stats = 0;                ///< numbers per row
  bool reads_rows = false;        ///< some score() or admit() reads keys and values
  bool combines = false;          ///< some policy combines the scores of all heads
  bool cache_positions = false;   ///< some policy uses cache positions
  bool keep_masses = false;       ///< merged rows count as the tokens they stand for
  bool merges = false;            ///< some cache merges what it evicts
  ExecutorRef executor = serial;  ///< threads for merging; must outlive the prompt buffer
};

/// Memory for a chunk longer than a cache's budget, which the layers of a session borrow one after another: KvCache::reserve() moves the
/// rows in, evict() moves the survivors back. Only one layer at a time holds a whole prompt; a second cache is refused until then.
///
/// Heap     one allocation, at construction
template <KvStorage T = float> class KvPromptBuffer {
 public:
  /// Holds `rows` rows per head: the longest chunk plus the largest budget among the caches.
  ///
  /// Throws   ShapeError for an invalid shape, rows or stats, CapacityError if that many rows cannot be held
  KvPromptBuffer(const AttentionShape& shape, Index rows, const KvPromptBufferOptions& options = {})
      : slab_({.heads = shape.num_kv_heads,
               .rows = checked_rows(shape, rows, options),
               .head_dim = shape.head_dim,
               .stats = options.stats,
               .angles = options.cache_positions,
               .scores = true,
               .combines = options.combines,
               .widened = (options.reads_rows || options.merges) && !std::is_same_v<T, arithmetic_t<T>>,
               .masses = options.merges || options.keep_masses,
               .log_masses = options.keep_masses,
               .merges = options.merges}),
        merging_(options.merges
                     ? detail::merging_bytes<arithmetic_t<T>>(slab_.most_rows(), slab_.most_rows(), shape.head_dim, options.executor.size())
                     : 0,
                 options.executor) {}
  /// An empty buffer of the same sizes and executor, for the layers of another session.
  KvPromptBuffer another() const { return KvPromptBuffer(slab_.shape(), merging_); }
  std::size_t bytes() const { return slab_.bytes() + merging_.bytes(); }
  Index rows() const { return slab_.shape().rows; }
  detail::KvSlab<T>& slab() { return slab_; }
  const detail::KvSlab<T>& slab() const { return slab_; }
  Workspace& merging() { return merging_; }

  /// Throws   CapacityError if `rows` rows per head do not fit, ShapeError if a cache of this layout cannot use this buffer
  void check_fits(const detail::SlabShape& home, Index rows) const {
    const detail::SlabShape& ours = slab_.shape();
    if (rows > ours.rows) raise<CapacityError>("pith::KvCache: ", rows, " rows a head are needed, the prompt buffer holds ", ours.rows);
    if (ours.heads != home.heads || ours.head_dim != home.head_dim || ours.stats < home.stats || (home.widened && !ours.widened) ||
        (home.combines && !ours.combines) || (home.angles && !ours.angles) || (home.masses && !ours.masses) ||
        (home.log_masses && !ours.log_masses) || (home.merges && !ours.merges))
      raise<ShapeError>("pith::KvCache: the prompt buffer holds ", ours.heads, " heads of ", ours.head_dim, " with ", ours.stats,
                        " stats, the cache needs ", home.heads, " of ", home.head_dim, " with ", home.stats);
  }

 private:
  friend class detail::PromptBufferLease<T>;
  KvPromptBuffer(const detail::SlabShape& shape, const Workspace& merging) : slab_(shape), merging_(merging.bytes(), merging.executor()) {}
  static Index checked_rows(const AttentionShape& shape, Index rows, const KvPromptBufferOptions& options) {
    shape.check("KvPromptBuffer");
    if (rows < 1 || rows > (std::numeric_limits<std::int32_t>::max)())
      raise<ShapeError>("pith::KvPromptBuffer: ", rows, " rows a head, expected 1 .. 2147483647");
    if (options.stats < 0) raise<ShapeError>("pith::KvPromptBuffer: ", options.stats, " stats a row, expected 0 or more");
    return rows;
  }

  detail::KvSlab<T> slab_;
  Workspace merging_;
  std::shared_ptr<bool> lent_ = std::make_shared<bool>(false);
};

}}  // namespace pith::v0
