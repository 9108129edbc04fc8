#pragma once
// Projectors: features of an image tower to embedding rows of a decoder.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <type_traits>
#include <utility>
#include <variant>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/linear.hpp>
#include <pith/nn/norm.hpp>
#include <pith/vision/tower_config.hpp>

namespace pith { inline namespace v0 {

/// LLaVA: a row for each patch, linear2(act(linear1(x))).
template <class S = float> struct MlpProjector {
  AnyLinear<S> linear1, linear2;
  VisionActivation activation = VisionActivation::gelu;
};

/// PaliGemma: a row for each patch, linear(x).
template <class S = float> struct PlainProjector { AnyLinear<S> linear; };

/// SmolVLM and Idefics 3: a row for each block of scale x scale patches, linear(their features side by side, row by row).
template <class S = float> struct PixelShuffleProjector {
  AnyLinear<S> linear;
  Index scale = 2;
};

/// Gemma 3: a row for each block of pool x pool patches, linear(norm(their mean)).
template <class S = float> struct PooledProjector {
  AnyLinear<S> linear;
  RmsNorm<S> norm;
  Index pool = 4;
};

/// A projector of any kind.
///
/// Heap     none in forward(x, grid, y, ws), given ws of workspace_bytes(grid, workers)
/// Law      the same bits for any number of workers
template <class S = float> class Projector {
 public:
  using Scalar = S;
  using Kind = std::variant<MlpProjector<S>, PlainProjector<S>, PixelShuffleProjector<S>, PooledProjector<S>>;

  Projector() = default;
  /// Throws   ShapeError if its parts disagree
  Projector(Kind kind) : kind_(std::move(kind)) {
    const auto refuse = [](const auto&... what) { raise<ShapeError>("pith::Projector: ", what...); };
    if (block() < 1 || block() > 1024) refuse("blocks of ", block(), " patches a side, expected 1 to 1024");
    if (const auto* mlp = std::get_if<MlpProjector<S>>(&kind_); mlp != nullptr && mlp->linear1.out() != mlp->linear2.in())
      refuse("linear1 gives ", mlp->linear1.out(), " features, linear2 takes ", mlp->linear2.in());
    if (const auto* pooled = std::get_if<PooledProjector<S>>(&kind_); pooled != nullptr && pooled->norm.size() != pooled->linear.in())
      refuse("the norm has ", pooled->norm.size(), " features, linear takes ", pooled->linear.in());
    if (const Index each = shuffled() ? block() * block() : 1; first().in() % each != 0)
      refuse("linear takes ", first().in(), " features, expected a multiple of the ", each, " patches of a block");
  }

  const Kind& kind() const { return kind_; }
  Index in() const { return first().in() / (shuffled() ? block() * block() : 1); }  ///< features of a patch
  Index out() const { return last().out(); }                                        ///< features of a row
  /// The side of the block of patches that each row is made of: 1 where each patch has a row.
  Index block() const {
    if (const auto* shuffle = std::get_if<PixelShuffleProjector<S>>(&kind_)) return shuffle->scale;
    const auto* pooled = std::get_if<PooledProjector<S>>(&kind_);
    return pooled != nullptr ? pooled->pool : 1;
  }
  Index rows(Index grid) const { return grid / block() * (grid / block()); }  ///< rows of a tile of grid x grid patches
  std::size_t bytes() const {
    const auto* mlp = std::get_if<MlpProjector<S>>(&kind_);
    return last().bytes() + (mlp != nullptr ? mlp->linear1.bytes() : 0);
  }

  /// The rows of one tile.
  ///
  /// Shapes   x [grid*grid, in] · y [rows(grid), out]
  /// Throws   ShapeError if they disagree or a grid is no multiple of block()
  void forward(ConstMatrixRef<S> x, Index grid, std::type_identity_t<MatrixRef<S>> y, Workspace& ws) const {
    check_grid(grid);
    check_shape("Projector", "x", x, grid * grid, in());
    check_shape("Projector", "y", y, rows(grid), out());
    if (block() == 1) return forward_each(x, y, ws);
    for (Index t = 0; t < y.rows(); t += tile) {
      const Index count = (std::min)(tile, y.rows() - t);
      const Workspace::Scope scope(ws);
      MatrixRef<S> blocks = ws.matrix<S>(count, first().in());
      for (Index r = 0; r < count; ++r) gather(x, grid, t + r, blocks.middleRows(r, 1));
      if (const auto* pooled = std::get_if<PooledProjector<S>>(&kind_)) pooled->norm.forward(blocks, blocks);
      first().forward(blocks, y.middleRows(t, count), ws);
    }
  }
  /// Rows before the projector that no longer form a grid, as reductions leave them: of projectors that give each patch a row.
  ///
  /// Shapes   x [rows, in] · y [rows, out]
  /// Throws   ShapeError if they disagree, UnsupportedError for a projector of blocks
  void forward_each(ConstMatrixRef<S> x, std::type_identity_t<MatrixRef<S>> y, Workspace& ws) const {
    if (block() != 1)
      raise<UnsupportedError>("pith::Projector: each row is made of ", block(), " x ", block(),
                              " patches, so it needs them all: reduce rows behind the projector");
    check_shape("Projector", "x", x, any_extent, in());
    check_shape("Projector", "y", y, x.rows(), out());
    const auto* mlp = std::get_if<MlpProjector<S>>(&kind_);
    for (Index t = 0; t < x.rows(); t += tile) {
      const Index count = (std::min)(tile, x.rows() - t);
      if (mlp == nullptr) {
        last().forward(x.middleRows(t, count), y.middleRows(t, count), ws);
        continue;
      }
      const Workspace::Scope scope(ws);
      const MatrixRef<S> hidden = ws.matrix<S>(count, mlp->linear1.out());
      mlp->linear1.forward(x.middleRows(t, count), hidden, ws);
      activate<S>(mlp->activation, hidden);
      mlp->linear2.forward(hidden, y.middleRows(t, count), ws);
    }
  }

  /// Numbers of patches as numbers of rows: the mean of each row's block. For attention and keys, by which rows are chosen.
  ///
  /// Shapes   of_patches [grid*grid, any] · of_rows [rows(grid), any]
  void average(ConstMatrixRef<S> of_patches, Index grid, std::type_identity_t<MatrixRef<S>> of_rows) const {
    check_grid(grid);
    check_shape("Projector::average", "of_patches", of_patches, grid * grid, any_extent);
    check_shape("Projector::average", "of_rows", of_rows, rows(grid), of_patches.cols());
    for (Index r = 0; r < of_rows.rows(); ++r) mean(of_patches, grid, r, of_rows.middleRows(r, 1));
  }

  std::size_t workspace_bytes(Index grid, Index workers = 1) const {
    const Index count = (std::min)(tile, (std::max)(Index(1), grid * grid));
    return Workspace::bytes_for<S>(count, first().in()) + Workspace::bytes_for<S>(count, first().out()) +
           (std::max)(first().workspace_bytes(count, workers), last().workspace_bytes(count, workers));
  }

  static constexpr Index tile = 128;  ///< rows computed together

 private:
  const AnyLinear<S>& first() const {
    const auto* mlp = std::get_if<MlpProjector<S>>(&kind_);
    return mlp != nullptr ? mlp->linear1 : last();
  }
  const AnyLinear<S>& last() const {
    if (const auto* mlp = std::get_if<MlpProjector<S>>(&kind_)) return mlp->linear2;
    if (const auto* plain = std::get_if<PlainProjector<S>>(&kind_)) return plain->linear;
    if (const auto* shuffle = std::get_if<PixelShuffleProjector<S>>(&kind_)) return shuffle->linear;
    return std::get_if<PooledProjector<S>>(&kind_)->linear;
  }
  bool shuffled() const { return std::holds_alternative<PixelShuffleProjector<S>>(kind_); }
  void check_grid(Index grid) const {
    if (grid < 1 || grid % block() != 0)
      raise<ShapeError>("pith::Projector: a grid of ", grid, " patches a side, expected a multiple of ", block());
  }

  /// Calls each(patch) for the patches of a row's block, row by row.
  template <class F> void for_block(Index grid, Index row, F&& each) const {
    const Index side = block(), across = grid / side, top = row / across * side, left = row % across * side;
    for (Index y = 0; y < side; ++y)
      for (Index x = 0; x < side; ++x) each((top + y) * grid + left + x);
  }
  void mean(const ConstMatrixRef<S>& x, Index grid, Index row, MatrixRef<S> out) const {
    out.setZero();
    for_block(grid, row, [&](Index patch) { out.row(0) += x.row(patch); });
    out /= static_cast<S>(block() * block());
  }
  void gather(const ConstMatrixRef<S>& x, Index grid, Index row, MatrixRef<S> out) const {
    if (!shuffled()) return mean(x, grid, row, out);
    Index place = 0;
    for_block(grid, row, [&](Index patch) { out.row(0).segment(x.cols() * place++, x.cols()) = x.row(patch); });
  }

  Kind kind_;
};

}}  // namespace pith::v0
