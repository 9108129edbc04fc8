#pragma once

#include <benchmark/benchmark.h>

#include <string>

#include "cold.hpp"

namespace pith_bench {

/// Makes run(state, c) a case called `name` and what c.text() says of its sizes.
template <class Run, class Case> benchmark::internal::Benchmark* add(const std::string& name, Run run, const Case& c) {
  const std::string whole = name + c.text();
  return benchmark::RegisterBenchmark(whole.c_str(),
                                      [=](benchmark::State& state) {
                                        ColdCopies::begin(whole);
                                        run(state, c);
                                      })
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond)
      ->Repetitions(3)
      ->ReportAggregatesOnly(true);
}

}  // namespace pith_bench
