#pragma once

#include <string_view>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>

namespace pith { inline namespace v0 {

/// The head counts of an attention layer, for multi-head (MHA), grouped-query (GQA) and multi-query (MQA) attention.
///
/// Query head h reads kv head h / group(): consecutive query heads share one.
struct AttentionShape {
  Index num_heads = 0;     ///< query heads
  Index num_kv_heads = 0;  ///< stored heads: num_heads for MHA, 1 for MQA
  Index head_dim = 0;      ///< features per head

  Index group() const { return num_heads / num_kv_heads; }  ///< query heads that share one kv head

  /// Throws   ShapeError unless all three are positive and num_kv_heads divides num_heads; CapacityError if a row would not fit an Index
  void check(std::string_view where) const {
    if (num_heads < 1 || num_kv_heads < 1 || head_dim < 1)
      raise<ShapeError>("pith::", where, ": attention shape has num_heads ", num_heads, ", num_kv_heads ", num_kv_heads, ", head_dim ",
                        head_dim, ", expected all positive");
    if (num_heads % num_kv_heads != 0)
      raise<ShapeError>("pith::", where, ": num_kv_heads is ", num_kv_heads, ", expected a divisor of num_heads, which is ", num_heads,
                        ": every kv head serves the same number of query heads");
    detail::checked_product(where, num_heads, head_dim);
  }

  friend bool operator==(const AttentionShape&, const AttentionShape&) = default;
};

}}  // namespace pith::v0
