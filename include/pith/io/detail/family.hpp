#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include <pith/core/types.hpp>
#include <pith/io/detail/json_fields.hpp>
#include <pith/model/config.hpp>
#include <pith/peft/model_adapter.hpp>

// What a family of decoders is: how its config.json is resolved, and how its tensors are named.
namespace pith { inline namespace v0 { namespace detail {

/// Which layers have a sliding window where config.json has no layer_types.
enum class Windows : std::uint8_t {
  none,          ///< no layer, and layer_types is not read
  every,         ///< every layer if sliding_window is a number, and layer_types is not read
  late,          ///< with use_sliding_window: layers from max_window_layers on
  without_rope,  ///< with use_sliding_window: layers without rope
  pattern,       ///< all but every n-th
};

/// Which layers have no rope.
enum class Ropeless : std::uint8_t {
  none,
  listed,       ///< those where no_rope_layers holds 0; without the list, every n-th by no_rope_layer_interval
  full,         ///< those without a window
  full_beside,  ///< those without a window, in models that have a sliding_window
};

/// Which biases attention_bias promises.
enum class Biases : std::uint8_t {
  none,  ///< the key is not read
  qkv_always,
  qkv,
  qkvo,
};

/// The names of norms inside a layer, by NormPlace; nullptr: the layer has none there.
using NormNames = std::array<const char*, num_norms>;
inline constexpr const char *q_norm_name = "self_attn.q_norm", *k_norm_name = "self_attn.k_norm";
inline constexpr NormNames norms_before{"input_layernorm", nullptr, "post_attention_layernorm", nullptr, nullptr, nullptr};
inline constexpr NormNames norms_before_and_qk{"input_layernorm", nullptr, "post_attention_layernorm", nullptr, q_norm_name, k_norm_name};
inline constexpr NormNames norms_after_and_qk{nullptr,    "post_attention_layernorm", nullptr, "post_feedforward_layernorm", q_norm_name,
                                              k_norm_name};

/// What a family's folders are read with: defaults of config.json, rules for its lists, and names of tensors. What a row leaves out is a
/// Llama's.
struct Family {
  std::string_view model_type;
  std::string_view people;  ///< what its models are called

  // Sizes where config.json has none.
  Index hidden = 4096, intermediate = 11008, layers = 32, heads = 32;
  const char* intermediate_key = "intermediate_size";
  Index kv_heads = 0;  ///< 0: as many as heads
  Index head_dim = 0;  ///< 0: hidden / heads
  Index positions = 2048;
  double eps = 1e-6;
  double theta = 10000;        ///< 0: rope_theta is required
  bool null_kv_heads = true;   ///< num_key_value_heads may be null, which means as many as heads
  bool tied = false;           ///< the head is the embedding table
  std::array<Token, 3> eos{};  ///< 0: none
  Token bos = -1;              ///< -1: none

  // What its layers do.
  NormNames norms = norms_before;
  QkNorm qk_norm = QkNorm::none;
  NormKind norm = NormKind::rms;
  bool norm_plus_one = false, parallel = false;
  const char* activation_key = "hidden_act";
  GateActivation activation = GateActivation::silu;
  Windows windows = Windows::none;
  Index window = 0;           ///< sliding_window where config.json has none; 0: null
  Index period = 0;           ///< n of Windows::pattern
  bool period_by_key = true;  ///< sliding_window_pattern replaces it
  Index first_windowed = 28;  ///< max_window_layers where config.json has none
  Ropeless ropeless = Ropeless::none;

  // Its ropes.
  bool two_ropes = false;                  ///< the first for layers without a window, the second for the others
  const char* local_theta_key = nullptr;   ///< theta of the second rope; nullptr: rope_theta
  bool interleaved = false;                ///< features 2i and 2i + 1 turn together
  double rotating = 1;                     ///< partial_rotary_factor where config.json has none
  bool partial = false, longrope = false;  ///< whether partial_rotary_factor and longrope are read
  bool mrope = false;                      ///< for text, three equal positions: a plain rope

  // Its tensors.
  Biases attention_bias = Biases::none;
  bool attention_bias_default = false;
  bool mlp_bias = false;                          ///< mlp_bias is read
  bool fused_qkv = false, fused_gate_up = false;  ///< rows of one tensor
  const char *gate_up_name = "mlp.gate_up_proj", *down_name = "mlp.down_proj";
  std::string_view inert_key{};                               ///< a key of families that are not read, which changes nothing in this one
  void (*more)(const JsonFields&, DecoderConfig&) = nullptr;  ///< fills what the columns above do not

  constexpr const char* norm_name(NormPlace place) const { return norms[static_cast<std::size_t>(place)]; }
};

/// Where folders keep their decoders: the prefix of its tensors, and its head. In the order in which they are looked for.
struct DecoderPlace {
  const char *prefix, *head;
};
inline constexpr DecoderPlace decoder_places[] = {
    {"model.language_model.", "lm_head"},
    {"language_model.model.", "language_model.lm_head"},
    {"model.text_model.", "lm_head"},
    {"model.", "lm_head"},
};

/// A module of a layer, and the projections that it computes: their rows lie one after the other in its weight.
struct LayerModule {
  const char* name;
  Projection first;
  std::size_t count;

  constexpr Projection operator[](std::size_t i) const { return static_cast<Projection>(static_cast<std::size_t>(first) + i); }
};
/// Calls visit(module) for each module of a layer of this family, in order of use.
template <class Visit> void for_each_module(const Family& family, Visit&& visit) {
  const auto one = [&](Projection p) { visit(LayerModule{projection_names[static_cast<std::size_t>(p)], p, 1}); };
  if (family.fused_qkv)
    visit(LayerModule{"self_attn.qkv_proj", Projection::q, 3});
  else
    one(Projection::q), one(Projection::k), one(Projection::v);
  one(Projection::o);
  if (family.fused_gate_up)
    visit(LayerModule{family.gate_up_name, Projection::gate, 2});
  else
    one(Projection::gate), one(Projection::up);
  visit(LayerModule{family.down_name, Projection::down, 1});
}

}}}  // namespace pith::v0::detail
