#pragma once

#include <atomic>
#include <concepts>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>

namespace pith { inline namespace v0 {

/// An executor runs f(0) … f(n-1) once each, on any threads, and returns when all have ended. Kernels call e(e.size(), f): index i is
/// worker i. Your own executor never sees an exception: kernels call it through ExecutorRef, which holds what f throws until the region has
/// ended. No result of pith depends on size().
template <class E>
concept Executor = requires(E& e, void (&f)(Index)) {
  { e.size() } -> std::convertible_to<Index>;
  e(Index{1}, f);
};

/// Runs everything on the calling thread.
struct Serial {
  static constexpr Index size() { return 1; }
  template <class F> void operator()(Index n, F&& f) const {
    for (Index i = 0; i < n; ++i) f(i);
  }
};
inline constexpr Serial serial{};

namespace detail {

/// The body of a region, with exceptions held back: none leaves a thread of a pool, and no thread runs on after its caller has left.
template <class F> class GuardedRegion {
 public:
  explicit GuardedRegion(F& f) : f_(f) {}

  void operator()(Index i) noexcept {
#if PITH_HAS_EXCEPTIONS
    try {
      f_(i);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_ || i < index_) {
        error_ = std::current_exception();
        index_ = i;
      }
    }
#else
    f_(i);
#endif
  }

  /// Rethrows on the caller, after all have ended, the exception of the lowest index that threw, for any number of threads.
  void rethrow() {
#if PITH_HAS_EXCEPTIONS
    if (error_) [[unlikely]]
      std::rethrow_exception(std::exchange(error_, nullptr));
#endif
  }

 private:
  F& f_;
#if PITH_HAS_EXCEPTIONS
  std::mutex mutex_;
  std::exception_ptr error_;
  Index index_ = 0;
#endif
};

}  // namespace detail

/// A non-owning, type-erased reference to an executor, held by every Workspace. The executor must outlive it.
///
/// Throws   ShapeError for an executor without a worker; a region throws the exception of the lowest index that threw, once all have ended
class ExecutorRef {
 public:
  ExecutorRef() : ExecutorRef(serial) {}

  template <class E>
  requires(!std::same_as<std::remove_cvref_t<E>, ExecutorRef> && Executor<E>) ExecutorRef(E& executor)
      : executor_(const_cast<void*>(static_cast<const void*>(&executor))),
        size_([](void* e) -> Index { return static_cast<E*>(e)->size(); }),
        run_([](void* e, Index n, void* context, void (*call)(void*, Index)) {
          (*static_cast<E*>(e))(n, [=](Index i) { call(context, i); });
        }) {
    if (size() < 1) [[unlikely]]
      raise<ShapeError>("pith::ExecutorRef: the executor's size() is ", size(), ", expected 1 or more workers");
  }

  Index size() const { return size_(executor_); }

  template <class F> void operator()(Index n, F&& f) const {
    if (n == 1) return f(Index{0});
    using Region = detail::GuardedRegion<std::remove_reference_t<F>>;
    Region region(f);
    run_(executor_, n, static_cast<void*>(&region), [](void* context, Index i) { (*static_cast<Region*>(context))(i); });
    region.rethrow();
  }

 private:
  void* executor_;
  Index (*size_)(void*);
  void (*run_)(void*, Index, void*, void (*)(void*, Index));
};

/// A fixed set of threads for short regions: the caller is worker 0; idle workers spin, then yield, then park.
///
/// Heap     at construction only
/// Throws   on the caller, once every worker has ended its share, the exception of the lowest index that threw; the pool stays usable
/// Law      a nested region, or one entered while another thread uses the pool, runs inline on its caller
class ThreadPool {
 public:
  explicit ThreadPool(Index size = static_cast<Index>(std::thread::hardware_concurrency())) {
    if (size < 1) size = 1;
    struct Guard {  // no destructor runs after a constructor throws: this joins the threads that did start
      ThreadPool* pool;
      ~Guard() {
        if (pool) pool->join();
      }
    } guard{this};
    workers_.reserve(static_cast<std::size_t>(size - 1));
    for (Index i = 1; i < size; ++i) workers_.emplace_back([this, i] { work(i); });
    guard.pool = nullptr;
  }
  ~ThreadPool() { join(); }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  Index size() const { return static_cast<Index>(workers_.size()) + 1; }

  template <class F> void operator()(Index n, F&& f) {
    if (n <= 1 || workers_.empty() || busy_.exchange(true, std::memory_order_acquire)) {
      for (Index i = 0; i < n; ++i) f(i);
      return;
    }
    using Region = detail::GuardedRegion<std::remove_reference_t<F>>;
    Region region(f);
    context_ = static_cast<void*>(&region);
    call_ = [](void* context, Index i) { (*static_cast<Region*>(context))(i); };
    count_ = n;
    pending_.store(static_cast<Index>(workers_.size()), std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_seq_cst);
    if (parked_.load(std::memory_order_seq_cst) > 0) generation_.notify_all();
    for (Index i = 0; i < n; i += size()) region(i);
    for (int spin = 0; pending_.load(std::memory_order_acquire) != 0; ++spin) spin < spins ? relax() : std::this_thread::yield();
    busy_.store(false, std::memory_order_release);
    region.rethrow();
  }

 private:
  static constexpr int spins = 2000;   // about 20 us, the gap between two regions of one decoded token
  static constexpr int yields = 2000;  // about a millisecond for other threads before parking

  static void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  void join() {
    stop_.store(true, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_seq_cst);
    generation_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  unsigned wait_for_work(unsigned seen) {
    for (int i = 0; i < spins + yields; ++i) {
      if (const unsigned now = generation_.load(std::memory_order_acquire); now != seen) return now;
      i < spins ? relax() : std::this_thread::yield();
    }
    parked_.fetch_add(1, std::memory_order_seq_cst);
    generation_.wait(seen, std::memory_order_seq_cst);
    parked_.fetch_sub(1, std::memory_order_relaxed);
    return generation_.load(std::memory_order_acquire);
  }

  void work(Index first) {
    for (unsigned seen = 0;;) {
      seen = wait_for_work(seen);
      if (stop_.load(std::memory_order_relaxed)) return;
      for (Index i = first; i < count_; i += size()) call_(context_, i);
      pending_.fetch_sub(1, std::memory_order_release);
    }
  }

  alignas(64) std::atomic<unsigned> generation_{0};
  std::atomic<int> parked_{0};
  std::atomic<bool> stop_{false};
  void* context_ = nullptr;
  void (*call_)(void*, Index) = nullptr;
  Index count_ = 0;
  alignas(64) std::atomic<Index> pending_{0};
  alignas(64) std::atomic<bool> busy_{false};
  std::vector<std::thread> workers_;  // last: its threads read everything above
};

}}  // namespace pith::v0
