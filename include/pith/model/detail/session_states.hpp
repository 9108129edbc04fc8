#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/kv/detail/cache_internals.hpp>
#include <pith/model/session.hpp>

// The state of a session as a whole: taken, restored, shortened.
namespace pith { inline namespace v0 {

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
