#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace pith_test {

/// The folder of that name where PITH_GOLDEN_DIR says, or else beside the tests.
inline std::filesystem::path golden_folder(const std::string& name) {
  const char* given = std::getenv("PITH_GOLDEN_DIR");
  return std::filesystem::path(given != nullptr && *given != '\0' ? given : PITH_GOLDEN_DEFAULT_DIR) / name;
}

}  // namespace pith_test
