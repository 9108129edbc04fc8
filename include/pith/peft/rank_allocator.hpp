#pragma once
// AdaLoRA: scores triplets by importance and prunes them to a falling budget.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/peft/adalora.hpp>
#include <pith/peft/gradients.hpp>

namespace pith { inline namespace v0 {

/// The smoothing of a parameter's importance Ī · U: I = |p · g|, Ī ← β₁ Ī + (1 − β₁) I, U ← β₂ U + (1 − β₂) |I − Ī|.
struct ImportanceOptions {
  double beta1 = 0.85, beta2 = 0.85;
};

/// The pruning schedule.
struct RankScheduleOptions {
  Index target_rank = 8;   ///< final mean rank of a module
  Index total_steps = -1;  ///< T; required
  Index initial = 0;       ///< steps at the full rank (tinit)
  Index final = 0;         ///< steps at the target rank (tfinal)
  Index every = 1;         ///< steps between masks (deltaT)
  bool as_peft = false;    ///< PEFT masks at T - final for any `every` and keeps that mask; the published code scores to the end
  ImportanceOptions importance = {};
};

namespace detail {

inline void check_importance(const char* where, const ImportanceOptions& o) {
  if (!(o.beta1 > 0 && o.beta1 < 1 && o.beta2 > 0 && o.beta2 < 1)) [[unlikely]]
    raise<ShapeError>("pith::", where, ": betas ", o.beta1, " and ", o.beta2, ", expected above 0 and below 1");
}

/// One step of Ī and U, always in double because U is a small difference.
template <class P, class G, class M> void smooth_importance(const P& p, const G& g, M& mean, M& spread, const ImportanceOptions& o) {
  const M now = p.template cast<double>().cwiseProduct(g.template cast<double>()).cwiseAbs();
  mean = o.beta1 * mean + (1 - o.beta1) * now;
  spread = o.beta2 * spread + (1 - o.beta2) * (now - mean).cwiseAbs();
}

}  // namespace detail

/// AdaLoRA's budget of triplets: `first` up to step tinit, `last` after step T - tfinal, and between them
///
///   b(t) = ⌊last + (first - last) (1 - (t - tinit) / (T - tfinal - tinit))³⌋
struct RankSchedule {
  RankScheduleOptions options;
  Index first, last;  ///< number of triplets of all modules, initial and final

  Index budget(Index step) const {
    const Index end = options.total_steps - options.final;
    if (step <= options.initial) return first;
    if (step > end) return last;
    const double left = 1 - double(step - options.initial) / double(end - options.initial);
    return static_cast<Index>(double(last) + double(first - last) * std::pow(left, 3.0));
  }
  bool masks(Index step) const {
    const Index end = options.total_steps - options.final;
    if (step <= options.initial) return false;
    return step > end ? true : step % options.every == 0 || (options.as_peft && step == end);
  }
};

/// AdaLoRA's allocator: a mask sets λ = 0 for the least important triplets of all modules together, down to the budget.
///
///   score(i) = s(λᵢ) + mean s(A[i, :]) + mean s(B[:, i]),   s = Ī · U of each number
///
/// Masked triplets keep their gradients and may return at the next mask.
///
/// Heap     the scores, on every mask
/// Throws   ShapeError if the schedule is out of range or the gradients do not fit, before anything changes
/// Law      a mask leaves at most its budget; triplets that tie at the threshold all go, and triplets with a score of NaN go first
/// Paper    AdaLoRA: arXiv:2303.10512
template <class S = float> class RankAllocator {
 public:
  RankAllocator(std::vector<AdaLoraAdapter<S>*> modules, const RankScheduleOptions& options)
      : modules_(std::move(modules)), schedule_{options, 0, 0} {
    detail::check_importance("RankAllocator", options.importance);
    for (const AdaLoraAdapter<S>* module : modules_) {
      if (module == nullptr) [[unlikely]]
        raise<ShapeError>("pith::RankAllocator: a module is a null pointer");
      schedule_.first += module->rank();
      mean_.emplace_back(module->rank(), module->in(), module->out());
      score_.emplace_back(Vector<double>::Constant(module->rank(), std::numeric_limits<double>::quiet_NaN()));
      kept_.emplace_back(static_cast<std::size_t>(module->rank()), true);
    }
    spread_ = mean_;
    const Index n = static_cast<Index>(modules_.size());
    schedule_.last = options.target_rank < 0 ? -1 : detail::checked_product("RankAllocator", options.target_rank, n);
    if (schedule_.last < 0 || schedule_.last > schedule_.first || options.initial < 0 || options.final < 0 || options.every < 1 ||
        options.total_steps < 0 || options.total_steps - options.final < options.initial) [[unlikely]]
      raise<ShapeError>("pith::RankAllocator: target rank ", options.target_rank, " of ", n, " modules with ", schedule_.first,
                        " triplets; ", options.initial, " + ", options.final, " of ", options.total_steps, " steps, a mask every ",
                        options.every, ": expected a target below the initial rank, and total_steps to hold both ends");
  }

  /// Call it after the optimizer's step, with the gradients of that step, one for each module.
  void step(std::span<const LowRankGradients<S>> gradients) {
    check(gradients);
    const RankScheduleOptions& o = schedule_.options;
    const Index end = o.total_steps - o.final;
    masked_ = false;
    threshold_ = std::numeric_limits<double>::quiet_NaN();
    if (step_ < end) update(gradients);
    budget_ = schedule_.budget(step_);
    if (o.as_peft && step_ > end) {
      apply();
    } else if (schedule_.masks(step_) && budget_ < schedule_.first) {
      choose();
      apply();
      masked_ = true;
    }
    ++step_;
  }

  Index steps() const { return step_; }
  Index budget() const { return budget_; }         ///< of the last step
  bool masked() const { return masked_; }          ///< whether it scored and masked
  double threshold() const { return threshold_; }  ///< the highest masked score; NaN if the step did not mask
  const RankSchedule& schedule() const { return schedule_; }
  /// The scores of the triplets at the last mask.
  const Vector<double>& scores(Index module) const { return score_.at(static_cast<std::size_t>(module)); }
  const std::vector<bool>& kept(Index module) const { return kept_.at(static_cast<std::size_t>(module)); }
  /// Ī and U of each number.
  const LowRankGradients<double>& mean(Index module) const { return mean_.at(static_cast<std::size_t>(module)); }
  const LowRankGradients<double>& spread(Index module) const { return spread_.at(static_cast<std::size_t>(module)); }

 private:
  void check(std::span<const LowRankGradients<S>> gradients) const {
    if (gradients.size() != modules_.size()) [[unlikely]]
      raise<ShapeError>("pith::RankAllocator::step: ", gradients.size(), " gradients for ", modules_.size(), " modules");
    for (std::size_t m = 0; m < modules_.size(); ++m) {
      const Index rank = mean_[m].down_rows.rows();
      check_shape("RankAllocator::step", "down", modules_[m]->down(), rank, mean_[m].down_rows.cols());
      check_shape("RankAllocator::step", "gradients.down", gradients[m].down_rows, rank, mean_[m].down_rows.cols());
      check_shape("RankAllocator::step", "gradients.up", gradients[m].up_rows, rank, mean_[m].up_rows.cols());
      check_shape("RankAllocator::step", "gradients.lambda", gradients[m].lambda, rank, 1);
    }
  }

  void update(std::span<const LowRankGradients<S>> gradients) {
    for (std::size_t m = 0; m < modules_.size(); ++m) {
      const ImportanceOptions& o = schedule_.options.importance;
      const AdaLoraAdapter<S>& a = *modules_[m];
      detail::smooth_importance(a.down_rows(), gradients[m].down_rows, mean_[m].down_rows, spread_[m].down_rows, o);
      detail::smooth_importance(a.up_rows(), gradients[m].up_rows, mean_[m].up_rows, spread_[m].up_rows, o);
      detail::smooth_importance(a.lambda(), gradients[m].lambda, mean_[m].lambda, spread_[m].lambda, o);
    }
  }

  static Vector<double> row_means(const Matrix<double>& mean, const Matrix<double>& spread) {
    return mean.cwiseProduct(spread).rowwise().sum() / double((std::max<Index>)(1, mean.cols()));
  }

  void choose() {
    std::vector<double> all;
    for (std::size_t m = 0; m < modules_.size(); ++m) {
      const LowRankGradients<double>&mean = mean_[m], &spread = spread_[m];
      score_[m] =
          mean.lambda.cwiseProduct(spread.lambda) + row_means(mean.down_rows, spread.down_rows) + row_means(mean.up_rows, spread.up_rows);
      score_[m] = score_[m].array().isNaN().select(-std::numeric_limits<double>::infinity(), score_[m].array()).matrix().eval();
      all.insert(all.end(), score_[m].data(), score_[m].data() + score_[m].size());
    }
    const auto lost = all.begin() + (schedule_.first - budget_ - 1);
    std::nth_element(all.begin(), lost, all.end());
    threshold_ = *lost;
    for (std::size_t m = 0; m < modules_.size(); ++m)
      for (Index i = 0; i < score_[m].size(); ++i) kept_[m][static_cast<std::size_t>(i)] = score_[m][i] > threshold_;
  }

  void apply() {
    for (std::size_t m = 0; m < modules_.size(); ++m) {
      for (std::size_t i = 0; i < kept_[m].size(); ++i)
        if (!kept_[m][i]) modules_[m]->lambda()[static_cast<Index>(i)] = S(0);
      modules_[m]->refresh();
    }
  }

  std::vector<AdaLoraAdapter<S>*> modules_;
  RankSchedule schedule_;
  std::vector<LowRankGradients<double>> mean_, spread_;
  std::vector<Vector<double>> score_;
  std::vector<std::vector<bool>> kept_;
  Index step_ = 0, budget_ = 0;
  double threshold_ = std::numeric_limits<double>::quiet_NaN();
  bool masked_ = false;
};

}}  // namespace pith::v0
