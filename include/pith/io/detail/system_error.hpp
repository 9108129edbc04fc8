#pragma once

#include <cerrno>
#include <filesystem>
#include <new>
#include <system_error>

#include <pith/core/check.hpp>

// Errors of the operating system.
namespace pith { inline namespace v0 { namespace detail {

/// Reports an error of the system: std::bad_alloc if memory ran out, else FormatError "pith: cannot <verb> '<path>': <reason>".
[[noreturn, gnu::cold, gnu::noinline]] inline void raise_system(const char* verb, const std::filesystem::path& path, int error) {
#if PITH_HAS_EXCEPTIONS
  if (error == ENOMEM) throw std::bad_alloc();
#endif
  raise<FormatError>("pith: cannot ", verb, " '", path.string(), "': ", std::generic_category().message(error));
}
[[noreturn]] inline void raise_system(const char* verb, const std::filesystem::path& path, const std::error_code& error) {
  raise_system(verb, path, error.default_error_condition().value());
}

/// The status of a path. A path that the system cannot look at is an error, not a missing file.
inline std::filesystem::file_status status_of(const std::filesystem::path& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (status.type() == std::filesystem::file_type::none) raise_system("inspect", path, error);
  return status;
}
/// Whether a file or folder is there.
inline bool present(const std::filesystem::path& path) { return std::filesystem::exists(status_of(path)); }

}}}  // namespace pith::v0::detail
