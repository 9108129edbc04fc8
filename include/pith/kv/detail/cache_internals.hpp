#pragma once
// The door through which sessions and row editing reach the state of a cache.

#include <pith/core/types.hpp>
#include <pith/kv/detail/cache_state.hpp>
#include <pith/kv/detail/snapshots.hpp>
#include <pith/kv/snapshot.hpp>

namespace pith { inline namespace v0 {

template <KvStorage Storage> class KvCache;

namespace detail {

/// What a session of many layers needs of each cache beyond its verbs: to know which calls may still fail half-way through the layers, and
/// to undo those that did.
struct CacheInternals {
  template <KvStorage T> static CacheState<T>& state(KvCache<T>& cache) { return cache.state_; }
  template <KvStorage T> static const CacheState<T>& state(const KvCache<T>& cache) { return cache.state_; }

  /// Restores a snapshot of this very cache: unlike restore() it checks nothing, cannot fail and does not allocate.
  template <KvStorage T> static void return_to(KvCache<T>& cache, const KvSnapshot<T>& own) noexcept {
    Snapshots<T>::restore(cache.state_, own);
  }
};

}  // namespace detail

}}  // namespace pith::v0
