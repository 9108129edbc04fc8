#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include <pith/vision.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/products.hpp"
#include "support/random_matrix.hpp"
#include "support/tiny_vision.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::random_matrix;
using pith_test::times_transposed;
using pith_test::tiny_tower;

namespace {

using Wide = Matrix<double>;

/// A tower by plain loops in double: all hidden states, and what each layer gives besides.
struct PlainTower {
  struct Layer {
    Wide q, k;
    std::vector<Wide> attention;  ///< per head [tokens, tokens]
  };
  std::vector<Wide> states;
  std::vector<Layer> layers;
  std::vector<Index> row_of;   ///< of each token, after what was merged
  std::vector<double> masses;  ///< of each row

  template <class S> static Wide linear(const AnyLinear<S>& l, const Wide& x) {
    Matrix<S> w(l.out(), l.in());
    l.copy_weight(0, w);
    const Wide y = times_transposed(x, w);
    return l.bias().size() > 0 ? pith_test::with_bias(y, l.bias()) : y;
  }
  template <class S> static Wide norm(const LayerNorm<S>& n, const Wide& x) {
    Wide y = x;
    for (Index t = 0; t < x.rows(); ++t) {
      const double mean = x.row(t).mean(), var = (x.row(t).array() - mean).square().mean();
      y.row(t) = (x.row(t).array() - mean) / std::sqrt(var + double(n.eps()));
      y.row(t) = y.row(t).cwiseProduct(n.weight().template cast<double>().transpose()) + n.bias().template cast<double>().transpose();
    }
    return y;
  }

  /// ToMe between attention and feed-forward: the r even rows (the class token aside) most similar to an odd one join it.
  void merge(Wide& x, const Wide& keys, Index r, bool class_token, Index heads) {
    const Index n = x.rows(), d = keys.cols() / heads;
    Wide metric = Wide::Zero(n, d);
    for (Index h = 0; h < heads; ++h) metric += keys.middleCols(h * d, d) / double(heads);
    struct Pair {
      double cosine;
      Index even, odd;
    };
    std::vector<Pair> pairs;
    for (Index a = class_token ? 2 : 0; a < n; a += 2) {
      Pair best{-2, a, -1};
      for (Index b = 1; b < n; b += 2)
        if (const double c = metric.row(a).dot(metric.row(b)) / metric.row(a).norm() / metric.row(b).norm(); c > best.cosine)
          best.cosine = c, best.odd = b;
      pairs.push_back(best);
    }
    std::sort(pairs.begin(), pairs.end(), [](const Pair& a, const Pair& b) { return a.cosine > b.cosine; });
    std::vector<Index> joins(static_cast<std::size_t>(n), -1), place(static_cast<std::size_t>(n), -1);
    for (Index i = 0; i < std::min<Index>(r, (n - (class_token ? 1 : 0)) / 2); ++i)
      joins[static_cast<std::size_t>(pairs[static_cast<std::size_t>(i)].even)] = pairs[static_cast<std::size_t>(i)].odd;
    Wide sums(n, x.cols());
    std::vector<double> after;
    Index rows = 0;
    for (Index t = 0; t < n; ++t)
      if (joins[static_cast<std::size_t>(t)] < 0) {
        place[static_cast<std::size_t>(t)] = rows;
        sums.row(rows++) = masses[static_cast<std::size_t>(t)] * x.row(t);
        after.push_back(masses[static_cast<std::size_t>(t)]);
      }
    for (Index t = 0; t < n; ++t)
      if (const Index to = joins[static_cast<std::size_t>(t)]; to >= 0) {
        const Index row = place[static_cast<std::size_t>(t)] = place[static_cast<std::size_t>(to)];
        sums.row(row) += masses[static_cast<std::size_t>(t)] * x.row(t);
        after[static_cast<std::size_t>(row)] += masses[static_cast<std::size_t>(t)];
      }
    x = sums.topRows(rows);
    for (Index row = 0; row < rows; ++row) x.row(row) /= after[static_cast<std::size_t>(row)];
    masses = after;
    for (Index& row : row_of) row = place[static_cast<std::size_t>(row)];
  }

  template <class S>
  PlainTower(const VisionTower<S>& tower, const Matrix<float>& planes, Index height = 0, Index width = 0,
             const std::vector<Index>& steps = {}, bool proportional = true) {
    const VisionConfig& c = tower.config();
    const VisionWeights<S>& w = tower.weights();
    const Index g = c.grid(), p = c.patch_size, before = c.class_token ? 1 : 0;
    const auto padding = [&](Index patch) { return height > 0 && (patch / g >= height || patch % g >= width); };
    Wide patches(c.patches(), c.patch_values());
    for (Index i = 0; i < c.patches(); ++i)
      for (Index v = 0; v < c.patch_values(); ++v)
        patches(i, v) = double(planes(v / (p * p) * c.image_size + i / g * p + v / p % p, i % g * p + v % p));
    Wide x(c.tokens(), c.hidden_size);
    x.bottomRows(c.patches()) = linear(w.patch, patches);
    if (before > 0) x.row(0) = w.class_token.template cast<double>().transpose();
    for (Index t = 0; t < c.tokens(); ++t) {
      const Index i = t - before;
      const Index row = t < before || height == 0 ? t : padding(i) ? 0 : i / g * g / height * g + i % g * g / width;
      x.row(t) += w.positions.row(row).template cast<double>();
    }
    if (c.pre_norm) x = norm(w.pre_norm, x);
    states.push_back(x);
    row_of.resize(static_cast<std::size_t>(x.rows()));
    std::iota(row_of.begin(), row_of.end(), 0);
    masses.assign(row_of.size(), 1);
    const Index d = c.head_dim();
    for (const VisionLayer<S>& layer : w.layers) {
      const Wide a = norm(layer.norm1, x);
      Layer& seen = layers.emplace_back(Layer{linear(layer.q, a), linear(layer.k, a), {}});
      const Wide v = linear(layer.v, a);
      Wide out(x.rows(), x.cols());
      for (Index h = 0; h < c.num_attention_heads; ++h) {
        Wide weights = times_transposed(seen.q.middleCols(h * d, d), seen.k.middleCols(h * d, d)) / std::sqrt(double(d));
        for (Index t = 0; t < x.rows(); ++t) {
          for (Index other = 0; other < x.rows(); ++other)
            weights(t, other) = (height > 0 && padding(other - before) ? 0 : std::exp(weights(t, other))) *
                                (proportional ? masses[static_cast<std::size_t>(other)] : 1);
          weights.row(t) /= weights.row(t).sum();
        }
        out.middleCols(h * d, d) = pith_test::times(weights, v.middleCols(h * d, d));
        seen.attention.push_back(weights);
      }
      x += linear(layer.out, out);
      if (layers.size() <= steps.size()) merge(x, seen.k, steps[layers.size() - 1], c.class_token, c.num_attention_heads);
      Wide hidden = linear(layer.fc1, norm(layer.norm2, x));
      for (Index i = 0; i < hidden.size(); ++i) {
        double& z = hidden.data()[i];
        z = c.activation == VisionActivation::quick_gelu
                ? z / (1 + std::exp(-1.702 * z))
                : .5 * z * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (z + .044715 * z * z * z)));
      }
      x += linear(layer.fc2, hidden);
      states.push_back(x);
    }
  }
};

double off(const Wide& expected, const Wide& ours) { return (expected - ours).cwiseAbs().maxCoeff(); }

Matrix<float> tile_of(std::uint64_t seed) { return random_matrix<float>(3 * 26, 26, seed); }

}  // namespace

TEMPLATE_TEST_CASE("a tower equals plain loops in double, in each hidden state", "[vision]", float, double) {
  const double close = std::is_same_v<TestType, float> ? 3e-5 : 1e-12;
  for (const bool clip : {false, true}) {
    const Matrix<float> planes = tile_of(5);
    const VisionTower<TestType> last = tiny_tower<TestType>(clip, {3}, !clip);
    const PlainTower expected(last, planes);
    Wide out = expected.states[3];
    if (!clip) out = PlainTower::norm(last.weights().post_norm, out);
    CHECK(off(out, last.forward(planes).template cast<double>()) < close);
    // several states side by side; the layers behind the last of them do not run
    VisionConfig config = last.config();
    config.post_norm = false;
    config.features = {2, 0, 1};
    const VisionTower<TestType> several(config, last);
    Workspace ws(several.workspace_bytes());
    Matrix<TestType> features(config.tokens(), 3 * 24);
    Index probed = 0;
    several.forward(planes, features, ws, {}, {}, [&](Index state, const ConstMatrixRef<TestType>& hidden) {
      CHECK(state == probed++);
      CHECK(off(expected.states[static_cast<std::size_t>(state)], hidden.template cast<double>()) < close);
    });
    CHECK(probed == 3);
    CHECK(ws.used() == 0);
    for (const Index place : {0, 1, 2})
      CHECK(off(expected.states[std::vector<std::size_t>{2, 0, 1}[static_cast<std::size_t>(place)]],
                features.middleCols(place * 24, 24).template cast<double>()) < close);
  }
}

TEST_CASE("the eps of a tower's norms counts", "[vision]") {  // far below what outputs show
  const VisionTower<double> tower = tiny_tower<double>(false, {3}, true);
  CHECK(tower.weights().layers[1].norm2.eps() == 1e-5);
}

TEST_CASE("a tower gives attention, keys and the last layer's query beside its features", "[vision]") {
  const Matrix<float> planes = tile_of(6);
  for (const Index feature : {1, 2, 3}) {
    const VisionTower<float> tower = tiny_tower<float>(true, {feature}, false);
    const PlainTower expected(tower, planes);
    const Index n = 37, heads = 3, d = 8;
    Matrix<float> of_class(heads, n), mean(n, d), keys(n, 24);
    Vector<float> received(n), query(24);
    const Matrix<float> with = tower.forward(planes, {of_class, received, mean, query, keys});
    CHECK(with == tower.forward(planes));
    const auto& layer = expected.layers[static_cast<std::size_t>(feature - 1)];
    Wide sum = Wide::Zero(1, n), key_mean = Wide::Zero(n, d);
    for (Index h = 0; h < heads; ++h) {
      const Wide& weights = layer.attention[static_cast<std::size_t>(h)];
      CHECK(off(weights.row(0), of_class.row(h).cast<double>()) < 1e-5);
      sum += weights.colwise().sum() / double(n * heads);
      key_mean += layer.k.middleCols(h * d, d) / double(heads);
    }
    CHECK(off(sum, received.cast<double>().transpose()) < 1e-5);
    CHECK(off(key_mean, mean.cast<double>()) < 3e-5);
    CHECK(off(expected.layers[2].k, keys.cast<double>()) < 5e-5);  // of the last layer, whether it is run or not
    CHECK(off(expected.layers[2].q.row(0), query.cast<double>().transpose()) < 5e-5);
  }
}

TEST_CASE("ToMe inside a tower equals plain loops in double, and its map knows every token", "[vision]") {
  const Matrix<float> planes = tile_of(5);
  ThreadPool pool(3);
  for (const bool clip : {false, true})
    for (const bool proportional : {true, false})
      for (const std::vector<Index>& steps : {std::vector<Index>{5, 9, 4}, {0, 100}, {7}, {}}) {
        const VisionTower<float> tower = tiny_tower<float>(clip, {3}, !clip);
        const Index tokens = tower.config().tokens();
        const PlainTower expected(tower, planes, 0, 0, steps, proportional);
        TowerMerge<float> merge(tower.config(), steps, proportional);
        Workspace ws(tower.workspace_bytes(3), pool);
        Matrix<float> out = Matrix<float>::Constant(tokens, 24, 7.f);
        tower.forward(planes, out, ws, merge, [&](Index state, const ConstMatrixRef<float>& hidden) {
          const Wide& plain = expected.states[static_cast<std::size_t>(state)];
          REQUIRE(hidden.rows() == plain.rows());
          CHECK(off(plain, hidden.cast<double>()) < 5e-5);
        });
        CHECK(ws.used() == 0);
        const Index rows = merge.rows();
        REQUIRE(rows == expected.states[3].rows());
        const Wide last = clip ? expected.states[3] : PlainTower::norm(tower.weights().post_norm, expected.states[3]);
        CHECK(off(last, out.topRows(rows).cast<double>()) < 5e-5);
        CHECK((out.bottomRows(tokens - rows).array() == 7.f).all());
        CHECK(std::equal(merge.row_of().begin(), merge.row_of().end(), expected.row_of.begin(), expected.row_of.end()));
        for (Index r = 0; r < rows; ++r) CHECK(merge.masses()[r] == static_cast<float>(expected.masses[static_cast<std::size_t>(r)]));
        CHECK(merge.masses().sum() == static_cast<float>(tokens));
        if (clip) CHECK((merge.row_of()[0] == 0 && merge.masses()[0] == 1.f));
        Matrix<float> again(tokens, 24);
        Workspace one(tower.workspace_bytes());
        tower.forward(planes, again, one, merge);
        CHECK(again.topRows(rows) == out.topRows(rows));
        if (steps.empty()) CHECK(again == tower.forward(planes));
      }
}

TEST_CASE("steps of ToMe in a tower: even, more in early layers where half is too little, and refused", "[vision]") {
  const VisionTower<float> clip = tiny_tower<float>(true, {2}, false), siglip = tiny_tower<float>(false, {3}, false);
  CHECK(merge_steps_to(siglip.config(), 9) == std::vector<Index>{9, 9, 9});
  CHECK(merge_steps_to(siglip.config(), 5) == std::vector<Index>{16, 10, 5});  // 36, 20, 10, 5
  CHECK(merge_steps_to(clip.config(), 9) == std::vector<Index>{18, 9});
  CHECK(merge_steps_to(clip.config(), 36) == std::vector<Index>{0, 0});
  CHECK_THROWS_WITH(merge_steps_to(clip.config(), 8), contains("2 layers, each of which merges half of its tokens at most, leave 9 of 36"));
  CHECK_THROWS_AS(merge_steps_to(clip.config(), -3), ShapeError);
  CHECK_THROWS_WITH(TowerMerge<float>(clip.config(), {1, 2, 3}), contains("3 steps, but 2 layers run"));
  CHECK_THROWS_WITH(TowerMerge<float>(clip.config(), {-1}), contains("a step of -1 tokens"));
  VisionConfig two = clip.config();
  two.features = {1, 2};
  CHECK_THROWS_WITH(TowerMerge<float>(two, {1}), contains("2 features side by side"));
  TowerMerge<float> merge(clip.config(), {1});
  Workspace ws(siglip.workspace_bytes());
  Matrix<float> out(36, 24);
  CHECK_THROWS_WITH(siglip.forward(tile_of(1), out, ws, merge),
                    contains("made for 37 tokens of a tower with a class token, this one has 36"));
}

TEST_CASE("padding of a tile is not attended to", "[vision]") {
  const VisionTower<float> tower = tiny_tower<float>(false, {3}, false);
  const Matrix<float> planes = tile_of(7);
  Workspace ws(tower.workspace_bytes());
  Matrix<float> out(36, 24);
  for (const auto& [height, width] : {std::pair<Index, Index>{4, 6}, {5, 2}, {6, 6}, {1, 1}}) {
    tower.forward(planes, out, ws, {}, {height, width});
    CHECK(off(PlainTower(tower, planes, height, width).states[3], out.cast<double>()) < 3e-5);
  }
  CHECK(out.rows() == 36);
  tower.forward(planes, out, ws, {}, {6, 6});
  CHECK(out == tower.forward(planes));
  CHECK(tile_positions(6, {2, 3})[7] == 3 * 6 + 2);  // patch (1, 1) of 2 x 3: row ⌊1·6/2⌋, column ⌊1·6/3⌋
}

TEST_CASE("a tower's bits do not depend on threads", "[vision]") {
  ThreadPool two(2), five(5);
  const Matrix<float> planes = tile_of(8);
  for (const bool clip : {false, true}) {
    const VisionTower<float> tower = tiny_tower<float>(clip, {3}, false);
    Vector<float> one(tower.config().tokens()), more(one.size());
    const Matrix<float> serially = tower.forward(planes, {.attention_received = one});
    CHECK(serially == tower.forward(planes, {.attention_received = more}, two));
    CHECK(one == more);
    CHECK(serially == tower.forward(planes, {}, five));
  }
}

TEST_CASE("a tower refuses what does not fit, before it writes", "[vision]") {
  const VisionTower<float> clip = tiny_tower<float>(true, {2}, false), siglip = tiny_tower<float>(false, {3}, true),
                           none = tiny_tower<float>(false, {0}, false);
  Matrix<float> out = Matrix<float>::Constant(36, 24, 7.f);
  Vector<float> received(36), query(24);
  Matrix<float> of_class(3, 36);
  Workspace ws(siglip.workspace_bytes());
  const Matrix<float> planes = tile_of(9);
  CHECK_THROWS_WITH(siglip.forward(planes.topRows(52), out, ws), contains("planes is [52, 26], expected [78, 26]"));
  CHECK_THROWS_WITH(siglip.forward(planes, out.topRows(35), ws), contains("out is [35, 24], expected [36, 24]"));
  CHECK_THROWS_WITH(siglip.forward(planes, out, ws, {.class_attention = of_class}),
                    contains("class_attention of a tower without a class token"));
  CHECK_THROWS_WITH(siglip.forward(planes, out, ws, {.last_class_query = query}), contains("last_class_query of a tower without"));
  CHECK_THROWS_WITH(none.forward(planes, out, ws, {.attention_received = received}), contains("no layer makes hidden state 0"));
  CHECK_THROWS_WITH(siglip.forward(planes, out, ws, {}, {7, 1}), contains("an extent of 7 x 1 patches in a tile of 6 x 6"));
  CHECK_THROWS_WITH(siglip.forward(planes, out, ws, {}, {0, 1}), contains("an extent of 0 x 1"));
  Matrix<float> out37(37, 24);
  CHECK_THROWS_WITH(clip.forward(planes, out37, ws, {}, {2, 2}), contains("whose tiles are whole"));
  Workspace small(siglip.workspace_bytes() / 4);
  CHECK_THROWS_AS(siglip.forward(planes, out, small), CapacityError);
  CHECK((out.array() == 7.f).all());
  CHECK_THROWS_AS(VisionTower<float>().forward(planes, out, ws), StateError);
  const auto refused = [&](const char* message, auto&& change) {
    VisionConfig c = siglip.config();
    change(c);
    CHECK_THROWS_WITH(VisionTower<float>(c, siglip), contains(message));
  };
  refused("hidden_size is 0", [](VisionConfig& c) { c.hidden_size = 0; });
  refused("num_attention_heads is 5, expected a divisor", [](VisionConfig& c) { c.num_attention_heads = 5; });
  refused("patch_size is 27, expected 1 to 26", [](VisionConfig& c) { c.patch_size = 27; });
  refused("feature 4, expected a hidden state of 0 .. 3", [](VisionConfig& c) { c.features = {4}; });
  refused("no features", [](VisionConfig& c) { c.features = {}; });
  refused("post_norm with 2 features", [](VisionConfig& c) { c.features = {1, 2}; });
  refused("layer_norm_eps is", [](VisionConfig& c) { c.layer_norm_eps = std::numeric_limits<double>::quiet_NaN(); });
  refused("positions is [36, 24], expected [9, 24]", [](VisionConfig& c) { c.image_size = 14; });
  refused("class_token has 0 features, expected 24", [](VisionConfig& c) { c.class_token = true; });
  refused("fc1 is [40, 24], expected [41, 24]", [](VisionConfig& c) { c.intermediate_size = 41; });
}

TEST_CASE("projectors are their formulas", "[vision]") {
  const Matrix<float> x = random_matrix<float>(36, 8, 1), w1 = random_matrix<float>(5, 8, 2), w2 = random_matrix<float>(6, 5, 3),
                      w4 = random_matrix<float>(6, 32, 4);
  const Vector<float> scale = random_matrix<float>(8, 1, 5).col(0);
  const Wide wide = x.cast<double>();
  ThreadPool pool(3);
  const auto rows_of = [&](const Projector<float>& p, ExecutorRef executor) {
    Workspace ws(p.workspace_bytes(6, executor.size()), executor);
    Matrix<float> y(p.rows(6), p.out());
    p.forward(x, 6, y, ws);
    return y;
  };
  const auto check = [&](const Projector<float>& p, const Wide& expected) {
    CHECK(off(expected, rows_of(p, serial).cast<double>()) < 1e-4);
    CHECK(rows_of(p, serial) == rows_of(p, pool));
  };
  Wide hidden = times_transposed(wide, w1);
  for (Index i = 0; i < hidden.size(); ++i) hidden.data()[i] *= .5 * std::erfc(-hidden.data()[i] / std::sqrt(2.));
  check({MlpProjector<float>{Linear<float>(w1), Linear<float>(w2)}}, times_transposed(hidden, w2));
  check({PlainProjector<float>{Linear<float>(w1)}}, times_transposed(wide, w1));
  Wide blocks(9, 32), means = Wide::Zero(4, 8);
  for (Index r = 0; r < 9; ++r)
    for (Index i = 0; i < 4; ++i) blocks.row(r).segment(8 * i, 8) = wide.row((r / 3 * 2 + i / 2) * 6 + r % 3 * 2 + i % 2);
  check({PixelShuffleProjector<float>{Linear<float>(w4), 2}}, times_transposed(blocks, w4));
  for (Index p = 0; p < 36; ++p) means.row(p / 6 / 3 * 2 + p % 6 / 3) += wide.row(p) / 9;
  const Projector<float> pooled{PooledProjector<float>{Linear<float>(w1), RmsNorm<float>(scale, 1e-6f), 3}};
  Matrix<float> averages(4, 8);
  pooled.average(x, 6, averages);
  CHECK(off(means, averages.cast<double>()) < 1e-6);
  for (Index r = 0; r < 4; ++r)
    means.row(r) = means.row(r).cwiseProduct(scale.cast<double>().transpose()) / std::sqrt(means.row(r).squaredNorm() / 8 + 1e-6);
  check(pooled, times_transposed(means, w1));

  Workspace ws(pooled.workspace_bytes(6));
  Matrix<float> y(4, 5);
  CHECK_THROWS_WITH(pooled.forward(x.topRows(25), 5, y, ws), contains("a grid of 5 patches a side, expected a multiple of 3"));
  CHECK_THROWS_WITH(pooled.forward(x.topRows(9), 6, y, ws), contains("x is [9, 8], expected [36, 8]"));
  CHECK_THROWS_AS(pooled.forward_each(x, y, ws), UnsupportedError);
  CHECK_THROWS_WITH(Projector<float>(MlpProjector<float>{Linear<float>(w1), Linear<float>(w1)}),
                    contains("linear1 gives 5 features, linear2 takes 8"));
  CHECK_THROWS_WITH(Projector<float>(PixelShuffleProjector<float>{Linear<float>(w1), 3}), contains("a multiple of the 9 patches"));
  CHECK_THROWS_WITH(Projector<float>(PixelShuffleProjector<float>{Linear<float>(w1), 0}), contains("blocks of 0 patches"));
}
