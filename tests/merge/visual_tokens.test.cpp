#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <vector>

#include <pith/merge.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::near;
using pith_test::random_matrix;
using pith_test::same_bits;

namespace {

using Ids = std::vector<std::int32_t>;

constexpr double no_number = std::numeric_limits<double>::quiet_NaN();

double row_cosine(const Matrix<double>& x, Index a, Index b) {
  const double norms = x.row(a).norm() * x.row(b).norm();
  return norms == 0 ? 0 : x.row(a).dot(x.row(b)) / norms;
}

Ids best_rows(const Vector<double>& scores, Index count) {
  Ids best(static_cast<std::size_t>(count));
  Workspace ws(top_rows_workspace_bytes(scores.size()));
  top_rows<double>(scores, best, ws);
  return best;
}

Ids diverse(const Matrix<double>& x, Index count, ExecutorRef executor = serial) {
  Ids picked(static_cast<std::size_t>(count));
  Workspace ws(diverse_workspace_bytes<double>(x.rows(), x.cols(), executor.size()), executor);
  pick_diverse<double>(x, picked, ws);
  return picked;
}

/// Every cosine by plain loops: each pick is the one whose nearest of the picked, at first of all others, is farthest.
Ids diverse_by_hand(const Matrix<double>& x, Index count) {
  Ids picked;
  while (static_cast<Index>(picked.size()) < count) {
    Index best = -1;
    double best_nearest = 9;
    for (Index r = 0; r < x.rows(); ++r) {
      if (std::find(picked.begin(), picked.end(), r) != picked.end()) continue;
      double nearest = -9;
      if (picked.empty()) {
        for (Index other = 0; other < x.rows(); ++other)
          if (other != r) nearest = std::max(nearest, row_cosine(x, r, other));
      } else {
        for (const std::int32_t other : picked) nearest = std::max(nearest, row_cosine(x, r, other));
      }
      if (nearest < best_nearest) best = r, best_nearest = nearest;
    }
    picked.push_back(static_cast<std::int32_t>(best));
  }
  return picked;
}

TokenMap<double> visionzip(const Matrix<double>& attention, const Matrix<double>& metric, const VisionZipOptions& options) {
  TokenMap<double> map(metric.rows());
  Workspace ws(visionzip_workspace_bytes<double>(metric.rows(), metric.cols()));
  match_visionzip(attention, metric, options, map, ws);
  return map;
}

TokenMap<double> clustered(const Matrix<double>& x, const ClusterOptions& options) {
  TokenMap<double> map(x.rows());
  Workspace ws(cluster_workspace_bytes<double>(x.rows()));
  match_clusters(x, options, map, ws);
  return map;
}

Ids keep_image(const Matrix<float>& attention, const ImageTokens& image) {
  Ids kept(static_cast<std::size_t>(attention.cols() - image.count + image.keep));
  Workspace ws(keep_image_workspace_bytes<float>(image.count));
  keep_image_tokens<float>(attention, image, kept, ws);
  return kept;
}

}  // namespace

TEST_CASE("the best rows: ties take the lowest, what is not a number comes last", "[merge]") {
  Vector<double> scores(6);
  scores << 1, no_number, 3, 1, 3, -std::numeric_limits<double>::infinity();
  CHECK(best_rows(scores, 6) == Ids{2, 4, 0, 3, 1, 5});
  CHECK(best_rows(scores, 3) == Ids{2, 4, 0});
  CHECK(best_rows(scores, 0).empty());
  CHECK_THROWS_WITH(best_rows(scores, 7), contains("the best 7 of 6 rows"));
}

TEST_CASE("rows that a ratio keeps", "[merge]") {
  CHECK(rows_at_keep_ratio(576, 1) == 576);
  CHECK(rows_at_keep_ratio(100, .29) == 28);  // of a double product
  CHECK(rows_at_keep_ratio(100, .29, Rounding::nearest) == 29);
  CHECK(rows_at_keep_ratio(5, .5, Rounding::nearest) == 2);
  CHECK(rows_at_keep_ratio(7, .5, Rounding::nearest) == 4);
  CHECK(rows_at_keep_ratio(7, 0) == 0);
  for (const double wrong : {-.1, 1.01, no_number, std::numeric_limits<double>::infinity()})
    CHECK_THROWS_WITH(rows_at_keep_ratio(10, wrong), contains("expected a ratio in 0 .. 1"));
  CHECK_THROWS_AS(rows_at_keep_ratio(-1, .5), ShapeError);
}

TEST_CASE("diverse rows are those of plain loops, each once, more beginning with fewer", "[merge]") {
  for (const auto& [n, dim] : {std::array<Index, 2>{1, 3}, {2, 3}, {30, 8}, {150, 5}}) {
    const Matrix<double> x = random_matrix<double>(n, dim, static_cast<std::uint64_t>(n));
    const Ids all = diverse(x, n);
    CHECK(all == diverse_by_hand(x, n));
    CHECK(std::set<std::int32_t>(all.begin(), all.end()).size() == all.size());
    const Ids half = diverse(x, n / 2);
    CHECK(std::equal(half.begin(), half.end(), all.begin()));
    ThreadPool pool(2);
    CHECK(diverse(x, n, pool) == all);
  }
}

TEST_CASE("diverse rows: equal ones, zeros and missing numbers are picked once, and last", "[merge]") {
  Matrix<double> x(7, 2);
  x << 1, 0, 1, 0, 1, 0, 0, 0, no_number, 1, 0, 1, 2, 0;
  CHECK(diverse(x, 7) == Ids{3, 0, 5, 1, 2, 6, 4});  // zeros are at distance 1 of all
  CHECK(diverse(Matrix<double>::Ones(5, 3), 5) == Ids{0, 1, 2, 3, 4});
  CHECK(diverse(Matrix<double>::Constant(3, 2, no_number), 3) == Ids{0, 1, 2});
  CHECK(diverse(Matrix<double>(0, 3), 0).empty());
  CHECK_THROWS_WITH(diverse(x, 8), contains("8 picks of 7 rows, expected no more than there are"));
}

TEST_CASE("image tokens: the best by mean attention stay, and all that is no image", "[merge]") {
  Matrix<float> attention(2, 8);
  attention << 9, 9, .1f, .4f, .2f, .0f, .1f, 9,  //
      0, 0, .3f, .0f, .1f, .3f, .3f, 0;
  CHECK(keep_image(attention, {.first = 2, .count = 5, .keep = 2}) == Ids{0, 1, 2, 3, 7});  // of .4 each the lowest
  CHECK(keep_image(attention, {.first = 2, .count = 5, .keep = 0}) == Ids{0, 1, 7});
  CHECK(keep_image(attention, {.first = 2, .count = 5, .keep = 5}) == Ids{0, 1, 2, 3, 4, 5, 6, 7});
  CHECK(keep_image(attention, {.first = 8, .count = 0, .keep = 0}).size() == 8);
  attention(1, 3) = std::numeric_limits<float>::quiet_NaN();
  CHECK(keep_image(attention, {.first = 2, .count = 5, .keep = 2}) == Ids{0, 1, 2, 6, 7});

  Workspace ws(keep_image_workspace_bytes<float>(8));
  Ids kept(5);
  CHECK_THROWS_WITH(keep_image_tokens<float>(attention, {.first = 4, .count = 5}, kept, ws),
                    contains("an image of 5 tokens from 4 on, of 8"));
  CHECK_THROWS_AS(keep_image_tokens<float>(attention, {.first = -1, .count = 2}, kept, ws), ShapeError);
  CHECK_THROWS_AS(keep_image_tokens<float>(attention, {.first = 2, .count = -2}, kept, ws), ShapeError);
  CHECK_THROWS_AS(keep_image_tokens<float>(attention, {.first = 2, .count = std::numeric_limits<Index>::max()}, kept, ws), ShapeError);
  CHECK_THROWS_WITH(keep_image_tokens<float>(attention, {.first = 2, .count = 3, .keep = 4}, kept, ws),
                    contains("4 of an image of 3 tokens"));
  CHECK_THROWS_WITH(keep_image_tokens<float>(attention, {.first = 2, .count = 5, .keep = 3}, kept, ws),
                    contains("room for 5 tokens, expected 6"));
  CHECK_THROWS_WITH(keep_image_tokens<float>(Matrix<float>(0, 8), {.first = 2, .count = 5, .keep = 2}, kept, ws), contains("no heads"));
}

TEST_CASE("class attention, and the outliers in it", "[merge]") {
  const Matrix<double> keys = random_matrix<double>(9, 5, 1), query = random_matrix<double>(1, 5, 2);
  Vector<double> out(8), few(7);
  Workspace ws(Workspace::bytes_for<double>(9));
  class_attention<double>(query.row(0), keys, out, ws);
  double sum = 0;
  for (Index t = 0; t < 9; ++t) sum += std::exp(keys.row(t).dot(query.row(0)) / std::sqrt(5.));
  for (Index t = 0; t < 8; ++t) CHECK(std::abs(out[t] - std::exp(keys.row(t + 1).dot(query.row(0)) / std::sqrt(5.)) / sum) < 1e-14);
  CHECK_THROWS_WITH(class_attention<double>(query.row(0), keys, few, ws), contains("room for 7 weights of 9 tokens"));
  CHECK_THROWS_AS(class_attention<double>(query.row(0), keys.leftCols(4), out, ws), ShapeError);
  Vector<double> none(0);
  CHECK_THROWS_AS(class_attention<double>(query.row(0), keys.topRows(0), none, ws), ShapeError);

  Vector<double> scores(9);
  scores << 5, 1, 2, 3, 4, 6, 7, 13, 13.001;  // quartiles 3 and 7: above 13
  const auto outliers = [&](const Vector<double>& of) {
    Workspace room(Workspace::bytes_for<double>(of.size()));
    return count_outliers<double>(of, room);
  };
  CHECK(outliers(scores) == 1);
  scores[7] = no_number;  // quartiles 2 and 6
  CHECK(outliers(scores) == 1);
  CHECK(outliers(Vector<double>::Ones(4)) == 0);
  CHECK(outliers(Vector<double>::Constant(4, no_number)) == 0);
  CHECK(outliers(Vector<double>(0)) == 0);
  CHECK(outliers((Vector<double>(4) << 0, 0, 0, 1).finished()) == 1);  // quartiles 0 and .25
}

TEST_CASE("PruMerge+ adds rows at even distances, none twice", "[merge]") {
  Ids rows(20, -7);
  rows[0] = 8, rows[1] = 5;
  CHECK(add_spatial_rows(20, .1, 2, rows) == 9);  // three apart
  Ids expected{8, 5, 0, 3, 6, 9, 12, 15, 18};
  rows.resize(9);
  CHECK(add_spatial_rows(20, .1, 2, rows) == 9);
  CHECK(rows == expected);
  Ids all(20);
  CHECK(add_spatial_rows(20, 1. / 3, 0, all) == 20);
  CHECK(add_spatial_rows(20, 1e-300, 0, all) == 1);
  CHECK(add_spatial_rows(20, std::numeric_limits<double>::denorm_min(), 0, all) == 1);
  CHECK(add_spatial_rows(0, .1, 0, all) == 0);
  for (const double wrong : {.34, .5, 1.}) CHECK_THROWS_WITH(add_spatial_rows(20, wrong, 0, all), contains("rows less than one apart"));
  for (const double wrong : {0., -1., 1.5, no_number})
    CHECK_THROWS_WITH(add_spatial_rows(20, wrong, 0, all), contains("expected one above 0"));
  CHECK_THROWS_WITH(add_spatial_rows(20, .1, 2, std::span(rows).first(8)), contains("room for 8 rows, expected 9"));
  CHECK_THROWS_AS(add_spatial_rows(20, .1, 10, rows), ShapeError);
  CHECK_THROWS_AS(add_spatial_rows(20, .1, -1, rows), ShapeError);
  CHECK_THROWS_AS(add_spatial_rows(-1, .1, 0, rows), ShapeError);
  CHECK_THROWS_WITH(add_spatial_rows(7, .1, 2, rows), contains("row 8, expected 0 .. 6"));
}

TEST_CASE("PruMerge is its formula by plain loops", "[merge]") {
  const Index n = 40, dim = 6;
  const Matrix<double> x = random_matrix<double>(n, 5, 1), keys = random_matrix<double>(n, dim, 2);
  const Vector<double> attention = random_matrix<double>(n, 1, 3).cwiseAbs();
  const Ids kept = best_rows(attention, 6);
  for (const Index neighbours : {0, 1, 32, 39, 1000}) {
    Matrix<double> out(7, 5), expected = Matrix<double>::Zero(7, 5);
    Workspace ws(prumerge_workspace_bytes<double>(n, 6, dim));
    prumerge<double>({x, keys, attention}, kept, neighbours, out, ws);
    for (Index i = 0; i < 6; ++i) {
      const Index patch = kept[static_cast<std::size_t>(i)];
      std::vector<std::pair<double, Index>> order;
      for (Index j = 0; j < n; ++j)
        if (j != patch) order.emplace_back(-row_cosine(keys, patch, j), j);
      std::sort(order.begin(), order.end());
      expected.row(i) = x.row(patch);
      for (Index j = 0; j < std::min(neighbours, n - 1); ++j) {
        const Index near_patch = order[static_cast<std::size_t>(j)].second;
        expected.row(i) += attention[near_patch] * x.row(near_patch);
      }
    }
    for (Index j = 0; j < n; ++j)
      if (std::find(kept.begin(), kept.end(), j) == kept.end()) expected.row(6) += attention[j] * x.row(j);
    CHECK(near(out, expected, 1e-13));
  }
  Matrix<double> out(7, 5);
  Workspace ws(prumerge_workspace_bytes<double>(n, 6, dim));
  const auto refused = [&](const Ids& rows, Index neighbours) { prumerge<double>({x, keys, attention}, rows, neighbours, out, ws); };
  CHECK_THROWS_WITH(refused({}, 1), contains("no patch is kept, expected one or more: a larger ratio"));
  CHECK_THROWS_WITH(refused({0, 1, 2, 3, 4, 0}, 1), contains("patch 0 is kept, expected 0 .. 39, each once"));
  CHECK_THROWS_AS(refused({0, 1, 2, 3, 4, 40}, 1), ShapeError);
  CHECK_THROWS_AS(refused({0, 1, 2, 3, 4, -1}, 1), ShapeError);
  CHECK_THROWS_WITH(refused({0, 1, 2, 3, 4, 5}, -1), contains("-1 neighbours"));
  CHECK_THROWS_AS(refused({0, 1, 2, 3, 4}, 1), ShapeError);
  CHECK_THROWS_AS((prumerge<double>({x, keys.topRows(3), attention}, kept, 1, out, ws)), ShapeError);
  CHECK_THROWS_WITH((prumerge<double>({x, keys, attention.head(3)}, kept, 1, out, ws)), contains("3 weights of 40 patches"));
}

TEST_CASE("VisionZip by plain loops: dominant ones stay, contextual ones take in the rest", "[merge]") {
  const Index tokens = 50;
  const Matrix<double> attention = random_matrix<double>(3, tokens, 1).cwiseAbs(), metric = random_matrix<double>(tokens, 7, 2);
  const Matrix<double> hidden = random_matrix<double>(tokens, 6, 3);
  for (const auto& [dominant, contextual] : {std::array<Index, 2>{7, 6}, {0, 1}, {49, 3}, {40, 30}, {7, 0}, {7, 42}}) {
    INFO(dominant << " dominant, " << contextual << " contextual");
    const Vector<double> scores = attention.rightCols(tokens - 1).colwise().sum().transpose();
    Ids order{0};
    for (const std::int32_t patch : best_rows(scores, dominant)) order.push_back(patch + 1);
    std::sort(order.begin(), order.end());
    Ids rest;
    for (std::int32_t t = 0; t < tokens; ++t)
      if (std::find(order.begin(), order.end(), t) == order.end()) rest.push_back(t);
    Ids targets;
    const auto wanted = std::min(static_cast<std::size_t>(contextual), rest.size());
    for (std::size_t i = 0; targets.size() < wanted; i += rest.size() / wanted) targets.push_back(rest[i]);
    Matrix<double> expected(1 + dominant + static_cast<Index>(wanted), 6);
    for (std::size_t i = 0; i < order.size(); ++i) expected.row(static_cast<Index>(i)) = hidden.row(order[i]);
    for (std::size_t i = 0; i < wanted; ++i) {
      Vector<double> sum = Vector<double>::Zero(6);
      double count = 0;
      for (const std::int32_t t : rest) {
        if (std::find(targets.begin(), targets.end(), t) != targets.end()) continue;
        const auto nearer = [&](std::int32_t a, std::int32_t b) { return row_cosine(metric, t, a) < row_cosine(metric, t, b); };
        if (*std::max_element(targets.begin(), targets.end(), nearer) != targets[i]) continue;
        sum += hidden.row(t).transpose();
        ++count;
      }
      expected.row(1 + dominant + static_cast<Index>(i)) = hidden.row(targets[i]) + sum.transpose() / std::max(count, 1.);
    }
    const TokenMap<double> map = visionzip(attention, metric, {.dominant = dominant, .contextual = contextual});
    REQUIRE(map.rows() == expected.rows());
    Matrix<double> out(map.rows(), 6);
    Workspace ws(TokenMap<double>::workspace_bytes(tokens));
    map.merge(hidden, out, TargetPlusMean{}, ws);
    CHECK(near(out, expected, 1e-14));
    const TokenMap<double> spatial =
        visionzip(attention, metric, {.dominant = dominant, .contextual = contextual, .order = RowOrder::spatial});
    CHECK(std::is_sorted(spatial.token_of().begin(), spatial.token_of().end()));
    CHECK(spatial.merged() == map.merged());
    CHECK(map.merged() == (contextual == 0 ? 0 : tokens - map.rows()));
  }
  Matrix<double> broken = metric;
  broken(20, 0) = no_number;
  const TokenMap<double> map = visionzip(attention, broken, {.dominant = 0, .contextual = 1});
  CHECK(map.row_of()[20] == -1);
  CHECK_THROWS_WITH(visionzip(attention, metric, {.dominant = 50}), contains("50 dominant and 10 contextual"));
  CHECK_THROWS_AS(visionzip(attention, metric, {.dominant = -1}), ShapeError);
  CHECK_THROWS_AS(visionzip(attention, metric, {.dominant = 1, .contextual = -1}), ShapeError);
  CHECK_THROWS_AS(visionzip(attention.leftCols(9), metric, {.dominant = 1}), ShapeError);
  CHECK_THROWS_WITH(visionzip(attention.topRows(0), metric, {.dominant = 1}), contains("no heads"));
}

TEST_CASE("clusters by plain loops: centres are dense and far from denser ones", "[merge]") {
  for (const auto& [n, clusters, neighbours] : {std::array<Index, 3>{1, 1, 1}, {30, 4, 5}, {30, 30, 3}, {80, 7, 80}}) {
    const Matrix<double> x = random_matrix<double>(n, 6, static_cast<std::uint64_t>(n + clusters));
    const auto distance = [&](Index i, Index j) { return (x.row(i) - x.row(j)).norm() / std::sqrt(6.); };
    std::vector<double> density, score;
    double farthest = 0;
    for (Index i = 0; i < n; ++i) {
      std::vector<double> squares;
      for (Index j = 0; j < n; ++j) {
        squares.push_back(distance(i, j) * distance(i, j));
        farthest = std::max(farthest, distance(i, j));
      }
      std::sort(squares.begin(), squares.end());
      density.push_back(std::exp(-std::accumulate(squares.begin(), squares.begin() + neighbours, 0.) / static_cast<double>(neighbours)));
    }
    for (Index i = 0; i < n; ++i) {
      double parent = 99;
      for (Index j = 0; j < n; ++j)
        if (density[std::size_t(j)] > density[std::size_t(i)]) parent = std::min(parent, distance(i, j));
      score.push_back((parent == 99 ? farthest : parent) * density[std::size_t(i)]);
    }
    const Ids centres = best_rows(Eigen::Map<Vector<double>>(score.data(), n), clusters);
    const TokenMap<double> map = clustered(x, {.clusters = clusters, .neighbours = neighbours, .order = RowOrder::published});
    CHECK(Ids(map.token_of().begin(), map.token_of().end()) == centres);
    for (Index i = 0; i < n; ++i) {
      const auto nearer = [&](std::int32_t a, std::int32_t b) { return distance(i, a) < distance(i, b); };
      CHECK(map.token_of()[std::size_t(map.row_of()[std::size_t(i)])] == *std::min_element(centres.begin(), centres.end(), nearer));
    }
    const TokenMap<double> spatial = clustered(x, {.clusters = clusters, .neighbours = neighbours});
    CHECK(std::is_sorted(spatial.token_of().begin(), spatial.token_of().end()));
  }
}

TEST_CASE("clusters: equal rows make as many as are asked for, and missing numbers join the best", "[merge]") {
  const TokenMap<double> equal = clustered(Matrix<double>::Ones(6, 3), {.clusters = 2, .neighbours = 3});
  CHECK(Ids(equal.token_of().begin(), equal.token_of().end()) == Ids{0, 1});
  CHECK(Ids(equal.row_of().begin(), equal.row_of().end()) == Ids{0, 1, 0, 0, 0, 0});
  Matrix<double> x = random_matrix<double>(10, 3, 4);
  x(4, 1) = no_number;
  const TokenMap<double> broken = clustered(x, {.clusters = 3, .neighbours = 2, .order = RowOrder::published});
  CHECK(broken.rows() == 3);
  CHECK(broken.row_of()[4] == 0);
  CHECK(clustered(Matrix<double>::Constant(4, 2, no_number), {.clusters = 2, .neighbours = 4}).rows() == 2);
  for (const ClusterOptions wrong :
       {ClusterOptions{.clusters = 0}, {.clusters = 11}, {.clusters = 2, .neighbours = 0}, {.clusters = 2, .neighbours = 11}})
    CHECK_THROWS_WITH(clustered(x, wrong), contains("expected 1 .. 10 of each"));
}

TEST_CASE("image tokens: the forms with memory of their own are the others", "[merge]") {
  const Index n = 30;
  const Matrix<double> x = random_matrix<double>(n, 6, 1), attention = random_matrix<double>(3, n, 2).cwiseAbs();
  const Vector<double> scores = attention.row(0).transpose();
  const auto same = [](const TokenMap<double>& a, const TokenMap<double>& b) {
    return std::equal(a.row_of().begin(), a.row_of().end(), b.row_of().begin(), b.row_of().end()) && a.cosine() == b.cosine();
  };
  CHECK(top_rows(scores, 7) == best_rows(scores, 7));
  CHECK_THROWS_WITH(top_rows(scores, 31), contains("31 of 30 rows, expected 0 .. 30"));
  CHECK(pick_diverse(x, 7) == diverse(x, 7));
  CHECK_THROWS_WITH(pick_diverse(x, -1), contains("-1 of 30 rows, expected 0 .. 30"));
  CHECK(same(match_visionzip(attention, x, {.dominant = 5, .contextual = 4}), visionzip(attention, x, {.dominant = 5, .contextual = 4})));
  CHECK(same(match_clusters(x, {.clusters = 6}), clustered(x, {.clusters = 6})));
  const ImageTokens image{.first = 4, .count = 20, .keep = 8};
  const Matrix<float> weights = attention.cast<float>();
  CHECK(keep_image_tokens(weights, image) == keep_image(weights, image));
  CHECK_THROWS_AS(keep_image_tokens(weights, {.first = 4, .count = 27, .keep = 8}), ShapeError);

  Workspace ws(1 << 20);
  Vector<double> of_class(n - 1);
  const Vector<double> query = x.row(0).transpose();
  class_attention<double>(query, x, of_class, ws);
  CHECK(class_attention(query, x) == of_class);
  CHECK_THROWS_AS(class_attention(query, x.topRows(0)), ShapeError);
  CHECK(count_outliers(scores) == count_outliers<double>(scores, ws));
  const ImagePatches<double> patches{x, x, scores};
  const Ids kept = best_rows(scores, 4);
  Matrix<double> merged(5, 6);
  prumerge<double>(patches, kept, 3, merged, ws);
  CHECK(prumerge(patches, kept, 3) == merged);
}
