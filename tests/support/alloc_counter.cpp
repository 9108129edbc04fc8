#include "support/alloc_counter.hpp"

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define PITH_TEST_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PITH_TEST_SANITIZED 1
#endif

namespace {
std::atomic<std::uint64_t> calls{0};
std::atomic<std::size_t> live{0}, peak{0};
thread_local std::uint64_t asked = 0, first_failure = 0, last_failure = 0;

/// Counts a call; whether it finds memory.
bool granted() {
  calls.fetch_add(1, std::memory_order_relaxed);
  if (first_failure == 0) return true;
  ++asked;
  if (asked < first_failure || asked > last_failure) return true;
  errno = ENOMEM;
  return false;
}
}  // namespace

namespace pith_test {
std::uint64_t allocations() noexcept { return calls.load(std::memory_order_relaxed); }
std::size_t live_bytes() noexcept { return live.load(std::memory_order_relaxed); }

PeakScope::PeakScope() noexcept : start_(live_bytes()) { peak.store(start_, std::memory_order_relaxed); }
std::size_t PeakScope::bytes() const noexcept { return peak.load(std::memory_order_relaxed) - start_; }

FailingAllocation::FailingAllocation(std::uint64_t k, std::uint64_t more) noexcept {
  asked = 0;
  first_failure = k;
  last_failure = k + more;
}
FailingAllocation::~FailingAllocation() { first_failure = last_failure = 0; }
bool FailingAllocation::failed() const noexcept { return asked >= first_failure; }
}  // namespace pith_test

#if defined(__GLIBC__) && !defined(PITH_TEST_SANITIZED)

#include <malloc.h>

// The program's own definitions come before those of the C library, for libstdc++'s operator new as well.
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
void __libc_free(void*);
}

namespace {
void* counted(void* memory) {
  if (memory == nullptr) return nullptr;
  const std::size_t bytes = malloc_usable_size(memory), now = live.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  for (std::size_t most = peak.load(std::memory_order_relaxed); most < now && !peak.compare_exchange_weak(most, now);) {
  }
  return memory;
}
void forget(void* memory) {
  if (memory != nullptr) live.fetch_sub(malloc_usable_size(memory), std::memory_order_relaxed);
}
}  // namespace

extern "C" {
void* malloc(std::size_t size) { return granted() ? counted(__libc_malloc(size)) : nullptr; }
void* calloc(std::size_t count, std::size_t size) { return granted() ? counted(__libc_calloc(count, size)) : nullptr; }
void* realloc(void* old, std::size_t size) {
  if (!granted()) return nullptr;
  const std::size_t before = old == nullptr ? 0 : malloc_usable_size(old);
  void* const memory = __libc_realloc(old, size);
  if (memory != nullptr || size == 0) live.fetch_sub(before, std::memory_order_relaxed);
  return counted(memory);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) { return granted() ? counted(__libc_memalign(alignment, size)) : nullptr; }
void* memalign(std::size_t alignment, std::size_t size) { return granted() ? counted(__libc_memalign(alignment, size)) : nullptr; }
int posix_memalign(void** out, std::size_t alignment, std::size_t size) {
  if (alignment < sizeof(void*) || (alignment & (alignment - 1)) != 0) return EINVAL;
  void* const memory = granted() ? counted(__libc_memalign(alignment, size)) : nullptr;
  if (memory == nullptr) return ENOMEM;
  *out = memory;
  return 0;
}
void free(void* memory) {
  forget(memory);
  __libc_free(memory);
}
}

bool pith_test::counting_available() noexcept { return true; }

#else

bool pith_test::counting_available() noexcept { return false; }

// A sanitizer keeps malloc to itself: of the other calls only these can fail.
namespace {
void* allocate(std::size_t size) {
  void* const memory = granted() ? std::malloc(size > 0 ? size : 1) : nullptr;
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
}  // namespace

void* operator new(std::size_t size) { return allocate(size); }
void* operator new[](std::size_t size) { return allocate(size); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return granted() ? std::malloc(size > 0 ? size : 1) : nullptr; }
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept { return granted() ? std::malloc(size > 0 ? size : 1) : nullptr; }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

#endif
