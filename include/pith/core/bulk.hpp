#pragma once

#include <cstddef>
#include <memory>
#include <new>

#if defined(__linux__) && __has_include(<sys/mman.h>)
#include <sys/mman.h>
#endif

namespace pith { inline namespace v0 { namespace detail {

struct FreeBulk {
  std::align_val_t alignment{};
  void operator()(void* p) const { ::operator delete(p, alignment); }
};
using Bulk = std::unique_ptr<std::byte[], FreeBulk>;

/// Uninitialised memory for numbers that are read from end to end, 64-byte aligned.
///
/// Whole blocks of 2 MiB in it are asked to be one page each, where the system has such pages: a stream then seldom waits for an address to
/// be translated, and filling it takes a 512th of the page faults. Where it has none, nothing changes.
inline Bulk allocate_bulk(std::size_t bytes) {
  constexpr std::size_t line = 64, block = std::size_t(2) << 20;
  const std::align_val_t alignment{bytes >= block ? block : line};
  Bulk memory(static_cast<std::byte*>(::operator new(bytes, alignment)), FreeBulk{alignment});
#if defined(MADV_HUGEPAGE)
  if (bytes >= block) ::madvise(memory.get(), bytes / block * block, MADV_HUGEPAGE);  // advice: a refusal is no error
#endif
  return memory;
}

}}}  // namespace pith::v0::detail
