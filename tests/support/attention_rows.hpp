#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include <pith/attention/attend.hpp>
#include <pith/core/random.hpp>

namespace pith_test {

using pith::Index;
using pith::Position;

template <class S> pith::Matrix<S> random_matrix(Index rows, Index cols, std::mt19937_64& rng) {
  pith::Matrix<S> m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = pith::normal<S>(rng);
  return m;
}

/// Random keys and values of all kv heads, the runs over them, and attention over them by plain loops in double.
template <class T> class AttentionRows {
 public:
  using S = pith::arithmetic_t<T>;

  AttentionRows(const pith::AttentionShape& shape, std::uint64_t seed) : shape_(shape), rng_(seed) {}

  /// One more run for every kv head. Positions are given per row; none: a prefix.
  void add_run(Index rows, const std::vector<Position>& positions, bool log_mass = false, Index sinks = 0, Index extra_stride = 0) {
    const Index stride = shape_.head_dim + extra_stride;
    std::vector<pith::KvRun<T>> grown;
    for (Index h = 0; h < shape_.num_kv_heads; ++h) {
      pith::KvRun<T> run{numbers(rows * stride), numbers(rows * stride), rows, stride};
      if (!positions.empty()) run.positions = positions_.emplace_back(positions).data();
      if (log_mass) {
        std::vector<float>& mass = masses_.emplace_back(static_cast<std::size_t>(rows));
        for (float& m : mass) m = std::log(1.f + 4.f * pith::canonical<float>(rng_));
        run.log_mass = mass.data();
      }
      run.sinks = sinks;
      for (Index r = 0; r < runs_a_head_; ++r) grown.push_back(runs_[static_cast<std::size_t>(h * runs_a_head_ + r)]);
      grown.push_back(run);
    }
    runs_ = grown;
    ++runs_a_head_;
  }

  pith::KvView<T> view(Position next) const { return {shape_, next, runs_}; }
  std::vector<pith::KvRun<T>>& runs() { return runs_; }
  std::mt19937_64& rng() { return rng_; }
  pith::Matrix<S> queries(Index tokens) { return random_matrix<S>(tokens, shape_.num_heads * shape_.head_dim, rng_); }

  /// What attend() should give, and by how much rounding may miss it.
  struct Expected {
    pith::Matrix<double> out, bound;
    std::vector<pith::Matrix<double>> weights;  ///< per kv head [tokens*group, rows of the last run]
    std::vector<pith::Matrix<double>> log_sum;  ///< per kv head [tokens*group, 1]
    double weight_bound = 0;
  };

  Expected expected(const pith::Matrix<S>& q, Position first, const pith::AttendOptions<S>& options = {}) const {
    const Index d = shape_.head_dim, group = shape_.group(), tokens = q.rows();
    const double eps = static_cast<double>(std::numeric_limits<S>::epsilon());
    const double scale = options.scale > 0 ? static_cast<double>(options.scale) : 1 / std::sqrt(static_cast<double>(d));
    const double cap = static_cast<double>(options.softcap);
    Expected e;
    e.out.setZero(tokens, q.cols());
    e.bound.setZero(tokens, q.cols());
    for (Index h = 0; h < shape_.num_kv_heads; ++h) {
      const std::span<const pith::KvRun<T>> runs(runs_.data() + h * runs_a_head_, static_cast<std::size_t>(runs_a_head_));
      e.weights.emplace_back(pith::Matrix<double>::Zero(tokens * group, runs.back().rows));
      e.log_sum.emplace_back(pith::Matrix<double>::Zero(tokens * group, 1));
      for (Index t = 0; t < tokens; ++t) {
        for (Index g = 0; g < group; ++g) {
          const Index column = (h * group + g) * d, position = Index(first) + t;
          struct Seen {
            const T* value;
            double logit;
            Index own;
          };
          std::vector<Seen> seen;
          double error = 0;
          for (const pith::KvRun<T>& run : runs) {
            for (Index r = 0; r < run.rows; ++r) {
              const bool sink = r < run.sinks;
              if (run.positions != nullptr) {
                const Index distance = position - run.positions[r];
                if (options.sight.empty() ? distance < 0 : run.positions[r] > options.sight[static_cast<std::size_t>(t)]) continue;
                if (options.window > 0 && distance - (sink ? Index(options.gap) : 0) >= options.window) continue;
              }
              double logit = 0, magnitude = 0;
              for (Index i = 0; i < d; ++i) {
                const double a = static_cast<double>(sink ? options.q_sinks(t, column + i) : q(t, column + i));
                const double b = static_cast<double>(static_cast<S>(run.keys[r * run.stride + i]));
                logit += a * b * scale;
                magnitude += std::abs(a * b * scale);
              }
              if (cap > 0) logit = cap * std::tanh(logit / cap), magnitude += cap;
              const double mass = run.log_mass == nullptr ? 0 : static_cast<double>(run.log_mass[r]);
              if (std::isinf(mass)) continue;
              seen.push_back({run.values + r * run.stride, logit + mass, &run == &runs.back() ? r : -1});
              error = std::max(error, (static_cast<double>(d) + 4) * eps * (magnitude + std::abs(mass)));
            }
          }
          double top = options.n > 0 ? 0 : -std::numeric_limits<double>::infinity(), low = 0;
          for (const Seen& s : seen) top = std::max(top, s.logit), low = std::min(low, s.logit);
          double sum = options.n > 0 ? static_cast<double>(options.n) * std::exp(-top) : 0;
          for (const Seen& s : seen) sum += std::exp(s.logit - top);
          const Index lane = t * group + g;
          e.log_sum.back()(lane, 0) = top + std::log(sum);
          // each weight is off by the error of two logits, of the difference to the top, of exp and of the sum
          const double relative = 2 * error + 2 * eps * (std::abs(top) + std::abs(low)) + (static_cast<double>(seen.size()) + 16) * eps;
          e.weight_bound = std::max(e.weight_bound, relative);
          for (const Seen& s : seen) {
            const double weight = std::exp(s.logit - top) / sum;
            if (s.own >= 0) e.weights.back()(lane, s.own) = weight;
            for (Index i = 0; i < d; ++i) {
              const double value = weight * static_cast<double>(static_cast<S>(s.value[i]));
              e.out(t, column + i) += value;
              e.bound(t, column + i) += 2 * relative * std::abs(value);
            }
          }
        }
      }
    }
    return e;
  }

 private:
  const T* numbers(Index n) {
    std::vector<T>& v = numbers_.emplace_back(static_cast<std::size_t>(n));
    for (T& x : v) x = static_cast<T>(pith::normal<S>(rng_));
    return v.data();
  }

  pith::AttentionShape shape_;
  std::mt19937_64 rng_;
  std::deque<std::vector<T>> numbers_;
  std::deque<std::vector<Position>> positions_;
  std::deque<std::vector<float>> masses_;
  std::vector<pith::KvRun<T>> runs_;
  Index runs_a_head_ = 0;
};

/// 0, 1, …, rows - 1.
inline std::vector<Position> in_order(Index rows) {
  std::vector<Position> p(static_cast<std::size_t>(rows));
  for (std::size_t i = 0; i < p.size(); ++i) p[i] = static_cast<Position>(i);
  return p;
}

}  // namespace pith_test
