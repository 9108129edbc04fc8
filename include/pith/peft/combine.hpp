#pragma once
// Combines LoRA adapters into one: concatenation, weighted sums, TIES, DARE.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/random.hpp>
#include <pith/core/view.hpp>
#include <pith/peft/lora.hpp>

namespace pith { inline namespace v0 {

/// An adapter and its weight in a combination. The adapter's scale applies in addition.
template <class S> struct WeightedLora {
  const LoraAdapter<S>* adapter = nullptr;
  double weight = 1;
};

/// The methods of combining numbers.
enum class CombineMethod {
  linear,           ///< weighted sum
  ties,             ///< prunes small numbers, elects a sign for each entry and averages the numbers of that sign   arXiv:2306.01708
  magnitude_prune,  ///< prunes small numbers, then linear
  dare_linear,      ///< prunes at random, rescales the rest by 1 / density, then linear   arXiv:2311.03099
  dare_ties,        ///< prunes and rescales as dare_linear, then elects signs as ties
};

/// Options of combine_factors().
struct CombineOptions {
  CombineMethod method = CombineMethod::linear;
  double density = 1;        ///< share of the numbers that pruning keeps
  bool count_signs = false;  ///< ties: elects by the count of signs instead of the sum of the numbers (`frequency`)
};

namespace detail {

template <class S> double combined_weight(const WeightedLora<S>& term) { return term.weight * double(term.adapter->scale()); }

template <class S> void check_terms(const char* where, std::span<const WeightedLora<S>> terms, bool equal_ranks) {
  if (terms.empty()) raise<ShapeError>("pith::", where, ": nothing to combine");
  for (const WeightedLora<S>& term : terms) {
    if (term.adapter == nullptr || !std::isfinite(term.weight))
      raise<ShapeError>("pith::", where, ": a term without an adapter, or with a weight of ", term.weight);
    const LoraAdapter<S>& first = *terms[0].adapter;
    check_shape(where, "down", std::as_const(*term.adapter).down_rows(), equal_ranks ? first.rank() : any_extent, first.in());
    check_shape(where, "up", std::as_const(*term.adapter).up_rows(), any_extent, first.out());
    if (std::as_const(*term.adapter).bias().size() > 0)
      raise<UnsupportedError>("pith::", where, ": an adapter with a bias of its own has no combination");
  }
}

/// Keeps the ⌊density · size⌋ numbers of largest magnitude; of equal magnitudes the first.
inline void prune_small(Matrix<double>& m, double density) {
  if (density >= 1) return;
  std::vector<Index> order(static_cast<std::size_t>(m.size()));
  std::iota(order.begin(), order.end(), Index{0});
  std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return std::abs(m.data()[a]) > std::abs(m.data()[b]); });
  const auto keep = static_cast<std::size_t>(density * double(m.size()));
  for (std::size_t i = keep; i < order.size(); ++i) m.data()[order[i]] = 0;
}

/// Keeps each number with probability `density` and divides it by `density`.
template <std::uniform_random_bit_generator Rng> void prune_randomly(Matrix<double>& m, double density, Rng& rng) {
  if (density >= 1) return;
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = canonical<double>(rng) < density ? m.data()[i] / density : 0;
}

inline Matrix<double> weighted_sum(const std::vector<Matrix<double>>& parts, const std::vector<double>& weights) {
  Matrix<double> sum = Matrix<double>::Zero(parts[0].rows(), parts[0].cols());
  for (std::size_t i = 0; i < parts.size(); ++i) sum += weights[i] * parts[i];
  return sum;
}

/// For each entry the weighted sum of the numbers that have the elected sign, over their count.
inline Matrix<double> elected_mean(const std::vector<Matrix<double>>& parts, const std::vector<double>& weights, bool count_signs) {
  Matrix<double> out(parts[0].rows(), parts[0].cols());
  for (Index i = 0; i < out.size(); ++i) {
    double vote = 0, sum = 0, agreeing = 0;
    const auto sign = [](double v) { return v > 0 ? 1. : v < 0 ? -1. : 0.; };
    for (const Matrix<double>& part : parts) vote += count_signs ? sign(part.data()[i]) : part.data()[i];
    const double elected = vote >= 0 ? 1 : -1;
    for (std::size_t p = 0; p < parts.size(); ++p) {
      if (sign(parts[p].data()[i]) != elected) continue;
      sum += weights[p] * parts[p].data()[i];
      ++agreeing;
    }
    out.data()[i] = sum / (std::max)(1., agreeing);
  }
  return out;
}

template <class Rng>
Matrix<double> combine_parts(std::vector<Matrix<double>> parts, const std::vector<double>& weights, const CombineOptions& options,
                             Rng& rng) {
  using M = CombineMethod;
  for (Matrix<double>& part : parts) {
    if (options.method == M::ties || options.method == M::magnitude_prune) prune_small(part, options.density);
    if (options.method == M::dare_linear || options.method == M::dare_ties) prune_randomly(part, options.density, rng);
  }
  const bool elects = options.method == M::ties || options.method == M::dare_ties;
  return elects ? elected_mean(parts, weights, options.count_signs) : weighted_sum(parts, weights);
}

inline void check_combination(const char* where, const CombineOptions& options) {
  if (!(options.density >= 0)) raise<ShapeError>("pith::", where, ": density ", options.density, ", expected 0 or more");
}

/// An adapter of scale 1: ΔW = B A.
template <class S> LoraAdapter<S> of_scale_one(const Matrix<double>& down, const Matrix<double>& up) {
  return LoraAdapter<S>(down.cast<S>().eval(), up.cast<S>().eval(), {.alpha = double(down.rows())});
}

}  // namespace detail

/// Concatenates adapters: ΔW = Σ weight · ΔWᵢ exactly, with all components side by side. Its rank is the sum of the ranks, its scale 1.
///
/// Throws   ShapeError if there are no terms or they do not fit; UnsupportedError for an adapter with a bias
template <class S> LoraAdapter<S> combine_cat(std::span<const WeightedLora<S>> terms) {
  detail::check_terms("combine_cat", terms, false);
  Index rank = 0;
  for (const WeightedLora<S>& term : terms) rank += term.adapter->rank();
  const LoraAdapter<S>& first = *terms[0].adapter;
  Matrix<S> down(rank, first.in()), up(first.out(), rank);
  Index at = 0;
  for (const WeightedLora<S>& term : terms) {
    const LoraAdapter<S>& a = *term.adapter;
    down.middleRows(at, a.rank()) = (detail::combined_weight(term) * a.down_rows().template cast<double>()).template cast<S>();
    up.middleCols(at, a.rank()) = a.up_rows().transpose();
    at += a.rank();
  }
  return LoraAdapter<S>(down, up, {.alpha = double(rank)});
}

/// Combines the factors as PEFT does, after pruning: A = Σ sign(wᵢ) √|wᵢ| Aᵢ, B = Σ √|wᵢ| Bᵢ with w = weight · scale.
///
/// The product also holds the terms Bᵢ Aⱼ, so that it is not the sum of the ΔWᵢ; combine_cat() gives that sum. The rank stays the same, the
/// scale is 1. A single term is always combined linearly.
///
/// Throws   as combine_cat(), and ShapeError if ranks differ or the density is below 0
template <class S, std::uniform_random_bit_generator Rng>
LoraAdapter<S> combine_factors(std::span<const WeightedLora<S>> terms, CombineOptions options, Rng& rng) {
  detail::check_terms("combine_factors", terms, true);
  detail::check_combination("combine_factors", options);
  if (terms.size() == 1) options = {};
  std::vector<Matrix<double>> downs, ups;
  std::vector<double> down_weights, up_weights;
  for (const WeightedLora<S>& term : terms) {
    const LoraAdapter<S>& a = *term.adapter;
    const double w = detail::combined_weight(term);
    downs.push_back(a.down_rows().template cast<double>());
    ups.push_back(a.up_rows().transpose().template cast<double>());
    up_weights.push_back(std::sqrt(std::abs(w)));
    down_weights.push_back(w < 0 ? -up_weights.back() : up_weights.back());
  }
  const Matrix<double> down = detail::combine_parts(std::move(downs), down_weights, options, rng);
  return detail::of_scale_one<S>(down, detail::combine_parts(std::move(ups), up_weights, options, rng));
}

/// Overload without a random generator.
///
/// Throws   also UnsupportedError for dare_linear and dare_ties
template <class S> LoraAdapter<S> combine_factors(std::span<const WeightedLora<S>> terms, const CombineOptions& options = {}) {
  if (options.method == CombineMethod::dare_linear || options.method == CombineMethod::dare_ties) [[unlikely]]
    raise<UnsupportedError>("pith::combine_factors: DARE prunes at random: give it a generator");
  std::minstd_rand unused;
  return combine_factors(terms, options, unused);
}

}}  // namespace pith::v0
