#pragma once

#include <cstddef>
#include <memory>
#include <new>

#if defined(__linux__) && __has_include(<sys/mman.h>)
#include <sys/mman.h>
#endif

// Memory for large arrays: aligned, uninitialised, in huge pages if possible.

namespace pith { inline namespace v0 { namespace detail {

/// Deleter that remembers the alignment of the allocation.
struct FreeBulk {
  std::align_val_t alignment{};
  void operator()(void* p) const { ::operator delete(p, alignment); }
};
using Bulk = std::unique_ptr<std::byte[], FreeBulk>;

/// Allocates uninitialised, 64-byte aligned memory for large arrays that are read from end to end.
///
/// Requests huge pages for whole blocks of 2 MiB: sequential reads then seldom wait for address translation, and filling the memory takes a
/// 512th of the page faults. Systems without huge pages ignore the request.
inline Bulk allocate_bulk(std::size_t bytes) {
  constexpr std::size_t line = 64, block = std::size_t(2) << 20;
  const std::align_val_t alignment{bytes >= block ? block : line};
  Bulk memory(static_cast<std::byte*>(::operator new(bytes, alignment)), FreeBulk{alignment});
#if defined(MADV_HUGEPAGE)
  if (bytes >= block) ::madvise(memory.get(), bytes / block * block, MADV_HUGEPAGE);  // advice only: a refusal is no error
#endif
  return memory;
}

}}}  // namespace pith::v0::detail
