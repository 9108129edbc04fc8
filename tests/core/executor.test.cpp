#include <atomic>
#include <chrono>
#include <limits>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include <pith/core/executor.hpp>

#include "support/catch.hpp"

using pith::ExecutorRef;
using pith::Index;
using pith::ThreadPool;

namespace {

/// How often each index of n ran.
template <class E> std::vector<int> visits(E& executor, Index n) {
  std::vector<std::atomic<int>> counts(static_cast<std::size_t>(n));
  executor(n, [&](Index i) { counts[static_cast<std::size_t>(i)].fetch_add(1, std::memory_order_relaxed); });
  return {counts.begin(), counts.end()};
}

bool each_once(const std::vector<int>& counts) {
  for (const int count : counts)
    if (count != 1) return false;
  return true;
}

/// Another library's pool, as a user would wrap it: backwards, and not in this thread.
struct Backwards {
  Index regions = 0;
  Index size() const { return 3; }
  template <class F> void operator()(Index n, F f) {
    ++regions;
    std::thread([&] {
      for (Index i = n; i-- > 0;) f(i);
    }).join();
  }
};

struct Empty {
  Index workers = 0;
  Index size() const { return workers; }
  template <class F> void operator()(Index, F) {}
};

}  // namespace

TEST_CASE("every executor runs each index once") {
  static_assert(pith::Executor<ThreadPool> && pith::Executor<const pith::Serial> && pith::Executor<ExecutorRef> &&
                pith::Executor<Backwards>);
  for (const Index size : {1, 2, 3, 7}) {
    ThreadPool pool(size);
    CHECK(pool.size() == size);
    for (const Index n : {0, 1, 2, 3, 8, 100}) {
      INFO("pool of " << size << ", " << n << " indices");
      CHECK(each_once(visits(pool, n)));
    }
  }
  for (const Index n : {0, 1, 5}) CHECK(each_once(visits(pith::serial, n)));
  CHECK(ThreadPool(0).size() == 1);
  CHECK(ThreadPool(-3).size() == 1);
}

TEST_CASE("the caller is worker 0 and the others work beside it") {
  ThreadPool pool(3);
  std::vector<std::thread::id> ids(3);
  pool(3, [&](Index i) { ids[static_cast<std::size_t>(i)] = std::this_thread::get_id(); });
  CHECK(ids[0] == std::this_thread::get_id());
  CHECK(std::set<std::thread::id>(ids.begin(), ids.end()).size() == 3);
  std::vector<std::thread::id> again(3);
  pool(3, [&](Index i) { again[static_cast<std::size_t>(i)] = std::this_thread::get_id(); });
  CHECK(again == ids);  // a worker keeps its index, and so its slice of every scratch
}

TEST_CASE("what a region wrote is seen after it, and what was written before is seen in it") {
  ThreadPool pool(3);
  std::vector<long> plain(3, 0);  // no atomics: the pool alone orders these
  long base = 0;
  for (int round = 0; round < 5000; ++round) {
    base = round;
    pool(3, [&](Index i) { plain[static_cast<std::size_t>(i)] += base; });
  }
  const long sum = 5000L * 4999 / 2;
  CHECK(plain == std::vector<long>{sum, sum, sum});
}

TEST_CASE("a nested region runs inline on its caller") {
  ThreadPool pool(3);
  std::atomic<int> inner{0}, strangers{0};
  pool(3, [&](Index) {
    const auto self = std::this_thread::get_id();
    pool(4, [&](Index) {
      ++inner;
      if (std::this_thread::get_id() != self) ++strangers;
    });
  });
  CHECK(inner == 12);
  CHECK(strangers == 0);
}

TEST_CASE("a pool busy with another thread's region runs inline, and is free again afterwards") {
  ThreadPool pool(2);
  std::atomic<bool> inside{false}, release{false};
  std::thread other([&] {
    pool(2, [&](Index) {
      inside = true;
      while (!release) std::this_thread::yield();
    });
  });
  while (!inside) std::this_thread::yield();
  std::set<std::thread::id> ids;  // unguarded: inline means one thread
  int runs = 0;
  pool(5, [&](Index) {
    ids.insert(std::this_thread::get_id());
    ++runs;
  });
  CHECK(runs == 5);
  CHECK(ids == std::set<std::thread::id>{std::this_thread::get_id()});
  release = true;
  other.join();
  CHECK(each_once(visits(pool, 8)));
}

TEST_CASE("threads may share a pool") {
  ThreadPool pool(2);
  std::atomic<long> total{0};
  std::vector<std::thread> callers;
  for (int t = 0; t < 3; ++t)
    callers.emplace_back([&] {
      for (int round = 0; round < 500; ++round) pool(4, [&](Index i) { total += i; });
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(total == 3 * 500 * 6);
}

TEST_CASE("workers park when idle and wake up") {
  ThreadPool pool(3);
  for (int round = 0; round < 3; ++round) {
    CHECK(each_once(visits(pool, 9)));
    std::this_thread::sleep_for(std::chrono::milliseconds(30));  // far beyond spinning and yielding
  }
  CHECK(each_once(visits(pool, 9)));
}  // and parked workers do not keep the destructor waiting

TEST_CASE("what a region throws reaches its caller when all workers have ended, and the pool goes on") {
  for (const Index size : {1, 2, 3, 5}) {
    ThreadPool pool(size);
    ExecutorRef ref = pool;
    const auto first_thrown = [&](auto& executor, Index n, auto throws) -> Index {
      std::atomic<int> running{0};
      Index thrown = -1;
      try {
        executor(n, [&](Index i) {
          struct Inside {
            std::atomic<int>& count;
            explicit Inside(std::atomic<int>& c) : count(c) { ++count; }
            ~Inside() { --count; }
          } inside(running);
          if (i % 2 == 1) std::this_thread::sleep_for(std::chrono::microseconds(200));  // others are still at work
          if (throws(i)) throw i;
        });
      } catch (Index i) {
        thrown = i;
      }
      CHECK(running == 0);
      return thrown;
    };
    for (int round = 0; round < 20; ++round)
      for (const Index n : {1, 2, 3, 4, 17}) {
        INFO("pool of " << size << ", " << n << " indices, round " << round);
        for (Index lowest = 0; lowest < n; ++lowest) {
          CHECK(first_thrown(pool, n, [&](Index i) { return i >= lowest; }) == lowest);  // as one thread would have it
          CHECK(first_thrown(ref, n, [&](Index i) { return i == lowest || i == n - 1; }) == lowest);
        }
        CHECK(first_thrown(pool, n, [](Index) { return false; }) == -1);
        CHECK(each_once(visits(pool, n)));
      }
  }
}

TEST_CASE("a nested region and one run inline throw as any other") {
  ThreadPool pool(3);
  std::atomic<int> outer{0};
  CHECK_THROWS_AS(pool(3,
                       [&](Index i) {
                         ++outer;
                         pool(3, [&](Index k) {
                           if (i == 1 && k == 2) throw std::runtime_error("inner");
                         });
                       }),
                  std::runtime_error);
  CHECK(outer == 3);
  CHECK(each_once(visits(pool, 9)));
}

TEST_CASE("an executor of one's own never meets an exception") {
  Backwards backwards;  // an exception would end the program: it runs in a thread that catches nothing
  ExecutorRef ref = backwards;
  std::vector<int> seen(6);
  try {
    ref(6, [&](Index i) {
      seen[static_cast<std::size_t>(i)] = 1;
      if (i % 2 == 1) throw i;
    });
    FAIL("nothing was thrown");
  } catch (Index i) {
    CHECK(i == 1);  // not the first in time, which is 5
  }
  CHECK(seen == std::vector<int>(6, 1));
}

TEST_CASE("an executor without a worker is refused") {
  for (const Index workers : {0, -1}) {
    Empty empty{workers};
    CHECK_THROWS_AS(ExecutorRef(empty), pith::ShapeError);
    CHECK_THROWS_WITH(ExecutorRef(empty), pith_test::contains("expected 1 or more workers"));
  }
  Empty one{1};
  CHECK(ExecutorRef(one).size() == 1);
}

TEST_CASE("a reference to an executor forwards to it") {
  CHECK(ExecutorRef().size() == 1);
  CHECK(each_once(visits(pith::serial, 4)));

  Backwards backwards;
  ExecutorRef ref = backwards;
  CHECK(ref.size() == 3);
  CHECK(each_once(visits(ref, 10)));
  CHECK(backwards.regions == 1);
  CHECK(each_once(visits(ref, 1)));  // a region of one needs no executor
  CHECK(backwards.regions == 1);

  ThreadPool pool(2);
  ref = pool;
  CHECK(ref.size() == 2);
  CHECK(each_once(visits(ref, 10)));
  const ExecutorRef copy = ref;
  CHECK(each_once(visits(copy, 10)));
}
