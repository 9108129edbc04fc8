#pragma once

#include <algorithm>
#include <concepts>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/attention/attend.hpp>
#include <pith/attention/kv_view.hpp>
#include <pith/core/check.hpp>
#include <pith/kv/cache_rules.hpp>
#include <pith/kv/eviction.hpp>
#include <pith/kv/journal.hpp>
#include <pith/kv/policy.hpp>
#include <pith/kv/storage.hpp>

namespace pith::inline v0 {

/// What happens to evicted rows: nothing.
struct Drop {};
template <class M, class S>
concept MergeStrategy = std::same_as<M, Drop>;

/// The keys and values of ONE attention layer under an eviction policy. A model holds one per layer.
///
/// Four verbs, in anybody's loop: append() → read view() or keys()/values() → observe() if the policy watches attention → evict().
/// Rows are stored as given (keys rotated or not is the caller's affair), in no promised order; every row carries its position.
///
/// Heap     all of it at construction; no verb allocates
/// Law      after evict() a head exceeds budget() only by rows scored +inf; a second evict() changes nothing
/// Law      while no head has held more rows than its budget, attention equals Dense's bit for bit
/// Law      crop() restores bit for bit, evictions included
template <CachePolicy Policy = Dense, class Merge = Drop, KvStorage Storage = float>
requires WholePolicy<Policy, arithmetic_t<Storage>> && MergeStrategy<Merge, arithmetic_t<Storage>>
class KvCache {
 public:
  using Scalar = arithmetic_t<Storage>;

  /// Throws   ShapeError for a shape or policy that makes no sense, CapacityError if so many rows cannot be held
  explicit KvCache(const AttentionShape& shape, Policy policy = {}, const KvCacheOptions& options = {}, Merge = {})
      : policy_(std::move(policy)),
        rules_(shape, options, detail::policy_facts<Scalar>(policy_, shape)),
        home_({.heads = shape.num_kv_heads,
               .rows = rules_.home_rows(),
               .head_dim = shape.head_dim,
               .stats = rules_.facts.stats,
               .scores = rules_.facts.eviction == detail::Eviction::by_score,
               .widened = widens()}),
        heads_(static_cast<std::size_t>(shape.num_kv_heads), {.cursor = rules_.facts.initial}),
        sizes_after_(heads_.size()),
        runs_(heads_.size()) {
    if (rules_.keeps_journal()) journal_ = detail::KvJournal<Storage>(home_.shape(), options.max_draft, rules_.max_swaps());
    refresh();
  }

  /// Refuses what append() would refuse of so many tokens, one eviction after each of them or, with a landing, one after all.
  void check_room(Index tokens, const KvLanding<Storage>* landing = nullptr) const {
    rules_.check_range(next_, tokens);
    journal_.check_room(tokens);
    const bool all = landing != nullptr || rules_.never_evicts();
    const Index rows = landing != nullptr && !rules_.never_evicts() ? std::max(home_.rows(), landing->rows()) : home_.rows();
    if (largest_size() + (all ? tokens : 1) > rows) rules_.raise_full(largest_size(), rows, tokens);
  }

  /// Makes sure that `tokens` more rows a head find room before the next evict(): at home, or else by moving into the landing.
  ///
  /// Throws   CapacityError if neither has room, StateError inside a journal
  void reserve(Index tokens, KvLanding<Storage>* landing = nullptr) {
    journal_.check_room(tokens);
    const Index rows = largest_size() + tokens;
    if (rows <= slab().rows()) return;
    if (rules_.never_evicts() || landing == nullptr || landed()) rules_.raise_full(largest_size(), slab().rows(), tokens);
    if (journal_.open())
      raise<StateError>("pith::KvCache: a chunk longer than the budget cannot be taken back: crop() to end the journal first");
    landing->check_fits(home_.shape(), rows);
    for (Index h = 0; h < heads(); ++h) ranks(h).land(landing->slab(), head(h), rules_.facts.budget, rules_.facts.initial);
    landing_ = &landing->slab();
    refresh();
  }

  /// Adds tokens: k and v [tokens, num_kv_heads*head_dim], already rotated if they are to be.
  ///
  /// Cost     one rounding and copy per number
  /// Throws   ShapeError, CapacityError when full or positions run out, StateError past what an open journal can take back
  void append(ConstMatrixRef<Scalar> k, ConstMatrixRef<Scalar> v, const AppendOptions& options = {}) {
    const Index tokens = k.rows(), d = rules_.shape.head_dim;
    check_shape("KvCache::append", "k", k, any_extent, rules_.width());
    check_shape("KvCache::append", "v", v, tokens, rules_.width());
    rules_.check_marks(options, tokens, next_);
    if (largest_size() + tokens > slab().rows()) rules_.raise_full(largest_size(), slab().rows(), tokens);
    journal_.check_room(tokens);
    if (tokens == 0) return;
    const auto position = [&](Index t) {
      return options.positions.empty() ? static_cast<Position>(next_ + t) : options.positions[static_cast<std::size_t>(t)];
    };
    if (journal_.open()) journal_before_append(position(0), tokens);
    for (Index h = 0; h < heads(); ++h) {
      detail::HeadState& state = head(h);
      for (Index t = 0; t < tokens; ++t) {
        const Index row = state.size + t;
        if (row < state.live) journal_.save_row(slab(), h, row, t);
        detail::narrow<Storage>(&k.coeffRef(t, h * d), slab().key(h, row), d);
        detail::narrow<Storage>(&v.coeffRef(t, h * d), slab().value(h, row), d);
        slab().positions(h)[row] = position(t);
        slab().kinds(h)[row] = options.kinds.empty() ? TokenKind::text : options.kinds[static_cast<std::size_t>(t)];
      }
      if (rules_.facts.stats > 0) slab().stats(h, state.size, tokens).setZero();
      state.size += tokens;
      if (journal_.open()) state.live = std::max(state.live, state.size);
    }
    next_ = position(tokens - 1) + 1;
    unevicted_ += tokens;
    if constexpr (AdmittingPolicy<Policy, Scalar>)
      for (Index h = 0; rules_.facts.admits && h < heads(); ++h)
        policy_.admit(rows_of(h, size(h) - tokens, true), slab().stats(h, size(h) - tokens, tokens));
    refresh();
  }

  /// Shows the policy what the newest queries looked at; attend() does it through observer(). Safe for different kv heads at once.
  ///
  /// Throws   ShapeError if the weights do not cover this head's rows, StateError if the policy never asked
  void observe(const AttentionBlock<Scalar>& seen) requires ObservingPolicy<Policy, Scalar> {
    rules_.check_head(seen.kv_head);
    rules_.check_weights(seen.weights.rows());
    detail::HeadState& state = head(seen.kv_head);
    check_shape("KvCache::observe", "weights", seen.weights, any_extent, state.size);
    const Index queries = seen.weights.rows() / rules_.shape.group();
    const Position first = seen.first_query >= 0 ? seen.first_query : static_cast<Position>(next_ - queries);
    policy_.observe(AttentionBlock<Scalar>{seen.kv_head, seen.weights, seen.log_sum, seen.queries, first}, rows_of(seen.kv_head, 0, false),
                    slab().stats(seen.kv_head, 0, state.size));
    state.observed += queries;
  }

  /// What attend() takes to feed this cache's policy.
  auto observer() requires ObservingPolicy<Policy, Scalar> {
    return [this](const AttentionTile<Scalar>& tile) {
      observe({tile.kv_head, tile.weights, tile.log_sum, tile.queries, tile.first_query});
    };
  }
  bool observes() const { return rules_.facts.observes; }  ///< the policy wants to be shown attention weights
  Index watches() const { return rules_.facts.traits.watches; }

  /// Brings every head back to its budget; with `coming`, makes room for that many more tokens to be appended without an eviction.
  ///
  /// Returns  rows dropped, over all heads
  /// Cost     by age: the rows that move; by score: one score and one look per row of a head over its budget, else nothing
  /// Throws   StateError if the policy was not shown all attention, CapacityError if it protects more rows than fit at home
  Index evict(Index coming = 0) {
    rules_.check_coming(coming, journal_.open());
    if (unevicted_ == 0 && coming == 0) return 0;
    for (const detail::HeadState& state : heads_) rules_.check_observed(state.observed, unevicted_);
    Index dropped = 0;
    for (Index h = 0; h < heads(); ++h) dropped += evict_head(h, coming);
    for (std::size_t h = 0; h < heads_.size(); ++h) {
      if (landed() || coming > 0) heads_[h].cursor = rules_.facts.initial;
      heads_[h].size = sizes_after_[h];
      heads_[h].observed = 0;
      // Nothing evicted before the first append of a journal comes back.
      if (journal_.open() && !journal_.recording()) heads_[h].live = heads_[h].size;
    }
    landing_ = nullptr;
    unevicted_ = 0;
    refresh();
    return dropped;
  }

  /// Starts (or restarts) the journal: crop() can return to before any token appended from here on.
  void checkpoint() {
    if (rules_.never_evicts()) return;
    if (!rules_.keeps_journal()) raise<StateError>("pith::KvCache: checkpoint() on a cache constructed with max_draft = 0");
    if (landed()) rules_.raise_mid_prompt("checkpoint()");
    journal_.start();
    for (detail::HeadState& state : heads_) state.live = state.size;
  }
  bool can_crop(Position p) const {
    if (landed()) return false;
    return p == next_ || (rules_.never_evicts() ? p >= 0 && p < next_ : journal_.open() && journal_.find(p) >= 0);
  }

  /// Returns to exactly the state before the token at position p was appended, and ends the journal; crop(next_position()) accepts all.
  ///
  /// Throws   StateError unless p is where an append since the checkpoint began; Dense needs no checkpoint
  void crop(Position p) {
    if (landed()) rules_.raise_mid_prompt("crop()");
    if (!can_crop(p)) rules_.raise_crop(p, next_, journal_.open());
    if (rules_.never_evicts()) {
      for (Index h = 0; h < heads(); ++h) {
        const Position* first = home_.positions(h);
        head(h).size = std::lower_bound(first, first + head(h).size, p) - first;
      }
      next_ = p;
      unevicted_ = 0;
    } else if (p != next_) {
      undo_to(journal_.find(p));
    }
    end_journal();
    refresh();
  }

  /// Forgets every token; memory, policy and options stay.
  void clear() {
    for (detail::HeadState& state : heads_) state = {.cursor = rules_.facts.initial};
    landing_ = nullptr;
    next_ = 0;
    unevicted_ = 0;
    end_journal();
    refresh();
  }

  /// An independent copy, journal included.
  KvCache clone() const {
    if (landed()) rules_.raise_mid_prompt("clone()");
    KvCache copy(rules_.shape, policy_, rules_.options);
    copy.home_.copy_all(home_);
    copy.journal_.copy_state(journal_);
    copy.heads_ = heads_;
    copy.next_ = next_;
    copy.unevicted_ = unevicted_;
    copy.refresh();
    return copy;
  }

  /// [size(kv_head), head_dim] in storage order, contiguous, not a copy; valid until the next verb.
  Eigen::Map<const Matrix<Storage>> keys(Index kv_head) const requires PlainStorage<Storage> {
    rules_.check_head(kv_head);
    return {slab().keys(kv_head), size(kv_head), rules_.shape.head_dim};
  }
  Eigen::Map<const Matrix<Storage>> values(Index kv_head) const requires PlainStorage<Storage> {
    rules_.check_head(kv_head);
    return {slab().values(kv_head), size(kv_head), rules_.shape.head_dim};
  }
  std::span<const Position> positions(Index kv_head) const {
    rules_.check_head(kv_head);
    return {slab().positions(kv_head), static_cast<std::size_t>(size(kv_head))};
  }
  std::span<const TokenKind> kinds(Index kv_head) const {
    rules_.check_head(kv_head);
    return {slab().kinds(kv_head), static_cast<std::size_t>(size(kv_head))};
  }
  /// [stats, size(kv_head)] the numbers the policy keeps beside each row.
  ConstMatrixRef<Scalar> stats(Index kv_head) const {
    rules_.check_head(kv_head);
    return slab().stats(kv_head, 0, size(kv_head));
  }
  /// What attend() takes; valid until the next verb.
  KvView<Storage> view() const { return {rules_.shape, next_, runs_}; }

  const AttentionShape& shape() const { return rules_.shape; }
  const Policy& policy() const { return policy_; }
  Index budget() const { return rules_.facts.budget; }
  /// Rows of a head; heads may differ.
  Index size(Index kv_head) const {
    rules_.check_head(kv_head);
    return heads_[static_cast<std::size_t>(kv_head)].size;
  }
  Index capacity() const { return home_.rows(); }  ///< rows a head can hold at home
  Position next_position() const { return next_; }
  /// Cache reading: how much nearer the sinks are than in the text. They are read by queries rotated at position - gap()
  /// (AttendOptions::q_sinks).
  Position gap() const { return rules_.facts.traits.reading == Reading::cache ? static_cast<Position>(next_ - size(0)) : 0; }
  std::size_t bytes() const { return home_.bytes() + journal_.bytes(); }  ///< what was allocated

 private:
  using Slab = detail::KvSlab<Storage>;
  Index heads() const { return rules_.shape.num_kv_heads; }
  detail::HeadState& head(Index h) { return heads_[static_cast<std::size_t>(h)]; }
  bool landed() const { return landing_ != nullptr; }
  Slab& slab() { return landed() ? *landing_ : home_; }
  const Slab& slab() const { return landed() ? *landing_ : home_; }
  detail::Ranks<Storage> ranks(Index h) { return {home_, journal_, h}; }
  bool widens() const { return (rules_.facts.traits.reads_rows || rules_.facts.admits) && !std::is_same_v<Storage, Scalar>; }
  Index largest_size() const {
    Index largest = 0;
    for (const detail::HeadState& state : heads_) largest = std::max(largest, state.size);
    return largest;
  }

  void refresh() {
    const Index sinks = gap() > 0 ? rules_.facts.initial : 0;
    for (Index h = 0; h < heads(); ++h)
      runs_[static_cast<std::size_t>(h)] = {.keys = slab().keys(h),
                                            .values = slab().values(h),
                                            .rows = size(h),
                                            .stride = rules_.shape.head_dim,
                                            .positions = slab().positions(h),
                                            .sinks = std::min(sinks, size(h))};
  }

  /// A head's rows from `first` on as the policy sees them.
  KvRows<Scalar> rows_of(Index h, Index first, bool with_rows) {
    const Index n = size(h) - first, d = rules_.shape.head_dim;
    const Scalar* keys = nullptr;
    const Scalar* values = nullptr;
    if (with_rows) std::tie(keys, values) = slab().widened_rows(h, first, n);
    return {.kv_head = h,
            .shape = rules_.shape,
            .next = next_,
            .positions = {slab().positions(h) + first, static_cast<std::size_t>(n)},
            .kinds = {slab().kinds(h) + first, static_cast<std::size_t>(n)},
            .stats = slab().stats(h, first, n),
            .keys = ConstMatrixRef<Scalar>(keys, with_rows ? n : 0, d),
            .values = ConstMatrixRef<Scalar>(values, with_rows ? n : 0, d)};
  }

  /// Chooses this head's victims and closes the ranks; its new size goes to sizes_after_.
  Index evict_head(Index h, Index coming) {
    const detail::PolicyFacts& facts = rules_.facts;
    const Index n = size(h), retain = rules_.retained(coming);
    Index leaving = 0;
    if (rules_.due(n, coming)) leaving = rules_.by_age() ? std::max<Index>(n - retain, 0) : choose(h, retain);
    sizes_after_[static_cast<std::size_t>(h)] = n - leaving;
    if (n - leaving > home_.rows()) rules_.raise_protected(n - leaving);
    const std::span<const std::int32_t> victims(slab().victims(), rules_.by_age() ? 0 : static_cast<std::size_t>(leaving));
    if (landed()) {
      rules_.by_age() ? ranks(h).bring_home_by_age(slab(), n, leaving, facts.initial) : ranks(h).bring_home(slab(), n, victims);
    } else if (leaving > 0 && !rules_.by_age()) {
      ranks(h).close(n, victims, facts.traits.ordered);
    } else if (leaving > 0 && coming == 0 && facts.retain == facts.budget) {
      ranks(h).close_ring(head(h), leaving, facts.initial);
    } else if (leaving > 0) {
      ranks(h).close_by_age(head(h), facts.budget, leaving, facts.initial);
    }
    return leaving;
  }

  /// Scores one head; leaves its victims in the slab and returns how many.
  Index choose(Index h, Index retain) {
    Index count = 0;
    if constexpr (ScoringPolicy<Policy, Scalar>) {
      const KvRows<Scalar> rows = rows_of(h, 0, rules_.facts.traits.reads_rows);
      VectorRef<Scalar> score(slab().scores(), rows.size());
      policy_.score(rows, score);
      detail::overrule(rows, rules_.facts.traits.keeps_newest, rules_.options.window, score);
      const std::span<const Scalar> scores(score.data(), rows.positions.size());
      count = detail::leaving(scores, retain);
      detail::choose_victims(scores, rows.positions, count, slab().race(), slab().victims());
    }
    return count;
  }

  void journal_before_append(Position first, Index tokens) {
    journal_.begin_append(first, next_, tokens, unevicted_);
    for (Index h = 0; h < heads(); ++h) {
      journal_.head_before(journal_.newest(), h) = head(h);
      journal_.stats_before(journal_.newest(), h, size(h)) = slab().stats(h, 0, size(h));
    }
  }

  /// Takes back the journal's appends from number `to` on.
  void undo_to(Index to) {
    const auto target = journal_.append(to);
    while (journal_.newest() >= to) journal_.undo_newest(home_);
    for (Index h = 0; h < heads(); ++h) {
      head(h) = journal_.head_before(to, h);
      home_.stats(h, 0, size(h)) = journal_.stats_before(to, h, size(h));
    }
    next_ = target.next;
    unevicted_ = target.unevicted;
  }

  void end_journal() {
    journal_.close();
    for (detail::HeadState& state : heads_) state.live = 0;
  }

  Policy policy_;
  detail::CacheRules rules_;
  Slab home_;
  Slab* landing_ = nullptr;  ///< where the rows are during a chunk too long for home
  detail::KvJournal<Storage> journal_;
  std::vector<detail::HeadState> heads_;
  std::vector<Index> sizes_after_;
  std::vector<KvRun<Storage>> runs_;
  Position next_ = 0;
  Index unevicted_ = 0;  ///< tokens appended since the last eviction
};

}  // namespace pith::inline v0
