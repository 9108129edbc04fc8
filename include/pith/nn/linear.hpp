#pragma once
// Linear layers y = x Wᵀ + bias: Linear owns its matrix, LinearView borrows one, PackedLinear holds packed panels.

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/linear_op.hpp>
#include <pith/nn/matmul.hpp>
#include <pith/nn/packed.hpp>

namespace pith { inline namespace v0 {

namespace detail {
/// Bytes of workspace for forward (depth in) and backward (depth out).
template <class S> std::size_t dense_workspace_bytes(Index in, Index out, Index tokens, Index workers) {
  return matmul_workspace_bytes<S>(tokens, (std::max)(in, out), workers);
}
}  // namespace detail

/// y = x Wᵀ + bias; owns its weight and bias.
///
/// Shapes   weight [out, in] · bias [out] or empty · x [tokens, in] · y [tokens, out]
/// Cost     2·tokens·in·out flops
/// Heap     none in forward(x, y, ws) and backward(dy, dx, ws), given ws of workspace_bytes(tokens, workers)
/// Throws   ShapeError if the shapes disagree
/// Law      the same bits as LinearView and PackedLinear of the same numbers, for any number of tokens
template <class S = float> class Linear {
 public:
  using Scalar = S;

  Linear() = default;
  explicit Linear(Matrix<S> weight, Vector<S> bias = {}) : weight_(std::move(weight)), bias_(std::move(bias)) {
    detail::check_bias("Linear", weight_.rows(), bias_.size());
  }
  /// Does not compile: a column-major weight would be copied into another layout.
  template <detail::ColumnMajor W> explicit Linear(const W&, Vector<S> = {}) { detail::bindable<S, W>(); }

  void forward(ConstMatrixRef<S> x, MatrixRef<S> y, Workspace& ws) const { matmul(x, ConstMatrixRef<S>(weight_), bias(), y, ws); }
  Matrix<S> forward(ConstMatrixRef<S> x) const { return detail::forward_alone(*this, x); }
  /// dx = dy W: the gradient of the input. Shapes: dy [tokens, out] · dx [tokens, in]
  void backward(ConstMatrixRef<S> dy, MatrixRef<S> dx, Workspace& ws) const { matmul_transposed(dy, ConstMatrixRef<S>(weight_), dx, ws); }

  Index in() const { return weight_.cols(); }
  Index out() const { return weight_.rows(); }
  std::size_t bytes() const { return static_cast<std::size_t>(weight_.size() + bias_.size()) * sizeof(S); }
  std::size_t workspace_bytes(Index tokens, Index workers = 1) const {
    return detail::dense_workspace_bytes<S>(in(), out(), tokens, workers);
  }

  const Matrix<S>& weight() const { return weight_; }
  ConstVectorRef<S> bias() const { return bias_; }
  void copy_weight(Index first_row, MatrixRef<S> rows) const { detail::copy_rows("Linear", ConstMatrixRef<S>(weight_), first_row, rows); }

 private:
  Matrix<S> weight_;
  Vector<S> bias_;
};

/// y = x Wᵀ + bias over a weight and bias that the caller owns and that must outlive the view. T, the stored type, may be narrower than S.
///
/// Shapes   weight [out, in], any row stride · bias [out] or empty
template <class S = float, class T = S> class LinearView {
  static_assert(std::is_same_v<S, arithmetic_t<T>>, "pith: bfloat16 and half weights are computed in float");

 public:
  using Scalar = S;

  LinearView() = default;
  explicit LinearView(ConstMatrixRef<T> weight, ConstVectorRef<S> bias = {}) : weight_(weight), bias_(bias) {
    detail::check_bias("LinearView", weight.rows(), bias.size());
  }
  explicit LinearView(const Linear<S>& linear) requires std::same_as<S, T> : LinearView(linear.weight(), linear.bias()) {}
  LinearView(Linear<S>&&) = delete;  // the view would outlive its layer
  template <detail::OwningTemporary W> explicit LinearView(W&&) = delete;
  template <class W, class B>
  requires(detail::OwningTemporary<W> || detail::OwningTemporary<B>) LinearView(W&&, B&&)
  = delete;
  LinearView(const LinearView&) = default;
  LinearView& operator=(const LinearView& other) {  // assigning a map would copy its numbers: bind it again instead
    std::construct_at(&weight_, other.weight_);
    std::construct_at(&bias_, other.bias_);
    return *this;
  }

  void forward(ConstMatrixRef<S> x, MatrixRef<S> y, Workspace& ws) const { matmul(x, weight_, bias_, y, ws); }
  Matrix<S> forward(ConstMatrixRef<S> x) const { return detail::forward_alone(*this, x); }
  void backward(ConstMatrixRef<S> dy, MatrixRef<S> dx, Workspace& ws) const { matmul_transposed(dy, weight_, dx, ws); }

  Index in() const { return weight_.cols(); }
  Index out() const { return weight_.rows(); }
  std::size_t bytes() const {
    return static_cast<std::size_t>(weight_.size()) * sizeof(T) + static_cast<std::size_t>(bias_.size()) * sizeof(S);
  }
  std::size_t workspace_bytes(Index tokens, Index workers = 1) const {
    return detail::dense_workspace_bytes<S>(in(), out(), tokens, workers);
  }

  ConstMatrixRef<T> weight() const { return weight_; }
  ConstVectorRef<S> bias() const { return bias_; }
  void copy_weight(Index first_row, MatrixRef<S> rows) const { detail::copy_rows("LinearView", weight_, first_row, rows); }

 private:
  ConstMatrixRef<T> weight_;
  ConstVectorRef<S> bias_;
};

template <class S> LinearView(const Linear<S>&) -> LinearView<S, S>;
template <detail::EigenDense W> LinearView(const W&) -> LinearView<arithmetic_t<detail::scalar_t<W>>, detail::scalar_t<W>>;
template <detail::EigenDense W, class B>
LinearView(const W&, const B&) -> LinearView<arithmetic_t<detail::scalar_t<W>>, detail::scalar_t<W>>;

/// y = x Wᵀ + bias over panels packed once: the form for decoding, where reading the weights takes all the time. Copies share the panels.
///
/// Heap     at construction only
template <class S = float, class T = S> class PackedLinear {
  static_assert(std::is_same_v<S, arithmetic_t<T>>, "pith: bfloat16 and half weights are computed in float");

 public:
  using Scalar = S;

  PackedLinear() = default;
  explicit PackedLinear(PackedWeight<T> weight, Vector<S> bias = {}) : weight_(std::move(weight)), bias_(std::move(bias)) {
    detail::check_bias("PackedLinear", weight_.out(), bias_.size());
  }
  explicit PackedLinear(ConstMatrixRef<T> weight, ConstVectorRef<S> bias = {})
      : PackedLinear((detail::check_bias("PackedLinear", weight.rows(), bias.size()), PackedWeight<T>(weight)), Vector<S>(bias)) {}
  explicit PackedLinear(const Linear<S>& linear) requires std::same_as<S, T> : PackedLinear(linear.weight(), linear.bias()) {}

  void forward(ConstMatrixRef<S> x, MatrixRef<S> y, Workspace& ws) const { matmul(x, weight_, bias(), y, ws); }
  Matrix<S> forward(ConstMatrixRef<S> x) const { return detail::forward_alone(*this, x); }

  Index in() const { return weight_.in(); }
  Index out() const { return weight_.out(); }
  std::size_t bytes() const { return weight_.bytes() + static_cast<std::size_t>(bias_.size()) * sizeof(S); }
  std::size_t workspace_bytes(Index tokens, Index workers = 1) const {
    return detail::dense_workspace_bytes<S>(in(), out(), tokens, workers);
  }

  const PackedWeight<T>& weight() const { return weight_; }
  ConstVectorRef<S> bias() const { return bias_; }
  void copy_weight(Index first_row, MatrixRef<S> rows) const { weight_.copy_rows(first_row, rows); }

 private:
  PackedWeight<T> weight_;
  Vector<S> bias_;
};

template <class S> PackedLinear(const Linear<S>&) -> PackedLinear<S, S>;
template <class T> PackedLinear(PackedWeight<T>) -> PackedLinear<arithmetic_t<T>, T>;
template <class T, class B> PackedLinear(PackedWeight<T>, const B&) -> PackedLinear<arithmetic_t<T>, T>;
template <detail::EigenDense W> PackedLinear(const W&) -> PackedLinear<arithmetic_t<detail::scalar_t<W>>, detail::scalar_t<W>>;
template <detail::EigenDense W, class B>
PackedLinear(const W&, const B&) -> PackedLinear<arithmetic_t<detail::scalar_t<W>>, detail::scalar_t<W>>;

/// Any LinearOp behind one type and one virtual call; a decoder holds its layers in it. Copies share the same immutable layer.
///
/// Heap     once, when it is made from a layer
/// Throws   StateError if it is empty and any member but empty() is called; UnsupportedError if the layer lacks the member called
template <class S = float> class AnyLinear {
 public:
  using Scalar = S;

  AnyLinear() = default;
  /// Holds `keep_alive` as long as the layer: for example the file mapping under a LinearView.
  template <class L>
  requires(!std::same_as<std::remove_cvref_t<L>, AnyLinear> && LinearOp<std::remove_cvref_t<L>>)
      AnyLinear(L&& op, std::shared_ptr<const void> keep_alive = {})
      : op_(std::make_shared<const Holder<std::remove_cvref_t<L>>>(std::forward<L>(op), std::move(keep_alive))) {
    static_assert(std::same_as<typename std::remove_cvref_t<L>::Scalar, S>, "pith: the layer computes in another scalar");
  }

  bool empty() const { return op_ == nullptr; }
  Index in() const { return op().in(); }
  Index out() const { return op().out(); }
  void forward(ConstMatrixRef<S> x, MatrixRef<S> y, Workspace& ws) const { op().forward(x, y, ws); }
  Matrix<S> forward(ConstMatrixRef<S> x) const { return detail::forward_alone(*this, x); }
  void backward(ConstMatrixRef<S> dy, MatrixRef<S> dx, Workspace& ws) const { op().backward(dy, dx, ws); }
  std::size_t bytes() const { return op().bytes(); }
  std::size_t workspace_bytes(Index tokens, Index workers = 1) const { return op().workspace_bytes(tokens, workers); }
  ConstVectorRef<S> bias() const { return op().bias(); }
  void copy_weight(Index first_row, MatrixRef<S> rows) const { op().copy_weight(first_row, rows); }

 private:
  struct Op {
    virtual ~Op() = default;
    virtual Index in() const = 0;
    virtual Index out() const = 0;
    virtual void forward(ConstMatrixRef<S> x, MatrixRef<S> y, Workspace& ws) const = 0;
    virtual void backward(ConstMatrixRef<S> dy, MatrixRef<S> dx, Workspace& ws) const = 0;
    virtual std::size_t bytes() const = 0;
    virtual std::size_t workspace_bytes(Index tokens, Index workers) const = 0;
    virtual ConstVectorRef<S> bias() const = 0;
    virtual void copy_weight(Index first_row, MatrixRef<S> rows) const = 0;
  };

  template <class L> struct Holder final : Op {
    Holder(const L& layer, std::shared_ptr<const void> alive) : keep_alive(std::move(alive)), op(layer) {}
    Holder(L&& layer, std::shared_ptr<const void> alive) : keep_alive(std::move(alive)), op(std::move(layer)) {}
    Index in() const override { return op.in(); }
    Index out() const override { return op.out(); }
    void forward(ConstMatrixRef<S> x, MatrixRef<S> y, Workspace& ws) const override { op.forward(x, y, ws); }
    void backward(ConstMatrixRef<S> dy, MatrixRef<S> dx, Workspace& ws) const override {
      if constexpr (requires { op.backward(dy, dx, ws); }) {
        op.backward(dy, dx, ws);
      } else {
        raise<UnsupportedError>("pith::AnyLinear::backward: this layer has no backward(); train over a Linear or a LinearView");
      }
    }
    std::size_t bytes() const override { return detail::bytes_of(op); }
    std::size_t workspace_bytes(Index tokens, Index workers) const override { return detail::workspace_bytes_of(op, tokens, workers); }
    ConstVectorRef<S> bias() const override {
      if constexpr (DenseLinear<L>) return op.bias();
      raise<UnsupportedError>("pith::AnyLinear::bias: this layer does not show its numbers; use one with copy_weight() and bias()");
    }
    void copy_weight(Index first_row, MatrixRef<S> rows) const override {
      if constexpr (DenseLinear<L>) return op.copy_weight(first_row, rows);
      raise<UnsupportedError>("pith::AnyLinear::copy_weight: this layer does not show its numbers; use one with copy_weight() and bias()");
    }
    std::shared_ptr<const void> keep_alive;  // outlives op
    L op;
  };

  const Op& op() const {
    if (!op_) [[unlikely]]
      raise<StateError>("pith::AnyLinear: empty; assign a Linear, LinearView or PackedLinear to it first");
    return *op_;
  }

  std::shared_ptr<const Op> op_;
};

template <class L>
requires LinearOp<L> AnyLinear(L)
->AnyLinear<typename L::Scalar>;
template <class L>
requires LinearOp<L> AnyLinear(L, std::shared_ptr<const void>)
->AnyLinear<typename L::Scalar>;

}}  // namespace pith::v0
