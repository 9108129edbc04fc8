#pragma once

#include <algorithm>
#include <concepts>
#include <span>
#include <type_traits>
#include <utility>

#include <pith/attention/attend.hpp>
#include <pith/attention/kv_view.hpp>
#include <pith/attention/rope.hpp>
#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/kv/any_policy.hpp>
#include <pith/kv/detail/cache_internals.hpp>
#include <pith/kv/detail/cache_rules.hpp>
#include <pith/kv/detail/cache_state.hpp>
#include <pith/kv/detail/selection.hpp>
#include <pith/kv/detail/snapshots.hpp>
#include <pith/kv/options.hpp>
#include <pith/kv/policy.hpp>
#include <pith/kv/prompt_buffer.hpp>
#include <pith/kv/snapshot.hpp>
#include <pith/merge/any_merge.hpp>

namespace pith { inline namespace v0 {

/// The keys and values of ONE attention layer under an eviction policy. A model holds one per layer.
///
///   out = softmax(q K_Sᵀ / √head_dim) V_S,   S: the rows kept
///
///   KvCache cache(shape, SinkWindow{.sinks = 4, .window = 252});                 // of float
///   KvCache<half> merging(shape, HeavyHitter{}, {.max_chunk = 64}, Averaged{});  // evicted rows are merged into kept ones
///
/// A decoding loop calls four verbs: append() → read view() or keys()/values() → observe() if the policy watches attention → evict().
/// Rows are stored as given (the caller rotates the keys or does not), in no promised order; every row carries its position.
///
/// Heap     all of it at construction; no verb allocates
/// Law      after evict() a head exceeds budget() only by rows scored +inf; a second evict() changes nothing
/// Law      while no head has held more rows than its budget, attention is bit-identical to Dense
/// Law      crop() restores bit for bit, evictions included
template <KvStorage Storage = float> class KvCache {
 public:
  using Scalar = arithmetic_t<Storage>;

  /// `policy`: any policy of pith or yours. `merge`: what becomes of evicted rows; none given: they are dropped.
  ///
  /// Throws   ShapeError for an invalid shape or policy, CapacityError if that many rows cannot be held
  explicit KvCache(const AttentionShape& shape, AnyPolicy<Scalar> policy = {}, const KvCacheOptions& options = {},
                   AnyMerge<Scalar> merge = {});

  /// Makes room for `tokens` more rows per head before the next evict(): in the cache's own memory, or by moving into the prompt buffer.
  ///
  /// Throws   CapacityError if neither has room, StateError inside a journal
  void reserve(Index tokens, KvPromptBuffer<Storage>* prompt_buffer = nullptr);

  /// Adds tokens: k and v [tokens, num_kv_heads*head_dim]; keys that need rotation are already rotated.
  ///
  /// Numbers beyond the range of 16-bit rows are stored as the largest of their sign (65504 in half). Infinities and NaNs are stored
  /// unchanged (codes turn their whole block into NaN, rotations what they mix) and reach the output of every query that attends to the
  /// row.
  ///
  /// Cost     one rounding and copy per number
  /// Throws   ShapeError, CapacityError when full or positions run out, StateError past what an open journal can take back
  void append(ConstMatrixRef<Scalar> k, ConstMatrixRef<Scalar> v, const AppendOptions& options = {});

  /// Shows the policy the attention weights of the newest queries; attend() does it through observer(). Threads may call it for different
  /// kv heads at once. Queries that the policy does not watch (watching(), PolicyTraits::watches) are checked like all others and then left
  /// out.
  ///
  /// Throws   ShapeError if the weights do not cover this head's rows, or log_sum, queries or positions do not belong to them; StateError
  ///          if the policy never asked, for more queries than tokens were appended since the last eviction, or out of order under a
  ///          policy that watches the last ones
  void observe(const AttentionBlock<Scalar>& seen);

  /// The observer to pass to attend(), so that this cache's policy sees the weights.
  auto observer() {
    return [this](const AttentionTile<Scalar>& tile) {
      observe({tile.kv_head, tile.weights, tile.log_sum, tile.queries, tile.first_query});
    };
  }
  bool watching() const { return state_.rules.watches(state_.last); }  ///< the policy asks for the attention of the tokens just appended

  /// Brings every head back to its budget; `coming` makes room for that many more tokens, to be appended without an eviction.
  ///
  /// Returns  rows dropped, over all heads
  /// Cost     by age: the rows that move; by score: one score and one comparison per row of a head over its budget, else nothing
  /// Throws   StateError if the policy was not shown all attention, CapacityError if it protects more rows than the cache holds
  Index evict(Index coming = 0);

  /// Removes the tokens at first .. last - 1 from every head, without asking the policy; at cache positions the gap closes as well. No
  /// token becomes a sink in place of a removed one: newer tokens use its place in the budget and are evicted like others.
  ///
  /// Returns  rows dropped, over all heads
  /// Throws   StateError inside a journal, and for a window at cache positions, whose rows cannot move closer together
  Index drop(Position first, Position last);

  /// Whether reindex() must close the gaps after evict(): at cache positions, under a policy that does not evict by age.
  bool reindexes() const { return state_.rules.angles(); }
  /// Renumbers the rows by age without gaps and rotates their keys to match; crop() restores the old keys bit for bit.
  ///
  /// Cost     a rotation of every key behind the oldest gap
  /// Throws   UnsupportedError under dynamic rope, StateError if heads hold different numbers of rows or for a second rotation after one
  ///          append inside a journal
  void reindex(const Rope<Scalar>& rope) requires std::same_as<Storage, Scalar> {
    if constexpr (std::same_as<Storage, Scalar>)  // clang 14 compiles this for every class that is instantiated as a whole
      if (reindexes()) state_.reindex(rope);
  }

  /// Starts (or restarts) the journal: crop() can then return to the state before any token appended since.
  void checkpoint();
  bool can_crop(Position p) const;

  /// Restores the exact state before the token at position p was appended, and ends the journal; crop(next_position()) accepts all tokens.
  ///
  /// Throws   StateError unless an append since the checkpoint began at p, or behind a gap that did; Dense needs no checkpoint
  void crop(Position p);

  /// Removes every token; allocated memory, policy and options stay.
  void clear();

  /// An independent copy, journal included.
  KvCache clone() const;

  /// Copies the whole state as plain numbers. clone() is faster; a snapshot can be saved to a file.
  ///
  /// Throws   StateError in the middle of a prompt in a prompt buffer, or inside a journal
  KvSnapshot<Storage> snapshot() const;
  /// The reason why restore() would refuse a snapshot (another layout, rows that no cache could hold); empty if it would not.
  std::string problem(const KvSnapshot<Storage>& s) const;
  /// Restores the state of a cache of the same layout.
  ///
  /// Throws   ShapeError with the problem; the cache is then unchanged
  void restore(const KvSnapshot<Storage>& s);
  /// Copies all rows into a prefix layer that other caches can start from.
  ///
  /// Throws   StateError in the middle of a prompt, for tokens that are nearer than in the text (cache positions), and behind a learned
  ///          prefix
  KvPrefixLayer<Storage> freeze() const;

  /// [size(kv_head), head_dim] in storage order, contiguous, not a copy; valid until the next verb.
  ///
  /// `positions` states which positions your loop rotates its queries at, and must equal the cache's positions(): queries at text positions
  /// cannot read keys at cache positions. At cache positions your own loop
  ///   - under sinks + window reads the first sinks() rows with queries rotated at position - gap(), the others with ordinary queries
  ///     (examples/your_own_loop.cpp);
  ///   - under AtCachePositions rotates queries and keys at query_position() and calls reindex() after evict().
  ///
  /// Throws   StateError for other positions than the policy's
  Eigen::Map<const Matrix<Storage>> keys(Index kv_head,
                                         RopePositions positions = RopePositions::text) const requires PlainStorage<Storage> {
    state_.rules.check_rope_positions(positions);
    return {slab(kv_head).keys(kv_head), size(kv_head), shape().head_dim};
  }
  Eigen::Map<const Matrix<Storage>> values(Index kv_head) const requires PlainStorage<Storage> {
    return {slab(kv_head).values(kv_head), size(kv_head), shape().head_dim};
  }
  /// Copies the keys of any storage, widened: out [size(kv_head), head_dim].
  void copy_keys(Index kv_head, MatrixRef<Scalar> out, RopePositions positions = RopePositions::text) const {
    state_.rules.check_rope_positions(positions);
    check_shape("KvCache::copy_keys", "out", out, size(kv_head), shape().head_dim);
    for (Index r = 0; r < out.rows(); ++r) detail::widen_key<Storage>(slab(kv_head).key(kv_head, r), &out.coeffRef(r, 0), shape().head_dim);
  }
  void copy_values(Index kv_head, MatrixRef<Scalar> out) const {
    check_shape("KvCache::copy_values", "out", out, size(kv_head), shape().head_dim);
    for (Index r = 0; r < out.rows(); ++r)
      detail::widen_value<Storage>(slab(kv_head).value(kv_head, r), &out.coeffRef(r, 0), shape().head_dim);
  }
  std::span<const Position> positions(Index kv_head) const {
    return {slab(kv_head).positions(kv_head), static_cast<std::size_t>(size(kv_head))};
  }
  std::span<const TokenKind> kinds(Index kv_head) const { return {slab(kv_head).kinds(kv_head), static_cast<std::size_t>(size(kv_head))}; }
  /// [size(kv_head)] number of tokens each row stands for; empty if the cache merges nothing: one each.
  ConstVectorRef<Scalar> masses(Index kv_head) const {
    return {slab(kv_head).masses(kv_head), state_.rules.masses() ? size(kv_head) : Index(0)};
  }
  /// [stats, size(kv_head)] numbers that the policy keeps for each row.
  ConstMatrixRef<Scalar> stats(Index kv_head) const {
    state_.rules.check_head(kv_head);
    return state_.stats(kv_head, 0, size(kv_head));
  }
  /// A view of all rows for attend(); valid until the next verb.
  KvView<Storage> view() const { return {shape(), state_.next, state_.runs()}; }

  /// Options with the share that attention may skip and the counters of what it read.
  AttendOptions<Scalar> attend_options(AttendOptions<Scalar> options = {}) {
    options.skip_below = static_cast<Scalar>(state_.rules.options.skip_below);
    options.reads = &reads_;
    return options;
  }
  const AttentionReads& reads() const { return reads_; }  ///< what attention with attend_options() has read so far

  const AttentionShape& shape() const { return state_.rules.shape; }
  const AnyPolicy<Scalar>& policy() const { return policy_; }
  const PolicyFacts& facts() const { return state_.rules.facts; }  ///< what the policy does in this layer
  Index budget() const { return facts().budget; }
  RopePositions rope_positions() const {
    return facts().traits.positions;
  }  ///< positions that queries and keys are rotated at: pass them to keys()
  /// Number of rows in a head; heads may differ.
  Index size(Index kv_head) const {
    state_.rules.check_head(kv_head);
    return state_.size(kv_head);
  }
  Index capacity() const { return state_.home.shape().rows; }  ///< rows that a head's own memory holds, on average where heads share
  /// Number of tokens that fit one by one, with an eviction after each if the policy evicts while decoding.
  Index room() const { return state_.room(); }
  Position first_position() const { return state_.rules.first(); }  ///< position of the first token; not 0 behind a prefix
  Position next_position() const { return state_.next; }
  /// Position at which to rotate the next token's query and key: next_position(), or the one after the rows that reindex() has numbered.
  Position query_position() const { return reindexes() ? state_.next_rope_position : state_.next; }
  /// At cache positions, how much nearer the sinks are than in the text. Queries rotated at position - gap() read them
  /// (AttendOptions::q_sinks).
  Position gap() const { return state_.gap(); }
  /// Number of rows at the front of every head that those queries read; 0 while there is no gap.
  Index sinks() const { return gap() > 0 ? state_.initial() : 0; }
  std::size_t bytes() const { return state_.bytes(); }  ///< bytes allocated

 private:
  const detail::KvSlab<Storage>& slab(Index kv_head) const {
    state_.rules.check_head(kv_head);
    return state_.slab();
  }

  friend struct detail::CacheInternals;

  AnyPolicy<Scalar> policy_;
  AnyMerge<Scalar> merge_;
  detail::CacheState<Storage> state_;
  AttentionReads reads_;
};

}}  // namespace pith::v0

#include <pith/kv/detail/cache_verbs.hpp>
