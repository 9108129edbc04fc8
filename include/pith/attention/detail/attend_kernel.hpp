#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include <pith/attention/detail/block_rows.hpp>
#include <pith/attention/detail/row_layout.hpp>
#include <pith/core/detail/processor.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // arrays of packets
#endif

// The inner loops of attention: scores q Kᵀ and weighted sums of values for a block of rows, in SIMD packets.

namespace pith { inline namespace v0 { namespace detail {

/// score[q, r] = Σ_i query[q, i] row[r, i] for Q queries: one multiply-add chain per lane, i ascending, then the lanes by halves.
///
/// The bits do not depend on Q, on the number of rows, or on whether rows are read in place or staged.
template <class T, int Q> struct ScoreKernel {
  using S = arithmetic_t<T>;
  using V = Simd<S>;
  using Packet = typename V::Packet;
  static constexpr int sums = V::width < 8 ? 8 : V::width, rows_together = sums / Q;
  static constexpr int step = RowLayout<T>::step;
  static constexpr int line = (std::max)(step, int(64 / sizeof(T)) / V::width);  ///< packets in a cache line

  static void run(const S* query, Index padded, const Rows<T>& rows, S* score, Index score_stride) {
    for (Index r = 0; r < rows.count; r += rows_together) {
      const T* row[std::size_t(rows_together)];
#pragma GCC unroll 16
      for (int i = 0; i < rows_together; ++i) row[i] = rows.first + (std::min)(r + i, rows.count - 1) * rows.stride;
      Packet sum[std::size_t(sums)];
#pragma GCC unroll 16
      for (int i = 0; i < sums; ++i) sum[i] = V::zero();
      if (in_order(rows.stride)) {
        add_in_order(query, padded, rows, row, sum);
      } else {
        add_in_turn(query, padded, rows, r, row, sum);
      }
      store(sum, score + r, score_stride, (std::min<Index>)(rows_together, rows.count - r));
    }
  }
  static void run(const S* query, Index padded, const PickedRows<T>& rows, S* score, Index score_stride) {
    for (Index r = 0; r < rows.count; r += rows_together) {
      const T* row[std::size_t(rows_together)];
      for (int i = 0; i < rows_together; ++i) {
        const Index j = (std::min)(r + i, rows.count - 1);
        row[i] = rows.row(j);
        rows.fetch_behind(j, 0, RowLayout<T>::unit(padded));
      }
      Packet sum[std::size_t(sums)];
#pragma GCC unroll 16
      for (int i = 0; i < sums; ++i) sum[i] = V::zero();
      add_in_order(query, padded, {rows.first, rows.stride, rows.count, nullptr}, row, sum);
      store(sum, score + r, score_stride, (std::min<Index>)(rows_together, rows.count - r));
    }
  }

 private:
  /// Whether rows are read one after the other.
  static bool in_order(Index stride) {
    return Q <= rows_together && std::size_t(stride) * sizeof(T) > (Q < 4 ? processor.long_row_of_few_queries : processor.long_row);
  }

  static void add_in_order(const S* query, Index padded, const Rows<T>& rows, const T* const (&row)[std::size_t(rows_together)],
                           Packet (&sum)[std::size_t(sums)]) {
#pragma GCC unroll 16
    for (int i = 0; i < rows_together; ++i) {
      if (few_lines_in_order && rows.ahead != nullptr) fetch_some(row[i], rows.stride);
      for (Index c = 0; c < padded; c += step * V::width) {
        const T* const at = row[i] + RowLayout<T>::unit(c);
        if (!few_lines_in_order && rows.ahead != nullptr) fetch_key(at);
#pragma GCC unroll 8
        for (int s = 0; s < step; ++s) {
          const Packet k = RowLayout<T>::load(at, s);
#pragma GCC unroll 16
          for (int j = 0; j < Q; ++j)
            sum[j * rows_together + i] = V::madd(V::load(query + j * padded + c + s * V::width), k, sum[j * rows_together + i]);
        }
      }
    }
  }

  /// Reads a cache line of each row in turn.
  static void add_in_turn(const S* query, Index padded, const Rows<T>& rows, Index r, const T* const (&row)[std::size_t(rows_together)],
                          Packet (&sum)[std::size_t(sums)]) {
    const T* const ahead = rows.ahead == nullptr ? rows.first : rows.ahead;  // prefetching a cached line is almost free
    if (Q > rows_together && rows.ahead != nullptr)
      for (Index i = 0; i < rows_together * padded; i += Index(64 / sizeof(T))) fetch(ahead + r * rows.stride + i);
    Index c = 0;
    if (few_lines && Q <= rows_together && rows.ahead != nullptr) {
#pragma GCC unroll 16
      for (int i = 0; i < rows_together; ++i) fetch_some(row[i], rows.stride);
    }
    for (; c + line * V::width <= padded; c += line * V::width) {
      if constexpr (Q <= rows_together) {
#pragma GCC unroll 16
        for (int i = 0; i < rows_together; ++i) {
          if constexpr (processor.keys_into_l2) {
            if (!few_lines && rows.ahead != nullptr) fetch_key(row[i] + RowLayout<T>::unit(c));
          } else if constexpr (PlainStorage<T>) {
            fetch(ahead + r * rows.stride + c * rows_together + i * line * V::width);
          } else {
            fetch(ahead + (r + i) * rows.stride + RowLayout<T>::unit(c));
          }
        }
      }
#pragma GCC unroll 8
      for (int s = 0; s < line; s += step) add_packets(query, padded, row, c + s * V::width, sum);
    }
    for (; c < padded; c += step * V::width) add_packets(query, padded, row, c, sum);
  }

  // One line in four is enough for codes, which take longer to score than to read, and for few queries over rows in order.
  static constexpr bool few_lines = processor.few_lines && !PlainStorage<T>,
                        few_lines_in_order = processor.few_lines && (few_lines || Q < 4);
  static constexpr Index distance = Q < 4 ? 4096 : 8192;  ///< bytes by which keys are prefetched into L2

  static void fetch_key(const T* key) {
    if constexpr (processor.keys_into_l2) fetch_into_l2(reinterpret_cast<const char*>(key) + distance);
  }
  static void fetch_some(const T* key, Index stride) {
    if constexpr (processor.keys_into_l2) fetch_some_into_l2(reinterpret_cast<const char*>(key) + distance, stride * Index(sizeof(T)));
  }

  /// Keeps the smaller of the two operands in registers.
  static void add_packets(const S* query, Index padded, const T* const (&row)[std::size_t(rows_together)], Index c,
                          Packet (&sum)[std::size_t(sums)]) {
#pragma GCC unroll 8
    for (int s = 0; s < step; ++s) {
      if constexpr (Q <= rows_together) {
        Packet q[std::size_t(Q)];
#pragma GCC unroll 16
        for (int j = 0; j < Q; ++j) q[j] = RowLayout<S>::load(query + j * padded + c, s);
#pragma GCC unroll 16
        for (int i = 0; i < rows_together; ++i) {
          const Packet k = RowLayout<T>::load(row[i] + RowLayout<T>::unit(c), s);
#pragma GCC unroll 16
          for (int j = 0; j < Q; ++j) sum[j * rows_together + i] = V::madd(q[j], k, sum[j * rows_together + i]);
        }
      } else {
        Packet k[std::size_t(rows_together)];
#pragma GCC unroll 16
        for (int i = 0; i < rows_together; ++i) k[i] = RowLayout<T>::load(row[i] + RowLayout<T>::unit(c), s);
#pragma GCC unroll 16
        for (int j = 0; j < Q; ++j) {
          const Packet q = RowLayout<S>::load(query + j * padded + c, s);
#pragma GCC unroll 16
          for (int i = 0; i < rows_together; ++i) sum[j * rows_together + i] = V::madd(q, k[i], sum[j * rows_together + i]);
        }
      }
    }
  }

  static void store(Packet (&sum)[std::size_t(sums)], S* score, Index score_stride, Index rows) {
    S lanes[std::size_t(sums)];
#pragma GCC unroll 8
    for (int part = 0; part < sums; part += V::width) {
      Packet each[std::size_t(V::width)];
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
/// The bits do not depend on Q, or on how the rows are cut into calls.
template <class T, int Q> struct ValueKernel {
  using S = arithmetic_t<T>;
  using V = Simd<S>;
  using Packet = typename V::Packet;
  static constexpr int step = RowLayout<T>::step;
  /// Packets of a row whose sums fit in registers; for three queries as many as for four, which divide a head.
  static constexpr int strip = (std::max)(step, (V::registers == 32 ? 16 : 8) / (Q == 3 ? 4 : Q));

  static void run(const S* weight, Index weight_stride, const Rows<T>& rows, S* sum, Index padded) {
    if constexpr (Q > 1 && PlainStorage<T>)
      if (padded > strip * V::width && std::size_t(rows.stride) * sizeof(T) > processor.long_row) {
        constexpr int first = Q / 2;
        ValueKernel<T, first>::run(weight, weight_stride, rows, sum, padded);  // reads whole rows
        return ValueKernel<T, Q - first>::run(weight + first * weight_stride, weight_stride,
                                              Rows<T>{rows.first, rows.stride, rows.count, nullptr}, sum + first * padded, padded);
      }
    run_strips<strip>(weight, weight_stride, rows, 0, sum, padded);
  }
  static void run(const S* weight, Index weight_stride, const PickedRows<T>& rows, S* sum, Index padded) {
    run_strips<strip>(weight, weight_stride, rows, 0, sum, padded);
  }

 private:
  /// The columns from c on, in strips of N packets, and in narrower ones where N are too many.
  template <int N, class R> static void run_strips(const S* weight, Index weight_stride, const R& rows, Index c, S* sum, Index padded) {
    for (; c + N * V::width <= padded; c += N * V::width) run_strip<N>(weight, weight_stride, rows, c, sum, padded);
    if constexpr (N > step)
      if (c < padded) run_strips<(std::max)(step, N / 2)>(weight, weight_stride, rows, c, sum, padded);
  }

  template <int N, class R>
  static void run_strip(const S* weight, Index weight_stride, const R& rows, Index column, S* sums, Index padded) {
    S* const to = sums + column;
    Packet sum[std::size_t(Q)][std::size_t(N)];
#pragma GCC unroll 16
    for (int j = 0; j < Q; ++j) {
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) sum[j][i] = V::load(to + j * padded + i * V::width);
    }
    if constexpr (std::is_same_v<R, PickedRows<T>>) {
      constexpr Index units = RowLayout<T>::unit(Index(N) * V::width);
      for (Index r = 0; r < rows.count; ++r) {
        rows.fetch_behind(r, RowLayout<T>::unit(column), units);
        add_row<N>(weight + r, weight_stride, rows.row(r) + RowLayout<T>::unit(column), sum);
      }
    } else {
      const T* row = rows.first + RowLayout<T>::unit(column);
      constexpr Index fetched = RowLayout<T>::unit(Index(N) * V::width);
      const T* ahead =
          rows.ahead == nullptr ? rows.first : rows.ahead + (PlainStorage<T> ? column * rows.count : RowLayout<T>::unit(column));
      [[maybe_unused]] const bool long_rows =
          rows.ahead != nullptr && std::size_t(rows.stride) * sizeof(T) > processor.long_row_of_few_queries;
      for (Index r = 0; r < rows.count; ++r, row += rows.stride) {
        if constexpr (processor.values_by_hand) {
#pragma GCC unroll 8
          for (Index i = 0; i < fetched; i += Index(64 / sizeof(T))) fetch(ahead + i);
          ahead += PlainStorage<T> ? fetched : rows.stride;
        } else if constexpr (processor.few_lines && PlainStorage<T>) {
          if (long_rows && column == 0) fetch_some_into_l2(reinterpret_cast<const char*>(row) + 8192, rows.stride * Index(sizeof(T)));
        }
        add_row<N>(weight + r, weight_stride, row, sum);
      }
    }
#pragma GCC unroll 16
    for (int j = 0; j < Q; ++j) {
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) V::store(to + j * padded + i * V::width, sum[j][i]);
    }
  }

  template <int N> static void add_row(const S* weight, Index weight_stride, const T* row, Packet (&sum)[std::size_t(Q)][std::size_t(N)]) {
    Packet v[std::size_t(N)];
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) v[i] = RowLayout<T>::load(row, i);
#pragma GCC unroll 16
    for (int j = 0; j < Q; ++j) {
      const Packet w = V::broadcast(weight[j * weight_stride]);
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) sum[j][i] = V::madd(w, v[i], sum[j][i]);
    }
  }
};

/// Calls f(first, n) over `count` queries in groups of n = 4, 2 and 1 (a constant), the sizes that kernels are compiled for; of three
/// queries for rows of codes, which two and one would decode twice, where a processor has the registers.
template <class T, class F> void for_query_groups(Index count, F&& f) {
  Index first = 0;
  for (; first + 4 <= count; first += 4) f(first, std::integral_constant<int, 4>());
  if constexpr (!PlainStorage<T> && Simd<arithmetic_t<T>>::registers == 32)
    if (first + 3 == count) return f(first, std::integral_constant<int, 3>());
  if (first + 2 <= count) {
    f(first, std::integral_constant<int, 2>());
    first += 2;
  }
  if (first < count) f(first, std::integral_constant<int, 1>());
}

}}}  // namespace pith::v0::detail

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
