#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/kv/detail/cache_internals.hpp>
#include <pith/model/session.hpp>

// The state of a session as a whole: built, copied, taken, restored, shortened.
namespace pith { inline namespace v0 {

template <class S, KvStorage T>
requires std::same_as<arithmetic_t<T>, S> Session<S, T>::Session(std::shared_ptr<const detail::DecoderModel<S>> model,
                                                                 std::span<const AnyPolicy<S>> per_layer, const SessionOptions& options,
                                                                 const AnyMerge<S>& merge)
    : model_(std::move(model)),
      max_prompt_((options.check(), options.max_prompt)),
      max_chunk_(options.max_draft + 1),
      adapter_(model_->target(), options.prefix, options.max_prompt) {
  detail::SessionLayout<S, T> layout(*model_, per_layer, options, merge);
  caches_ = std::move(layout.caches);
  prompt_buffer_ = std::move(layout.prompt_buffer);
  rows_ = layout.rows;
  switch_ = detail::RopeSwitch(model_->switch_length, options.text_length, options.prefix.next_position(), layout.keeps_all);
  const DecoderConfig& config = model_->config;
  hidden_.resize((std::max)(max_prompt_, max_chunk_), config.hidden_size);
  normed_.resize(max_chunk_, config.hidden_size);
  logits_.resize(max_chunk_, config.vocab_size);
  ws_ = detail::SessionWorkspace(detail::layer_workspace_bytes<S>(*model_, tile(), rows_, options.executor.size()), options.executor);
}

template <class S, KvStorage T>
requires std::same_as<arithmetic_t<T>, S> Session<S, T> Session<S, T>::clone()
const {
  check_whole();
  return Session(*this);
}

template <class S, KvStorage T>
requires std::same_as<arithmetic_t<T>, S>
void Session<S, T>::checkpoint() {
  check_whole();
  for (Cache& cache : caches_) cache.checkpoint();
}

template <class S, KvStorage T>
requires std::same_as<arithmetic_t<T>, S>
void Session<S, T>::crop(Position p) {
  check_whole();
  for (Cache& cache : caches_)
    if (!cache.can_crop(p)) cache.crop(p);  // throws, and says why, before any layer changes
  adapter_.check_crop(p);
  adapter_.cut(p);
  if (p != next_position()) newest_ = -1;
  for (Cache& cache : caches_) cache.crop(p);
  switch_.crop(p - caches_.front().first_position() - adapter_.prompt_rows(caches_.front().first_position()));
}

template <class S, KvStorage T>
requires std::same_as<arithmetic_t<T>, S>
void Session<S, T>::clear() {
  for (Cache& cache : caches_) cache.clear();
  switch_.clear();
  adapter_.begin(next_position());
  newest_ = -1;
  whole_ = true;
}

template <class S, KvStorage T>
requires std::same_as<arithmetic_t<T>, S> Index Session<S, T>::make_room(Index coming) {
  check_whole();
  undo_.check_room(caches_, coming);
  undo_.begin_room(caches_, coming);
  Attempt attempt(*this);
  Index dropped = 0;
  for (std::size_t layer = 0; layer < caches_.size(); ++layer) dropped += pass(layer).evict(caches_[layer], coming);
  newest_ = attempt.end();
  return dropped;
}

template <class S, KvStorage T>
requires std::same_as<arithmetic_t<T>, S>
void Session<S, T>::use(const ModelAdapter<S>* adapter) {
  ws_.make_room(adapter != nullptr ? adapter->more_workspace_bytes(tile(), ws_.workers()) : 0);
  adapter_.use(adapter, next_position(), whole_);
}

template <class S, KvStorage T>
requires std::same_as<arithmetic_t<T>, S> KvPrefix Session<S, T>::freeze()
const {
  check_whole();
  switch_.check_placed("freeze()", next_position());
  switch_.check_freeze(next_position());
  std::vector<KvPrefixLayer<T>> layers;
  for (const Cache& cache : caches_) layers.push_back(cache.freeze());
  return KvPrefix(model_->config.attention(), next_position(), std::move(layers), adapter_.key());
}

template <class S, KvStorage T>
requires std::same_as<arithmetic_t<T>, S> SessionSnapshot<S, T> Session<S, T>::snapshot()
const {
  check_whole();
  switch_.check_placed("snapshot()", next_position());
  SessionSnapshot<S, T> out{.fingerprint = model_->weights.fingerprint ^ switch_.mark(next_position()),
                            .adapter = adapter_.key(),
                            .adapter_start = adapter_.start(),
                            .logits = logits()};
  for (const Cache& cache : caches_) out.layers.push_back(cache.snapshot());
  return out;
}

template <class S, KvStorage T>
requires std::same_as<arithmetic_t<T>, S> std::string Session<S, T>::problem(const SessionSnapshot<S, T>& s)
const {
  const std::uint64_t mark = s.layers.empty() ? 0 : switch_.mark(s.layers.front().next);
  const std::string wrong = detail::snapshot_problem(s, model_->weights.fingerprint ^ mark, vocab_size(), caches());
  return wrong.empty() ? adapter_.problem(s.adapter, s.adapter_start, s.layers.front().next) : wrong;
}

template <class S, KvStorage T>
requires std::same_as<arithmetic_t<T>, S>
void Session<S, T>::restore(const SessionSnapshot<S, T>& s) {
  if (const std::string wrong = problem(s); !wrong.empty()) raise<ShapeError>("pith::Session: restore() of a snapshot " + wrong);
  for (std::size_t layer = 0; layer < caches_.size(); ++layer) caches_[layer].restore(s.layers[layer]);
  logits_.topRows(s.logits.rows()) = s.logits;
  switch_.restored(next_position());
  adapter_.begin(next_position(), s.adapter != 0 ? s.adapter_start : -1);
  newest_ = s.logits.rows() - 1;
  whole_ = true;
}

template <class S, KvStorage T>
requires std::same_as<arithmetic_t<T>, S> Index Session<S, T>::drop(Position first, Position last) {
  check_whole();
  if (first < caches_.front().first_position() || last < first || last > next_position())
    raise<ShapeError>("pith::Session::drop: positions ", first, " .. ", last, ", expected them to ascend within ",
                      caches_.front().first_position(), " .. ", next_position());
  for (const Cache& cache : caches_) detail::CacheInternals::state(cache).check_drop(first, last);
  switch_.check_placed("drop()", next_position());
  Index dropped = 0;
  for (std::size_t layer = 0; layer < caches_.size(); ++layer) {
    dropped += caches_[layer].drop(first, last);
    pass(layer).evict(caches_[layer]);  // nothing leaves; at cache positions the gap closes
  }
  if (last > first) switch_.note_unknown();
  if (last > first && last == next_position()) newest_ = -1;
  return dropped;
}

}}  // namespace pith::v0
