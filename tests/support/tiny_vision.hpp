#pragma once

#include <string>
#include <utility>
#include <vector>

#include <pith/vision.hpp>

#include "support/random_matrix.hpp"

namespace pith_test {

/// A tower of random weights: 3 layers, 3 heads of 8, tiles of 26 pixels in 6 x 6 patches of 4, two pixels left over.
template <class S> pith::VisionTower<S> tiny_tower(bool clip, std::vector<pith::Index> features, bool post_norm, std::uint64_t seed = 3) {
  using pith::Index;
  pith::VisionConfig c{
      .hidden_size = 24, .intermediate_size = 40, .num_hidden_layers = 3, .num_attention_heads = 3, .image_size = 26, .patch_size = 4};
  c.activation = clip ? pith::VisionActivation::quick_gelu : pith::VisionActivation::gelu_tanh;
  c.class_token = c.pre_norm = clip;
  c.features = std::move(features);
  c.post_norm = post_norm;
  const auto matrix = [&](Index rows, Index cols, S scale) { return pith::Matrix<S>(scale * random_matrix<S>(rows, cols, seed++)); };
  const auto vector = [&](Index size, S about) {
    return pith::Vector<S>((S(.2) * random_matrix<S>(size, 1, seed++)).col(0).array() + about);
  };
  const auto linear = [&](Index in, Index out) {
    pith::Matrix<S> weight = matrix(out, in, S(.3));
    return pith::AnyLinear<S>(pith::Linear<S>(std::move(weight), vector(out, 0)));
  };
  const auto norm = [&] {
    pith::Vector<S> weight = vector(24, 1);
    return pith::LayerNorm<S>(std::move(weight), vector(24, 0), S(1e-5));
  };
  pith::VisionWeights<S> w;
  w.patch = linear(48, 24);
  if (clip) w.class_token = vector(24, 0);
  w.positions = matrix(c.tokens(), 24, S(.5));
  if (clip) w.pre_norm = norm();
  w.post_norm = norm();
  for (int l = 0; l < 3; ++l)
    w.layers.push_back({norm(), norm(), linear(24, 24), linear(24, 24), linear(24, 24), linear(24, 24), linear(24, 40), linear(40, 24)});
  return {c, std::move(w)};
}

/// Vision models of random weights whose rows have 10 features; `kind`: llava, siglip (LLaVA with SigLIP), onevision, smolvlm, gemma3.
template <class S> pith::Vision<S> tiny_vision(const std::string& kind) {
  using namespace pith;
  std::uint64_t seed = 100;
  const auto linear = [&](Index in, Index out) { return AnyLinear<S>(Linear<S>(S(.2) * random_matrix<S>(out, in, seed++))); };
  Vision<S> v;
  v.spec.model_type = kind;
  v.spec.image_token = 900;
  v.recipe.size = {26, 26};
  if (kind == "llava" || kind == "siglip" || kind == "onevision") {
    v.tower = tiny_tower<S>(kind == "llava", {kind == "llava" ? Index(2) : Index(3)}, false);
    v.projector = typename Projector<S>::Kind(MlpProjector<S>{linear(24, 10), linear(10, 10)});
    v.spec.drop_first = kind == "llava";
  } else if (kind == "smolvlm") {
    v.tower = tiny_tower<S>(false, {3}, true);
    v.projector = typename Projector<S>::Kind(PixelShuffleProjector<S>{linear(24 * 4, 10), 2});
    v.spec.marks = ImageMarks::tiles;
    v.recipe.tiles = TileRule::split;
    v.recipe.longest_edge = 52;
  } else {
    v.tower = tiny_tower<S>(false, {3}, true);
    v.projector = typename Projector<S>::Kind(PooledProjector<S>{linear(24, 10), RmsNorm<S>(Vector<S>::Ones(24)), 3});
    v.spec.marks = ImageMarks::bounds;
    v.spec.sight = ImageSight::runs;
    v.recipe.tiles = TileRule::pan;
    v.recipe.pan = {.min_crop = 8, .max_crops = 3, .min_ratio = 1.2};
  }
  if (kind == "onevision") {
    v.recipe.tiles = TileRule::pinpoints;
    v.recipe.pinpoints = {{26, 26}, {26, 52}, {52, 26}, {52, 52}};
    v.newline = random_matrix<S>(10, 1, 77).col(0);
  }
  v.check();
  return v;
}

/// An image of smooth and of random parts.
inline pith::Image tiny_picture(pith::Index height, pith::Index width, std::uint32_t seed = 1) {
  pith::Image out{{}, height, width};
  for (pith::Index i = 0; i < 3 * height * width; ++i) {
    seed = seed * 1664525 + 1013904223;
    const pith::Index x = i / 3 % width;
    out.pixels.push_back(static_cast<std::uint8_t>(x < width / 2 ? 3 * x + i % 3 * 40 : static_cast<pith::Index>(seed >> 24)));
  }
  return out;
}

}  // namespace pith_test
