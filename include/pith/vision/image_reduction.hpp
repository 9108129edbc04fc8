#pragma once
// Reductions of an image's rows before they enter a prompt, each at its published place.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/vision/detail/row_choice.hpp>
#include <pith/vision/image_rows.hpp>
#include <pith/vision/vision_model.hpp>

namespace pith { inline namespace v0 {

/// Which rows of an image a prompt gets. Where each patch has a row, ToMe, PruMerge and VisionZip work on the tower's features, before the
/// projector, as published; where rows are made of blocks of patches, or of tiles of any resolution, behind it, by the tower's numbers
/// averaged over each row's patches. The tiles of an image share one budget, because they repeat each other.
enum class ImageReduction : std::uint8_t {
  none,           ///< all rows
  tome,           ///< merges the most similar, by keys, again and again; each merge takes at most half
  tome_tower,     ///< ToMe where it was published: merges inside the tower, between attention and feed-forward of its layers
  prumerge,       ///< the rows the class token looks at most, others added to them, and one row of the rest: towers with a class token
  prumerge_plus,  ///< PruMerge+: and rows at equal distances, about three for each
  visionzip,      ///< the rows that receive most attention (from the class token, or without one from all), and contextual rows of the rest
  divprune,       ///< the most diverse projected rows
};

/// An entry of the catalogue.
struct ImageReductionEntry {
  ImageReduction reduction;
  std::string_view name;          ///< as image_reduction() takes it
  std::string_view keeps, paper;  ///< one line each
};

/// All reductions. Tests, examples and the README read this list.
inline std::span<const ImageReductionEntry> image_reductions() {
  static constexpr ImageReductionEntry entries[] = {
      {ImageReduction::none, "all", "every row", ""},
      {ImageReduction::tome, "tome", "means of the rows whose keys are most similar", "2210.09461"},
      {ImageReduction::tome_tower, "tome-tower", "merged rows, by keys of the tower's layers, which work on fewer and fewer", "2210.09461"},
      {ImageReduction::prumerge, "prumerge", "rows the class token looks at most, with their neighbours, and one of the rest",
       "2403.15388"},
      {ImageReduction::prumerge_plus, "prumerge+", "PruMerge's rows, and three times as many at equal distances", "2403.15388"},
      {ImageReduction::visionzip, "visionzip", "rows that receive most attention, and contextual rows of the rest", "2412.04467"},
      {ImageReduction::divprune, "divprune", "the most diverse rows", "2503.02175"},
  };
  return entries;
}

/// The reduction of this name.
///
/// Throws   UnsupportedError, which lists all
inline ImageReduction image_reduction(std::string_view name) {
  std::string known;
  for (const ImageReductionEntry& entry : image_reductions()) {
    if (entry.name == name) return entry.reduction;
    known += known.empty() ? detail::text(entry.name) : detail::text(", ", entry.name);
  }
  raise<UnsupportedError>("pith::image_reduction: no reduction '", name, "': ", known);
}

/// Options of reduce_image().
struct ReduceOptions {
  Index keep = 64;        ///< rows that are left of an image, newlines aside; more than there are: all
  Index contextual = -1;  ///< visionzip: those of them that are merged rows; -1: 10 of 64, as published
  Index neighbours = 32;  ///< prumerge and prumerge+: rows added to each
  bool by_rows = false;   ///< tome: compares the rows themselves, not keys, so the features need no taps
  bool masses = false;    ///< tome and tome-tower: gives ImageRows::masses, for sessions that keep them
};

/// What Vision::look() has to be asked for, for a reduction behind the tower.
inline TapOptions taps_for(ImageReduction reduction) {
  return {.scores = reduction == ImageReduction::tome || reduction == ImageReduction::visionzip,
          .last = reduction == ImageReduction::prumerge || reduction == ImageReduction::prumerge_plus};
}
/// The same for any reduction: inside the tower, rows of each tile are merged to an equal share of options.keep.
///
/// Throws   ShapeError if its layers cannot merge that many (merge_steps_to()), UnsupportedError where reduce_image() does
template <class S>
TapOptions taps_for(ImageReduction reduction, const Vision<S>& vision, const ImageTiles& tiles, const ReduceOptions& options) {
  TapOptions taps = taps_for(reduction);
  const VisionConfig& c = vision.tower.config();
  const Index each = options.keep / (std::max)(Index(1), tiles.count()) - (c.class_token && !vision.spec.drop_first ? 1 : 0);
  if (reduction != ImageReduction::tome_tower) return taps;
  detail::RowChoice<S>::check_in_tower(vision);
  if (each < c.patches()) taps.merge = merge_steps_to(c, (std::max)(Index(1), each));
  return taps;
}

/// Projects features to rows, as Vision::project(), and leaves `keep` of them.
///
/// Rows are in the order of their patches, but for prumerge (by falling attention) and visionzip before the projector (the class token,
/// dominant rows, contextual rows), as published. A newline of LLaVA-OneVision stays while a row of its line does. tome_tower gives the
/// rows that the tower left and does not read `keep`.
///
/// Cost     that of the projector for the rows left (for all rows where the reduction works behind it), and of the method
/// Heap     the rows, numbers of each row and workspaces
/// Throws   ShapeError if the features lack the taps of taps_for(reduction), UnsupportedError for prumerge and prumerge_plus without a
///          class token, and for both and tome_tower before a projector of blocks or tiles of any resolution
/// Paper    ToMe: arXiv:2210.09461; LLaVA-PruMerge: arXiv:2403.15388; VisionZip: arXiv:2412.04467; DivPrune: arXiv:2503.02175
template <class S>
ImageRows<S> reduce_image(const Vision<S>& vision, const ImageTiles& tiles, const ImageFeatures<S>& seen, ImageReduction reduction,
                          const ReduceOptions& options, Workspace& ws) {
  if (options.keep < 1 || options.neighbours < 0)
    raise<ShapeError>("pith::reduce_image: ", options.keep, " rows kept and ", options.neighbours, " neighbours, expected 1 and 0 or more");
  const detail::RowChoice<S> choice{vision, tiles, seen, ws};
  switch (reduction) {
    case ImageReduction::tome:
      return choice.tome(options.keep, options.by_rows, options.masses);
    case ImageReduction::prumerge:
      return choice.prumerge(options.keep, options.neighbours, false);
    case ImageReduction::prumerge_plus:
      return choice.prumerge(options.keep, options.neighbours, true);
    case ImageReduction::tome_tower:
      return choice.merged_in_tower(options.masses);
    case ImageReduction::visionzip:
      return choice.visionzip(options.keep, options.contextual);
    case ImageReduction::divprune:
      return choice.divprune(options.keep);
    default:
      return vision.project(tiles, seen, ws);
  }
}

}}  // namespace pith::v0
