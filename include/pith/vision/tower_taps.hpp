#pragma once

#include <cstddef>
#include <vector>

#include <pith/core/types.hpp>
#include <pith/core/view.hpp>

// What a tower returns in addition to its features, and the part of a tile that it reads.

namespace pith { inline namespace v0 {

/// Attention and keys that forward() writes along with the features, for methods that drop or merge patches. Empty views are skipped. All
/// but the last two come from the layer that makes the last feature.
template <class S = float> struct TowerTaps {
  MatrixRef<S> class_attention = {};     ///< [heads, tokens] softmax row of the class token in each head
  VectorRef<S> attention_received = {};  ///< [tokens] attention of all tokens, averaged over them and the heads
  MatrixRef<S> key_mean = {};            ///< [tokens, head_dim] keys, averaged over the heads
  VectorRef<S> last_class_query = {};    ///< [hidden_size] the class token's query in the last layer of all, for PruMerge
  MatrixRef<S> last_keys = {};           ///< [tokens, hidden_size] keys of the last layer of all
};

/// The part of a tile that shows an image, in patches from the upper left corner; the rest is padding, which no patch attends to.
struct TileExtent {
  Index height = 0, width = 0;  ///< 0: the whole tile
};

/// Called with each hidden state: what the first layer reads is 0, what layer l gives is l + 1, none of them normed.
struct NoTowerProbe {
  template <class S> void operator()(Index, const ConstMatrixRef<S>&) const {}
};

/// The row of the position table for each patch of a tile: floor(i g/h) g + floor(j g/w) for patch (i, j) of an extent of h x w patches, in
/// whole numbers; row 0 for padding. A whole tile has its patches' own rows.
///
/// Shapes   returns [grid*grid]
inline std::vector<Index> tile_positions(Index grid, const TileExtent& extent) {
  std::vector<Index> out(static_cast<std::size_t>(grid * grid));
  for (Index i = 0; i < extent.height; ++i)
    for (Index j = 0; j < extent.width; ++j)
      out[static_cast<std::size_t>(i * grid + j)] = i * grid / extent.height * grid + j * grid / extent.width;
  return out;
}

}}  // namespace pith::v0
