// Compaction of one cache: what is solved for is the optimum, what is kept is kept bit for bit, and what cannot be compacted is refused.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include <pith/attention/scout.hpp>
#include <pith/kv.hpp>
#include <pith/kv/compact.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::random_matrix;
using pith_test::same_bits;

namespace {

constexpr AttentionShape compact_shape{.num_heads = 4, .num_kv_heads = 2, .head_dim = 8};
constexpr LayerScale compact_scale[] = {{}};

/// One cache of random rows and queries that ask it.
template <class S = double, KvStorage T = S> struct Compacting {
  Index tokens;
  Matrix<S> k, v, q;
  KvCache<T> cache;
  ReferenceQueries<S> queries;

  explicit Compacting(Index n = 40, Index asked = 60, std::uint64_t seed = 1)
      : tokens(n),
        k(random_matrix<S>(n, 16, seed)),
        v(random_matrix<S>(n, 16, seed + 1)),
        q(S(2) * random_matrix<S>(asked, 32, seed + 2)),
        cache(compact_shape, Dense{}, {.max_tokens = 2 * n, .keep_masses = true}),
        queries(compact_shape, 1) {
    cache.append(k, v);
    cache.evict();
    queries.add(0, q, static_cast<Position>(n));
  }
  CompactedRows<T> compacted(const CompactOptions& options) const {
    return compact<T>(std::span(&cache, 1), compact_scale, queries, options);
  }
};

/// What the queries of a kv head make of rows: log of the mass, and the output, by plain loops.
struct Attended {
  std::vector<double> log_mass;
  Matrix<double> out;
};
template <class K, class V, class M> Attended attended(const ConstMatrixRef<double>& q, const K& keys, const V& values, const M& log_mass) {
  Attended all{{}, Matrix<double>::Zero(q.rows(), keys.cols())};
  for (Index i = 0; i < q.rows(); ++i) {
    double sum = 0;
    for (Index j = 0; j < keys.rows(); ++j) {
      double logit = 0;
      for (Index c = 0; c < keys.cols(); ++c) logit += q(i, c) * keys(j, c);
      const double e = std::exp(logit / std::sqrt(double(keys.cols())) + log_mass(j));
      sum += e;
      for (Index c = 0; c < keys.cols(); ++c) all.out(i, c) += e * values(j, c);
    }
    all.out.row(i) /= sum;
    all.log_mass.push_back(std::log(sum));
  }
  return all;
}

/// Rows of a head of the result as matrices.
struct HeadRows {
  Matrix<double> keys, values;
  std::vector<Position> positions;
  std::vector<double> log_mass;
  explicit HeadRows(const CompactedRows<double>& rows, Index h) {
    const KvPrefixLayer<double>& layer = rows.layers[0];
    const Index first = h == 0 ? 0 : layer.sizes[0], n = layer.sizes[std::size_t(h)];
    keys = ConstMatrixRef<double>(layer.keys.data() + first * 8, n, 8);
    values = ConstMatrixRef<double>(layer.values.data() + first * 8, n, 8);
    positions.assign(layer.positions.begin() + first, layer.positions.begin() + first + n);
    for (Index r = 0; r < n; ++r) log_mass.push_back(layer.log_mass.empty() ? 0.0 : double(layer.log_mass[std::size_t(first + r)]));
  }
};

struct MatchErrors {
  double mass = 0, out = 0;
};
MatchErrors errors(const Compacting<>& of, const CompactedRows<double>& rows) {
  MatchErrors sum;
  for (Index h = 0; h < 2; ++h) {
    const auto none = [](Index) { return 0.0; };
    const Attended dense = attended(of.queries.of(0, h), of.cache.keys(h), of.cache.values(h), none);
    const HeadRows head(rows, h);
    const Attended ours = attended(of.queries.of(0, h), head.keys, head.values, [&](Index j) { return head.log_mass[std::size_t(j)]; });
    for (std::size_t i = 0; i < dense.log_mass.size(); ++i) sum.mass += std::pow(std::exp(ours.log_mass[i] - dense.log_mass[i]) - 1, 2);
    sum.out += (ours.out - dense.out).squaredNorm();
  }
  return sum;
}

CompactOptions with_rows(Index rows) {
  CompactOptions options;
  options.budget = {.rows = rows, .sinks = 0, .recent = 0};
  return options;
}

CompactOptions exact(Index rows) {
  CompactOptions options = with_rows(rows);
  options.mass_pull = 0;
  options.ridge = 0;
  options.sweeps = 100000;
  return options;
}

}  // namespace

TEST_CASE("compaction lowers both errors below eviction's, and they fall as rows grow", "[kv][compact]") {
  const Compacting<> of;
  CompactOptions evict = with_rows(12);
  evict.masses = evict.values = false;
  const MatchErrors evicted = errors(of, of.compacted(evict)), matched = errors(of, of.compacted(with_rows(12)));
  CHECK(matched.mass < evicted.mass / 2);
  CHECK(matched.out < evicted.out / 2);
  MatchErrors last{std::numeric_limits<double>::infinity(), std::numeric_limits<double>::infinity()};
  for (const Index rows : {6, 12, 20, 30}) {
    const MatchErrors now = errors(of, of.compacted(exact(rows)));  // nested selections, exact solutions
    CHECK(now.mass <= last.mass);
    CHECK(now.out <= last.out);
    last = now;
  }
}

TEST_CASE("masses satisfy the conditions of the optimum within their bounds", "[kv][compact]") {
  const Compacting<> of;
  CompactOptions options = exact(10);
  options.least_log_mass = -.2;  // so that bounds bind
  options.most_log_mass = 1;
  const CompactedRows<double> rows = of.compacted(options);
  int at_bounds = 0;
  for (Index h = 0; h < 2; ++h) {
    const HeadRows head(rows, h);
    const auto q = of.queries.of(0, h);
    const Attended dense = attended(q, of.cache.keys(h), of.cache.values(h), [](Index) { return 0.0; });
    const auto share = [&](Index i, Index j) {  // A_ij
      return std::exp(q.row(i).dot(head.keys.row(j)) / std::sqrt(8.0) - dense.log_mass[std::size_t(i)]);
    };
    double scale = 0;
    std::vector<double> gradient;
    for (Index j = 0; j < head.keys.rows(); ++j) {
      double g = 0;
      for (Index i = 0; i < q.rows(); ++i) {
        double missing = -1;
        for (Index l = 0; l < head.keys.rows(); ++l) missing += share(i, l) * std::exp(head.log_mass[std::size_t(l)]);
        g += share(i, j) * missing;
        scale += share(i, j);
      }
      gradient.push_back(g);
    }
    for (std::size_t j = 0; j < gradient.size(); ++j) {
      const double beta = head.log_mass[j];
      INFO("log mass " << beta);
      const bool low = std::abs(beta - options.least_log_mass) < 1e-6, high = std::abs(beta - options.most_log_mass) < 1e-6;
      CHECK((low || gradient[j] <= 1e-5 * scale));  // more mass would not help
      CHECK((high || gradient[j] >= -1e-5 * scale));
      at_bounds += low || high;
    }
  }
  CHECK(at_bounds > 0);
}

TEST_CASE("a head of no more rows than its budget keeps every bit", "[kv][compact]") {
  const Compacting<float> of;
  const CompactedRows<float> rows = of.compacted(with_rows(40));
  const KvPrefixLayer<float> whole = detail::frozen(of.cache.view());
  CHECK(rows.layers[0].keys == whole.keys);
  CHECK(rows.layers[0].values == whole.values);
  CHECK(rows.layers[0].positions == whole.positions);
  CHECK(rows.layers[0].log_mass.empty());
}

TEST_CASE("without masses and values rows are those of an eviction, bit for bit", "[kv][compact]") {
  const Compacting<float, bfloat16> of;
  CompactOptions options = with_rows(9);
  options.masses = options.values = false;
  const CompactedRows<bfloat16> rows = of.compacted(options);
  CHECK(rows.layers[0].log_mass.empty());
  Index at = 0;
  for (Index h = 0; h < 2; ++h)
    for (const Index r : rows.kept[0][std::size_t(h)]) {
      for (Index c = 0; c < 8; ++c) {
        CHECK(float(rows.layers[0].keys[std::size_t(at * 8 + c)]) == float(of.cache.keys(h)(r, c)));
        CHECK(float(rows.layers[0].values[std::size_t(at * 8 + c)]) == float(of.cache.values(h)(r, c)));
      }
      ++at;
    }
  CHECK(at == 18);
}

TEST_CASE("compaction depends on neither threads, nor the order of rows, nor a common mass", "[kv][compact]") {
  const Compacting<> of;
  const CompactedRows<double> rows = of.compacted(with_rows(11));
  SECTION("threads") {
    ThreadPool pool(3);
    CompactOptions threaded = with_rows(11);
    threaded.executor = pool;
    const CompactedRows<double> same = of.compacted(threaded);
    CHECK(same.layers[0].keys == rows.layers[0].keys);
    CHECK(same.layers[0].values == rows.layers[0].values);
    CHECK(same.layers[0].log_mass == rows.layers[0].log_mass);
  }
  SECTION("a policy that keeps its rows in another order") {
    KvCache<double> shuffled(compact_shape, HeavyHitter{.heavy = 30, .recent = 40}, {.max_chunk = 40});
    auto state = shuffled.snapshot();
    const auto plain = of.cache.snapshot();
    state.next = state.next_rope_position = plain.next;
    state.heads = {40, 0, 0, 40, 0, 0};
    for (Index h = 0; h < 2; ++h)
      for (Index i = 0; i < 40; ++i) {
        const Index r = (7 * i + 3) % 40;
        state.positions.push_back(static_cast<Position>(r));
        state.kinds.push_back(TokenKind::text);
        for (Index c = 0; c < 8; ++c) {
          state.keys.push_back(of.cache.keys(h)(r, c));
          state.values.push_back(of.cache.values(h)(r, c));
        }
      }
    state.stats = Matrix<double>::Zero(shuffled.policy().stats(compact_shape), 80);
    shuffled.restore(state);
    const CompactedRows<double> same = compact<double>(std::span(&std::as_const(shuffled), 1), compact_scale, of.queries, with_rows(11));
    CHECK(same.layers[0].keys == rows.layers[0].keys);
    CHECK(same.layers[0].values == rows.layers[0].values);
    CHECK(same.layers[0].positions == rows.layers[0].positions);
  }
  SECTION("every row stands for three tokens") {
    KvCache<double> heavy(compact_shape, Dense{}, {.max_tokens = 80, .keep_masses = true});
    const std::vector<float> masses(40, 3.f);
    heavy.append(of.k, of.v, {.masses = masses});
    heavy.evict();
    const CompactedRows<double> tripled = compact<double>(std::span(&std::as_const(heavy), 1), compact_scale, of.queries, with_rows(11));
    CHECK(tripled.layers[0].positions == rows.layers[0].positions);
    for (std::size_t r = 0; r < rows.layers[0].log_mass.size(); ++r)
      CHECK(std::abs(tripled.layers[0].log_mass[r] - rows.layers[0].log_mass[r] - std::log(3.f)) < 1e-5);
    for (std::size_t i = 0; i < rows.layers[0].values.size(); ++i)
      CHECK(std::abs(tripled.layers[0].values[i] - rows.layers[0].values[i]) < 1e-5);
  }
}

TEST_CASE("singular systems have a solution: equal keys share their mass, equal queries change little", "[kv][compact]") {
  Compacting<> of;
  SECTION("two equal rows are as one of twice the mass") {
    Matrix<double> k = of.k, v = of.v;
    k.row(20) = k.row(21);
    v.row(20) = v.row(21);
    KvCache<double> twice(compact_shape, Dense{}, {.max_tokens = 80, .keep_masses = true});
    twice.append(k, v);
    twice.evict();
    for (const double ridge : {0.0, 0.01}) {
      CompactOptions options = with_rows(39);
      options.ridge = options.mass_pull = ridge;
      const CompactedRows<double> rows = compact<double>(std::span(&std::as_const(twice), 1), compact_scale, of.queries, options);
      for (const double x : rows.layers[0].values) CHECK(std::isfinite(x));
      const auto none = [](Index) { return 0.0; };
      const HeadRows head(rows, 0);
      const Attended dense = attended(of.queries.of(0, 0), twice.keys(0), twice.values(0), none);
      const Attended ours = attended(of.queries.of(0, 0), head.keys, head.values, [&](Index j) { return head.log_mass[std::size_t(j)]; });
      CHECK((ours.out - dense.out).cwiseAbs().maxCoeff() < .1);
    }
  }
  SECTION("all queries equal") {
    ReferenceQueries<double> same(compact_shape, 1);
    same.add(0, Matrix<double>(of.q.row(0).replicate(50, 1)), 40);
    const CompactedRows<double> rows = compact<double>(std::span(&std::as_const(of.cache), 1), compact_scale, same, with_rows(12));
    for (const double x : rows.layers[0].values) CHECK(std::isfinite(x));
    for (const float m : rows.layers[0].log_mass) CHECK(std::isfinite(m));
  }
  SECTION("rows that nobody looks at keep mass and value") {
    Matrix<double> k = of.k;
    for (Index r = 0; r < 4; ++r) k.row(r) = -300 * of.q.row(0).head(16);
    KvCache<double> far(compact_shape, Dense{}, {.max_tokens = 80});
    far.append(k, of.v);
    far.evict();
    ReferenceQueries<double> near(compact_shape, 1);
    Matrix<double> q = of.q;
    for (Index i = 0; i < q.rows(); ++i)  // every query head asks alike
      for (Index h = 0; h < 4; ++h) q.row(i).segment(8 * h, 8) = of.q.row(0).segment(8 * (h / 2), 8) * (1 + double(i) / 100);
    near.add(0, q, 40);
    CompactOptions options = with_rows(12);
    options.budget.sinks = 4;
    const CompactedRows<double> rows = compact<double>(std::span(&std::as_const(far), 1), compact_scale, near, options);
    for (Index h = 0; h < 2; ++h) {
      const HeadRows head(rows, h);
      for (Index r = 0; r < 4; ++r) {
        CHECK(std::abs(head.log_mass[std::size_t(r)]) < 1e-6);
        CHECK((head.values.row(r) - of.v.row(r).segment(8 * h, 8)).cwiseAbs().maxCoeff() < 1e-9);
      }
    }
  }
}

TEST_CASE("rows are solved in chunks, and stay whole from a position on", "[kv][compact]") {
  const Compacting<> of(40, 200);
  const CompactedRows<double> whole = of.compacted(with_rows(20));
  CompactOptions options = with_rows(20);
  options.chunk = 40;
  CHECK(of.compacted(options).layers[0].values == whole.layers[0].values);  // one chunk
  options.chunk = 16;
  const MatchErrors chunked = errors(of, of.compacted(options)), matched = errors(of, whole);
  options.masses = options.values = false;
  const MatchErrors evicted = errors(of, of.compacted(options));
  CHECK(chunked.mass < evicted.mass);
  CHECK(chunked.out < evicted.out);
  CHECK(matched.out <= chunked.out);
  CompactOptions part = with_rows(8);
  part.end = 25;
  const CompactedRows<double> partly = of.compacted(part);
  for (Index h = 0; h < 2; ++h) {
    const HeadRows head(partly, h);
    REQUIRE(head.keys.rows() == 8 + 15);
    for (Index r = 8; r < 23; ++r) {
      CHECK(head.positions[std::size_t(r)] == 25 + r - 8);
      CHECK(head.log_mass[std::size_t(r)] == 0);
      CHECK(head.values.row(r) == of.v.row(25 + r - 8).segment(8 * h, 8));
    }
  }
  // Compaction of compacted rows: masses that rows have count.
  CHECK(errors(of, whole).mass < errors(of, of.compacted(options)).mass);
}

TEST_CASE("heads share a budget, and none falls below its floor", "[kv][compact]") {
  Compacting<> of;
  ReferenceQueries<double> sharp(compact_shape, 1);  // head 1 looks at one row, head 0 at all
  Matrix<double> q = of.q;
  q.leftCols(16) *= 6;
  q.rightCols(16) *= .01;
  sharp.add(0, q, 40);
  CompactOptions options = with_rows(10);
  options.budget.share = RowBudget::Share::layer;
  const auto rows = compact<double>(std::span(&std::as_const(of.cache), 1), compact_scale, sharp, options);
  CHECK(rows.rows(0, 0) + rows.rows(0, 1) == 20);
  CHECK(rows.rows(0, 0) > rows.rows(0, 1));
  options.budget.floor = .8;
  const auto fair = compact<double>(std::span(&std::as_const(of.cache), 1), compact_scale, sharp, options);
  CHECK(fair.rows(0, 0) + fair.rows(0, 1) == 20);
  CHECK(fair.rows(0, 1) >= 8);
  options.budget.of_head = {4, 16};
  options.budget.share = RowBudget::Share::head;
  options.budget.floor = 0;
  const auto given = compact<double>(std::span(&std::as_const(of.cache), 1), compact_scale, sharp, options);
  CHECK(given.rows(0, 0) == 4);
  CHECK(given.rows(0, 1) == 16);
}

namespace {

/// One cache as replace() and freeze() see a session's.
template <KvStorage T> struct OneLayer {
  struct Snapshot {
    std::vector<KvSnapshot<T>> layers;
  };
  std::vector<KvCache<T>> all;
  std::span<const KvCache<T>> caches() const { return all; }
  Snapshot snapshot() const { return {{all[0].snapshot()}}; }
  void restore(const Snapshot& s) { all[0].restore(s.layers[0]); }
};

constexpr AttentionShape scouted_shape{.num_heads = 4, .num_kv_heads = 2, .head_dim = 16};

/// A cache with scout codes and 300 rows to compact; its queries are sharp, so that most rows weigh next to nothing.
template <KvStorage T> struct ScoutedCompaction {
  Matrix<float> k = random_matrix<float>(340, 32, 5), v = random_matrix<float>(340, 32, 6), q = 12.f * random_matrix<float>(100, 64, 7);
  ReferenceQueries<float> queries{scouted_shape, 1};
  OneLayer<T> read = start({}, 300);

  ScoutedCompaction() { queries.add(0, q.topRows(90), Position(300)); }
  OneLayer<T> start(const KvPrefix& prefix, Index tokens) const {
    OneLayer<T> layer;
    layer.all.emplace_back(scouted_shape, Dense{},
                           KvCacheOptions{.max_chunk = 340, .max_tokens = 340, .keep_masses = true, .scout_keys = true, .prefix = prefix});
    if (tokens == 0) return layer;
    KvCache<T>& cache = layer.all[0];
    const Index from = cache.next_position();
    cache.append(k.middleRows(from, tokens), v.middleRows(from, tokens), {.phase = Phase::prefill});
    cache.evict();
    return layer;
  }
  CompactedRows<T> compacted(const OneLayer<T>& layer, Index rows) const {
    return compact<T>(layer.caches(), compact_scale, queries, with_rows(rows));
  }
};

/// softmax(q·k/√d + log mass) V over the rows of all runs in double, the longest value, and whether every code is that of its key.
template <class T> struct PlainRows {
  Matrix<double> out = Matrix<double>::Zero(1, 64);
  double longest = 0;
  Index rows = 0, masses = 0;
  bool codes_of_keys = true;

  PlainRows(const Matrix<float>& q, const KvView<T>& view) {
    const std::size_t a_head = view.runs.size() / 2;
    for (std::size_t lane = 0; lane < 4; ++lane) {
      const auto row = [&](const T* numbers, Index i) { return static_cast<double>(static_cast<float>(numbers[i])); };
      double total = 0, sum[16] = {};
      for (const KvRun<T>& run : view.runs.subspan(lane / 2 * a_head, a_head))
        for (Index r = 0; r < run.rows; ++r) {
          double logit = 0, norm = 0;
          for (Index i = 0; i < 16; ++i) logit += static_cast<double>(q(0, Index(lane) * 16 + i)) * row(run.keys + r * run.stride, i) / 4;
          const double mass = run.log_mass == nullptr ? 0 : static_cast<double>(run.log_mass[r]), e = std::exp(logit + mass);
          total += e;
          masses += mass != 0;
          for (Index i = 0; i < 16; ++i) {
            const double value = row(run.values + r * run.stride, i);
            sum[i] += e * value;
            norm += value * value;
          }
          longest = std::max(longest, std::sqrt(norm));
          std::byte code[64];
          scout_encode(run.keys + r * run.stride, 16, code);
          codes_of_keys =
              codes_of_keys && run.scouts != nullptr && std::equal(code, code + scout_row_bytes(16), run.scouts + r * scout_row_bytes(16));
        }
      for (Index i = 0; i < 16; ++i) out(0, Index(lane) * 16 + i) = sum[i] / total;
    }
    for (const KvRun<T>& run : view.runs) rows += run.rows;
  }
};

}  // namespace

TEMPLATE_TEST_CASE("what stays of compacted rows is read by its scout codes, and off by at most twice the share", "[kv][compact]", float,
                   bfloat16) {
  const ScoutedCompaction<TestType> of;
  OneLayer<TestType> compacted = of.start({}, 300);
  replace(compacted, of.compacted(of.read, 60));
  const auto frozen = [](const OneLayer<TestType>& layer) {
    return KvPrefix(scouted_shape, layer.all[0].next_position(), std::vector{layer.all[0].freeze()});
  };
  const auto behind_prefix = [&] { return of.start(of.compacted(of.read, 60).prefix(), 20); };
  Index rows = 60;
  SECTION("in place") {}
  SECTION("as a prefix") { compacted = of.start(of.compacted(of.read, 60).prefix(), 0); }
  SECTION("in place, then frozen") { compacted = of.start(frozen(compacted), 0); }
  SECTION("frozen behind a compacted prefix") {
    compacted = of.start(frozen(behind_prefix()), 0);
    rows = 80;
  }
  SECTION("compacted behind a compacted prefix") {
    compacted = of.start(of.compacted(behind_prefix(), 10).prefix(), 0);
    rows = 70;
  }
  KvCache<TestType>& cache = compacted.all[0];
  cache.append(of.k.row(320), of.v.row(320));
  cache.evict();
  for (Index i = 90; i < 100; ++i) {
    const Matrix<float> q = of.q.row(i);
    const PlainRows<TestType> plain(q, cache.view());
    REQUIRE(plain.rows == 2 * (rows + 1));
    CHECK(plain.codes_of_keys);
    CHECK(plain.masses > 4 * 30);
    Index needed = plain.rows;
    for (const float share : {0.f, .001f, .01f, .1f, .5f}) {
      CAPTURE(i, share);
      AttentionReads reads;
      const Matrix<float> out = attend(q, cache, {.skip_below = share, .reads = &reads});
      for (Index h = 0; h < 4; ++h)
        CHECK((out.cast<double>() - plain.out).middleCols(16 * h, 16).norm() <= (2 * double(share) + 1e-5) * plain.longest);
      CHECK(reads.rows == plain.rows);
      CHECK((share > 0 || reads.keys == plain.rows));
      CHECK(reads.keys <= needed);
      needed = reads.keys;
    }
    CHECK(needed < rows);  // of both heads: fewer than half
  }
}

TEST_CASE("what cannot be compacted is refused with its name", "[kv][compact]") {
  Compacting<> of;
  const auto refused = [&](const auto& caches, const ReferenceQueries<double>& queries, const CompactOptions& options, const char* why) {
    CHECK_THROWS_WITH(compact<double>(std::span<const KvCache<double>>(caches), compact_scale, queries, options), contains(why));
  };
  const std::span<const KvCache<double>> one(&of.cache, 1);
  refused(one, of.queries, with_rows(0), "rows is 0");
  CompactOptions options = with_rows(4);
  options.budget.sinks = 3;
  options.budget.recent = 2;
  refused(one, of.queries, options, "recent is 2, expected 0 .. 1");
  options = with_rows(4);
  options.ridge = -1;
  refused(one, of.queries, options, "ridge is -1");
  options.ridge = std::numeric_limits<double>::quiet_NaN();
  refused(one, of.queries, options, "ridge");
  options = with_rows(4);
  options.least_log_mass = 1;
  refused(one, of.queries, options, "log masses within 1");
  options = with_rows(4);
  options.budget.of_head = {1, 2, 3};
  refused(one, of.queries, options, "of_head has 3 budgets, expected 2");
  refused(one, ReferenceQueries<double>(compact_shape, 1), with_rows(4), "no reference queries for kv head 0 of layer 0");
  refused(one, ReferenceQueries<double>(compact_shape, 2), with_rows(4), "queries of 2 layers");
  refused(one, ReferenceQueries<double>({.num_heads = 2, .num_kv_heads = 2, .head_dim = 8}, 1), with_rows(4), "of the same shape");
  CHECK_THROWS_WITH(of.queries.add(0, random_matrix<double>(3, 31, 1), 0), contains("queries"));
  CHECK_THROWS_WITH(of.queries.add(1, random_matrix<double>(3, 32, 1), 0), contains("layer 1"));
  Matrix<double> k = of.k;
  k(7, 3) = std::numeric_limits<double>::quiet_NaN();
  KvCache<double> odd(compact_shape, Dense{}, {.max_tokens = 80});
  odd.append(k, of.v);
  odd.evict();
  refused(std::span<const KvCache<double>>(&odd, 1), of.queries, with_rows(4), "the row of position 7 of kv head 0 is not finite");
  Matrix<double> q = of.q;
  q(2, 20) = std::numeric_limits<double>::infinity();
  ReferenceQueries<double> infinite(compact_shape, 1);
  infinite.add(0, q, 40);
  refused(one, infinite, with_rows(4), "a reference query of kv head 1 is not finite");
  KvCache<double> journaled(compact_shape, HeavyHitter{.heavy = 30, .recent = 30}, {.max_chunk = 40, .max_draft = 2});
  journaled.checkpoint();
  refused(std::span<const KvCache<double>>(&journaled, 1), of.queries, with_rows(4), "inside a journal");
  KvCache<double> near(compact_shape, SinkWindow{.sinks = 2, .window = 6}, {.max_chunk = 1});
  for (Index t = 0; t < 20; ++t) {
    near.append(of.k.row(t), of.v.row(t));
    near.evict();
  }
  refused(std::span<const KvCache<double>>(&near, 1), of.queries, with_rows(4), "nearer than in the text");
  KvCache<double> fresh(compact_shape, Dense{}, {.max_tokens = 80});
  fresh.append(of.k, of.v);
  refused(std::span<const KvCache<double>>(&fresh, 1), of.queries, with_rows(4), "in the middle of a prompt");
}

TEST_CASE("reference queries are a sample that depends on their order alone", "[kv][compact]") {
  const Matrix<float> q = random_matrix<float>(100, 32, 4);
  ReferenceQueries<float> all(compact_shape, 1, 30), cut(compact_shape, 1, 30), every(compact_shape, 1, 100);
  all.add(0, q, 5);
  every.add(0, q, 5);
  for (Index t = 0; t < 100; t += 7) cut.add(0, q.middleRows(t, std::min<Index>(7, 100 - t)), static_cast<Position>(5 + t));
  CHECK(all.tokens(0, 1) == 30);
  CHECK(same_bits(all.of(0, 1), cut.of(0, 1)));
  for (Index t = 0; t < 100; ++t)
    for (Index g = 0; g < 2; ++g) CHECK(every.of(0, 1).row(2 * t + g) == q.row(t).segment(16 + 8 * g, 8));
  // Turned, each query stands behind the text: what a plain rotation by the difference gives.
  const Rope<float> rope({.head_dim = 8});
  std::vector<Position> before, after;
  every.for_each(0, 1, [&](Position p, MatrixRef<float>) { before.push_back(p); });
  every.turn(0, rope, 105, 16);
  every.for_each(0, 1, [&](Position p, MatrixRef<float>) { after.push_back(p); });
  bool spread = false;
  for (std::size_t t = 0; t < 100; ++t) {
    CHECK(before[t] == Position(5 + t));
    CHECK((after[t] >= 105 && after[t] < 121));
    spread = spread || after[t] != after[0];
    for (Index g = 0; g < 2; ++g)
      for (Index i = 0; i < 4; ++i) {
        const double a = double(q(Index(t), 16 + 8 * g + i)), b = double(q(Index(t), 16 + 8 * g + i + 4));
        const double angle = double(after[t] - before[t]) * std::pow(10000.0, -2.0 * double(i) / 8);
        CHECK(std::abs(double(every.of(0, 1)(2 * Index(t) + g, i)) - (a * std::cos(angle) - b * std::sin(angle))) < 2e-4);
        CHECK(std::abs(double(every.of(0, 1)(2 * Index(t) + g, i + 4)) - (b * std::cos(angle) + a * std::sin(angle))) < 2e-4);
      }
  }
  CHECK(spread);
}
