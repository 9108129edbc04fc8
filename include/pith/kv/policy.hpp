#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>

#include <pith/attention/shape.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/kv/detail/select.hpp>
#include <pith/kv/policy_checks.hpp>

// What an eviction policy is: the members KvCache calls, what each is shown, and helpers for writing one.

namespace pith { inline namespace v0 {

inline constexpr Index unlimited = (std::numeric_limits<Index>::max)();    ///< the budget of a policy that never evicts
inline constexpr Index all_queries = (std::numeric_limits<Index>::max)();  ///< PolicyTraits::watches: every query of a prompt

/// Which positions queries and keys are rotated at once rows have been evicted.
enum class RopePositions : std::uint8_t {
  text,   ///< a token keeps its position in the text: gaps stay gaps, distances may exceed the trained length
  cache,  ///< rows become neighbours when the rows between them are evicted: distances never exceed the cache
};

template <class S> class LayerScores;  // layer_scores.hpp

/// The rows of one kv head as a policy reads them. Stored numbers are widened to the arithmetic type.
template <class S> struct KvRows {
  Index kv_head;                        ///< index of the head, for policies with per-head data
  AttentionShape shape;                 ///< heads and head_dim of the layer
  Position next;                        ///< position of the next token; ages and "newest" are relative to it
  std::span<const Position> positions;  ///< [rows] rows are in no particular order unless traits().ordered
  std::span<const TokenKind> kinds;     ///< [rows] text, image, …
  ConstMatrixRef<S> stats;              ///< [stats(shape), rows] per-row numbers from observe() and admit()
  Position first = 0;                   ///< position of the first token: not 0 behind a shared prefix
  ConstMatrixRef<S> keys = {};          ///< [rows, head_dim] as stored; in admit(), and in score() if traits().reads_rows
  ConstMatrixRef<S> values = {};        ///< [rows, head_dim] as stored; in admit(), and in score() if traits().reads_rows
  ConstVectorRef<S> memory = {};        ///< [memory(shape)] per-head numbers from observe()
  S* scratch = nullptr;                 ///< [rows] scratch memory for score()
  RankedRow<S>* candidates = nullptr;   ///< [rows] scratch memory for best_rows()
  Index size() const { return static_cast<Index>(positions.size()); }
};

/// Attention weights of the newest queries of one kv head: any tile of a chunk.
template <class S> struct AttentionBlock {
  Index kv_head = 0;
  ConstMatrixRef<S> weights;       ///< [queries*group, rows] softmax rows, query by query; columns = the head's rows in row order
  ConstVectorRef<S> log_sum = {};  ///< [queries*group] log Σ exp(logit)
  ConstMatrixRef<S> queries = {};  ///< [queries*group, head_dim] as rotated
  Position first_query = -1;       ///< position of the first query; -1: the newest tokens
  Index first_row = 0;             ///< row of the first query's token; the other queries' rows follow. KvCache fills it in
};

namespace detail {
/// The part of a block that belongs to its last n rows.
template <class S> AttentionBlock<S> last_queries(const AttentionBlock<S>& seen, Index n, Position first_query, Index first_row) {
  const auto last = [n](const ConstMatrixRef<S>& m) { return m.rows() == 0 ? m : ConstMatrixRef<S>(m.bottomRows(n)); };
  return {.kv_head = seen.kv_head,
          .weights = last(seen.weights),
          .log_sum = seen.log_sum.size() == 0 ? seen.log_sum : ConstVectorRef<S>(seen.log_sum.data() + seen.weights.rows() - n, n),
          .queries = last(seen.queries),
          .first_query = first_query,
          .first_row = first_row};
}
}  // namespace detail

/// What a policy needs from the cache and the attention kernel.
struct PolicyTraits {
  bool prompt_only = false;  ///< evicts when a prompt ends, never while decoding
  bool ragged = false;       ///< heads share a budget: combine() may leave one head more rows than another (prompt_only)
  bool ordered = false;      ///< score() reads neighbours: rows arrive in ascending position
  bool keeps_newest = true;  ///< the cache protects the newest row regardless of its score
  bool reads_rows = false;   ///< score() reads keys and values; admit() always sees those of the fresh rows
  RopePositions positions = RopePositions::text;  ///< cache: policies by age move no key, KvCache::reindex() rotates the others'
  Index watches = all_queries;                    ///< observe() is shown this many last queries of every piece of a prompt (QueryWindow)
  bool needs_log_sum = false;                     ///< observe() reads AttentionBlock::log_sum
  bool needs_queries = false;                     ///< observe() reads AttentionBlock::queries, as rotated at text positions
  bool uneven = false;                            ///< score() drops rows by -inf: one head may keep fewer than another
  bool decides = false;                           ///< final scores are only +inf and -inf: a wrapper finds no score to share out or average
  bool overfills = false;  ///< may score more rows +inf than budget(): a Session then copies its rows before a later prompt, as a backup
  bool eager = false;      ///< is asked for scores within its budget too: rows that it scores -inf leave at once
};

// A policy is a value that can be copied, with these members. AnyPolicy, and so every cache and session, can be made from one; a mistake
// in a member is a compile error that says which. Members that mention S, the arithmetic type, may be templates.
//
// Every policy has
//   Index budget() const                                    rows that a head keeps
// and evicts in one way:
//   void score(const KvRows<S>& rows, VectorRef<S> out) const
//                                                           one score per row: +inf always stays, even beyond the budget, -inf always
//                                                           leaves; of the others the best stay
//   Index initial() const                                   by age: the oldest leave, but never the first initial() tokens
//   (neither)                                               static constexpr budget() == unlimited: every row stays
// It may have
//   PolicyTraits traits() const                             what it needs of the cache and the attention kernel
//   void check(const AttentionShape&) const                 throws if its numbers are invalid for this layer (policy_checks.hpp); called
//   before
//                                                           other members
//   Index retain() const                                    rows left by one eviction, 1 .. budget(); less: evictions are rarer and larger
//   Index stats(const AttentionShape&) const                numbers kept for each row; they move with their row. Filled by
//     void observe(const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S> stats) const
//                                                             every tile of attention weights, or by
//     void admit(const KvRows<S>& fresh, MatrixRef<S> stats) const
//                                                             every appended row, once
//   Index memory(const AttentionShape&) const               numbers kept for each head: observe() takes VectorRef<S> memory as well
//   void combine(LayerScores<S>& layer) const               rewrites the scores of all heads together, after score() of each

/// score = `given`, with +inf for the newest `count` rows: for policies that keep a recent window besides the rows they score.
template <class S> void keep_newest(const KvRows<S>& rows, Index count, const S* given, VectorRef<S> score) {
  const auto oldest_kept = static_cast<Position>((std::max)(Index(rows.next) - count, Index((std::numeric_limits<Position>::min)())));
  const Position* const positions = rows.positions.data();
  S* const scores = score.data();
  for (Index i = 0; i < rows.size(); ++i) scores[i] = positions[i] >= oldest_kept ? std::numeric_limits<S>::infinity() : given[i];
}
template <class S> void keep_newest(const KvRows<S>& rows, Index count, VectorRef<S> score) {
  keep_newest<S>(rows, count, score.data(), score);
}

/// sums += the sum of the rows of `weights`: accumulates attention. Four rows are added at a time, so sums are read a quarter as often.
template <class S> void add_rows(const ConstMatrixRef<S>& weights, MatrixRef<S> sums) {
  Index q = 0;
  for (; q + 4 <= weights.rows(); q += 4) sums.row(0) += (weights.row(q) + weights.row(q + 1)) + (weights.row(q + 2) + weights.row(q + 3));
  for (; q < weights.rows(); ++q) sums.row(0) += weights.row(q);
}

/// Calls take(row) for the `count` rows of highest score, in score() or combine(); never for -inf; among equal scores newer rows win.
template <class S, class F> void best_rows(const KvRows<S>& rows, const ConstVectorRef<S>& score, Index count, F&& take) {
  Index n = 0;
  for (Index r = 0; r < rows.size(); ++r)
    if (score[r] != -std::numeric_limits<S>::infinity())
      rows.candidates[n++] = {detail::ordered(score[r]), rows.positions[static_cast<std::size_t>(r)], static_cast<std::int32_t>(r)};
  count = std::clamp(count, Index(0), n);
  if (count > 0 && count < n)
    std::nth_element(rows.candidates, rows.candidates + count, rows.candidates + n, [](const auto& a, const auto& b) { return b < a; });
  for (Index i = 0; i < count; ++i) take(Index(rows.candidates[i].row));
}

}}  // namespace pith::v0
