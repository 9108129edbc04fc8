#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/attention/shape.hpp>
#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/kv/detail/slab.hpp>
#include <pith/kv/prefix.hpp>

namespace pith { inline namespace v0 {

/// Prefix tuning: makes a KvPrefix from learned keys and values of virtual tokens, which stand before every text in every layer.
///
///   attention of a query q = softmax(q [P_k; K]ᵀ / √d) [P_v; V]
///
/// Virtual tokens are visible to every query, have no position and are not rotated; the text starts at position `virtual tokens`.
///
/// Shapes   embeddings [virtual tokens, 2 · layers · num_kv_heads · head_dim] as PEFT stores them: the keys of layer 0, its values, the
///          keys of layer 1, …, each kv head by kv head; with a projection, the output of PrefixEncoder::rows()
/// Heap     one copy of the numbers, rounded once to T
/// Throws   ShapeError for another width
/// Paper    Prefix tuning: arXiv:2101.00190
template <KvStorage T = float>
KvPrefix prefix_tuning(std::type_identity_t<ConstMatrixRef<arithmetic_t<T>>> embeddings, const AttentionShape& shape, Index layers) {
  shape.check("prefix_tuning");
  const Index heads = shape.num_kv_heads, dim = shape.head_dim, tokens = embeddings.rows();
  const Index key = detail::key_units<T>(dim), value = detail::value_units<T>(dim);
  const Index width = detail::checked_product("prefix_tuning", 2 * heads, dim);
  check_shape("prefix_tuning", "embeddings", embeddings, any_extent, detail::checked_product("prefix_tuning", width, layers));
  std::vector<KvPrefixLayer<T>> made(static_cast<std::size_t>(layers));
  for (Index l = 0; l < layers; ++l) {
    KvPrefixLayer<T>& layer = made[static_cast<std::size_t>(l)];
    layer.sizes.assign(static_cast<std::size_t>(heads), tokens);
    layer.keys.resize(static_cast<std::size_t>(heads * tokens * key));
    layer.values.resize(static_cast<std::size_t>(heads * tokens * value));
    for (Index h = 0; h < heads; ++h) {
      for (Index t = 0; t < tokens; ++t) {
        const auto* of_layer = embeddings.data() + t * embeddings.outerStride() + l * width;
        const Index row = h * tokens + t;
        detail::narrow_key<T>(of_layer + h * dim, layer.keys.data() + row * key, dim);
        detail::narrow_value<T>(of_layer + (heads + h) * dim, layer.values.data() + row * value, dim);
      }
    }
  }
  return KvPrefix(shape, static_cast<Position>(tokens), std::move(made));
}

}}  // namespace pith::v0
