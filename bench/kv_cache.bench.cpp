// What a cache costs beside attention, for every policy of the catalogue; against gathering what stays into new tensors.
//
// append+evict      a token in one layer at its budget; where rows leave in bites, from rows_per_eviction to rows_per_eviction
// evict_prompt_x2   one eviction of a prompt of twice the budget, by policies that evict only then
// of_attention      that time over the attention of one token over the same rows (of the prompt: all of it), measured in between
// us                the median of that time, which a mean over few iterations is not
// rel_err           rows are moved, not computed: 0, or nothing is reported of a case that keeps other rows than its policy says
#include <benchmark/benchmark.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include <pith/attention.hpp>
#include <pith/core.hpp>
#include <pith/kv.hpp>

#include "support/measure.hpp"
#include "support/register.hpp"

using namespace pith;
using namespace pith_bench;

namespace {

constexpr AttentionShape shape{32, 8, 128};
constexpr Index width = shape.num_kv_heads * shape.head_dim;

using Policy = AnyPolicy<float>;
using Entry = PolicyEntry<float>;
using Cache = KvCache<>;
using Positions = std::vector<std::vector<Position>>;  // by kv head, ascending

struct Case {
  Index rows;
  std::string text() const { return "/rows:" + std::to_string(rows); }
};

const PolicyModel<float>& model() {
  constexpr Index hidden_size = 256;  // "critical" takes time in proportion to it
  static const PolicyModel<float> of_the_layer{
      std::make_shared<Rope<float>>(RopeOptions{.head_dim = shape.head_dim}),
      std::make_shared<Matrix<float>>(random_matrix(hidden_size, shape.num_heads * shape.head_dim, 1))};
  return of_the_layer;
}

/// Measures the attention of one token over that many rows a head.
class Attention {
 public:
  explicit Attention(Index rows)
      : cache_(shape, {}, {.max_tokens = rows}), ws_(attend_workspace_bytes<float>(shape, rows, 1)), out_(1, query_.cols()) {
    const Matrix<float> k = random_matrix(64, width, 2);
    for (Index r = 0; r < rows; r += k.rows()) {
      const auto some = k.topRows(std::min(k.rows(), rows - r));
      cache_.append(some, some);
    }
  }
  void measure() {
    times_.add(seconds_of([&] { attend(query_, cache_.view(), out_, ws_); }));
    keep(out_);
  }
  void report(benchmark::State& state, double seconds) {
    while (times_.size() < 15) measure();
    state.counters["of_attention"] = seconds / times_.median();
    state.counters["us"] = seconds * 1e6;
    state.counters["rel_err"] = 0;
  }

 private:
  KvCache<> cache_;
  Workspace ws_;
  Matrix<float> query_ = random_matrix(1, shape.num_heads*shape.head_dim, 3), out_;
  Samples times_;
};

/// Weights a kernel would have shown: some rows heavier than others.
Matrix<float> weights_over(Index queries, Index rows, std::uint64_t seed) {
  Matrix<float> w = random_matrix(queries * shape.group(), rows, seed).cwiseAbs2();
  w.array().colwise() /= w.rowwise().sum().array().eval();
  return w;
}

Positions held_by(const Cache& cache) {
  Positions held;
  for (Index h = 0; h < shape.num_kv_heads; ++h) {
    held.emplace_back(cache.positions(h).begin(), cache.positions(h).end());
    std::sort(held.back().begin(), held.back().end());
  }
  return held;
}

/// One layer that decodes.
class Layer {
 public:
  Layer(const Policy& policy, Index rows, bool journal)
      : facts_(policy.facts(shape)),
        journal_(journal),
        cache_(shape, policy, {.max_draft = journal ? 8 : 0, .max_tokens = rows + most_together}) {
    for (Index h = 0; h < shape.num_kv_heads; ++h) weights_.push_back(weights_over(1, rows + 1, static_cast<std::uint64_t>(h)));
    k_.resize(together(), width);
    for (Index r = 0; r < rows; r += together()) append_evict(std::min(together(), rows - r));
  }

  /// Tokens measured together: whole bites, and enough to see the clock where no attention has to be shown in between.
  Index together() const {
    const Index rows_per_eviction = facts_.budget - facts_.retain + 1;
    return facts_.observes ? rows_per_eviction : std::max(rows_per_eviction, most_together);
  }

  /// Seconds for that many tokens, together() at most.
  double append_evict(Index tokens) {
    k_.topRows(tokens) = random_matrix(tokens, width, ++seed_);
    const auto append = [&](Index t) {
      if (journal_ && (seen_++ & 7) == 0) cache_.checkpoint();
      cache_.append(k_.middleRows(t, 1), k_.middleRows(t, 1));
    };
    double seconds = 0;
    if (!facts_.observes) {
      seconds = seconds_of([&] {
        for (Index t = 0; t < tokens; ++t) {
          append(t);
          evict();
        }
      });
    } else {
      for (Index t = 0; t < tokens; ++t) {
        seconds += seconds_of([&] { append(t); });
        observe();
        seconds += seconds_of([&] { evict(); });
      }
    }
    return seconds;
  }
  /// What never leaves by itself.
  void forget(Index tokens) {
    if (facts_.eviction == Eviction::never) cache_.crop(cache_.next_position() - static_cast<Position>(tokens));
  }

  bool right(const Entry& entry) {
    const Positions held = held_by(cache_);
    for (const std::vector<Position>& head : held) {
      if (std::adjacent_find(head.begin(), head.end()) != head.end() || head.back() >= cache_.next_position()) return false;
      if (facts_.eviction != Eviction::never && static_cast<Index>(head.size()) != facts_.budget) return false;
      if (facts_.traits.keeps_newest && head.back() != cache_.next_position() - 1) return false;
    }
    if (facts_.eviction == Eviction::by_age && held != by_age()) return false;
    if (entry.name.starts_with("h2o") && !lightest_leaves()) return false;
    return cache_.evict() == 0;
  }

 private:
  static constexpr Index most_together = 64;

  void evict() {
    cache_.evict();
    if (cache_.reindexes()) cache_.reindex(*model().rope);
  }
  /// Not counted here but as `watching` by bench/attend.
  void observe() {
    for (Index h = 0; h < shape.num_kv_heads; ++h)
      cache_.observe({.kv_head = h,
                      .weights = weights_[static_cast<std::size_t>(h)].leftCols(cache_.size(h)),
                      .log_sum = log_sum_,
                      .queries = queries_,
                      .first_query = static_cast<Position>(cache_.next_position() - 1)});
  }

  Positions by_age() const {
    const Index window = facts_.budget - facts_.initial;
    std::vector<Position> held(static_cast<std::size_t>(facts_.budget));
    std::iota(held.begin(), held.begin() + facts_.initial, 0);
    std::iota(held.begin() + facts_.initial, held.end(), static_cast<Position>(cache_.next_position() - window));
    return Positions(static_cast<std::size_t>(shape.num_kv_heads), held);
  }

  /// Whether the next victim is the one by the rule in double: the lightest row that is not recent.
  bool lightest_leaves() {
    const Matrix<float> k = random_matrix(1, width, ++seed_);
    cache_.append(k, k);
    observe();
    Positions expected;
    const Position recent = static_cast<Position>(cache_.next_position() - (facts_.budget - facts_.budget / 2));
    for (Index h = 0; h < shape.num_kv_heads; ++h) {
      const auto rows = cache_.positions(h);
      const auto stats = cache_.stats(h);
      std::vector<Position>& left = expected.emplace_back(rows.begin(), rows.end());
      std::size_t lightest = rows.size();
      const auto weight = [&](std::size_t r) { return static_cast<double>(stats(0, static_cast<Index>(r))); };
      for (std::size_t r = 0; r < rows.size(); ++r)
        if (rows[r] < recent && (lightest == rows.size() || weight(r) < weight(lightest))) lightest = r;
      left.erase(left.begin() + static_cast<std::ptrdiff_t>(lightest));
      std::sort(left.begin(), left.end());
    }
    cache_.evict();
    return held_by(cache_) == expected;
  }

  PolicyFacts facts_;
  bool journal_;
  Cache cache_;
  std::vector<Matrix<float>> weights_;
  Matrix<float> queries_ = random_matrix(shape.group(), shape.head_dim, 9);
  Vector<float> log_sum_ = Vector<float>::Zero(shape.group());
  Matrix<float> k_;
  std::uint64_t seed_ = 10, seen_ = 0;
};

void decode(benchmark::State& state, const Entry& entry, Index rows, bool journal) {
  Layer layer(entry.make(rows, model()), rows, journal);
  Attention attention(rows);
  const Index tokens = layer.together();
  layer.append_evict(tokens);  // from here on all begins at a budget
  layer.forget(tokens);
  Samples times;
  for (auto _ : state) {
    const double seconds = layer.append_evict(tokens) / static_cast<double>(tokens);
    layer.forget(tokens);
    state.SetIterationTime(seconds);
    times.add(seconds);
    if (times.size() % 4 == 0) attention.measure();
  }
  if (!layer.right(entry)) return state.SkipWithError("wrong rows kept");
  attention.report(state, times.median());
}

/// A prompt of which every fourth token is text, and whose attention the policy has seen.
Cache read_prompt(const Policy& policy, Index rows) {
  const Index tokens = 2 * rows, tile = 64;
  Cache cache(shape, policy, {.max_chunk = rows, .max_draft = 0, .max_generated = 0});
  std::vector<TokenKind> kinds(static_cast<std::size_t>(tokens), TokenKind::image);
  for (std::size_t t = 0; t < kinds.size(); t += 4) kinds[t] = TokenKind::text;
  const Matrix<float> k = random_matrix(tokens, width, 4), v = random_matrix(tokens, width, 5);
  cache.append(k, v, {.phase = Phase::prefill, .kinds = kinds});
  if (!cache.watching()) return cache;
  const Matrix<float> weights = weights_over(tile, tokens, 6), queries = random_matrix(tile * shape.group(), shape.head_dim, 7);
  const Vector<float> log_sum = Vector<float>::Zero(weights.rows());
  for (Index first = std::max<Index>(0, tokens - cache.facts().traits.watches) / tile * tile; first < tokens; first += tile)
    for (Index h = 0; h < shape.num_kv_heads; ++h)
      cache.observe(
          {.kv_head = h, .weights = weights, .log_sum = log_sum, .queries = queries, .first_query = static_cast<Position>(first)});
  return cache;
}

/// At most the budget, or a share of one that the heads divide; lists that overlap may leave less.
bool right_after_prompt(Cache& cache, const PolicyFacts& facts) {
  Index all = 0;
  for (const std::vector<Position>& head : held_by(cache)) {
    if (head.empty() || std::adjacent_find(head.begin(), head.end()) != head.end() || head.back() >= cache.next_position()) return false;
    if (facts.traits.keeps_newest && head.back() != cache.next_position() - 1) return false;
    if (!facts.traits.ragged && static_cast<Index>(head.size()) > facts.budget) return false;
    all += static_cast<Index>(head.size());
  }
  const Index budget = shape.num_kv_heads * facts.budget;
  return all > budget / 2 && all <= budget && cache.evict() == 0;
}

void evict_prompt(benchmark::State& state, const Entry& entry, Index rows) {
  const Policy policy = entry.make(rows, model());
  const Cache prompt = read_prompt(policy, rows);
  Attention attention(2 * rows);
  Samples times;
  for (auto _ : state) {
    Cache cache = prompt.clone();
    const double seconds = seconds_of([&] { cache.evict(); });
    state.SetIterationTime(seconds);
    times.add(seconds);
    attention.measure();
    if (!right_after_prompt(cache, policy.facts(shape))) return state.SkipWithError("wrong rows kept");
  }
  attention.report(state, times.median());
}

/// The baseline: what torch.cat and index_select come to, in Eigen: everything but the victim gathered into new matrices.
void gather_into_new(benchmark::State& state, Case c) {
  std::vector<Matrix<float>> keys, values;
  for (Index h = 0; h < shape.num_kv_heads; ++h) {
    keys.push_back(random_matrix(c.rows, shape.head_dim, static_cast<std::uint64_t>(h)));
    values.push_back(keys.back());
  }
  const Matrix<float> k = random_matrix(1, width, 8);
  Attention attention(c.rows);
  Samples times;
  for (auto _ : state) {
    const double seconds = seconds_of([&] {
      for (Index h = 0; h < shape.num_kv_heads; ++h) {
        for (std::vector<Matrix<float>>* side : {&keys, &values}) {
          Matrix<float>& old = (*side)[static_cast<std::size_t>(h)];
          Matrix<float> fresh(c.rows, shape.head_dim);
          fresh.topRows(c.rows - 1) = old.bottomRows(c.rows - 1);
          fresh.row(c.rows - 1) = k.middleCols(h * shape.head_dim, shape.head_dim);
          old = std::move(fresh);
        }
      }
    });
    keep(keys);
    state.SetIterationTime(seconds);
    times.add(seconds);
    if (times.size() % 4 == 0) attention.measure();
  }
  attention.report(state, times.median());
}

const bool registered = [] {
  constexpr int tokens = 20, bites = 2, prompts = 1;
  const auto by_name = [](const Entry& entry, bool journal) {
    return [entry, journal](benchmark::State& state, Case c) { decode(state, entry, c.rows, journal); };
  };
  for (const Index rows : {1024, 4096}) {
    const Case c{rows};
    add("append+evict/gather_into_new", gather_into_new, c)->Iterations(tokens);
    for (const Entry& entry : policy_catalogue<float>()) {
      const std::string name(entry.name);
      const PolicyFacts facts = entry.make(rows, model()).facts(shape);
      if (facts.traits.prompt_only) {
        add(
            "evict_prompt_x2/" + name, [entry](benchmark::State& state, Case of) { evict_prompt(state, entry, of.rows); }, c)
            ->Iterations(prompts);
        continue;
      }
      add("append+evict/" + name, by_name(entry, false), c)->Iterations(facts.retain < facts.budget ? bites : tokens);
      if (name == "window") add("append+evict/" + name + "_in_a_journal", by_name(entry, true), c)->Iterations(tokens);
    }
  }
  return true;
}();

}  // namespace
