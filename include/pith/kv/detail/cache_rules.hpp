#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>

#include <pith/attention/rope.hpp>
#include <pith/attention/shape.hpp>
#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/kv/detail/policy_facts.hpp>
#include <pith/kv/options.hpp>
#include <pith/merge/any_merge.hpp>

// Sizes and argument checks of a cache that follow from its options, policy and merge.

namespace pith { inline namespace v0 { namespace detail {

/// The progress of a cache in its token stream.
struct Progress {
  Position next = 0;
  Position next_rope_position = 0;  ///< position at which the next token is rotated, if rows carry angles
  Index unevicted = 0;              ///< tokens appended since the last eviction
  Index lost_initial = 0;           ///< sinks of a policy by age that drop() has removed
  AppendOptions last = {};          ///< options of the newest append, without its spans
};

/// The entry for token t in a span of AppendOptions, or `otherwise` if the span is empty.
template <class Given, class X> X mark_of(const Given& given, Index t, X otherwise) {
  return given.empty() ? otherwise : static_cast<X>(given[static_cast<std::size_t>(t)]);
}

/// The constant properties of a cache and the argument checks that follow from them.
struct CacheRules {
  AttentionShape shape;
  KvCacheOptions options;
  PolicyFacts facts;
  MergeFacts merge;

  CacheRules(const AttentionShape& s, const KvCacheOptions& o, const PolicyFacts& f, const MergeFacts& m)
      : shape(s), options(o), facts(f), merge(m) {
    shape.check("KvCache");
    check_policy(facts);
    check_options();
    if (merge.memory < 0) raise<ShapeError>("pith::KvCache: the merge's memory() is ", merge.memory, ", expected 0 or more numbers");
    if (never_evicts()) merge.merges = false;
  }

  Position first() const { return options.prefix.next_position(); }  ///< position of the first token
  bool never_evicts() const { return facts.eviction == Eviction::never; }
  /// Whether rows carry the position their key is rotated at, so that gaps between them can be closed.
  bool angles() const { return facts.traits.positions == RopePositions::cache && facts.eviction == Eviction::by_score; }
  bool by_age() const { return facts.eviction == Eviction::by_age; }
  bool prompt_only() const { return facts.traits.prompt_only; }
  Index home_rows() const {
    return never_evicts() ? options.max_tokens
                          : facts.budget + options.max_chunk + (prompt_only() ? options.max_generated : 0) +
                                (facts.traits.ragged ? 1 : 0);  // heads that share may each keep a row more
  }
  /// Whether the eviction after a prompt may find more protected rows than fit. Only scores show it, after earlier layers have changed.
  bool may_refuse_prompt() const { return facts.eviction == Eviction::by_score && facts.traits.overfills; }
  /// The same for evictions while `tokens` tokens are decoded one by one.
  bool may_refuse_next(Index tokens) const {
    return facts.eviction == Eviction::by_score && !prompt_only() && (tokens > 1 || (angles() && facts.traits.overfills));
  }
  /// Whether rows store the number of tokens they stand for.
  bool masses() const { return merge.merges || options.keep_masses; }
  Index width() const { return shape.num_kv_heads * shape.head_dim; }
  bool keeps_journal() const { return options.max_draft > 0 && !never_evicts(); }
  /// The most swaps in a journal, per head: rows that keep their order may all move for each token.
  Index max_swaps() const {
    if (prompt_only()) return 0;  // no eviction inside a journal
    const bool stable = facts.traits.ordered || facts.retain < facts.budget;
    return (stable ? (options.max_draft + 1) * home_rows() : home_rows() + options.max_draft + 1) + max_merges();
  }
  /// The most rows that merges inside a journal can change, per head: no more than are evicted.
  Index max_merges() const { return !merge.merges || prompt_only() ? 0 : home_rows() - facts.retain + options.max_draft + 1; }
  /// Number of rows to keep so that `coming` more tokens fit within the budget.
  Index retained(Index coming) const {
    return coming == 0 ? facts.retain : (std::max)((std::min)(facts.retain, facts.budget - coming), facts.initial);
  }
  bool due(Index rows, Index coming) const {
    return !never_evicts() && (facts.traits.eager || rows > facts.budget - (std::min)(coming, facts.budget));
  }
  /// Whether an eviction may drop rows now: a prompt-only policy waits for the end of a prompt.
  bool may_evict(const AppendOptions& last) const { return !prompt_only() || (last.phase == Phase::prefill && !last.more); }
  /// Whether no query of a sliding-window layer can see this position any more: such rows are evicted first and not merged.
  bool unseen(Position p, Position next) const { return options.window > 0 && Index(next) - p >= options.window; }
  Index unseen(std::span<const Position> positions, Position next) const {
    return std::count_if(positions.begin(), positions.end(), [&](Position p) { return unseen(p, next); });
  }
  bool begins_prompt(const AppendOptions& append, const AppendOptions& last) const {
    return prompt_only() && append.phase == Phase::prefill && !(last.phase == Phase::prefill && last.more);
  }
  /// Whether the attention of the tokens just appended must be shown: for every piece of a prompt, because the last one may be short.
  bool watches(const AppendOptions& last) const {
    return facts.observes && facts.traits.watches > 0 && (!prompt_only() || last.phase == Phase::prefill);
  }

  void check_head(Index kv_head) const {
    if (kv_head < 0 || kv_head >= shape.num_kv_heads) [[unlikely]]
      raise<ShapeError>("pith::KvCache: kv head ", kv_head, " of ", shape.num_kv_heads);
  }

  void check_range(Position next, Index tokens) const {
    if (tokens < 0) raise<ShapeError>("pith::KvCache: ", tokens, " tokens, expected 0 or more");
    if (tokens > (std::numeric_limits<Position>::max)() - next)
      raise<CapacityError>("pith::KvCache: position ", next, " + ", tokens, " tokens leaves the range of positions: clear() first");
  }

  void check_marks(const AppendOptions& append, Index tokens, Position next) const {
    const auto count = [&](std::string_view what, std::size_t n) {
      if (n != 0 && static_cast<Index>(n) != tokens) raise<ShapeError>("pith::KvCache::append: ", n, " ", what, " for ", tokens, " tokens");
    };
    count("kinds", append.kinds.size());
    count("positions", append.positions.size());
    for (const TokenKind kind : append.kinds)
      if (kind > TokenKind::video) raise<ShapeError>("pith::KvCache::append: kind ", int(kind), ", expected 0 .. ", int(TokenKind::video));
    check_masses(append.masses, tokens);
    Index at = next;
    for (const Position p : append.positions) {
      if (p < at) raise<ShapeError>("pith::KvCache::append: position ", p, " where ", at, " or more is expected: positions increase");
      if (p != at && by_age() && facts.traits.positions == RopePositions::cache)
        raise<ShapeError>("pith::KvCache::append: position ", p, " leaves a gap after ", at - 1, ": cache positions have none");
      at = Index(p) + 1;
    }
    check_range(next, (std::max)(tokens, at - next));
  }

  void check_masses(std::span<const float> masses, Index tokens) const {
    if (masses.empty()) return;
    if (!options.keep_masses) raise<StateError>("pith::KvCache: masses for rows that count as one token each: construct with keep_masses");
    if (static_cast<Index>(masses.size()) != tokens)
      raise<ShapeError>("pith::KvCache::append: ", masses.size(), " masses for ", tokens, " tokens");
    for (const float mass : masses)
      if (!(mass >= 1 && mass <= static_cast<float>(max_mass)))
        raise<ShapeError>("pith::KvCache::append: mass ", mass, ", expected 1 .. ", max_mass, " tokens");
  }

  /// `seen`: how many of the `appended` tokens since the last eviction are covered by the attention that the policy was shown.
  void check_observed(Index seen, Index appended, const AppendOptions& last) const {
    const Index expected = watches(last) ? appended : 0;
    if (seen < expected)
      raise<StateError>("pith::KvCache: evict() after ", appended, " tokens, but the policy saw the attention of ", seen, " of ", expected,
                        " queries: call observe() for every kv head, or give attend() cache.observer()");
  }

  /// Checks all parts of a block that a policy may read; `rows`: rows of its head, `shown`: queries of the `appended` tokens shown before.
  template <class S> void check_block(const AttentionBlock<S>& seen, Index rows, Position next, Index appended, Index shown) const {
    if (!facts.observes) raise<StateError>("pith::KvCache: observe() under a policy that does not watch attention");
    const Index weights = seen.weights.rows(), group = shape.group(), queries = weights / group;
    if (weights == 0 || weights % group != 0)
      raise<ShapeError>("pith::KvCache::observe: ", weights, " rows of weights, expected a multiple of ", group,
                        " query heads that share the kv head");
    check_shape("KvCache::observe", "weights", seen.weights, any_extent, rows);
    if (seen.log_sum.size() != 0 && seen.log_sum.size() != weights)
      raise<ShapeError>("pith::KvCache::observe: log_sum holds ", seen.log_sum.size(), ", expected ", weights,
                        ", one for each row of weights", facts.traits.needs_log_sum ? "" : ", or none");
    if (facts.traits.needs_log_sum && seen.log_sum.size() == 0)
      raise<ShapeError>(
          "pith::KvCache::observe: the policy reads log_sum, the logarithm of every row's sum of exponentials, and none is given");
    if (facts.traits.needs_queries && seen.queries.size() == 0)
      raise<ShapeError>("pith::KvCache::observe: the policy reads the queries, as rotated, and none are given");
    if (seen.queries.size() != 0) check_shape("KvCache::observe", "queries", seen.queries, weights, shape.head_dim);
    const Index first = seen.first_query >= 0 ? Index(seen.first_query) : Index(next) - queries;
    if (seen.first_query < -1 || first < this->first() || first + queries > next)
      raise<ShapeError>("pith::KvCache::observe: queries at positions ", first, " .. ", first + queries - 1, ", expected ", this->first(),
                        " .. ", Index(next) - 1, ", those of the tokens appended");
    if (queries > appended - shown)
      raise<StateError>("pith::KvCache::observe: ", queries, " queries after ", shown, ", but only ", appended,
                        " tokens were appended since the last evict(): show each query of a kv head once, between append() and evict()");
  }

  /// Throws   StateError if the caller's queries are rotated at other positions than the policy's
  void check_rope_positions(RopePositions positions) const {
    if (positions == facts.traits.positions) return;
    if (positions == RopePositions::cache)
      raise<StateError>("pith::KvCache: keys() for cache positions, but the policy is at text positions");
    raise<StateError>("pith::KvCache: keys() of a policy at cache positions: ",
                      by_age() ? "look at the first sinks() rows with queries rotated at position - gap()"
                               : "rotate queries and keys at query_position(), call reindex() after evict()",
                      " and say keys(kv_head, RopePositions::cache), or construct the policy with RopePositions::text");
  }

  /// Throws   ShapeError, UnsupportedError for a rope that cannot turn stored keys
  void check_rope(const RopeOptions& rope) const {
    if (rope.head_dim != shape.head_dim)
      raise<ShapeError>("pith::KvCache: reindex() with a rope for head_dim ", rope.head_dim, ", expected ", shape.head_dim);
    if (rope.by_length())
      raise<UnsupportedError>("pith::KvCache: reindex() under ", rope.scaling.type == RopeType::dynamic ? "dynamic rope" : "longrope",
                              ", where a key's angle depends on the length it was rotated at: use RopePositions::text");
  }

  void check_coming(Index coming, bool journal_open) const {
    if (coming < 0) raise<ShapeError>("pith::KvCache::evict: coming is ", coming, ", expected 0 or more tokens");
    if (coming > 0 && journal_open) raise<StateError>("pith::KvCache: room cannot be made inside a journal: crop() to end it first");
  }

  [[noreturn]] void raise_full(Index rows, Index capacity, Index tokens) const {
    raise<CapacityError>("pith::KvCache: full (", rows, " of ", capacity, " rows + chunk ", tokens, "): ",
                         never_evicts()  ? std::string_view("construct with a larger max_tokens, or choose a policy with a budget")
                         : prompt_only() ? "the policy evicts only when a prompt ends: construct with a larger max_generated"
                                         : "call evict() after each chunk, or construct with a larger max_chunk");
  }

  [[noreturn]] void raise_protected(Index rows) const {
    raise<CapacityError>("pith::KvCache: the policy scores ", rows, " rows of a head +inf, ", home_rows(),
                         " fit at home: protect fewer, or raise its budget");
  }
  [[noreturn]] void raise_uneven(Index first, Index other) const {
    raise<StateError>("pith::KvCache: ", first, " rows in one head and ", other, " in another: at cache positions heads must agree");
  }

  void check_prompt(const AppendOptions& append, bool journal_open) const {
    if (append.more && append.phase != Phase::prefill) raise<StateError>("pith::KvCache::append: more is for pieces of a prompt");
    if (prompt_only() && append.phase == Phase::prefill && journal_open)
      raise<StateError>("pith::KvCache: a prompt under a prompt-only policy cannot be taken back: crop() to end the journal first");
  }

  [[noreturn]] void raise_mid_prompt(std::string_view call) const {
    raise<StateError>("pith::KvCache: ", call, " in the middle of a prompt: call evict() first");
  }

  [[noreturn]] void raise_crop(Position p, Position next, bool journal_open) const {
    raise<StateError>("pith::KvCache: crop(", p, ") at position ", next, ": ",
                      never_evicts() ? text("expected ", first(), " .. ", next)
                      : journal_open ? std::string("no append since the checkpoint began there")
                                     : std::string("no journal: call checkpoint() before the tokens that may be taken back"));
  }

 private:
  void check_options() const {
    const auto at_least = [](std::string_view name, Index value, Index least) {
      if (value < least) raise<ShapeError>("pith::KvCacheOptions: ", name, " is ", value, ", expected ", least, " or more");
    };
    if (!(options.skip_below >= 0 && options.skip_below < 1))
      raise<ShapeError>("pith::KvCache: skip_below is ", options.skip_below, ", expected 0 or more, less than 1");
    at_least("max_chunk", options.max_chunk, 1);
    at_least("max_draft", options.max_draft, 0);
    at_least("max_tokens", options.max_tokens, 1);
    at_least("max_generated", options.max_generated, 0);
    at_least("window", options.window, 0);
    constexpr Index most = (std::numeric_limits<std::int32_t>::max)();
    const Index budget = never_evicts() ? options.max_tokens : facts.budget;
    const auto at_most = [](std::string_view name, Index value) {
      if (value > most / 2) raise<CapacityError>("pith::KvCacheOptions: ", name, " is ", value, ", expected at most ", most / 2);
    };
    at_most("max_generated", options.max_generated);
    at_most("max_draft", options.max_draft);
    if (budget > most / 2 || options.max_chunk > most / 2 - budget)
      raise<CapacityError>("pith::KvCache: budget ", budget, " + max_chunk ", options.max_chunk, " rows, expected at most ", most / 2);
  }
};

}}}  // namespace pith::v0::detail
