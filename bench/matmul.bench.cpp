// y = x Wᵀ with weights no cache holds: panels and maps of every width, bytes with a scale for each output, four bits with a scale for each
// group of inputs, against naive Eigen, and
// OpenBLAS and oneDNN where they were found.
//
// of_read   time of reading the f32 bytes of W once over the time taken: 1 is the limit for f32 and one token, 2 for 16 bit, 4 for 8
// of_own    the same of the bytes that the weights really take: 1 is the limit for one token
// of_dot    share of the operations on bytes that this core can do, measured between the same iterations; integers of 15 bits take
//           two for each product. Of activations rounded to bfloat16: of the operations of the bfloat16 dot product, where this build has
//           it
// of_peak   share of the multiply-adds this core can do, measured between the same iterations
// rel_err   against the product in double; a wrong result is not reported
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <pith/core.hpp>
#include <pith/nn/bf16.hpp>
#include <pith/nn/int4.hpp>
#include <pith/nn/int8.hpp>
#include <pith/nn/linear.hpp>

#include "support/cold.hpp"
#include "support/measure.hpp"
#include "support/register.hpp"

#ifdef PITH_BENCH_OPENBLAS
#include <cblas.h>
#endif
#ifdef PITH_BENCH_ONEDNN
#include <oneapi/dnnl/dnnl.hpp>
extern "C" void omp_set_num_threads(int);  // of the runtime that oneDNN is linked to; -fopenmp would thread Eigen as well
#endif

using namespace pith;
using namespace pith_bench;

namespace {

struct Case {
  Index tokens, out, in;
  std::size_t f32_bytes() const { return static_cast<std::size_t>(out * in) * sizeof(float); }
  std::string text() const { return "/tokens:" + std::to_string(tokens) + "/out:" + std::to_string(out) + "/in:" + std::to_string(in); }
};

using Peak = double (*)(double like_seconds);

/// `prepare(stored)` makes one copy of the weights, of `bytes` bytes, `run(copy, x, y, ws)` multiplies by it; the copies take turns.
/// `dot`: the peak of the dot product that it may use, or null.
template <class T, class Prepare, class Run>
void measure(benchmark::State& state, Case c, const Matrix<T>& stored, double bytes, Prepare prepare, Run run, std::size_t ws_bytes = 0,
             double tolerance = 1e-5, Peak dot = nullptr) {
  const Matrix<float> x = random_matrix(c.tokens, c.in, 2);
  auto& weights = ColdCopies::of(static_cast<std::size_t>(bytes), [&] { return prepare(stored); });
  Matrix<float> y(c.tokens, c.out);
  Workspace ws(std::max(matmul_workspace_bytes<T>(c.tokens, c.in), ws_bytes));
  run(weights[0], x, y, ws);

  const Index rows = std::min<Index>(c.tokens, 4);  // enough to see a wrong kernel, tails and all
  const Eigen::MatrixXd reference = x.bottomRows(rows).template cast<double>() * stored.template cast<double>().transpose();
  const double error = rel_err(y.bottomRows(rows), reference);
  if (!(error < tolerance)) return state.SkipWithError("wrong result");

  ColdRead read(c.f32_bytes());
  Samples kernel, reading, peak, dots;
  std::size_t turn = 0;
  for (auto _ : state) {
    const double seconds = seconds_of([&] { run(weights[turn++ % weights.size()], x, y, ws); });
    keep(y);
    state.SetIterationTime(seconds);
    kernel.add(seconds);
    reading.add(read.seconds());
    peak.add(peak_flops(seconds));
    if (dot) dots.add(dot(seconds));
  }
  const double flops = 2.0 * static_cast<double>(c.tokens) * static_cast<double>(c.out) * static_cast<double>(c.in);
  state.counters["of_read"] = reading.median() / kernel.median();
  state.counters["of_own"] = reading.median() / kernel.median() * bytes / static_cast<double>(c.f32_bytes());
  if (dot) state.counters["of_dot"] = flops / kernel.median() / dots.median();
  state.counters["of_peak"] = flops / kernel.median() / peak.median();
  state.counters["GFLOPS"] = flops / kernel.median() * 1e-9;
  state.counters["rel_err"] = error;
}

template <class T, class Prepare, class Run> void measure(benchmark::State& state, Case c, Prepare prepare, Run run) {
  measure(state, c, Matrix<T>(random_matrix(c.out, c.in, 1).template cast<T>()), static_cast<double>(c.out * c.in) * sizeof(T), prepare,
          run);
}

template <class T> void packed(benchmark::State& state, Case c) {
  measure<T>(
      state, c, [](const Matrix<T>& w) { return PackedWeight<T>(w); },
      [](const PackedWeight<T>& w, const Matrix<float>& x, Matrix<float>& y, Workspace& ws) { matmul(x, w, {}, y, ws); });
}

/// The activations rounded to bfloat16; the error is that of rounding them.
void rounded_bf16(benchmark::State& state, Case c) {
  measure(
      state, c, Matrix<pith::bfloat16>(random_matrix(c.out, c.in, 1).cast<pith::bfloat16>()),
      static_cast<double>(c.out * c.in) * sizeof(pith::bfloat16), [](const Matrix<pith::bfloat16>& w) { return Bf16Linear(w); },
      [](const Bf16Linear& w, const Matrix<float>& x, Matrix<float>& y, Workspace& ws) { w.forward(x, y, ws); },
      detail::bf16_workspace_bytes(c.tokens, c.in, 1), 4e-3, has_narrow_dots ? peak_narrow_dots : nullptr);
}

/// The codes are what is read; the error is against the weights they decode to, under Compute::int15 that of x, rounded to 15 bits.
template <Compute How> void packed_int8(benchmark::State& state, Case c) {
  const Int8Weight rounded(random_matrix(c.out, c.in, 1));
  Matrix<float> decoded(c.out, c.in);
  rounded.copy_rows(0, decoded);
  measure(
      state, c, decoded, static_cast<double>(rounded.bytes()), [](const Matrix<float>& w) { return Int8Weight(w); },
      [](const Int8Weight& w, const Matrix<float>& x, Matrix<float>& y, Workspace& ws) { matmul(x, w, {}, y, ws, How); },
      How == Compute::int15 ? matmul_workspace_bytes(rounded, c.tokens, 1, How) : 0, How == Compute::int15 ? 1e-4 : 1e-5,
      How == Compute::int15 ? peak_dots : nullptr);
}

/// Rows of a weight as a file holds them.
Int4Rows<half> rows_of(const Int4Weight& w, Index first, Index n) {
  static Matrix<std::uint8_t> codes;
  static Matrix<half> scales;
  codes.resize(n, w.in());
  scales.resize(n, w.shape().groups());
  for (Index g = 0; g < w.shape().groups(); ++g) {
    const auto record = w.record(first / 32, g);  // asked for whole panels
    for (Index o = 0; o < n; ++o) {
      scales(o, g) = static_cast<half>(record.scale(o));
      for (Index k = 0; k < w.group(); ++k) codes(o, g * w.group() + k) = static_cast<std::uint8_t>(record.code(o, k));
    }
  }
  return {codes, scales};
}

/// The same in four bits: the error is that of x, rounded to 15.
template <Index Group> void packed_int4(benchmark::State& state, Case c) {
  const Int4Weight rounded(random_matrix(c.out, c.in, 1), Group);
  Matrix<float> decoded(c.out, c.in);
  rounded.copy_rows(0, decoded);
  measure(
      state, c, decoded, static_cast<double>(rounded.bytes()),
      [&](const Matrix<float>&) {  // a copy would share the codes
        return Int4Weight(c.out, c.in, {.size = Group}, [&](Index first, Index n) { return rows_of(rounded, first, n); });
      },
      [](const Int4Weight& w, const Matrix<float>& x, Matrix<float>& y, Workspace& ws) { matmul(x, w, {}, y, ws); },
      matmul_workspace_bytes(rounded, c.tokens), 1e-4, peak_dots);
}

template <class T> void mapped(benchmark::State& state, Case c) {
  measure<T>(
      state, c, [](const Matrix<T>& w) { return w; },
      [](const Matrix<T>& w, const Matrix<float>& x, Matrix<float>& y, Workspace& ws) { matmul(x, ConstMatrixRef<T>(w), {}, y, ws); });
}

void eigen(benchmark::State& state, Case c) {
  measure<float>(
      state, c, [](const Matrix<float>& w) { return w; },
      [](const Matrix<float>& w, const Matrix<float>& x, Matrix<float>& y, Workspace&) {
        if (x.rows() == 1) {
          y.row(0).transpose().noalias() = w * x.row(0).transpose();
        } else {
          y.noalias() = x * w.transpose();
        }
      });
}

#ifdef PITH_BENCH_OPENBLAS
void openblas(benchmark::State& state, Case c) {
  openblas_set_num_threads(1);
  measure<float>(
      state, c, [](const Matrix<float>& w) { return w; },
      [](const Matrix<float>& w, const Matrix<float>& x, Matrix<float>& y, Workspace&) {
        const auto m = static_cast<blasint>(x.rows()), n = static_cast<blasint>(w.rows()), k = static_cast<blasint>(w.cols());
        if (m == 1) {
          cblas_sgemv(CblasRowMajor, CblasNoTrans, n, k, 1.f, w.data(), k, x.data(), 1, 0.f, y.data(), 1);
        } else {
          cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1.f, x.data(), k, w.data(), k, 0.f, y.data(), n);
        }
      });
}
#endif

#ifdef PITH_BENCH_ONEDNN
/// oneDNN with weights in the layout it likes best for this many tokens, reordered once.
class OneDnn {
 public:
  OneDnn(const Matrix<float>& w, Index tokens) {
    using namespace dnnl;
    using Type = memory::data_type;
    omp_set_num_threads(1);
    const memory::desc x({tokens, w.cols()}, Type::f32, memory::format_tag::ab), y({tokens, w.rows()}, Type::f32, memory::format_tag::ab);
    const memory::desc any({w.cols(), w.rows()}, Type::f32, memory::format_tag::any);
    const memory::desc rows({w.cols(), w.rows()}, Type::f32, memory::format_tag::ba);
    const dnnl::matmul::primitive_desc chosen(dnnl::matmul::desc(x, any, y), engine_);
    x_ = memory(x, engine_, nullptr);
    y_ = memory(y, engine_, nullptr);
    weight_ = memory(chosen.weights_desc(), engine_);
    memory given(rows, engine_, const_cast<float*>(w.data()));
    reorder(given, weight_).execute(stream_, given, weight_);
    stream_.wait();
    product_ = dnnl::matmul(chosen);
  }
  void run(const Matrix<float>& x, Matrix<float>& y) {
    x_.set_data_handle(const_cast<float*>(x.data()));
    y_.set_data_handle(y.data());
    product_.execute(stream_, {{DNNL_ARG_SRC, x_}, {DNNL_ARG_WEIGHTS, weight_}, {DNNL_ARG_DST, y_}});
    stream_.wait();
  }

 private:
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  dnnl::memory x_, y_, weight_;
  dnnl::matmul product_;
};

void onednn(benchmark::State& state, Case c) {
  measure<float>(
      state, c, [&](const Matrix<float>& w) { return std::make_unique<OneDnn>(w, c.tokens); },
      [](const std::unique_ptr<OneDnn>& layer, const Matrix<float>& x, Matrix<float>& y, Workspace&) { layer->run(x, y); });
}
#endif

/// What this core reaches at most, a second: operations in registers or, without `peak`, bytes from memory.
struct Limit {
  std::string name;
  Peak peak;
  std::string text() const { return "/" + name; }
};
void limit(benchmark::State& state, const Limit& of) {
  constexpr std::size_t bytes = std::size_t(16) << 20;
  ColdRead read(bytes);
  Samples pace;
  for (auto _ : state) {
    const double start = now();
    pace.add((of.peak ? of.peak(1e-3) : static_cast<double>(bytes) / read.seconds()) * 1e-9);
    state.SetIterationTime(now() - start);
  }
  state.counters[of.peak ? "GFLOPS" : "GB/s"] = pace.median();
}

const bool registered = [] {
  add("limit", limit, Limit{"read", nullptr});
  add("limit", limit, Limit{"f32", peak_flops<float>});
  if (has_narrow_dots) add("limit", limit, Limit{"bf16_dot", peak_narrow_dots});
  add("limit", limit, Limit{"int8_dot", peak_dots});
  const auto peers = [](Case c) {
    add("packed_f32", packed<float>, c);
    add("mapped_f32", mapped<float>, c);
    add("eigen", eigen, c);
#ifdef PITH_BENCH_OPENBLAS
    add("openblas", openblas, c);
#endif
#ifdef PITH_BENCH_ONEDNN
    add("onednn", onednn, c);
#endif
  };
  for (const Case c : {Case{1, 2048, 2048}, Case{1, 5632, 2048}, Case{1, 2048, 8192}}) {
    peers(c);
    add("packed_bf16", packed<pith::bfloat16>, c);
    add("rounded_bf16", rounded_bf16, c);
    add("packed_int8", packed_int8<Compute::exact>, c);
    add("rounded_int8", packed_int8<Compute::int15>, c);
    add("packed_int4", packed_int4<32>, c);
    add("packed_int4_g128", packed_int4<128>, c);
  }
  add("packed_f16", packed<pith::half>, Case{1, 2048, 2048});
  add("mapped_bf16", mapped<pith::bfloat16>, Case{1, 2048, 2048});
  for (const Index tokens : {5, 8, 12, 13, 16, 20, 32, 128}) peers(Case{tokens, 2048, 2048});
  for (const Index tokens : {5, 12, 13, 16, 20, 32, 128}) {
    add("packed_bf16", packed<pith::bfloat16>, Case{tokens, 2048, 2048});
    add("rounded_bf16", rounded_bf16, Case{tokens, 2048, 2048});
    add("packed_int8", packed_int8<Compute::exact>, Case{tokens, 2048, 2048});
    add("rounded_int8", packed_int8<Compute::int15>, Case{tokens, 2048, 2048});
  }
  for (const Index tokens : {4, 8, 12, 13, 16, 20, 32, 128}) {
    add("packed_int4", packed_int4<32>, Case{tokens, 2048, 2048});
    add("packed_int4_g128", packed_int4<128>, Case{tokens, 2048, 2048});
  }
  peers({128, 5632, 2048});
  peers({512, 4096, 4096});
  return true;
}();

}  // namespace
