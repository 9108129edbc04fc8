#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/merge/mass_weighted.hpp>
#include <pith/merge/token_map.hpp>
#include <pith/merge/tome.hpp>
#include <pith/vision/tower_config.hpp>

// ToMe inside an image tower: its layers merge tokens, and later layers work on fewer.

namespace pith { inline namespace v0 {

/// What ToMe merges inside a tower, and after VisionTower::forward() what became of every token.
///
/// Between attention and feed-forward of layer l, steps[l] tokens join the most similar ones, by the layer's keys averaged over the heads;
/// rows are means of all tokens they stand for. The class token stays alone. Rows are in the order of the tokens that stay.
///
///   softmax(q Kᵀ/√d + log m) V,   m the tokens that each row stands for;   x_b = (m_b x_b + Σ m_a x_a) / (m_b + Σ m_a)
///
/// Heap     at construction: a few numbers for each token
/// Law      masses() sum to the tower's tokens; rows() == tokens - the sum of the steps, each clipped to half of the patches left, if all
///          numbers are finite
/// Paper    ToMe, arXiv:2210.09461
template <class S = float> class TowerMerge {
 public:
  /// `steps`: tokens to merge in each layer that runs, as MergeSchedule::steps() or merge_steps_to() give them; none in layers that are not
  /// listed. `proportional`: attention counts a row as the tokens it stands for, as published for towers trained with labels or text.
  ///
  /// Throws   ShapeError for more steps than layers that run, for one below 0, and for a tower of several features
  TowerMerge(const VisionConfig& config, std::vector<Index> steps, bool proportional = true)
      : steps_(std::move(steps)),
        proportional_(proportional),
        protect_(config.class_token ? 1 : 0),
        map_((check(config), config.tokens())),
        row_of_(static_cast<std::size_t>(config.tokens())),
        masses_(config.tokens()),
        next_masses_(config.tokens()),
        log_masses_(config.tokens()) {
    start();
  }

  Index tokens() const { return masses_.size(); }                       ///< of the tower
  Index rows() const { return rows_; }                                  ///< that are left of them
  std::span<const std::int32_t> row_of() const { return row_of_; }      ///< [tokens] the row that each token became part of
  ConstVectorRef<S> masses() const { return {masses_.data(), rows_}; }  ///< [rows] tokens that each row stands for
  Index step(Index layer) const {                                       ///< tokens to merge in a layer
    return layer < static_cast<Index>(steps_.size()) ? steps_[static_cast<std::size_t>(layer)] : 0;
  }
  /// The logarithms of the masses, which attention adds; nullptr while they are all 0, or if it is not proportional.
  const float* log_masses() const { return proportional_ && rows_ < tokens() ? log_masses_.data() : nullptr; }

  /// Throws   ShapeError if this was made for a tower of other sizes
  void check_tower(const VisionConfig& config) const {
    if (tokens() != config.tokens() || protect_ != (config.class_token ? 1 : 0))
      raise<ShapeError>("pith::TowerMerge: made for ", tokens(), " tokens of a tower with", protect_ > 0 ? "" : "out",
                        " a class token, this one has ", config.tokens());
    check(config);
  }
  /// Begins a tile: each token is a row of its own.
  void start() {
    rows_ = tokens();
    std::iota(row_of_.begin(), row_of_.end(), 0);
    masses_.setOnes();
  }
  /// Merges step(layer) rows of x.
  ///
  /// Shapes   keys [rows, heads*dim] · metric [rows, dim] and merged [rows, features]: memory · x [rows, features], rows() of it are left
  /// Heap     none, given ws of workspace_bytes()
  void merge(Index layer, const MatrixRef<S>& keys, MatrixRef<S> metric, MatrixRef<S> merged, MatrixRef<S> x, Workspace& ws) {
    if (clipped_r(rows_, {.r = step(layer), .protect = protect_}) == 0) return;
    mean_over_heads<S>(keys, metric);
    match_bipartite<S>(metric, {.r = step(layer), .protect = protect_}, map_, ws);
    VectorRef<S> after(next_masses_.data(), map_.rows());
    map_.merge(x, merged.topRows(map_.rows()), MassWeighted{}, ws, {masses(), after});
    map_.follow(row_of_);
    rows_ = map_.rows();
    masses_.swap(next_masses_);
    x.topRows(rows_) = merged.topRows(rows_);
    pith::log_masses<S>(masses(), VectorRef<float>(log_masses_.data(), rows_));
  }
  static std::size_t workspace_bytes(const VisionConfig& config, Index workers = 1) {
    return token_match_workspace_bytes<S>(config.tokens(), config.head_dim(), workers) + TokenMap<S>::workspace_bytes(config.tokens());
  }

 private:
  void check(const VisionConfig& config) const {
    config.check();
    const auto refuse = [](const auto&... what) { raise<ShapeError>("pith::TowerMerge: ", what...); };
    if (config.features.size() != 1)
      refuse(config.features.size(), " features side by side, whose rows would differ in number; expected one");
    if (static_cast<Index>(steps_.size()) > config.features.front())
      refuse(steps_.size(), " steps, but ", config.features.front(), " layers run");
    for (const Index step : steps_)
      if (step < 0) refuse("a step of ", step, " tokens, expected 0 or more");
  }

  std::vector<Index> steps_;
  bool proportional_;
  Index protect_, rows_ = 0;
  TokenMap<S> map_;
  std::vector<std::int32_t> row_of_;
  Vector<S> masses_, next_masses_;
  Vector<float> log_masses_;
};

/// Steps for a TowerMerge that leaves `patches` rows of a tile, its class token aside: as many tokens in each layer, but more in early ones
/// where later ones could not merge enough, because each merges at most half.
///
/// Throws   ShapeError if the layers cannot merge that many
inline std::vector<Index> merge_steps_to(const VisionConfig& config, Index patches) {
  config.check();
  Index left = config.patches();
  std::vector<Index> steps(static_cast<std::size_t>(config.features.front()), 0);
  for (std::size_t l = 0; l < steps.size() && left > patches; ++l) {
    const auto layers = static_cast<Index>(steps.size() - l), later = (std::min)(layers - 1, Index(40));
    const Index even = (left - patches + layers - 1) / layers, least = left - (std::max)(patches, Index(0)) * (Index(1) << later);
    steps[l] = (std::min)((std::max)(even, least), left / 2);
    left -= steps[l];
  }
  if (left > patches)
    raise<ShapeError>("pith::merge_steps_to: ", steps.size(), " layers, each of which merges half of its tokens at most, leave ", left,
                      " of ", config.patches(), " patches, expected ", patches);
  return steps;
}

}}  // namespace pith::v0
