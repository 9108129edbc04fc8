#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <pith/core/fingerprint.hpp>
#include <pith/io/detail/checkpoint_plan.hpp>
#include <pith/io/dtype.hpp>
#include <pith/io/stored_module.hpp>
#include <pith/model/config.hpp>

// Tells checkpoints apart by their numbers.
namespace pith { inline namespace v0 { namespace detail {

/// Adds everything that a config says of the numbers that a decoder computes.
inline void hash_config(Fingerprint& f, const DecoderConfig& c) {
  const auto whole = [&](auto... numbers) { (f.number(static_cast<Index>(numbers)), ...); };
  const auto real = [&](auto... numbers) { (f.number(static_cast<double>(numbers)), ...); };
  f.string(c.model_type);
  whole(c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
        c.max_position_embeddings, c.norm, c.norm_plus_one, c.activation, c.tie_word_embeddings);
  real(c.norm_eps, c.embedding_scale, c.input_scale, c.logits_scale, c.logits_softcap);
  for (Index l = 0; l < c.num_hidden_layers; ++l) {
    const LayerSpec layer = c.layer(l);
    whole(layer.window, layer.rope, layer.qk_norm, layer.pre_attention, layer.pre_mlp, layer.post_attention, layer.post_mlp, layer.parallel,
          layer.query_scale.length);
    real(layer.attention_scale, layer.attention_softcap, layer.residual_scale, layer.query_scale.beta);
  }
  const Index ropes = (std::max)(Index(1), static_cast<Index>(c.ropes.size()));
  whole(ropes);
  for (Index i = 0; i < ropes; ++i) {
    const RopeOptions rope = c.rope(i);
    const RopeScaling& s = rope.scaling;
    whole(rope.rotary_width(), rope.interleaved, s.type, s.original_max_position_embeddings, s.truncate, s.short_factor.size(),
          s.long_factor.size());
    real(rope.theta, s.factor, s.low_freq_factor, s.high_freq_factor, s.beta_fast, s.beta_slow, s.mscale, s.mscale_all_dim,
         s.attention_factor);
    for (const std::vector<double>* list : {&s.short_factor, &s.long_factor})
      for (const double x : *list) real(x);
  }
}

/// Hash of everything that determines the meaning of a cached row; sharding, tensor order, the place in a larger model and config spelling
/// do not matter.
/// `rounded`: the format the weights were rounded to; empty: none.
inline std::uint64_t fingerprint(const DecoderConfig& c, const CheckpointPlan& plan, std::string_view rounded = {}) {
  Fingerprint f;
  if (!rounded.empty()) f.string(rounded);
  hash_config(f, c);
  for (const StoredModule& module : plan.modules())
    if (module.quantised()) {
      f.string(plan.plain_name(module.name));
      f.string(module.format);
      f.number(module.bits);
      f.number(module.group);
      f.number(module.group_rows);
    }
  constexpr std::size_t ends = 4096;
  for (const auto& [name, place] : plan.tensors()) {
    f.string(plan.plain_name(name));
    f.string(dtype_name(place.tensor->dtype));
    for (const Index extent : place.tensor->shape) f.number(extent);
    const std::span<const std::byte> data = place.bytes();
    f.bytes(data.first((std::min)(ends, data.size())));
    f.bytes(data.last((std::min)(ends, data.size())));
  }
  return f.value();
}

}}}  // namespace pith::v0::detail
