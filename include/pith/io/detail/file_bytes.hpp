#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/io/detail/system_error.hpp>

#if __has_include(<sys/mman.h>)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#define PITH_HAS_MMAP 1
#else
#define PITH_HAS_MMAP 0
#endif

namespace pith { inline namespace v0 { namespace detail {

/// The bytes of a file, mapped or read; copies share them, and the last one frees them.
///
/// A mapping shows the file itself: if the file is truncated, reading the missing part is a bus error. Replacing it by a rename, as pith's
/// writers do, is safe.
class FileBytes {
 public:
  /// Maps the file read-only, or reads it where the system cannot map.
  ///
  /// Throws   FormatError with the system's reason, std::bad_alloc if memory ran out
  static FileBytes map(const std::filesystem::path& path);

  /// Reads the file into memory; refuses a file of more than `most` bytes before reading.
  ///
  /// Throws   FormatError with the system's reason, or both sizes; std::bad_alloc if memory ran out
  static FileBytes read(const std::filesystem::path& path, std::size_t most = (std::numeric_limits<std::size_t>::max)());

  /// Takes bytes that are already in memory; messages call them `name`.
  static FileBytes own(std::vector<std::byte> bytes, std::string name) {
    auto owner = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
    return {std::span<const std::byte>(*owner), owner, std::move(name), false};
  }

  std::span<const std::byte> bytes() const { return bytes_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(bytes_.data()), bytes_.size()}; }
  std::size_t size() const { return bytes_.size(); }
  const std::string& name() const { return name_; }  ///< for messages
  bool mapped() const { return mapped_; }
  /// Frees the pages behind `part` of a mapping; a later access reads the file again.
  void release(std::span<const std::byte> part) const;
  /// Keeps the bytes in place while it is held.
  const std::shared_ptr<const void>& keep_alive() const { return owner_; }

 private:
  FileBytes(std::span<const std::byte> bytes, std::shared_ptr<const void> owner, std::string name, bool mapped)
      : bytes_(bytes), owner_(std::move(owner)), name_(std::move(name)), mapped_(mapped) {}

  std::span<const std::byte> bytes_;
  std::shared_ptr<const void> owner_;
  std::string name_;
  bool mapped_ = false;
};

#if PITH_HAS_MMAP
/// An open descriptor of a regular file.
class InputFile {
 public:
  explicit InputFile(const std::filesystem::path& path)
      : path_(path), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {  // must not block on a pipe
    if (fd_ < 0) raise_system("open", path, errno);
    struct ::stat status {};
    const bool known = ::fstat(fd_, &status) == 0;
    const int error = errno;
    const bool regular = known && S_ISREG(status.st_mode);
    size_ = regular ? static_cast<std::size_t>(status.st_size) : 0;
    if (regular) return;
    ::close(fd_);
    if (!known) raise_system("inspect", path, error);
    raise<FormatError>("pith: cannot read '", path.string(), "': it is not a regular file");
  }
  ~InputFile() { ::close(fd_); }
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  std::size_t size() const { return size_; }

  std::shared_ptr<const void> map() const {
    void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd_, 0);
    if (address == MAP_FAILED) raise_system("map", path_, errno);
    return {address, [size = size_](const void* p) { ::munmap(const_cast<void*>(p), size); }};
  }

  std::vector<std::byte> read() const {
    std::vector<std::byte> bytes(size_);
    for (std::size_t done = 0; done < size_;) {
      const ::ssize_t got = ::read(fd_, bytes.data() + done, size_ - done);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) raise_system("read", path_, errno);
      if (got == 0) raise<FormatError>("pith: cannot read '", path_.string(), "': it ends after ", done, " of ", size_, " bytes");
      done += static_cast<std::size_t>(got);
    }
    return bytes;
  }

 private:
  std::filesystem::path path_;
  int fd_;
  std::size_t size_ = 0;
};
#else
/// An open regular file.
class InputFile {
 public:
  explicit InputFile(const std::filesystem::path& path) : path_(path) {
    std::error_code error;
    const auto status = std::filesystem::status(path, error);
    if (!std::filesystem::exists(status)) raise_system("open", path, ENOENT);
    if (!std::filesystem::is_regular_file(status)) raise<FormatError>("pith: cannot read '", path.string(), "': it is not a regular file");
    in_.open(path, std::ios::binary);
    if (!in_) raise_system("open", path, EACCES);
    const std::uintmax_t bytes = std::filesystem::file_size(path, error);
    if (error || bytes > (std::numeric_limits<std::size_t>::max)() / 2) raise_system("inspect", path, EFBIG);
    size_ = static_cast<std::size_t>(bytes);
  }

  std::size_t size() const { return size_; }

  std::vector<std::byte> read() const {
    std::vector<std::byte> bytes(size_);
    in_.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(size_));
    if (const auto got = static_cast<std::size_t>(in_.gcount()); got != size_)
      raise<FormatError>("pith: cannot read '", path_.string(), "': it ends after ", got, " of ", size_, " bytes");
    return bytes;
  }

 private:
  std::filesystem::path path_;
  mutable std::ifstream in_;
  std::size_t size_ = 0;
};
#endif

inline FileBytes FileBytes::read(const std::filesystem::path& path, std::size_t most) {
  const InputFile file(path);
  if (file.size() > most) raise<FormatError>("pith: '", path.string(), "' has ", file.size(), " bytes, expected at most ", most);
  return own(file.read(), path.string());
}

inline void FileBytes::release([[maybe_unused]] std::span<const std::byte> part) const {
#if PITH_HAS_MMAP
  if (!mapped_) return;
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<std::uintptr_t>(part.data()), last = first + part.size();
  const std::uintptr_t begin = (first + page - 1) / page * page, end = last / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);  // never written to, so nothing is lost
#endif
}

inline FileBytes FileBytes::map(const std::filesystem::path& path) {
#if PITH_HAS_MMAP
  const InputFile file(path);
  if (file.size() == 0) return own({}, path.string());  // an empty file cannot be mapped
  std::shared_ptr<const void> owner = file.map();
  const std::span<const std::byte> bytes(static_cast<const std::byte*>(owner.get()), file.size());
  return {bytes, std::move(owner), path.string(), true};
#else
  return read(path);
#endif
}

}}}  // namespace pith::v0::detail
