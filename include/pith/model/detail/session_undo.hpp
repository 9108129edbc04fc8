#pragma once

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include <pith/core/types.hpp>
#include <pith/kv/detail/cache_internals.hpp>
#include <pith/kv/kv_cache.hpp>
#include <pith/kv/snapshot.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Undoes a call that throws after some layers have already read and evicted: by the journal, by clear() if the conversation began with
/// this call, or from copies of the rows.
///
/// Heap     the copies: for a later prompt that needs the prompt buffer under policies that may overfill, or at cache positions under them;
///          for a later prompt that may be cancelled, if some layer evicts
template <KvStorage T> class SessionUndo {
 public:
  using Cache = KvCache<T>;
  using Copies = std::vector<KvSnapshot<T>>;

  /// Whether a journal is open.
  bool recording(std::span<const Cache> caches) const { return state(caches.front()).journal.open(); }

  /// Call before a chunk of n tokens.
  void begin_chunk(std::span<Cache> caches, Index n) {
    begin(caches);
    if (std::any_of(caches.begin(), caches.end(), [n](const Cache& cache) { return rules(cache).may_refuse_next(n); }))
      for (Cache& cache : caches) state(cache).guard();
  }
  /// Call before a prompt of n rows.
  void begin_prompt(std::span<Cache> caches, Index n, bool may_be_cancelled) {
    begin(caches);
    if (start_ == caches.front().first_position()) return;
    copy_if(caches, [n, may_be_cancelled](const Cache& cache) {
      const CacheState<T>& s = state(cache);
      const bool refuses = s.rules.may_refuse_prompt() && (cache.reindexes() || !s.fits(n, s.slab()));
      return (refuses || (may_be_cancelled && cache.budget() != unlimited)) && !s.journal.open();
    });
  }
  /// Throws   what evict(coming) of any layer throws before it changes anything
  void check_room(std::span<const Cache> caches, Index coming) const {
    for (const Cache& cache : caches) rules(cache).check_coming(coming, state(cache).journal.open());
  }
  /// Call before an eviction that makes room for later tokens.
  void begin_room(std::span<Cache> caches, Index coming) {
    begin(caches);
    if (coming > 0) copy_if(caches, [](const Cache& cache) { return rules(cache).may_refuse_prompt() && cache.reindexes(); });
  }

  void end(std::span<Cache> caches) {
    for (Cache& cache : caches) state(cache).end_guard();
    copies_ = Copies();
  }
  /// Undoes the call; returns whether every layer is as it was before.
  bool take_back(std::span<Cache> caches) {
    bool whole = true;
    for (std::size_t layer = 0; layer < caches.size(); ++layer) {
      Cache& cache = caches[layer];
      if (!copies_.empty()) {
        CacheInternals::return_to(cache, copies_[layer]);
      } else if (!state(cache).take_back(start_)) {
        if (start_ == cache.first_position())
          cache.clear();
        else
          whole = false;
      }
    }
    copies_ = Copies();
    return whole;
  }

 private:
  static CacheState<T>& state(Cache& cache) { return CacheInternals::state(cache); }
  static const CacheState<T>& state(const Cache& cache) { return CacheInternals::state(cache); }
  static const CacheRules& rules(const Cache& cache) { return state(cache).rules; }

  void begin(std::span<Cache> caches) { start_ = caches.front().next_position(); }
  template <class If> void copy_if(std::span<Cache> caches, If&& refuses) {
    if (!std::any_of(caches.begin(), caches.end(), refuses)) return;
    Copies copies;
    copies.reserve(caches.size());
    for (const Cache& cache : caches) copies.push_back(cache.snapshot());
    copies_ = std::move(copies);
  }

  Position start_ = 0;  ///< position at which the call began
  Copies copies_;
};

/// Undoes a call of a session unless end() was reached; the logits buffers are untouched until then.
template <class Session> class SessionAttempt {
 public:
  explicit SessionAttempt(Session& session) : session_(session), newest_(session.begin()) {}
  ~SessionAttempt() {
    if (!ended_) session_.take_back(newest_);
  }
  SessionAttempt(const SessionAttempt&) = delete;
  SessionAttempt& operator=(const SessionAttempt&) = delete;
  Index end() {
    ended_ = true;
    session_.end();
    return newest_;
  }

 private:
  Session& session_;
  const Index newest_;
  bool ended_ = false;
};

}}}  // namespace pith::v0::detail
