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
#include <pith/kv/policy_checks.hpp>
#include <pith/kv/select.hpp>

namespace pith::inline v0 {

inline constexpr Index unlimited = (std::numeric_limits<Index>::max)();    ///< the budget of a policy that never evicts
inline constexpr Index all_queries = (std::numeric_limits<Index>::max)();  ///< PolicyTraits::watches: every query of a prompt

/// Where a query finds its distances after rows have left.
enum class Reading : std::uint8_t {
  stream,  ///< a token keeps its place in the text: gaps stay gaps, distances may exceed the trained length
  cache,   ///< rows count as neighbours once what lay between them is gone: distances never exceed the cache
};

template <class S> class LayerScores;  // layer_scores.hpp

/// One kv head as a policy sees it: all it may look at, nothing it may change. Stored numbers come widened to the arithmetic type.
template <class S> struct KvRows {
  Index kv_head;                         ///< for per-head data a policy carries
  AttentionShape shape;                  ///< of the layer
  Position next;                         ///< position of the token to come; ages and "newest" are relative to it
  std::span<const Position> positions;   ///< [rows] rows are in no particular order unless traits().ordered
  std::span<const TokenKind> kinds;      ///< [rows] text, image, …
  ConstMatrixRef<S> stats;               ///< [stats(shape), rows] what observe() and admit() left
  Position first = 0;                    ///< position of the first token: not 0 behind a shared prefix
  ConstMatrixRef<S> keys = {};           ///< [rows, head_dim] as stored; in admit(), and in score() if traits().reads_rows
  ConstMatrixRef<S> values = {};         ///< [rows, head_dim] as stored; in admit(), and in score() if traits().reads_rows
  ConstVectorRef<S> memory = {};         ///< [memory(shape)] what observe() left of the head as a whole
  S* scratch = nullptr;                  ///< [rows] for score() to use as it likes
  detail::Candidate<S>* race = nullptr;  ///< [rows] for best_rows()
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
  bool prompt_only = false;           ///< evicts when a prompt ends, never while decoding
  bool ragged = false;                ///< heads share their rows: combine() may leave one head more than another (prompt_only)
  bool ordered = false;               ///< score() reads neighbours: rows arrive in ascending position
  bool keeps_newest = true;           ///< the cache protects the newest row, whatever its score
  bool reads_rows = false;            ///< score() looks at keys and values; admit() sees those of the fresh rows in any case
  Reading reading = Reading::stream;  ///< cache: policies by age move no key, others are turned by KvCache::reindex()
  Index watches = all_queries;        ///< observe() is shown so many of the last queries of every piece of a prompt (QueryWindow)
  bool needs_log_sum = false;         ///< observe() reads AttentionBlock::log_sum
  bool needs_queries = false;         ///< observe() reads AttentionBlock::queries, as rotated at stream positions
  bool uneven = false;                ///< score() drops rows by -inf: one head may keep fewer than another
  bool decides = false;               ///< leaves only +inf and -inf in the end: no score that a wrapper could share out or average
  bool overfills = false;  ///< may score more rows +inf than budget(): a later prompt costs a Session a copy of its rows, to return to
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

/// Keeps every row; a full cache refuses the next token.
///
/// Keeps    everything, up to KvCacheOptions::max_tokens
/// Needs    nothing
/// Cost     nothing per step; attention and memory grow with the text
struct Dense {
  static constexpr Index budget() { return unlimited; }
};

/// What KvCache accepts; never a stats() that nobody fills.
template <class P, class S>
concept WholePolicy = CachePolicy<P> &&
    (std::same_as<P, Dense> || AgePolicy<P> || ScoringPolicy<P, S>)&&(!HasStats<P> || ObservingPolicy<P, S> || AdmittingPolicy<P, S> ||
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
      rows.race[n++] = {detail::ordered(score[r]), rows.positions[static_cast<std::size_t>(r)], static_cast<std::int32_t>(r)};
  count = std::clamp(count, Index(0), n);
  if (count > 0 && count < n)
    std::nth_element(rows.race, rows.race + count, rows.race + n, [](const auto& a, const auto& b) { return b < a; });
  for (Index i = 0; i < count; ++i) take(Index(rows.race[i].row));
}

namespace detail {

enum class Eviction : std::uint8_t { never, by_age, by_score };

/// Everything a cache asks of a policy that does not change, asked once, after the policy's check().
struct PolicyFacts {
  Eviction eviction = Eviction::never;
  Index budget = unlimited, retain = unlimited, initial = 0, stats = 0;
  Index memory = 0;
  PolicyTraits traits;
  bool observes = false, admits = false, combines = false;
};

template <class P> Index retain_of(const P& policy) {
  if constexpr (requires { policy.retain(); }) {
    return policy.retain();
  } else {
    return policy.budget();
  }
}
template <class P> PolicyTraits traits_of(const P& policy) {
  if constexpr (requires { policy.traits(); }) {
    return policy.traits();
  } else {
    return {};
  }
}

// What it does of what it has members for: around a policy chosen at run time a wrapper has every member, and says what is inside.
template <class S, class P> bool observes(const P& policy) {
  if constexpr (requires { policy.observes(); }) {
    return WatchingPolicy<P, S> && policy.observes();
  } else {
    return WatchingPolicy<P, S>;
  }
}
template <class S, class P> bool admits(const P& policy) {
  if constexpr (requires { policy.admits(); }) {
    return AdmittingPolicy<P, S> && policy.admits();
  } else {
    return AdmittingPolicy<P, S>;
  }
}
template <class S, class P> bool combines(const P& policy) {
  if constexpr (requires { policy.combines(); }) {
    return CombiningPolicy<P, S> && policy.combines();
  } else {
    return CombiningPolicy<P, S>;
  }
}

template <class S, class P> PolicyFacts policy_facts(const P& policy, const AttentionShape& shape) {
  if constexpr (requires { policy.facts(shape); }) return policy.facts(shape);  // AnyPolicy: its answers are those of what it holds
  shape.check("KvCache");
  if constexpr (requires { policy.check(shape); }) policy.check(shape);
  PolicyFacts facts;
  facts.budget = policy.budget();
  if constexpr (AgePolicy<P>) {
    facts.eviction = Eviction::by_age;
    facts.initial = policy.initial();
  } else if constexpr (ScoringPolicy<P, S>) {
    facts.eviction = Eviction::by_score;
  }
  facts.retain = retain_of(policy);
  facts.traits = traits_of(policy);
  if constexpr (HasStats<P>) facts.stats = policy.stats(shape);
  if constexpr (RememberingPolicy<P, S>) facts.memory = policy.memory(shape);
  facts.observes = observes<S>(policy);
  facts.admits = admits<S>(policy);
  facts.combines = combines<S>(policy);
  return facts;
}

inline void check_policy(const PolicyFacts& facts) {
  const auto refuse = [](const std::string& what) { raise<ShapeError>("pith::KvCache: " + what); };
  if (facts.budget < 1) refuse(text("the policy's budget() is ", facts.budget, ", expected at least 1 row"));
  if (facts.retain < 1 || facts.retain > facts.budget)
    refuse(text("the policy's retain() is ", facts.retain, ", expected 1 .. budget() = ", facts.budget));
  if (facts.eviction == Eviction::by_age && (facts.initial < 0 || facts.initial >= facts.retain))
    refuse(text("the policy keeps ", facts.initial, " initial tokens of ", facts.retain,
                " rows: at least one row must be left for the newest token; raise the window"));
  if (facts.memory < 0) refuse(text("the policy's memory() is ", facts.memory, ", expected 0 or more numbers a head"));
  if (facts.stats < 0) refuse(text("the policy's stats() is ", facts.stats, ", expected 0 or more numbers a row"));
  if (facts.traits.ragged && !(facts.traits.prompt_only && facts.combines))
    refuse("traits().ragged is for prompt-only policies that combine() the scores of all heads");
  if (facts.traits.watches < 0) refuse(text("the policy's traits().watches is ", facts.traits.watches, ", expected 0 or more queries"));
  if (facts.traits.reading == Reading::cache && (facts.traits.ragged || facts.traits.uneven))
    refuse("heads that keep different numbers of rows cannot be read at cache positions; use Reading::stream");
  if (facts.traits.reading == Reading::cache && facts.eviction == Eviction::never)
    refuse("a policy that never evicts has no cache positions; use Reading::stream");
}

}  // namespace detail

}  // namespace pith::inline v0
