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
#include <pith/io/detail/system_error.hpp>

#if defined(_WIN32)
#include <io.h>
#elif __has_include(<unistd.h>)
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#define PITH_HAS_POSIX_FILES 1
#endif
#ifndef PITH_HAS_POSIX_FILES
#define PITH_HAS_POSIX_FILES 0
#endif

namespace pith { inline namespace v0 { namespace detail {

/// A file that appears completely or not at all: written under a temporary name, synced, then renamed.
///
/// Readers that have the old file open or mapped keep the old bytes. After a failure, or without commit(), the old file is unchanged. The
/// new file gets the mode of the old one and, if permitted, its owner; a symbolic link is followed to its target.
///
/// Throws   FormatError with the system's reason, std::bad_alloc if memory ran out
class AtomicFile {
 public:
  explicit AtomicFile(const std::filesystem::path& path) : path_(target_of(path)) {
    const std::filesystem::file_status old = status_of(path_);
    const bool exists = std::filesystem::exists(old);
    if (exists && !std::filesystem::is_regular_file(old))
      raise<FormatError>("pith: cannot replace '", path_.string(), "': it is not a regular file");
    do {  // exclusive creation guarantees an unused name
      temporary_ = beside();
      file_ = create(temporary_, exists);
    } while (file_ == nullptr && errno == EEXIST);
    if (file_ == nullptr) raise_system("create", temporary_, errno);
    if (exists) take_after();
  }
  ~AtomicFile() {
    if (file_ != nullptr) std::fclose(file_);
    if (!temporary_.empty()) remove(temporary_);
  }
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes) {
    if (file_ == nullptr) raise<StateError>("pith::AtomicFile: write() after commit()");
    if (!bytes.empty() && std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size()) raise_system("write", temporary_, errno);
  }

  /// Renames the file into place.
  void commit() {
    finish();
    if (const std::error_code error = replace()) raise_system("replace", path_, error);
  }

  /// Renames both files into place, or neither: if the second fails, the first is restored.
  static void commit(AtomicFile& first, AtomicFile& second) {
    first.finish();
    second.finish();
    const std::filesystem::path kept = first.beside();
    const bool existed = present(first.path_);
    std::error_code error;
    if (existed) {
      std::filesystem::create_hard_link(first.path_, kept, error);
      if (error) std::filesystem::rename(first.path_, kept, error);  // a file system without links
      if (error) raise_system("keep", first.path_, error);
    }
    const std::filesystem::path* failed = &first.path_;
    error = first.replace();
    if (!error) {
      failed = &second.path_;
      error = second.replace();
      if (error && !existed) remove(first.path_);
    }
    if (error && existed) {
      std::error_code ignored;
      std::filesystem::rename(kept, first.path_, ignored);
    }
    if (existed) remove(kept);
    if (error) raise_system("replace", *failed, error);
  }

 private:
  static void remove(const std::filesystem::path& path) {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
  }

  /// The end of a chain of symbolic links; it need not exist.
  static std::filesystem::path target_of(std::filesystem::path path) {
    std::error_code error;
    for (int links = 0; std::filesystem::is_symlink(std::filesystem::symlink_status(path, error)); ++links) {
      const std::filesystem::path next = std::filesystem::read_symlink(path, error);
      if (error || links == 40) error ? raise_system("follow", path, error) : raise_system("follow", path, ELOOP);
      path = path.parent_path() / next;  // an absolute `next` replaces the path
    }
    return path;
  }

  /// A short temporary name in the same folder.
  std::filesystem::path beside() const {
    static std::atomic<unsigned> serial_number{std::random_device{}()};
    return path_.parent_path() / text(".pith-", serial_number.fetch_add(1), ".tmp");
  }

  static std::FILE* create(const std::filesystem::path& path, [[maybe_unused]] bool secret) {
#if PITH_HAS_POSIX_FILES
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, secret ? 0600 : 0666);
    if (fd < 0) return nullptr;
    std::FILE* const file = ::fdopen(fd, "wb");
    if (file != nullptr) return file;
    const int error = errno;
    ::close(fd);
    remove(path);
    errno = error == EEXIST ? EIO : error;
    return nullptr;
#else
    return std::fopen(path.string().c_str(), "wbx");
#endif
  }

  /// Copies owner and mode of the file to be replaced, as far as permitted; never widens read access.
  void take_after() {
#if PITH_HAS_POSIX_FILES
    struct ::stat old {};
    if (::stat(path_.c_str(), &old) != 0) return;
    struct ::stat own {};
    const int fd = ::fileno(file_);
    if (::fstat(fd, &own) != 0) return;
    ::mode_t mode = old.st_mode & 07777;
    if (own.st_uid != old.st_uid || own.st_gid != old.st_gid)
      if (::fchown(fd, old.st_uid, old.st_gid) != 0 && ::fchown(fd, static_cast<::uid_t>(-1), old.st_gid) != 0)
        mode &= ~static_cast<::mode_t>(06070);
    static_cast<void>(::fchmod(fd, mode));
#endif
  }

  void finish() {
    if (file_ == nullptr) raise<StateError>("pith::AtomicFile: commit() twice");
    if (std::fflush(file_) != 0 || !synced()) raise_system("write", temporary_, errno);
    if (std::fclose(std::exchange(file_, nullptr)) != 0) raise_system("write", temporary_, errno);
  }
  bool synced() const {
#if defined(_WIN32)
    return ::_commit(::_fileno(file_)) == 0;
#elif PITH_HAS_POSIX_FILES
    return ::fsync(::fileno(file_)) == 0;
#else
    return true;
#endif
  }
  std::error_code replace() {
    std::error_code error;
    std::filesystem::rename(temporary_, path_, error);
    if (!error) temporary_.clear();
    return error;
  }

  std::filesystem::path path_, temporary_;
  std::FILE* file_ = nullptr;
};

}}}  // namespace pith::v0::detail
