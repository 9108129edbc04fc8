// Trains a FeedForward for another task with LoRA, DyLoRA, AdaLoRA and IncreLoRA, with about the same number of trained parameters in the
// end; then merges the adapters and times the difference.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <pith/pith.hpp>

#include "support/command_line.hpp"

using namespace pith;

namespace {

constexpr Index features = 32, hidden = 64, batch = 64, total_rank = 8;
constexpr int pretrain_steps = 800, steps = 600;

using Block = FeedForward<LinearView<float>, LinearView<float>, Silu>;

/// The weights of a block, and the block that uses them.
struct Task {
  Matrix<float> up, down;
  Block block() const { return Block(LinearView<float>(up), LinearView<float>(down)); }
};

Matrix<float> numbers(Index rows, Index cols, double deviation, std::mt19937_64& rng) {
  Matrix<float> m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = static_cast<float>(deviation * normal<double>(rng));
  return m;
}

Task random_task(std::mt19937_64& rng) {
  return {numbers(hidden, features, 1 / std::sqrt(double(features)), rng), numbers(features, hidden, 1 / std::sqrt(double(hidden)), rng)};
}

template <class A, class B> double loss_of(const A& block, const B& goal, const Matrix<float>& x) {
  return double((block.forward(x) - goal.forward(x)).squaredNorm()) / double(x.size());
}

/// Calls step(t, x, dy) for each batch; dy is the gradient of the mean squared error.
template <class A, class B, class Step> void train(const A& block, const B& goal, int count, std::mt19937_64& rng, Step&& step) {
  example::Progress progress;
  for (int t = 0; t < count; ++t) {
    progress.show("training", t, count);
    const Matrix<float> x = numbers(batch, features, 1, rng);
    const Matrix<float> dy = 2.f / float(x.size()) * (block.forward(x) - goal.forward(x));
    step(t, x, dy);
  }
}

/// Trains all weights of a block for the old task, from scratch.
Task pretrained(const Block& goal, std::mt19937_64& rng) {
  Task made = random_task(rng);
  const Block block = made.block();
  AdamW<float> adam({.learning_rate = 1e-2, .weight_decay = 0});
  FeedForwardGradients<LinearGradients<float>, LinearGradients<float>> grads{{Matrix<float>::Zero(hidden, features), {}},
                                                                             {Matrix<float>::Zero(features, hidden), {}}};
  Workspace ws(backward_workspace_bytes(block, batch));
  train(block, goal, pretrain_steps, rng, [&](int t, const Matrix<float>& x, const Matrix<float>& dy) {
    grads.set_zero();
    backward(block, x, dy, grads, MatrixRef<float>(), ws);
    const double factor = warmup_decay(t + 1, 20, pretrain_steps + 1);
    adam.update("up", made.up, grads.up.weight, factor);
    adam.update("down", made.down, grads.down.weight, factor);
  });
  return made;
}

template <class Block> double microseconds(const Block& block) {
  const Matrix<float> x = Matrix<float>::Ones(1, features);
  Matrix<float> y(1, features);
  Workspace ws(block.workspace_bytes(1));
  std::vector<double> times;
  for (int i = 0; i < 301; ++i) {
    const auto start = std::chrono::steady_clock::now();
    for (int again = 0; again < 20; ++again) block.forward(x, y, ws);
    times.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() / 20);
  }
  std::nth_element(times.begin(), times.begin() + 150, times.end());
  return times[150];
}

/// Wraps both layers, trains, merges, and prints a line. `before` runs before the optimizer's step, `after` after it.
template <class Adapter, class Before, class After>
bool adapt(const char* name, const Task& old, const Block& goal, Adapter up, Adapter down, Before&& before, After&& after) {
  FeedForward block(LoraLinear(LinearView<float>(old.up), std::move(up)), LoraLinear(LinearView<float>(old.down), std::move(down)), Silu{});
  std::mt19937_64 rng(7);
  const Matrix<float> held_out = numbers(512, features, 1, rng);
  const double loss_before = loss_of(block, goal, held_out);
  AdamW<float> adam({.learning_rate = 1e-2, .weight_decay = 0});
  auto grads = gradients_of(block);
  Workspace ws(std::max(block.workspace_bytes(batch), backward_workspace_bytes(block, batch)));
  train(block, goal, steps, rng, [&](int t, const Matrix<float>& x, const Matrix<float>& dy) {
    grads.set_zero();
    backward(block, x, dy, grads, MatrixRef<float>(), ws);
    before(t, block, x, dy);
    const double factor = warmup_decay(t + 1, 20, steps + 1);
    adam.step("up", block.up().adapter(), grads.up, factor);
    adam.step("down", block.down().adapter(), grads.down, factor);
    after(block, grads);
  });
  const double loss = loss_of(block, goal, held_out);
  const auto used = [](const auto& adapter) { return (ConstVectorRef<float>(adapter.gain()).array() != 0.f).count(); };
  const Index up_rank = used(std::as_const(block).up().adapter()), down_rank = used(std::as_const(block).down().adapter());
  const FeedForward merged(block.up().merged(), block.down().merged(), Silu{});
  const double apart = double((merged.forward(held_out) - block.forward(held_out)).cwiseAbs().maxCoeff());
  std::printf("%-10s %8td %6td %6td %10.5f %10.5f %10.2f %8.2f %10.1e\n", name, (up_rank + down_rank) * (features + hidden), up_rank,
              down_rank, loss_before, loss, microseconds(block), microseconds(merged), apart);
  return loss < 0.5 * loss_before && apart < 1e-4;
}

const auto nothing = [](auto&&...) {};

constexpr const char* usage = R"(finetune_feed_forward

The new task differs from the old one by 6 directions in the first layer and 1 in the second: the two that allocate ranks may find out.)";

int finetune(example::CommandLine& line) {
  line.done();
  std::mt19937_64 rng(1);
  const Task first = random_task(rng);
  const Task old = pretrained(first.block(), rng);
  const Matrix<float> x = numbers(512, features, 1, rng);
  std::printf("trained on the first task: loss %.5f\n\n", loss_of(old.block(), first.block(), x));

  Task second = old;
  second.up += numbers(hidden, 6, .5, rng) * numbers(6, features, .3, rng);
  second.down += numbers(features, 1, .5, rng) * numbers(1, hidden, .3, rng);
  const Block goal = second.block();

  std::printf("%-10s %8s %6s %6s %10s %10s %10s %8s %10s\n", "", "trained", "up", "down", "loss", "loss", "us/token", "us/token",
              "merging");
  std::printf("%-10s %8s %6s %6s %10s %10s %10s %8s %10s\n", "", "numbers", "rank", "rank", "before", "after", "beside", "merged",
              "changes");
  bool good = true;
  constexpr Index each = total_rank / 2;
  const LoraInit kaiming{.start = LoraStart::kaiming};

  good &= adapt("LoRA", old, goal, fresh_lora<float>(features, hidden, each, {.alpha = 8}, kaiming, rng),
                fresh_lora<float>(hidden, features, each, {.alpha = 8}, kaiming, rng), nothing, nothing);

  const auto dylora = [&](Index in, Index out) {
    const LoraFactors<float> f = fresh_factors<float>(in, out, each, kaiming, rng);
    return DyLoraAdapter<float>(f.down, f.up, {.alpha = 8});
  };
  std::mt19937_64 ranks(3);
  good &=
      adapt("DyLoRA", old, goal, dylora(features, hidden), dylora(hidden, features), nothing, [&, step = 0](auto& block, auto&) mutable {
        const Index rank = ++step < steps - 1 ? sample_rank(1, each, ranks) : each;  // the rank of the next step; the full rank at the end
        block.up().adapter().set_rank(rank);
        block.down().adapter().set_rank(rank);
      });

  std::vector<RankAllocator<float>> pruning;
  good &= adapt("AdaLoRA", old, goal, fresh_adalora<float>(features, hidden, 6, {.alpha = 24}, rng),
                fresh_adalora<float>(hidden, features, 6, {.alpha = 24}, rng), nothing, [&](auto& block, const auto& grads) {
                  if (pruning.empty())
                    pruning.emplace_back(
                        std::vector<AdaLoraAdapter<float>*>{&block.up().adapter(), &block.down().adapter()},
                        RankScheduleOptions{.target_rank = each, .total_steps = steps, .initial = 100, .final = 250, .every = 10});
                  const std::vector<LowRankGradients<float>> both{grads.up, grads.down};
                  pruning.front().step(both);
                });

  std::vector<IncrementalAllocator<float>> growing;
  std::mt19937_64 reserves(5);
  const IncreLoraOptions growth{.alpha = 16, .capacity = total_rank + 1};
  good &= adapt(
      "IncreLoRA", old, goal, fresh_increlora<float>(features, hidden, 1, growth, rng),
      fresh_increlora<float>(hidden, features, 1, growth, rng),
      [&](int, auto& block, const Matrix<float>& in, const Matrix<float>& dy) {
        auto& up = block.up();
        auto& down = block.down();
        if (growing.empty())
          growing.emplace_back(std::vector<IncreLoraAdapter<float>*>{&up.adapter(), &down.adapter()},
                               IncrementalOptions{.target_total = total_rank, .warmup = 20, .every = 20, .top = 1});
        Matrix<float> z = up.forward(in), h = z, dz(in.rows(), hidden);
        activate(block.activation(), MatrixRef<float>(h));
        Workspace ws(down.workspace_bytes(in.rows()));
        down.backward(dy, dz, ws);
        for (Index i = 0; i < dz.size(); ++i) dz.data()[i] *= block.activation().derivative(z.data()[i]);
        const std::vector<double> scores{increment_score(up.adapter(), in, dz), increment_score(down.adapter(), h, dy)};
        growing.front().step(scores, reserves);
      },
      nothing);
  return good ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, usage, finetune); }
