#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include <pith/attention/attend.hpp>
#include <pith/core/executor.hpp>
#include <pith/merge/averaged.hpp>
#include <pith/merge/merge_schedule.hpp>
#include <pith/merge/tome.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/products.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::near;
using pith_test::random_matrix;
using pith_test::same_bits;

namespace {

using Ids = std::vector<std::int32_t>;

template <class S> TokenMap<S> bipartite(const Matrix<S>& metric, const BipartiteOptions& options, ExecutorRef executor = serial) {
  TokenMap<S> map(metric.rows());
  Workspace ws(token_match_workspace_bytes<S>(metric.rows(), metric.cols(), executor.size()), executor);
  match_bipartite(metric, options, map, ws);
  return map;
}

template <class S> TokenMap<S> every_kth(const Matrix<S>& metric, const EveryKthOptions& options) {
  TokenMap<S> map(metric.rows());
  Workspace ws(token_match_workspace_bytes<S>(metric.rows(), metric.cols()));
  match_every_kth(metric, options, map, ws);
  return map;
}

double cosine_of(const Matrix<double>& x, Index a, Index b) {
  const double norms = x.row(a).norm() * x.row(b).norm();
  return norms == 0 ? 0 : x.row(a).dot(x.row(b)) / norms;
}

/// The r best pairs of an even and its best odd token by plain loops: where each token goes, itself if it stays.
std::vector<Index> targets_by_hand(const Matrix<double>& metric, Index r, Index protect) {
  std::vector<Index> target(static_cast<std::size_t>(metric.rows()));
  std::iota(target.begin(), target.end(), Index(0));
  struct Pair {
    double cosine;
    Index even, odd;
  };
  std::vector<Pair> pairs;
  for (Index a = 0; a < metric.rows(); a += 2) {
    if (a < protect) continue;
    Pair best{-2, a, -1};
    for (Index b = 1; b < metric.rows(); b += 2)
      if (const double cosine = b < protect ? -3 : cosine_of(metric, a, b); cosine > best.cosine) best = {cosine, a, b};
    pairs.push_back(best);
  }
  std::stable_sort(pairs.begin(), pairs.end(), [](const Pair& a, const Pair& b) { return a.cosine > b.cosine; });
  for (Index i = 0; i < r; ++i)
    target[static_cast<std::size_t>(pairs[static_cast<std::size_t>(i)].even)] = pairs[static_cast<std::size_t>(i)].odd;
  return target;
}

template <class S> std::vector<Index> targets_of(const TokenMap<S>& map) {
  std::vector<Index> target;
  for (const std::int32_t row : map.row_of()) target.push_back(row < 0 ? -1 : map.token_of()[static_cast<std::size_t>(row)]);
  return target;
}

}  // namespace

TEST_CASE("bipartite matching is that of plain loops in double", "[merge]") {
  for (const auto& [tokens, dim] : {std::array<Index, 2>{2, 1}, {3, 4}, {9, 5}, {40, 8}, {577, 24}})
    for (const Index protect : {0, 1, 2, 3})
      for (const Index r : {Index(0), Index(1), tokens / 4, tokens}) {
        INFO(tokens << " tokens, " << protect << " protected, r " << r);
        const Matrix<double> metric = random_matrix<double>(tokens, dim, static_cast<std::uint64_t>(tokens + protect));
        const BipartiteOptions options{.r = r, .protect = protect};
        const Index merged = clipped_r(tokens, options);
        CHECK(merged == std::max(Index(0), std::min(r, (tokens - protect) / 2)));
        const TokenMap<double> map = bipartite(metric, options);
        CHECK(map.merged() == merged);
        CHECK(map.rows() == tokens - merged);
        CHECK(targets_of(map) == targets_by_hand(metric, merged, protect));
        CHECK(std::is_sorted(map.token_of().begin(), map.token_of().end()));
        for (Index t = 0; t < std::min(protect, tokens); ++t) {
          CHECK(map.token_of()[static_cast<std::size_t>(t)] == t);
          CHECK(std::count(map.row_of().begin(), map.row_of().end(), t) == 1);
        }
      }
}

TEST_CASE("bipartite matching: the published order is another order of the same rows", "[merge]") {
  const Matrix<float> metric = random_matrix<float>(21, 6, 3), x = random_matrix<float>(21, 4, 4);
  for (const Index protect : {0, 1, 2}) {
    const TokenMap<float> spatial = bipartite(metric, {.r = 6, .protect = protect});
    const TokenMap<float> published = bipartite(metric, {.r = 6, .protect = protect, .order = RowOrder::published});
    CHECK(targets_of(published) == targets_of(spatial));
    const Ids order(published.token_of().begin(), published.token_of().end());
    const auto first_odd = std::find_if(order.begin() + protect, order.end(), [](std::int32_t t) { return t % 2 == 1; });
    CHECK(std::all_of(first_odd, order.end(), [](std::int32_t t) { return t % 2 == 1; }));
    CHECK(std::is_sorted(first_odd, order.end()));
    for (Index t = 0; t < protect; ++t) CHECK(order[static_cast<std::size_t>(t)] == t);
    if (protect > 0) {
      CHECK(std::is_sorted(order.begin(), first_odd));
    } else {
      const auto best = [&](std::int32_t even) {
        double most = -2;
        for (Index odd = 1; odd < 21; odd += 2) most = std::max(most, cosine_of(metric.cast<double>(), even, odd));
        return most;
      };
      CHECK(std::is_sorted(order.begin(), first_odd, [&](std::int32_t a, std::int32_t b) { return best(a) > best(b); }));
    }
    Matrix<float> a(15, 4), b(15, 4);
    Workspace ws(TokenMap<float>::workspace_bytes(21));
    spatial.merge(x, a, Averaged{}, ws);
    published.merge(x, b, Averaged{}, ws);
    for (std::size_t row = 0; row < order.size(); ++row)
      CHECK(same_bits(b.row(static_cast<Index>(row)), a.row(spatial.row_of()[static_cast<std::size_t>(order[row])])));
  }
}

TEST_CASE("bipartite matching: no r is the identity, bit for bit, in either order", "[merge]") {
  const Matrix<float> metric = random_matrix<float>(9, 6, 5), x = random_matrix<float>(9, 4, 6);
  for (const Index r : {Index(0), Index(-3), std::numeric_limits<Index>::min()})
    for (const auto order : {RowOrder::spatial, RowOrder::published}) {
      const TokenMap<float> map = bipartite(metric, {.r = r, .order = order});
      Matrix<float> out(map.rows(), 4), back(9, 4);
      Workspace ws(TokenMap<float>::workspace_bytes(9));
      map.merge(x, out, MassWeighted{}, ws);
      CHECK(same_bits(out, x));
      map.unmerge(out, back);
      CHECK(same_bits(back, x));
    }
  CHECK(bipartite(Matrix<float>(0, 6), {.r = 4}).rows() == 0);
  CHECK(bipartite(Matrix<float>(1, 6), {.r = 4}).rows() == 1);
  CHECK(bipartite(metric, {.r = 4, .protect = 100}).rows() == 9);
}

TEST_CASE("bipartite matching: ties take the lowest, zeros are near to nothing, what is no number stays", "[merge]") {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  Matrix<float> same = Matrix<float>::Ones(8, 3);
  CHECK(targets_of(bipartite(same, {.r = 2})) == std::vector<Index>{1, 1, 1, 3, 4, 5, 6, 7});
  same.row(1).setZero();  // swallows nothing
  CHECK(targets_of(bipartite(same, {.r = 2})) == std::vector<Index>{3, 1, 3, 3, 4, 5, 6, 7});
  same.row(0).setZero();  // the last to leave, to the lowest of equal cosines
  CHECK(targets_of(bipartite(same, {.r = 3})) == std::vector<Index>{0, 1, 3, 3, 3, 5, 3, 7});
  CHECK(targets_of(bipartite(same, {.r = 4})) == std::vector<Index>{1, 1, 3, 3, 3, 5, 3, 7});
  same(2, 1) = nan;
  same(3, 0) = nan;
  CHECK(targets_of(bipartite(same, {.r = 4})) == std::vector<Index>{1, 1, 2, 3, 5, 5, 5, 7});
  Matrix<float> against(4, 1);
  against << 1, -1, 1, -1;  // a negative best is merged all the same
  CHECK(targets_of(bipartite(against, {.r = 1})) == std::vector<Index>{1, 1, 2, 3});
}

TEST_CASE("bipartite matching depends on no worker and no scale", "[merge]") {
  const Matrix<float> metric = random_matrix<float>(300, 40, 7);
  Matrix<float> scaled = metric;
  for (Index t = 0; t < 300; ++t) scaled.row(t) *= std::ldexp(1.f, int(t % 9) - 4);
  ThreadPool pool(3);
  const TokenMap<float> map = bipartite(metric, {.r = 100, .protect = 1});
  CHECK(targets_of(bipartite(metric, {.r = 100, .protect = 1}, pool)) == targets_of(map));
  CHECK(targets_of(bipartite(scaled, {.r = 100, .protect = 1})) == targets_of(map));
}

TEST_CASE("ToMe keeps mass, size by size, through several layers; and tracks where every token went", "[merge]") {
  const Index tokens = 60, dim = 7;
  const Matrix<double> x0 = random_matrix<double>(tokens, dim, 9);
  Matrix<double> x = x0;
  Vector<double> mass = Vector<double>::Ones(tokens);
  Ids where(static_cast<std::size_t>(tokens));
  std::iota(where.begin(), where.end(), 0);
  for (const Index r : MergeSchedule{.layers = 4, .r = 9, .inflection = -1}.steps()) {
    const TokenMap<double> map = bipartite(x, {.r = r, .protect = 1});
    Matrix<double> out(map.rows(), dim);
    Vector<double> after(map.rows());
    Workspace ws(TokenMap<double>::workspace_bytes(x.rows()));
    map.merge(x, out, MassWeighted{}, ws, {mass, after});
    map.follow(where);
    CHECK(same_bits(out.row(0), x0.row(0)));
    x = out;
    mass = after;
  }
  CHECK(x.rows() < tokens / 2);
  CHECK(mass.sum() == tokens);
  CHECK(near(pith_test::transposed_times(x, mass), x0.colwise().sum().transpose().eval(), 1e-13 * tokens));
  for (Index row = 0; row < x.rows(); ++row) {  // each row is the mean of all that went there, and within them
    Vector<double> sum = Vector<double>::Zero(dim), least = sum.array() + 9, most = sum.array() - 9;
    double count = 0;
    for (Index t = 0; t < tokens; ++t) {
      if (where[static_cast<std::size_t>(t)] != row) continue;
      const Vector<double> token = x0.row(t).transpose();
      sum += token;
      least = least.cwiseMin(token);
      most = most.cwiseMax(token);
      ++count;
    }
    CHECK(count == mass[row]);
    CHECK(near(x.row(row).transpose(), (sum / count).eval(), 1e-13));
    CHECK((x.row(row).transpose().array() >= least.array() - 1e-13).all());
    CHECK((x.row(row).transpose().array() <= most.array() + 1e-13).all());
  }
}

TEST_CASE("the forms with memory of their own are the others", "[merge]") {
  const Matrix<float> x = random_matrix<float>(17, 6, 3), rows = random_matrix<float>(17, 4, 4);
  const TokenMap<float> map = match_bipartite(x, {.r = 5}), expected = bipartite<float>(x, {.r = 5});
  REQUIRE(map.rows() == 12);
  CHECK(std::equal(map.row_of().begin(), map.row_of().end(), expected.row_of().begin(), expected.row_of().end()));
  Matrix<float> means = Matrix<float>::Zero(12, 4);  // of all tokens that became a row
  std::vector<float> counts(12);
  for (std::size_t t = 0; t < 17; ++t)
    means.row(map.row_of()[t]) += rows.row(static_cast<Index>(t)), counts[std::size_t(map.row_of()[t])] += 1;
  for (std::size_t r = 0; r < 12; ++r) means.row(static_cast<Index>(r)) /= counts[r];
  CHECK(near(map.merged(rows), means, 1e-5));
  const TokenMap<float> kth = match_every_kth(x, {.k = 3}), expected_kth = every_kth<float>(x, {.k = 3});
  CHECK(std::equal(kth.row_of().begin(), kth.row_of().end(), expected_kth.row_of().begin(), expected_kth.row_of().end()));
}

TEST_CASE("every k-th token takes in what is most similar to it, the tail too unless it is dropped", "[merge]") {
  for (const auto& [tokens, k] : {std::array<Index, 2>{12, 3}, {14, 4}, {14, 1}, {5, 5}, {4, 5}, {101, 2}, {0, 3}})
    for (const bool drop_tail : {false, true}) {
      INFO(tokens << " tokens, k " << k);
      const Matrix<double> metric = random_matrix<double>(tokens, 6, 11);
      const TokenMap<double> map = every_kth(metric, {.k = k, .drop_tail = drop_tail});
      std::vector<Index> expected;
      for (Index t = 0; t < tokens; ++t) {
        Index best = t;
        if (k > 1 && k <= tokens && t % k != k - 1) {
          best = k - 1;
          for (Index stay = k - 1; stay < tokens; stay += k)
            if (cosine_of(metric, t, stay) > cosine_of(metric, t, best)) best = stay;
          if (drop_tail && t >= tokens / k * k) best = -1;
        }
        expected.push_back(best);
      }
      CHECK(targets_of(map) == expected);
      if (!drop_tail) {
        Vector<double> after(map.rows());
        Matrix<double> out(map.rows(), 6);
        Workspace ws(TokenMap<double>::workspace_bytes(tokens));
        map.merge(metric, out, MassWeighted{}, ws, {{}, after});
        CHECK(after.sum() == static_cast<double>(tokens));
      }
    }
}

TEST_CASE("integer sizes in proportional attention are rows repeated", "[merge]") {
  const AttentionShape shape{2, 2, 8};
  const Index rows = 5, queries = 3;
  const Matrix<float> keys = random_matrix<float>(2 * rows, 8, 21), values = random_matrix<float>(2 * rows, 8, 22);
  const Matrix<float> q = random_matrix<float>(queries, 16, 23);
  Vector<float> mass(rows), logs(rows);
  mass << 1, 3, 2, 1, 7;
  log_masses<float>(mass, logs);
  const auto look = [&](const Matrix<float>& k, const Matrix<float>& v, const float* log_mass) {
    const Index n = k.rows() / 2;
    std::vector<KvRun<float>> runs;
    for (Index h = 0; h < 2; ++h)
      runs.push_back({.keys = k.data() + h * n * 8, .values = v.data() + h * n * 8, .rows = n, .stride = 8, .log_mass = log_mass});
    Matrix<float> out(queries, 16);
    Workspace ws(attend_workspace_bytes<float>(shape, n, 1, queries));
    attend<float>(q, {.shape = shape, .next = queries, .runs = runs}, out, ws);
    return out;
  };
  Index repeated = 0;
  const Index total = static_cast<Index>(mass.sum());
  Matrix<float> many_keys(2 * total, 8), many_values(2 * total, 8);
  for (Index row = 0; row < 2 * rows; ++row)
    for (int copy = 0; copy < static_cast<int>(mass[row % rows]); ++copy, ++repeated) {
      many_keys.row(repeated) = keys.row(row);
      many_values.row(repeated) = values.row(row);
    }
  const Matrix<float> sized = look(keys, values, logs.data());
  const double bound =
      64 * static_cast<double>(std::numeric_limits<float>::epsilon());  // logits of a few units, a dozen rows, values below 1
  CHECK(near(sized, look(many_keys, many_values, nullptr), bound));
  CHECK(!near(sized, look(keys, values, nullptr), 1e-2));
}

TEST_CASE("the mean over heads", "[merge]") {
  const Matrix<double> keys = random_matrix<double>(5, 12, 31);
  Matrix<double> out(5, 4), none(5, 0), uneven(5, 5);
  mean_over_heads<double>(keys, out);
  for (Index t = 0; t < 5; ++t)
    for (Index d = 0; d < 4; ++d) CHECK(std::abs(out(t, d) - (keys(t, d) + keys(t, 4 + d) + keys(t, 8 + d)) / 3) < 1e-15);
  CHECK_THROWS_WITH(mean_over_heads<double>(keys, uneven), contains("keys of 12 numbers are no heads of 5"));
  CHECK_THROWS_AS(mean_over_heads<double>(keys, none), ShapeError);
  CHECK_THROWS_AS(mean_over_heads<double>(keys.topRows(4), out), ShapeError);
}

TEST_CASE("token merging: what has no meaning is refused", "[merge]") {
  const Matrix<float> metric = random_matrix<float>(6, 4, 1);
  CHECK_THROWS_WITH(bipartite(metric, {.r = 1, .protect = -1}), contains("-1 protected, expected 0 or more"));
  CHECK_THROWS_AS(clipped_r(-1, {.r = 1}), ShapeError);
  CHECK_THROWS_WITH(every_kth(metric, {.k = 0}), contains("every 0-th token, expected 1 or more"));
  TokenMap<float> small(5);
  Workspace ws(token_match_workspace_bytes<float>(6, 4)), none(0);
  CHECK_THROWS_AS(match_bipartite(metric, {.r = 1}, small, ws), CapacityError);
  CHECK_THROWS_AS(match_every_kth(metric, {.k = 2}, small, ws), CapacityError);
  TokenMap<float> map(6);
  CHECK_THROWS_AS(match_bipartite(metric, {.r = 1}, map, none), CapacityError);
  Vector<float> mass = Vector<float>::Ones(3), out(3), few(2);
  CHECK_THROWS_WITH(log_masses<float>(mass, few), contains("room for 2 of 3 masses"));
  for (const float wrong : {0.f, -1.f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    mass[1] = wrong;
    CHECK_THROWS_WITH(log_masses<float>(mass, out), contains("the mass of row 1 is"));
  }
}
