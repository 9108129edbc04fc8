#pragma once
// IncreLoRA: an adapter whose rank grows during training.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/peft/adalora.hpp>
#include <pith/peft/detail/fresh.hpp>
#include <pith/peft/gradients.hpp>
#include <pith/peft/lora_init.hpp>
#include <pith/peft/low_rank.hpp>

namespace pith { inline namespace v0 {

/// Options of IncreLoraAdapter.
struct IncreLoraOptions {
  double alpha = 8;           ///< 0 or less: the initial rank
  Index capacity = 32;        ///< largest number of components, including the reserve
  Index add = 1;              ///< number of components in the reserve, which each growth adds
  bool advance_learn = true;  ///< true: the reserve trains A and B before it is counted, with λ = 1e-5; false: it waits with λ = 0
};

/// IncreLoRA's adapter: AdaLoRA's form with a growing rank, ΔW = α / (counted rank + 1e-5) · B diag(λ) A. Growth weakens older components.
///
/// A reserve lies behind the counted components. It contributes to the result by its λ, but is not counted, and its λ is not trained. A
/// growth counts the reserve; then a new reserve is added.
///
/// Shapes   down A [initial rank, in] · lambda [initial rank] · up B [out, initial rank]
/// Heap     at construction only: growing stays within the capacity
/// Throws   ShapeError if the shapes disagree or an option is out of range, CapacityError if there is no room to grow
/// Paper    IncreLoRA: arXiv:2308.12043
template <class S = float> class IncreLoraAdapter {
 public:
  using Scalar = S;

  IncreLoraAdapter(ConstMatrixRef<S> down, ConstVectorRef<S> lambda, ConstMatrixRef<S> up, const IncreLoraOptions& options = {})
      : options_(options), initial_(down.rows()), counted_(down.rows()), used_(down.rows()) {
    check_shape("IncreLoraAdapter", "lambda", lambda, down.rows(), 1);
    check_shape("IncreLoraAdapter", "up", up, any_extent, down.rows());
    if (options.add < 1 || options.capacity < down.rows()) [[unlikely]]
      raise<ShapeError>("pith::IncreLoraAdapter: room for ", options.capacity, " components with ", down.rows(), " to begin with, ",
                        options.add, " at a time: expected room for them and 1 or more");
    detail::checked_product("IncreLoraAdapter", options.capacity, down.cols());
    detail::checked_product("IncreLoraAdapter", options.capacity, up.rows());
    scale_ = static_cast<S>(detail::triplet_scale("IncreLoraAdapter", options.alpha, counted_, initial_));
    down_.setZero(options.capacity, down.cols());
    up_.setZero(options.capacity, up.rows());
    lambda_.setZero(options.capacity);
    down_.topRows(initial_) = down;
    up_.topRows(initial_) = up.transpose();
    lambda_.head(initial_) = lambda;
    gain_.setZero(options.capacity);
    refresh();
  }

  Index rank() const { return used_; }             ///< number of components, including the reserve
  Index counted() const { return counted_; }       ///< number of components without the reserve (`ranknum`)
  Index max_rank() const { return down_.rows(); }  ///< the capacity
  Index in() const { return down_.cols(); }
  Index out() const { return up_.cols(); }
  ConstMatrixRef<S> down() const { return down_.topRows(used_); }   ///< A [rank, in]
  auto up() const { return up_.topRows(used_).transpose(); }        ///< B [out, rank]
  ConstMatrixRef<S> down_rows() const { return down(); }            ///< A, a row a component
  ConstMatrixRef<S> up_rows() const { return up_.topRows(used_); }  ///< Bᵀ, a row a component [rank, out]
  /// [rank] scale · λ.
  ///
  /// Throws   StateError if λ changed after the last refresh()
  ConstVectorRef<S> gain() const {
    fresh_lambda_.check("IncreLoraAdapter", "lambda", lambda_);
    return {gain_.data(), used_};
  }
  ConstVectorRef<S> lambda() const { return {lambda_.data(), used_}; }  ///< [rank]
  S scale() const { return scale_; }
  const IncreLoraOptions& options() const { return options_; }

  /// Adds a reserve behind the counted components.
  ///
  /// Shapes   down A [add, in] · up B [out, add]
  /// Throws   CapacityError if there is no room; StateError if there is a reserve already
  void add_reserve(ConstMatrixRef<S> down, ConstMatrixRef<S> up) {
    check_reserve();
    check_shape("IncreLoraAdapter::add_reserve", "down", down, options_.add, in());
    check_shape("IncreLoraAdapter::add_reserve", "up", up, out(), options_.add);
    down_.middleRows(used_, options_.add) = down;
    up_.middleRows(used_, options_.add) = up.transpose();
    lambda_.segment(used_, options_.add).setConstant(options_.advance_learn ? S(1e-5) : S(0));
    used_ += options_.add;
    update_gain();
  }
  /// Adds a reserve drawn from N(0, 0.02²).
  template <std::uniform_random_bit_generator Rng> void add_reserve(Rng& rng) {
    check_reserve();
    const LoraFactors<S> f = fresh_factors<S>(in(), out(), options_.add, {.start = LoraStart::bert}, rng);
    add_reserve(f.down, f.up);
  }

  /// Counts the reserve as components. Their λ keep their values and are trained from now on. Call add_reserve() next.
  ///
  /// Throws   StateError without a reserve
  void grow() {
    if (used_ == counted_) [[unlikely]]
      raise<StateError>("pith::IncreLoraAdapter::grow: no reserve to grow by; call add_reserve() first");
    counted_ = used_;
    scale_ = static_cast<S>(detail::triplet_scale("IncreLoraAdapter", options_.alpha, counted_, initial_));
    update_gain();
  }
  bool can_add_reserve() const { return used_ == counted_ && max_rank() - used_ >= options_.add; }
  bool can_grow() const { return used_ > counted_ && max_rank() - used_ >= options_.add; }  ///< with room for a new reserve

  /// Removes the reserve from the result: sets its λ to 0.
  void silence_reserve() {
    lambda_.segment(counted_, used_ - counted_).setZero();
    update_gain();
  }

  /// The numbers themselves, for training; refresh() after lambda has changed.
  MatrixRef<S> down() { return ++changes_, down_.topRows(used_); }
  auto up() { return ++changes_, up_.topRows(used_).transpose(); }
  MatrixRef<S> down_rows() { return down(); }
  MatrixRef<S> up_rows() { return ++changes_, up_.topRows(used_); }
  VectorRef<S> lambda() { return {lambda_.data(), used_}; }
  void refresh() {
    update_gain();
    trained_counted_ = counted_;
    trained_used_ = used_;
  }
  std::uint64_t changes() const { return changes_; }

  /// The counted components as an AdaLoraAdapter of the same scale, for inference after silence_reserve().
  AdaLoraAdapter<S> grown() const {
    return AdaLoraAdapter<S>(down_.topRows(counted_), lambda_.head(counted_), Matrix<S>(up_.topRows(counted_).transpose()),
                             {.alpha = options_.alpha > 0 ? options_.alpha : double(initial_), .initial_rank = counted_});
  }

  /// Calls f(name, numbers, gradient) for one component after another: A, B and λ of counted components, A and B of a reserve that learns.
  ///
  /// Components added after the last refresh() have no gradient yet and are left out.
  template <class F> void each_parameter(const LowRankGradients<S>& g, F&& f) {
    ++changes_;
    for (Index r = 0; r < trained_used_; ++r) {
      std::string number(1, '.');  // appended to: g++ 12 at -O3 warns of a literal before a string
      number += std::to_string(r);
      if (r < trained_counted_ || options_.advance_learn) {
        f("lora_A" + number, MatrixRef<S>(down_.middleRows(r, 1)), ConstMatrixRef<S>(g.down_rows.middleRows(r, 1)));
        f("lora_B" + number, MatrixRef<S>(up_.middleRows(r, 1)), ConstMatrixRef<S>(g.up_rows.middleRows(r, 1)));
      }
      if (r < trained_counted_) f("lora_E" + number, MatrixRef<S>(lambda_.data() + r, 1, 1), ConstMatrixRef<S>(g.lambda.data() + r, 1, 1));
    }
  }
  Index parameters() const {  ///< number of currently trained numbers
    return counted_ * (in() + out() + 1) + (options_.advance_learn ? (used_ - counted_) * (in() + out()) : 0);
  }
  std::size_t bytes() const { return static_cast<std::size_t>(used_ * (in() + out() + 1)) * sizeof(S); }

 private:
  void check_reserve() const {
    if (used_ != counted_) [[unlikely]]
      raise<StateError>("pith::IncreLoraAdapter::add_reserve: there is a reserve already; grow() first");
    if (max_rank() - used_ < options_.add) [[unlikely]]
      raise<CapacityError>("pith::IncreLoraAdapter: full (", used_, " of ", max_rank(), " components, ", options_.add,
                           " more are needed): construct it with a larger capacity");
  }

  void update_gain() {
    ++changes_;
    gain_.head(used_) = scale_ * lambda_.head(used_);
    fresh_lambda_.set(lambda_);
  }

  Matrix<S> down_, up_;
  Vector<S> lambda_, gain_;
  detail::Fresh<S> fresh_lambda_;
  IncreLoraOptions options_;
  Index initial_, counted_, used_;
  Index trained_counted_ = 0, trained_used_ = 0;
  S scale_ = 0;
  std::uint64_t changes_ = 0;
};

template <detail::EigenDense A, class E, class B> IncreLoraAdapter(const A&, const E&, const B&) -> IncreLoraAdapter<detail::scalar_t<A>>;
template <detail::EigenDense A, class E, class B>
IncreLoraAdapter(const A&, const E&, const B&, const IncreLoraOptions&) -> IncreLoraAdapter<detail::scalar_t<A>>;

/// A fresh adapter: A, B ~ N(0, 0.02²) and λ = 0.
template <class S = float, std::uniform_random_bit_generator Rng>
IncreLoraAdapter<S> fresh_increlora(Index in, Index out, Index rank, const IncreLoraOptions& options, Rng& rng) {
  const LoraFactors<S> f = fresh_factors<S>(in, out, rank, {.start = LoraStart::bert}, rng);
  return IncreLoraAdapter<S>(f.down, Vector<S>::Zero(rank).eval(), f.up, options);
}

}}  // namespace pith::v0
