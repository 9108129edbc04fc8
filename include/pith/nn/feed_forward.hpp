#pragma once
// Feed-forward blocks of a transformer: the plain block and SwiGLU.

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/activation.hpp>
#include <pith/nn/linear.hpp>

namespace pith { inline namespace v0 {

namespace detail {

inline constexpr Index feed_forward_tile = 64;  // tokens whose hidden rows are held at the same time

/// Calls tile(x, y, tokens) for one tile of tokens after another.
template <class S, class F> void in_tiles(ConstMatrixRef<S> x, MatrixRef<S> y, F&& tile) {
  for (Index t = 0; t < x.rows(); t += feed_forward_tile) {
    const Index tokens = (std::min)(feed_forward_tile, x.rows() - t);
    tile(ConstMatrixRef<S>(x.data() + t * x.outerStride(), tokens, x.cols(), x.outerStride()),
         MatrixRef<S>(y.data() + t * y.outerStride(), tokens, y.cols(), y.outerStride()), tokens);
  }
}

inline void check_chain(std::string_view where, std::string_view what, Index is, Index expected) {
  if (is != expected) [[unlikely]]
    raise<ShapeError>("pith::", where, ": ", what, " is ", is, ", expected ", expected, ": the layers do not fit one another");
}

}  // namespace detail

/// y = down(act(up(x))), the feed-forward block of a transformer. Both layers may be any LinearOp, such as an adapter around a Linear.
///
/// Shapes   up [in → hidden] · down [hidden → out] · x [tokens, in] · y [tokens, out]
/// Heap     none in forward(x, y, ws), given ws of workspace_bytes(tokens, workers), which holds hidden rows of at most 64 tokens
/// Throws   ShapeError if the layers or the shapes disagree
/// Law      a row's result depends on that row alone, bit for bit, if that holds for both layers
template <LinearOp Up = Linear<float>, LinearOp Down = Up, class Act = Gelu>
requires std::same_as<typename Up::Scalar, typename Down::Scalar> && Activation<Act, typename Up::Scalar>
class FeedForward {
 public:
  using Scalar = typename Up::Scalar;

  FeedForward(Up up, Down down, Act activation = {}) : up_(std::move(up)), down_(std::move(down)), activation_(std::move(activation)) {
    detail::check_chain("FeedForward", "in() of down", down_.in(), up_.out());
  }

  void forward(ConstMatrixRef<Scalar> x, MatrixRef<Scalar> y, Workspace& ws) const {
    check_shape("FeedForward", "x", x, any_extent, in());
    check_shape("FeedForward", "y", y, x.rows(), out());
    const Workspace::Scope scope(ws);
    Scalar* hidden = ws.take<Scalar>((std::min)(x.rows(), detail::feed_forward_tile) * up_.out());
    detail::in_tiles(x, y, [&](auto x_tile, auto y_tile, Index tokens) {
      const MatrixRef<Scalar> h(hidden, tokens, up_.out());
      up_.forward(x_tile, h, ws);
      activate(activation_, h);
      down_.forward(h, y_tile, ws);
    });
  }
  Matrix<Scalar> forward(ConstMatrixRef<Scalar> x) const { return detail::forward_alone(*this, x); }

  Index in() const { return up_.in(); }
  Index out() const { return down_.out(); }
  std::size_t bytes() const { return detail::bytes_of(up_) + detail::bytes_of(down_); }
  std::size_t workspace_bytes(Index tokens, Index workers = 1) const {
    const Index tile = (std::min)(tokens, detail::feed_forward_tile);
    return Workspace::bytes_for<Scalar>(tile, up_.out()) +
           (std::max)(detail::workspace_bytes_of(up_, tile, workers), detail::workspace_bytes_of(down_, tile, workers));
  }

  const Up& up() const { return up_; }
  Up& up() { return up_; }
  const Down& down() const { return down_; }
  Down& down() { return down_; }
  const Act& activation() const { return activation_; }

 private:
  Up up_;
  Down down_;
  Act activation_;
};

/// SwiGLU: y = down(silu(gate(x)) ∘ up(x)), the feed-forward block of the Llama family; GeGLU with GELU as the activation.
///
/// Shapes   gate, up [in → hidden] · down [hidden → out] · x [tokens, in] · y [tokens, out]
/// Heap     none in forward(x, y, ws), given ws of workspace_bytes(tokens, workers), which holds hidden rows of at most 64 tokens
/// Throws   ShapeError if the layers or the shapes disagree
/// Law      a row's result depends on that row alone, bit for bit, if that holds for the three layers
/// Paper    arXiv:2002.05202
template <LinearOp Gate = Linear<float>, LinearOp Up = Gate, LinearOp Down = Gate>
requires std::same_as<typename Gate::Scalar, typename Up::Scalar> && std::same_as<typename Gate::Scalar, typename Down::Scalar>
class SwiGlu {
 public:
  using Scalar = typename Gate::Scalar;

  SwiGlu(Gate gate, Up up, Down down, GateActivation activation = GateActivation::silu)
      : gate_(std::move(gate)), up_(std::move(up)), down_(std::move(down)), activation_(activation) {
    detail::check_chain("SwiGlu", "in() of up", up_.in(), gate_.in());
    detail::check_chain("SwiGlu", "out() of up", up_.out(), gate_.out());
    detail::check_chain("SwiGlu", "in() of down", down_.in(), gate_.out());
  }

  void forward(ConstMatrixRef<Scalar> x, MatrixRef<Scalar> y, Workspace& ws) const {
    check_shape("SwiGlu", "x", x, any_extent, in());
    check_shape("SwiGlu", "y", y, x.rows(), out());
    const Workspace::Scope scope(ws);
    const Index most = (std::min)(x.rows(), detail::feed_forward_tile);
    Scalar* gates = ws.take<Scalar>(most * gate_.out());
    Scalar* hidden = ws.take<Scalar>(most * up_.out());
    detail::in_tiles(x, y, [&](auto x_tile, auto y_tile, Index tokens) {
      const MatrixRef<Scalar> g(gates, tokens, gate_.out()), h(hidden, tokens, up_.out());
      gate_.forward(x_tile, g, ws);
      up_.forward(x_tile, h, ws);
      gate_mul(activation_, ConstMatrixRef<Scalar>(g), h, h);  // activation(gate(x)) ∘ up(x)
      down_.forward(h, y_tile, ws);
    });
  }
  Matrix<Scalar> forward(ConstMatrixRef<Scalar> x) const { return detail::forward_alone(*this, x); }

  Index in() const { return gate_.in(); }
  Index out() const { return down_.out(); }
  std::size_t bytes() const { return detail::bytes_of(gate_) + detail::bytes_of(up_) + detail::bytes_of(down_); }
  std::size_t workspace_bytes(Index tokens, Index workers = 1) const {
    const Index tile = (std::min)(tokens, detail::feed_forward_tile);
    return 2 * Workspace::bytes_for<Scalar>(tile, gate_.out()) +
           (std::max)({detail::workspace_bytes_of(gate_, tile, workers), detail::workspace_bytes_of(up_, tile, workers),
                       detail::workspace_bytes_of(down_, tile, workers)});
  }

  const Gate& gate() const { return gate_; }
  Gate& gate() { return gate_; }
  const Up& up() const { return up_; }
  Up& up() { return up_; }
  const Down& down() const { return down_; }
  Down& down() { return down_; }
  GateActivation activation() const { return activation_; }

 private:
  Gate gate_;
  Up up_;
  Down down_;
  GateActivation activation_;
};

}}  // namespace pith::v0
