#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

#include <pith/core/products.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/kv/compact_options.hpp>

// Least squares for masses: within bounds, and by orthogonal matching pursuit.

namespace pith { inline namespace v0 { namespace detail {

/// argmin_w wᵀ G w - 2 bᵀ w + μ‖w - 1‖², lower ≤ w ≤ upper, by coordinate descent; μ = pull · tr G / t.
///
///   w_j ← clamp((b_j - Σ_{k≠j} G_jk w_k) / G_jj)
///
/// Law      a column without attention keeps mass 1
inline Vector<double> box_least_squares(Matrix<double> gram, const Vector<double>& right, const CompactOptions& o) {
  const Index t = gram.rows();
  const double lower = std::exp(o.least_log_mass), upper = std::exp(o.most_log_mass);
  const double mu = o.mass_pull * gram.trace() / static_cast<double>(t);
  gram.diagonal().array() += mu;
  const Vector<double> b = right.array() + mu;
  Vector<double> w = Vector<double>::Ones(t), gw = times<double>(gram, w);
  for (Index sweep = 0; sweep < o.sweeps; ++sweep) {
    double moved = 0;
    for (Index j = 0; j < t; ++j) {
      if (!(gram(j, j) > (std::numeric_limits<double>::min)())) continue;
      const double next = std::clamp(w[j] + (b[j] - gw[j]) / gram(j, j), lower, upper), change = next - w[j];
      if (change == 0) continue;
      gw += change * gram.row(j).transpose();
      w[j] = next;
      moved = (std::max)(moved, std::abs(change));
    }
    if (moved < 1e-6) break;
  }
  return w;
}

/// Orthogonal matching pursuit of the row sums of `all` [queries, rows]: takes the column that agrees most with what is missing, solves for
/// the masses of all columns taken, and so on. Until the next solution a new column weighs the least mass.
inline std::vector<Index> pursue_columns(const Matrix<double>& all, Index count, const CompactOptions& o) {
  const Index rows = all.cols();
  const Vector<double> whole = all.rowwise().sum();
  Vector<double> missing = whole, w;
  std::vector<Index> taken;
  std::vector<bool> is_taken(static_cast<std::size_t>(rows), false);
  for (Index round = 0; static_cast<Index>(taken.size()) < (std::min)(count, rows); ++round) {
    const Vector<double> agrees = transposed_times<double>(all, missing);
    const Index step = (std::min)(o.pursuit_step, (std::min)(count, rows) - static_cast<Index>(taken.size()));
    for (Index s = 0; s < step; ++s) {
      Index best = -1;
      for (Index r = 0; r < rows; ++r)
        if (!is_taken[static_cast<std::size_t>(r)] && (best < 0 || agrees[r] > agrees[best])) best = r;
      taken.push_back(best);
      is_taken[static_cast<std::size_t>(best)] = true;
    }
    const Index t = static_cast<Index>(taken.size());
    Matrix<double> columns(all.rows(), t);
    for (Index j = 0; j < t; ++j) columns.col(j) = all.col(taken[static_cast<std::size_t>(j)]);
    if (round % o.pursuit_interval == 0 || t == (std::min)(count, rows)) {
      w = box_least_squares(transposed_times<double>(columns, columns), transposed_times<double>(columns, whole), o);
    } else {
      const Index before = w.size();
      w.conservativeResize(t);
      w.tail(t - before).setConstant(std::exp(o.least_log_mass));
    }
    missing = whole - times<double>(columns, w);
  }
  return taken;
}

}}}  // namespace pith::v0::detail
