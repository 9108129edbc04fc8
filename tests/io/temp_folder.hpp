#pragma once

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

namespace pith_test {

/// A folder of its own that is gone afterwards.
class TempFolder {
 public:
  explicit TempFolder(const std::filesystem::path& parent = std::filesystem::temp_directory_path()) {
    static std::atomic<unsigned> number{std::random_device{}()};
    do {
      path_ = parent / ("pith-test-" + std::to_string(number.fetch_add(1)));
    } while (!std::filesystem::create_directory(path_));
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& file) const { return path_ / file; }

  void write(const std::string& file, const std::string& text) const { std::ofstream(path_ / file, std::ios::binary) << text; }
  std::string read(const std::string& file) const {
    std::ifstream in(path_ / file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  std::ptrdiff_t files() const { return std::distance(std::filesystem::directory_iterator(path_), std::filesystem::directory_iterator()); }

 private:
  std::filesystem::path path_;
};

inline std::filesystem::path golden_folder() {
  const char* given = std::getenv("PITH_GOLDEN_DIR");
#ifdef PITH_GOLDEN_DEFAULT_DIR
  return given != nullptr && *given != '\0' ? given : PITH_GOLDEN_DEFAULT_DIR;
#else
  return given != nullptr ? given : "tests/golden";
#endif
}

}  // namespace pith_test
