// Products with four-bit weights have the same bits with every instruction set.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <tuple>
#include <vector>

#include <pith/core/detail/integer_lanes.hpp>
#include <pith/nn/int4.hpp>

#include "support/catch.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::random_matrix;
using pith_test::same_bits;

namespace {

using EveryLanes = std::tuple<detail::PlainLanes, detail::FewLanes, detail::ManyLanes
#if defined(EIGEN_VECTORIZE_SSE2)
                              ,
                              detail::Pairs128
#endif
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && defined(EIGEN_VECTORIZE_AVX2)
                              ,
                              detail::Pairs256
#if defined(__AVXVNNI__)
                              ,
                              detail::Bytes256
#endif
#endif
#if defined(__aarch64__) && defined(EIGEN_VECTORIZE_NEON)
                              ,
                              detail::PairsNeon
#endif
                              >;

/// A weight in groups of that many inputs, with codes, scales and zeros of all kinds, the same on every machine.
Int4Weight any_codes(Index out, Index in, Index group, bool with_zeros) {
  std::mt19937_64 rng(7);
  const Index count = (in + group - 1) / group;
  Matrix<std::uint8_t> codes(out, in), zeros(with_zeros ? out : 0, with_zeros ? count : 0);
  Matrix<half> scales = random_matrix<half>(out, count, 8, .1);
  for (Index i = 0; i < codes.size(); ++i) codes.data()[i] = std::uint8_t(rng() % 16);
  for (Index i = 0; i < zeros.size(); ++i) zeros.data()[i] = std::uint8_t(rng() % 17);
  scales(0, 0) = half(0.f), scales(1, 0) = half(6e-7f);  // nothing, and less than the normal halves
  return Int4Weight(out, in, {.size = group, .zeros = with_zeros}, [&](Index first, Index n) {
    return Int4Rows<half>{codes.middleRows(first, n), scales.middleRows(first, n),
                          with_zeros ? ConstMatrixRef<std::uint8_t>(zeros.middleRows(first, n)) : ConstMatrixRef<std::uint8_t>()};
  });
}

/// Activations of all sizes.
Matrix<float> any_activations(Index tokens, Index in) {
  Matrix<float> x = random_matrix<float>(tokens, in, 9);
  for (Index t = 0; t < tokens; ++t) x.row(t) *= std::ldexp(1.f, int(t * 37 % 61) - 30);
  x.row(tokens - 1).tail(1) *= 1e30f;
  x.row(0).head(1).setZero();
  return x;
}

template <class L> Matrix<float> product_with(const Int4Weight& w, const Matrix<float>& x) {
  const detail::Int4Product<L, L> product{{w.shape(), w.records(), nullptr}};
  Matrix<float> y(x.rows(), w.out());
  Workspace ws(product.workspace_bytes(x.rows(), 1));
  product.run(x, {}, y, ws);
  return y;
}

std::uint64_t hash_of(const void* data, std::size_t bytes, std::uint64_t hash = 0xcbf29ce484222325u) {
  for (std::size_t i = 0; i < bytes; ++i) hash = (hash ^ static_cast<const std::uint8_t*>(data)[i]) * 0x100000001b3u;
  return hash;
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("int4 lanes: the bits of plain C++", "[nn]", EveryLanes) {
  for (const bool with_zeros : {false, true}) {
    for (const Index group : {8, 32, 128}) {
      const Int4Weight w = any_codes(70, 264, group, with_zeros);
      const Matrix<float> x = any_activations(29, 264), expected = product_with<detail::PlainLanes>(w, x);
      INFO("group " << group << ", zeros " << with_zeros);
      for (const Index tokens : {1, 2, 3, 4, 5, 7, 8, 10, 13, 17, 29}) {
        for (Index first = 0; first + tokens <= 29; first += tokens)
          CHECK(same_bits(product_with<TestType>(w, x.middleRows(first, tokens)), expected.middleRows(first, tokens)));
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("int4 lanes: halves, and one rounding of a product and a sum", "[nn]", EveryLanes) {
  constexpr int width = TestType::width;
  std::uint16_t bits[std::size_t(width)];
  float lanes[std::size_t(width)], a[std::size_t(width)], b[std::size_t(width)], c[std::size_t(width)];
  Index wrong = 0;
  for (int first = 0; first < 65536; first += width) {
    for (int i = 0; i < width; ++i) bits[i] = std::uint16_t(first + i);
    TestType::store(lanes, TestType::widen_half(bits));
    for (int i = 0; i < width; ++i) {
      const float expected = static_cast<float>(detail::bits_as<half>(bits[i]));
      wrong += std::isnan(expected) ? !std::isnan(lanes[i]) : std::memcmp(&lanes[i], &expected, sizeof(float)) != 0;
    }
    TestType::store(lanes, TestType::widen_bfloat16(bits));
    for (int i = 0; i < width; ++i) wrong += detail::bits_as<std::uint32_t>(lanes[i]) != std::uint32_t(bits[i]) << 16;
  }
  CHECK(wrong == 0);
  std::mt19937_64 rng(1);
  for (int round = 0; round < 20000; ++round) {
    for (int i = 0; i < width; ++i) {
      const auto any = [&] { return detail::bits_as<float>(std::uint32_t(rng())); };
      const auto near_one = [&] {
        return detail::bits_as<float>(std::uint32_t(rng() % (4u << 23)) + (126u << 23) + (std::uint32_t(rng() % 2) << 31));
      };
      a[i] = round % 2 ? any() : near_one();
      b[i] = round % 2 ? any() : near_one();
      c[i] = round % 4 == 1 ? any() : round % 4 == 3 ? -a[i] * b[i] : near_one();  // a product against its own rounding, too
      if (round % 8 == 0) c[i] = std::ldexp(c[i], int(rng() % 80) - 40);
    }
    TestType::store(lanes, TestType::fma(TestType::load(a), TestType::load(b), TestType::load(c)));
    for (int i = 0; i < width; ++i) {
      const float expected = std::fma(a[i], b[i], c[i]);
      wrong += std::isnan(expected) ? !std::isnan(lanes[i]) : std::memcmp(&lanes[i], &expected, sizeof(float)) != 0;
    }
  }
  CHECK(wrong == 0);
}

// The same numbers on every machine that this test runs on: the instruction set changes no bit.
TEST_CASE("int4: products and roundings are the same on every machine", "[nn]") {
  std::uint64_t hash = hash_of(nullptr, 0);
  for (const bool with_zeros : {false, true}) {
    const Int4Linear layer(any_codes(70, 264, 32, with_zeros));
    const Matrix<float> y = layer.forward(any_activations(29, 264));
    hash = hash_of(y.data(), std::size_t(y.size()) * sizeof(float), hash);
  }
  CHECK(hash == 0x3df2ef8b579db3abu);
  const Int4Weight rounded(random_matrix<float>(40, 200, 3));
  CHECK(hash_of(rounded.records(), rounded.bytes()) == 0x0b7e3fe08d4fbff9u);
}
