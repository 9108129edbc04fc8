#pragma once

#include <cstdint>

namespace pith_test {

/// Calls so far, of all threads, that asked for memory: malloc, calloc, realloc, aligned_alloc, posix_memalign and operator new, which ends
/// in one of them.
std::uint64_t allocations() noexcept;

/// False where calls cannot be counted: under a sanitizer, or with a C library other than glibc.
bool counting_available() noexcept;

/// Allocations since it was made.
class AllocationScope {
 public:
  std::uint64_t count() const { return allocations() - start_; }

 private:
  std::uint64_t start_ = allocations();
};

}  // namespace pith_test
