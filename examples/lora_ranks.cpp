// One DyLoRA adapter at every rank, on a weight of the shipped model: cost and error of each rank.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <pith/io.hpp>
#include <pith/pith.hpp>

#include "support/command_line.hpp"

using namespace pith;

namespace {

constexpr Index most = 32;
constexpr int steps = 400;

Matrix<float> tokens_like(Index tokens, Index features, std::mt19937_64& rng) {
  Matrix<float> x(tokens, features);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = normal<float>(rng);
  return x;
}

/// Trains the layer towards `goal`; `rank(step)` returns the number of components to train.
template <class Layer, class Rank> void train(Layer& layer, const Linear<float>& goal, Rank&& rank, std::mt19937_64& rng) {
  AdamW<float> adam({.learning_rate = 5e-3, .weight_decay = 0});
  const Index batch = 64;
  Workspace ws(layer.workspace_bytes(batch));
  auto grads = gradients_of(layer);
  example::Progress progress;
  for (int step = 0; step < steps; ++step) {
    progress.show("training", step, steps);
    layer.adapter().set_rank(rank(step));
    const Matrix<float> x = tokens_like(batch, layer.in(), rng);
    const Matrix<float> dy = (layer.forward(x) - goal.forward(x)) / float(batch);
    grads.set_zero();
    backward(layer, x, dy, grads, MatrixRef<float>(), ws);
    adam.step("up_proj", layer.adapter(), grads, warmup_decay(step + 1, 20, steps + 1));
  }
}

template <class Layer> double error(const Layer& layer, const Linear<float>& goal) {
  const Linear<float> merged = layer.merged();
  return double((merged.weight() - goal.weight()).norm() / goal.weight().norm());
}

/// Median microseconds per token.
template <class Layer> double microseconds(const Layer& layer) {
  Matrix<float> x = Matrix<float>::Ones(1, layer.in()), y(1, layer.out());
  Workspace ws(layer.workspace_bytes(1));
  std::vector<double> times;
  for (int i = 0; i < 301; ++i) {
    const auto start = std::chrono::steady_clock::now();
    for (int again = 0; again < 10; ++again) layer.forward(x, y, ws);
    times.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() / 10);
  }
  std::nth_element(times.begin(), times.begin() + 150, times.end());
  return times[150];
}

Linear<float> up_projection(const Decoder<float>& decoder, std::size_t layer) {
  const AnyLinear<float>& up = decoder.weights().layers[layer].up_proj;
  Matrix<float> weight(up.out(), up.in());
  up.copy_weight(0, weight);
  return Linear<float>(std::move(weight));
}

constexpr const char* usage = R"(lora_ranks

The adapter learns to make the up projection of layer 1 do what that of layer 2 does. DyLoRA draws another rank for every step, so each
beginning of it is an adapter of its own; LoRA, trained at the full rank with the same numbers, is not meant to be cut.)";

int lora_ranks(example::CommandLine& line) {
  line.done();
  const Decoder<float> decoder = load_decoder(PITH_MODELS_DIR "/tiny-prose");
  const Linear<float> first = up_projection(decoder, 1), goal = up_projection(decoder, 2);
  const PackedLinear base{first};

  std::mt19937_64 rng(1);
  const LoraFactors<float> start = fresh_factors<float>(first.in(), first.out(), most, {.start = LoraStart::kaiming}, rng);
  const LoraOptions options{.alpha = double(most)};
  LoraLinear dylora{LinearView{first}, DyLoraAdapter<float>{start.down, start.up, options}};
  LoraLinear lora = dylora;
  train(
      dylora, goal, [&](int) { return sample_rank(1, most, rng); }, rng);
  train(
      lora, goal, [](int) { return most; }, rng);

  std::printf("up_proj of layer 1, [%td, %td], taught to be that of layer 2: relative error of the weight\n\n", first.out(), first.in());
  std::printf("%6s %10s %12s %14s %12s\n", "rank", "DyLoRA", "LoRA, cut", "multiply-adds", "us a token");
  const double plain = microseconds(base);
  const double nothing = double((first.weight() - goal.weight()).norm() / goal.weight().norm());
  std::printf("%6s %10.3f %12.3f %14s %12.2f\n", "none", nothing, nothing, "", plain);
  // One component alone may not help: at alpha / rank it weighs 32 times as much as among 32.
  double before = std::numeric_limits<double>::infinity();
  bool falls = true;
  for (Index rank = 1; rank <= most; rank *= 2) {
    dylora.adapter().set_rank(rank);  // at run time, no copy
    lora.adapter().set_rank(rank);
    const LoraLinear shipped{base, dylora.adapter()};
    const double now = error(dylora, goal);
    const double work = 100. * double(rank * (first.in() + first.out())) / double(first.in() * first.out());
    std::printf("%6td %10.3f %12.3f %+13.1f%% %12.2f\n", rank, now, error(lora, goal), work, microseconds(shipped));
    falls = falls && now < before;
    before = now;
  }
  std::printf("\nmerged into the weight every rank costs what none costs.\n");
  if (!falls) std::printf("a larger rank is worse than a smaller one\n");
  return falls ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, usage, lora_ranks); }
