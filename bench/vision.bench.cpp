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
//
// first_token: an image and 64 tokens of text through a whole tower, a projector and a whole decoder, whose layers are copies of two and
// of one, with a quarter of the image tokens left, in turns with all of them. 1.1b: 16 layers of 2048, 135m: 30 layers of 576.
//
// times_all      seconds to the first token with all image tokens / with those left
// all_seconds    to the first token with all image tokens
// tower_seconds, prefill_seconds, tower_share   of the reduced prompt: the tower, the decoder, and the tower's share of all seconds
#include <benchmark/benchmark.h>

#include <cmath>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/core.hpp>
#include <pith/model.hpp>
#include <pith/vision.hpp>

#include "support/decoder_arguments.hpp"
#include "support/measure.hpp"
#include "support/register.hpp"

using namespace pith;
using namespace pith_bench;

namespace {

constexpr Index layers_measured = 2, text_tokens = 64;

struct Case {
  const char* shape;
  Index hidden, ffn, heads, image, patch;
  Index layers_run;  ///< of the published tower
  bool clip;
  Index threads;
  std::string text() const { return std::string("/") + shape + "/threads:" + std::to_string(threads); }
};

/// An image's way to the first token of an answer.
struct FirstToken {
  Case tower;
  const char* decoder;  ///< "1.1b", "135m" or "small"
  const char* method;   ///< a reduction, "all" or "fastv"
  std::string text() const { return std::string("/") + tower.shape + "+" + decoder + "/" + method; }
};

template <class T> AnyLinear<float> random_linear(Index in, Index out, std::uint64_t seed) {
  const Matrix<float> weight = random_matrix(out, in, seed) / std::sqrt(static_cast<float>(in));
  const Matrix<T> stored = weight.unaryExpr([](float x) { return static_cast<T>(x); });
  return AnyLinear<float>(PackedLinear<float, T>(ConstMatrixRef<T>(stored), Vector<float>(random_matrix(out, 1, seed + 1).col(0) * .1f)));
}

/// A tower of that many layers, copies of the first two.
template <class T> VisionTower<float> random_tower(const Case& c, Index layers = layers_measured) {
  VisionConfig config{.hidden_size = c.hidden, .intermediate_size = c.ffn, .num_hidden_layers = layers, .num_attention_heads = c.heads};
  config.image_size = c.image, config.patch_size = c.patch;
  config.activation = c.clip ? VisionActivation::quick_gelu : VisionActivation::gelu_tanh;
  config.class_token = config.pre_norm = c.clip;
  config.features = {layers};
  const LayerNorm<float> norm(Vector<float>::Ones(c.hidden), {}, 1e-5f);
  VisionWeights<float> w;
  w.patch = random_linear<T>(config.patch_values(), c.hidden, 1);
  if (c.clip) w.class_token = Vector<float>::Ones(c.hidden);
  w.positions = random_matrix(config.tokens(), c.hidden, 2);
  if (c.clip) w.pre_norm = norm;
  for (Index l = 0; l < layers; ++l) {
    if (l >= layers_measured) {
      w.layers.push_back(w.layers[static_cast<std::size_t>(l % layers_measured)]);
      continue;
    }
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

/// A vision-language model of random weights.
struct Model {
  Vision<float> vision;
  Decoder<float> decoder;

  explicit Model(const FirstToken& c) : vision(seen(c)), decoder(told(c)) {}

  static DecoderConfig shape(const FirstToken& c) {
    if (std::string(c.decoder) != "small") return decoder_shape(c.decoder);
    DecoderConfig config = decoder_shape("135m");
    config.vocab_size = 300, config.hidden_size = 128, config.intermediate_size = 256, config.num_hidden_layers = 3;
    config.num_attention_heads = 6, config.num_key_value_heads = 2, config.head_dim = 32;
    return config;
  }
  static Vision<float> seen(const FirstToken& c) {
    Vision<float> out;
    const Index hidden = shape(c).hidden_size;
    out.tower = random_tower<bfloat16>(c.tower, c.tower.layers_run);
    out.projector = Projector<float>::Kind(
        MlpProjector<float>{random_linear<bfloat16>(c.tower.hidden, hidden, 11), random_linear<bfloat16>(hidden, hidden, 13)});
    out.recipe.size = {c.tower.image, c.tower.image};
    out.spec.model_type = "llava";
    out.spec.image_token = 1 << 20;
    out.spec.drop_first = c.tower.clip;
    out.check();
    return out;
  }
  static Decoder<float> told(const FirstToken& c) {
    DecoderConfig config = shape(c);
    config.tie_word_embeddings = false;
    const AttentionShape heads = config.attention();
    const Index d = config.hidden_size, q = heads.num_heads * heads.head_dim, kv = heads.num_kv_heads * heads.head_dim;
    DecoderWeights<float> w;
    w.embed_tokens = Embedding<float>(random_matrix(config.vocab_size, d, 21));
    w.norm = Vector<float>::Ones(d);
    w.lm_head = random_linear_without_bias(d, config.vocab_size, 23);
    LayerWeights<float> layer;
    layer.pre_attention_norm = layer.pre_mlp_norm = Vector<float>::Ones(d);
    layer.q_proj = random_linear_without_bias(d, q, 25), layer.k_proj = random_linear_without_bias(d, kv, 27);
    layer.v_proj = random_linear_without_bias(d, kv, 29), layer.o_proj = random_linear_without_bias(q, d, 31);
    layer.gate_proj = random_linear_without_bias(d, config.intermediate_size, 33);
    layer.up_proj = random_linear_without_bias(d, config.intermediate_size, 35);
    layer.down_proj = random_linear_without_bias(config.intermediate_size, d, 37);
    w.layers.assign(static_cast<std::size_t>(config.num_hidden_layers), layer);
    return {config, std::move(w)};
  }
  static AnyLinear<float> random_linear_without_bias(Index in, Index out, std::uint64_t seed) {
    const Matrix<float> weight = random_matrix(out, in, seed) / std::sqrt(static_cast<float>(in));
    const Matrix<bfloat16> stored = weight.unaryExpr([](float x) { return static_cast<bfloat16>(x); });
    return AnyLinear<float>(PackedLinear<float, bfloat16>(ConstMatrixRef<bfloat16>(stored)));
  }
  /// The model of this case: one at a time is held.
  static const Model& of(const FirstToken& c) {
    static std::string name;
    static std::unique_ptr<Model> model;
    const std::string wanted = std::string(c.tower.shape) + c.decoder;
    if (name != wanted) model.reset(), model = std::make_unique<Model>(c), name = wanted;
    return *model;
  }
};

struct Times {
  double tower = 0, prefill = 0, all = 0;
  Index rows = 0, last_rows = 0;  ///< of the image in the prompt, and of all in the last layer
  bool finite = false;
};

/// Reads an image and text to the logits of the first token.
Times read_picture(const Model& model, const Image& picture, const std::string& method, Index keep, ExecutorRef executor) {
  const bool fastv = method == "fastv";
  const ImageReduction reduction = image_reduction(fastv ? "all" : method);
  const ReduceOptions options{.keep = keep};
  const Vision<float>& vision = model.vision;
  Workspace ws(vision.workspace_bytes(executor.size()), executor);
  std::vector<Token> tokens(static_cast<std::size_t>(vision.rows_per_tile()), vision.spec.image_token);
  for (Index t = 0; t < text_tokens; ++t) tokens.push_back(static_cast<Token>(t * 4));
  auto session = model.decoder.start(Dense{}, {.max_prompt = static_cast<Index>(tokens.size()), .max_draft = 0, .executor = executor});
  Times out;
  out.all = seconds_of([&] {
    const ImageTiles tiles = vision.prepare(picture);
    ImageFeatures<float> seen;
    out.tower = seconds_of([&] { seen = vision.look(tiles, ws, taps_for(reduction, vision, tiles, options)); });
    const std::vector<ImageRows<float>> rows{reduce_image(vision, tiles, seen, reduction, options, ws)};
    out.rows = rows.front().rows.rows();
    const VisionPrompt<float> prompt = vision_prompt<float>(vision.spec, model.decoder.weights().embed_tokens, tokens, rows);
    PrefillOptions prefill = prompt.options();
    if (fastv) prefill.prune = {.after = 2, .keep = keep};
    out.prefill = seconds_of([&] { out.finite = session.prefill(prompt.embeddings, prompt.kinds, prefill).allFinite(); });
  });
  out.last_rows = session.caches().back().size(0);
  return out;
}

void first_token(benchmark::State& state, const FirstToken& c) {
  const Model& model = Model::of(c);
  ThreadPool pool(c.tower.threads);
  const Index patches = model.vision.rows_per_tile(), keep = patches / 4;
  Image picture{{}, 480, 640};
  std::uint32_t noise = 1;
  for (Index i = 0; i < 3 * picture.height * picture.width; ++i) {
    noise = noise * 1664525 + 1013904223;
    picture.pixels.push_back(static_cast<std::uint8_t>((i / 3 % picture.width) / 4 + (noise >> 26)));
  }
  Samples ratios, firsts, all_firsts, towers, prefills, shares;
  for (auto _ : state) {
    const Times all = read_picture(model, picture, "all", keep, pool), few = read_picture(model, picture, c.method, keep, pool);
    const Index left = std::string(c.method) == "all" ? patches : keep;
    if (!all.finite || !few.finite || few.last_rows != left + text_tokens || all.rows != patches) return state.SkipWithError("wrong rows");
    state.SetIterationTime(few.all);
    ratios.add(all.all / few.all), firsts.add(few.all), all_firsts.add(all.all);
    towers.add(few.tower), prefills.add(few.prefill), shares.add(few.tower / few.all);
  }
  state.counters["times_all"] = ratios.median();
  state.counters["all_seconds"] = all_firsts.median();
  state.counters["tower_seconds"] = towers.median();
  state.counters["prefill_seconds"] = prefills.median();
  state.counters["tower_share"] = shares.median();
}

const bool registered = [] {
  const Case clip_l{"clip-l-14-336", 1024, 4096, 16, 336, 14, 23, true, 1}, siglip{"siglip-b-16-384", 768, 3072, 12, 384, 16, 12, false, 1},
      small{"small-clip", 96, 160, 4, 70, 14, 3, true, 1};
  for (const char* method : {"all", "visionzip", "prumerge", "prumerge+", "divprune", "tome", "tome-tower", "fastv"}) {
    const bool of_class = std::string(method).starts_with("prumerge");
    add("first_token", first_token, FirstToken{small, "small", method});
    if (!of_class) add("first_token", first_token, FirstToken{siglip, "135m", method})->Iterations(1);
    add("first_token", first_token, FirstToken{clip_l, "1.1b", method})->Iterations(1);
  }
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
