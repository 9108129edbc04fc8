#pragma once

#include <cstddef>
#include <vector>

#include <pith/core/executor.hpp>

#include "cold.hpp"
#include "measure.hpp"

namespace pith_bench {

using pith::ExecutorRef;

/// How fast the given threads read what no cache holds.
class Pace {
 public:
  Pace() : data_(static_cast<Index>(cold_bytes() / sizeof(float))) {}
  std::size_t bytes() const { return static_cast<std::size_t>(data_.size()) * sizeof(float); }
  /// Returns the seconds to read `bytes`, an equal part for each thread, starting where the last call ended.
  double seconds(double bytes, ExecutorRef executor) {
    const Index part = data_.size() / executor.size();
    const Index wanted = static_cast<Index>(bytes / sizeof(float)) / executor.size(), from = next_ % part;
    next_ = from + wanted;
    return seconds_of([&] {
      executor(executor.size(), [&](Index worker) {
        const float* const own = data_.data() + worker * part;
        for (Index at = from, left = wanted; left > 0; at = 0) {
          const Index count = std::min(left, part - at);
          keep(read_all(own + at, count));
          left -= count;
        }
      });
    });
  }

 private:
  Ones data_;
  Index next_ = 0;
};

inline double peak_of(ExecutorRef executor, double like_seconds) {
  std::vector<double> peaks(static_cast<std::size_t>(executor.size()));
  executor(executor.size(), [&](Index worker) { peaks[static_cast<std::size_t>(worker)] = peak_flops(like_seconds); });
  double sum = 0;
  for (const double peak : peaks) sum += peak;
  return sum;
}

}  // namespace pith_bench
