#pragma once

#include <algorithm>
#include <span>
#include <type_traits>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/peft/lora.hpp>

namespace pith { inline namespace v0 {

/// LoRA on a fused projection (query, key and value in one weight), as loralib stores it: adapters for some of its equal output blocks.
///
/// The j-th enabled block has rows j·rank … of A and rows j·out/blocks … of B. The result is one adapter of rank · enabled components, each
/// of which is 0 outside its block.
///
/// Shapes   down A [enabled · rank, in] · up B [enabled · out / blocks, rank] · blocks [of the weight] whether each has an adapter
/// Throws   ShapeError if the shapes disagree or no block is enabled
/// Paper    LoRA: arXiv:2106.09685
template <class S>
LoraAdapter<S> fused_lora(ConstMatrixRef<S> down, std::type_identity_t<ConstMatrixRef<S>> up, std::span<const bool> blocks,
                          const LoraOptions& options = {}) {
  const Index enabled = static_cast<Index>(std::count(blocks.begin(), blocks.end(), true)), rank = up.cols();
  if (enabled == 0 || up.rows() % enabled != 0) [[unlikely]]
    raise<ShapeError>("pith::fused_lora: ", enabled, " blocks share ", up.rows(), " rows of up: expected as many for each");
  check_shape("fused_lora", "down", down, detail::checked_product("fused_lora", enabled, rank), any_extent);
  const Index height = up.rows() / enabled;
  Matrix<S> whole = Matrix<S>::Zero(height * static_cast<Index>(blocks.size()), enabled * rank);
  for (Index block = 0, j = 0; block < static_cast<Index>(blocks.size()); ++block) {
    if (!blocks[static_cast<std::size_t>(block)]) continue;
    whole.block(block * height, j * rank, height, rank) = up.middleRows(j * height, height);
    ++j;
  }
  LoraAdapter<S> adapter(down, whole, options);
  adapter.set_scale(static_cast<S>(lora_scale(options, rank)));
  return adapter;
}

}}  // namespace pith::v0
