#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

#include <pith/core/random.hpp>

#include "support/catch.hpp"

using pith::canonical;
using pith::normal;

namespace {
/// A generator that repeats one number, at the ends of its range or in between.
template <std::uint64_t Max> struct Constant {
  using result_type = std::uint64_t;
  static constexpr result_type min() { return 0; }
  static constexpr result_type max() { return Max; }
  result_type value;
  result_type operator()() { return value; }
};
constexpr std::uint64_t all_ones = std::numeric_limits<std::uint64_t>::max();
}  // namespace

TEST_CASE("canonical has the same bits everywhere") {
  std::mt19937_64 wide(42);
  for (const double expected : {0x1.82a3befaddcbcp-1, 0x1.472f1f73724a0p-1, 0x1.81192cfe1cbcfp-1, 0x1.171621fc50d68p-3})
    CHECK(canonical<double>(wide) == expected);
  wide.seed(42);
  for (const float expected : {0x1.82a3bep-1f, 0x1.472f1ep-1f, 0x1.81192cp-1f, 0x1.17162p-3f}) CHECK(canonical<float>(wide) == expected);

  std::mt19937 narrow(42);  // two draws a number, the first one on top
  for (const double expected : {0x1.7f87719b2fa8ep-2, 0x1.e6c406b85deb2p-1}) CHECK(canonical<double>(narrow) == expected);
  narrow.seed(42);
  for (const float expected : {0x1.7f877p-2f, 0x1.e6c406p-1f}) CHECK(canonical<float>(narrow) == expected);
}

TEST_CASE("canonical is in [0, 1), for every output of the generator") {
  Constant<all_ones> ones{all_ones}, zeros{0};
  CHECK(canonical<double>(ones) == 1.0 - std::ldexp(1.0, -53));
  CHECK(canonical<float>(ones) == 1.0f - std::ldexp(1.0f, -24));
  CHECK(canonical<double>(zeros) == 0);
  Constant<0xFFFF> short_ones{0xFFFF};  // four draws of 16 bits
  CHECK(canonical<double>(short_ones) == 1.0 - std::ldexp(1.0, -53));
  std::minstd_rand from_one(1);  // min() is 1, range no power of two: 16 bits a draw are used
  const double u = canonical<double>(from_one);
  CHECK((u >= 0 && u < 1));
}

TEST_CASE("normal is finite at the ends of the generator's range") {
  Constant<all_ones> ones{all_ones}, zeros{0};
  CHECK(std::isfinite(normal<double>(ones)));
  CHECK(normal<double>(zeros) == 0);
}

TEST_CASE("normal agrees to 1e-6 on every platform") {
  std::mt19937_64 rng(42);
  for (const double expected : {-1.0771745442782885, 1.0945198485006107, 1.7947316657951717})
    CHECK(std::abs(normal<double>(rng) - expected) <= 1e-6 * std::abs(expected));
}

TEST_CASE("normal has the moments of a standard normal, canonical those of a uniform") {
  constexpr int n = 200000;
  std::mt19937_64 rng(7);
  double uniform = 0, mean = 0, square = 0, cube = 0, fourth = 0;
  for (int i = 0; i < n; ++i) {
    uniform += canonical<double>(rng);
    const double z = normal<double>(rng);
    mean += z;
    square += z * z;
    cube += z * z * z;
    fourth += z * z * z * z;
  }
  // Five standard errors: sqrt(variance of the k-th power / n).
  const double error = 5 / std::sqrt(double{n});
  CHECK(std::abs(uniform / n - 0.5) < error * std::sqrt(1.0 / 12));
  CHECK(std::abs(mean / n) < error);
  CHECK(std::abs(square / n - 1) < error * std::sqrt(2.0));
  CHECK(std::abs(cube / n) < error * std::sqrt(15.0));
  CHECK(std::abs(fourth / n - 3) < error * std::sqrt(96.0));
}
