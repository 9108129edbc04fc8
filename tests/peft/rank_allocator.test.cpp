#include <limits>
#include <random>
#include <vector>

#include <pith/peft/incremental_allocator.hpp>
#include <pith/peft/rank_allocator.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::near;
using pith_test::random_matrix;
using pith_test::same_bits;

namespace {

struct TwoModules {
  std::mt19937_64 rng{1};
  std::vector<AdaLoraAdapter<double>> modules{fresh_adalora<double>(5, 6, 4, {}, rng), fresh_adalora<double>(7, 3, 4, {}, rng)};
  std::vector<LowRankGradients<double>> grads{{4, 5, 6}, {4, 7, 3}};
  std::vector<AdaLoraAdapter<double>*> pointers{&modules[0], &modules[1]};

  void learn(std::uint64_t seed) {
    for (std::size_t m = 0; m < 2; ++m) {
      modules[m].lambda() = random_matrix<double>(4, 1, seed + m);
      modules[m].refresh();
      grads[m].down_rows = random_matrix<double>(4, modules[m].in(), seed + 2 + m);
      grads[m].up_rows = random_matrix<double>(4, modules[m].out(), seed + 4 + m);
      grads[m].lambda = random_matrix<double>(4, 1, seed + 6 + m);
    }
  }
  Index left() const { return modules[0].kept() + modules[1].kept(); }
};

}  // namespace

TEST_CASE("AdaLoraAdapter: pruned triplets are gone and the rest is what it was", "[peft]") {
  Vector<float> lambda(5);
  lambda << 1, 0, -2, 0, 3;
  const AdaLoraAdapter<float> whole(random_matrix<float>(5, 8, 1), lambda, random_matrix<float>(6, 5, 2), {.alpha = 16});
  const AdaLoraAdapter<float> pruned = whole.pruned();
  CHECK(pruned.rank() == 3);
  CHECK(pruned.scale() == whole.scale());
  CHECK(double(pruned.scale()) == Approx(16 / 5.00001));
  const Linear<float> base(random_matrix<float>(6, 8, 3));
  const Matrix<float> x = random_matrix<float>(4, 8, 4);
  CHECK(same_bits(LoraLinear(LinearView{base}, pruned).forward(x), LoraLinear(LinearView{base}, whole).forward(x)));
  CHECK(AdaLoraAdapter<float>(Matrix<float>(0, 8), Vector<float>(), Matrix<float>(6, 0), {.alpha = 4, .initial_rank = 4}).rank() == 0);
  CHECK_THROWS_WITH(AdaLoraAdapter<float>(random_matrix<float>(5, 8, 1), lambda.head(4).eval(), random_matrix<float>(6, 5, 2)),
                    contains("lambda is [4, 1], expected [5, 1]"));
  CHECK_THROWS_AS(AdaLoraAdapter<float>(random_matrix<float>(5, 8, 1), lambda, random_matrix<float>(6, 5, 2),
                                        {.alpha = std::numeric_limits<double>::quiet_NaN()}),
                  ShapeError);
}

TEST_CASE("orthogonality: 0 of orthogonal rows, and its gradient is the difference quotient's", "[peft]") {
  const Matrix<double> unit = Matrix<double>::Identity(3, 7);
  CHECK(orthogonality<double>(unit) == 0);
  Matrix<double> f = random_matrix<double>(3, 7, 1), gradient = Matrix<double>::Zero(3, 7), numeric(3, 7);
  MatrixRef<double> into(gradient);
  orthogonality<double>(f, &into, 0.5);
  for (Index i = 0; i < f.size(); ++i) {
    const double at = f.data()[i], h = 1e-6;
    f.data()[i] = at + h;
    const double above = orthogonality<double>(f);
    f.data()[i] = at - h;
    numeric.data()[i] = 0.5 * (above - orthogonality<double>(f)) / (2 * h);
    f.data()[i] = at;
  }
  CHECK(near(gradient, numeric, 1e-8));
}

TEST_CASE("RankSchedule: the full budget, a cubic way down, the target", "[peft]") {
  const RankSchedule s{{.target_rank = 2, .total_steps = 30, .initial = 5, .final = 5, .every = 4}, 40, 10};
  CHECK(s.budget(0) == 40);
  CHECK(s.budget(5) == 40);
  CHECK(s.budget(15) == 13);  // 10 + 30 / 8 = 13.75
  CHECK(s.budget(25) == 10);
  CHECK(s.budget(29) == 10);
  for (Index t = 1; t < 30; ++t) CHECK(s.budget(t) <= s.budget(t - 1));
  CHECK(!s.masks(4));
  CHECK(s.masks(8));
  CHECK(!s.masks(25));
  CHECK(s.masks(26));
  RankSchedule peft = s;
  peft.options.as_peft = true;
  CHECK(peft.masks(25));
}

TEST_CASE("RankAllocator: a mask leaves its budget, ties go together, what is no number goes first", "[peft]") {
  TwoModules two;
  RankAllocator<double> allocator(two.pointers, {.target_rank = 2, .total_steps = 4, .initial = 0, .final = 1});
  for (std::uint64_t t = 0; t < 4; ++t) {
    two.learn(100 * t);
    allocator.step(two.grads);
    CHECK(two.left() == allocator.budget());
  }
  CHECK(allocator.budget() == 4);

  TwoModules same;
  RankAllocator<double> tied(same.pointers, {.target_rank = 2, .total_steps = 1, .initial = 0, .final = 1});
  same.learn(1);
  tied.step(same.grads);  // nothing was ever smoothed: every score is 0
  CHECK(tied.budget() == 8);
  CHECK(same.left() == 8);
  tied.step(same.grads);
  CHECK(tied.threshold() == 0);
  CHECK(same.left() == 0);

  TwoModules odd;
  RankAllocator<double> allocator2(odd.pointers, {.target_rank = 3, .total_steps = 3, .initial = 0, .final = 1});
  odd.learn(1);
  odd.grads[0].down_rows(2, 1) = std::numeric_limits<double>::quiet_NaN();
  for (int t = 0; t < 4; ++t) allocator2.step(odd.grads);
  CHECK(odd.left() <= 6);
  CHECK(!allocator2.kept(0)[2]);
  CHECK(odd.left() >= 5);
}

TEST_CASE("RankAllocator: what makes no sense is refused before anything changes", "[peft]") {
  TwoModules two;
  const auto make = [&](const RankScheduleOptions& options) { return RankAllocator<double>(two.pointers, options); };
  CHECK_THROWS_WITH(make({.target_rank = 5, .total_steps = 9}), contains("expected a target below the initial rank"));
  CHECK_THROWS_AS(make({.target_rank = -1, .total_steps = 9}), ShapeError);
  CHECK_THROWS_AS(make({.target_rank = std::numeric_limits<Index>::max(), .total_steps = 9}), CapacityError);
  CHECK_THROWS_AS(make({.target_rank = 2}), ShapeError);
  CHECK_THROWS_AS(make({.target_rank = 2, .total_steps = 9, .initial = 5, .final = 5}), ShapeError);
  CHECK_THROWS_AS(make({.target_rank = 2, .total_steps = 9, .every = 0}), ShapeError);
  CHECK_THROWS_WITH(make({.target_rank = 2, .total_steps = 9, .importance = {.beta1 = 1}}), contains("expected above 0 and below 1"));
  CHECK_THROWS_AS(RankAllocator<double>({nullptr}, {.total_steps = 3}), ShapeError);
  RankAllocator<double> allocator = make({.target_rank = 2, .total_steps = 9});
  two.grads[1].lambda.resize(3);
  CHECK_THROWS_WITH(allocator.step(two.grads), contains("gradients.lambda is [3, 1], expected [4, 1]"));
  two.grads.pop_back();
  CHECK_THROWS_WITH(allocator.step(two.grads), contains("1 gradients for 2 modules"));
  CHECK(allocator.steps() == 0);
}

TEST_CASE("IncreLoraAdapter: grows within its capacity, in place, and weakens what was there", "[peft]") {
  std::mt19937_64 rng(1);
  IncreLoraAdapter<float> adapter = fresh_increlora<float>(6, 5, 1, {.alpha = 4, .capacity = 5, .add = 2}, rng);
  CHECK_THROWS_AS(adapter.grow(), StateError);
  const float* numbers = std::as_const(adapter).down().data();
  adapter.lambda()[0] = 1;
  adapter.refresh();
  CHECK(double(adapter.gain()[0]) == Approx(4 / 1.00001));
  CHECK(adapter.parameters() == 12);
  adapter.add_reserve(rng);
  CHECK(adapter.rank() == 3);
  CHECK(adapter.counted() == 1);
  CHECK(adapter.gain()[2] == adapter.scale() * 1e-5f);
  CHECK_THROWS_WITH(adapter.add_reserve(rng), contains("there is a reserve already"));
  adapter.grow();
  CHECK(adapter.counted() == 3);
  CHECK(double(adapter.gain()[0]) == Approx(4 / 3.00001));
  adapter.add_reserve(rng);
  adapter.silence_reserve();
  CHECK(adapter.gain()[4] == 0);
  CHECK(adapter.gain()[2] != 0);
  adapter.grow();
  CHECK_THROWS_WITH(adapter.add_reserve(rng), contains("full (5 of 5 components"));
  CHECK_THROWS_AS(adapter.add_reserve(rng), CapacityError);
  CHECK(adapter.rank() == 5);
  CHECK(std::as_const(adapter).down().data() == numbers);

  const AdaLoraAdapter<float> grown = adapter.grown();
  CHECK(grown.scale() == adapter.scale());
  CHECK(grown.rank() == adapter.counted());
  CHECK_THROWS_AS(fresh_increlora<float>(6, 5, 4, {.capacity = 3}, rng), ShapeError);
  CHECK_THROWS_AS(fresh_increlora<float>(6, 5, 4, {.add = 0}, rng), ShapeError);
}

TEST_CASE("IncreLoraAdapter: what was added is trained from the next step on", "[peft]") {
  std::mt19937_64 rng(1);
  for (const bool advance : {true, false}) {
    IncreLoraAdapter<float> adapter = fresh_increlora<float>(6, 5, 1, {.capacity = 5, .add = 1, .advance_learn = advance}, rng);
    const LowRankGradients<float> grads(5, 6, 5);
    const auto names = [&] {
      std::vector<std::string> all;
      adapter.each_parameter(grads, [&](std::string_view name, MatrixRef<float>, ConstMatrixRef<float>) { all.emplace_back(name); });
      adapter.refresh();
      return all;
    };
    const std::vector<std::string> one{"lora_A.0", "lora_B.0", "lora_E.0"};
    std::vector<std::string> reserve = one, two = one;
    if (advance) reserve.insert(reserve.end(), {"lora_A.1", "lora_B.1"});
    two.insert(two.end(), {"lora_A.1", "lora_B.1", "lora_E.1"});
    adapter.add_reserve(rng);
    CHECK(names() == one);
    CHECK(names() == reserve);
    adapter.grow();
    CHECK(names() == reserve);
    CHECK(names() == two);
  }
}

TEST_CASE("IncrementalAllocator: grows the best, and silences what is left of the reserves, past the target too", "[peft]") {
  for (const bool overshoots : {false, true}) {
    std::mt19937_64 rng(1);
    std::vector<IncreLoraAdapter<double>> modules;
    for (int m = 0; m < 3; ++m) modules.push_back(fresh_increlora<double>(4, 5, 1, {.capacity = 9, .add = 2}, rng));
    IncrementalAllocator<double> allocator({&modules[0], &modules[1], &modules[2]},
                                           {.target_total = 6, .top = 2, .overshoots = overshoots});
    const std::vector<double> scores{1, 3, 2};
    allocator.step(scores, rng);
    CHECK(allocator.total() == 3);
    allocator.step(scores, rng);
    CHECK(allocator.total() == 7);
    CHECK(allocator.done());
    CHECK(modules[0].counted() == 1);
    CHECK(modules[1].counted() == 3);
    CHECK(modules[2].counted() == 3);
    for (const IncreLoraAdapter<double>& m : modules) CHECK((m.lambda()[m.rank() - 1] == 0) == !overshoots);
    const Vector<double> mean = allocator.mean();
    allocator.step(scores, rng);  // nothing changes any more
    CHECK(allocator.total() == 7);
    CHECK(same_bits(allocator.mean(), mean));
  }
}

TEST_CASE("IncrementalAllocator: what makes no sense, and a module that is full, are refused before anything changes", "[peft]") {
  std::mt19937_64 rng(1);
  std::vector<IncreLoraAdapter<double>> modules{fresh_increlora<double>(4, 5, 1, {.capacity = 2}, rng),
                                                fresh_increlora<double>(4, 5, 1, {.capacity = 9}, rng)};
  const auto make = [&](const IncrementalOptions& options) { return IncrementalAllocator<double>({&modules[0], &modules[1]}, options); };
  CHECK_THROWS_WITH(make({}), contains("expected a target that is not below"));
  CHECK_THROWS_AS(make({.target_total = 4, .every = 0}), ShapeError);
  CHECK_THROWS_AS(make({.target_total = 4, .top = 0}), ShapeError);
  CHECK_THROWS_AS(make({.target_total = 4, .importance = {.beta2 = 0}}), ShapeError);
  CHECK_THROWS_AS(IncrementalAllocator<double>({nullptr}, {.target_total = 4}), ShapeError);
  IncrementalAllocator<double> allocator = make({.target_total = 6, .top = 2});
  CHECK_THROWS_WITH(allocator.step(std::vector<double>{1}, rng), contains("1 scores for 2 modules"));
  const std::vector<double> scores{1, 1};
  allocator.step(scores, rng);
  const Vector<double> mean = allocator.mean();
  CHECK_THROWS_WITH(allocator.step(scores, rng), contains("module 0 has 2 components of 2"));
  CHECK_THROWS_AS(allocator.step(scores, rng), CapacityError);
  CHECK(allocator.steps() == 1);
  CHECK(modules[1].counted() == 1);
  CHECK(same_bits(allocator.mean(), mean));
  CHECK(increment_score<IncreLoraAdapter<double>>(modules[0], Matrix<double>(0, 4), Matrix<double>(0, 5)) == 0);
}
