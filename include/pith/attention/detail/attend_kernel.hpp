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

// The inner loops of attention: scores q Kᵀ and weighted sums of values for a block of rows, in SIMD packets.

namespace pith { inline namespace v0 { namespace detail {

inline constexpr Index attention_block = 32;  ///< rows scored, weighed and summed together: a block of keys stays in L1

/// Prefetches a cache line. Any address is allowed, also one beyond the end of the rows.
inline void fetch(const void* line) { __builtin_prefetch(line); }

/// The order of the features of a row stored as T once it is loaded in packets; queries and sums are kept in this order.
///
/// A shift and a mask split pairs of bfloat16, even features to one packet, odd ones to the next. Rows that are no whole number of packets
/// are first copied and padded with zeros.
template <class T> struct RowLayout {
  using S = arithmetic_t<T>;
  using V = Simd<S>;
  static constexpr int step = std::is_same_v<T, bfloat16> ? 2 : 1;  ///< packets per load

  explicit RowLayout(Index dim)
      : head_dim(dim), packets((dim + V::width - 1) / V::width), whole(PlainStorage<T> && dim % (step * V::width) == 0) {}

  Index head_dim;
  Index packets;  ///< packets in a padded row
  bool whole;     ///< rows can be read in place
  Index padded() const { return packets * V::width; }

  /// arrange() writes a head's features times scale in the order of loaded rows, padded with zeros; restore() is its inverse.
  void arrange(const S* features, S scale, S* to) const {
    each_place([=](Index feature, Index place) { to[place] = features[feature] * scale; });
    for (Index i = head_dim; i < padded(); ++i) to[i] = S(0);
  }
  void restore(const S* arranged, S scale, S* features) const {
    each_place([=](Index feature, Index place) { features[feature] = arranged[place] * scale; });
  }

  /// Copies and widens rows to [rows, padded()], features in the order of loaded rows. 8-bit rows prefetch as many rows from `ahead` on.
  void stage(const T* rows, Index stride, Index count, S* to, [[maybe_unused]] const T* ahead = nullptr) const {
    for (Index r = 0; r < count; ++r, rows += stride, to += padded()) {
      if constexpr (!PlainStorage<T>) {
        for (Index i = 0; ahead != nullptr && i < stride; i += 64) fetch(ahead + r * stride + i);
        q8_decode(reinterpret_cast<const std::byte*>(rows), head_dim, to);
        std::fill(to + head_dim, to + padded(), S(0));
      } else if (whole) {
        for (Index i = 0; i < packets; i += step)
          for (int s = 0; s < step; ++s) V::store(to + (i + s) * V::width, load(rows + i * V::width, s));
      } else {
        for (Index i = 0; i < padded(); ++i) to[i] = i < head_dim ? widen(rows[i]) : S(0);
      }
    }
  }

  /// Loads packet i of a padded row into a register for all its uses.
  static typename V::Packet load(const T* row, Index i) {
    typename V::Packet loaded;
    if constexpr (step == 2) {
      loaded = i % 2 ? V::load_odd(row + (i - 1) * V::width) : V::load_even(row + i * V::width);
    } else {
      loaded = V::load(row + i * V::width);
      V::pin(loaded);
    }
    return loaded;
  }

 private:
  template <class F> void each_place(F&& f) const {
    if (step == 2 && whole) {
      for (Index i = 0; i < head_dim; i += 2 * V::width)
        for (Index j = 0; j < V::width; ++j) f(i + 2 * j, i + j), f(i + 2 * j + 1, i + V::width + j);
    } else {
      for (Index i = 0; i < head_dim; ++i) f(i, i);
    }
  }
};

/// Rows to process, and the address from which as many contiguous rows are prefetched meanwhile (`ahead`; nullptr: none).
///
/// Prefetches are spread evenly and in order of address, the fastest pattern for memory; few rows with many queries prefetch all at once.
template <class T> struct Rows {
  const T* first;
  Index stride, count;
  const T* ahead;
};

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
    const T* const ahead = rows.ahead == nullptr ? rows.first : rows.ahead;  // prefetching a cached line is almost free
    for (Index r = 0; r < rows.count; r += rows_together) {
      const T* row[std::size_t(rows_together)];
#pragma GCC unroll 16
      for (int i = 0; i < rows_together; ++i) row[i] = rows.first + (std::min)(r + i, rows.count - 1) * rows.stride;
      if (Q > rows_together && rows.ahead != nullptr)
        for (Index i = 0; i < rows_together * padded; i += Index(64 / sizeof(T))) fetch(ahead + r * rows.stride + i);
      Packet sum[std::size_t(sums)];
#pragma GCC unroll 16
      for (int i = 0; i < sums; ++i) sum[i] = V::zero();
      Index c = 0;
      for (; c + line * V::width <= padded; c += line * V::width) {
        if constexpr (Q <= rows_together) {
#pragma GCC unroll 16
          for (int i = 0; i < rows_together; ++i) fetch(ahead + r * rows.stride + c * rows_together + i * line * V::width);
        }
#pragma GCC unroll 8
        for (int s = 0; s < line; s += step) add_packets(query, padded, row, c + s * V::width, sum);
      }
      for (; c < padded; c += step * V::width) add_packets(query, padded, row, c, sum);
      store(sum, score + r, score_stride, (std::min<Index>)(rows_together, rows.count - r));
    }
  }

 private:
  /// Keeps the smaller of the two operands in registers.
  static void add_packets(const S* query, Index padded, const T* const (&row)[std::size_t(rows_together)], Index c,
                          Packet (&sum)[std::size_t(sums)]) {
#pragma GCC unroll 2
    for (int s = 0; s < step; ++s) {
      if constexpr (Q <= rows_together) {
        Packet q[std::size_t(Q)];
#pragma GCC unroll 16
        for (int j = 0; j < Q; ++j) q[j] = RowLayout<S>::load(query + j * padded + c, s);
#pragma GCC unroll 16
        for (int i = 0; i < rows_together; ++i) {
          const Packet k = RowLayout<T>::load(row[i] + c, s);
#pragma GCC unroll 16
          for (int j = 0; j < Q; ++j) sum[j * rows_together + i] = V::madd(q[j], k, sum[j * rows_together + i]);
        }
      } else {
        Packet k[std::size_t(rows_together)];
#pragma GCC unroll 16
        for (int i = 0; i < rows_together; ++i) k[i] = RowLayout<T>::load(row[i] + c, s);
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
  static constexpr int strip = (std::max)(step, (V::registers == 32 ? 16 : 8) / Q);  ///< packets of a row whose sums fit in registers

  static void run(const S* weight, Index weight_stride, const Rows<T>& rows, S* sum, Index padded) {
    Index c = 0;
    for (; c + strip * V::width <= padded; c += strip * V::width) run_strip<strip>(weight, weight_stride, rows, c, sum, padded);
    for (; c < padded; c += step * V::width) run_strip<step>(weight, weight_stride, rows, c, sum, padded);
  }

 private:
  template <int N> static void run_strip(const S* weight, Index weight_stride, const Rows<T>& rows, Index column, S* sums, Index padded) {
    S* const to = sums + column;
    const T* row = rows.first + column;
    constexpr Index fetched = Index(N) * V::width;
    const T* ahead = rows.ahead == nullptr ? rows.first : rows.ahead + column * rows.count;
    Packet sum[std::size_t(Q)][std::size_t(N)];
#pragma GCC unroll 16
    for (int j = 0; j < Q; ++j) {
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) sum[j][i] = V::load(to + j * padded + i * V::width);
    }
    for (Index r = 0; r < rows.count; ++r, row += rows.stride) {
#pragma GCC unroll 8
      for (Index i = 0; i < fetched; i += Index(64 / sizeof(T))) fetch(ahead + i);
      ahead += fetched;
      Packet v[std::size_t(N)];
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) v[i] = RowLayout<T>::load(row, i);
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

/// Calls f(first, n) over `count` queries in groups of n = 4, 2 and 1 (a constant), the sizes that kernels are compiled for.
template <class F> void for_query_groups(Index count, F&& f) {
  Index first = 0;
  for (; first + 4 <= count; first += 4) f(first, std::integral_constant<int, 4>());
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
