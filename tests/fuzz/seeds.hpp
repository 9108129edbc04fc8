#pragma once

#include <filesystem>

namespace pith_fuzz {

/// Writes what the fuzz programs begin with: folder/<program>/seed-*.
void write_seeds(const std::filesystem::path& folder);

}  // namespace pith_fuzz
