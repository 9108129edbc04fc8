#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <limits>
#include <type_traits>
#include <utility>

#include <pith/core/bulk.hpp>
#include <pith/core/check.hpp>
#include <pith/core/executor.hpp>
#include <pith/core/view.hpp>

namespace pith { inline namespace v0 {

/// A workspace holds the scratch memory of a kernel and the executor for its threads.
///
/// A bump arena: take() returns 64-byte aligned pieces, a Scope releases everything taken since it began.
/// Sizes come from workspace_bytes(tokens, workers) of the object that will use the workspace.
///
/// Heap     once, at construction
/// Throws   CapacityError if the arena is too small; the message states the bytes needed
class Workspace {
 public:
  static constexpr std::size_t alignment = 64;

  explicit Workspace(std::size_t bytes = 0, ExecutorRef executor = serial)
      : memory_(bytes == 0 ? detail::Bulk() : detail::allocate_bulk(bytes)), bytes_(bytes), executor_(executor) {}
  Workspace(Workspace&& other) noexcept
      : memory_(std::move(other.memory_)),
        bytes_(std::exchange(other.bytes_, 0)),
        used_(std::exchange(other.used_, 0)),
        executor_(other.executor_) {}
  Workspace& operator=(Workspace&& other) noexcept {
    memory_ = std::move(other.memory_);
    bytes_ = std::exchange(other.bytes_, 0);
    used_ = std::exchange(other.used_, 0);
    executor_ = other.executor_;
    return *this;
  }

  std::size_t bytes() const { return bytes_; }
  std::size_t used() const { return used_; }
  ExecutorRef executor() const { return executor_; }
  Index workers() const { return executor_.size(); }

  /// Takes memory for n values of T, uninitialised.
  template <class T> T* take(Index n) {
    static_assert(std::is_trivially_destructible_v<T> && alignof(T) <= alignment);
    const std::size_t size = padded_bytes<T>(n);
    if (size > bytes_ - used_) [[unlikely]]
      raise<CapacityError>("pith::Workspace: ", bytes_, " bytes are too few, ", size > max_bytes - used_ ? max_bytes : used_ + size,
                           " are needed: construct it with workspace_bytes(tokens, workers) of the object you call");
    T* piece = reinterpret_cast<T*>(memory_.get() + used_);
    used_ += size;
    return piece;
  }
  template <class S> MatrixRef<S> matrix(Index rows, Index cols) {
    return {take<S>(detail::checked_product("Workspace::matrix", rows, cols)), rows, cols};
  }
  template <class S> VectorRef<S> vector(Index size) { return {take<S>(size), size}; }

  /// Bytes that take<T>(n · times …) uses: every workspace_bytes() is a sum of these. Up to 64 of them can be added without overflow.
  ///
  /// Throws   CapacityError if a number is negative or the product exceeds any memory
  template <class T, std::convertible_to<Index>... Times> static constexpr std::size_t bytes_for(Index n, Times... times) {
    bool fits = n >= 0;
    [[maybe_unused]] const auto multiply = [&](Index by) { fits = fits && by >= 0 && !__builtin_mul_overflow(n, by, &n); };
    (multiply(static_cast<Index>(times)), ...);
    const std::size_t bytes = fits ? padded_bytes<T>(n) : max_bytes;
    if (bytes > max_bytes / 64) [[unlikely]]
      raise<CapacityError>(
          "pith::Workspace: a number of rows, features or workers is negative, or their product more than memory can hold");
    return bytes;
  }

  /// Releases on destruction everything taken from the workspace since construction.
  class Scope {
   public:
    explicit Scope(Workspace& ws) : ws_(ws), used_(ws.used_) {}
    ~Scope() { ws_.used_ = used_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Workspace& ws_;
    std::size_t used_;
  };

 private:
  template <class T> static constexpr std::size_t padded_bytes(Index n) {
    if (n < 0 || static_cast<std::size_t>(n) > max_bytes / sizeof(T)) return max_bytes;
    return (static_cast<std::size_t>(n) * sizeof(T) + alignment - 1) / alignment * alignment;
  }

  static constexpr std::size_t max_bytes = (std::numeric_limits<std::size_t>::max)() / alignment * alignment;

  detail::Bulk memory_;
  std::size_t bytes_ = 0, used_ = 0;
  ExecutorRef executor_;
};

namespace detail {
/// The contiguous share of one worker in n pieces of work, divided as evenly as possible.
struct Share {
  Index begin, end;
};
inline Share share(Index n, Index worker, Index workers) {
  const Index each = n / workers, rest = n % workers;
  const Index begin = worker * each + (std::min)(worker, rest);
  return {begin, begin + each + (worker < rest ? 1 : 0)};
}
}  // namespace detail

}}  // namespace pith::v0
