#pragma once
// Lays out the scratch memory that a worker needs to attend one tile of queries.

#include <algorithm>
#include <limits>

#include <pith/attention/detail/attend_kernel.hpp>
#include <pith/attention/detail/score_columns.hpp>
#include <pith/attention/shape.hpp>
#include <pith/core/check.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>
#include <pith/core/workspace.hpp>

namespace pith { inline namespace v0 { namespace detail {

inline constexpr Index attention_tile = 16;  ///< most queries attended together

/// The scratch memory of a worker while it attends a tile: offsets into one slice of S.
template <class S> struct TileMemory {
  Index lanes, head_dim, padded, row_stride, blocks;  ///< lanes: queries times group; padded: head_dim in whole packets
  Index queries, sink_queries, shown, sums, mass, largest, top, total, inverse, log_sum, stage, columns, weights, queries_that_see, picked,
      floors, inverse_of_read, size;

  TileMemory(const AttentionShape& shape, Index rows, Index tokens) {
    const auto product = [](Index a, Index b) { return checked_product("attend", a, b); };
    const Index width = Simd<S>::width, line = Index(Workspace::alignment / sizeof(S));
    check_size(rows);
    check_size(shape.head_dim);
    lanes = product(shape.group(), (std::min)(tokens, attention_tile));
    head_dim = shape.head_dim;
    padded = (head_dim + width - 1) / width * width;
    blocks = rows / attention_block + 2;                        // every run starts a new block
    row_stride = (blocks * attention_block / line | 1) * line;  // an odd number of lines: rows of weights do not share cache sets
    if (row_stride < blocks * attention_block) row_stride += 2 * line;
    size = 0;
    const auto take = [&](Index n) {
      const Index at = size;
      if (__builtin_add_overflow(size, (n + line - 1) / line * line, &size)) check_size(-1);
      return at;
    };
    queries = take(product(lanes, padded));
    sink_queries = take(product(lanes, padded));
    shown = take(product(lanes, head_dim));
    sums = take(product(lanes, padded));
    mass = take(product(lanes, attention_block));
    largest = take(product(lanes, width));
    top = take(lanes);
    total = take(lanes);
    inverse = take(lanes);
    log_sum = take(lanes);
    stage = take(product(attention_block, padded));
    columns = take(lanes < ColumnScores<S>::worth_turning ? 0 : product(attention_block, padded));
    weights = take(product(lanes, row_stride));
    queries_that_see = take(blocks);
    picked = take(product(blocks, attention_block));
    floors = take(lanes);
    inverse_of_read = take(lanes);
    checked_product("attend", size, Index(sizeof(S)));
  }

 private:
  static void check_size(Index n) {
    constexpr Index most = (std::numeric_limits<Index>::max)() / 64;
    if (n < 0 || n > most) raise<CapacityError>("pith::attend: ", n, " rows or features are negative or too many");
  }
};

}}}  // namespace pith::v0::detail
