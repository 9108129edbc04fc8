#pragma once

#include <cstddef>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/model/detail/head.hpp>
#include <pith/model/detail/prompt_rows.hpp>
#include <pith/model/session.hpp>

// How a session reads tokens: layer by layer, undone as a whole if a layer throws.
namespace pith { inline namespace v0 {

template <class S, KvStorage T>
requires std::same_as<arithmetic_t<T>, S>
void Session<S, T>::read_prompt(Index n, const AppendOptions& marks, const PrefillOptions& options, bool with_logits) {
  const Index soft = adapter_.lay_prompt(next_position(), hidden_);
  n += soft;
  detail::enter(*model_, hidden_.topRows(n));
  const Position length = static_cast<Position>(next_position() + n);
  undo_.begin_prompt(caches_, n, static_cast<bool>(options.progress));
  Attempt attempt(*this);
  detail::PromptRows<S> rows(n, soft, marks, options);
  for (std::size_t layer = 0; layer < caches_.size(); ++layer) {
    caches_[layer].reserve(rows.count(), detail::buffer_for(caches_[layer], marks, prompt_buffer_.get()));
    const QueryCallback queries = rows.callback(static_cast<Index>(layer), options);
    const Position start = caches_[layer].next_position();
    pass(layer, rows.places())
        .prefill(caches_[layer], hidden_.topRows(rows.count()), rows.marks(), length, layer + 1 == caches_.size() && !queries, rows.sight(),
                 queries ? &queries : nullptr, rows.places());
    if (rows.ranks(static_cast<Index>(layer))) rows.leave_out(caches_[layer], model_->layers[layer].spec, start, hidden_, ws_);
    pass(layer).evict(caches_[layer]);
    if (options.progress && !options.progress({static_cast<Index>(layer) + 1, static_cast<Index>(caches_.size())})) [[unlikely]]
      raise<Cancelled>("pith::Session::prefill: cancelled after ", layer + 1, " of ", caches_.size(), " layers");
  }
  n = rows.count();
  attempt.end();
  if (with_logits) read_logits(0, hidden_.middleRows(n - 1, 1));
}

template <class S, KvStorage T>
requires std::same_as<arithmetic_t<T>, S>
void Session<S, T>::read_next(Index first, Index n) {
  detail::enter(*model_, hidden_.topRows(n));
  undo_.begin_chunk(caches_, n);
  Attempt attempt(*this);
  for (std::size_t layer = 0; layer < caches_.size(); ++layer) pass(layer).decode(caches_[layer], hidden_.topRows(n));
  attempt.end();
  read_logits(first, hidden_.topRows(n));
}

template <class S, KvStorage T>
requires std::same_as<arithmetic_t<T>, S> AppendOptions Session<S, T>::begin_prompt(Index n, std::span<const TokenKind> kinds,
                                                                                    const PrefillOptions& options) {
  const Index soft = adapter_.prompt_rows(next_position());
  detail::check_prompt(n, soft, max_prompt_, kinds, options);
  options.queries.template check<S>();
  detail::check_pruning<T>(options.prune, model_->config, caches_, options.more);
  AppendOptions marks{.phase = Phase::prefill, .more = options.more, .kinds = kinds, .masses = options.masses};
  adapter_.mark_prompt(next_position(), marks);
  check_ready(soft + n, marks);
  if (switch_.on()) detail::SessionTables::choose(*this, next_position() + soft + n);
  return marks;
}

template <class S, KvStorage T>
requires std::same_as<arithmetic_t<T>, S>
void Session<S, T>::check_ready(Index n, const AppendOptions& marks) {
  check_whole();
  adapter_.cut(next_position());
  adapter_.check(next_position(), marks.phase == Phase::prefill);
  if (switch_.on()) switch_.check(next_position(), next_position() + (marks.phase == Phase::prefill ? n : 1), next_position() + n);
  detail::check_layers<T>(caches_, n, marks, prompt_buffer_.get());
}

}}  // namespace pith::v0
