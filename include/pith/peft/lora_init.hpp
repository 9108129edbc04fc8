#pragma once
// The initial values of a fresh adapter: B = 0, A ~ N(0, σ²), and other published starts.

#include <cmath>
#include <random>

#include <pith/core/check.hpp>
#include <pith/core/products.hpp>
#include <pith/core/random.hpp>
#include <pith/core/view.hpp>
#include <pith/peft/lora.hpp>

namespace pith { inline namespace v0 {

/// The initial values of a fresh adapter. B = 0 unless stated, so that the layer starts as its base.
enum class LoraStart {
  normal,      ///< A ~ N(0, σ²), as in the LoRA paper
  kaiming,     ///< A uniform in ±1/√in for every rank: the default of loralib and PEFT, `lora` of adapters
  gaussian,    ///< A ~ N(0, 1/rank²), as in PEFT
  uniform,     ///< A uniform in ±1/√in, B in ±1/√rank: PEFT's init_lora_weights = false, for tests
  bert,        ///< A, B ~ N(0, σ²): `bert` of adapters; with Λ = 0, the start of AdaLoRA and IncreLoRA
  orthogonal,  ///< A and B random over two halves of one orthogonal basis: B A = 0, and both train from the first step
};

struct LoraInit {
  LoraStart start = LoraStart::normal;
  double sigma = 0.02;  ///< of `normal` and `bert`
};

/// The factors A [rank, in] and B [out, rank].
template <class S> struct LoraFactors { Matrix<S> down, up; };

namespace detail {

template <class S, std::uniform_random_bit_generator Rng> void fill_normal(MatrixRef<S> m, double sigma, Rng& rng) {
  for (Index r = 0; r < m.rows(); ++r)
    for (Index c = 0; c < m.cols(); ++c) m(r, c) = static_cast<S>(sigma * normal<double>(rng));
}
template <class S, std::uniform_random_bit_generator Rng> void fill_uniform(MatrixRef<S> m, double bound, Rng& rng) {
  for (Index r = 0; r < m.rows(); ++r)
    for (Index c = 0; c < m.cols(); ++c) m(r, c) = static_cast<S>(bound * (2 * canonical<double>(rng) - 1));
}

/// A random orthogonal matrix, by Gram-Schmidt with two sweeps for each row.
template <std::uniform_random_bit_generator Rng> Matrix<double> orthogonal_rows(Index n, Rng& rng) {
  Matrix<double> q(n, n);
  for (Index r = 0; r < n; ++r) {
    double left = 0;
    while (!(left > 1e-6)) {  // draws again if the row depends on the rows before it
      fill_normal<double>(q.row(r), 1, rng);
      q.row(r).normalize();
      for (int sweep = 0; sweep < 2; ++sweep) {
        for (Index s = 0; s < r; ++s) q.row(r) -= q.row(r).dot(q.row(s)) * q.row(s);
        if (sweep == 0) left = q.row(r).norm();
        q.row(r).normalize();
      }
    }
  }
  return q;
}

}  // namespace detail

/// Draws the factors of a fresh adapter: A first, row by row.
///
/// Throws   ShapeError for negative sizes, a σ below 0 or not finite, or an odd rank with LoraStart::orthogonal
template <class S = float, std::uniform_random_bit_generator Rng>
LoraFactors<S> fresh_factors(Index in, Index out, Index rank, const LoraInit& init, Rng& rng) {
  if (in < 0 || out < 0 || rank < 0 || !(init.sigma >= 0) || !std::isfinite(init.sigma)) [[unlikely]]
    raise<ShapeError>("pith::fresh_factors: rank ", rank, " between ", in, " and ", out, " features with a sigma of ", init.sigma,
                      ": expected nothing negative or infinite");
  detail::checked_product("fresh_factors", rank, in);
  detail::checked_product("fresh_factors", rank, out);
  if (init.start == LoraStart::orthogonal && rank % 2 != 0) [[unlikely]]
    raise<ShapeError>("pith::fresh_factors: an orthogonal start splits the rank in halves, and ", rank, " is odd");
  LoraFactors<S> f{Matrix<S>(rank, in), Matrix<S>::Zero(out, rank)};
  const double per_in = in > 0 ? 1 / std::sqrt(double(in)) : 0, per_rank = rank > 0 ? 1 / std::sqrt(double(rank)) : 0;
  switch (init.start) {
    case LoraStart::normal:
      detail::fill_normal<S>(f.down, init.sigma, rng);
      break;
    case LoraStart::kaiming:
      detail::fill_uniform<S>(f.down, per_in, rng);
      break;
    case LoraStart::gaussian:
      detail::fill_normal<S>(f.down, rank > 0 ? 1 / double(rank) : 0, rng);
      break;
    case LoraStart::uniform:
      detail::fill_uniform<S>(f.down, per_in, rng);
      detail::fill_uniform<S>(f.up, per_rank, rng);
      break;
    case LoraStart::bert:
      detail::fill_normal<S>(f.down, init.sigma, rng);
      detail::fill_normal<S>(f.up, init.sigma, rng);
      break;
    case LoraStart::orthogonal: {
      const Index half = rank / 2;
      const Matrix<double> q = detail::orthogonal_rows(rank, rng);
      Matrix<double> a(half, in), b(out, half);
      detail::fill_normal<double>(a, 0.1, rng);
      detail::fill_normal<double>(b, 0.1, rng);
      f.down = detail::transposed_times<double>(q.topRows(half), a).template cast<S>();
      f.up = detail::times<double>(b, q.bottomRows(half)).template cast<S>();
      break;
    }
  }
  return f;
}

/// A fresh, untrained LoRA adapter.
///
/// Throws   as fresh_factors() and LoraAdapter
template <class S = float, std::uniform_random_bit_generator Rng>
LoraAdapter<S> fresh_lora(Index in, Index out, Index rank, const LoraOptions& options, const LoraInit& init, Rng& rng) {
  const LoraFactors<S> f = fresh_factors<S>(in, out, rank, init, rng);
  return LoraAdapter<S>(f.down, f.up, options);
}

}}  // namespace pith::v0
