#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <pith/attention/kv_view.hpp>
#include <pith/attention/shape.hpp>
#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/kv/detail/cache_internals.hpp>
#include <pith/kv/detail/kept_head.hpp>
#include <pith/kv/kv_cache.hpp>
#include <pith/kv/prefix.hpp>
#include <pith/kv/row_budget.hpp>
#include <pith/kv/snapshot.hpp>

// Rows of all layers that stay, as a prefix or in their caches.

namespace pith { inline namespace v0 {

/// How a layer turns q·k into a logit, for code that computes attention beside a model.
struct LayerScale {
  double scale = 0;    ///< multiplies q·k; 0: 1/√head_dim
  double softcap = 0;  ///< scaled scores become cap·tanh(score/cap); 0: no cap
  Index window = 0;    ///< a sliding-window layer; 0: none
};

/// The rows that stay of the caches of all layers, by keep_rows() or compact().
template <KvStorage T> struct CompactedRows {
  AttentionShape shape;
  Position next = 0;                                       ///< position of the next token
  std::uint64_t adapter = 0;                               ///< fingerprint of the adapter that computed the rows; 0: the base model
  std::vector<KvPrefixLayer<T>> layers = {};               ///< the rows, head by head, by age
  std::vector<KvPrefixLayer<T>> before = {};               ///< rows of the prefix that the caches started from; empty: none
  std::vector<std::vector<std::vector<Index>>> kept = {};  ///< [layers][kv heads] which rows of the cache they are

  Index rows(Index layer, Index kv_head) const { return layers[static_cast<std::size_t>(layer)].sizes[static_cast<std::size_t>(kv_head)]; }
  /// The rows as a prefix for any number of sessions, behind those that the caches started from.
  ///
  /// Heap     a copy of the rows
  KvPrefix prefix() const {
    std::vector<KvPrefixLayer<T>> all;
    for (std::size_t l = 0; l < layers.size(); ++l)
      all.push_back(before.empty() ? layers[l] : detail::joined(before[l], layers[l], shape.head_dim));
    return KvPrefix(shape, next, std::move(all), adapter);
  }
};

/// Copies the rows of highest score, unchanged. The scores come from a proxy pass: kvzip_scores() or finch_scores().
///
/// Heap     a copy of the rows
/// Throws   ShapeError for an invalid budget or scores of other caches; StateError inside a journal, in the middle of a prompt,
///          and at cache positions with a gap
template <KvStorage T> CompactedRows<T> keep_rows(std::span<const KvCache<T>> caches, const RowScores& scores, const RowBudget& budget) {
  if (caches.empty() || scores.size() != caches.size() * static_cast<std::size_t>(caches.front().shape().num_kv_heads))
    raise<ShapeError>("pith::keep_rows: scores of ", scores.size(), " heads for ", caches.size(), " caches");
  const Index heads = caches.front().shape().num_kv_heads;
  for (std::size_t l = 0; l < caches.size(); ++l) {
    detail::check_compactable(caches[l], caches.front(), static_cast<Index>(l));
    for (Index h = 0; h < heads; ++h)
      if (static_cast<Index>(scores.head(static_cast<Index>(l), h).positions.size()) != caches[l].size(h))
        raise<ShapeError>("pith::keep_rows: kv head ", h, " of layer ", l, " has ", caches[l].size(h), " rows, ",
                          scores.head(static_cast<Index>(l), h).positions.size(), " were scored: score them anew");
  }
  const auto kept = scores.best(budget, caches.front().first_position(), caches.front().next_position());
  std::vector<detail::KeptHead<T>> parts;
  parts.reserve(kept.size());
  for (std::size_t p = 0; p < kept.size(); ++p)
    parts.emplace_back(caches[p / static_cast<std::size_t>(heads)], static_cast<Index>(p) % heads, kept[p]);
  return detail::gathered<T>(caches, [&](std::size_t p) -> const detail::KeptHead<T>& { return parts[p]; });
}

/// Puts the rows that stay in place of all rows of their caches: of a Session, or of any object with snapshot(), restore() and caches().
/// A row keeps its kind and the numbers that the policy holds for it; every policy that scores goes on from there.
///
/// Dense caches forget what they were: crop() to a position before the rows were replaced leaves the rows before it, but no more.
///
/// Heap     a snapshot of the session
/// Throws   StateError inside a journal, if rows have come or gone since, and for rows with masses where attention does not count them
///          (keep_masses); UnsupportedError for policies by age and cache positions. The session is then unchanged
template <class Session, KvStorage T> void replace(Session& session, const CompactedRows<T>& rows) {
  auto state = session.snapshot();
  const std::span<const KvCache<T>> caches = std::as_const(session).caches();
  if (rows.layers.size() != caches.size() || rows.next != caches.front().next_position())
    raise<StateError>("pith::replace: rows of ", rows.layers.size(), " layers at position ", rows.next, " for a session of ", caches.size(),
                      " at ", caches.front().next_position(), ": compact it anew");
  for (std::size_t l = 0; l < caches.size(); ++l)
    detail::replace_layer(caches[l], rows.layers[l], rows.kept[l], static_cast<Index>(l), state.layers[l]);
  session.restore(state);
}

}}  // namespace pith::v0
