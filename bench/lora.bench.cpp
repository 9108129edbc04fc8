// The layer that adapters wrap, y = x Wᵀ + b through AnyLinear: what an adapter's price will be measured against.
//
// of_read   time of reading the f32 bytes of W once over the time taken: 1 is the limit for f32 and one token, 2 for 16 bit
// rel_err   against the product in double; a wrong result is not reported
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include <pith/core.hpp>
#include <pith/nn/linear.hpp>

#include "support/measure.hpp"
#include "support/register.hpp"

using namespace pith;
using namespace pith_bench;

namespace {

struct Case {
  Index tokens, features;
  std::string text() const { return "/tokens:" + std::to_string(tokens) + "/features:" + std::to_string(features); }
};

template <class Prepare, class Run> void measure(benchmark::State& state, Case c, Prepare prepare, Run run) {
  const Matrix<float> w = random_matrix(c.features, c.features, 1), x = random_matrix(c.tokens, c.features, 2);
  const Vector<float> bias = random_matrix(c.features, 1, 3);
  const std::size_t bytes = static_cast<std::size_t>(w.size()) * sizeof(float);
  std::vector<decltype(prepare(w, bias))> layers;
  for (std::size_t held = 0; held < cold_bytes() + bytes; held += bytes) layers.push_back(prepare(w, bias));
  Matrix<float> y(c.tokens, c.features);
  Workspace ws(AnyLinear<float>(Linear<float>(w, bias)).workspace_bytes(c.tokens));
  run(layers[0], x, y, ws);
  const Eigen::MatrixXd reference = (x.cast<double>() * w.cast<double>().transpose()).rowwise() + bias.cast<double>().transpose();
  const double error = rel_err(y, reference);
  if (!(error < 1e-2)) return state.SkipWithError("wrong result");

  ColdRead read(bytes);
  Samples kernel, reading;
  std::size_t turn = 0;
  for (auto _ : state) {
    const double seconds = seconds_of([&] { run(layers[turn++ % layers.size()], x, y, ws); });
    keep(y);
    state.SetIterationTime(seconds);
    kernel.add(seconds);
    reading.add(read.seconds());
  }
  state.counters["of_read"] = reading.median() / kernel.median();
  state.counters["rel_err"] = error;
}

template <class T> void layer(benchmark::State& state, Case c) {
  measure(
      state, c,
      [](const Matrix<float>& w, const Vector<float>& bias) {
        return AnyLinear<float>(PackedLinear<float, T>(PackedWeight<T>(Matrix<T>(w.template cast<T>())), bias));
      },
      [](const AnyLinear<float>& linear, const Matrix<float>& x, Matrix<float>& y, Workspace& ws) { linear.forward(x, y, ws); });
}

void eigen(benchmark::State& state, Case c) {
  struct Naive {
    Matrix<float> w;
    Vector<float> bias;
  };
  measure(
      state, c,
      [](const Matrix<float>& w, const Vector<float>& bias) {
        return Naive{w, bias};
      },
      [](const Naive& naive, const Matrix<float>& x, Matrix<float>& y, Workspace&) {
        y.noalias() = x * naive.w.transpose();
        y.rowwise() += naive.bias.transpose();
      });
}

const bool registered = [] {
  for (const Case c : {Case{1, 1024}, Case{1, 2048}, Case{8, 2048}, Case{64, 2048}}) {
    add("layer_f32", layer<float>, c);
    add("layer_bf16", layer<pith::bfloat16>, c);
    add("eigen", eigen, c);
  }
  return true;
}();

}  // namespace
