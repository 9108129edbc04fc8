#pragma once

#include <algorithm>
#include <cstddef>

#include <pith/core/check.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/detail/matmul_kernel.hpp>

// y += (x Aᵀ) diag(gain) Bᵀ: dot products with the rows of A, then a stream or panels of Bᵀ.

namespace pith { inline namespace v0 { namespace detail {

inline constexpr Index few_tokens = 3;  // up to this many tokens read B in place; for more, its panels are copied to L1

/// The components with a gain other than 0, by their rows in A and Bᵀ.
template <class T> struct Components {
  const T* down;
  const T* up;
  Index down_stride, up_stride, in, out;
  const Index* row;  // [count] ascending
  Index count;
  const T* a(Index i) const { return down + row[i] * down_stride; }
  const T* b(Index i) const { return up + row[i] * up_stride; }
};

/// Simd<S>::load(), one number after the other where S has no instruction for a T.
template <class S, class T> typename Simd<S>::Packet load_widened(const T* p) {
  if constexpr (requires { Simd<S>::load(p); }) {
    return Simd<S>::load(p);
  } else {
    return Simd<S>::load_each(p);
  }
}

/// Dot products of Tokens rows of x with Rows rows of A. Each has its own accumulator, whose lanes run along `in`, so that no bit depends
/// on the shape of the tile.
template <int Tokens, int Rows, class S, class T>
void dot_tile(const S* x, Index x_stride, const T* const (&a)[std::size_t(Rows)], Index in, S (&sums)[std::size_t(Tokens * Rows)]) {
  using V = Simd<S>;
  typename V::Packet sum[std::size_t(Tokens * Rows)];
  for (auto& s : sum) s = V::zero();
  Index k = 0;
  for (; k + V::width <= in; k += V::width) {
    typename V::Packet xs[std::size_t(Tokens)];
#pragma GCC unroll 16
    for (int t = 0; t < Tokens; ++t) xs[t] = V::load(x + t * x_stride + k);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const typename V::Packet ar = load_widened<S>(a[r] + k);
#pragma GCC unroll 16
      for (int t = 0; t < Tokens; ++t) sum[t * Rows + r] = V::madd(xs[t], ar, sum[t * Rows + r]);
    }
  }
  if (k < in) {
    for (int r = 0; r < Rows; ++r) {
      const typename V::Packet ar = V::load_part(a[r] + k, in - k, S(0));
      for (int t = 0; t < Tokens; ++t) sum[t * Rows + r] = V::madd(V::load_part(x + t * x_stride + k, in - k, S(0)), ar, sum[t * Rows + r]);
    }
  }
  for (int i = 0; i < Tokens * Rows; ++i) sums[i] = V::sum(sum[i]);
}

/// t = (x Aᵀ) diag(gain) for components [rows.begin, rows.end) and `tokens` rows of x, at most Most in one tile.
template <int Most, class S, class T>
void dots(const S* x, Index x_stride, Index tokens, const Components<T>& c, Share rows, const S* gain, S* t, Index t_stride) {
  if constexpr (Most > 1) {
    if (tokens < Most) return dots<Most - 1>(x, x_stride, tokens, c, rows, gain, t, t_stride);
  }
  constexpr int together = Most == 1 ? 8 : 4;
  for (Index r = rows.begin; r < rows.end; r += together) {
    const T* a[std::size_t(together)];
    for (int i = 0; i < together; ++i) a[i] = c.a((std::min)(r + i, rows.end - 1));  // rows past the end repeat the last row
    S sums[std::size_t(Most * together)];
    dot_tile<Most, together>(x, x_stride, a, c.in, sums);
    for (Index i = 0; i < (std::min<Index>)(together, rows.end - r); ++i)
      for (int token = 0; token < Most; ++token) t[token * t_stride + r + i] = gain[c.row[r + i]] * sums[token * together + i];
  }
}

/// y[columns] += Σ tᵢ bᵢ over Rows components, in ascending order.
template <int Rows, class S, class T> void add_rows(const S* t, const Components<T>& c, Index first, Share columns, S* y) {
  using V = Simd<S>;
  const T* b[std::size_t(Rows)];
  typename V::Packet weight[std::size_t(Rows)];
  for (int i = 0; i < Rows; ++i) b[i] = c.b(first + i), weight[i] = V::broadcast(t[first + i]);
  Index k = columns.begin;
  for (; k + V::width <= columns.end; k += V::width) {
    typename V::Packet sum = V::load(y + k);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) sum = V::madd(load_widened<S>(b[i] + k), weight[i], sum);
    V::store(y + k, sum);
  }
  if (const Index rest = columns.end - k; rest > 0) {
    typename V::Packet sum = V::load_part(y + k, rest, S(0));
    for (int i = 0; i < Rows; ++i) sum = V::madd(V::load_part(b[i] + k, rest, S(0)), weight[i], sum);
    V::store_part(y + k, rest, sum);
  }
}

/// y += t Bᵀ for one row of y, which stays in L1 while Bᵀ streams by.
template <class S, class T> void add_streamed(const S* t, const Components<T>& c, Share columns, S* y) {
  Index i = 0;
  for (; i + 8 <= c.count; i += 8) add_rows<8>(t, c, i, columns, y);
  for (; i + 4 <= c.count; i += 4) add_rows<4>(t, c, i, columns, y);
  for (; i < c.count; ++i) add_rows<1>(t, c, i, columns, y);
}

/// y += t Bᵀ for all rows of t, in panels of Bᵀ that are copied to `panel`: the chains of matmul(), starting from y.
template <class S, class T>
void add_panels(const S* t, Index t_stride, const Components<T>& c, Share panels, const Product<S>& o, S* panel) {
  for (Index p = panels.begin; p < panels.end; ++p) {
    const Index column = p * panel_width, columns = (std::min)(panel_width, o.out - column);
    for (Index i = 0; i < c.count; ++i) {
      std::transform(c.b(i) + column, c.b(i) + column + columns, panel + i * panel_width, [](T v) { return S(widen(v)); });
      std::fill_n(panel + i * panel_width + columns, panel_width - columns, S(0));
    }
    panel_rows(o, p, 0, o.tokens, t, t_stride, panel, c.count, false, panel, 0);
  }
}

/// The update of at most token_block rows of y.
template <class S, class T>
void low_rank_block(const Product<S>& o, const Components<T>& c, const S* gain, S* t, S* panel, ExecutorRef executor) {
  const auto workers = [&](Index width) {
    return double(o.tokens) * double(c.count) * double(width) < worth_waking ? Index{1} : executor.size();
  };
  const Index by_dots = workers(c.in);
  executor(by_dots, [&](Index i) {
    const bool split_rows = o.tokens < by_dots;
    const Share rows = split_rows ? share(c.count, i, by_dots) : Share{0, c.count};
    const Share tokens = split_rows ? Share{0, o.tokens} : share(o.tokens, i, by_dots);
    constexpr Index most = TileShape<S>::budget / 4;
    for (Index token = tokens.begin; token < tokens.end && rows.begin < rows.end; token += most)
      dots<int(most)>(o.x + token * o.x_stride, o.x_stride, (std::min)(most, tokens.end - token), c, rows, gain, t + token * c.count,
                      c.count);
  });
  const Index by_panels = workers(o.out), panels = (o.out + panel_width - 1) / panel_width;
  executor(by_panels, [&](Index i) {
    const Share mine = share(panels, i, by_panels);
    if (o.tokens > few_tokens) return add_panels(t, c.count, c, mine, o, panel + i * c.count * panel_width);
    const Share columns{mine.begin * panel_width, (std::min)(o.out, mine.end * panel_width)};
    for (Index token = 0; token < o.tokens; ++token) add_streamed(t + token * c.count, c, columns, o.y + token * o.y_stride);
  });
}

/// add_low_rank() after the checks.
///
/// Shapes   t [min(tokens, token_block) · rank] · row [rank] · panel [workers · rank · 32], or nullptr for few tokens
template <class S, class T>
void add_components(ConstMatrixRef<S> x, ConstMatrixRef<T> down, ConstMatrixRef<T> up, ConstVectorRef<S> gain, MatrixRef<S> y, S* t,
                    Index* row, S* panel, ExecutorRef executor) {
  Components<T> c{down.data(), up.data(), down.outerStride(), up.outerStride(), x.cols(), y.cols(), row, 0};
  for (Index r = 0; r < down.rows(); ++r)
    if (gain[r] != S(0)) row[c.count++] = r;
  if (c.count == 0) return;
  for (Index first = 0; first < x.rows(); first += token_block) {
    const Index n = (std::min)(token_block, x.rows() - first);
    MatrixRef<S> to(y.data() + first * y.outerStride(), n, y.cols(), y.outerStride());
    const ConstMatrixRef<S> from(x.data() + first * x.outerStride(), n, x.cols(), x.outerStride());
    low_rank_block(Product<S>{from, {}, to}, c, gain.data(), t, panel, executor);
  }
}

/// add_low_rank() for factors of any type.
template <class S, class T>
void add_factors(ConstMatrixRef<S> x, ConstMatrixRef<T> down, ConstMatrixRef<T> up, ConstVectorRef<S> gain, MatrixRef<S> y, Workspace& ws) {
  const Index tokens = x.rows(), rank = down.rows();
  check_shape("add_low_rank", "x", x, any_extent, down.cols());
  check_shape("add_low_rank", "up_rows", up, rank, any_extent);
  check_shape("add_low_rank", "gain", gain, rank, 1);
  check_shape("add_low_rank", "y", y, tokens, up.cols());
  if (tokens == 0 || rank == 0 || y.cols() == 0) return;
  const Workspace::Scope scope(ws);
  S* t = ws.take<S>((std::min)(tokens, token_block) * rank);
  Index* rows = ws.take<Index>(rank);
  S* panel = tokens > few_tokens ? ws.take<S>(ws.workers() * rank * panel_width) : nullptr;
  add_components<S, T>(x, down, up, gain, y, t, rows, panel, ws.executor());
}

}}}  // namespace pith::v0::detail
