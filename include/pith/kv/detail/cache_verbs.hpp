#pragma once

#include <algorithm>
#include <string>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/kv/kv_cache.hpp>

// What KvCache's verbs do. They are defined outside the class, hence not inline: a program that declares the class extern leaves them, and
// all that they are made of, to the source file that instantiates it.

namespace pith { inline namespace v0 {

template <KvStorage Storage>
KvCache<Storage>::KvCache(const AttentionShape& shape, AnyPolicy<Scalar> policy, const KvCacheOptions& options, AnyMerge<Scalar> merge)
    : policy_(std::move(policy)), merge_(std::move(merge)), state_({shape, options, policy_.facts(shape), merge_.facts()}) {}

template <KvStorage Storage> void KvCache<Storage>::reserve(Index tokens, KvPromptBuffer<Storage>* prompt_buffer) {
  state_.reserve(tokens, prompt_buffer);
}

template <KvStorage Storage>
void KvCache<Storage>::append(ConstMatrixRef<Scalar> k, ConstMatrixRef<Scalar> v, const AppendOptions& options) {
  state_.append(k, v, options);
  const Index tokens = k.rows();
  for (Index h = 0; state_.rules.facts.admits && h < state_.heads(); ++h)
    policy_.admit(detail::rows_of(state_, h, size(h) - tokens, true), state_.stats(h, size(h) - tokens, tokens));
}

template <KvStorage Storage> void KvCache<Storage>::observe(const AttentionBlock<Scalar>& seen) {
  const Index h = seen.kv_head;
  state_.rules.check_head(h);
  state_.rules.check_block(seen, size(h), state_.next, state_.unevicted,
                           facts().traits.watches == all_queries ? state_.head(h).observed : 0);
  if (!watching()) return;
  const Index group = shape().group(), queries = seen.weights.rows() / group, watched = facts().traits.watches;
  const Index first = state_.first_row(h, seen.first_query, queries);  // in rows: positions may have gaps
  const Index skipped = watched == all_queries ? 0 : std::clamp(size(h) - watched - first, Index(0), queries);
  if (skipped == queries) return;
  const Index row = first + skipped;
  const AttentionBlock<Scalar> block =
      detail::last_queries(seen, (queries - skipped) * group, positions(h)[static_cast<std::size_t>(row)], row);
  state_.check_order(h, row, queries - skipped);
  policy_.observe(block, detail::rows_of(state_, h, 0, false), state_.stats(h, 0, size(h)), VectorRef<Scalar>(state_.memory.row(h)));
  state_.note_observed(h, queries - skipped);
}

template <KvStorage Storage> Index KvCache<Storage>::evict(Index coming) {
  const detail::CacheRules& rules = state_.rules;
  rules.check_coming(coming, state_.journal.open());
  if (state_.unevicted == 0 && (coming == 0 || rules.prompt_only())) return 0;
  for (Index h = 0; h < state_.heads(); ++h) rules.check_observed(state_.head(h).observed, state_.unevicted, state_.last);
  const Index retain = rules.retained(coming);
  const bool may = rules.may_evict(state_.last);
  const auto due = [&](Index h) { return may && rules.due(size(h), coming); };
  detail::Selection<Storage> selection{policy_, state_};
  bool together = false;
  for (Index h = 0; rules.facts.combines && h < state_.heads(); ++h) together = together || due(h);
  if (together) selection.score_together(retain);
  Index dropped = 0;
  for (Index h = 0; h < state_.heads(); ++h)
    dropped += state_.plan_head(h, together || due(h) ? selection.count_victims(h, retain, together) : 0);
  for (Index h = 0; h < state_.heads(); ++h) state_.close_head(h, selection.victims(h, state_.planned_evictions(h)), coming);
  if (rules.merge.merges && dropped > 0) state_.merge(merge_);
  state_.end_eviction(coming);
  return dropped;
}

template <KvStorage Storage> Index KvCache<Storage>::drop(Position first, Position last) { return state_.drop(first, last); }

template <KvStorage Storage> void KvCache<Storage>::checkpoint() { state_.checkpoint(); }

template <KvStorage Storage> bool KvCache<Storage>::can_crop(Position p) const { return state_.can_crop(p); }

template <KvStorage Storage> void KvCache<Storage>::crop(Position p) { state_.crop(p); }

template <KvStorage Storage> void KvCache<Storage>::clear() { state_.clear(); }

template <KvStorage Storage> KvCache<Storage> KvCache<Storage>::clone() const {
  KvCache copy(shape(), policy_, state_.rules.options, merge_);
  copy.state_.copy(state_);
  return copy;
}

template <KvStorage Storage> KvSnapshot<Storage> KvCache<Storage>::snapshot() const {
  if (state_.in_prompt_buffer()) state_.rules.raise_mid_prompt("snapshot()");
  if (state_.journal.open()) raise<StateError>("pith::KvCache: snapshot() inside a journal: crop() to end it first");
  return detail::Snapshots<Storage>(state_).take();
}

template <KvStorage Storage> std::string KvCache<Storage>::problem(const KvSnapshot<Storage>& s) const {
  return detail::Snapshots<Storage>(state_).problem(s);
}

template <KvStorage Storage> void KvCache<Storage>::restore(const KvSnapshot<Storage>& s) {
  if (const std::string wrong = problem(s); !wrong.empty()) raise<ShapeError>("pith::KvCache: restore() of a snapshot " + wrong);
  detail::Snapshots<Storage>::restore(state_, s);
}

template <KvStorage Storage> KvPrefixLayer<Storage> KvCache<Storage>::freeze() const {
  if (state_.in_prompt_buffer() || state_.unevicted > 0) state_.rules.raise_mid_prompt("freeze()");
  if (gap() > 0 || query_position() != next_position())
    raise<StateError>("pith::KvCache: freeze() needs RopePositions::text: a prefix cannot say that rows are nearer than in the text");
  KvPrefixLayer<Storage> layer = detail::frozen(view());
  layer.scouts = state_.rules.options.scout_keys;
  return layer;
}

}}  // namespace pith::v0
