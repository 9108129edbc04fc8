#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <ctime>
#include <random>
#include <string_view>
#include <vector>

#include <pith/core.hpp>
#include <pith/core/detail/integer_lanes.hpp>
#include <pith/core/simd.hpp>

/// What every benchmark measures beside its subject: the limits of this machine, in the same run.
namespace pith_bench {

using pith::Index;

/// Seconds of the day or, with PITH_BENCH_CLOCK=thread, of this thread's processor time: what other work takes does not count then. For
/// measuring one thread on a shared machine.
inline double now() {
#ifdef CLOCK_THREAD_CPUTIME_ID
  static const bool of_thread = [] {
    const char* const said = std::getenv("PITH_BENCH_CLOCK");
    return said != nullptr && std::string_view(said) == "thread";
  }();
  if (timespec t; of_thread && clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0)
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
#endif
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class F> double seconds_of(F&& f) {
  const double start = now();
  f();
  return now() - start;
}

class Samples {
 public:
  void add(double value) { values_.push_back(value); }
  std::size_t size() const { return values_.size(); }
  double median() const {
    std::vector<double> v = values_;
    if (v.empty()) return 0;
    std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
    return v[v.size() / 2];
  }

 private:
  std::vector<double> values_;
};

/// Stops the compiler from removing the computation of an unused result.
template <class T> void keep(const T& value) { asm volatile("" : : "g"(&value) : "memory"); }

/// Sums `count` floats, as fast as this build can read them.
inline float read_all(const float* p, Index count) {
  using V = pith::detail::Simd<float>;
  V::Packet sum[8];
  for (auto& s : sum) s = V::zero();
  Index i = 0;
  for (; i + 8 * V::width <= count; i += 8 * V::width) {
#pragma GCC unroll 8
    for (int a = 0; a < 8; ++a) sum[a] = V::add(sum[a], V::load(p + i + a * V::width));
  }
  float total = 0;
  for (auto& s : sum) total += V::sum(s);
  for (; i < count; ++i) total += p[i];
  return total;
}

/// Multiply-adds that depend on none of the others: enough to hide their latency, few enough for the registers.
template <class S> inline constexpr int peak_chains = pith::detail::Simd<S>::registers == 32 ? 24 : 12;

/// Runs `steps` steps of each chain, in registers. Never inlined, so that code around a call does not take its registers.
template <class S> [[gnu::noinline]] S multiply_add(int steps, S factor) {
  using V = pith::detail::Simd<S>;
  constexpr int chains = peak_chains<S>;
  typename V::Packet sum[chains];
  asm volatile("" : "+m"(factor));  // a result that the compiler knows is computed once
  const typename V::Packet a = V::broadcast(factor), b = V::broadcast(S(1e-3));
  for (auto& s : sum) s = a;
  for (int i = 0; i < steps; ++i) {
#pragma GCC unroll 24
    for (int c = 0; c < chains; ++c) sum[c] = V::madd(sum[c], a, b);
  }
  for (int c = 1; c < chains; ++c) sum[0] = V::add(sum[0], sum[c]);
  return V::sum(sum[0]) / chains;
}

/// Floating-point operations a second of one thread: multiply-adds on registers, for about as long as what they are compared with, up to
/// 20 ms: a clock that falls and a host that takes the core away do so to both.
template <class S = float> double peak_flops(double like_seconds = 0) {
  constexpr int steps = 8192;  // some 30 microseconds
  double seconds = 0, flops = 0;
  do {
    seconds += seconds_of([] { keep(multiply_add<S>(steps, S(0.999))); });
    flops += 2.0 * peak_chains<S> * pith::detail::Simd<S>::width * steps;
  } while (seconds < std::min(like_seconds, .02));
  return flops / seconds;
}

/// Runs `steps` steps of each chain of integer dot products, in registers.
template <class L> [[gnu::noinline]] float multiply_codes(int steps, std::uint32_t factor) {
  constexpr int chains = L::parts == 2 ? 8 : 12;  // a chain of bytes has two sums
  asm volatile("" : "+m"(factor));                // a result that the compiler knows is computed once
  std::uint32_t words[std::size_t(L::width)];
  std::int16_t slot[8];
  for (auto& word : words) word = factor;
  for (auto& number : slot) number = static_cast<std::int16_t>(factor);
  const typename L::Part codes = L::unpack(L::words(words), 0);
  const typename L::Inputs x = L::inputs(slot, 0);
  typename L::Sum sum[chains];
#pragma GCC unroll 12  // unrolled, sums of two registers stay in registers
  for (int c = 0; c < chains; ++c) sum[c] = L::start(0);
  for (int i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < chains; ++c) L::add(sum[c], codes, x);
  }
  float lanes[std::size_t(L::width)], total = 0;
#pragma GCC unroll 12
  for (int c = 0; c < chains; ++c) {
    L::store(lanes, L::total(sum[c]));
    total += lanes[0];
  }
  return total;
}

/// Operations a second on bytes of one thread, by the dot products that this build has: a product of 16 bits counts as two.
inline double peak_dots(double like_seconds = 0) {
  using L = pith::detail::FewLanes;
  constexpr int steps = 8192, chains = L::parts == 2 ? 8 : 12, inputs = 8 / L::parts;
  double seconds = 0, operations = 0;
  do {
    seconds += seconds_of([] { keep(multiply_codes<L>(steps, 0x1234567u)); });
    operations += 2.0 * 2 * inputs * L::width * chains * steps;
  } while (seconds < std::min(like_seconds, .02));
  return operations / seconds;
}

/// Whether this build has a dot product of bfloat16.
#if defined(__AVX512BF16__) && defined(EIGEN_VECTORIZE_AVX512)
inline constexpr bool has_narrow_dots = true;

/// Runs `steps` steps of each chain of bfloat16 dot products, in registers.
[[gnu::noinline]] inline float multiply_narrow(int steps, std::uint32_t factor) {
  constexpr int chains = 24;
  asm volatile("" : "+m"(factor));  // a result that the compiler knows is computed once
  const auto pairs = pith::detail::bits_as<__m512bh>(_mm512_set1_epi32(static_cast<int>(factor)));
  __m512 sum[chains];
  for (__m512& s : sum) s = _mm512_set1_ps(1);
  for (int i = 0; i < steps; ++i) {
#pragma GCC unroll 24
    for (int c = 0; c < chains; ++c) sum[c] = _mm512_dpbf16_ps(sum[c], pairs, pairs);
  }
  for (int c = 1; c < chains; ++c) sum[0] = _mm512_add_ps(sum[0], sum[c]);
  return _mm512_cvtss_f32(sum[0]);
}

/// Floating-point operations a second of one thread by that dot product.
inline double peak_narrow_dots(double like_seconds = 0) {
  constexpr int steps = 8192, chains = 24, products = 32;
  double seconds = 0, flops = 0;
  do {
    seconds += seconds_of([] { keep(multiply_narrow(steps, 0x3c003c00u)); });  // 1/128 and 1/128
    flops += 2.0 * products * chains * steps;
  } while (seconds < std::min(like_seconds, .02));
  return flops / seconds;
}
#else
inline constexpr bool has_narrow_dots = false;
inline double peak_narrow_dots(double = 0) { return 0; }
#endif

inline pith::Matrix<float> random_matrix(Index rows, Index cols, std::uint64_t seed) {
  std::mt19937_64 rng(seed);
  pith::Matrix<float> m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = 2.f * pith::canonical<float>(rng) - 1.f;
  return m;
}

/// |actual - reference| / |reference| in the Frobenius norm.
template <class A, class R> double rel_err(const A& actual, const R& reference) {
  return (actual.template cast<double>() - reference).norm() / reference.norm();
}

}  // namespace pith_bench
