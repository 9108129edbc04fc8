#pragma once
// IncreLoRA: chooses the modules that grow during training.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/products.hpp>
#include <pith/core/view.hpp>
#include <pith/peft/increlora.hpp>
#include <pith/peft/rank_allocator.hpp>

namespace pith { inline namespace v0 {

/// The growth schedule.
struct IncrementalOptions {
  Index target_total = -1;  ///< final number of components of all modules; required
  Index warmup = 0;         ///< no module grows up to this step
  Index every = 1;          ///< steps between growths
  Index top = 8;            ///< number of modules that grow at a time (h)
  bool overshoots = false;  ///< true, as published: if a growth passes the target, the reserves stay in the result for good
  ImportanceOptions importance = {};
};

/// IncreLoRA's score of a module: Σ |ΔW ∘ dL/dΔW| / √(out · in) with dL/dΔW = dyᵀ x; ΔW includes the scale and the reserve.
///
/// Shapes   x [tokens, in] · dy [tokens, out]
/// Heap     two matrices of the size of the weight; x, dy, A and B in double
/// Throws   ShapeError if the shapes disagree
template <LowRankAdapter A>
double increment_score(const A& adapter, ConstMatrixRef<typename A::Scalar> x, ConstMatrixRef<typename A::Scalar> dy) {
  using S = typename A::Scalar;
  const ConstMatrixRef<S> down = adapter.down_rows(), up = adapter.up_rows();
  check_shape("increment_score", "x", x, any_extent, down.cols());
  check_shape("increment_score", "dy", dy, x.rows(), up.cols());
  if (down.cols() == 0 || up.cols() == 0) return 0;
  const Vector<double> gain = ConstVectorRef<S>(adapter.gain()).template cast<double>();
  const Matrix<double> b_rows = detail::with_scaled_rows<double>(detail::in_double<S>(up), gain);
  const Matrix<double> delta = detail::transposed_times<double>(b_rows, detail::in_double<S>(down));
  const Matrix<double> gradient = detail::transposed_times<double>(detail::in_double<S>(dy), detail::in_double<S>(x));
  return delta.cwiseProduct(gradient).cwiseAbs().sum() / std::sqrt(double(down.cols()) * double(up.cols()));
}

/// IncreLoRA's allocator: grows the modules of highest importance until all modules together reach a target.
///
///   importance = Ī · U of the module's score;   modules grow with importance >= the k-th largest, k = min(h, target - total)
///
/// Call step() after the backward pass and before the optimizer's step: new parameters have no gradient yet and first move one step later.
///
/// Throws   ShapeError if options or scores are out of range, CapacityError if a module that has to grow is full; before anything changes
/// Law      all modules grow that tie with the last module to grow
/// Paper    IncreLoRA: arXiv:2308.12043
template <class S = float> class IncrementalAllocator {
 public:
  IncrementalAllocator(std::vector<IncreLoraAdapter<S>*> modules, const IncrementalOptions& options)
      : modules_(std::move(modules)), options_(options) {
    detail::check_importance("IncrementalAllocator", options.importance);
    for (const IncreLoraAdapter<S>* module : modules_) {
      if (module == nullptr) [[unlikely]]
        raise<ShapeError>("pith::IncrementalAllocator: a module is a null pointer");
      total_ += module->counted();
    }
    if (options.target_total < total_ || options.warmup < 0 || options.every < 1 || options.top < 1) [[unlikely]]
      raise<ShapeError>("pith::IncrementalAllocator: from ", total_, " components to ", options.target_total, ", the best ", options.top,
                        " modules every ", options.every, " steps after ", options.warmup,
                        ": expected a target that is not below and positive steps");
    const Index n = static_cast<Index>(modules_.size());
    mean_ = spread_ = Vector<double>::Zero(n);
  }

  /// `scores` holds increment_score() of each module. reserve(module) is called for each module that needs a new reserve, and must call its
  /// add_reserve().
  template <class Reserve>
  requires std::invocable<Reserve&, Index>
  void step(std::span<const double> scores, Reserve&& reserve) {
    const Index n = static_cast<Index>(modules_.size());
    if (static_cast<Index>(scores.size()) != n) [[unlikely]]
      raise<ShapeError>("pith::IncrementalAllocator::step: ", scores.size(), " scores for ", n, " modules");
    Vector<double> mean = mean_, spread = spread_;
    std::vector<bool> grows(static_cast<std::size_t>(n), false);
    double threshold = std::numeric_limits<double>::quiet_NaN();
    if (total_ < options_.target_total) {
      const Eigen::Map<const Vector<double>> now(scores.data(), n);
      detail::smooth_importance(now, Vector<double>::Ones(n).eval(), mean, spread, options_.importance);
      if (step_ > options_.warmup && step_ % options_.every == 0) threshold = choose(mean.cwiseProduct(spread), grows);
    }
    check_room(grows);
    mean_ = mean, spread_ = spread;
    threshold_ = threshold;
    if (step_++ == 0)
      for (Index m = 0; m < n; ++m) reserve(m);
    for (Index m = 0; m < n; ++m) {
      if (!grows[static_cast<std::size_t>(m)]) continue;
      IncreLoraAdapter<S>& module = *modules_[static_cast<std::size_t>(m)];
      total_ -= module.counted();
      module.grow();
      total_ += module.counted();
      reserve(m);
    }
    const bool reached = options_.overshoots ? total_ == options_.target_total : total_ >= options_.target_total;
    if (reached && (threshold == threshold || !options_.overshoots))
      for (IncreLoraAdapter<S>* module : modules_) module->silence_reserve();
  }
  /// Overload that draws new reserves from N(0, 0.02²).
  template <std::uniform_random_bit_generator Rng> void step(std::span<const double> scores, Rng& rng) {
    step(scores, [&](Index m) { modules_[static_cast<std::size_t>(m)]->add_reserve(rng); });
  }

  Index steps() const { return step_; }
  Index total() const { return total_; }  ///< number of counted components of all modules
  bool done() const { return total_ >= options_.target_total; }
  double threshold() const { return threshold_; }  ///< of the last step; NaN if no module was due to grow
  const Vector<double>& mean() const { return mean_; }
  const Vector<double>& spread() const { return spread_; }
  Vector<double> importance() const { return mean_.cwiseProduct(spread_); }

 private:
  double choose(const Vector<double>& importance, std::vector<bool>& grows) const {
    std::vector<double> sorted;
    for (const double value : importance) sorted.push_back(std::isnan(value) ? -std::numeric_limits<double>::infinity() : value);
    const std::vector<double> of_module = sorted;
    const Index k = (std::min)({options_.top, options_.target_total - total_, static_cast<Index>(sorted.size())});
    const auto last = sorted.begin() + (k - 1);
    std::nth_element(sorted.begin(), last, sorted.end(), [](double a, double b) { return a > b; });
    for (std::size_t m = 0; m < of_module.size(); ++m) grows[m] = of_module[m] >= *last;
    return *last;
  }

  void check_room(const std::vector<bool>& grows) const {
    for (std::size_t m = 0; m < modules_.size(); ++m) {
      const bool fits = step_ == 0 ? modules_[m]->can_add_reserve() : !grows[m] || modules_[m]->can_grow();
      if (!fits) [[unlikely]]
        raise<CapacityError>("pith::IncrementalAllocator::step: module ", m, " has ", modules_[m]->rank(), " components of ",
                             modules_[m]->max_rank(), " and cannot take another reserve: construct it with a larger capacity");
    }
  }

  std::vector<IncreLoraAdapter<S>*> modules_;
  IncrementalOptions options_;
  Vector<double> mean_, spread_;
  Index total_ = 0, step_ = 0;
  double threshold_ = std::numeric_limits<double>::quiet_NaN();
};

}}  // namespace pith::v0
