#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <typeindex>
#include <utility>
#include <vector>

#include <pith/core/bulk.hpp>

#include "machine.hpp"
#include "measure.hpp"

/// Memory as decoding finds it: read last so long ago that no cache holds it.
namespace pith_bench {

/// Bytes that cases rotate over: twice the last cache, which on a server is large enough to hold a small model, as far as memory goes.
/// PITH_BENCH_COLD_MIB says otherwise; the tests, which look at results only, say less.
inline std::size_t cold_bytes() {
  static const std::size_t bytes = [] {
    constexpr std::size_t mib = std::size_t(1) << 20, least = 96 * mib;
    if (const char* said = std::getenv("PITH_BENCH_COLD_MIB")) {
      char* end = nullptr;
      const unsigned long long said_mib = std::strtoull(said, &end, 10);
      if (*said < '0' || *said > '9' || *end != 0 || said_mib < 1 || said_mib > (1u << 20)) {
        std::fprintf(stderr, "PITH_BENCH_COLD_MIB=%s: expected a whole number from 1 to %u\n", said, 1u << 20);
        std::exit(2);
      }
      return static_cast<std::size_t>(said_mib) * mib;
    }
    return std::max(least, std::min(2 * last_cache_bytes(), available_memory() / 8));
  }();
  return bytes;
}

/// Ones, in memory like that of packed weights.
class Ones {
 public:
  explicit Ones(Index count) : memory_(pith::detail::allocate_bulk(static_cast<std::size_t>(count) * sizeof(float))), count_(count) {
    std::uninitialized_fill_n(reinterpret_cast<float*>(memory_.get()), count, 1.f);
  }
  const float* data() const { return reinterpret_cast<const float*>(memory_.get()); }
  Index size() const { return count_; }

 private:
  pith::detail::Bulk memory_;
  Index count_;
};

/// Measures reading `bytes` that are in no cache: each call reads the next part of one large buffer, shared by all objects.
class ColdRead {
 public:
  explicit ColdRead(std::size_t bytes) : count_(static_cast<Index>(bytes / sizeof(float))) {
    const Index wanted = std::max(2 * count_, static_cast<Index>((cold_bytes() + bytes) / sizeof(float)));
    if (!data_ || data_->size() < wanted) {
      data_.reset();
      data_.emplace(wanted);
    }
  }
  double seconds() {
    const float* p = data_->data() + next_++ % (data_->size() / count_) * count_;
    return seconds_of([&] { keep(read_all(p, count_)); });
  }

 private:
  inline static std::optional<Ones> data_;
  Index count_, next_ = 0;
};

/// Copies used in turn. Google Benchmark calls a case several times: the first call makes the copies, later calls reuse them.
class ColdCopies {
 public:
  /// Starts the case `name`: frees the copies of any other case.
  static void begin(const std::string& name) {
    if (name_ == name) return;
    name_ = name;
    made_.clear();
  }
  /// Returns enough copies of an object of `bytes` bytes that no cache holds all of them. A copy must not hold references to what made it.
  template <class Make> static auto& of(std::size_t bytes, Make make) {
    using Copies = std::vector<decltype(make())>;
    std::shared_ptr<void>& made = made_[typeid(Make)];
    if (!made) {
      auto copies = std::make_shared<Copies>();
      for (std::size_t held = 0; held < cold_bytes() + bytes; held += bytes) copies->push_back(make());
      made = std::move(copies);
    }
    return *static_cast<Copies*>(made.get());
  }

 private:
  inline static std::string name_;
  inline static std::map<std::type_index, std::shared_ptr<void>> made_;
};

}  // namespace pith_bench
