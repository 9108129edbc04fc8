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
#include <pith/kv/detail/cache_internals.hpp>
#include <pith/kv/detail/slab.hpp>
#include <pith/kv/kv_cache.hpp>
#include <pith/kv/prefix.hpp>
#include <pith/kv/snapshot.hpp>

// Rows of a head that stay: copied, joined, put back into a cache.

namespace pith { inline namespace v0 {

template <KvStorage T> struct CompactedRows;

namespace detail {

/// The last run of a head: its own rows, behind those of a prefix.
template <KvStorage T> const KvRun<T>& own_run(const KvView<T>& view, Index kv_head) {
  const std::size_t a_head = view.runs.size() / static_cast<std::size_t>(view.shape.num_kv_heads);
  return view.runs[static_cast<std::size_t>(kv_head) * a_head + a_head - 1];
}

/// Throws   StateError, ShapeError for a cache whose rows cannot be taken out of their context, or that differs from the first layer's
template <KvStorage T> void check_compactable(const KvCache<T>& cache, const KvCache<T>& first, Index layer) {
  const CacheState<T>& state = CacheInternals::state(cache);
  if (state.in_prompt_buffer() || state.unevicted > 0) state.rules.raise_mid_prompt("compact()");
  if (state.journal.open()) raise<StateError>("pith::compact: layer ", layer, " is inside a journal: crop() to end it first");
  if (cache.gap() > 0 || cache.query_position() != cache.next_position())
    raise<StateError>("pith::compact: layer ", layer, " has tokens nearer than in the text: use RopePositions::text for what is compacted");
  if (!(cache.shape() == first.shape()) || cache.next_position() != first.next_position())
    raise<ShapeError>("pith::compact: layer ", layer, " is at position ", cache.next_position(), " with ", cache.shape().num_kv_heads,
                      " kv heads, layer 0 at ", first.next_position(), " with ", first.shape().num_kv_heads, ": expected the same");
}

/// Rows of one head: which they are, and a copy of them. Masses are logarithms as attention adds them.
template <KvStorage T> struct KeptHead {
  std::vector<Index> rows;
  std::vector<T> keys, values;
  std::vector<Position> positions;
  std::vector<float> log_mass;

  KeptHead() = default;
  KeptHead(const KvCache<T>& cache, Index kv_head, std::span<const Index> of) : rows(of.begin(), of.end()) {
    const KvRun<T>& run = own_run(cache.view(), kv_head);
    const Index key = key_units<T>(cache.shape().head_dim), value = value_units<T>(cache.shape().head_dim);
    for (const Index r : rows) {
      keys.insert(keys.end(), key_of(run, r), key_of(run, r) + key);
      values.insert(values.end(), value_of(run, r), value_of(run, r) + value);
      positions.push_back(run.positions[r]);
      log_mass.push_back(run.log_mass != nullptr ? run.log_mass[r] : 0.f);
    }
  }
};

/// The kept heads of all layers as layers: head_of(layer · heads + head).
template <KvStorage T, class HeadOf> CompactedRows<T> gathered(std::span<const KvCache<T>> caches, HeadOf&& head_of) {
  const KvCache<T>& first = caches.front();
  CompactedRows<T> out{.shape = first.shape(), .next = first.next_position()};
  const auto heads = static_cast<std::size_t>(out.shape.num_kv_heads);
  for (std::size_t l = 0; l < caches.size(); ++l) {
    KvPrefixLayer<T> layer;
    layer.scouts = CacheInternals::state(caches[l]).rules.options.scout_keys;
    std::vector<std::vector<Index>> kept;
    for (std::size_t h = 0; h < heads; ++h) {
      const KeptHead<T>& head = head_of(l * heads + h);
      layer.sizes.push_back(static_cast<Index>(head.positions.size()));
      layer.keys.insert(layer.keys.end(), head.keys.begin(), head.keys.end());
      layer.values.insert(layer.values.end(), head.values.begin(), head.values.end());
      layer.positions.insert(layer.positions.end(), head.positions.begin(), head.positions.end());
      layer.log_mass.insert(layer.log_mass.end(), head.log_mass.begin(), head.log_mass.end());
      kept.push_back(head.rows);
    }
    if (std::all_of(layer.log_mass.begin(), layer.log_mass.end(), [](float m) { return m == 0; })) layer.log_mass.clear();
    out.layers.push_back(std::move(layer));
    out.kept.push_back(std::move(kept));
    const KvView<T> view = caches[l].view();
    if (view.runs.size() == 2 * heads) {
      std::vector<KvRun<T>> prefix;
      for (std::size_t h = 0; h < heads; ++h) prefix.push_back(view.runs[2 * h]);
      out.before.push_back(frozen(KvView<T>{view.shape, view.next, prefix}));
    }
  }
  return out;
}

/// Head by head, the rows of a before those of b.
template <KvStorage T> KvPrefixLayer<T> joined(const KvPrefixLayer<T>& a, const KvPrefixLayer<T>& b, Index head_dim) {
  KvPrefixLayer<T> out;
  out.scouts = a.scouts || b.scouts;
  const bool masses = !a.log_mass.empty() || !b.log_mass.empty();
  Index first[2] = {0, 0};
  for (std::size_t h = 0; h < a.sizes.size(); ++h) {
    out.sizes.push_back(a.sizes[h] + b.sizes[h]);
    for (const KvPrefixLayer<T>* part : {&a, &b}) {
      Index& from = first[part == &b ? 1 : 0];
      const Index n = part->sizes[h];
      const auto append = [&](auto& to, const auto& rows, Index width) {
        to.insert(to.end(), rows.begin() + from * width, rows.begin() + (from + n) * width);
      };
      append(out.keys, part->keys, key_units<T>(head_dim));
      append(out.values, part->values, value_units<T>(head_dim));
      append(out.positions, part->positions, 1);
      if (masses && !part->log_mass.empty()) append(out.log_mass, part->log_mass, 1);
      if (masses && part->log_mass.empty()) out.log_mass.insert(out.log_mass.end(), static_cast<std::size_t>(n), 0.f);
      from += n;
    }
  }
  return out;
}

/// Writes the rows that stay over those of a snapshot.
///
/// Throws   StateError, UnsupportedError where the cache could not go on with them
template <KvStorage T>
void replace_layer(const KvCache<T>& cache, const KvPrefixLayer<T>& rows, const std::vector<std::vector<Index>>& kept, Index layer,
                   KvSnapshot<T>& s) {
  using S = arithmetic_t<T>;
  const CacheRules& rules = CacheInternals::state(cache).rules;
  if (rules.by_age() || rules.angles())
    raise<UnsupportedError>("pith::replace: layer ", layer,
                            " evicts by age or reads at cache positions: its rows have no gaps; make a prefix of what is compacted");
  if (!rows.log_mass.empty() && !rules.options.keep_masses)
    raise<StateError>("pith::replace: rows of layer ", layer,
                      " have masses, which its attention does not count: start with keep_masses, or compact without masses");
  const KvSnapshot<T> old = std::exchange(s, {});
  s.layout = old.layout, s.next = old.next, s.next_rope_position = old.next_rope_position, s.lost_initial = old.lost_initial;
  s.prefill = old.prefill, s.more = old.more, s.heads = old.heads, s.memory = old.memory, s.gate = old.gate;
  s.keys = rows.keys, s.values = rows.values, s.positions = rows.positions;
  s.stats.resize(old.stats.rows(), static_cast<Index>(rows.positions.size()));
  Index first = 0, row = 0;
  for (std::size_t h = 0; h < kept.size(); ++h) {
    const Index size = static_cast<Index>(old.heads[3 * h]);
    s.heads[3 * h] = static_cast<std::int64_t>(kept[h].size());
    for (const Index r : kept[h]) {
      const Index from = first + r;
      if (r >= size || old.positions[static_cast<std::size_t>(from)] != rows.positions[static_cast<std::size_t>(row)])
        raise<StateError>("pith::replace: rows of kv head ", h, " of layer ", layer, " have come or gone: compact anew");
      s.kinds.push_back(old.kinds[static_cast<std::size_t>(from)]);
      if (s.stats.rows() > 0) s.stats.col(row) = old.stats.col(from);
      if (!old.masses.empty())
        s.masses.push_back(
            rules.options.keep_masses
                ? static_cast<S>(std::exp(rows.log_mass.empty() ? 0.0 : double(rows.log_mass[static_cast<std::size_t>(row)])))
                : old.masses[static_cast<std::size_t>(from)]);
      ++row;
    }
    first += size;
  }
}

}  // namespace detail

}}  // namespace pith::v0
