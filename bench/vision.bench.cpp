// Image towers of published shapes with random weights, one tile at a time, against their products alone, in turns.
//
// A tower here has two layers (all layers cost the same) and its patches. Products alone: every linear layer over all tokens at once, and
// q Kᵀ and weights·V of every head by Eigen; no norm, softmax, activation or sum. In the tower's own order products take 128 tokens.
//
// of_products   seconds of the products alone / seconds of the tower
// of_linear     the same for the linear layers alone: attention counts as cost
// of_peak       share of the multiply-adds that these threads can do
// tile_seconds  the whole tower's time for a tile: the layers measured, times the layers it runs
// rel_err       of the features against double; too much is not reported
// taps          attention received and keys of the last layer besides, what reductions choose by: seconds against those of the plain tower
#include <benchmark/benchmark.h>

#include <cmath>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/core.hpp>
#include <pith/vision.hpp>

#include "support/measure.hpp"
#include "support/register.hpp"

using namespace pith;
using namespace pith_bench;

namespace {

constexpr Index layers_measured = 2;

struct Case {
  const char* shape;
  Index hidden, ffn, heads, image, patch;
  Index layers_run;  ///< of the published tower
  bool clip;
  Index threads;
  std::string text() const { return std::string("/") + shape + "/threads:" + std::to_string(threads); }
};

template <class T> AnyLinear<float> random_linear(Index in, Index out, std::uint64_t seed) {
  const Matrix<float> weight = random_matrix(out, in, seed) / std::sqrt(static_cast<float>(in));
  const Matrix<T> stored = weight.unaryExpr([](float x) { return static_cast<T>(x); });
  return AnyLinear<float>(PackedLinear<float, T>(ConstMatrixRef<T>(stored), Vector<float>(random_matrix(out, 1, seed + 1).col(0) * .1f)));
}

template <class T> VisionTower<float> random_tower(const Case& c) {
  VisionConfig config{
      .hidden_size = c.hidden, .intermediate_size = c.ffn, .num_hidden_layers = layers_measured, .num_attention_heads = c.heads};
  config.image_size = c.image, config.patch_size = c.patch;
  config.activation = c.clip ? VisionActivation::quick_gelu : VisionActivation::gelu_tanh;
  config.class_token = config.pre_norm = c.clip;
  config.features = {layers_measured};
  const LayerNorm<float> norm(Vector<float>::Ones(c.hidden), {}, 1e-5f);
  VisionWeights<float> w;
  w.patch = random_linear<T>(config.patch_values(), c.hidden, 1);
  if (c.clip) w.class_token = Vector<float>::Ones(c.hidden);
  w.positions = random_matrix(config.tokens(), c.hidden, 2);
  if (c.clip) w.pre_norm = norm;
  for (Index l = 0; l < layers_measured; ++l) {
    auto seed = static_cast<std::uint64_t>(100 * l + 3);
    const auto linear = [&](Index in, Index out) { return random_linear<T>(in, out, seed += 2); };
    VisionLayer<float>& layer = w.layers.emplace_back(VisionLayer<float>{norm, norm, {}, {}, {}, {}, {}, {}});
    layer.q = linear(c.hidden, c.hidden), layer.k = linear(c.hidden, c.hidden), layer.v = linear(c.hidden, c.hidden);
    layer.out = linear(c.hidden, c.hidden), layer.fc1 = linear(c.hidden, c.ffn), layer.fc2 = linear(c.ffn, c.hidden);
  }
  return VisionTower<float>(config, std::move(w));
}

/// The products of a tower and nothing else.
struct Products {
  const VisionTower<float>& tower;
  Matrix<float> patches, x, q, k, v, hidden;
  std::vector<Matrix<float>> scores;  ///< one for each worker
  Workspace ws;

  Products(const VisionTower<float>& of, ExecutorRef executor) : tower(of), ws(bytes(of, executor.size()), executor) {
    const VisionConfig& c = tower.config();
    const Index n = c.tokens();
    patches = random_matrix(c.patches(), c.patch_values(), 7);
    x = random_matrix(n, c.hidden_size, 8);
    q = k = v = x;
    hidden.resize(n, c.intermediate_size);
    scores.assign(static_cast<std::size_t>(executor.size()), Matrix<float>(n, n));
  }
  static std::size_t bytes(const VisionTower<float>& t, Index workers) {
    std::size_t most = t.weights().patch.workspace_bytes(t.config().tokens(), workers);
    for (const auto& l : t.weights().layers)
      for (const auto* linear : {&l.q, &l.fc1, &l.fc2}) most = std::max(most, linear->workspace_bytes(t.config().tokens(), workers));
    return most;
  }
  void linear() {
    tower.weights().patch.forward(patches, x.topRows(patches.rows()), ws);
    for (const auto& l : tower.weights().layers) {
      l.q.forward(x, q, ws);
      l.k.forward(x, k, ws);
      l.v.forward(x, v, ws);
      l.out.forward(v, x, ws);
      l.fc1.forward(x, hidden, ws);
      l.fc2.forward(hidden, q, ws);
    }
  }
  void attention() {
    const Index d = tower.config().head_dim(), heads = tower.config().num_attention_heads, workers = ws.workers();
    for (Index l = 0; l < layers_measured; ++l)
      ws.executor()(workers, [&](Index worker) {
        Matrix<float>& s = scores[static_cast<std::size_t>(worker)];
        for (Index h = worker; h < heads; h += workers) {
          s.noalias() = q.middleCols(h * d, d) * k.middleCols(h * d, d).transpose();
          v.middleCols(h * d, d).noalias() = s * k.middleCols(h * d, d);
        }
      });
  }
};

/// The features of a tower, in double.
Matrix<double> plain_features(const VisionTower<float>& tower, const Matrix<float>& planes) {
  const VisionConfig& c = tower.config();
  const VisionWeights<float>& w = tower.weights();
  const auto linear = [](const AnyLinear<float>& l, const Matrix<double>& x) {
    Matrix<float> weight(l.out(), l.in());
    l.copy_weight(0, weight);
    Matrix<double> y = x * weight.cast<double>().transpose();
    y.rowwise() += l.bias().cast<double>().transpose();
    return y;
  };
  const auto norm = [](Matrix<double> x) {
    for (Index t = 0; t < x.rows(); ++t) {
      x.row(t).array() -= x.row(t).mean();
      x.row(t) /= std::sqrt(x.row(t).squaredNorm() / double(x.cols()) + 1e-5);
    }
    return x;
  };
  Matrix<double> patches(c.patches(), c.patch_values());
  const Index p = c.patch_size;
  for (Index i = 0; i < patches.rows(); ++i)
    for (Index v = 0; v < patches.cols(); ++v)
      patches(i, v) = double(planes(v / (p * p) * c.image_size + i / c.grid() * p + v / p % p, i % c.grid() * p + v % p));
  Matrix<double> x = w.positions.cast<double>();
  x.bottomRows(patches.rows()) += linear(w.patch, patches);
  if (c.class_token) x.row(0) += w.class_token.cast<double>().transpose();
  if (c.pre_norm) x = norm(x);
  const Index d = c.head_dim();
  for (const auto& l : w.layers) {
    const Matrix<double> a = norm(x), q = linear(l.q, a), k = linear(l.k, a), v = linear(l.v, a);
    Matrix<double> out(x.rows(), x.cols());
    for (Index h = 0; h < c.num_attention_heads; ++h) {
      Matrix<double> s = (q.middleCols(h * d, d) * k.middleCols(h * d, d).transpose() / std::sqrt(double(d))).array().exp();
      for (Index t = 0; t < s.rows(); ++t) s.row(t) /= s.row(t).sum();
      out.middleCols(h * d, d) = s * v.middleCols(h * d, d);
    }
    x += linear(l.out, out);
    Matrix<double> hidden = linear(l.fc1, norm(x));
    for (Index i = 0; i < hidden.size(); ++i) {
      double& z = hidden.data()[i];
      z /= 1 + std::exp(c.activation == VisionActivation::quick_gelu ? -1.702 * z : -1.5957691216057308 * (z + .044715 * z * z * z));
    }
    x += linear(l.fc2, hidden);
  }
  return x;
}

template <class T> void tower(benchmark::State& state, const Case& c) {
  const VisionTower<float> subject = random_tower<T>(c);
  const VisionConfig& config = subject.config();
  const Matrix<float> planes = random_matrix(3 * c.image, c.image, 9);
  ThreadPool pool(c.threads);
  Workspace ws(subject.workspace_bytes(c.threads), pool);
  Matrix<float> out(config.tokens(), config.feature_size()), keys(config.tokens(), config.head_dim());
  Vector<float> received(config.tokens());
  Products products(subject, pool);
  subject.forward(planes, out, ws);
  const double error = rel_err(out, plain_features(subject, planes));
  if (!(error < 1e-4)) return state.SkipWithError("wrong features");
  Samples times, ratios, linear_ratios, taps, peak;
  for (auto _ : state) {
    const double linear = seconds_of([&] { products.linear(); });
    const double seconds = seconds_of([&] { subject.forward(planes, out, ws); });
    const double attention = seconds_of([&] { products.attention(); });
    taps.add(seconds_of([&] { subject.forward(planes, out, ws, {.attention_received = received, .key_mean = keys}); }) / seconds);
    keep(out);
    state.SetIterationTime(seconds);
    times.add(seconds);
    ratios.add((linear + attention) / seconds);
    linear_ratios.add(linear / seconds);
    peak.add(peak_flops(seconds) * static_cast<double>(c.threads));
  }
  const auto n = static_cast<double>(config.tokens()), d = static_cast<double>(c.hidden);
  const double layer = 2 * n * (4 * d * d + 2 * d * static_cast<double>(c.ffn)) + 4 * n * n * d;
  const double patches = 2 * static_cast<double>(config.patches() * config.patch_values()) * d;
  state.counters["of_products"] = ratios.median();
  state.counters["of_linear"] = linear_ratios.median();
  state.counters["of_peak"] = (layers_measured * layer + patches) / times.median() / peak.median();
  state.counters["tile_seconds"] = times.median() / layers_measured * static_cast<double>(c.layers_run);
  state.counters["taps"] = taps.median();
  state.counters["rel_err"] = error;
}

const bool registered = [] {
  for (const Index threads : {1, 2})
    for (const Case& c : {Case{"clip-l-14-336", 1024, 4096, 16, 336, 14, 23, true, threads},
                          Case{"siglip-b-16-384", 768, 3072, 12, 384, 16, 12, false, threads}}) {
      add("tower_f32", tower<float>, c);
      add("tower_bf16", tower<bfloat16>, c);
    }
  for (const bool clip : {true, false})
    add("tower_f32", tower<float>, Case{clip ? "small-clip" : "small-siglip", 96, 160, 4, 70, 16, 2, clip, 1});
  add("tower_f32", tower<float>, Case{"siglip-so400m-14-384", 1152, 4304, 16, 384, 14, 27, false, 1});
  return true;
}();

}  // namespace
