#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/kv/kept_rows.hpp>
#include <pith/kv/row_budget.hpp>
#include <pith/model/detail/tile_scores.hpp>
#include <pith/model/look.hpp>
#include <pith/model/session.hpp>

// Scores of rows by proxy passes: every row is still there when they are taken, so a budget may be shared over all layers.

namespace pith { inline namespace v0 {

/// How kvzip_scores() asks for the context.
template <class S = float> struct KvzipOptions {
  Index chunk = 2048;                     ///< tokens repeated in one pass
  Position start = 0;                     ///< position of the context's first token; rows before it, a system prompt, stay
  Index sinks = 4;                        ///< the first rows, which every softmax includes and which stay
  std::span<const Token> question = {};   ///< before the first chunk: "Repeat the previous context exactly."
  std::span<const Token> continued = {};  ///< before later chunks, then the last `tail` tokens of the chunk before
  std::span<const Token> suffix = {};     ///< before every chunk: what ends a question in the model's chat format
  Index tail = 8;                         ///< tokens of the chunk before that a later chunk is introduced with
  std::span<const std::shared_ptr<const Matrix<S>>> o_proj = {};  ///< KVzip+: the layers' output projections; empty: KVzip
  LookOptions<S> look = {};                                       ///< options of the proxy passes
};

/// KVzip: the model repeats the context in a proxy pass, chunk by chunk, and a row scores the most attention it receives while its own
/// chunk is repeated. So rows are kept that any later question may need.
///
///   score_j = max_{q, g} softmax over sinks, own chunk and the repeat so far (q·K)_j;   KVzip+: … · ‖W_o v_j‖ / ‖x_q‖
///
///   const RowScores scores = kvzip_scores(session, context);
///   const KvPrefix small = keep_rows(session, scores, {.rows = 256, .share = RowBudget::Share::model}).prefix();
///
/// Keeps    rows before `start`, the first `sinks`, and rows behind the context score +inf
/// Cost     a prefill of the context again; each pass also attends to all rows
/// Throws   ShapeError for invalid options or projections, what Session::look() throws
/// Paper    KVzip: arXiv:2505.23416
template <class S, KvStorage T>
RowScores kvzip_scores(const Session<S, T>& session, std::span<const Token> context, const KvzipOptions<S>& options = {}) {
  check_count("kvzip_scores", "chunk", options.chunk, 1);
  check_count("kvzip_scores", "sinks", options.sinks, 0);
  check_count("kvzip_scores", "tail", options.tail, 0);
  detail::check_o_proj(session.config(), options.o_proj);
  const auto caches = session.caches();
  const Position first = caches.front().first_position(), length = static_cast<Position>(context.size());
  if (context.empty() || options.start < first || length > session.next_position() - options.start)
    raise<ShapeError>("pith::kvzip_scores: a context of ", length, " tokens from position ", options.start,
                      " on, expected 1 or more within ", first, " .. ", session.next_position());
  RowScores scores = detail::unscored(session);
  for (std::size_t l = 0; l < caches.size(); ++l)
    for (Index h = 0; h < scores.kv_heads(); ++h) {
      RowScores::Head& head = scores.head(static_cast<Index>(l), h);
      for (std::size_t r = 0; r < head.scores.size(); ++r) {
        const Position p = head.positions[r];
        const bool stays = p < options.start || p - first < options.sinks || p >= options.start + length;
        head.scores[r] = stays ? std::numeric_limits<double>::infinity() : 0.0;
      }
    }
  std::vector<Token> pass;
  for (Position done = 0; done < length; done += static_cast<Position>(options.chunk)) {
    const auto chunk = context.subspan(static_cast<std::size_t>(done), (std::min)(static_cast<std::size_t>(options.chunk),
                                                                                  context.size() - static_cast<std::size_t>(done)));
    const auto append = [&](std::span<const Token> tokens) { pass.insert(pass.end(), tokens.begin(), tokens.end()); };
    pass.clear();
    append(done == 0 ? options.question : options.continued);
    if (const auto tail = static_cast<std::size_t>((std::min)(Index(done), options.tail)); !options.continued.empty())
      append(context.subspan(static_cast<std::size_t>(done) - tail, tail));
    append(options.suffix);
    append(chunk);
    const detail::RepeatedChunk range{options.start + done, options.start + done + static_cast<Position>(chunk.size()),
                                      static_cast<Position>(first + options.sinks)};
    session.look(
        pass,
        [&](const LookTile<T>& tile) {
          RowScores::Head& head = scores.head(tile.layer, tile.attention.kv_head);
          if (head.scores.empty()) return;
          detail::repeat_scores(tile, range, options.o_proj.empty() ? nullptr : options.o_proj[static_cast<std::size_t>(tile.layer)].get(),
                                std::span(head.scores));
        },
        options.look);
  }
  return scores;
}

/// Finch: a row's score is the attention it receives from a question about the context. With planning tokens as the question: CacheNotes.
///
///   score_j = mean_{q, g} softmax(q·K)_j · (normalised: the number of keys before q)
///
/// Cost     a proxy pass of the question
/// Throws   what Session::look() throws
/// Paper    Finch: arXiv:2408.00167
template <class S, KvStorage T>
RowScores finch_scores(const Session<S, T>& session, std::span<const Token> question, bool normalised = true,
                       const LookOptions<S>& look = {}) {
  RowScores scores = detail::unscored(session);
  session.look(
      question,
      [&](const LookTile<T>& tile) {
        RowScores::Head& head = scores.head(tile.layer, tile.attention.kv_head);
        if (!head.scores.empty()) detail::mean_scores(tile, static_cast<Index>(question.size()), normalised, std::span(head.scores));
      },
      look);
  return scores;
}

/// keep_rows() of all layers of a session: rows scored by a proxy pass, with a budget that a head, a layer or the whole model shares.
template <class S, KvStorage T> CompactedRows<T> keep_rows(const Session<S, T>& session, const RowScores& scores, const RowBudget& budget) {
  CompactedRows<T> rows = keep_rows<T>(session.caches(), scores, budget);
  rows.adapter = session.adapter() != nullptr ? session.adapter()->fingerprint() : 0;
  return rows;
}

}}  // namespace pith::v0
