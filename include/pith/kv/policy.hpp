#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <limits>
#include <span>

#include <pith/attention/shape.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/kv/detail/policy_checks.hpp>
#include <pith/kv/detail/select.hpp>

namespace pith { inline namespace v0 {

inline constexpr Index unlimited = (std::numeric_limits<Index>::max)();    ///< the budget of a policy that never evicts
inline constexpr Index all_queries = (std::numeric_limits<Index>::max)();  ///< PolicyTraits::watches: every query of a prompt

/// Which positions queries and keys are rotated at, once rows have left.
enum class RopePositions : std::uint8_t {
  text,   ///< a token keeps its place in the text: gaps stay gaps, distances may exceed the trained length
  cache,  ///< rows count as neighbours once what lay between them is gone: distances never exceed the cache
};

template <class S> class LayerScores;  // layer_scores.hpp

/// One kv head as a policy sees it: all it may look at, nothing it may change. Stored numbers come widened to the arithmetic type.
template <class S> struct KvRows {
  Index kv_head;                        ///< for per-head data a policy carries
  AttentionShape shape;                 ///< of the layer
  Position next;                        ///< position of the token to come; ages and "newest" are relative to it
  std::span<const Position> positions;  ///< [rows] rows are in no particular order unless traits().ordered
  std::span<const TokenKind> kinds;     ///< [rows] text, image, …
  ConstMatrixRef<S> stats;              ///< [stats(shape), rows] what observe() and admit() left
  Position first = 0;                   ///< position of the first token: not 0 behind a shared prefix
  ConstMatrixRef<S> keys = {};          ///< [rows, head_dim] as stored; in admit(), and in score() if traits().reads_rows
  ConstMatrixRef<S> values = {};        ///< [rows, head_dim] as stored; in admit(), and in score() if traits().reads_rows
  ConstVectorRef<S> memory = {};        ///< [memory(shape)] what observe() left of the head as a whole
  S* scratch = nullptr;                 ///< [rows] for score() to use as it likes
  RankedRow<S>* candidates = nullptr;   ///< [rows] for best_rows()
  Index size() const { return static_cast<Index>(positions.size()); }
};

/// What the queries of one kv head just looked at: any tile of a chunk.
template <class S> struct AttentionBlock {
  Index kv_head = 0;
  ConstMatrixRef<S> weights;       ///< [queries*group, rows] softmax rows, query by query; columns = own rows in row order
  ConstVectorRef<S> log_sum = {};  ///< [queries*group] log Σ exp(logit)
  ConstMatrixRef<S> queries = {};  ///< [queries*group, head_dim] as rotated
  Position first_query = -1;       ///< position of the first query; -1: the newest tokens
  Index first_row = 0;             ///< row of the first query's token, those of the others follow; filled in for policies by KvCache
};

namespace detail {
/// What the last n rows of a block saw.
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

/// What a policy asks of the cache and the kernel.
struct PolicyTraits {
  bool prompt_only = false;                       ///< evicts when a prompt ends, never while decoding
  bool ragged = false;                            ///< heads share their rows: combine() may leave one head more than another (prompt_only)
  bool ordered = false;                           ///< score() reads neighbours: rows arrive in ascending position
  bool keeps_newest = true;                       ///< the cache protects the newest row, whatever its score
  bool reads_rows = false;                        ///< score() looks at keys and values; admit() sees those of the fresh rows in any case
  RopePositions positions = RopePositions::text;  ///< cache: policies by age move no key, others are turned by KvCache::reindex()
  Index watches = all_queries;  ///< observe() is shown so many of the last queries of every piece of a prompt (QueryWindow)
  bool needs_log_sum = false;   ///< observe() reads AttentionBlock::log_sum
  bool needs_queries = false;   ///< observe() reads AttentionBlock::queries, as rotated at text positions
  bool uneven = false;          ///< score() drops rows by -inf: one head may keep fewer than another
  bool decides = false;         ///< leaves only +inf and -inf in the end: no score that a wrapper could share out or average
  bool overfills = false;       ///< may score more rows +inf than budget(): a later prompt costs a Session a copy of its rows, to return to
};

template <class P>
concept CachePolicy = std::copyable<P> && requires(const P p) {
  { p.budget() } -> std::convertible_to<Index>;
};

/// Rows leave in order of age, the first initial() tokens never: Window, SinkWindow. The cache asks for no scores and evicts in O(1).
template <class P>
concept AgePolicy = CachePolicy<P> && requires(const P p) {
  { p.initial() } -> std::convertible_to<Index>;
};

/// One number a row: +inf stays even beyond the budget, -inf goes, the rest competes for what is left.
template <class P, class S>
concept ScoringPolicy = CachePolicy<P> && requires(const P p, const KvRows<S>& rows, VectorRef<S> score) {
  p.score(rows, score);
};

/// Numbers kept beside each row, [stats(shape), rows]; they move with their row.
template <class P>
concept HasStats = requires(const P p, const AttentionShape& shape) {
  { p.stats(shape) } -> std::convertible_to<Index>;
};

/// Watches attention: observe() is shown every tile of softmax rows and updates the stats.
template <class P, class S>
concept ObservingPolicy = ScoringPolicy<P, S> && HasStats<P> &&
    requires(const P p, const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S> stats) {
  p.observe(seen, rows, stats);
};

/// Stats of the row alone, computed once at append.
template <class P, class S>
concept AdmittingPolicy = ScoringPolicy<P, S> && HasStats<P> && requires(const P p, const KvRows<S>& fresh, MatrixRef<S> stats) {
  p.admit(fresh, stats);
};

/// Keeps numbers of a head as a whole besides, [memory(shape)]: observe() is given them after the stats.
template <class P, class S>
concept RememberingPolicy = ScoringPolicy<P, S> && requires(const P p, const AttentionShape& shape, const AttentionBlock<S>& seen,
                                                            const KvRows<S>& rows, MatrixRef<S> stats, VectorRef<S> memory) {
  { p.memory(shape) } -> std::convertible_to<Index>;
  p.observe(seen, rows, stats, memory);
};

/// Rewrites the scores of all kv heads of a layer together, after score() has filled each.
template <class P, class S>
concept CombiningPolicy = ScoringPolicy<P, S> && requires(const P p, LayerScores<S>& layer) {
  p.combine(layer);
};

/// Keeps every row and has no budget: Dense.
template <class P>
concept NeverEvicts = CachePolicy<P> && P::budget()
== unlimited;

/// What KvCache accepts; never a stats() that nobody fills.
template <class P, class S>
concept WholePolicy = CachePolicy<P> &&
    (NeverEvicts<P> || AgePolicy<P> || ScoringPolicy<P, S>)&&(!HasStats<P> || ObservingPolicy<P, S> || AdmittingPolicy<P, S> ||
                                                              RememberingPolicy<P, S>);

/// Watches attention in one of the two ways.
template <class P, class S>
concept WatchingPolicy = ObservingPolicy<P, S> || RememberingPolicy<P, S>;

// Optional members of a policy:
//   void check(const AttentionShape&) const  refuses its own numbers where they make no sense, or not for this layer; a cache calls it
//     when it is constructed, before anything else of the policy
//   PolicyTraits traits() const
//   Index retain() const  rows left by one eviction, 1 .. budget(), default budget(); less: evict rarely, in larger bites

/// score = `given`, but the newest `count` rows outrank everything: for policies that keep a recent window besides what they score.
template <class S> void keep_newest(const KvRows<S>& rows, Index count, const S* given, VectorRef<S> score) {
  const auto oldest_kept = static_cast<Position>((std::max)(Index(rows.next) - count, Index((std::numeric_limits<Position>::min)())));
  const Position* const positions = rows.positions.data();
  S* const scores = score.data();
  for (Index i = 0; i < rows.size(); ++i) scores[i] = positions[i] >= oldest_kept ? std::numeric_limits<S>::infinity() : given[i];
}
template <class S> void keep_newest(const KvRows<S>& rows, Index count, VectorRef<S> score) {
  keep_newest<S>(rows, count, score.data(), score);
}

/// sums += the sum of the rows of `weights`: how a policy accumulates attention. Rows go in fours, so sums are read a quarter as often.
template <class S> void add_rows(const ConstMatrixRef<S>& weights, MatrixRef<S> sums) {
  Index q = 0;
  for (; q + 4 <= weights.rows(); q += 4) sums.row(0) += (weights.row(q) + weights.row(q + 1)) + (weights.row(q + 2) + weights.row(q + 3));
  for (; q < weights.rows(); ++q) sums.row(0) += weights.row(q);
}

/// Calls take(row) for the `count` best rows by these scores; -inf is never taken, of equals the newer are. For score() and combine().
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
