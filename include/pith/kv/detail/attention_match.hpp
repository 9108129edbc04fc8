#pragma once

#include <Eigen/Cholesky>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

#include <pith/core/products.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/kv/compact_options.hpp>
#include <pith/kv/detail/mass_solver.hpp>

// Attention matching in one kv head: which keys stay, and what masses and values they must have. All in double.

namespace pith { inline namespace v0 { namespace detail {

using MatchMatrix = Matrix<double>;
using MatchVector = Vector<double>;

/// The rows of a head and the queries that ask them.
struct MatchRows {
  MatchMatrix keys, values;  ///< [rows, head_dim] by age
  MatchVector log_mass;      ///< [rows] added to each row's logit
  MatchMatrix queries;       ///< [queries, head_dim]
  double scale = 1, softcap = 0;
  Index rows() const { return keys.rows(); }
};

/// log Σ_j exp(logit_ij) over all rows and the largest logit, for each query.
struct MatchSums {
  MatchVector log_sum, top;
};

/// What becomes of the rows that stay.
struct MatchSolution {
  std::vector<float> log_mass;  ///< added to the mass that a row had
  MatchMatrix values;
};

class AttentionMatch {
 public:
  AttentionMatch(const MatchRows& rows, const CompactOptions& options) : m_(rows), o_(options) {}

  /// Scores every row by the attention of all queries: A = softmax(Q Kᵀ) without a causal mask.
  ///
  /// Cost     queries·rows·head_dim multiply-adds; scratch of a block of logits
  MatchSums score(std::vector<double>& scores) const {
    const Index n = m_.queries.rows(), count = m_.rows();
    MatchSums sums{MatchVector(n), MatchVector(n)};
    MatchVector total = MatchVector::Zero(count);
    MatchMatrix logits;
    for_blocks(0, count, logits, [&](Index first, Index size) {
      for (Index i = 0; i < size; ++i) {
        auto row = logits.row(i);
        const double top = row.maxCoeff();
        row = (row.array() - top).exp();
        const double sum = row.sum();
        sums.top[first + i] = top;
        sums.log_sum[first + i] = top + std::log(sum);
        row /= sum;
        if (o_.select == CompactOptions::Select::rms) total += row.transpose().cwiseAbs2();
        if (o_.select == CompactOptions::Select::mean) total += row.transpose();
        if (o_.select == CompactOptions::Select::largest) total = total.cwiseMax(row.transpose());
      }
    });
    if (o_.select == CompactOptions::Select::rms) total = (total / static_cast<double>(n)).cwiseSqrt();
    if (o_.select == CompactOptions::Select::mean) total /= static_cast<double>(n);
    scores.resize(static_cast<std::size_t>(count));
    const Index reach = o_.pool / 2;
    for (Index r = 0; r < count; ++r) {
      const Index first = (std::max)(Index(0), r - reach), last = (std::min)(count - 1, r + reach);
      scores[static_cast<std::size_t>(r)] = total.segment(first, last - first + 1).maxCoeff();
    }
    return sums;
  }

  /// Masses and values for the rows `kept` of the rows first .. end - 1, so that they stand for all of these.
  ///
  ///   min_w ‖M w - y‖², M_ij = A_ij, y_i = Σ_j A_ij;   min_C ‖X C - Y‖² + λ‖C - V‖², X_ij = y_i M_ij w_j / Σ_k M_ik w_k, Y = A V
  ///
  /// Cost     queries·(2·rows·head_dim + 2·kept²) multiply-adds; scratch of queries·kept + 2·kept² numbers
  MatchSolution solve(const MatchSums& sums, Index first, Index end, std::span<const Index> kept) const {
    const Index n = m_.queries.rows(), t = static_cast<Index>(kept.size()), d = m_.keys.cols();
    MatchSolution out{std::vector<float>(kept.size(), 0.f), MatchMatrix(t, d)};
    for (Index j = 0; j < t; ++j) out.values.row(j) = m_.values.row(kept[static_cast<std::size_t>(j)]);
    if (t == end - first) return out;
    MatchMatrix weights(n, t), target(n, d), logits;
    MatchVector mass(n);
    for_blocks(first, end, logits, [&](Index from, Index size) {
      for (Index i = 0; i < size; ++i) {
        auto row = logits.row(i);
        row = (row.array() - sums.log_sum[from + i]).exp();
        mass[from + i] = row.sum();
        for (Index j = 0; j < t; ++j) weights(from + i, j) = row[kept[static_cast<std::size_t>(j)] - first];
      }
      write_times<double>(logits.topRows(size), m_.values.middleRows(first, end - first), target.middleRows(from, size));
    });
    if (o_.masses) solve_masses(sums, mass, weights, out.log_mass);
    if (o_.values) solve_values(mass, weights, target, out);
    return out;
  }

  /// The order in which orthogonal matching pursuit takes keys: `count` of them.
  std::vector<Index> pursue(const MatchSums& sums, Index count) const {
    MatchMatrix all(m_.queries.rows(), m_.rows()), logits;
    for_blocks(0, m_.rows(), logits, [&](Index from, Index size) {
      for (Index i = 0; i < size; ++i) all.row(from + i) = (logits.row(i).array() - scale_of(sums, from + i)).exp();
    });
    return pursue_columns(all, count, o_);
  }

 private:
  /// What the exponentials of a query are divided by, as a logarithm.
  double scale_of(const MatchSums& sums, Index query) const {
    return o_.rows == CompactOptions::Rows::relative ? sums.log_sum[query] : sums.top[query];
  }

  /// Calls f(first query, queries) with the logits of a block of queries on rows first .. end - 1.
  template <class F> void for_blocks(Index first, Index end, MatchMatrix& logits, F&& f) const {
    const Index n = m_.queries.rows(), width = end - first;
    const Index block = std::clamp((Index(1) << 20) / (std::max)(width, Index(1)), Index(16), Index(256));
    logits.resize((std::min)(block, n), width);
    for (Index from = 0; from < n; from += block) {
      const Index size = (std::min)(block, n - from);
      auto here = logits.topRows(size);
      write_times_transposed<double>(m_.queries.middleRows(from, size), m_.keys.middleRows(first, width), here);
      here *= m_.scale;
      if (m_.softcap > 0) here = m_.softcap * (here.array() / m_.softcap).tanh();
      here.rowwise() += m_.log_mass.segment(first, width).transpose();
      f(from, size);
    }
  }

  void solve_masses(const MatchSums& sums, const MatchVector& mass, MatchMatrix& weights, std::vector<float>& log_mass) const {
    const Index t = weights.cols();
    MatchVector counts = MatchVector::Ones(mass.size());
    if (o_.rows == CompactOptions::Rows::largest) counts = (sums.log_sum - sums.top).array().exp();
    const MatchMatrix rows = with_scaled_rows<double>(weights, counts);
    MatchMatrix gram = MatchMatrix::Zero(t, t);
    gram.selfadjointView<Eigen::Lower>().rankUpdate(rows.transpose());
    gram.triangularView<Eigen::StrictlyUpper>() = gram.transpose();
    const MatchVector right = transposed_times<double>(rows, MatchVector(counts.cwiseProduct(mass)));
    const MatchVector w = box_least_squares(std::move(gram), right, o_);
    for (Index j = 0; j < t; ++j) {
      log_mass[static_cast<std::size_t>(j)] = static_cast<float>(std::log(w[j]));
      weights.col(j) *= std::exp(static_cast<double>(log_mass[static_cast<std::size_t>(j)]));
    }
  }

  void solve_values(const MatchVector& mass, MatchMatrix& weights, MatchMatrix& target, MatchSolution& out) const {
    const Index t = weights.cols();
    for (Index i = 0; i < weights.rows(); ++i) {
      const double sum = weights.row(i).sum();
      weights.row(i) *= sum > 0 ? mass[i] / sum : 0.0;
    }
    MatchMatrix gram = MatchMatrix::Zero(t, t);
    gram.selfadjointView<Eigen::Lower>().rankUpdate(weights.transpose());
    const double lambda = o_.ridge * gram.trace() / static_cast<double>(t);
    gram.diagonal().array() += lambda;
    if (o_.pull == CompactOptions::Pull::own) target -= times<double>(weights, out.values);
    const MatchMatrix right = transposed_times<double>(weights, target);
    const Eigen::LDLT<Eigen::Ref<MatchMatrix>, Eigen::Lower> solver(gram);
    MatchMatrix change = solver.solve(right);
    if (o_.pull == CompactOptions::Pull::own) change += out.values;
    if (solver.info() == Eigen::Success && change.allFinite()) out.values = std::move(change);
  }

  const MatchRows& m_;
  const CompactOptions& o_;
};

}}}  // namespace pith::v0::detail
