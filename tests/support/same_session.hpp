#pragma once

#include <cstring>
#include <string>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/model/session.hpp>

namespace pith_test {

/// The first thing that two snapshots do not share, bit for bit; empty: nothing.
template <pith::KvStorage T> std::string difference(const pith::KvSnapshot<T>& a, const pith::KvSnapshot<T>& b) {
  if (a.layout != b.layout) return "layout";
  if (a.next != b.next || a.next_rope_position != b.next_rope_position || a.unevicted != b.unevicted) return "positions";
  if (a.prefill != b.prefill || a.more != b.more) return "phase";
  if (a.heads != b.heads) return "heads";
  const auto same = [](const std::vector<T>& x, const std::vector<T>& y) {
    return x.size() == y.size() && (x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof(T)) == 0);
  };
  if (!same(a.keys, b.keys) || !same(a.values, b.values)) return "rows";
  if (a.positions != b.positions || a.rope_positions != b.rope_positions || a.kinds != b.kinds) return "marks of rows";
  if (a.stats != b.stats) return "stats";
  if (a.memory != b.memory) return "memory";
  if (a.masses != b.masses || a.gate != b.gate) return "masses";
  return {};
}

template <class S, pith::KvStorage T> std::string difference(const pith::Session<S, T>& a, const pith::Session<S, T>& b) {
  if (a.next_position() != b.next_position()) return pith::detail::text("position ", a.next_position(), " and ", b.next_position());
  const auto x = a.snapshot(), y = b.snapshot();
  if (x.logits.rows() != y.logits.rows() || x.logits != y.logits) return "logits";
  for (std::size_t layer = 0; layer < x.layers.size(); ++layer)
    if (const std::string what = difference(x.layers[layer], y.layers[layer]); !what.empty())
      return pith::detail::text("layer ", layer, ": ", what);
  return {};
}

}  // namespace pith_test
