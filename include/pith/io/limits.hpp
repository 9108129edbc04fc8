#pragma once

#include <cstddef>

// Limits on the size of JSON files.
namespace pith { inline namespace v0 {

/// The most bytes of a config.json or generation_config.json; real ones have some thousand.
inline constexpr std::size_t max_config_bytes = std::size_t{16} << 20;
/// The most bytes of a model.safetensors.index.json: enough for 200,000 tensors with long names.
inline constexpr std::size_t max_index_bytes = std::size_t{32} << 20;

}}  // namespace pith::v0
