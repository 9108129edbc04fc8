#pragma once

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <system_error>
#include <utility>

#include <pith/core/check.hpp>

#if __has_include(<unistd.h>)
#include <unistd.h>
#define PITH_HAS_FSYNC 1
#else
#define PITH_HAS_FSYNC 0
#endif

namespace pith::inline v0 {

/// A file that appears whole or not at all: written beside its name, synced, then renamed over it.
///
/// Who has the old file open or mapped keeps the old bytes. A failure, or no commit(), leaves the old file as it was.
///
/// Throws   FormatError with the system's reason
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
    static std::atomic<unsigned> serial_number{std::random_device{}()};
    do {  // a name nobody else uses: exclusive creation decides
      temporary_ = path_;
      temporary_ += detail::text(".", serial_number.fetch_add(1), ".tmp");
      file_ = std::fopen(temporary_.string().c_str(), "wbx");
    } while (file_ == nullptr && errno == EEXIST);
    if (file_ == nullptr) fail("create", temporary_, errno);
  }
  ~AtomicFile() {
    if (file_ == nullptr) return;
    std::fclose(file_);
    remove_temporary();
  }
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes) {
    if (file_ == nullptr) raise<StateError>("pith::AtomicFile: write() after commit()");
    if (!bytes.empty() && std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size()) fail("write", temporary_, errno);
  }

  /// Puts the file in its place.
  void commit() {
    if (file_ == nullptr) raise<StateError>("pith::AtomicFile: commit() twice");
    if (std::fflush(file_) != 0 || !synced()) fail("write", temporary_, errno);
    const bool closed = std::fclose(std::exchange(file_, nullptr)) == 0;
    if (!closed) {
      const int error = errno;
      remove_temporary();
      fail("write", temporary_, error);
    }
    std::error_code error;
    std::filesystem::rename(temporary_, path_, error);
    if (!error) return;
    remove_temporary();
    fail("replace", path_, error.value());
  }

 private:
  [[noreturn]] static void fail(const char* verb, const std::filesystem::path& path, int error) {
    raise<FormatError>(detail::text("pith: cannot ", verb, " '", path.string(), "': ", std::generic_category().message(error)));
  }
  bool synced() const {
#if PITH_HAS_FSYNC
    return ::fsync(::fileno(file_)) == 0;
#else
    return true;
#endif
  }
  void remove_temporary() const {
    std::error_code ignored;
    std::filesystem::remove(temporary_, ignored);
  }

  std::filesystem::path path_, temporary_;
  std::FILE* file_ = nullptr;
};

}  // namespace pith::inline v0
