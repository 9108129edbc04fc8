#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/executor.hpp>
#include <pith/core/view.hpp>
#include <pith/io/detail/linear_reader.hpp>
#include <pith/io/detail/vision_fields.hpp>
#include <pith/io/detail/vision_plan.hpp>
#include <pith/io/weights_layout.hpp>
#include <pith/nn/linear.hpp>
#include <pith/nn/norm.hpp>
#include <pith/vision/projector.hpp>
#include <pith/vision/tower_config.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Reads the tensors of a tower and its projector. The weights of patches keep their values under every layout.
template <class S> class VisionReader {
 public:
  VisionReader(VisionPlan& plan, WeightsLayout layout, bool check_finite, ExecutorRef executor)
      : plan_(plan), layout_(layout), reader_(layout, check_finite, executor) {}

  VisionWeights<S> tower(const VisionFields& fields) {
    const VisionConfig& c = fields.tower;
    const Index d = c.hidden_size, f = c.intermediate_size, p = c.patch_size;
    const std::string patch = "tower.embeddings.patch_embedding";
    VisionWeights<S> out;
    const Vector<S> bias = fields.clip ? Vector<S>() : vector(patch + ".bias", d);
    out.patch = layer(plan_.want(patch + ".weight", {d, 3, p, p}), mapped() ? layout_ : WeightsLayout::packed, bias);
    if (c.class_token) out.class_token = vector("tower.embeddings.class_embedding", d);
    out.positions = matrix("tower.embeddings.position_embedding.weight", c.tokens(), d);
    if (c.pre_norm) out.pre_norm = norm("tower.pre_layrnorm", c);
    if (c.post_norm || plan_.has("tower.post_layernorm.weight")) out.post_norm = norm("tower.post_layernorm", c);
    for (Index l = 0; l < c.num_hidden_layers; ++l) {
      const std::string prefix = text("tower.encoder.layers.", l, ".");
      VisionLayer<S>& to = out.layers.emplace_back();
      to.norm1 = norm(prefix + "layer_norm1", c);
      to.q = linear(prefix + "self_attn.q_proj", d, d);
      to.k = linear(prefix + "self_attn.k_proj", d, d);
      to.v = linear(prefix + "self_attn.v_proj", d, d);
      to.out = linear(prefix + "self_attn.out_proj", d, d);
      to.norm2 = norm(prefix + "layer_norm2", c);
      to.fc1 = linear(prefix + "mlp.fc1", f, d);
      to.fc2 = linear(prefix + "mlp.fc2", d, f);
    }
    return out;
  }

  /// `hidden`: the decoder's.
  Projector<S> projector(const VisionFields& fields, Index hidden) {
    const Index in = fields.tower.feature_size();
    switch (fields.projector) {
      case ProjectorKind::mlp:
        return typename Projector<S>::Kind(MlpProjector<S>{.linear1 = linear("projector.linear_1", hidden, in, fields.projector_bias),
                                                           .linear2 = linear("projector.linear_2", hidden, hidden, fields.projector_bias),
                                                           .activation = fields.activation});
      case ProjectorKind::plain:
        return typename Projector<S>::Kind(PlainProjector<S>{linear("projector.linear", hidden, in)});
      case ProjectorKind::shuffle:
        return typename Projector<S>::Kind(PixelShuffleProjector<S>{
            .linear = linear("projector.modality_projection.proj", hidden, in * fields.block * fields.block, false),
            .scale = fields.block});
      default: {
        Vector<S> weight = vector("projector.mm_soft_emb_norm.weight", in);
        weight.array() += S(1);
        const Matrix<S> columns = matrix("projector.mm_input_projection_weight", in, hidden).transpose();  // stored for y = x W
        return typename Projector<S>::Kind(PooledProjector<S>{.linear = PackedLinear<S>(ConstMatrixRef<S>(columns)),
                                                              .norm = RmsNorm<S>(std::move(weight), S(fields.tower.layer_norm_eps)),
                                                              .pool = fields.block});
      }
    }
  }

  Vector<S> newline(Index hidden) { return vector("newline", hidden); }

 private:
  using Place = VisionPlan::Place;

  Vector<S> vector(const std::string& name, Index size) {
    const Place place = plan_.want(name, {size});
    reader_.check_values(place);
    return place.file->template load_vector<S>(place.tensor->name);
  }
  Matrix<S> matrix(const std::string& name, Index rows, Index cols) {
    const Place place = plan_.want(name, {rows, cols});
    reader_.check_values(place);
    return place.file->template load_matrix<S>(place.tensor->name);
  }
  LayerNorm<S> norm(const std::string& name, const VisionConfig& c) {
    Vector<S> weight = vector(name + ".weight", c.hidden_size);
    return LayerNorm<S>(std::move(weight), vector(name + ".bias", c.hidden_size), S(c.layer_norm_eps));
  }
  AnyLinear<S> linear(const std::string& name, Index out, Index in, bool biased = true) {
    const Vector<S> bias = biased ? vector(name + ".bias", out) : Vector<S>();
    return layer(plan_.want(name + ".weight", {out, in}), layout_, bias);
  }
  AnyLinear<S> layer(const Place& place, WeightsLayout layout, const Vector<S>& bias) const {
    AnyLinear<S> out;
    LinearReader<S>::template with_rows<LinearReader<S>::template computes_in_s>(
        place, [&](const auto& all, bool in_place) { out = reader_.linear(place, all, 0, all.rows(), layout, in_place, bias); });
    reader_.release(place);
    return out;
  }
  bool mapped() const { return layout_ == WeightsLayout::mapped; }

  VisionPlan& plan_;
  WeightsLayout layout_;
  LinearReader<S> reader_;
};

}}}  // namespace pith::v0::detail
