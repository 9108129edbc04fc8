#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include <pith/core/check.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/detail/matmul_kernel.hpp>

// The kernel of nearest_rows() and similarity_matrix(): products of rows, a panel of kept rows at a time, and the largest cosine of each.
namespace pith { inline namespace v0 { namespace detail {

inline constexpr Index similar_rows = 120;             // rows multiplied by a panel at a time: whole register tiles of every packet width
inline constexpr Index similar_copy = Index(1) << 16;  // their numbers at most: they stay in L2 while the panels pass
inline constexpr Index similar_gap = 16;               // keeps the row distance off powers of two: rows spread over all sets of L1

/// The number of rows copied and multiplied together.
inline Index rows_together(Index dim) {
  return std::clamp(similar_copy / ((std::max)(Index(0), dim) + similar_gap), Index(12), similar_rows);
}

/// out[r] = 1 / |row r|; 0 for a row of zeros, whose cosine to every row is 0.
template <class S> void inverse_norms(const ConstMatrixRef<S>& rows, S* out) {
  for (Index r = 0; r < rows.rows(); ++r) {
    const S norm = rows.row(r).norm();
    out[r] = norm == S(0) ? S(0) : S(1) / norm;
  }
}

/// Tracks for one row, in each lane of a packet, the largest products[c] * inverse[c] and the packet of kept rows it came from.
///
/// The update is a few instructions without a branch. NaN is never the largest. `tied` (optional) marks lanes that met their largest value
/// more than once.
template <class S> struct LargestLanes {
  using V = Simd<S>;
  static constexpr S lowest = -std::numeric_limits<S>::infinity();
  S* value;
  S* packet;  // small integers, exact in S
  S* tied = nullptr;

  void start() {
    V::store(value, V::broadcast(lowest));
    V::store(packet, V::zero());
    if (tied != nullptr) V::store(tied, V::zero());
  }
  /// Takes in one panel, from kept row c on; inverse has a number for each of its columns.
  template <bool Ties> void look(const S* products, const S* inverse, Index c) {
    auto most = V::load(value), from = V::load(packet), here = V::broadcast(static_cast<S>(c / V::width));
    [[maybe_unused]] auto again = V::zero();
    if constexpr (Ties) again = V::load(tied);
#pragma GCC unroll 16
    for (Index i = 0; i < panel_width; i += V::width) {
      const auto x = V::mul(V::load(products + i), V::load(inverse + i));
      const auto larger = V::less(most, x);
      if constexpr (Ties) again = V::select(larger, V::zero(), V::select(V::equal(most, x), V::broadcast(S(1)), again));
      most = V::select(larger, x, most);
      from = V::select(larger, here, from);
      here = V::add(here, V::broadcast(S(1)));
    }
    V::store(value, most);
    V::store(packet, from);
    if constexpr (Ties) V::store(tied, again);
  }
  /// Whether more than one kept row has the largest value.
  bool is_tied(S largest) const {
    Index count = 0;
    for (Index lane = 0; lane < V::width; ++lane)
      if (value[lane] == largest) count += tied[lane] != S(0) ? 2 : 1;
    return count > 1;
  }
  /// The first kept row that has the largest value; -1: all values were -inf or NaN.
  Index at() const {
    Index best = -1;
    S largest = lowest;
    for (Index lane = 0; lane < V::width; ++lane) {
      const Index c = static_cast<Index>(packet[lane]) * V::width + lane;
      if (value[lane] > largest || (value[lane] == largest && best >= 0 && c < best)) largest = value[lane], best = c;
    }
    return best;
  }
};

template <class S> void check_similar(const char* where, const ConstMatrixRef<S>& rows, const ConstMatrixRef<S>& kept) {
  if (kept.rows() == 0) raise<ShapeError>("pith::", where, ": no kept rows, expected at least one to compare with");
  constexpr Index most = (Index(1) << (std::min)(31, std::numeric_limits<S>::digits)) - 1;  // LargestLanes counts in S
  if (kept.rows() > most) raise<CapacityError>("pith::", where, ": ", kept.rows(), " kept rows, expected at most ", most);
  check_shape(where, "rows", rows, any_extent, kept.cols());
}

/// Multiplies all rows by all kept rows, 32 kept rows at a time, and calls look(worker, r, count, c, products) for each block.
///
/// products [count, 32] are those of rows r … with kept rows c …; columns beyond the last kept row hold arbitrary numbers. A worker looks
/// at its own rows only, at all blocks of the same rows in ascending c before it goes on. meet(c, count) is called earlier for every panel,
/// while its kept rows are in L1. Each product is one multiply-add chain, as in matmul(): its bits depend on its own two rows only.
template <class S, class Meet, class Look>
void each_product(const ConstMatrixRef<S>& rows, const ConstMatrixRef<S>& kept, Workspace& ws, Meet&& meet, Look&& look) {
  const Index n = rows.rows(), m = kept.rows(), dim = kept.cols(), panels = (m + panel_width - 1) / panel_width;
  if (n == 0) return;
  const Index together = rows_together(dim), stride = dim + similar_gap, panel = dim * panel_width;
  // Few rows: one worker uses each panel while it is still in L1. Many rows: all panels are packed first, and every worker reads them.
  const bool few = n <= together;
  const Index step = few ? 1 : panels, workers = few || double(n) * double(m) * double(dim) < worth_waking ? 1 : ws.workers();
  const Workspace::Scope scope(ws);
  S* const copies = ws.take<S>(workers * together * stride);
  S* const products = ws.take<S>(workers * together * panel_width);
  S* const packed = ws.take<S>(step * panel);
  const MappedRows<S> source{kept};
  for (Index first = 0; first < panels; first += step) {
    ws.executor()(workers, [&](Index worker) {
      const Share mine = share(step, worker, workers);
      for (Index p = mine.begin; p < mine.end; ++p) {
        source.block(first + p, 0, dim, packed + p * panel);
        meet((first + p) * panel_width, (std::min)(panel_width, m - (first + p) * panel_width));
      }
    });
    ws.executor()(workers, [&](Index worker) {
      const Share mine = share(n, worker, workers);
      S* const copy = copies + worker * together * stride;
      MatrixRef<S> out(products + worker * together * panel_width, together, panel_width);
      if (dim == 0) out.setZero();
      for (Index r = mine.begin; r < mine.end; r += together) {
        const Index count = (std::min)(together, mine.end - r);
        for (Index t = 0; first == 0 && t < count; ++t) std::copy_n(rows.data() + (r + t) * rows.outerStride(), dim, copy + t * stride);
        const Product<S> o(ConstMatrixRef<S>(copy, count, dim, stride), {}, out);
        for (Index p = 0; p < step; ++p) {
          const S* const w = packed + p * panel;
          for (Index k = 0; k < dim; k += TileShape<S>::depth)
            panel_rows(o, 0, 0, count, copy + k, stride, w + k * panel_width, (std::min)(TileShape<S>::depth, dim - k), k == 0,
                       packed + (std::min)(p + 1, step - 1) * panel + k * panel_width, panel_width * Index(sizeof(S)));
          look(worker, r, count, (first + p) * panel_width, static_cast<const S*>(out.data()));
        }
      }
    });
  }
}

/// nearest_rows(), after the checks.
template <class S> struct NearestRows {
  static constexpr Index lanes = Simd<S>::width;
  ConstMatrixRef<S> rows, kept;
  std::span<std::int32_t> match;
  VectorRef<S> cosine;
  Workspace& ws;
  std::span<const Position> positions;

  void find() {
    const Index m = kept.rows(), together = rows_together(rows.cols()), padded = (m + panel_width - 1) / panel_width * panel_width;
    const Workspace::Scope scope(ws);
    S* const inverse = ws.take<S>(padded);
    S* const values = ws.take<S>(ws.workers() * together * lanes);
    S* const packets = ws.take<S>(ws.workers() * together * lanes);
    S* const ties = ws.take<S>(ws.workers() * together * lanes);
    const bool ties_matter = !positions.empty();
    std::fill(inverse + m, inverse + padded, std::numeric_limits<S>::quiet_NaN());  // columns beyond the last row are never the largest
    const auto meet = [&](Index c, Index count) { inverse_norms(ConstMatrixRef<S>(kept.middleRows(c, count)), inverse + c); };
    each_product<S>(rows, kept, ws, meet, [&](Index worker, Index r, Index count, Index c, const S* products) {
      for (Index t = 0; t < count; ++t) {
        const Index place = (worker * together + t) * lanes;
        LargestLanes<S> largest{values + place, packets + place, ties + place};
        if (c == 0) largest.start();
        if (ties_matter)
          largest.template look<true>(products + t * panel_width, inverse + c, c);
        else
          largest.template look<false>(products + t * panel_width, inverse + c, c);
        if (c + panel_width < padded) continue;
        S row_inverse;
        inverse_norms(ConstMatrixRef<S>(rows.middleRows(r + t, 1)), &row_inverse);
        const Index best = largest.at();
        const S most = best < 0 ? -std::numeric_limits<S>::infinity() : largest.value[best % lanes];
        match[static_cast<std::size_t>(r + t)] = static_cast<std::int32_t>(best);
        cosine[r + t] = best < 0 ? most : most * row_inverse;
        if (ties_matter && best >= 0 && largest.is_tied(most)) match[static_cast<std::size_t>(r + t)] = tied_mark;
      }
    });
    for (Index r = 0; ties_matter && r < rows.rows(); ++r)
      if (match[static_cast<std::size_t>(r)] == tied_mark) match[static_cast<std::size_t>(r)] = oldest_of_largest(r, inverse);
  }

 private:
  static constexpr std::int32_t tied_mark = -2;

  /// Breaks the tie of row r: computes its products again, with the same bits, and returns the kept row of lowest position.
  std::int32_t oldest_of_largest(Index r, const S* inverse) {
    S most = -std::numeric_limits<S>::infinity();
    Index oldest = -1;
    const auto take = [&](Index c, S x) {
      if (x > most || (x == most && oldest >= 0 && positions[static_cast<std::size_t>(c)] < positions[static_cast<std::size_t>(oldest)])) {
        most = x;
        oldest = c;
      }
    };
    each_product<S>(
        ConstMatrixRef<S>(rows.middleRows(r, 1)), kept, ws, [](Index, Index) {},
        [&](Index, Index, Index, Index c, const S* products) {
          for (Index i = 0; i < (std::min)(panel_width, kept.rows() - c); ++i) take(c + i, products[i] * inverse[c + i]);
        });
    return static_cast<std::int32_t>(oldest);
  }
};

}}}  // namespace pith::v0::detail
