#pragma once
// The sizes and weights of an image tower.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/nn/activation.hpp>
#include <pith/nn/linear.hpp>
#include <pith/nn/norm.hpp>

namespace pith { inline namespace v0 {

/// The activations of image towers and projectors.
enum class VisionActivation : std::uint8_t {
  quick_gelu,  ///< CLIP
  gelu_tanh,   ///< SigLIP
  gelu,        ///< OpenCLIP, and projectors
};

/// Applies the activation to every number, in place.
template <class S> void activate(VisionActivation activation, std::type_identity_t<MatrixRef<S>> x) {
  if (activation == VisionActivation::quick_gelu) return activate<S>(QuickGelu{}, x);
  if (activation == VisionActivation::gelu_tanh) return activate<S>(GeluTanh{}, x);
  activate<S>(Gelu{}, x);
}

/// What an image tower is: a vision transformer of CLIP or SigLIP, by its sizes and switches.
struct VisionConfig {
  std::string model_type = "siglip_vision_model";  ///< a name for messages; the tower does not look at it
  Index hidden_size = 0;
  Index intermediate_size = 0;
  Index num_hidden_layers = 0;
  Index num_attention_heads = 0;
  Index image_size = 0;  ///< pixels of each side of a tile
  Index patch_size = 0;  ///< pixels of each side of a patch; pixels beyond the last whole patch are not looked at
  VisionActivation activation = VisionActivation::gelu_tanh;
  double layer_norm_eps = 1e-6;
  bool class_token = false;  ///< CLIP: token 0 stands for the whole tile
  bool pre_norm = false;     ///< CLIP: a norm before the first layer
  /// The hidden states that forward() gives, side by side: 0 is what the first layer reads, l what layer l - 1 gives. No later layer runs.
  std::vector<Index> features = {};
  bool post_norm = false;  ///< norms the feature, which is the only one

  Index grid() const { return image_size / patch_size; }  ///< patches of each side
  Index patches() const { return grid() * grid(); }       ///< patches of a tile
  Index tokens() const { return patches() + (class_token ? 1 : 0); }
  Index head_dim() const { return hidden_size / num_attention_heads; }
  Index patch_values() const { return 3 * patch_size * patch_size; }
  Index feature_size() const { return hidden_size * static_cast<Index>(features.size()); }

  /// Throws   ShapeError naming the field, its value and what is expected
  void check() const {
    const auto check_size = [](const char* field, Index value, Index most) {
      if (value < 1 || value > most) raise<ShapeError>("pith::VisionConfig: ", field, " is ", value, ", expected 1 to ", most);
    };
    check_size("hidden_size", hidden_size, most_features);
    check_size("intermediate_size", intermediate_size, most_features);
    check_size("num_hidden_layers", num_hidden_layers, 4096);
    check_size("num_attention_heads", num_attention_heads, hidden_size);
    check_size("image_size", image_size, 1 << 15);
    check_size("patch_size", patch_size, (std::min)(image_size, Index(1) << 10));
    check_size("image_size / patch_size", grid(), 1 << 10);
    if (hidden_size % num_attention_heads != 0)
      raise<ShapeError>("pith::VisionConfig: num_attention_heads is ", num_attention_heads, ", expected a divisor of hidden_size, ",
                        hidden_size);
    if (!(layer_norm_eps >= 0) || !std::isfinite(layer_norm_eps))
      raise<ShapeError>("pith::VisionConfig: layer_norm_eps is ", layer_norm_eps, ", expected a finite number >= 0");
    if (features.empty()) raise<ShapeError>("pith::VisionConfig: no features, expected one or more hidden states");
    for (const Index f : features)
      if (f < 0 || f > num_hidden_layers)
        raise<ShapeError>("pith::VisionConfig: feature ", f, ", expected a hidden state of 0 .. ", num_hidden_layers);
    if (post_norm && features.size() > 1)
      raise<ShapeError>("pith::VisionConfig: post_norm with ", features.size(), " features, expected one");
  }

  static constexpr Index most_features = Index(1) << 20;
};

/// The weights of one layer: x += out(attend(q a, k a, v a)), a = norm1(x); x += fc2(act(fc1(norm2(x)))).
template <class S = float> struct VisionLayer {
  LayerNorm<S> norm1, norm2;
  AnyLinear<S> q, k, v, out, fc1, fc2;
};

/// The weights of a tower.
template <class S = float> struct VisionWeights {
  AnyLinear<S> patch;                       ///< [hidden, 3*patch*patch]: channel, row, column
  Vector<S> class_token;                    ///< [hidden] or empty
  Matrix<S> positions;                      ///< [tokens, hidden]
  LayerNorm<S> pre_norm;                    ///< empty without VisionConfig::pre_norm
  LayerNorm<S> post_norm;                   ///< empty without VisionConfig::post_norm
  std::vector<VisionLayer<S>> layers = {};  ///< those up to the last feature at least

  /// Throws   ShapeError naming the weight that does not fit the config
  void check(const VisionConfig& c) const {
    const auto refuse = [](const auto&... what) { raise<ShapeError>("pith::VisionWeights: ", what...); };
    const auto check_linear = [&](const std::string& name, const AnyLinear<S>& linear, Index in, Index out) {
      if (linear.empty()) refuse(name, " is empty");
      if (linear.in() != in || linear.out() != out)
        refuse(name, " is [", linear.out(), ", ", linear.in(), "], expected [", out, ", ", in, "]");
    };
    const auto check_norm = [&](const std::string& name, const LayerNorm<S>& norm, bool present) {
      if (norm.size() != (present ? c.hidden_size : 0) && (present || norm.size() != c.hidden_size))
        refuse(name, " has ", norm.size(), " features, expected ", c.hidden_size);
    };
    check_linear("patch", patch, c.patch_values(), c.hidden_size);
    if (class_token.size() != (c.class_token ? c.hidden_size : 0))
      refuse("class_token has ", class_token.size(), " features, expected ", c.class_token ? c.hidden_size : 0);
    check_shape("VisionWeights", "positions", positions, c.tokens(), c.hidden_size);
    check_norm("pre_norm", pre_norm, c.pre_norm);
    check_norm("post_norm", post_norm, c.post_norm);
    const Index last = *std::max_element(c.features.begin(), c.features.end());
    if (static_cast<Index>(layers.size()) < last || static_cast<Index>(layers.size()) > c.num_hidden_layers)
      refuse(layers.size(), " layers, expected ", last, " .. ", c.num_hidden_layers);
    for (std::size_t l = 0; l < layers.size(); ++l) {
      const std::string name = detail::text("layer ", l, ": ");
      const VisionLayer<S>& layer = layers[l];
      check_norm(name + "norm1", layer.norm1, true);
      check_norm(name + "norm2", layer.norm2, true);
      check_linear(name + "q", layer.q, c.hidden_size, c.hidden_size);
      check_linear(name + "k", layer.k, c.hidden_size, c.hidden_size);
      check_linear(name + "v", layer.v, c.hidden_size, c.hidden_size);
      check_linear(name + "out", layer.out, c.hidden_size, c.hidden_size);
      check_linear(name + "fc1", layer.fc1, c.hidden_size, c.intermediate_size);
      check_linear(name + "fc2", layer.fc2, c.intermediate_size, c.hidden_size);
    }
  }

  std::size_t bytes() const {
    std::size_t sum =
        patch.bytes() + static_cast<std::size_t>(class_token.size() + positions.size()) * sizeof(S) + pre_norm.bytes() + post_norm.bytes();
    for (const VisionLayer<S>& l : layers) {
      sum += l.norm1.bytes() + l.norm2.bytes();
      for (const AnyLinear<S>* linear : {&l.q, &l.k, &l.v, &l.out, &l.fc1, &l.fc2}) sum += linear->bytes();
    }
    return sum;
  }
};

}}  // namespace pith::v0
