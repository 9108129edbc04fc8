#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/attention/rope.hpp>
#include <pith/kv/any_policy.hpp>
#include <pith/kv/kv_cache.hpp>
#include <pith/kv/wrapped_policy.hpp>

#include "support/catch.hpp"
#include "support/kv_stream.hpp"

namespace pith_test {

/// Whether two caches hold the same tokens, head by head.
template <class Cache> bool same_tokens(const Cache& a, const Cache& b) {
  for (pith::Index h = 0; h < a.shape().num_kv_heads; ++h)
    if (std::set<pith::Position>(a.positions(h).begin(), a.positions(h).end()) !=
        std::set<pith::Position>(b.positions(h).begin(), b.positions(h).end()))
      return false;
  return true;
}

/// Law: a prompt in pieces keeps the rows of the whole, wherever it is cut. Policies that evict while text comes in are asked for it with
/// one evict() in the end; prompt-only policies also with one after each piece, and in a second turn.
template <class P, class T = float>
void prompt_laws(const P& policy, const pith::AttentionShape& shape = {4, 2, 8}, std::uint64_t seed = 1) {
  using S = pith::arithmetic_t<T>;
  using Cache = pith::KvCache<P, pith::Drop, T>;
  constexpr pith::Index longest = 48;
  const pith::detail::PolicyFacts facts = pith::detail::policy_facts<S>(policy, shape);
  const pith::Index width = shape.num_kv_heads * shape.head_dim;
  KvStream<T> stream(shape, seed);
  const auto piece = [&](pith::Index left) { return 1 + static_cast<pith::Index>(stream.rng() % static_cast<std::uint64_t>(left)); };
  for (int round = 0; round < 12; ++round) {
    const pith::KvCacheOptions options{.max_chunk = longest, .max_tokens = 4 * longest, .max_generated = longest};
    // One evict() for all, whether pieces say that more follow or not; one after each.
    Cache whole(shape, policy, options), said(shape, policy, options), unsaid(shape, policy, options), each(shape, policy, options);
    for (int turn = 0; turn < 2; ++turn) {
      const pith::Index tokens = 1 + static_cast<pith::Index>(stream.rng() % longest);
      const pith::Matrix<S> q = stream.random(tokens, shape.num_heads * shape.head_dim), k = stream.random(tokens, width),
                            v = stream.random(tokens, width);
      std::vector<pith::TokenKind> kinds;
      for (pith::Index t = 0; t < tokens; ++t) kinds.push_back(stream.rng() % 3 == 0 ? pith::TokenKind::image : pith::TokenKind::text);
      // The last piece is short in most rounds: shorter than any window.
      std::vector<pith::Index> pieces;
      const pith::Index last = round == 0 ? 1 : std::min(tokens, piece(4));
      for (pith::Index left = tokens - last; left > 0; left -= pieces.back()) pieces.push_back(round == 1 ? 1 : piece(left));
      pieces.push_back(last);
      const auto read = [&](Cache& cache, const std::vector<pith::Index>& cuts, bool says_more, bool evicts_each) {
        pith::Index at = 0;
        for (const pith::Index n : cuts) {
          const std::span<const pith::TokenKind> marks(kinds.data() + at, static_cast<std::size_t>(n));
          cache.append(k.middleRows(at, n), v.middleRows(at, n),
                       {.phase = pith::Phase::prefill, .more = says_more && at + n < tokens, .kinds = marks});
          KvStream<T>::attend(cache, q.middleRows(at, n));
          at += n;
          if (evicts_each || at == tokens) cache.evict();
        }
      };
      read(whole, {tokens}, false, false);
      read(said, pieces, true, false);
      read(unsaid, pieces, false, false);
      REQUIRE(same_tokens(whole, said));
      REQUIRE(same_tokens(whole, unsaid));
      if (!facts.traits.prompt_only) break;
      read(each, pieces, true, true);
      REQUIRE(same_tokens(whole, each));
    }
  }
}

/// What a policy makes of the rows of each head, the last time it was asked: score by position.
using Scored = std::map<pith::Index, std::map<pith::Position, double>>;

/// P, with every score written down that the cache goes by. `few`: finite scores become 0, 1 or not-a-number, so that many rows tie.
template <class P> struct Witness : pith::WrappedPolicy<P> {
  std::shared_ptr<Scored> scored;
  bool few;
  Witness(P policy, std::shared_ptr<Scored> s, bool f) : pith::WrappedPolicy<P>{std::move(policy)}, scored(std::move(s)), few(f) {}

  template <class S>
  requires pith::ScoringPolicy<P, S>
  void score(const pith::KvRows<S>& rows, pith::VectorRef<S> out) const {
    this->inner.score(rows, out);
    if (!pith::detail::combines<S>(this->inner)) note(rows, out);
  }
  template <class S>
  requires pith::CombiningPolicy<P, S>
  void combine(pith::LayerScores<S>& layer) const {
    this->inner.combine(layer);
    for (pith::Index h = 0; h < layer.num_heads(); ++h) note(layer.rows(h), layer.scores(h));
  }

 private:
  template <class S> void note(const pith::KvRows<S>& rows, pith::VectorRef<S> out) const {
    auto& head = (*scored)[rows.kv_head];
    head.clear();
    for (pith::Index r = 0; r < rows.size(); ++r) {
      const pith::Position p = rows.positions[static_cast<std::size_t>(r)];
      if (few && !std::isinf(out[r])) out[r] = p % 5 == 0 ? std::numeric_limits<S>::quiet_NaN() : S(p % 3 == 0);
      head[p] = double(out[r]);
    }
  }
};

/// The rows of a head that stay when so many should, by these scores: +inf always, -inf never, of the rest the best; not-a-numbers rank
/// below all numbers, and of equals the older leaves.
inline std::set<pith::Position> survivors(const std::map<pith::Position, double>& scores, pith::Index retain,
                                          std::optional<pith::Position> newest) {
  constexpr double inf = std::numeric_limits<double>::infinity();
  std::vector<std::tuple<int, double, pith::Position>> ranked;  // the first to leave first
  pith::Index gone = 0, safe = 0;
  for (const auto& [p, given] : scores) {
    const double score = newest == p ? inf : given;
    gone += score == -inf;
    safe += score == inf;
    ranked.emplace_back(score == -inf ? 0 : std::isnan(score) ? 1 : 2, std::isnan(score) ? 0 : score, p);
  }
  std::sort(ranked.begin(), ranked.end());
  const pith::Index n = static_cast<pith::Index>(ranked.size()), leave = std::min(std::max(n - retain, gone), n - safe);
  std::set<pith::Position> stay;
  for (pith::Index i = std::max<pith::Index>(leave, 0); i < n; ++i) stay.insert(std::get<2>(ranked[static_cast<std::size_t>(i)]));
  return stay;
}

/// Laws 1, 4 and 6 for a policy that scores: of the rows of a head exactly those stay that its own scores say.
template <class P, class T = float> void selection_laws(const P& policy, const pith::AttentionShape& shape, std::uint64_t seed, bool few) {
  using S = pith::arithmetic_t<T>;
  INFO("seed " << seed << (few ? ", scores that tie" : ", scores as they are"));
  const auto scored = std::make_shared<Scored>();
  pith::KvCache<Witness<P>, pith::Drop, T> cache(shape, Witness<P>(policy, scored, few), {.max_chunk = 5});
  const pith::detail::PolicyFacts facts = pith::detail::policy_facts<S>(policy, shape);
  const pith::Phase phase = facts.traits.prompt_only ? pith::Phase::prefill : pith::Phase::decode;
  KvStream<T> stream(shape, seed);
  std::size_t decisions = 0;
  for (int step = 0; step < 40; ++step) {
    scored->clear();
    stream.step(cache, 1 + step % 5, phase);
    for (const auto& [h, scores] : *scored) {
      const std::optional<pith::Position> newest =
          facts.traits.keeps_newest ? std::optional<pith::Position>(cache.next_position() - 1) : std::nullopt;
      const auto positions = cache.positions(h);
      REQUIRE(std::set<pith::Position>(positions.begin(), positions.end()) == survivors(scores, facts.retain, newest));
      ++decisions;
    }
  }
  REQUIRE((decisions > 0 || facts.budget > 100));
}

/// Any policy of yours can be run through this: policy_laws(MyPolicy{…}), and law 7 through laws/policy_in_session.hpp. Budgets of about 4
/// to 40 rows test most. `beyond`: rows a head may keep over its budget because the policy scores them +inf. Prompt-only policies read a
/// prompt at every step, and decode inside journals. Keys at cache positions are turned after every eviction, where they can be.
template <class P, class T = float>
void policy_laws(const P& policy, const pith::AttentionShape& shape = {4, 2, 8}, std::uint64_t seed = 1, pith::Index beyond = 0) {
  using S = pith::arithmetic_t<T>;
  using Cache = pith::KvCache<P, pith::Drop, T>;
  INFO("seed " << seed);
  KvStream<T> stream(shape, seed);
  Cache cache(shape, policy, {.max_chunk = 5, .max_draft = 12, .max_tokens = 500});
  const pith::detail::PolicyFacts facts = pith::detail::policy_facts<S>(policy, shape);
  const pith::Phase phase = facts.traits.prompt_only ? pith::Phase::prefill : pith::Phase::decode;
  const pith::Index heads = shape.num_kv_heads;
  const auto turned = [](Cache& c) {
    if constexpr (std::is_same_v<T, S>)
      if (c.reindexes() && c.shape().head_dim % 2 == 0) c.reindex(pith::Rope<S>({.head_dim = c.shape().head_dim}));
  };

  // 1, 4, 6: who stays is what the scores say, ties and not-a-numbers included.
  if constexpr (pith::ScoringPolicy<P, S>)
    for (const bool few : {false, true})
      if (facts.eviction == pith::detail::Eviction::by_score) selection_laws<P, T>(policy, shape, seed + 2, few);

  // 5: while no head has held more rows than its budget, attention equals Dense's bit for bit.
  {
    pith::KvCache<pith::Dense, pith::Drop, T> dense(shape, {}, {.max_tokens = 500});
    Cache watched(shape, policy, {.max_chunk = 5, .max_tokens = 500});
    KvStream<T> same(shape, seed + 1);
    for (pith::Index fed = 0; fed + 3 <= std::min<pith::Index>(cache.budget(), 60); fed += 3) {
      const pith::Matrix<S> q = same.random(3, shape.num_heads * shape.head_dim), k = same.random(3, heads * shape.head_dim),
                            v = same.random(3, heads * shape.head_dim);
      const pith::Matrix<S> ours = KvStream<T>::feed(watched, q, k, v, phase), theirs = KvStream<T>::feed(dense, q, k, v);
      REQUIRE(ours == theirs);
    }
  }

  std::vector<std::set<pith::Position>> held(static_cast<std::size_t>(heads));
  for (int step = 0; step < 60; ++step) {
    const pith::Index tokens = 1 + step % 5;
    const pith::Position before = cache.next_position();
    stream.step(cache, tokens, phase);
    REQUIRE(cache.next_position() == before + tokens);
    pith::Index all_rows = 0;
    for (pith::Index h = 0; h < heads; ++h) all_rows += cache.size(h);
    if (facts.traits.ragged) REQUIRE(all_rows <= heads * (cache.budget() + 1));
    for (pith::Index h = 0; h < heads; ++h) {
      const auto positions = cache.positions(h);
      const auto keys = keys_of(cache, h), values = values_of(cache, h);
      // 1: a head exceeds its budget only by rows scored +inf, which a policy within its own budget never has.
      if (!facts.traits.ragged) REQUIRE(cache.size(h) <= cache.budget() + (cache.budget() == pith::unlimited ? 0 : beyond));
      // 3: what stays was there before, once, and unchanged.
      std::set<pith::Position> now(positions.begin(), positions.end());
      REQUIRE(now.size() == positions.size());
      for (const pith::Position p : now) REQUIRE((p >= before || held[static_cast<std::size_t>(h)].count(p) == 1));
      for (std::size_t r = 0; r < positions.size(); ++r) {
        const auto p = static_cast<std::size_t>(positions[r]);
        const auto row = static_cast<pith::Index>(r);
        if (!cache.reindexes()) REQUIRE(keys.row(row) == as_stored<T>(&stream.keys[p](0, h * shape.head_dim), shape.head_dim));
        REQUIRE(values.row(row) == as_stored<T>(&stream.values[p](0, h * shape.head_dim), shape.head_dim));
      }
      // 4: the newest token survives.
      if (facts.traits.keeps_newest) REQUIRE(now.count(cache.next_position() - 1) == 1);
      if (facts.traits.ordered) REQUIRE(std::is_sorted(positions.begin(), positions.end()));
      held[static_cast<std::size_t>(h)] = std::move(now);
    }
    if (facts.eviction == pith::detail::Eviction::by_age) {  // by age: the first rows and the newest
      const pith::Index n = std::min<pith::Index>(cache.next_position(), cache.budget());
      for (pith::Index h = 0; h < heads; ++h) {
        std::set<pith::Position> expected;
        for (pith::Index i = 0; i < n; ++i)
          expected.insert(static_cast<pith::Position>(i < facts.initial ? i : cache.next_position() - n + i));
        REQUIRE(held[static_cast<std::size_t>(h)] == expected);
      }
    }
    // 2: a second evict() changes nothing.
    const Cache once = cache.clone();
    REQUIRE(cache.evict() == 0);
    REQUIRE(same_state(cache, once));
    turned(cache);
  }

  // A snapshot holds all there is, and clear() leaves nothing of it.
  {
    Cache other(shape, policy, {.max_chunk = 5, .max_draft = 12, .max_tokens = 500}), fresh = other.clone();
    other.restore(cache.snapshot());
    REQUIRE(same_state(other, cache));
    other.clear();
    REQUIRE(same_state(other, fresh));
    other.restore(cache.snapshot());
    Cache twin = cache.clone();
    KvStream<T> a(shape, seed + 5), b(shape, seed + 5);
    for (int i = 0; i < 3; ++i) REQUIRE(a.step(twin, 2) == b.step(other, 2));
    REQUIRE(same_state(other, twin));
  }

  // 8: crop restores bit for bit, and the stream goes on as if nothing had been tried.
  for (int round = 0; round < 12; ++round) {
    cache.checkpoint();
    std::vector<Cache> before;
    std::vector<pith::Position> begins;
    for (pith::Index left = 12; left > 0;) {
      const pith::Index tokens = std::min<pith::Index>(1 + static_cast<pith::Index>(stream.rng() % 4), left);
      before.push_back(cache.clone());
      begins.push_back(cache.next_position());
      std::vector<pith::Index> sizes;
      for (pith::Index h = 0; h < heads; ++h) sizes.push_back(cache.size(h));
      stream.step(cache, tokens);
      turned(cache);
      // 1: a prompt-only policy adds the tokens decoded since the prompt.
      for (pith::Index h = 0; facts.traits.prompt_only && h < heads; ++h)
        REQUIRE(cache.size(h) == sizes[static_cast<std::size_t>(h)] + tokens);
      left -= tokens;
    }
    const std::size_t to = static_cast<std::size_t>(stream.rng() % begins.size());
    cache.crop(begins[to]);
    REQUIRE(same_state(cache, before[to]));
    before[to].crop(before[to].next_position());
    KvStream<T> a(shape, seed + 7), b(shape, seed + 7);
    Cache twin = cache.clone();
    for (int i = 0; i < 3; ++i) REQUIRE(a.step(twin, 2) == b.step(before[to], 2));
    REQUIRE(same_state(twin, before[to]));
  }

  // 9: a prompt in pieces keeps the rows of the whole.
  prompt_laws<P, T>(policy, shape, seed);
}

}  // namespace pith_test
