#pragma once

#include <benchmark/benchmark.h>

#include <string>

namespace pith_bench {

/// Makes run(state, c) a case called `name` and what c.text() says of its sizes.
template <class Run, class Case> benchmark::internal::Benchmark* add(const std::string& name, Run run, const Case& c) {
  return benchmark::RegisterBenchmark((name + c.text()).c_str(), [=](benchmark::State& state) { run(state, c); })
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond)
      ->Repetitions(3)
      ->ReportAggregatesOnly(true);
}

}  // namespace pith_bench
