#pragma once
// The rows of an image in a prompt, before and after a reduction.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/model/splice.hpp>

namespace pith { inline namespace v0 {

/// The embedding rows of one image, in the order of its image tokens. They come in runs, one for each run of image tokens in the prompt:
/// one a tile where text stands between tiles, else one.
template <class S = float> struct ImageRows {
  /// Image tokens without text between them.
  struct Run {
    Index tokens = 0;  ///< before any reduction
    Index rows = 0;    ///< after it
  };

  Matrix<S> rows;                         ///< [rows, hidden]
  std::vector<Run> runs;                  ///< in order
  std::vector<Index> lines = {};          ///< LLaVA-OneVision: the line of the grid that each token belongs to, -1: none; empty: no lines
  std::vector<Index> newlines = {};       ///< the token that ends each line
  std::vector<std::int32_t> row_of = {};  ///< [tokens] the row of its run that each token became part of, -1: none; empty: its own
  Vector<S> masses = {};                  ///< [rows] tokens merged into each; empty: 1 each

  Index tokens() const {
    Index sum = 0;
    for (const Run& run : runs) sum += run.tokens;
    return sum;
  }

  /// The runs for splice(); they point into this object, which must outlive them.
  std::vector<MediaRows<S>> media() const {
    std::vector<MediaRows<S>> out;
    Index row = 0, token = 0;
    for (const Run& run : runs) {
      MediaRows<S>& one = out.emplace_back();
      one.rows = ConstMatrixRef<S>(rows).middleRows(row, run.rows);
      if (!row_of.empty()) one.row_of = {row_of.data() + token, static_cast<std::size_t>(run.tokens)};
      if (masses.size() > 0) one.masses = ConstVectorRef<S>(masses.data() + row, run.rows);
      row += run.rows;
      token += run.tokens;
    }
    return out;
  }
};

}}  // namespace pith::v0
