#pragma once
// Activation functions: SiLU, GELU and its approximations, ReLU, tanh, and SwiGLU's silu(gate) ∘ up.

#include <cmath>
#include <concepts>
#include <cstdint>
#include <numbers>
#include <type_traits>

#include <pith/core/check.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/view.hpp>

namespace pith { inline namespace v0 {

/// A function of one number. Optional members: `template <class S> packets(p)`, the same function of a packet, bit for bit;
/// derivative(z), for training.
template <class A, class S>
concept Activation = requires(const A a, S z) {
  { a(z) } -> std::same_as<S>;
};

namespace detail {

template <class S> using packet_t = typename Simd<S>::Packet;

/// 1 / (1 + e^-z), computed from e^-|z|: it overflows at neither end, and far out it is exactly 0 or 1.
template <class S> packet_t<S> sigmoid(packet_t<S> z) {
  using V = Simd<S>;
  const packet_t<S> one = V::broadcast(S(1)), e = V::exp_down(V::sub(V::zero(), V::abs(z)));
  return V::div(V::select(V::less(z, V::zero()), e, one), V::add(one, e));
}

/// z · sigmoid(z)
template <class S> packet_t<S> silu(packet_t<S> z) { return Simd<S>::mul(z, sigmoid<S>(z)); }

/// √(2/π) (z + 0.044715 z³), the argument of tanh in the tanh form of GELU.
template <class S> packet_t<S> gelu_argument(packet_t<S> z) {
  using V = Simd<S>;
  constexpr S root = S(0.79788456080286535588), cubic = root * S(0.044715);
  return V::mul(z, V::madd(V::broadcast(cubic), V::mul(z, z), V::broadcast(root)));
}

/// cap · tanh(z / cap), with tanh |u| = (1 - e^-2|u|) / (1 + e^-2|u|); `per_cap`: 1 / cap.
template <class S> packet_t<S> soft_cap(packet_t<S> z, packet_t<S> cap, packet_t<S> per_cap) {
  using V = Simd<S>;
  const packet_t<S> one = V::broadcast(S(1)), u = V::mul(z, per_cap);
  const packet_t<S> e = V::exp_down(V::mul(V::broadcast(S(-2)), V::abs(u)));
  const packet_t<S> t = V::mul(cap, V::div(V::sub(one, e), V::add(one, e)));
  return V::select(V::less(u, V::zero()), V::sub(V::zero(), t), t);
}

template <class S> S of_one(packet_t<S> p) { return Simd<S>::first(p); }

}  // namespace detail

/// SiLU: z / (1 + e^-z), the gate of Llama's feed-forward block.
///
/// Paper    arXiv:1702.03118
struct Silu {
  template <std::floating_point S> S operator()(S z) const { return detail::of_one<S>(packets<S>(detail::Simd<S>::broadcast(z))); }
  template <std::floating_point S> S derivative(S z) const {
    const S s = detail::of_one<S>(detail::sigmoid<S>(detail::Simd<S>::broadcast(z)));
    return s * (S(1) + z * (S(1) - s));
  }
  template <class S> detail::packet_t<S> packets(detail::packet_t<S> z) const { return detail::silu<S>(z); }
};

/// GELU: z Φ(z), with the exact normal distribution Φ (`gelu` in config.json).
///
/// Paper    arXiv:1606.08415
struct Gelu {
  template <std::floating_point S> S operator()(S z) const { return z * S(0.5) * std::erfc(-z * (std::numbers::sqrt2_v<S> / S(2))); }
  template <std::floating_point S> S derivative(S z) const {
    constexpr S density = std::numbers::inv_sqrtpi_v<S> / std::numbers::sqrt2_v<S>;  // 1 / √(2π)
    return S(0.5) * std::erfc(-z * (std::numbers::sqrt2_v<S> / S(2))) + z * density * std::exp(S(-0.5) * z * z);
  }
};

/// GELU's tanh form: 0.5 z (1 + tanh(√(2/π) (z + 0.044715 z³))) (`gelu_new` and `gelu_pytorch_tanh`).
struct GeluTanh {
  template <std::floating_point S> S operator()(S z) const { return detail::of_one<S>(packets<S>(detail::Simd<S>::broadcast(z))); }
  template <std::floating_point S> S derivative(S z) const {
    const detail::packet_t<S> u = detail::gelu_argument<S>(detail::Simd<S>::broadcast(z));
    const S s = detail::of_one<S>(detail::sigmoid<S>(detail::Simd<S>::add(u, u)));
    constexpr S root = S(0.79788456080286535588);
    return s + z * S(2) * s * (S(1) - s) * root * (S(1) + S(3) * S(0.044715) * z * z);
  }
  template <class S> detail::packet_t<S> packets(detail::packet_t<S> z) const {  // (1 + tanh u) / 2 = sigmoid(2u)
    const detail::packet_t<S> u = detail::gelu_argument<S>(z);
    return detail::Simd<S>::mul(z, detail::sigmoid<S>(detail::Simd<S>::add(u, u)));
  }
};

/// GELU's sigmoid form: z · sigmoid(1.702 z) (`quick_gelu`), as CLIP has it.
///
/// Paper    arXiv:1606.08415
struct QuickGelu {
  template <std::floating_point S> S operator()(S z) const { return detail::of_one<S>(packets<S>(detail::Simd<S>::broadcast(z))); }
  template <std::floating_point S> S derivative(S z) const {
    const S s = detail::of_one<S>(detail::sigmoid<S>(detail::Simd<S>::broadcast(S(1.702) * z)));
    return s * (S(1) + S(1.702) * z * (S(1) - s));
  }
  template <class S> detail::packet_t<S> packets(detail::packet_t<S> z) const {
    return detail::Simd<S>::mul(z, detail::sigmoid<S>(detail::Simd<S>::mul(detail::Simd<S>::broadcast(S(1.702)), z)));
  }
};

/// ReLU: max(z, 0); NaN stays NaN.
struct Relu {
  template <std::floating_point S> S operator()(S z) const { return z < S(0) ? S(0) : z; }
  template <std::floating_point S> S derivative(S z) const { return z > S(0) ? S(1) : S(0); }
  template <class S> detail::packet_t<S> packets(detail::packet_t<S> z) const {
    return detail::Simd<S>::select(detail::Simd<S>::less(z, detail::Simd<S>::zero()), detail::Simd<S>::zero(), z);
  }
};

/// tanh: (e^z − e^-z) / (e^z + e^-z)
struct Tanh {
  template <std::floating_point S> S operator()(S z) const { return std::tanh(z); }
  template <std::floating_point S> S derivative(S z) const {
    const S t = std::tanh(z);
    return S(1) - t * t;
  }
};

/// Applies an activation to every number, in place.
///
/// Law      a number's result depends on that number alone, bit for bit: not on its place or its neighbours
template <class S, Activation<S> A> void activate(const A& activation, MatrixRef<S> x) {
  for (Index t = 0; t < x.rows(); ++t) {
    S* row = x.data() + t * x.outerStride();
    if constexpr (requires(detail::packet_t<S> p) { activation.template packets<S>(p); }) {
      detail::map_packets(row, row, x.cols(), [&](detail::packet_t<S> z) { return activation.template packets<S>(z); });
    } else {
      for (Index c = 0; c < x.cols(); ++c) row[c] = activation(row[c]);
    }
  }
}

/// Caps every number smoothly, in place: z ← cap·tanh(z/cap).
///
/// Throws   ShapeError unless cap is finite and > 0
/// Law      as activate()
template <class S> void soft_cap(S cap, std::type_identity_t<MatrixRef<S>> x) {
  if (!(cap > S(0)) || !std::isfinite(cap)) raise<ShapeError>("pith::soft_cap: cap is ", cap, ", expected a finite number > 0");
  const auto whole = detail::Simd<S>::broadcast(cap), part = detail::Simd<S>::broadcast(S(1) / cap);
  for (Index t = 0; t < x.rows(); ++t) {
    S* row = x.data() + t * x.outerStride();
    detail::map_packets(row, row, x.cols(), [&](detail::packet_t<S> z) { return detail::soft_cap<S>(z, whole, part); });
  }
}

/// The activation of a gated feed-forward block.
enum class GateActivation : std::uint8_t {
  silu,       ///< SwiGLU
  gelu_tanh,  ///< GeGLU with GELU's tanh form
  gelu,       ///< GeGLU with the exact GELU
};

namespace detail {

template <class S, class A>
void activate_mul(const A& activation, const ConstMatrixRef<S>& gate, const ConstMatrixRef<S>& up, const MatrixRef<S>& out) {
  for (Index t = 0; t < gate.rows(); ++t) {
    const S* g = gate.data() + t * gate.outerStride();
    const S* u = up.data() + t * up.outerStride();
    S* to = const_cast<S*>(out.data()) + t * out.outerStride();
    if constexpr (requires(packet_t<S> p) { activation.template packets<S>(p); }) {
      map_packets(g, u, to, gate.cols(), [&](packet_t<S> a, packet_t<S> b) { return Simd<S>::mul(activation.template packets<S>(a), b); });
    } else {
      for (Index c = 0; c < gate.cols(); ++c) to[c] = activation(g[c]) * u[c];
    }
  }
}

}  // namespace detail

/// out = activation(gate) ∘ up, the middle step of a gated feed-forward block.
///
/// Shapes   gate, up, out [tokens, features]; out may be gate or up
/// Throws   ShapeError if they disagree
/// Law      as activate()
/// Paper    arXiv:2002.05202
template <class S>
void gate_mul(GateActivation activation, ConstMatrixRef<S> gate, std::type_identity_t<ConstMatrixRef<S>> up,
              std::type_identity_t<MatrixRef<S>> out) {
  check_shape("gate_mul", "up", up, gate.rows(), gate.cols());
  check_shape("gate_mul", "out", out, gate.rows(), gate.cols());
  if (activation == GateActivation::silu) return detail::activate_mul<S>(Silu{}, gate, up, out);
  if (activation == GateActivation::gelu_tanh) return detail::activate_mul<S>(GeluTanh{}, gate, up, out);
  detail::activate_mul<S>(Gelu{}, gate, up, out);
}

/// out = silu(gate) ∘ up, the middle step of SwiGLU: gate_mul() with silu.
template <class S>
void silu_mul(ConstMatrixRef<S> gate, std::type_identity_t<ConstMatrixRef<S>> up, std::type_identity_t<MatrixRef<S>> out) {
  check_shape("silu_mul", "up", up, gate.rows(), gate.cols());
  check_shape("silu_mul", "out", out, gate.rows(), gate.cols());
  detail::activate_mul<S>(Silu{}, gate, up, out);
}

}}  // namespace pith::v0
