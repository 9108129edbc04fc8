#pragma once

#include <cstddef>

namespace pith { inline namespace v0 {

/// A config.json or generation_config.json may have this many bytes; real ones have some thousand.
inline constexpr std::size_t max_config_bytes = std::size_t{16} << 20;
/// A model.safetensors.index.json may have this many bytes: 200,000 tensors with long names.
inline constexpr std::size_t max_index_bytes = std::size_t{32} << 20;

}}  // namespace pith::v0
