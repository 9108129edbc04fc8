#pragma once

#include <algorithm>
#include <cstddef>

#include <pith/kv.hpp>
#include <pith/model/session.hpp>

#include "measure.hpp"

namespace pith_bench {

using pith::Position;

/// Bytes of the rows that the next token attends to, besides its own: the shares of keys and values that tokens have read so far, and all
/// scout codes, or a sixteenth of them if every query was flat.
template <class Session> double attended_bytes(const Session& session) {
  const pith::AttentionReads reads = session.reads();
  const auto share = [&](Index of) { return reads.rows == 0 ? 1 : static_cast<double>(of) / static_cast<double>(reads.rows); };
  double bytes = 0;
  for (const auto& cache : session.caches())
    for (const auto& run : cache.view().runs) {
      const double of_row =
          share(reads.keys) * static_cast<double>(run.stride) + share(reads.values) * static_cast<double>(run.steps_of_values());
      const Index codes = run.scouts == nullptr ? 0 : pith::scout_row_bytes(cache.shape().head_dim);
      bytes += static_cast<double>(run.rows) *
               (of_row * sizeof(*run.keys) + static_cast<double>(codes) * (reads.needed < reads.rows ? 1 : 1. / 16));
    }
  return bytes;
}

/// Brings a session to position `context` as if it had read that many tokens. Its cache holds as many of the newest rows as its policy
/// keeps, filled with random numbers; `spread` times larger keys make logits that spread as much more.
template <pith::KvStorage T> void begin_at(pith::Session<float, T>& session, Index context, Index spread = 1) {
  const auto caches = session.caches();
  const Index rows = std::min(context, caches[0].budget()), heads = caches[0].shape().num_kv_heads;
  if (rows == 0) return;
  const Index width = heads * caches[0].shape().head_dim;
  const pith::Matrix<float> k = static_cast<float>(spread) * random_matrix(std::min<Index>(rows, 1021), width, 3),
                            v = random_matrix(k.rows(), width, 4);
  pith::KvCache<T> written(caches[0].shape(), {}, {.max_draft = 0, .max_tokens = rows});
  for (Index r = 0; r < rows; r += k.rows())
    written.append(k.topRows(std::min(k.rows(), rows - r)), v.topRows(std::min(k.rows(), rows - r)));
  written.evict();
  pith::KvSnapshot<T> filled = written.snapshot(), empty = caches[0].snapshot();
  filled.layout = empty.layout;
  filled.next = static_cast<Position>(context);
  filled.next_rope_position = static_cast<Position>(caches[0].reindexes() ? rows : context);
  if (caches[0].reindexes()) filled.rope_positions = filled.positions;
  for (std::size_t h = 0; h < static_cast<std::size_t>(heads); ++h) filled.heads[3 * h + 1] = empty.heads[3 * h + 1];
  const auto first = static_cast<Position>(empty.heads[1]);  // those at the beginning of the text stay, by age
  for (Position& p : filled.positions)
    if (p >= first) p += static_cast<Position>(context - rows);
  filled.stats = random_matrix(empty.stats.rows(), filled.rows(), 5).cwiseAbs();
  filled.memory = empty.memory;
  filled.gate = empty.gate;
  for (auto& cache : caches) cache.restore(filled);
}

}  // namespace pith_bench
