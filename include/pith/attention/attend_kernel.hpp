#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include <pith/attention/kv_view.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // arrays of packets
#endif

namespace pith::inline v0::detail {

inline constexpr Index attention_block = 32;  ///< rows scored, weighed and summed together: a block of keys stays in L1

/// Where the features of a row stored as T end up once it is loaded in packets: the order that queries and sums are kept in.
///
/// Pairs of bfloat16 are split by a shift and a mask, even features to one packet, odd ones to the next. Rows that are no whole number of
/// packets are copied and padded with zeros first.
template <class T> struct RowLayout {
  using S = arithmetic_t<T>;
  using V = Simd<S>;
  static constexpr int step = std::is_same_v<T, bfloat16> ? 2 : 1;  ///< packets that one load gives

  explicit RowLayout(Index dim) : head_dim(dim), packets((dim + V::width - 1) / V::width), whole(dim % (step * V::width) == 0) {}

  Index head_dim;
  Index packets;  ///< of a padded row
  bool whole;     ///< rows can be read where they are
  Index padded() const { return packets * V::width; }

  Index place(Index feature) const {
    if (step == 1 || !whole) return feature;
    const Index within = feature % (2 * V::width);
    return feature - within + within % 2 * V::width + within / 2;
  }

  /// Copies and widens rows to [rows, padded()], features where place() says.
  void stage(const T* rows, Index stride, Index count, S* to) const {
    for (Index r = 0; r < count; ++r, rows += stride, to += padded()) {
      if (whole) {
        for (Index i = 0; i < head_dim; i += step * V::width) {
          typename V::Packet loaded[step];
          load(rows + i, loaded);
          for (int s = 0; s < step; ++s) V::store(to + i + s * V::width, loaded[s]);
        }
      } else {
        for (Index i = 0; i < padded(); ++i) to[i] = i < head_dim ? widen(rows[i]) : S(0);
      }
    }
  }

  template <std::size_t N> static void load(const T* from, typename V::Packet (&to)[N]) {
    if constexpr (step == 2) {
#pragma GCC unroll 16
      for (std::size_t i = 0; i < N; i += 2) V::load_pairs(from + Index(i) * V::width, to[i], to[i + 1]);
    } else {
#pragma GCC unroll 16
      for (std::size_t i = 0; i < N; ++i) to[i] = V::load(from + Index(i) * V::width);
    }
  }
};

/// Touches a row some rows ahead of the one in use. One page further: there the hardware's own streams have stopped.
template <class T> void prefetch_ahead(const T* row, Index count) {
  const char* const bytes = reinterpret_cast<const char*>(row) + 4096;
  for (Index b = 0; b < count * Index(sizeof(T)); b += 64) __builtin_prefetch(bytes + b);
}

/// score[q, r] = Σ_i query[q, i] row[r, i] for Q queries: one multiply-add chain per lane, i ascending, then the lanes by halves.
///
/// No bit depends on Q, on the number of rows, or on whether rows are read in place or staged.
template <class T, int Q> struct ScoreKernel {
  using S = arithmetic_t<T>;
  using V = Simd<S>;
  using Packet = typename V::Packet;
  static constexpr int sums = V::width < 8 ? 8 : V::width, rows_together = sums / Q;

  static void run(const S* query, Index padded, const T* rows, Index stride, Index count, bool prefetch, S* score, Index score_stride) {
    constexpr int step = RowLayout<T>::step;
    for (Index r = 0; r < count; r += rows_together) {
      const T* row[rows_together];
#pragma GCC unroll 16
      for (int i = 0; i < rows_together; ++i) row[i] = rows + std::min(r + i, count - 1) * stride;
      if (prefetch)
        for (int i = 0; i < rows_together; ++i) prefetch_ahead(row[i], padded);
      Packet sum[sums];
#pragma GCC unroll 16
      for (int i = 0; i < sums; ++i) sum[i] = V::zero();
      for (Index c = 0; c < padded; c += step * V::width) add_packets(query + c, padded, row, c, sum);
      store(sum, score + r, score_stride, std::min<Index>(rows_together, count - r));
    }
  }

 private:
  /// Keeps the smaller of the two operands in registers.
  static void add_packets(const S* query, Index padded, const T* const (&row)[rows_together], Index c, Packet (&sum)[sums]) {
    constexpr int step = RowLayout<T>::step;
    if constexpr (Q <= rows_together) {
      Packet q[Q][step];
#pragma GCC unroll 16
      for (int j = 0; j < Q; ++j) RowLayout<S>::load(query + j * padded, q[j]);
#pragma GCC unroll 16
      for (int i = 0; i < rows_together; ++i) {
        Packet k[step];
        RowLayout<T>::load(row[i] + c, k);
#pragma GCC unroll 16
        for (int j = 0; j < Q; ++j) {
#pragma GCC unroll 2
          for (int s = 0; s < step; ++s) sum[j * rows_together + i] = V::madd(q[j][s], k[s], sum[j * rows_together + i]);
        }
      }
    } else {
      Packet k[rows_together][step];
#pragma GCC unroll 16
      for (int i = 0; i < rows_together; ++i) RowLayout<T>::load(row[i] + c, k[i]);
#pragma GCC unroll 16
      for (int j = 0; j < Q; ++j) {
#pragma GCC unroll 2
        for (int s = 0; s < step; ++s) {
          const Packet q = V::load(query + j * padded + s * V::width);
#pragma GCC unroll 16
          for (int i = 0; i < rows_together; ++i) sum[j * rows_together + i] = V::madd(q, k[i][s], sum[j * rows_together + i]);
        }
      }
    }
  }

  static void store(Packet (&sum)[sums], S* score, Index score_stride, Index rows) {
    S lanes[sums];
#pragma GCC unroll 8
    for (int part = 0; part < sums; part += V::width) {
      Packet each[V::width];
#pragma GCC unroll 16
      for (int i = 0; i < V::width; ++i) each[i] = sum[part + i];
      V::store(lanes + part, V::sum_each(each));
    }
    if (rows == rows_together) {
#pragma GCC unroll 16
      for (int j = 0; j < Q; ++j) {
#pragma GCC unroll 16
        for (int i = 0; i < rows_together; ++i) score[j * score_stride + i] = lanes[j * rows_together + i];
      }
    } else {
      for (int j = 0; j < Q; ++j)
        for (Index i = 0; i < rows; ++i) score[j * score_stride + i] = lanes[j * rows_together + i];
    }
  }
};

/// sum[q, i] += Σ_r weight[q, r] row[r, i] for Q queries: one multiply-add chain per output, r ascending.
///
/// No bit depends on Q, or on how the rows are cut into calls.
template <class T, int Q> struct ValueKernel {
  using S = arithmetic_t<T>;
  using V = Simd<S>;
  using Packet = typename V::Packet;
  static constexpr int step = RowLayout<T>::step;
  static constexpr int strip = std::max(step, (V::registers == 32 ? 16 : 8) / Q);  ///< packets of a row that have their sums in registers

  static void run(const S* weight, Index weight_stride, const T* rows, Index stride, Index count, bool prefetch, S* sum, Index padded) {
    Index c = 0;
    for (; c + strip * V::width <= padded; c += strip * V::width)
      run_strip<strip>(weight, weight_stride, rows + c, stride, count, prefetch && c == 0 ? padded : 0, sum + c, padded);
    for (; c < padded; c += step * V::width)
      run_strip<step>(weight, weight_stride, rows + c, stride, count, prefetch && c == 0 ? padded : 0, sum + c, padded);
  }

 private:
  template <int N>
  static void run_strip(const S* weight, Index weight_stride, const T* row, Index stride, Index count, Index ahead, S* to, Index padded) {
    Packet sum[Q][std::size_t(N)];
#pragma GCC unroll 16
    for (int j = 0; j < Q; ++j) {
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) sum[j][i] = V::load(to + j * padded + i * V::width);
    }
    for (Index r = 0; r < count; ++r, row += stride) {
      if (ahead > 0) prefetch_ahead(row, ahead);
      Packet v[std::size_t(N)];
      RowLayout<T>::load(row, v);
#pragma GCC unroll 16
      for (int j = 0; j < Q; ++j) {
        const Packet w = V::broadcast(weight[j * weight_stride + r]);
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) sum[j][i] = V::madd(w, v[i], sum[j][i]);
      }
    }
#pragma GCC unroll 16
    for (int j = 0; j < Q; ++j) {
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) V::store(to + j * padded + i * V::width, sum[j][i]);
    }
  }
};

/// f(first, n) over `count` queries in groups of n = 4, 2 and 1 (a constant): the sizes that kernels come in.
template <class F> void for_query_groups(Index count, F&& f) {
  Index first = 0;
  for (; first + 4 <= count; first += 4) f(first, std::integral_constant<int, 4>());
  if (first + 2 <= count) {
    f(first, std::integral_constant<int, 2>());
    first += 2;
  }
  if (first < count) f(first, std::integral_constant<int, 1>());
}

}  // namespace pith::inline v0::detail

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
