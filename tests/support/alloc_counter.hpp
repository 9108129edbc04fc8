#pragma once

#include <cstddef>
#include <cstdint>

namespace pith_test {

/// Calls so far, of all threads, that asked for memory: malloc, calloc, realloc, aligned_alloc, posix_memalign and operator new, which ends
/// in one of them.
std::uint64_t allocations() noexcept;

/// False where calls cannot be counted: under a sanitizer, or with a C library other than glibc.
bool counting_available() noexcept;

/// Bytes that are allocated now.
std::size_t live_bytes() noexcept;

/// Allocations since it was made.
class AllocationScope {
 public:
  std::uint64_t count() const { return allocations() - start_; }

 private:
  std::uint64_t start_ = allocations();
};

/// The most bytes that were allocated at once since it was made, beyond those that were there. One at a time.
class PeakScope {
 public:
  PeakScope() noexcept;
  std::size_t bytes() const noexcept;

 private:
  std::size_t start_;
};

/// While it exists, allocation k of this thread (from 1) finds no memory, and so do the `more` that follow it.
/// Under a sanitizer only calls of operator new can fail.
class FailingAllocation {
 public:
  explicit FailingAllocation(std::uint64_t k, std::uint64_t more = 0) noexcept;
  ~FailingAllocation();
  FailingAllocation(const FailingAllocation&) = delete;
  FailingAllocation& operator=(const FailingAllocation&) = delete;
  /// Whether allocation k was asked for.
  bool failed() const noexcept;
};

}  // namespace pith_test
