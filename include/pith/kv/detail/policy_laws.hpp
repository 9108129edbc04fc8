#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/attention/rope.hpp>
#include <pith/core/check.hpp>
#include <pith/kv/any_policy.hpp>
#include <pith/kv/detail/law_tokens.hpp>
#include <pith/kv/detail/score_witness.hpp>
#include <pith/kv/kv_cache.hpp>
#include <pith/kv/policy_law_options.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// The laws of policies, each a member function that throws BrokenLaw.
template <KvStorage T> class PolicyLaws : LawTokens<T> {
 public:
  using typename LawTokens<T>::S, typename LawTokens<T>::Cache, typename LawTokens<T>::Tokens;

  PolicyLaws(AnyPolicy<S> policy, const PolicyLawOptions& options)
      : LawTokens<T>(options.shape, true),
        policy_(std::move(policy)),
        facts_(policy_.facts(shape_)),
        seed_(options.seed),
        beyond_(options.beyond),
        phase_(facts_.traits.prompt_only ? Phase::prefill : Phase::decode) {
    gaps_ = !(facts_.eviction == Eviction::by_age && facts_.traits.positions == RopePositions::cache);
  }

  /// Law: exactly those rows stay that the policy's own scores say, ties and NaN included.
  void selection(bool few) {
    start(seed_ + 2);
    const auto seen = std::make_shared<ScoresSeen>();
    Cache cache(shape_, ScoreWitness<S>(policy_, seen, few), {.max_chunk = 5 + beyond_});
    std::size_t decisions = 0;
    for (int i = 0; i < 40; ++i) {
      seen->clear();
      step(cache, 1 + i % 5, phase_);
      for (const auto& [h, scores] : *seen) {
        const auto newest = facts_.traits.keeps_newest ? std::optional<Position>(cache.next_position() - 1) : std::nullopt;
        require(held(cache, h) == survivors(scores, facts_.retain, newest), "the rows of highest score stay, of equals the newer", h);
        ++decisions;
      }
    }
    require(decisions > 0 || facts_.budget > 100, "score() is asked once a head exceeds its budget");
  }

  /// Law: while no head has held more rows than its budget, attention is bit for bit that of Dense.
  void within_budget() {
    Cache dense(shape_, {}, {.max_tokens = 500}), ours(shape_, policy_, {.max_chunk = 5, .max_tokens = 500});
    for (Index fed = 0; fed + 3 <= (std::min)(ours.budget(), Index(60)); fed += 3) {
      start(seed_ + 1 + static_cast<std::uint64_t>(fed));
      const Matrix<S> expected = step(dense, 3, Phase::decode);
      start(seed_ + 1 + static_cast<std::uint64_t>(fed));
      require(step(ours, 3, phase_) == expected, "within the budget attention equals that of a dense cache bit for bit");
    }
  }

  /// Laws of a stream: budgets hold, rows that stay are unchanged, evict() is idempotent, snapshots and crop() restore everything.
  void stream() {
    start(seed_);
    const KvCacheOptions options{.max_chunk = 5 + beyond_, .max_draft = 12, .max_tokens = 500};
    Cache cache(shape_, policy_, options), all(shape_, {}, {.max_tokens = 2000});  // `all` holds every token as it is stored
    std::vector<std::set<Position>> before(static_cast<std::size_t>(shape_.num_kv_heads));
    for (int i = 0; i < 60; ++i) {
      step(cache, 1 + i % 5, phase_, &all);
      check_rows(cache, all, before);
      const Cache once = cache.clone();
      require(cache.evict() == 0 && same_state(cache, once), "a second evict() changes nothing");
      turn(cache);
    }
    snapshots(cache, options);
    for (int round = 0; round < 12; ++round) rollback(cache);
  }

  /// Law: a prompt in pieces keeps the rows of the whole, wherever it is cut. Policies that evict while text comes in are asked with one
  /// evict() at the end, prompt-only policies also with one after each piece, and in a second turn.
  void prompts() {
    constexpr Index longest = 48;
    start(seed_);
    const auto upto = [&](Index most) { return 1 + static_cast<Index>(rng_() % static_cast<std::uint64_t>(most)); };
    for (int round = 0; round < 12; ++round) {
      const KvCacheOptions options{.max_chunk = longest, .max_tokens = 4 * longest, .max_generated = longest};
      Cache whole(shape_, policy_, options), said(shape_, policy_, options), unsaid(shape_, policy_, options),
          each(shape_, policy_, options);
      for (int turn = 0; turn < 2; ++turn) {
        const Index tokens = upto(longest);
        const Tokens text = random_tokens(tokens);
        std::vector<Index> pieces;
        const Index last = round == 0 ? 1 : (std::min)(tokens, upto(4));  // shorter than any window
        for (Index left = tokens - last; left > 0; left -= pieces.back()) pieces.push_back(round == 1 ? 1 : upto(left));
        pieces.push_back(last);
        read(whole, text, std::vector<Index>{tokens}, false, false);
        read(said, text, pieces, true, false);
        read(unsaid, text, pieces, false, false);
        require(same_tokens(whole, said) && same_tokens(whole, unsaid), "a prompt in pieces keeps the rows of the whole");
        if (!facts_.traits.prompt_only) break;
        read(each, text, pieces, true, true);
        require(same_tokens(whole, each), "a prompt in pieces, with an evict() after each, keeps the rows of the whole");
      }
    }
  }

  const PolicyFacts& facts() const { return facts_; }

 private:
  using LawTokens<T>::shape_, LawTokens<T>::gaps_, LawTokens<T>::rng_;
  using LawTokens<T>::random_tokens, LawTokens<T>::places, LawTokens<T>::look, LawTokens<T>::read;

  void require(bool holds, const char* law, Index head = -1) const {
    if (holds) return;
    raise<BrokenLaw>("pith::policy_laws: broken: ", law, " (after ", fed_, " tokens", head < 0 ? std::string() : text(", kv head ", head),
                     ", seed ", seed_, ")");
  }
  void start(std::uint64_t seed) {
    rng_.seed(seed);
    fed_ = 0;
    known_ = -1;
  }

  /// Appends random tokens, attends and evicts; `all` takes the tokens too.
  Matrix<S> step(Cache& cache, Index tokens, Phase phase, Cache* all = nullptr) {
    Tokens next = random_tokens(tokens);
    std::fill(next.skips.begin() + 1, next.skips.end(), Position(0));  // attend() takes neighbours
    const std::vector<Position> positions = places(cache.next_position(), next.skips);
    cache.append(next.k, next.v, {.phase = phase, .positions = positions});
    if (all != nullptr) all->append(next.k, next.v, {.positions = positions});
    const Matrix<S> out = look(cache, next.q);
    cache.evict();
    fed_ += tokens;
    return out;
  }
  /// Turns keys at cache positions, as a model does after every eviction.
  void turn(Cache& cache) const {
    if constexpr (std::is_same_v<T, S>)
      if (cache.reindexes() && shape_.head_dim % 2 == 0) cache.reindex(Rope<S>({.head_dim = shape_.head_dim}));
  }

  static std::set<Position> held(const Cache& cache, Index h) {
    const auto positions = cache.positions(h);
    return {positions.begin(), positions.end()};
  }
  static bool same_tokens(const Cache& a, const Cache& b) {
    for (Index h = 0; h < a.shape().num_kv_heads; ++h)
      if (held(a, h) != held(b, h)) return false;
    return true;
  }
  static bool same_state(const Cache& a, const Cache& b) {
    const auto outside_journal = [](const Cache& cache) {
      Cache copy = cache.clone();
      copy.crop(copy.next_position());
      return copy.snapshot();
    };
    return outside_journal(a) == outside_journal(b);
  }
  enum class Rows { keys, values };
  Matrix<S> stored(Rows which, const Cache& cache, Index h) const {
    Matrix<S> rows(cache.size(h), shape_.head_dim);
    which == Rows::keys ? cache.copy_keys(h, rows, cache.rope_positions()) : cache.copy_values(h, rows);
    return rows;
  }

  void check_rows(const Cache& cache, const Cache& all, std::vector<std::set<Position>>& before) {
    const Position next = cache.next_position();
    Index rows = 0;
    for (Index h = 0; h < shape_.num_kv_heads; ++h) rows += cache.size(h);
    if (facts_.traits.ragged) require(rows <= shape_.num_kv_heads * (cache.budget() + 1), "heads that share keep their budgets together");
    for (Index h = 0; h < shape_.num_kv_heads; ++h) {
      const std::set<Position> now = held(cache, h);
      std::set<Position>& earlier = before[static_cast<std::size_t>(h)];
      if (!facts_.traits.ragged && facts_.budget != unlimited) {
        require(cache.size(h) <= facts_.budget + beyond_, "a head keeps at most its budget", h);
        require(cache.size(h) <= facts_.budget || facts_.traits.overfills, "a policy that may exceed its budget has traits().overfills", h);
      }
      require(static_cast<Index>(now.size()) == cache.size(h), "a token has one row", h);
      for (const Position p : now) require(p > known_ || earlier.count(p) == 1, "a token that left does not return", h);
      if (facts_.traits.keeps_newest) require(now.count(next - 1) == 1, "the newest token stays", h);
      const auto positions = cache.positions(h);
      if (facts_.traits.ordered) require(std::is_sorted(positions.begin(), positions.end()), "rows stay in order", h);
      if (facts_.eviction == Eviction::by_age) {
        std::set<Position> expected;
        const Index count = all.size(h), n = (std::min)(count, facts_.budget);
        for (Index i = 0; i < n; ++i) expected.insert(all.positions(h)[static_cast<std::size_t>(i < facts_.initial ? i : count - n + i)]);
        require(now == expected, "by age the first rows and the newest stay", h);
      }
      const Matrix<S> k = stored(Rows::keys, cache, h), v = stored(Rows::values, cache, h);
      const Matrix<S> first_k = stored(Rows::keys, all, h), first_v = stored(Rows::values, all, h);
      for (Index r = 0; r < cache.size(h); ++r) {
        const auto every = all.positions(h);
        const Index p = std::lower_bound(every.begin(), every.end(), positions[static_cast<std::size_t>(r)]) - every.begin();
        require(v.row(r) == first_v.row(p) && (cache.reindexes() || k.row(r) == first_k.row(p)), "a row that stays is unchanged", h);
      }
      earlier = now;
    }
    known_ = next - 1;
  }

  void snapshots(const Cache& cache, const KvCacheOptions& options) {
    Cache other(shape_, policy_, options), fresh = other.clone();
    other.restore(cache.snapshot());
    require(same_state(other, cache), "a snapshot holds the whole state");
    other.clear();
    require(same_state(other, fresh), "clear() leaves nothing");
    other.restore(cache.snapshot());
    Cache twin = cache.clone();
    require(continues_alike(twin, other), "a restored cache goes on like the first");
  }
  bool continues_alike(Cache& a, Cache& b) {
    const std::mt19937_64 at = rng_;
    std::vector<Matrix<S>> first;
    for (int i = 0; i < 3; ++i) first.push_back(step(a, 2, Phase::decode));
    rng_ = at;
    for (int i = 0; i < 3; ++i)
      if (step(b, 2, Phase::decode) != first[static_cast<std::size_t>(i)]) return false;
    return same_state(a, b);
  }
  void rollback(Cache& cache) {
    cache.checkpoint();
    std::vector<Cache> states;
    for (Index left = 12; left > 0;) {
      const Index tokens = (std::min)(1 + static_cast<Index>(rng_() % 4), left);
      states.push_back(cache.clone());
      std::vector<Index> sizes;
      for (Index h = 0; h < shape_.num_kv_heads; ++h) sizes.push_back(cache.size(h));
      step(cache, tokens, Phase::decode);
      turn(cache);
      for (Index h = 0; facts_.traits.prompt_only && h < shape_.num_kv_heads; ++h)
        require(cache.size(h) == sizes[static_cast<std::size_t>(h)] + tokens, "a prompt-only policy keeps all decoded tokens", h);
      left -= tokens;
    }
    Cache& state = states[static_cast<std::size_t>(rng_() % states.size())];
    cache.crop(state.next_position());
    require(same_state(cache, state), "crop() restores the state bit for bit");
    state.crop(state.next_position());
    Cache twin = cache.clone();
    require(continues_alike(twin, state), "a cropped cache goes on as if nothing had been tried");
  }

  AnyPolicy<S> policy_;
  PolicyFacts facts_;
  std::uint64_t seed_;
  Index beyond_;
  Phase phase_;
  Index fed_ = 0;
  Position known_ = -1;  ///< newest token of the rows compared last
};

}}}  // namespace pith::v0::detail
