#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include <pith/merge.hpp>

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

template <class S> struct Group {
  Matrix<S> kept_keys, kept_values, keys, values;
  std::vector<std::int32_t> match;
  Vector<S> cosine, kept_mass = {}, mass = {};

  Group(Index m, Index n, Index dim, std::uint64_t seed)
      : kept_keys(random_matrix<S>(m, dim, seed)),
        kept_values(random_matrix<S>(m, dim, seed + 1)),
        keys(random_matrix<S>(n, dim, seed + 2)),
        values(random_matrix<S>(n, dim, seed + 3)) {
    find();
  }
  Group(Matrix<S> kk, Matrix<S> kv, Matrix<S> k, Matrix<S> v)
      : kept_keys(std::move(kk)), kept_values(std::move(kv)), keys(std::move(k)), values(std::move(v)) {
    find();
  }

  void find() {
    match.resize(static_cast<std::size_t>(keys.rows()));
    cosine.resize(keys.rows());
    Workspace ws(nearest_workspace_bytes<S>(kept_keys.rows(), keys.cols()));
    nearest_rows<S>(keys, kept_keys, match, cosine, ws);
  }

  template <class Rule> void merge(const Rule& rule) {
    Workspace ws(merge_workspace_bytes<S>(kept_values.rows(), values.rows()));
    merge_rows(MergedRows<S>{kept_keys, kept_values, kept_mass}, {keys, values, mass}, {match, cosine}, rule, ws);
  }
  template <class Rule> Group merged(const Rule& rule) const {
    Group copy = *this;
    copy.merge(rule);
    return copy;
  }
};

/// The rule row by row in double, as it is written: b, a and z come from the formulas of the table.
template <class Rule>
Matrix<double> by_hand(const Group<double>& g, const Matrix<double>& kept, const Matrix<double>& rows, const Rule& formula) {
  Matrix<double> out = kept;
  for (Index c = 0; c < kept.rows(); ++c) {
    Vector<double> sum = Vector<double>::Zero(kept.cols());
    double count = 0, weights = 0;
    for (Index e = 0; e < rows.rows(); ++e) {
      if (g.match[static_cast<std::size_t>(e)] != c) continue;
      const double b = formula.b(g.cosine[e]);
      sum += b * rows.row(e).transpose();
      weights += b;
      ++count;
    }
    if (count > 0) out.row(c) = (formula.a(count) * kept.row(c) + sum.transpose()) / formula.z(count, weights);
  }
  return out;
}

struct Formula {
  double (*b)(double cosine);
  double (*a)(double count);
  double (*z)(double count, double weights);
};
const Formula averaged{[](double) { return 1.; }, [](double) { return 1.; }, [](double n, double) { return 1 + n; }};
const Formula pivotal{[](double) { return .5; }, [](double n) { return 1 + n / 2; }, [](double n, double) { return 1 + n; }};
const Formula weighted{[](double s) { return s; }, [](double) { return 1.; }, [](double n, double) { return 1 + n; }};
const Formula normalized{[](double s) { return std::max((1 + s) / 2, 1e-6); }, [](double) { return 1.; },
                         [](double, double w) { return 1 + w; }};

}  // namespace

TEST_CASE("the worked example of every rule", "[merge]") {
  Matrix<double> kk(2, 2), kv(2, 2), k(3, 2), v(3, 2);
  kk << 1, 0, 0, 2;
  kv << 1, 1, 4, 0;
  k << 2, .5, .5, 1, 3, 1;
  v << 3, 5, 0, 2, 2, 0;
  const Group<double> group(kk, kv, k, v);
  CHECK(group.match == std::vector<std::int32_t>{0, 1, 0});
  const auto check = [&](const auto& rule, std::array<double, 4> keys, std::array<double, 4> values) {
    const Group<double> merged = group.merged(rule);
    CHECK(near(merged.kept_keys, Eigen::Map<const Matrix<double>>(keys.data(), 2, 2), 1e-6));
    CHECK(near(merged.kept_values, Eigen::Map<const Matrix<double>>(values.data(), 2, 2), 1e-6));
  };
  check(Averaged{}, {2, .5, .25, 1.5}, {2, 2, 2, 1});
  check(Pivotal{}, {1.5, .25, .125, 1.75}, {1.5, 1.5, 3, .5});
  check(Weighted{}, {1.928778, .477918, .223607, 1.447214}, {1.935931, 1.950238, 2, .894427});
  check(Normalized{}, {1.99133, .495665, .243223, 1.513554}, {1.994956, 2.002207, 2.054217, .972891});
}

TEST_CASE("every rule is its formula, row by row in double", "[merge]") {
  const Group<double> group(12, 50, 9, 1);
  const auto check = [&](const auto& rule, const Formula& formula) {
    const Group<double> merged = group.merged(rule);
    CHECK(near(merged.kept_keys, by_hand(group, group.kept_keys, group.keys, formula), 1e-12));
    CHECK(near(merged.kept_values, by_hand(group, group.kept_values, group.values, formula), 1e-12));
  };
  check(Averaged{}, averaged);
  check(Pivotal{}, pivotal);
  check(Weighted{}, weighted);
  check(Normalized{}, normalized);
}

TEST_CASE("what merging keeps: bits of rows nothing came to, mass, the middle, a row merged into itself", "[merge]") {
  Group<double> group(20, 30, 8, 5);
  group.match[3] = -1;  // dropped
  const Group<double> averaged_rows = group.merged(Averaged{}), pivotal_rows = group.merged(Pivotal{});
  Vector<double> counts = Vector<double>::Zero(20);
  for (const std::int32_t c : group.match)
    if (c >= 0) counts[c] += 1;
  Vector<double> total = group.kept_values.colwise().sum(), after = Vector<double>::Zero(8);
  for (Index e = 0; e < 30; ++e)
    if (e != 3) total += group.values.row(e).transpose();
  for (Index c = 0; c < 20; ++c) {
    after += (1 + counts[c]) * averaged_rows.kept_values.row(c).transpose();
    if (counts[c] == 0) CHECK(same_bits(averaged_rows.kept_values.row(c), group.kept_values.row(c)));
  }
  CHECK(near(after, total, 1e-12));
  CHECK(near(pivotal_rows.kept_keys, ((group.kept_keys + averaged_rows.kept_keys) / 2).eval(), 1e-13));

  Group<double> itself(group.kept_keys, group.kept_values, group.kept_keys, group.kept_values);
  const auto unchanged = [&](const auto& rule) { CHECK(near(itself.merged(rule).kept_values, itself.kept_values, 1e-13)); };
  unchanged(Averaged{});
  unchanged(Pivotal{});
  unchanged(Normalized{});
  unchanged(Weighted{});  // every cosine is 1

  Group<double> nothing(group.kept_keys, group.kept_values, Matrix<double>(0, 8), Matrix<double>(0, 8));
  CHECK(same_bits(nothing.merged(Averaged{}).kept_keys, group.kept_keys));
}

TEST_CASE("cosines of 1 make every weighted rule the average", "[merge]") {
  Group<double> group(8, 20, 6, 31);
  group.cosine.setOnes();
  const Group<double> expected = group.merged(Averaged{});
  for (const auto& ours : {group.merged(Weighted{}), group.merged(Normalized{}), group.merged(MassWeighted{})}) {
    CHECK(near(ours.kept_keys, expected.kept_keys, 1e-14));
    CHECK(near(ours.kept_values, expected.kept_values, 1e-14));
  }
}

TEST_CASE("convex rules stay within what they mix, and a negative cosine subtracts where the rule says so", "[merge]") {
  Group<double> group(6, 40, 5, 33);
  group.kept_mass = random_matrix<double>(6, 1, 34).cwiseAbs().array() + 1;
  group.mass = random_matrix<double>(40, 1, 35).cwiseAbs().array() + 1;
  const auto within = [&](const auto& rule) {
    const Group<double> merged = group.merged(rule);
    for (Index c = 0; c < 6; ++c) {
      Vector<double> least = group.kept_values.row(c).transpose(), most = least;
      for (Index e = 0; e < 40; ++e) {
        if (group.match[static_cast<std::size_t>(e)] != c) continue;
        least = least.cwiseMin(group.values.row(e).transpose());
        most = most.cwiseMax(group.values.row(e).transpose());
      }
      CHECK((merged.kept_values.row(c).transpose().array() >= least.array() - 1e-14).all());
      CHECK((merged.kept_values.row(c).transpose().array() <= most.array() + 1e-14).all());
    }
  };
  within(Averaged{});
  within(Pivotal{});
  within(Normalized{});
  within(MassWeighted{});
  within(ValuesOnly{});

  Matrix<double> one(1, 2), against(1, 2);
  one << 1, 0;
  against << -2, 0;
  const Group<double> pair(one, one, against, against);  // the only row kept is where all others go
  CHECK(pair.match[0] == 0);
  CHECK(pair.cosine[0] == -1);
  CHECK(pair.merged(Weighted{}).kept_keys(0, 0) == 1.5);
  CHECK(pair.merged(Averaged{}).kept_keys(0, 0) == -.5);
}

TEST_CASE("the order of evicted rows changes rounding at most, that of kept rows only where results lie", "[merge]") {
  const Index m = 9, n = 30;
  const Group<double> group(m, n, 7, 41);
  const auto backwards = [](const Matrix<double>& x) { return Matrix<double>(x.colwise().reverse()); };
  const Group<double> evicted(group.kept_keys, group.kept_values, backwards(group.keys), backwards(group.values));
  const Group<double> kept(backwards(group.kept_keys), backwards(group.kept_values), group.keys, group.values);
  for (Index e = 0; e < n; ++e) {
    CHECK(evicted.match[static_cast<std::size_t>(n - 1 - e)] == group.match[static_cast<std::size_t>(e)]);
    CHECK(kept.match[static_cast<std::size_t>(e)] == m - 1 - group.match[static_cast<std::size_t>(e)]);
  }
  const auto check = [&](const auto& rule) {
    const Group<double> expected = group.merged(rule), one = evicted.merged(rule), other = kept.merged(rule);
    CHECK(near(one.kept_keys, expected.kept_keys, 1e-14));
    CHECK(near(one.kept_values, expected.kept_values, 1e-14));
    CHECK(same_bits(backwards(other.kept_keys), expected.kept_keys));
    CHECK(same_bits(backwards(other.kept_values), expected.kept_values));
  };
  check(Averaged{});
  check(Pivotal{});
  check(Weighted{});
  check(Normalized{});
  check(MassWeighted{});
}

TEST_CASE("scales of keys change no match, a rotation of all keys neither match nor weight, and values follow keys", "[merge]") {
  const Index m = 10, n = 40, dim = 6;
  const Group<double> group(m, n, dim, 51);
  Matrix<double> kept_keys = group.kept_keys, keys = group.keys;
  const Vector<double> kept_scale = random_matrix<double>(m, 1, 52).cwiseAbs().array() + .1;
  const Vector<double> scale = random_matrix<double>(n, 1, 53).cwiseAbs().array() + .1;
  const auto scaled_rows = [](Matrix<double> rows, const Vector<double>& factors) {
    for (Index r = 0; r < rows.rows(); ++r) rows.row(r) *= factors[r];
    return rows;
  };
  const Group<double> scaled(scaled_rows(kept_keys, kept_scale), group.kept_values, scaled_rows(keys, scale), group.values);
  CHECK(scaled.match == group.match);
  CHECK(near(scaled.cosine, group.cosine, 1e-14));

  Matrix<double> rotation = Matrix<double>::Identity(dim, dim);  // of every plane of neighbours by an angle of its own
  for (Index d = 0; d + 1 < dim; ++d) {
    Matrix<double> plane = Matrix<double>::Identity(dim, dim);
    const double angle = .3 + static_cast<double>(d);
    plane(d, d) = plane(d + 1, d + 1) = std::cos(angle);
    plane(d, d + 1) = -std::sin(angle);
    plane(d + 1, d) = std::sin(angle);
    rotation = (rotation * plane).eval();
  }
  const Group<double> turned(kept_keys * rotation, group.kept_values, keys * rotation, group.values);
  CHECK(turned.match == group.match);
  CHECK(near(turned.cosine, group.cosine, 1e-14));
  const auto check = [&](const auto& rule) {
    const Group<double> expected = group.merged(rule);
    CHECK(near(turned.merged(rule).kept_keys, (expected.kept_keys * rotation).eval(), 1e-13));
    CHECK(near(turned.merged(rule).kept_values, expected.kept_values, 1e-13));
    const Group<double> same(kept_keys, kept_keys, keys, keys);
    CHECK(same.match == group.match);
    CHECK(same_bits(same.merged(rule).kept_values, expected.kept_keys));
  };
  check(Averaged{});
  check(Pivotal{});
  check(Weighted{});
  check(Normalized{});
}

TEST_CASE("sizes add up, and two merges by size are the mean of all tokens", "[merge]") {
  Group<double> group(6, 10, 5, 9);
  group.kept_mass = Vector<double>::Ones(6);
  group.mass = Vector<double>::Ones(10);
  Vector<double> sum = group.kept_values.colwise().sum() + group.values.colwise().sum();
  group.merge(MassWeighted{});
  CHECK(group.kept_mass.sum() == 16);
  Group<double> again(group.kept_keys.topRows(2), group.kept_values.topRows(2), group.kept_keys.bottomRows(4),
                      group.kept_values.bottomRows(4));
  again.kept_mass = group.kept_mass.head(2);
  again.mass = group.kept_mass.tail(4);
  again.merge(MassWeighted{});
  CHECK(again.kept_mass.sum() == 16);
  CHECK(near(pith_test::transposed_times(again.kept_values, again.kept_mass), sum, 1e-13));
}

TEST_CASE("values only: keys keep every bit", "[merge]") {
  const Group<float> group(6, 20, 8, 11);
  const Group<float> merged = group.merged(ValuesOnly{});
  CHECK(same_bits(merged.kept_keys, group.kept_keys));
  CHECK(!same_bits(merged.kept_values, group.kept_values));
}

TEST_CASE("merge_rows: what disagrees is refused before anything changes", "[merge]") {
  Group<float> group(4, 6, 8, 13);
  const Group<float> before = group;
  group.match[5] = 4;
  CHECK_THROWS_WITH(group.merge(Averaged{}), contains("match 4, expected -1 .. 3"));
  group.match.pop_back();
  CHECK_THROWS_WITH(group.merge(Averaged{}), contains("5 matches, expected 6"));
  group.match = before.match;
  group.mass = Vector<float>::Ones(2);
  CHECK_THROWS_WITH(group.merge(Averaged{}), contains("2 masses of evicted rows, expected 6"));
  group.mass = Vector<float>::Zero(6);
  CHECK_THROWS_WITH(group.merge(MassWeighted{}), contains("not above 0"));
  group.mass = {};
  group.values.conservativeResize(6, 7);
  CHECK_THROWS_AS(group.merge(Averaged{}), ShapeError);
  CHECK(same_bits(group.kept_keys, before.kept_keys));
  CHECK(same_bits(group.kept_values, before.kept_values));
}

TEST_CASE("merge_rows: the form with a workspace of its own is the other", "[merge]") {
  Group<float> one(4, 6, 5, 1), other = one;
  one.merge(Averaged{});
  merge_rows(MergedRows<float>{other.kept_keys, other.kept_values, other.kept_mass}, {other.keys, other.values, other.mass},
             {other.match, other.cosine}, Averaged{});
  CHECK(other.kept_keys == one.kept_keys);
  CHECK(other.kept_values == one.kept_values);
}
