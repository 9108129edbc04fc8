#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <pith/core/executor.hpp>
#include <pith/nn/linear.hpp>
#include <pith/peft/lora.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/products.hpp"
#include "support/random_matrix.hpp"

namespace pith_test {

/// What an adapter shows, in double: products of them are compiled once, not once for each kind of adapter.
struct ShownAdapter {
  pith::Matrix<double> down, up;
  pith::Vector<double> gain;
  double epsilon;  ///< of its scalar

  Eigen::Index rank() const { return down.rows(); }
  ShownAdapter turned() const { return {up, down, gain, epsilon}; }
};
template <pith::LowRankAdapter A> ShownAdapter shown(const A& adapter) {
  using S = typename A::Scalar;
  const pith::ConstMatrixRef<S> down = adapter.down_rows(), up = adapter.up_rows();
  const pith::ConstVectorRef<S> gain = adapter.gain();
  return {down.template cast<double>(), up.template cast<double>(), gain.template cast<double>(),
          double(std::numeric_limits<S>::epsilon())};
}

/// B diag(gain) A.
inline pith::Matrix<double> delta_of(const ShownAdapter& a) { return plain_product(with_scaled_columns(transposed(a.up), a.gain), a.down); }
template <pith::LowRankAdapter A> pith::Matrix<double> delta_of(const A& adapter) { return delta_of(shown(adapter)); }

/// Pivots that are more than rounding, by elimination with the largest of all that is left.
inline pith::Index rank_of(pith::Matrix<double> m) {
  const double least = m.size() == 0 ? 0 : double(m.rows() + m.cols()) * std::numeric_limits<double>::epsilon() * m.cwiseAbs().maxCoeff();
  for (pith::Index rank = 0;; ++rank) {
    if (rank == std::min(m.rows(), m.cols())) return rank;
    Eigen::Index r = 0, c = 0;
    if (!(m.bottomRightCorner(m.rows() - rank, m.cols() - rank).cwiseAbs().maxCoeff(&r, &c) > least)) return rank;
    m.row(rank).swap(m.row(rank + r));
    m.col(rank).swap(m.col(rank + c));
    for (Eigen::Index below = rank + 1; below < m.rows(); ++below) m.row(below) -= m(below, rank) / m(rank, rank) * m.row(rank).eval();
  }
}

/// What rounding in its scalar may do to x (W + B diag(gain) A)ᵀ + bias: each of the chains rounds once per term.
///
/// Shapes   as the result, [tokens, out]
inline pith::Matrix<double> adapted_bound(const pith::Matrix<double>& x, const pith::Matrix<double>& w, const pith::Vector<double>& bias,
                                          const ShownAdapter& a) {
  const pith::Matrix<double> t = times_transposed(magnitudes(x), magnitudes(a.down));
  pith::Matrix<double> size = plain_product(with_scaled_columns(t, magnitudes(a.gain).col(0)), magnitudes(a.up));
  size += times_transposed(magnitudes(x), magnitudes(w));
  if (bias.size() > 0) size = with_bias(size, bias.cwiseAbs());
  return size * (a.epsilon * double(x.cols() + a.rank() + 6));
}

/// x (W + delta)ᵀ + bias.
inline pith::Matrix<double> adapted(const pith::Matrix<double>& x, const pith::Matrix<double>& w, const pith::Matrix<double>& delta,
                                    const pith::Vector<double>& bias) {
  const pith::Matrix<double> y = times_transposed(x, w + delta);
  return bias.size() > 0 ? with_bias(y, bias) : y;
}

/// The laws of every LowRankAdapter around a layer, trained in any way.
///
///   1  forward(x) == x (W + delta)ᵀ + bias, up to rounding
///   2  merged().forward(x) == forward(x), up to rounding, and the base stays as it is, bit for bit
///   3  rank(delta) <= rank()
///   4  a token alone has the bits it has in a batch, on any number of workers
///   5  backward(dy) == dy (W + delta), up to rounding
template <pith::LowRankAdapter A> void check_adapter_laws(const A& adapter, std::uint64_t seed) {
  using S = typename A::Scalar;
  using pith::Index;
  const Index in = pith::ConstMatrixRef<S>(adapter.down_rows()).cols(), out = pith::ConstMatrixRef<S>(adapter.up_rows()).cols(), tokens = 7;
  const pith::Linear<S> base(random_matrix<S>(out, in, seed), random_vector<S>(out, seed + 1));
  const pith::Matrix<S> weight_before = base.weight(), x = random_matrix<S>(tokens, in, seed + 2),
                        dy = random_matrix<S>(tokens, out, seed + 3);
  const pith::LoraLinear layer(pith::LinearView{base}, adapter);
  INFO("rank " << adapter.rank() << " between " << in << " and " << out << ", seed " << seed);

  const ShownAdapter in_double = shown(adapter);
  const pith::Matrix<double> xd = x.template cast<double>(), w = base.weight().template cast<double>(), delta = delta_of(in_double);
  pith::Vector<double> bias = base.bias().template cast<double>();
  if (const pith::ConstVectorRef<S> more = pith::detail::scaled_bias_of(adapter); more.size() > 0) bias += more.template cast<double>();
  const pith::Matrix<double> expected = adapted(xd, w, delta, bias), bound = adapted_bound(xd, w, bias, in_double);
  const pith::Matrix<S> y = layer.forward(x);
  CHECK(near(y, expected, bound, seed));

  CHECK(near(layer.merged().forward(x), expected, bound, seed));
  CHECK(same_bits(base.weight(), weight_before));

  CHECK(rank_of(delta) <= adapter.rank());

  pith::ThreadPool two(2);
  pith::Workspace shared(layer.workspace_bytes(tokens, 2), two), alone(layer.workspace_bytes(1));
  pith::Matrix<S> in_batch(tokens, out), by_itself(1, out);
  layer.forward(x, in_batch, shared);
  CHECK(same_bits(in_batch, y));
  layer.forward(x.middleRows(4, 1), by_itself, alone);
  CHECK(same_bits(by_itself, y.middleRows(4, 1)));

  pith::Matrix<S> dx(tokens, in);
  pith::Workspace ws(layer.workspace_bytes(tokens));
  layer.backward(dy, dx, ws);
  const pith::Matrix<double> dyd = dy.template cast<double>();
  CHECK(near(dx, adapted(dyd, transposed(w), transposed(delta), {}), adapted_bound(dyd, transposed(w), {}, in_double.turned()), seed));
}

}  // namespace pith_test
