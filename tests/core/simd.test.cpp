#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <pith/core/simd.hpp>

#include "support/catch.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using detail::Simd;

namespace {

template <class S> constexpr S infinity = std::numeric_limits<S>::infinity();
template <class S> constexpr S not_a_number = std::numeric_limits<S>::quiet_NaN();

/// Distance in units of the last place of `exact`, rounded to S.
template <class S> double units(S value, long double exact) {
  const S rounded = static_cast<S>(exact);
  const S unit = std::nextafter(std::abs(rounded), infinity<S>) - std::abs(rounded);
  return static_cast<double>(std::abs(static_cast<long double>(value) - exact) / static_cast<long double>(unit));
}

template <class S> Vector<S> numbers(Index n, std::uint64_t seed, double scale = 1) {
  return pith_test::random_matrix<S>(n, 1, seed, scale);
}

template <class S> Vector<S> lanes(typename Simd<S>::Packet p) {
  Vector<S> out(Simd<S>::width);
  Simd<S>::store(out.data(), p);
  return out;
}

}  // namespace

TEMPLATE_TEST_CASE("simd: lanes are numbers", "[core]", float, double) {
  using S = TestType;
  using V = Simd<S>;
  const Vector<S> a = numbers<S>(V::width, 1), b = numbers<S>(V::width, 2), c = numbers<S>(V::width, 3);
  const auto pa = V::load(a.data()), pb = V::load(b.data()), pc = V::load(c.data());
  const Vector<S> sum = lanes<S>(V::add(pa, pb)), quotient = lanes<S>(V::div(pa, pb)), fused = lanes<S>(V::madd(pa, pb, pc));
  const Vector<S> picked = lanes<S>(V::select(V::less(pa, pb), pa, pb)), larger = lanes<S>(V::larger(pa, pb));
  for (Index i = 0; i < V::width; ++i) {
    CHECK(sum[i] == a[i] + b[i]);
    CHECK(quotient[i] == a[i] / b[i]);
    CHECK(picked[i] == std::min(a[i], b[i]));
    CHECK(larger[i] == std::max(a[i], b[i]));
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    CHECK(fused[i] == std::fma(a[i], b[i], c[i]));
#else
    const volatile S product = a[i] * b[i];
    CHECK(fused[i] == product + c[i]);
#endif
  }
  CHECK(V::first(pa) == a[0]);
  CHECK(V::largest(pa) == a.maxCoeff());
  const double eps = static_cast<double>(std::numeric_limits<S>::epsilon());
  CHECK(std::abs(static_cast<double>(V::sum(pa)) - a.template cast<double>().sum()) <=
        V::width * eps * a.template cast<double>().cwiseAbs().sum());
}

TEMPLATE_TEST_CASE("simd: parts of a packet read and write nothing else", "[core]", float, double) {
  using S = TestType;
  using V = Simd<S>;
  for (Index n = 0; n <= V::width; ++n) {
    const std::vector<S> exact(static_cast<std::size_t>(n), S(7));  // a sanitizer sees a read past its end
    const Vector<S> part = lanes<S>(V::load_part(exact.data(), n, S(-1)));
    for (Index i = 0; i < V::width; ++i) CHECK(part[i] == (i < n ? S(7) : S(-1)));
    Vector<S> out = Vector<S>::Constant(V::width, S(3));
    V::store_part(out.data(), n, V::broadcast(S(9)));
    for (Index i = 0; i < V::width; ++i) CHECK(out[i] == (i < n ? S(9) : S(3)));
  }
}

TEMPLATE_TEST_CASE("simd: transpose and the sums of several packets", "[core]", float, double) {
  using S = TestType;
  using V = Simd<S>;
  const Matrix<S> m = pith_test::random_matrix<S>(V::width, V::width, 4);
  typename V::Packet rows[V::width], again[V::width];
  for (Index i = 0; i < V::width; ++i) rows[i] = again[i] = V::load(m.data() + i * V::width);
  V::transpose(rows);
  for (Index i = 0; i < V::width; ++i) CHECK((lanes<S>(rows[i]) == m.col(i)));
  const Vector<S> sums = lanes<S>(V::sum_each(again));
  const double eps = static_cast<double>(std::numeric_limits<S>::epsilon());
  for (Index i = 0; i < V::width; ++i)
    CHECK(std::abs(static_cast<double>(sums[i]) - m.row(i).template cast<double>().sum()) <=
          V::width * eps * m.row(i).template cast<double>().cwiseAbs().sum());
}

TEST_CASE("simd: a sum of several packets does not depend on which packet it is", "[core]") {
  using V = Simd<float>;
  const Vector<float> a = numbers<float>(V::width, 5, 100);
  V::Packet rows[V::width];
  for (auto& row : rows) row = V::load(a.data());
  const Vector<float> sums = lanes<float>(V::sum_each(rows));
  for (Index i = 0; i < V::width; ++i) CHECK(sums[i] == sums[0]);
}

TEMPLATE_TEST_CASE("simd: exp_down at its ends and in between", "[core]", float, double) {
  using S = TestType;
  using V = Simd<S>;
  const auto exp_down = [](S a) { return V::first(V::exp_down(V::broadcast(a))); };
  const S lowest = std::is_same_v<S, float> ? S(-87.3) : S(-708.3);
  double worst = 0;
  for (int i = 0; i <= 20000; ++i) {
    const S a = lowest * (S(1) - S(i) / S(20000));
    worst = std::max(worst, units<S>(exp_down(a), std::exp(static_cast<long double>(a))));
  }
  INFO("units in the last place: " << worst);
  CHECK(worst <= (std::is_same_v<S, float> ? 3 : 4));
  CHECK(exp_down(S(0)) == S(1));
  for (const S tiny : {-infinity<S>, std::numeric_limits<S>::lowest(), S(2) * lowest}) CHECK(exp_down(tiny) == S(0));
  CHECK(std::isnan(exp_down(not_a_number<S>)));
}

TEST_CASE("simd: every byte, every bfloat16 and every half widens exactly", "[core]") {
  using V = Simd<float>;
  std::vector<std::int8_t> bytes;
  for (int i = -128; i < 128 + V::width; ++i) bytes.push_back(static_cast<std::int8_t>(i < 128 ? i : 0));
  for (std::size_t i = 0; i < 256; ++i)
    for (Index j = 0; j < V::width; ++j) CHECK(lanes<float>(V::load(bytes.data() + i))[j] == float(bytes[i + std::size_t(j)]));
  constexpr std::size_t count = 1 << 16, pair = 2 * std::size_t(V::width);
  std::vector<bfloat16> b(count);
  std::vector<half> h(count);
  for (std::size_t i = 0; i < count; ++i) {
    b[i] = Eigen::bfloat16_impl::raw_uint16_to_bfloat16(static_cast<std::uint16_t>(i));
    h[i] = Eigen::half_impl::raw_uint16_to_half(static_cast<std::uint16_t>(i));
  }
  const auto agrees = [](float got, float want) {
    return std::isnan(want) ? std::isnan(got) : pith_test::same_bits(Vector<float>{{got}}, Vector<float>{{want}});
  };
  const auto of_half = [](std::size_t bits) {  // sign, exponent less 15, ten bits of fraction
    const auto exponent = static_cast<int>(bits >> 10 & 31), fraction = static_cast<int>(bits & 1023);
    const float size = exponent == 31  ? (fraction == 0 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN())
                       : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                       : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
    return bits >> 15 != 0 ? -size : size;
  };
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < count; i += pair) {
    const Vector<float> even = lanes<float>(V::load_even(b.data() + i)), odd = lanes<float>(V::load_odd(b.data() + i));
    for (std::size_t j = 0; j < pair; ++j) {
      const Index k = static_cast<Index>(j / 2);
      const float bits = std::bit_cast<float>(static_cast<std::uint32_t>(i + j) << 16);
      wrong += !agrees(j % 2 ? odd[k] : even[k], bits);
      wrong += !agrees(detail::widen(b[i + j]), bits);
    }
    for (std::size_t part = 0; part < 2; ++part) {
      const std::size_t begin = i + part * std::size_t(V::width);
      const Vector<float> wide_b = lanes<float>(V::load(b.data() + begin)), wide_h = lanes<float>(V::load(h.data() + begin));
      for (Index j = 0; j < V::width; ++j) {
        wrong += !agrees(wide_b[j], detail::widen(b[begin + std::size_t(j)]));
        wrong += !agrees(wide_h[j], of_half(begin + std::size_t(j)));
        wrong += !agrees(detail::widen(h[begin + std::size_t(j)]), of_half(begin + std::size_t(j)));
      }
    }
  }
  CHECK(wrong == 0);
}

TEMPLATE_TEST_CASE("simd: map_packets gives each number the bits it has alone", "[core]", float, double) {
  using S = TestType;
  using V = Simd<S>;
  const Vector<S> a = numbers<S>(41, 6, 20), b = numbers<S>(41, 7);
  const auto one = [](auto v) { return V::exp_down(v); };
  const auto two = [](auto v, auto w) { return V::madd(V::exp_down(v), w, w); };
  for (Index n = 0; n <= a.size(); ++n) {
    Vector<S> out = Vector<S>::Constant(a.size() + 1, S(-5)), both = out;
    detail::map_packets(a.data(), out.data(), n, one);
    detail::map_packets(a.data(), b.data(), both.data(), n, two);
    for (Index i = 0; i < n; ++i) {
      S alone = 0, pair = 0;
      detail::map_packets(a.data() + i, &alone, 1, one);
      detail::map_packets(a.data() + i, b.data() + i, &pair, 1, two);
      CHECK(out[i] == alone);
      CHECK(both[i] == pair);
    }
    CHECK((out.tail(out.size() - n).array() == S(-5)).all());
    CHECK((both.tail(both.size() - n).array() == S(-5)).all());
  }
}
