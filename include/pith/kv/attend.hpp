#pragma once

#include <algorithm>
#include <type_traits>

#include <pith/attention/attend.hpp>
#include <pith/attention/kv_view.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/kv/kv_cache.hpp>

namespace pith { inline namespace v0 {

/// Attends the newest tokens to the cache with memory of its own, and shows the policy what it watches. A loop that runs often keeps a
/// Workspace and calls attend(q, cache.view(), out, ws, cache.observer(), options).
/// Where options leave skip_below at 0, KvCacheOptions::skip_below holds.
///
/// Shapes   q [tokens, num_heads*head_dim], already rotated · returns [tokens, num_heads*head_dim]
/// Heap     the result and a workspace
/// Throws   ShapeError where attend() does: at cache positions give options.q_sinks while gap() > 0
template <KvStorage T>
Matrix<arithmetic_t<T>> attend(std::type_identity_t<ConstMatrixRef<arithmetic_t<T>>> q, KvCache<T>& cache,
                               const std::type_identity_t<AttendOptions<arithmetic_t<T>>>& options = {}) {
  using S = arithmetic_t<T>;
  const KvView<T> view = cache.view();
  Index rows = 0;
  for (const KvRun<T>& run : view.runs) rows = (std::max)(rows, run.rows);
  Matrix<S> out(q.rows(), q.cols());
  Workspace ws(attend_workspace_bytes<S>(cache.shape(), 2 * rows, 1, q.rows()));  // a prefix and the cache's own rows: two runs a head
  const AttendOptions<S> all = options.skip_below == S(0) && options.reads == nullptr ? cache.attend_options(options) : options;
  if (cache.watching())
    attend(q, view, out, ws, cache.observer(), all);
  else
    attend(q, view, out, ws, NoObserver{}, all);
  return out;
}

}}  // namespace pith::v0
