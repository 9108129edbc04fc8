#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <pith/attention/kv_view.hpp>
#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/kv/compact_options.hpp>
#include <pith/kv/detail/compact_head.hpp>
#include <pith/kv/kept_rows.hpp>
#include <pith/kv/kv_cache.hpp>
#include <pith/kv/reference_queries.hpp>
#include <pith/kv/row_budget.hpp>

// Compaction by attention matching. Needs <Eigen/Cholesky>, so no umbrella includes this header.

namespace pith { inline namespace v0 {

/// Attention Matching: replaces the rows of caches by fewer, whose masses and values are solved for so that the output of attention stays
/// what it was for all reference queries.
///
///   exp(q·k) summed over all rows ≈ Σ_i exp(q·k_i + β_i), softmax(q Kᵀ) V ≈ softmax(q K_Sᵀ + β) C
///
/// K_S are keys of the cache at their own positions, β is a logarithm of mass for each row, C its new value. Because masses match as well,
/// compacted rows may stand beside any others.
///
///   auto small = compact<float>(session.caches(), layers, queries, {.budget = {.rows = 256}});
///   auto answer = llama.start(HeavyHitter{…}, {.prefix = small.prefix()});   // or replace(session, small)
///
/// Compaction of compacted rows is the same problem: masses that rows have enter their logits. Rows of a prefix that the caches started
/// from are kept as they are, and so is every row of a sliding-window layer.
///
/// Shapes   one entry of `layers` and one layer of queries for each cache
/// Cost     a kv head: queries·(3·rows·head_dim + 2·kept²) multiply-adds, kept³/6 besides; choose queries ≥ 4·kept
/// Heap     for each worker, in doubles: the head's rows and queries, queries·(2·kept + head_dim), 2·kept², a block of 2²⁰ logits
/// Throws   ShapeError for invalid options, queries of another shape or none, and rows or queries that are not finite; StateError inside a
///          journal, in the middle of a prompt, and at cache positions with a gap. The caches never change
/// Law      bits depend neither on threads nor on the order of rows; a head of no more rows than its budget keeps every bit of them
/// Law      without masses and values: the bits of evicting the same rows
/// Paper    Attention Matching: arXiv:2602.16284
template <KvStorage T>
CompactedRows<T> compact(std::span<const KvCache<T>> caches, std::span<const LayerScale> layers,
                         const ReferenceQueries<arithmetic_t<T>>& queries, const CompactOptions& options = {}) {
  if (caches.empty()) raise<ShapeError>("pith::compact: no caches, expected one for each layer");
  const AttentionShape& shape = caches.front().shape();
  const Index heads = shape.num_kv_heads, count = static_cast<Index>(caches.size());
  options.check(static_cast<std::size_t>(count * heads));
  if (layers.size() != caches.size() || queries.layers() != count || !(queries.shape() == shape))
    raise<ShapeError>("pith::compact: ", caches.size(), " caches of ", heads, " kv heads of ", shape.head_dim, " with ", layers.size(),
                      " layers and queries of ", queries.layers(), " layers, ", queries.shape().num_kv_heads, " kv heads of ",
                      queries.shape().head_dim, ": expected one each, of the same shape");
  for (Index l = 0; l < count; ++l) detail::check_compactable(caches[static_cast<std::size_t>(l)], caches.front(), l);
  std::vector<detail::CompactHead<T>> parts;
  parts.reserve(static_cast<std::size_t>(count * heads));
  for (Index l = 0; l < count; ++l)
    for (Index h = 0; h < heads; ++h) {
      const LayerScale& layer = layers[static_cast<std::size_t>(l)];
      parts.emplace_back(caches[static_cast<std::size_t>(l)], layer, h, queries.of(l, h), options);
      if (parts.back().solves() && queries.tokens(l, h) == 0)
        raise<ShapeError>("pith::compact: no reference queries for kv head ", h, " of layer ", l,
                          ": observe the prompt (ReferenceQueries::observer) or add() some");
    }
  const auto each = [&](auto&& f) {
    const Index workers = (std::min)(options.executor.size(), static_cast<Index>(parts.size()));
    options.executor(workers, [&](Index worker) {
      for (std::size_t p = static_cast<std::size_t>(worker); p < parts.size(); p += static_cast<std::size_t>(workers)) f(parts[p], p);
    });
  };
  RowScores scores(count, heads);
  each([&](detail::CompactHead<T>& part, std::size_t p) {
    RowScores::Head& head = scores.head(static_cast<Index>(p) / heads, static_cast<Index>(p) % heads);
    head.positions = part.positions();
    if (part.solves()) head.scores = part.score(options.budget.of_head.empty() ? options.budget.rows : options.budget.of_head[p]);
  });
  const auto kept = scores.best(options.budget, caches.front().first_position(), caches.front().next_position());
  each([&](detail::CompactHead<T>& part, std::size_t p) { part.solve(kept[p]); });
  return detail::gathered<T>(caches, [&](std::size_t p) -> const detail::KeptHead<T>& { return parts[p].kept(); });
}

}}  // namespace pith::v0
