// Where evicted rows go: the nearest kept key of each, against the whole similarity matrix in Eigen and a maximum of each row.
//
// of_peak   share of the multiply-adds this core can do, measured between the same iterations
// bytes     scratch beside the operands
// rel_err   of the cosines against double; a wrong match is not reported
#include <benchmark/benchmark.h>

#include <cmath>
#include <string>
#include <vector>

#include <pith/merge.hpp>

#include "support/measure.hpp"
#include "support/register.hpp"

using namespace pith;
using namespace pith_bench;

namespace {

/// `rows` tokens, a fifth of which is kept.
struct Case {
  Index rows, dim;
  Index kept() const { return rows / 5; }
  Index evicted() const { return rows - kept(); }
  std::string text() const { return "/rows:" + std::to_string(rows) + "/dim:" + std::to_string(dim); }
};

template <class Find> void measure(benchmark::State& state, Case c, std::size_t bytes, Find find) {
  const Matrix<float> kept = random_matrix(c.kept(), c.dim, 1), evicted = random_matrix(c.evicted(), c.dim, 2);
  std::vector<std::int32_t> match(static_cast<std::size_t>(c.evicted()));
  Vector<float> cosine(c.evicted());
  find(evicted, kept, match, cosine);

  const Index looked_at = 64;
  const Matrix<double> wide = kept.cast<double>().rowwise().normalized();
  Vector<double> reference(looked_at);
  for (Index e = 0; e < looked_at; ++e) {
    const Vector<double> all = wide * evicted.row(e).cast<double>().normalized().transpose();
    reference[e] = all.maxCoeff();
    if (!(all[match[static_cast<std::size_t>(e)]] > reference[e] - 1e-6)) return state.SkipWithError("wrong match");
  }
  Samples times, peak;
  for (auto _ : state) {
    const double seconds = seconds_of([&] { find(evicted, kept, match, cosine); });
    keep(cosine);
    state.SetIterationTime(seconds);
    times.add(seconds);
    peak.add(peak_flops(seconds));
  }
  state.counters["of_peak"] =
      2.0 * static_cast<double>(c.evicted()) * static_cast<double>(c.kept() * c.dim) / times.median() / peak.median();
  state.counters["bytes"] = static_cast<double>(bytes);
  state.counters["rel_err"] = rel_err(cosine.head(looked_at), reference);
}

void nearest(benchmark::State& state, Case c) {
  Workspace ws(nearest_workspace_bytes<float>(c.kept(), c.dim));
  measure(state, c, ws.bytes(),
          [&](const Matrix<float>& evicted, const Matrix<float>& kept, std::vector<std::int32_t>& match, Vector<float>& cosine) {
            nearest_rows<float>(evicted, kept, match, cosine, ws);
          });
}

void eigen(benchmark::State& state, Case c) {
  measure(state, c, static_cast<std::size_t>(c.evicted() * c.kept() + c.rows * c.dim) * sizeof(float),
          [](const Matrix<float>& evicted, const Matrix<float>& kept, std::vector<std::int32_t>& match, Vector<float>& cosine) {
            const Matrix<float> similarity = evicted.rowwise().normalized() * kept.rowwise().normalized().transpose();
            for (Index e = 0; e < similarity.rows(); ++e) {
              Index best = 0;
              cosine[e] = similarity.row(e).maxCoeff(&best);
              match[static_cast<std::size_t>(e)] = static_cast<std::int32_t>(best);
            }
          });
}

const bool registered = [] {
  for (const Case c : {Case{2048, 128}, Case{8192, 128}}) {
    add("nearest", nearest, c);
    add("eigen", eigen, c);
  }
  return true;
}();

}  // namespace
