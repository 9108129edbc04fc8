#pragma once

#include <pith/attention/attend.hpp>
#include <pith/attention/kv_view.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/peft/model_adapter.hpp>

namespace pith { inline namespace v0 {

/// What the observer of a proxy pass, Session::look(), is shown: some of its queries in one kv head of one layer. Valid until the observer
/// returns.
template <KvStorage T> struct LookTile {
  using S = arithmetic_t<T>;
  Index layer = 0;
  /// Weights on the cache's own rows, [queries*group, rows.rows]; the denominator in log_sum includes the prefix and the proxy's own
  /// tokens.
  AttentionTile<S> attention;
  KvRun<T> rows;                  ///< the cache's own rows of this head
  KvRun<T> prefix;                ///< rows of the prefix that the session started from; none: 0 rows
  KvRun<T> proxy;                 ///< rows of the proxy's tokens, keys rotated
  ConstMatrixRef<S> inputs = {};  ///< [queries, hidden_size] what the layer's projections read for these queries
  S scale = 0;                    ///< multiplies q·k
  S softcap = 0;                  ///< scaled scores become cap·tanh(score/cap); 0: no cap
  Index window = 0;               ///< a sliding-window layer: rows at this distance or more are hidden; 0: none
};

/// Options of Session::look().
template <class S> struct LookOptions {
  const ModelAdapter<S>* adapter = nullptr;  ///< the adapter that the proxy's tokens are read under; nullptr: the session's
};

}}  // namespace pith::v0
