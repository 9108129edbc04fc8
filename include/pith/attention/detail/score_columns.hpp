#pragma once

#include <algorithm>
#include <type_traits>

#include <pith/attention/detail/attend_kernel.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // arrays of packets
#endif

namespace pith { inline namespace v0 { namespace detail {

/// Scores a block of transposed rows for many queries: with rows in the lanes of packets, sums over features need no shuffles, which cost
/// ScoreKernel more than its products if heads are small. Transposing the block takes about as long as scoring it for ten queries.
///
/// The bits equal ScoreKernel's: its lanes are chains here, i ascending, and they are added in the same order.
template <class S> struct ColumnScores {
  using V = Simd<S>;
  using Packet = typename V::Packet;
  static constexpr int width = V::width;
  static constexpr Index worth_turning = 16;  ///< least queries for which transposing pays

  /// columns[i, r] = row[r, i], the last row repeated up to a whole block.
  static void turn(const Rows<S>& rows, Index padded, S* columns) {
    for (Index r = 0; r < attention_block; r += width) {
      const S* row[std::size_t(width)];
      for (int i = 0; i < width; ++i) row[i] = rows.first + (std::min)(r + i, rows.count - 1) * rows.stride;
      for (Index c = 0; c < padded; c += width) {
        Packet square[std::size_t(width)];
#pragma GCC unroll 16
        for (int i = 0; i < width; ++i) square[i] = V::load(row[i] + c);
        V::transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < width; ++i) V::store(columns + (c + i) * attention_block + r, square[i]);
      }
    }
  }

  /// score[q, r] for any number of queries and all rows of the block.
  static void score(const S* query, Index padded, Index queries, const S* columns, S* score, Index score_stride) {
    for_query_groups<S>(queries, [&](Index first, auto size) {
      run<size()>(query + first * padded, padded, columns, score + first * score_stride, score_stride);
    });
  }

  /// score[q, r] for Q queries.
  template <int Q> static void run(const S* query, Index padded, const S* columns, S* score, Index score_stride) {
    constexpr int chains = (std::min)(width, V::registers == 32 ? 4 : 2), groups = width / chains;
    for (Index r = 0; r < attention_block; r += width) {
      Packet part[std::size_t(Q)][std::size_t(groups)];
#pragma GCC unroll 4
      for (int g = 0; g < groups; ++g) {
        Packet sum[std::size_t(Q)][std::size_t(chains)];
#pragma GCC unroll 4
        for (int j = 0; j < Q; ++j) {
#pragma GCC unroll 4
          for (int i = 0; i < chains; ++i) sum[j][i] = V::zero();
        }
        for (Index c = 0; c < padded; c += width) {
#pragma GCC unroll 4
          for (int i = 0; i < chains; ++i) {
            const Index lane = c + (V::sums_neighbours ? g * chains + i : g + i * groups);
            Packet k = V::load(columns + lane * attention_block + r);
            V::pin(k);
#pragma GCC unroll 4
            for (int j = 0; j < Q; ++j) sum[j][i] = V::madd(V::broadcast(query[j * padded + lane]), k, sum[j][i]);
          }
        }
#pragma GCC unroll 4
        for (int j = 0; j < Q; ++j) part[j][g] = folded(sum[j]);
      }
#pragma GCC unroll 4
      for (int j = 0; j < Q; ++j) V::store(score + j * score_stride + r, folded(part[j]));
    }
  }

 private:
  /// Sums all packets, in the order in which V::sum_each() adds the lanes of a packet.
  template <std::size_t N> static Packet folded(Packet (&a)[N]) {
    constexpr int n = int(N);
    if constexpr (V::sums_neighbours) {
#pragma GCC unroll 4
      for (int step = 1; step < n; step *= 2)
#pragma GCC unroll 8
        for (int i = 0; i < n; i += 2 * step) a[i] = V::add(a[i], a[i + step]);
    } else {
#pragma GCC unroll 4
      for (int half = n / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i) a[i] = V::add(a[i], a[i + half]);
    }
    return a[0];
  }
};

}}}  // namespace pith::v0::detail

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
