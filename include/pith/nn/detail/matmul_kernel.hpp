#pragma once

#include <algorithm>
#include <type_traits>

#include <pith/core/check.hpp>
#include <pith/core/detail/processor.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/detail/panel_kernel.hpp>

// Products of tokens with panels of weights: which panels and tokens are multiplied together, and by which worker.

namespace pith { inline namespace v0 { namespace detail {

inline constexpr Index token_block = 128;                  // tokens that share a pass over the weights
inline constexpr Index copied_depth = 512;                 // columns of x copied together: 128 rows of them fit half of L2
inline constexpr Index copied_stride = copied_depth + 16;  // not a power of two: rows spread over all sets of L1
inline constexpr Index copy_tokens = 24;                   // with this many tokens, distant rows of x would evict each other
inline constexpr double worth_waking = 1 << 16;            // multiply-adds below which a second worker costs more than it saves

template <class S> struct Product {
  Product(const ConstMatrixRef<S>& x_, const ConstVectorRef<S>& bias_, MatrixRef<S>& y_)
      : x(x_.data()),
        bias(bias_.size() ? bias_.data() : nullptr),
        y(y_.data()),
        x_stride(x_.outerStride()),
        y_stride(y_.outerStride()),
        tokens(x_.rows()),
        in(x_.cols()),
        out(y_.cols()) {}
  /// The same product of some of the tokens.
  Product part(Share rows) const {
    Product of_rows = *this;
    of_rows.x += rows.begin * x_stride, of_rows.y += rows.begin * y_stride, of_rows.tokens = rows.end - rows.begin;
    return of_rows;
  }

  const S* x;
  const S* bias;  // nullptr: none
  S* y;
  Index x_stride, y_stride, tokens, in, out;
};

/// The start of the chains of some columns: the bias, or zeros.
template <class S> const S* first_sums(const Product<S>& o, Index column) {
  alignas(64) static constexpr S zeros[4 * panel_width] = {};
  return o.bias ? o.bias + column : zeros;
}

/// Adds the products of `depth` rows of weights to y[begin … end) of panel p, and prefetches `row_bytes` for each row from `ahead` on.
template <class S, class T>
void panel_rows(const Product<S>& o, Index p, Index begin, Index end, const S* x, Index x_stride, const T* w, Index depth, bool first,
                const void* ahead, Index row_bytes) {
  constexpr Index most = TileShape<S>::tokens;
  const Index column = p * panel_width, columns = (std::min)(panel_width, o.out - column);
  const Index tiles = (end - begin + most - 1) / most;
  const Index step = row_bytes / tiles;
  S edge[std::size_t(most * panel_width)];
  for (Index i = 0; i < tiles; ++i) {
    const Share rows = share(end - begin, i, tiles);  // even tiles: a single leftover token could not hide its latency
    const Index tokens = rows.end - rows.begin;
    S* y = o.y + (begin + rows.begin) * o.y_stride + column;
    const Index y_stride = o.y_stride;
    TileArgs<S> a{x + rows.begin * x_stride,
                  x_stride,
                  depth,
                  first ? first_sums(o, column) : y,
                  first ? 0 : y_stride,
                  y,
                  y_stride,
                  static_cast<const char*>(ahead) + i * step * depth,
                  step};
    if (columns == panel_width) {
      run_tile<T>(int(tokens), a, w);
      continue;
    }
    for (Index t = 0; t < tokens; ++t) {
      std::copy_n(a.from + t * a.from_stride, columns, edge + t * panel_width);
      std::fill_n(edge + t * panel_width + columns, panel_width - columns, S(0));
    }
    a.from = a.to = edge, a.from_stride = a.to_stride = panel_width;
    run_tile<T>(int(tokens), a, w);
    for (Index t = 0; t < tokens; ++t) std::copy_n(edge + t * panel_width, columns, y + t * y_stride);
  }
}

inline constexpr Index tile_of_several = 10;  // tokens: rows of x, at any stride, that L1 holds beside a stream of weights

/// Whether any number of tokens is multiplied by panels of T as they are stored, instead of by blocks, widened first if T is narrow.
template <class T>
inline constexpr bool streams_any = (sizeof(T) < sizeof(arithmetic_t<T>) ? processor.narrow_streamed : processor.floats_streamed) &&
                                    (TileShape<arithmetic_t<T>>::tokens > tile_of_several);

/// Multiplies tokens by the panels as they are stored: one register tile, or several, which find the panel in L2 after the first.
///
/// A single token takes several panels together: more chains hide their latency, and the hardware prefetches more streams, each within its
/// page. Bytes take longer to widen than to read: two panels are enough, unless few lines are prefetched.
template <class Source, class S> void product_streamed(const Product<S>& o, const Source& w, Share panels) {
  using T = typename Source::Stored;
  constexpr int together = sizeof(T) == 1 && !processor.few_lines ? (std::min)(2, TileShape<S>::alone) : TileShape<S>::alone;
  const Index in = o.in;
  Index p = panels.begin;
  const auto ahead = [&](Index bytes) { return static_cast<const char*>(w.address(p, 0)) + bytes; };
  if constexpr (together > 1) {
    const Index whole = o.tokens == 1 ? (std::min)(panels.end, o.out / panel_width) : 0;
    for (; p + together <= whole; p += together) {
      const Index column = p * panel_width;
      PanelTile<T, 1, together>::run({o.x, 0, in, first_sums(o, column), 0, o.y + column, 0,
                                      ahead(processor.few_lines ? 2 * fetched_ahead : fetched_ahead), Source::row_bytes},
                                     w.panel(p), in * panel_width);
    }
  }
  constexpr Index distance = (processor.few_lines && sizeof(T) == sizeof(S) ? 2 : 1) * fetched_ahead;
  constexpr Index most = processor.floats_streamed ? (std::min)(tile_of_several, Index(TileShape<S>::tokens)) : TileShape<S>::tokens;
  const Index tiles = o.tokens <= most ? 1 : (o.tokens + tile_of_several - 1) / tile_of_several;
  for (; p < panels.end; ++p) {
    for (Index i = 0; i < tiles; ++i) {
      const Share rows = share(o.tokens, i, tiles);
      panel_rows(o, p, rows.begin, rows.end, o.x + rows.begin * o.x_stride, o.x_stride, w.panel(p), in, true, ahead(distance),
                 i == 0 ? Source::row_bytes : 0);
    }
  }
}

/// Multiplies any number of tokens by blocks of weights, which stay in L1 while the tokens pass.
template <class Source, class S> void product_blocked(const Product<S>& o, const Source& w, Share panels, S* block, S* copy) {
  constexpr Index depth = TileShape<S>::depth;
  const Index in = o.in, tokens = o.tokens;
  const Index passes = (tokens + token_block - 1) / token_block;
  for (Index pass = 0; pass < passes; ++pass) {
    const Share rows = share(tokens, pass, passes);
    const Index columns = copy ? copied_depth : in;
    for (Index k1 = 0; k1 < in; k1 += columns) {
      const Index width = (std::min)(columns, in - k1);
      const S* x = o.x + rows.begin * o.x_stride + k1;
      Index x_stride = o.x_stride;
      if (copy) {
        for (Index t = 0; t < rows.end - rows.begin; ++t) std::copy_n(x + t * x_stride, width, copy + t * copied_stride);
        x = copy, x_stride = copied_stride;
      }
      for (Index p = panels.begin; p < panels.end; ++p) {
        for (Index k = 0; k < width; k += depth) {
          const Index rest = (std::min)(depth, width - k);
          const bool same = k + depth < width;
          const Index next = same ? p : (std::min)(p + 1, panels.end - 1);
          panel_rows(o, p, rows.begin, rows.end, x + k, x_stride, w.block(p, k1 + k, rest, block), rest, k1 + k == 0,
                     w.address(next, same ? k1 + k + depth : k1), Source::row_bytes);
        }
      }
    }
  }
}

/// Calls the source's finish(), if it has one: it turns the complete sums of some panels into outputs.
template <class Source, class S> void finish(const Product<S>& o, const Source& w, Share panels) {
  if constexpr (requires { w.finish(o, panels); }) w.finish(o, panels);
}

template <class Source, class S> void product(const Product<S>& o, const Source& w, Workspace& ws) {
  const Index tokens = o.tokens, in = o.in, out = o.out;
  if (tokens == 0 || out == 0) return;
  const Index panels = (out + panel_width - 1) / panel_width;
  if (in == 0) {
    for (Index t = 0; t < tokens; ++t)
      for (Index c = 0; c < out; ++c) o.y[t * o.y_stride + c] = o.bias ? o.bias[c] : S(0);
    return finish(o, w, Share{0, panels});
  }
  const Index workers = double(tokens) * double(in) * double(out) < worth_waking ? 1 : ws.workers();
  if constexpr (Source::direct) {
    if (tokens <= TileShape<S>::tokens || streams_any<typename Source::Stored>) {
      ws.executor()(workers, [&](Index i) {
        const Index passes = (tokens + token_block - 1) / token_block;
        for (Index pass = 0; pass < passes; ++pass) product_streamed(o.part(share(tokens, pass, passes)), w, share(panels, i, workers));
        finish(o, w, share(panels, i, workers));
      });
      return;
    }
  }
  const Workspace::Scope scope(ws);
  constexpr Index block_size = TileShape<S>::depth * panel_width;
  const Index copy_size = tokens >= copy_tokens ? (std::min)(tokens, token_block) * copied_stride : 0;
  S* blocks = Source::copies ? ws.take<S>(workers * block_size) : nullptr;
  S* copies = copy_size > 0 ? ws.take<S>(workers * copy_size) : nullptr;
  ws.executor()(workers, [&](Index i) {
    product_blocked(o, w, share(panels, i, workers), blocks ? blocks + i * block_size : nullptr, copies ? copies + i * copy_size : nullptr);
    finish(o, w, share(panels, i, workers));
  });
}

template <class S>
void check_product(const char* where, const ConstMatrixRef<S>& x, Index in, Index out, Index bias, const MatrixRef<S>& y) {
  check_shape(where, "x", x, any_extent, in);
  check_shape(where, "y", y, x.rows(), out);
  if (bias != 0 && bias != out) [[unlikely]]
    raise<ShapeError>("pith::", where, ": bias has ", bias, " entries, expected ", out, " or none");
}

}}}  // namespace pith::v0::detail
