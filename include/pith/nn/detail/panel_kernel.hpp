#pragma once
// The kernel of matmul(): register tiles over panels of weights.

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include <pith/core/detail/processor.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/view.hpp>
#include <pith/nn/packed.hpp>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // arrays of packets
#endif

namespace pith { inline namespace v0 { namespace detail {

/// The size of a register tile, which follows from the number of registers.
template <class S> struct TileShape {
  using V = Simd<S>;
  static constexpr int row = int(panel_width) / V::width;                   // packets in a row of a panel
  static constexpr int budget = V::registers == 32 ? 24 : 12;               // accumulators, with room left for weights and a broadcast
  static constexpr int tokens = budget / (std::min)(4, row);                // rows of x in a tile: 3 on AVX2, 12 on AVX-512
  static constexpr int alone = (std::max)(1, (std::min)(4, 8 / row));       // panels in a tile of one token
  static constexpr Index depth = 24576 / (panel_width * Index(sizeof(S)));  // rows of a panel block: three quarters of a 32 KiB L1

  static constexpr int packets(int tile_tokens) {  // packets of a row in a tile
    int n = row;
    while (n * tile_tokens > budget) n /= 2;
    return n;
  }
};

/// The arguments of a tile: its rows of x, and where its chains start and where the sums go.
template <class S> struct TileArgs {
  const S* x;  // [tokens, depth]
  Index x_stride;
  Index depth;
  const S* from;  // start of the chains: the bias (stride 0) or the sums so far
  Index from_stride;
  S* to;
  Index to_stride;
  const char* ahead;  // the memory to read next: prefetched in steps during the computation
  Index ahead_step;   // bytes prefetched for each row of weights
};

/// to[t, c] = from[t, c] + Σ_k x[t, k] w[k, c], k ascending, one multiply-add chain for each output.
///
/// c runs over all columns of `Panels` panels, which lie panel_stride apart.
/// Every lane is its own chain, so no number depends on Tokens, Panels or the packet width.
template <class T, int Tokens, int Panels = 1> struct PanelTile {
  using S = arithmetic_t<T>;
  using V = Simd<S>;
  using Packet = typename V::Packet;
  static constexpr int row = TileShape<S>::row, together = TileShape<S>::packets(Tokens * Panels);

  static constexpr int lines = (std::max)(1, int(panel_width* Index(sizeof(T))) / 64);  // cache lines in a row of a panel
  static constexpr Prefetch how = prefetch_of(Tokens, sizeof(T) == 1 ? Prefetch::every_line_into_l2 : Prefetch::some_lines_into_l2);

  /// First column of packet i of part `part`.
  static constexpr Index column(int part, int i) {
    if constexpr (std::is_same_v<T, bfloat16>) {
      return (part * together / 2 + i / 2) * V::width + i % 2 * 16;
    } else {
      return Index(part * together + i) * V::width;
    }
  }

  static Packet weights(const T* panel_row, int part, int i) {
    if constexpr (std::is_same_v<T, bfloat16>) {
      const T* pair = panel_row + (part * together + i / 2 * 2) * V::width;
      return i % 2 ? V::load_odd(pair) : V::load_even(pair);
    } else if constexpr (requires { T::load(panel_row); }) {
      return T::load(panel_row + (part * together + i) * V::width);
    } else {
      return V::load(panel_row + (part * together + i) * V::width);
    }
  }
  static Packet madd(Packet a, Packet b, Packet c) {
    if constexpr (requires { T::madd(a, b, c); }) {
      return T::madd(a, b, c);
    } else {
      return V::madd(a, b, c);
    }
  }

  static void run(const TileArgs<S>& a, const T* w, Index panel_stride = 0) {
    for (int part = 0; part < row / together; ++part) run_part(a, w, panel_stride, part);
  }

 private:
  // The smaller side of the tile stays in registers while the other side passes: 12 + 3 + 1 of AVX2's 16 registers.
  static void step(const S* x, Index x_stride, const T* w, int part, Packet (&sum)[std::size_t(Tokens)][std::size_t(together)]) {
    if constexpr (Tokens <= together) {
      Packet xs[std::size_t(Tokens)];
#pragma GCC unroll 16
      for (int t = 0; t < Tokens; ++t) xs[t] = V::broadcast(x[t * x_stride]);
#pragma GCC unroll 16
      for (int i = 0; i < together; ++i) {
        Packet wi = weights(w, part, i);
        if constexpr (Tokens > 1) V::pin(wi);
#pragma GCC unroll 16
        for (int t = 0; t < Tokens; ++t) sum[t][i] = madd(wi, xs[t], sum[t][i]);
      }
    } else {
      Packet ws[std::size_t(together)];
#pragma GCC unroll 16
      for (int i = 0; i < together; ++i) {
        ws[i] = weights(w, part, i);
        V::pin(ws[i]);
      }
#pragma GCC unroll 16
      for (int t = 0; t < Tokens; ++t) {
        const Packet xt = V::broadcast(x[t * x_stride]);
#pragma GCC unroll 16
        for (int i = 0; i < together; ++i) sum[t][i] = madd(ws[i], xt, sum[t][i]);
      }
    }
  }

  static void run_part(const TileArgs<S>& a, const T* w, Index panel_stride, int part) {
    Packet sum[std::size_t(Panels)][std::size_t(Tokens)][std::size_t(together)];
#pragma GCC unroll 16
    for (int p = 0; p < Panels; ++p) {
#pragma GCC unroll 16
      for (int t = 0; t < Tokens; ++t) {
#pragma GCC unroll 16
        for (int i = 0; i < together; ++i) sum[p][t][i] = V::load(a.from + p * panel_width + t * a.from_stride + column(part, i));
      }
    }
    const S* x = a.x;
    const char* ahead = a.ahead;
    for (Index k = 0; k < a.depth; ++k, ++x, w += panel_width, ahead += a.ahead_step) {
#pragma GCC unroll 16
      for (int p = 0; p < Panels; ++p) {
#pragma GCC unroll 4
        for (int line = 0; line < lines; ++line)
          fetch_weights<how>(ahead + p * panel_stride * Index(sizeof(T)) + line * 64, k * panel_width * Index(sizeof(T)) + line * 64);
        step(x, a.x_stride, w + p * panel_stride, part, sum[p]);
      }
    }
#pragma GCC unroll 16
    for (int p = 0; p < Panels; ++p) {
#pragma GCC unroll 16
      for (int t = 0; t < Tokens; ++t) {
#pragma GCC unroll 16
        for (int i = 0; i < together; ++i) V::store(a.to + p * panel_width + t * a.to_stride + column(part, i), sum[p][t][i]);
      }
    }
  }
};

/// Runs the tile of `tokens` rows, at most Most.
template <class T, int Most = TileShape<arithmetic_t<T>>::tokens>
void run_tile(int tokens, const TileArgs<arithmetic_t<T>>& a, const T* w) {
  if constexpr (Most > 1) {
    if (tokens < Most) return run_tile<T, Most - 1>(tokens, a, w);
  }
  PanelTile<T, Most>::run(a, w);
}

/// The weights as packed panels.
template <class T> struct PackedPanels {
  using Stored = T;
  using S = arithmetic_t<T>;
  const PackedWeight<T>& weight;
  static constexpr bool direct = true;                   // one tile of tokens reads the panels directly
  static constexpr bool copies = sizeof(T) < sizeof(S);  // for more tokens, each block is first widened into scratch

  const T* panel(Index p) const { return weight.panel(p); }
  const void* address(Index p, Index k0) const { return weight.panel(p) + k0 * panel_width; }
  static constexpr Index row_bytes = panel_width * Index(sizeof(T));  // read from memory for each row of weights
  const S* block(Index p, Index k0, Index depth, S* scratch) const {
    const T* w = weight.panel(p) + k0 * panel_width;
    if constexpr (!copies) {
      return w;
    } else {
      using V = Simd<S>;
      using Tile = PanelTile<T, 1>;
      for (Index k = 0; k < depth; ++k, w += panel_width) {
        S* to = scratch + k * panel_width;
        for (int part = 0; part < TileShape<S>::row / Tile::together; ++part) {
          for (int i = 0; i < Tile::together; ++i) V::store(to + Tile::column(part, i), Tile::weights(w, part, i));
        }
      }
      return scratch;
    }
  }
};

/// The weights as a map [out, in]: each block is transposed into scratch for the same kernel.
template <class T> struct MappedRows {
  using Stored = T;
  using S = arithmetic_t<T>;
  ConstMatrixRef<T> weight;
  static constexpr bool direct = false, copies = true;

  const void* address(Index p, Index k0) const { return weight.data() + p * panel_width * weight.outerStride() + k0; }
  static constexpr Index row_bytes = 0;  // 32 rows, not one stream

  const S* block(Index p, Index k0, Index depth, S* scratch) const {
    using V = Simd<S>;
    constexpr int width = V::width;
    const Index last = weight.rows() - 1;  // rows past the end repeat the last row: their outputs are dropped
    for (Index r = 0; r < panel_width; r += width) {
      const T* rows[std::size_t(width)];
      for (int i = 0; i < width; ++i) rows[i] = weight.data() + (std::min)(p * panel_width + r + i, last) * weight.outerStride() + k0;
      Index k = 0;
      for (; k + width <= depth; k += width) {
        typename V::Packet square[std::size_t(width)];
#pragma GCC unroll 16
        for (int i = 0; i < width; ++i) square[i] = V::load(rows[i] + k);
        V::transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < width; ++i) V::store(scratch + (k + i) * panel_width + r, square[i]);
      }
      for (; k < depth; ++k)
        for (int i = 0; i < width; ++i) scratch[k * panel_width + r + i] = widen(rows[i][k]);
    }
    return scratch;
  }
};

/// The weights as a map [in, out]: rows are copied into scratch as they lie.
template <class T> struct MappedColumns {
  using Stored = T;
  using S = arithmetic_t<T>;
  ConstMatrixRef<T> weight;
  static constexpr bool direct = false, copies = true;

  const void* address(Index p, Index k0) const { return weight.data() + k0 * weight.outerStride() + p * panel_width; }
  static constexpr Index row_bytes = 0;

  const S* block(Index p, Index k0, Index depth, S* scratch) const {
    const Index columns = (std::min)(panel_width, weight.cols() - p * panel_width);
    for (Index k = 0; k < depth; ++k) {
      const T* from = weight.data() + (k0 + k) * weight.outerStride() + p * panel_width;
      S* to = scratch + k * panel_width;
      for (Index c = 0; c < columns; ++c) to[c] = widen(from[c]);
      for (Index c = columns; c < panel_width; ++c) to[c] = S(0);
    }
    return scratch;
  }
};

}}}  // namespace pith::v0::detail

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
