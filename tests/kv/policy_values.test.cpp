// Which rows policies keep, against plain loops in double and numbers worked out by hand.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <vector>

#include <pith/kv.hpp>

#include "support/catch.hpp"
#include "support/random_matrix.hpp"

using namespace pith;

namespace {

constexpr AttentionShape four_over_two{4, 2, 8};
constexpr Index heads_a_row = 2;
constexpr Index layer_width = 16;
constexpr double endless = std::numeric_limits<double>::infinity();

/// A number in 0 .. 1, always the same for the same arguments.
double drawn(std::initializer_list<Index> of) {
  std::uint64_t x = 17;
  for (const Index i : of) x = (x ^ static_cast<std::uint64_t>(i + 1)) * 0x9e3779b97f4a7c15u, x ^= x >> 29;
  x *= 0xbf58476d1ce4e5b9u;
  return static_cast<double>(x >> 40) * 0x1p-24;
}

/// What query head g of kv head h, at position q, gives to the row at p; exact in a float.
double weight_of(Index h, Index g, Index q, Index p) { return p > q ? 0 : drawn({h, g, q, p}); }
double log_sum_of(Index h, Index g, Index q) { return 4 * drawn({h, g, q}) - 2; }
TokenKind kind_of(Index p) { return drawn({p}) < 0.4 ? TokenKind::image : TokenKind::text; }

/// A loop of one's own: appends tokens, makes their weights itself and shows nothing else.
template <class Cache> void feed(Cache& cache, std::span<const Position> positions, const AppendOptions& how, bool log_sums = false) {
  const Index n = static_cast<Index>(positions.size());
  std::vector<TokenKind> kinds;
  for (const Position p : positions) kinds.push_back(kind_of(p));
  const Matrix<float> row = Matrix<float>::Ones(n, layer_width);
  cache.append(row, row, {.phase = how.phase, .more = how.more, .kinds = kinds, .positions = positions});
  if (!cache.watching()) return;
  for (Index h = 0; h < 2; ++h) {
    Matrix<float> weights(n * heads_a_row, cache.size(h));
    Vector<float> log_sum(n * heads_a_row);
    for (Index q = 0; q < n; ++q)
      for (Index g = 0; g < heads_a_row; ++g) {
        const Index asks = positions[static_cast<std::size_t>(q)];
        log_sum[q * heads_a_row + g] = static_cast<float>(log_sum_of(h, g, asks));
        for (Index r = 0; r < cache.size(h); ++r)
          weights(q * heads_a_row + g, r) = static_cast<float>(weight_of(h, g, asks, cache.positions(h)[static_cast<std::size_t>(r)]));
      }
    cache.observe({.kv_head = h, .weights = weights, .log_sum = log_sums ? ConstVectorRef<float>(log_sum) : ConstVectorRef<float>()});
  }
}

using Scores = std::map<Position, double>;

/// The `keep` best rows; of equals the newer.
std::set<Position> best(const Scores& scores, Index keep) {
  std::vector<std::pair<double, Position>> order;
  for (const auto& [p, score] : scores) order.emplace_back(score, p);
  std::sort(order.rbegin(), order.rend());
  order.resize(std::min(order.size(), static_cast<std::size_t>(keep)));
  std::set<Position> kept;
  for (const auto& [score, p] : order) kept.insert(p);
  return kept;
}

template <class Cache> std::set<Position> held(const Cache& cache, Index h) {
  return {cache.positions(h).begin(), cache.positions(h).end()};
}

std::vector<Position> last_of(const std::vector<Position>& tokens, Index n) {
  return {tokens.end() - std::min(n, static_cast<Index>(tokens.size())), tokens.end()};
}

/// SnapKV in the words of its paper: rows of a head in order of position, queries of this prompt.
std::set<Position> snapkv(const SnapKv& policy, Index h, const std::set<Position>& rows, const std::vector<Position>& queries) {
  const std::vector<Position> order(rows.begin(), rows.end()), window = last_of(queries, policy.window);
  const Index candidates = std::max<Index>(0, static_cast<Index>(order.size()) - policy.window);
  std::vector<double> sums;
  for (Index r = 0; r < candidates; ++r) {
    std::vector<double> of_head(heads_a_row, 0.0);
    for (const Position q : window)
      for (Index g = 0; g < heads_a_row; ++g)
        of_head[static_cast<std::size_t>(g)] += weight_of(h, g, q, order[static_cast<std::size_t>(r)]);
    sums.push_back(policy.group == SnapKv::Group::mean ? of_head[0] + of_head[1] : std::max(of_head[0], of_head[1]));
  }
  Scores scores;
  for (Index r = 0; r < static_cast<Index>(order.size()); ++r) {
    double score = r < candidates ? 0 : endless;
    for (Index near_by = r - policy.kernel / 2; r < candidates && near_by <= r + policy.kernel / 2; ++near_by)
      if (near_by >= 0 && near_by < candidates) score += sums[static_cast<std::size_t>(near_by)];
    scores[order[static_cast<std::size_t>(r)]] = score;
  }
  return best(scores, policy.keep);
}

std::set<Position> cross_self(const Csp& policy, Index h, const std::set<Position>& rows, const std::vector<Position>& queries) {
  Scores self, cross;
  std::set<Position> kept;
  const Index newest = policy.protects < 0 ? policy.recent : policy.protects;
  for (const Position p : rows) {
    if (p >= queries.back() + 1 - newest) {
      kept.insert(p);
      continue;
    }
    double sums[2] = {};
    for (const Position q : last_of(queries, policy.recent))
      for (Index g = 0; g < heads_a_row; ++g)
        sums[kind_of(q) == kind_of(p) ? 0 : 1] += weight_of(h, g, q, p) / (1 + policy.n * std::exp(-log_sum_of(h, g, q)));
    self[p] = sums[0];
    cross[p] = sums[1];
  }
  const double places = static_cast<double>(policy.heavy + policy.recent - newest);
  for (const Position p : best(self, static_cast<Index>(places * (1 - policy.cross_ratio)))) kept.insert(p);
  for (const Position p : best(cross, static_cast<Index>(places * policy.cross_ratio))) kept.insert(p);
  return kept;
}

std::set<Position> observed(const ObservedAttention& policy, Index h, const std::set<Position>& rows,
                            const std::vector<Position>& queries) {
  Scores scores;
  for (const Position p : rows) {
    double sum = 0;
    Index could_see = 0;
    for (const Position q : queries) {
      could_see += q >= p;
      for (Index g = 0; g < heads_a_row; ++g) sum += weight_of(h, g, q, p);
    }
    scores[p] = p == queries.back() ? endless : sum / static_cast<double>(could_see);  // the newest token stays
  }
  return best(scores, policy.keep);
}

/// The mean weight of the last queries on sinks and newest rows, then sinks and newest rows alone, or up to `keep` rows.
std::set<Position> lazy_layer(const LazyLayer& policy, const std::set<Position>& rows, const std::vector<Position>& queries) {
  const std::vector<Position> window = last_of(queries, policy.last);
  double sum = 0;
  for (const Position p : rows)
    if (p < window.front() && (p < policy.sinks || p >= window.front() - policy.recent))
      for (const Position q : window)
        for (const Index h : {0, 1})
          for (Index g = 0; g < heads_a_row; ++g) sum += weight_of(h, g, q, p);
  const bool lazy = sum / static_cast<double>(2 * heads_a_row * static_cast<Index>(window.size())) > policy.threshold;
  Scores scores;
  for (const Position p : rows) scores[p] = p;
  if (!lazy || static_cast<Index>(rows.size()) <= policy.sinks + policy.recent + policy.last) return best(scores, policy.keep);
  std::set<Position> kept{queries.back()};  // the newest token stays
  for (const Position p : rows)
    if (p < policy.sinks || p >= queries.back() + 1 - policy.recent + policy.last) kept.insert(p);
  return kept;
}

/// Four turns, the third of one token; prompts cut in these pieces, gaps between positions, tokens decoded in between: each prompt's rows
/// are what `expected` says of the rows before and of this prompt's queries alone.
template <class P, class F> void check_turns(const P& policy, F&& expected, bool log_sums = false) {
  for (const bool evicts_each : {true, false})
    for (const bool gaps : {false, true})
      for (const std::vector<Index>& pieces : {std::vector<Index>{24}, {17, 7}, {23, 1}, {3, 3, 9, 2, 7}, std::vector<Index>(24, 1)}) {
        INFO(pieces.size() << " pieces, " << (gaps ? "gaps, " : "") << (evicts_each ? "evict() after each" : "one evict()"));
        KvCache cache(four_over_two, policy, {.max_chunk = 40, .max_generated = 40});
        Position next = 0;
        for (Index turn = 0; turn < 4; ++turn) {
          const bool brief = turn == 2;
          std::vector<Position> prompt, answer;
          for (Index t = 0; t < (brief ? 1 : 24); ++t) prompt.push_back(next), next += static_cast<Position>(gaps && t % 5 == 3 ? 3 : 1);
          std::set<Position> before[2] = {held(cache, 0), held(cache, 1)};
          std::size_t at = 0;
          for (const Index n : brief ? std::vector<Index>{1} : pieces) {
            const std::span<const Position> piece(prompt.data() + at, static_cast<std::size_t>(n));
            at += piece.size();
            feed(cache, piece, {.phase = Phase::prefill, .more = at < prompt.size()}, log_sums);
            if (evicts_each || at == prompt.size()) cache.evict();
          }
          for (Index h = 0; h < 2; ++h) {
            INFO("turn " << turn << ", head " << h);
            before[h].insert(prompt.begin(), prompt.end());
            REQUIRE(held(cache, h) == expected(h, before[h], prompt));
          }
          for (Index t = 0; t < 4; ++t, ++next) {  // nothing leaves: whether evict() is called or not
            feed(cache, std::vector<Position>{next}, {});
            if (evicts_each) cache.evict();
          }
        }
      }
}

}  // namespace

TEST_CASE("SnapKV keeps what the last queries of its prompt look at, however the prompt is cut", "[kv]") {
  for (const SnapKv& policy : {SnapKv{.keep = 12, .window = 8, .kernel = 3}, SnapKv{.keep = 9, .window = 5, .kernel = 1},
                               SnapKv{.keep = 14, .window = 4, .kernel = 5, .group = SnapKv::Group::largest}})
    check_turns(policy, [&](Index h, const auto& rows, const auto& queries) { return snapkv(policy, h, rows, queries); });
}

TEST_CASE("wrappers of SnapKV count the same queries, however the prompt is cut", "[kv]") {
  const SnapKv snap{.keep = 12, .window = 8, .kernel = 3};
  const auto expected = [&](Index h, const auto& rows, const auto& queries) { return snapkv(snap, h, rows, queries); };
  check_turns(Protect(snap, {.recent = 2}), expected);
  check_turns(PromptOnly(snap), expected);
  check_turns(AnyPolicy<float>(Protect(AnyPolicy<float>(snap), {})), expected);
}

TEST_CASE("CSP keeps both lists of the last queries of its prompt, however the prompt is cut", "[kv]") {
  for (const Csp& policy : {Csp{.heavy = 6, .recent = 8}, Csp{.heavy = 5, .recent = 6, .protects = 3, .cross_ratio = 0.3}})
    check_turns(
        policy, [&](Index h, const auto& rows, const auto& queries) { return cross_self(policy, h, rows, queries); }, true);
}

TEST_CASE("observed attention divides by the queries of its prompt that could see a row", "[kv]") {
  const ObservedAttention policy{.keep = 11};
  check_turns(policy, [&](Index h, const auto& rows, const auto& queries) { return observed(policy, h, rows, queries); });
}

TEST_CASE("a lazy layer is told by the queries of its prompt, fewer than `last` too, over gaps", "[kv]") {
  for (const Index sinks : {0, 1}) {
    Index lazy = 0, decisions = 0;
    for (const double threshold : {0.6, 0.7, 0.8, 0.9, 0.95, 1.0}) {
      const LazyLayer policy{.keep = 50, .sinks = sinks, .recent = 2 - sinks, .last = 2 - sinks, .threshold = threshold};
      check_turns(policy, [&](Index, const auto& rows, const auto& queries) {
        const std::set<Position> kept = lazy_layer(policy, rows, queries);
        lazy += static_cast<Index>(kept.size()) < std::min<Index>(policy.keep, static_cast<Index>(rows.size())), ++decisions;
        return kept;
      });
    }
    CHECK(lazy > decisions / 10);
    CHECK(lazy < decisions - decisions / 10);
  }
}

TEST_CASE("R-KV asks the last queries it saw, one token at a time or many, over gaps", "[kv]") {
  constexpr Index d = 8;
  const RKv policy{.keep = 12, .window = 4, .kernel = 3, .rows_per_eviction = 1, .lambda = 1};
  for (const bool gaps : {false, true}) {
    KvCache cache(four_over_two, policy, {.max_chunk = 15});
    const Matrix<float> k = pith_test::random_matrix<float>(80, layer_width, 5), q = pith_test::random_matrix<float>(80, 32, 6);
    std::vector<Position> at;
    for (Index t = 0; t < 80; ++t) at.push_back(static_cast<Position>(t == 0 ? 0 : at.back() + (gaps && t % 3 == 0 ? 1 + t % 5 : 1)));
    std::vector<Index> rows[2];  // of each head: tokens, in order
    Index next = 0;
    for (const Index n : {3, 11, 1, 1, 2, 7, 1, 1, 1, 1, 1, 1, 5, 1, 15, 2, 2, 1}) {
      const auto positions = std::span<const Position>(at).subspan(static_cast<std::size_t>(next), static_cast<std::size_t>(n));
      cache.append(k.middleRows(next, n), k.middleRows(next, n), {.positions = positions});
      for (Index h = 0; h < 2; ++h) {
        Matrix<float> queries(n * heads_a_row, d);  // R-KV asks for these alone
        for (Index t = 0; t < n; ++t)
          for (Index g = 0; g < heads_a_row; ++g) queries.row(t * heads_a_row + g) = q.row(next + t).segment((h * heads_a_row + g) * d, d);
        const Matrix<float> weights = Matrix<float>::Zero(n * heads_a_row, cache.size(h));
        cache.observe({.kv_head = h, .weights = weights, .queries = queries});
      }
      cache.evict();
      next += n;
      for (Index h = 0; h < 2; ++h) {
        std::vector<Index>& order = rows[h];
        for (Index t = next - n; t < next; ++t) order.push_back(t);
        const Index before = static_cast<Index>(order.size()) - policy.window;
        std::vector<double> seen(order.size(), endless), pooled = seen;
        for (Index r = 0; r < before; ++r) seen[static_cast<std::size_t>(r)] = 0;
        for (Index query = std::max<Index>(0, next - policy.window); query < next; ++query) {
          std::vector<double> shares;
          for (Index r = 0; r < before; ++r) {
            double most = -endless;
            for (Index g = 0; g < heads_a_row; ++g) {
              double dot = 0;
              for (Index i = 0; i < d; ++i)
                dot += double(q(query, (h * heads_a_row + g) * d + i)) * double(k(order[static_cast<std::size_t>(r)], h * d + i));
              most = std::max(most, dot / std::sqrt(double(d)));
            }
            shares.push_back(std::exp(most));
          }
          const double total = std::accumulate(shares.begin(), shares.end(), 0.0);
          for (std::size_t r = 0; r < shares.size(); ++r) seen[r] += shares[r] / total;
        }
        for (Index r = 0; r < before; ++r)
          pooled[static_cast<std::size_t>(r)] =
              *std::max_element(seen.begin() + std::max<Index>(0, r - 1), seen.begin() + std::min(before, r + 2));
        Scores scores;
        for (std::size_t r = 0; r < order.size(); ++r) scores[at[static_cast<std::size_t>(order[r])]] = pooled[r];
        const std::set<Position> kept = best(scores, policy.keep);
        std::erase_if(order, [&](Index t) { return kept.count(at[static_cast<std::size_t>(t)]) == 0; });
        INFO((gaps ? "gaps, " : "") << next << " tokens, head " << h);
        REQUIRE(held(cache, h) == kept);
      }
    }
  }
}

TEST_CASE("attention that a piece of a prompt owes is asked for, also of a short last piece", "[kv]") {
  KvCache cache(four_over_two, SnapKv{.keep = 12, .window = 8}, {.max_chunk = 24});
  std::vector<Position> tokens(24);
  std::iota(tokens.begin(), tokens.end(), 0);
  const std::span<const Position> all(tokens);
  const Matrix<float> row = Matrix<float>::Ones(7, layer_width);
  feed(cache, all.first(17), {.phase = Phase::prefill, .more = true});
  cache.append(row, row, {.phase = Phase::prefill});
  CHECK_THROWS_AS(cache.evict(), StateError);
}

TEST_CASE("Scissorhands counts marks of this half of the history and of the one before", "[kv]") {
  const Scissorhands policy{.keep = 19, .history = 10, .recent = 2};
  KvCache cache(four_over_two, policy, {.max_chunk = 20});
  std::vector<Position> tokens(20);
  std::iota(tokens.begin(), tokens.end(), 0);
  feed(cache, tokens, {});
  std::set<Position> expected[2];
  for (Index h = 0; h < 2; ++h) {
    Scores marks;
    for (Index p = 0; p < 20; ++p) {
      marks[static_cast<Position>(p)] = p >= 18 ? endless : 0;
      for (Index q = 10; q < 20; ++q)  // halves of 5 queries: 10 .. 14 and 15 .. 19
        for (Index g = 0; g < heads_a_row; ++g) marks[static_cast<Position>(p)] += weight_of(h, g, q, p) * double(q + 1) > 1;
    }
    expected[h] = best(marks, 10);
  }
  cache.evict();
  for (Index h = 0; h < 2; ++h) CHECK(held(cache, h) == expected[h]);
  // A row marked by every query of the half before, and one marked once in this half.
  KvCache few({1, 1, 2}, Scissorhands{.keep = 5, .history = 8, .recent = 1}, {.max_chunk = 8});
  const Matrix<float> one = Matrix<float>::Ones(6, 2);
  few.append(one, one);
  Matrix<float> weights = Matrix<float>::Zero(6, 6);
  for (Index q = 1; q < 4; ++q) weights(q, 1) = 1;
  for (const auto& [q, r] : {std::pair{4, 2}, {4, 3}, {5, 4}}) weights(q, r) = 0.5;
  few.observe({.kv_head = 0, .weights = weights});
  few.evict();
  CHECK(held(few, 0) == std::set<Position>{1, 4, 5});
}

namespace {

/// Scores as given, [kv heads][positions].
struct Given {
  Index keep = 4;
  std::vector<std::vector<double>> scores;
  Index budget() const { return keep; }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    for (Index r = 0; r < rows.size(); ++r)
      out[r] = static_cast<S>(
          scores[static_cast<std::size_t>(rows.kv_head)][static_cast<std::size_t>(rows.positions[static_cast<std::size_t>(r)])]);
  }
};

KvCache<> prompt_of(const AnyPolicy<float>& policy, Index heads, Index tokens) {
  KvCache<> cache({heads, heads, 2}, policy, {.max_chunk = tokens});
  const Matrix<float> rows = Matrix<float>::Ones(tokens, 2 * heads);
  cache.append(rows, rows, {.phase = Phase::prefill});
  cache.evict();
  return cache;
}

}  // namespace

TEST_CASE("AdaKV's floor is kept for a head whose scores are all the least", "[kv]") {
  std::vector<std::vector<double>> scores(2);
  for (int t = 0; t < 20; ++t) scores[0].push_back(100 + t % 7), scores[1].push_back(t % 5);
  const auto sizes = [&](double floor) {
    const auto cache = prompt_of(Adaptive(Given{8, scores}, {.floor = floor, .rule = AdaptiveOptions::Rule::exact}), 2, 20);
    return std::pair(cache.size(0), cache.size(1));
  };
  CHECK(sizes(0) == std::pair<Index, Index>(15, 1));  // the newest token stays
  CHECK(sizes(0.5) == std::pair<Index, Index>(12, 4));
  CHECK(sizes(0.75) == std::pair<Index, Index>(10, 6));
  CHECK(sizes(1) == std::pair<Index, Index>(8, 8));
  const auto cache = prompt_of(Adaptive(Given{8, scores}, {.floor = 0.5}), 2, 20);
  CHECK(held(cache, 1) == std::set<Position>{9, 14, 4, 19});
}

TEST_CASE("ChunkKV keeps no more whole chunks than its share", "[kv]") {
  const std::vector<double> scores{9, 9, 1, 1, 8, 8, 2, 2, 0, 0};
  // 5 chunks of 2; half of the rows are 2.5 chunks, so 2: that of the newest token, and the best.
  CHECK(held(prompt_of(Chunkwise(Given{5, {scores}}, 2), 1, 10), 0) == std::set<Position>{0, 1, 8, 9});
  CHECK(held(prompt_of(Chunkwise(Given{6, {scores}}, 2), 1, 10), 0) == std::set<Position>{0, 1, 4, 5, 8, 9});
  // 4 chunks of 3, the last one short: 8 rows are 3.2 chunks, 6 are 2.4.
  CHECK(held(prompt_of(Chunkwise(Given{8, {scores}}, 3), 1, 10), 0) == std::set<Position>{0, 1, 2, 3, 4, 5, 9});
  CHECK(held(prompt_of(Chunkwise(Given{6, {scores}}, 3), 1, 10), 0) == std::set<Position>{0, 1, 2, 9});
}

TEST_CASE("the best of all heads: of equals the newer, of the same token the lower head's", "[kv]") {
  std::vector<Position> positions[2] = {{3, 1, 2}, {2, 3, 1}};
  std::vector<TokenKind> kinds(3, TokenKind::text);
  std::vector<float> scores[2] = {{1, 1, 5}, {1, 1, 1}};
  std::vector<LayerScores<float>::Head> heads;
  for (int h = 0; h < 2; ++h)
    heads.push_back({.size = 3, .positions = positions[h].data(), .kinds = kinds.data(), .scores = scores[h].data()});
  std::vector<RankedRow<float>> candidates(6);
  const LayerScores<float> layer({2, 2, 4}, 0, 4, 2, 0, 6, heads, candidates.data());
  const std::vector<std::pair<Index, Position>> order{{0, 2}, {0, 3}, {1, 3}, {1, 2}, {0, 1}, {1, 1}};
  for (std::size_t count = 0; count <= order.size(); ++count) {
    std::set<std::pair<Index, Position>> taken;
    layer.best_of_all(static_cast<Index>(count), [&](Index h, Index r) { taken.emplace(h, positions[h][static_cast<std::size_t>(r)]); });
    CHECK(taken == std::set<std::pair<Index, Position>>(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count)));
  }
}

TEST_CASE("random draws for each token and head", "[kv]") {
  KvCache cache({4, 4, 2}, Random{.keep = 20}, {.max_chunk = 60});
  const Matrix<float> rows = Matrix<float>::Ones(60, 8);
  cache.append(rows, rows);
  std::set<float> numbers;
  for (Index h = 0; h < 4; ++h)
    for (Index r = 0; r < 60; ++r) numbers.insert(cache.stats(h)(0, r));
  CHECK(numbers.size() == 240);
  cache.evict();
  for (Index h = 1; h < 4; ++h) CHECK(held(cache, h) != held(cache, 0));
}

namespace {

/// LagKV over one head in double: channels without a range are left out.
Scores lagkv(const LagKv& policy, const Matrix<double>& keys, const Matrix<double>& values) {
  const Index n = keys.rows(), initial = std::min(policy.sinks, n), parts = (n - initial) / policy.lag;
  Scores scores;
  for (Index r = 0; r < n; ++r) scores[static_cast<Position>(r)] = r < initial ? endless : parts < 2 ? double(r) : 1;
  for (Index p = 0; p + 1 < parts; ++p) {
    const Index first = initial + p * policy.lag;
    std::vector<double> spread(static_cast<std::size_t>(policy.lag), 0.0);
    for (const Matrix<double>* x : {&keys, &values}) {
      std::vector<double> deviation;
      double total = 0;
      for (Index r = first; r < first + policy.lag; ++r) {
        std::vector<double> numbers;
        for (Index c = 0; c < x->cols(); ++c) {
          const auto next = x->col(c).segment(first + policy.lag, policy.lag);
          const double low = next.minCoeff(), range = next.maxCoeff() - low;
          if (range > 0) numbers.push_back(((*x)(r, c) - low) / range);
        }
        double mean = 0, squares = 0;
        for (const double number : numbers) mean += number / static_cast<double>(numbers.size());
        for (const double number : numbers) squares += (number - mean) * (number - mean);
        deviation.push_back(numbers.size() < 2 ? 0 : std::sqrt(squares / static_cast<double>(numbers.size() - 1)));
        total += std::exp(deviation.back());
      }
      for (std::size_t r = 0; r < deviation.size(); ++r) spread[r] += std::exp(deviation[r]) / total / 2;
    }
    for (std::size_t r = 0; r < spread.size(); ++r) {
      Index below = 0;
      for (std::size_t other = 0; other < spread.size(); ++other)
        below += spread[other] < spread[r] || (spread[other] == spread[r] && other < r);
      scores[static_cast<Position>(first) + static_cast<Position>(r)] = static_cast<double>(below) / static_cast<double>(policy.lag);
    }
  }
  scores[static_cast<Position>(n - 1)] = endless;  // the newest token stays
  return scores;
}

template <class T = float> std::set<Position> lagkv_kept(const LagKv& policy, const Matrix<float>& keys, const Matrix<float>& values) {
  KvCache<T> cache({1, 1, keys.cols()}, policy, {.max_chunk = keys.rows()});
  cache.append(keys, values, {.phase = Phase::prefill});
  cache.evict();
  return held(cache, 0);
}

}  // namespace

TEST_CASE("LagKV leaves out channels that are constant in the next part, and keeps its sinks", "[kv]") {
  for (const Index constant : {0, 3, 7, 8}) {  // of 8 channels
    Matrix<float> keys = pith_test::random_matrix<float>(43, 8, 5), values = pith_test::random_matrix<float>(43, 8, 6);
    keys.leftCols(constant).setConstant(0.25f);
    values.rightCols(constant).setConstant(-3);
    for (const LagKv& policy : {LagKv{.keep = 18, .sinks = 3, .lag = 5}, LagKv{.keep = 9, .sinks = 4, .lag = 8}}) {
      INFO(constant << " constant channels, " << policy.keep << " rows");
      CHECK(lagkv_kept(policy, keys, values) == best(lagkv(policy, keys.cast<double>(), values.cast<double>()), policy.keep));
    }
    const LagKv long_parts{.keep = 9, .sinks = 3, .lag = 30};  // a prompt too short for two parts
    CHECK(lagkv_kept(long_parts, keys, values) == std::set<Position>{0, 1, 2, 37, 38, 39, 40, 41, 42});
  }
}

TEST_CASE("LagKV leaves out channels that are constant only once they are rounded", "[kv]") {
  Matrix<float> keys = pith_test::random_matrix<float>(25, 8, 9), values = pith_test::random_matrix<float>(25, 8, 10);
  keys.col(0) = Vector<float>::Ones(25) + 0.001f * keys.col(0);  // 1 in bfloat16
  values.col(5) = keys.col(0);
  const auto rounded = [](const Matrix<float>& m) {
    Matrix<double> out(m.rows(), m.cols());
    for (Index i = 0; i < m.size(); ++i) out.data()[i] = static_cast<double>(static_cast<float>(bfloat16(m.data()[i])));
    return out;
  };
  const LagKv policy{.keep = 12, .sinks = 1, .lag = 2};
  CHECK(lagkv_kept<bfloat16>(policy, keys, values) == best(lagkv(policy, rounded(keys), rounded(values)), 12));
}

TEST_CASE("LagKV ranks the later of equal tokens higher, and sinks outlast ties", "[kv]") {
  const Matrix<float> same = Matrix<float>::Ones(20, 4);
  // Sinks 0, 1; parts 2 .. 7, 8 .. 13, 14 .. 19: the last part stays, ranks of the others rise within a part.
  CHECK(lagkv_kept({.keep = 12, .sinks = 2, .lag = 6}, same, same) == std::set<Position>{0, 1, 7, 12, 13, 6, 14, 15, 16, 17, 18, 19});
  CHECK(lagkv_kept({.keep = 6, .sinks = 4, .lag = 3}, same, same) == std::set<Position>{0, 1, 2, 3, 18, 19});
}

TEST_CASE("every policy of the catalogue keeps at most its budget, from one row and one token on", "[kv]") {
  const PolicyModel<float> model{std::make_shared<Rope<float>>(RopeOptions{.head_dim = 8}),
                                 std::make_shared<Matrix<float>>(pith_test::random_matrix<float>(12, 32, 3))};
  std::mt19937_64 rng(8);
  for (const PolicyEntry<float>& entry : policy_catalogue())
    for (const Index rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 33, 50})
      for (const Index tokens : {1, 2, 3, 5, 8, 13, 30, 61}) {
        if (entry.name == "dense") continue;
        INFO(entry.name << ", " << rows << " rows, " << tokens << " tokens");
        const AnyPolicy<float> policy = make_policy(entry.name, rows, model);
        KvCache<> cache(four_over_two, policy, {.max_chunk = tokens, .max_generated = 8});
        REQUIRE(cache.budget() == rows);
        for (int turn = 0; turn < 2; ++turn) {
          const Matrix<float> k = pith_test::random_matrix<float>(tokens, layer_width, rng()),
                              v = pith_test::random_matrix<float>(tokens, layer_width, rng());
          std::vector<TokenKind> kinds(static_cast<std::size_t>(tokens), TokenKind::image);  // text has a prior to every budget
          cache.append(k, v, {.phase = Phase::prefill, .kinds = kinds});
          for (Index h = 0; h < 2 && cache.watching(); ++h) {
            const Matrix<float> weights = pith_test::random_matrix<float>(tokens * heads_a_row, cache.size(h), rng()).cwiseAbs();
            const Matrix<float> queries = pith_test::random_matrix<float>(tokens * heads_a_row, 8, rng());
            const Vector<float> log_sum = Vector<float>::Ones(tokens * heads_a_row);
            cache.observe({.kv_head = h, .weights = weights, .log_sum = log_sum, .queries = queries});
          }
          cache.evict();
          if (policy.traits().ragged) {
            REQUIRE(cache.size(0) + cache.size(1) <= 2 * rows);
          } else {
            REQUIRE(cache.size(0) <= rows);
            REQUIRE(cache.size(1) <= rows);
          }
        }
      }
}
