#pragma once
// The vision half of a vision-language model: recipe, tower, projector, and what its prompts look like.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/vision/detail/any_resolution.hpp>
#include <pith/vision/image_recipe.hpp>
#include <pith/vision/image_rows.hpp>
#include <pith/vision/projector.hpp>
#include <pith/vision/tower.hpp>
#include <pith/vision/tower_merge.hpp>
#include <pith/vision/vlm_spec.hpp>

namespace pith { inline namespace v0 {

/// What a tower gives for the tiles of one image; taps are empty unless they were asked for. Rows of tile t begin at t*tokens.
template <class S = float> struct ImageFeatures {
  Matrix<S> features;                     ///< [tiles*tokens, feature_size]
  Matrix<S> class_attention;              ///< [tiles*heads, tokens]
  Vector<S> attention_received;           ///< [tiles*tokens]
  Matrix<S> key_mean;                     ///< [tiles*tokens, head_dim]
  Matrix<S> last_class_query;             ///< [tiles, hidden_size]
  Matrix<S> last_keys;                    ///< [tiles*tokens, hidden_size]
  std::vector<std::int32_t> merged_into;  ///< [tiles*tokens] the row of its tile that each token was merged into; empty: none was
  Index tiles = 0;
};

/// Which taps of the tower Vision::look() is asked for.
struct TapOptions {
  bool scores = false;            ///< attention received, the class token's attention if there is one, and keys
  bool last = false;              ///< the class token's query and all keys of the last layer
  std::vector<Index> merge = {};  ///< ToMe inside the tower: tokens merged in each layer (TowerMerge); goes with no tap
};

/// A vision tower with its recipe and projector: images to rows of a decoder's prompt.
///
/// load_vision(folder) makes one. Const methods are thread-safe.
template <class S = float> struct Vision {
  VisionTower<S> tower;
  Projector<S> projector;
  ImageRecipe recipe;
  VlmSpec spec;
  Vector<S> newline = {};                 ///< [hidden] LLaVA-OneVision: a row behind each line of the grid
  std::vector<std::string> ignored = {};  ///< contents of the folder that are not used, each worth a warning

  Index rows_per_tile() const {
    return projector.block() == 1 ? tower.config().tokens() - (spec.drop_first ? 1 : 0) : projector.rows(tower.config().grid());
  }

  /// Throws   ShapeError if tower, projector and recipe do not fit each other
  void check() const {
    const auto refuse = [](const auto&... what) { raise<ShapeError>("pith::Vision: ", what...); };
    const VisionConfig& c = tower.config();
    if (projector.in() != c.feature_size()) refuse("the projector takes ", projector.in(), " features, the tower gives ", c.feature_size());
    if (c.grid() % projector.block() != 0)
      refuse("a grid of ", c.grid(), " patches a side is no multiple of the projector's blocks of ", projector.block());
    if (newline.size() != 0 && newline.size() != projector.out())
      refuse("newline has ", newline.size(), " features, expected ", projector.out());
    const bool grid = recipe.tiles == TileRule::pinpoints, packed = rows_per_tile() == c.patches() && newline.size() > 0;
    if ((grid || projector.block() > 1) && (c.class_token || spec.drop_first))
      if (!grid || rows_per_tile() != c.patches())
        refuse("the rows of a tile are no grid: ", rows_per_tile(), " of ", c.patches(), " patches");
    if (grid && !packed) refuse("tiles of any resolution need a row for each patch and a newline");
    recipe.check();
    const ImageSize made = recipe.crop != ImageSize{} ? recipe.crop : recipe.size;
    const bool known = recipe.resize && (recipe.crop != ImageSize{} || recipe.shortest_edge == 0);
    if (known && made != ImageSize{c.image_size, c.image_size})
      refuse("images become tiles of ", made.height, " x ", made.width, " pixels, the tower looks at ", c.image_size, " x ", c.image_size);
  }

  /// Makes the tiles of an image: ImageRecipe::prepare().
  ImageTiles prepare(const ImageView& image, Index images = 1) const { return recipe.prepare(image, images); }

  /// Runs the tower over the tiles of an image. Tokens that are merged inside it have the features of their row, so that rows made of
  /// blocks of patches still find all of them.
  ///
  /// Heap     what it returns; a TowerMerge and a tile's rows where tokens are merged
  /// Throws   ShapeError for tiles of another size, and where TowerMerge does
  ImageFeatures<S> look(const ImageTiles& tiles, Workspace& ws, const TapOptions& options = {}) const {
    const VisionConfig& c = tower.config();
    const Index n = c.tokens(), count = tiles.count(), heads = c.num_attention_heads;
    if (tiles.tile != ImageSize{c.image_size, c.image_size} || count < 1)
      raise<ShapeError>("pith::Vision::look: ", count, " tiles of ", tiles.tile.height, " x ", tiles.tile.width,
                        " pixels, expected some of ", c.image_size, " x ", c.image_size);
    if (!options.merge.empty() && (options.scores || options.last))
      raise<ShapeError>("pith::Vision::look: taps of a tower that merges tokens: their rows are fewer in each layer");
    ImageFeatures<S> out;
    out.tiles = count;
    out.features.resize(count * n, c.feature_size());
    if (!options.merge.empty()) {
      TowerMerge<S> merge(c, options.merge);
      Matrix<S> rows(n, c.feature_size());
      for (Index t = 0; t < count; ++t) {
        tower.forward(tiles.planes(t), rows, ws, merge);
        for (Index i = 0; i < n; ++i) out.features.row(t * n + i) = rows.row(merge.row_of()[static_cast<std::size_t>(i)]);
        out.merged_into.insert(out.merged_into.end(), merge.row_of().begin(), merge.row_of().end());
      }
      return out;
    }
    if (options.scores) {
      out.attention_received.resize(count * n);
      out.key_mean.resize(count * n, c.head_dim());
      if (c.class_token) out.class_attention.resize(count * heads, n);
    }
    if (options.last) {
      out.last_keys.resize(count * n, c.hidden_size);
      if (c.class_token) out.last_class_query.resize(count, c.hidden_size);
    }
    const auto part = [](Matrix<S>& all, Index t, Index rows) {
      return all.size() == 0 ? MatrixRef<S>() : MatrixRef<S>(all.middleRows(t * rows, rows));
    };
    for (Index t = 0; t < count; ++t) {
      const TowerTaps<S> taps{
          .class_attention = part(out.class_attention, t, heads),
          .attention_received = options.scores ? VectorRef<S>(out.attention_received.data() + t * n, n) : VectorRef<S>(),
          .key_mean = part(out.key_mean, t, n),
          .last_class_query = out.last_class_query.size() > 0 ? VectorRef<S>(out.last_class_query.data() + t * c.hidden_size, c.hidden_size)
                                                              : VectorRef<S>(),
          .last_keys = part(out.last_keys, t, n)};
      tower.forward(tiles.planes(t), out.features.middleRows(t * n, n), ws, taps);
    }
    return out;
  }

  /// Projects features to the rows of an image, in the order of its image tokens.
  ///
  /// Heap     what it returns
  ImageRows<S> project(const ImageTiles& tiles, const ImageFeatures<S>& seen, Workspace& ws) const {
    const Index n = tower.config().tokens(), first = spec.drop_first ? 1 : 0, each = rows_per_tile();
    check_seen(tiles, seen);
    Matrix<S> rows(seen.tiles * each, projector.out());
    for (Index t = 0; t < seen.tiles; ++t) {
      const auto of_tile = seen.features.middleRows(t * n + first, n - first);
      if (projector.block() == 1)
        projector.forward_each(of_tile, rows.middleRows(t * each, each), ws);
      else
        projector.forward(of_tile, tower.config().grid(), rows.middleRows(t * each, each), ws);
    }
    return arranged(tiles, rows);
  }

  /// prepare(), look() and project() with memory of their own.
  ImageRows<S> rows(const ImageView& image, Index images = 1, ExecutorRef executor = serial) const {
    const ImageTiles tiles = prepare(image, images);
    Workspace ws(workspace_bytes(executor.size()), executor);
    return project(tiles, look(tiles, ws), ws);
  }

  /// Bytes of workspace for look() and project().
  std::size_t workspace_bytes(Index workers = 1) const {
    return (std::max)(tower.workspace_bytes(workers), projector.workspace_bytes(tower.config().grid() + 1, workers));
  }

  /// Numbers of the tower's tokens as numbers of an image's rows, by which rows are chosen: averaged over the patches of a row, scaled and
  /// cut as rows are. Newlines get 0.
  ///
  /// Shapes   of_tokens [tiles*tokens, any] · returns [rows, any]
  Matrix<S> per_row(const ImageTiles& tiles, std::type_identity_t<ConstMatrixRef<S>> of_tokens) const {
    const VisionConfig& c = tower.config();
    const Index n = c.tokens(), first = spec.drop_first ? 1 : 0, each = rows_per_tile(), count = tiles.count();
    check_shape("Vision::per_row", "of_tokens", of_tokens, count * n, any_extent);
    Matrix<S> out(count * each, of_tokens.cols());
    for (Index t = 0; t < count; ++t) {
      const auto of_tile = of_tokens.middleRows(t * n + first, n - first);
      if (projector.block() == 1)
        out.middleRows(t * each, each) = of_tile;
      else
        projector.average(of_tile, c.grid(), out.middleRows(t * each, each));
    }
    if (recipe.tiles != TileRule::pinpoints) return out;
    if (tiles.rows == 0) {
      out.conservativeResize(out.rows() + 1, Eigen::NoChange);
      out.bottomRows(1).setZero();
      return out;
    }
    const Vector<S> none = Vector<S>::Zero(out.cols());
    return detail::any_resolution_rows<S>(tiles, c.grid(), spec.anyres_max, out, none).rows;
  }

 private:
  void check_seen(const ImageTiles& tiles, const ImageFeatures<S>& seen) const {
    if (seen.tiles != tiles.count()) raise<ShapeError>("pith::Vision: features of ", seen.tiles, " tiles for ", tiles.count());
    check_shape("Vision", "features", seen.features, seen.tiles * tower.config().tokens(), tower.config().feature_size());
  }
  ImageRows<S> arranged(const ImageTiles& tiles, Matrix<S>& rows) const {
    if (recipe.tiles == TileRule::pinpoints && tiles.rows > 0)
      return detail::any_resolution_rows<S>(tiles, tower.config().grid(), spec.anyres_max, rows, newline);
    ImageRows<S> out{.rows = std::move(rows), .runs = {}};
    const Index each = rows_per_tile();
    if (recipe.tiles == TileRule::pinpoints) {  // one of several images: its rows and one newline
      out.rows.conservativeResize(each + 1, Eigen::NoChange);
      out.rows.row(each) = newline.transpose();
      out.lines.assign(static_cast<std::size_t>(each + 1), 0);
      out.newlines.push_back(each);
      out.runs = {{each + 1, each + 1}};
      return out;
    }
    out.runs.assign(static_cast<std::size_t>(tiles.count()), {each, each});
    return out;
  }
};

}}  // namespace pith::v0
