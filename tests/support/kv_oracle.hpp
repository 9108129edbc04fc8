#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "kv_beliefs.hpp"
#include "kv_merges.hpp"

namespace pith_test {

/// A cache as its documentation tells it, in plain lists: every token ever appended, and the rows believed held, by age. Of each verb it
/// says beforehand whether it is refused, and afterwards whether what is seen may be so. Scores are the policies' own business: the oracle
/// knows the exact victims of policies by age and of H2O, and of all others how many may leave.
class KvOracle : public KvBeliefs {
 public:
  explicit KvOracle(KvSetting setting) : KvBeliefs(std::move(setting)) { clear(); }

  Position next() const { return now_.next; }
  Position next_rope_position() const { return now_.angle; }
  Index unobserved() const { return now_.unobserved; }
  /// Where crop() can return to, or next().
  Position begin(std::size_t choice) const {
    const std::size_t at = choice % (begins_.size() + 1);
    return at == begins_.size() ? now_.next : begins_[at].first;
  }

  /// Whether the cache is a window that is read at cache positions.
  bool shifted() const { return s_.facts.eviction == pith::Eviction::by_age && s_.facts.traits.positions == pith::RopePositions::cache; }
  Refusal refuses_append(Index tokens, Index skipped, const pith::AppendOptions& how) const {
    if (skipped > 0 && shifted()) return Refusal::shape;
    if (how.more && how.phase != pith::Phase::prefill) return Refusal::state;
    if (prompt_only() && how.phase == pith::Phase::prefill && open_) return Refusal::state;
    if (open_ && tokens > s_.options.max_draft + 1 - journaled_) return Refusal::state;
    for (Index h = 0; h < heads(); ++h)
      if (rows(h) + tokens > now_.rooms[static_cast<std::size_t>(h)]) return Refusal::capacity;
    return Refusal::none;
  }
  /// k, v: as given to the cache; plain: the keys before rotation.
  void append(const SeenCache& before, const SeenCache& after, const pith::Matrix<float>& plain, const pith::Matrix<float>& k,
              const pith::Matrix<float>& v, const pith::AppendOptions& how) {
    const Index tokens = k.rows();
    if (open_) {
      begins_.push_back({how.positions.front(), now_, before, false});
      journaled_ += tokens;
    }
    const bool begins_prompt = prompt_only() && how.phase == pith::Phase::prefill && !(prefilled() && now_.last.more);
    const bool forgets = begins_prompt && (now_.unevicted == 0 || !prefilled());
    if (forgets) now_.seen = now_.unevicted;
    if (forgets && !s_.facts.admits)
      for (auto& rows : now_.held)
        for (Row& row : rows) row.stats.clear();
    history_.resize(static_cast<std::size_t>(how.positions.back()) + 1);
    for (Index t = 0; t < tokens; ++t) {
      const Position p = how.positions[static_cast<std::size_t>(t)];
      Token& token = history_[static_cast<std::size_t>(p)];
      token = {how.kinds[static_cast<std::size_t>(t)], plain.row(t), {}, {}};
      for (Index h = 0; h < heads(); ++h) {
        token.keys.push_back(s_.key_as_stored(&k.coeffRef(t, h * dim()), dim()));
        token.values.push_back(s_.value_as_stored(&v.coeffRef(t, h * dim()), dim()));
        const auto angle = static_cast<Position>(now_.angle + t);
        held(h).push_back({.position = p, .angle = angle, .slack = turn_error(angle)});
      }
    }
    now_.next = how.positions.back() + 1;
    now_.angle += static_cast<Position>(tokens);
    now_.unevicted += tokens;
    now_.unobserved += tokens;
    now_.last = {.phase = how.phase, .more = how.more};
    if (s_.facts.admits) adopt_stats(after, tokens);
  }

  bool watching() const { return s_.facts.observes && (!prompt_only() || prefilled()); }
  Refusal refuses_observe(Index queries) const {
    const Index window = s_.facts.traits.watches, shown = window == pith::all_queries ? now_.seen : 0;
    if (!s_.facts.observes || queries > now_.unevicted - shown) return Refusal::state;
    if (!watching() || window == pith::all_queries) return Refusal::none;
    // Of the last queries each is shown once, in order; those before them are left out.
    const Index first = std::max(now_.unevicted - queries, now_.unevicted - window);
    return first == std::max(now_.unevicted - window, now_.seen) ? Refusal::none : Refusal::state;
  }
  /// weight(h, query, p): what the query heads of kv head h gave to the row at p, together.
  template <class F> void observe(const SeenCache& after, Index queries, F&& weight) {
    if (!watching()) return;
    now_.seen = s_.facts.traits.watches == pith::all_queries ? now_.seen + queries : now_.unevicted;
    now_.unobserved = 0;
    if (!by_h2o()) return adopt_stats(after, pith::unlimited);
    for (Index h = 0; h < heads(); ++h)
      for (Row& row : held(h)) {
        for (Index q = 0; q < queries; ++q) row.weight += weight(h, q, row.position);
        row.stats.assign(1, static_cast<float>(row.weight));  // exact: the weights are whole multiples of 2^-10
      }
  }

  Refusal refuses_evict(Index coming) const {
    if (coming > 0 && open_) return Refusal::state;
    const Index expected = watching() ? now_.unevicted : 0;
    return !idle(coming) && (now_.seen < expected || uneven(coming)) ? Refusal::state : Refusal::none;
  }
  void evict(const SeenCache& before, const SeenCache& after, Index coming, Index dropped) {
    const bool may = !idle(coming) && !never_evicts() && (!prompt_only() || (prefilled() && !now_.last.more));
    const Index limit = most_within(coming), retained = to_retain(coming);
    bool any_due = false;
    for (Index h = 0; h < heads(); ++h) any_due = any_due || (may && rows(h) > limit);
    Index left = 0, all_kept = 0, all_allowed = 0;
    std::vector<std::vector<Row>> gone(now_.held.size());
    for (Index h = 0; h < heads(); ++h) {
      const bool due = any_due && (s_.facts.combines || rows(h) > limit);
      std::vector<Row> kept;
      for (const Row& row : held(h)) (holds(after, h, row.position) ? kept : gone[static_cast<std::size_t>(h)]).push_back(row);
      demand(kept.size() == after.heads[static_cast<std::size_t>(h)].positions.size(), "evict() brings no row");
      const Index n = rows(h), stay = static_cast<Index>(kept.size());
      if (!due) demand(stay == n, "a head within its budget loses nothing");
      if (due) check_survivors(h, kept, retained);
      left += n - stay;
      all_kept += stay;
      all_allowed += due ? most_kept(h, retained) : n;
      held(h) = std::move(kept);
    }
    demand(!s_.facts.traits.ragged || all_kept <= all_allowed, "heads that share keep no more than their budgets");
    demand(left == dropped, "evict() returns how many rows left");
    if (left > 0 && s_.merge.facts().merges) KvMerges(*this, before, after).check(gone);
    if (idle(coming)) return;
    if (may && s_.facts.traits.ragged) divide_rooms();
    now_.unevicted = now_.seen = now_.unobserved = 0;
  }

  Refusal refuses_drop(Position first, Position last) const {
    const bool ring_at_cache = shifted();
    const auto gone = [&](const std::vector<Row>& rows) {
      return std::count_if(rows.begin(), rows.end(), [=](const Row& row) { return row.position >= first && row.position < last; });
    };
    bool uneven = false;  // at cache positions heads must agree on how many rows they hold
    for (const std::vector<Row>& rows : now_.held) uneven = uneven || (angles() && gone(rows) != gone(now_.held.front()));
    return open_ || ring_at_cache || uneven ? Refusal::state : Refusal::none;
  }
  void drop(Position first, Position last, Index dropped) {
    Index left = 0, sinks = 0;
    for (std::size_t r = 0; r < std::min(held(0).size(), static_cast<std::size_t>(initial())); ++r)
      sinks += held(0)[r].position >= first && held(0)[r].position < last;
    now_.lost += sinks;
    for (auto& rows : now_.held)
      left += static_cast<Index>(std::erase_if(rows, [&](const Row& row) { return row.position >= first && row.position < last; }));
    demand(left == dropped, "drop() returns how many rows left");
  }

  Refusal refuses_reindex() const {
    if (!angles()) return Refusal::none;
    for (Index h = 1; h < heads(); ++h)
      if (rows(h) != rows(0)) return Refusal::state;
    const bool again = open_ && !begins_.empty() && begins_.back().turned;
    return again && now_.angle != rows(0) ? Refusal::state : Refusal::none;
  }
  void reindex() {
    if (!angles()) return;
    if (open_ && !begins_.empty() && now_.angle != rows(0)) begins_.back().turned = true;
    for (auto& rows : now_.held)
      for (std::size_t r = 0; r < rows.size(); ++r) {
        const auto rank = static_cast<Position>(r);
        if (rank != rows[r].angle) rows[r].slack += turn_error(static_cast<Position>(rows[r].angle - rank)) + turn_error(rank);
        rows[r].angle = rank;
      }
    now_.angle = static_cast<Position>(rows(0));
  }

  Refusal refuses_snapshot() const { return open_ ? Refusal::state : Refusal::none; }
  void restore() {
    if (s_.facts.traits.ragged) divide_rooms();
  }
  Refusal refuses_checkpoint() const { return !never_evicts() && s_.options.max_draft == 0 ? Refusal::state : Refusal::none; }
  void checkpoint() {
    end_journal();
    open_ = !never_evicts();
  }
  bool can_crop(Position p) const {
    if (p == now_.next) return true;
    return never_evicts() ? p >= 0 && p < now_.next : find(p) != begins_.end();
  }
  void crop(const SeenCache& after, Position p) {
    if (never_evicts()) {
      for (auto& rows : now_.held) std::erase_if(rows, [&](const Row& row) { return row.position >= p; });
      now_.next = p;
      now_.unevicted = now_.unobserved = 0;
    } else if (p != now_.next) {
      demand(after == find(p)->snapshot, "crop() restores every bit");
      now_ = State(find(p)->state);
    }
    end_journal();
  }

  void clear() {
    now_ = {};
    now_.held.resize(static_cast<std::size_t>(heads()));
    now_.rooms.assign(now_.held.size(), s_.capacity);
    now_.gate = pith::Vector<double>::Zero(s_.merge.facts().memory);
    end_journal();
  }

  /// Whether the cache is seen to hold exactly the rows believed held, as they were appended.
  void check(const SeenCache& seen) const {
    demand(seen.next == now_.next && seen.angle == (angles() ? now_.angle : now_.next),
           "next_position() and query_position() follow the tokens");
    demand(seen.gap == (shifted() ? now_.next - static_cast<Position>(rows(0)) : 0), "gap() is what lies between sinks and window");
    for (Index h = 0; h < heads(); ++h) check_head(h, seen.heads[static_cast<std::size_t>(h)]);
  }

 private:
  struct Begin {
    Position first;
    State state;
    SeenCache snapshot;
    bool turned = false;
  };

  Index most_within(Index coming) const { return s_.facts.budget - std::min(coming, s_.facts.budget); }
  Index to_retain(Index coming) const {
    return coming == 0 ? s_.facts.retain : std::max(std::min(s_.facts.retain, s_.facts.budget - coming), s_.facts.initial);
  }
  /// Heads whose keys are turned must lose as many rows each, and a sliding window may hide more of one head than of another.
  bool uneven(Index coming) const {
    const auto leaving = [&](Index h) {
      const Index n = rows(h);
      if (n <= most_within(coming)) return Index(0);
      if (by_h2o()) return n - static_cast<Index>(heavy_hitters(h, to_retain(coming)).size());
      const Index unseen = std::count_if(held(h).begin(), held(h).end(), [&](const Row& row) {
        return s_.options.window > 0 && now_.next - row.position >= s_.options.window && row.position != now_.next - 1;
      });
      return std::min(std::max(n - to_retain(coming), unseen), n - 1);
    };
    for (Index h = 1; angles() && h < heads(); ++h)
      if (rows(h) == rows(0) && leaving(h) != leaving(0)) return true;
    return false;
  }
  bool prompt_only() const { return s_.facts.traits.prompt_only; }
  bool never_evicts() const { return s_.facts.eviction == pith::Eviction::never; }
  bool prefilled() const { return now_.last.phase == pith::Phase::prefill; }
  bool idle(Index coming) const { return now_.unevicted == 0 && (coming == 0 || prompt_only()); }
  std::vector<Begin>::const_iterator find(Position p) const {
    return std::find_if(begins_.begin(), begins_.end(), [&](const Begin& begin) { return begin.first == p || begin.state.next == p; });
  }
  static bool holds(const SeenCache& seen, Index h, Position p) {
    const auto& positions = seen.heads[static_cast<std::size_t>(h)].positions;
    return std::find(positions.begin(), positions.end(), p) != positions.end();
  }
  void end_journal() {
    open_ = false;
    journaled_ = 0;
    begins_.clear();
  }
  std::vector<Begin> begins_;  ///< appends of the open journal
  bool open_ = false;
  Index journaled_ = 0;
};

}  // namespace pith_test
