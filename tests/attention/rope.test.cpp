#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numbers>
#include <random>
#include <vector>

#include <pith/attention/rope.hpp>

#include "support/attention_rows.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

using namespace pith;
using pith_test::near;

namespace {

Matrix<double> inverse_frequencies(Index d, double theta) {
  Matrix<double> inv(d / 2, 1);
  for (Index i = 0; i < d / 2; ++i) inv(i, 0) = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(d));
  return inv;
}

template <class S> Matrix<double> frequencies(const Rope<S>& rope) { return rope.inv_freq().template cast<double>(); }

/// Half-split rotation in double with the given frequencies.
template <class S> Matrix<double> rotated(const Matrix<S>& x, const std::vector<Position>& positions, const Matrix<double>& inv) {
  const Index half = inv.rows(), d = 2 * half;
  Matrix<double> y = x.template cast<double>();
  for (Index t = 0; t < y.rows(); ++t) {
    for (Index column = 0; column < y.cols(); column += d) {
      for (Index i = 0; i < half; ++i) {
        const double angle = static_cast<double>(positions[static_cast<std::size_t>(t)]) * inv(i, 0);
        const double a = y(t, column + i), b = y(t, column + i + half);
        y(t, column + i) = a * std::cos(angle) - b * std::sin(angle);
        y(t, column + i + half) = b * std::cos(angle) + a * std::sin(angle);
      }
    }
  }
  return y;
}

/// An angle in S is off by its own rounding and that of the frequency, an entry by as much of its pair.
template <class S> double turn_bound(const Matrix<S>& x, Position furthest) {
  return (8.0 * static_cast<double>(furthest) + 8.0) * static_cast<double>(std::numeric_limits<S>::epsilon()) *
         static_cast<double>(x.cwiseAbs().maxCoeff());
}

/// The same in the numbers that a value of S has.
template <class S> double freq_bound() { return 16 * static_cast<double>(std::numeric_limits<S>::epsilon()); }

}  // namespace

TEMPLATE_TEST_CASE("rope turns feature i with i + head_dim/2", "[rope]", float, double) {
  using S = TestType;
  const Index d = GENERATE(2, 6, 8, 12, 64, 128);
  CAPTURE(d);
  const Rope<S> rope({.head_dim = d, .theta = 10000});
  CHECK(near(frequencies(rope), inverse_frequencies(d, 10000), freq_bound<S>()));
  std::mt19937_64 rng(7);
  const std::vector<Position> positions{0, 1, 17, 511, 2047, 2048, 5000};
  const Matrix<S> before = pith_test::random_matrix<S>(7, 3 * d, rng);
  Matrix<S> x = before;
  rope.rotate(x, positions);
  CHECK(near(x, rotated(before, positions, inverse_frequencies(d, 10000)), turn_bound(before, 5000)));
  CHECK(x.row(0) == before.row(0));

  Matrix<S> unit = Matrix<S>::Zero(1, d);
  unit(0, 0) = 1;
  rope.rotate(unit, std::vector<Position>{1});
  CHECK(std::abs(unit(0, 0) - std::cos(S(1))) <= 4 * std::numeric_limits<S>::epsilon());
  CHECK(std::abs(unit(0, d / 2) - std::sin(S(1))) <= 4 * std::numeric_limits<S>::epsilon());
}

TEMPLATE_TEST_CASE("a token is rotated to the same bits alone, in a batch, in any place and from the table or not", "[rope]", float,
                   double) {
  using S = TestType;
  const Rope<S> rope({.head_dim = 20}), short_table({.head_dim = 20, .max_position_embeddings = 1});
  std::mt19937_64 rng(9);
  const std::vector<Position> positions{3, 4095, 2047, 90000, 0};
  const Matrix<S> before = pith_test::random_matrix<S>(5, 60, rng);
  Matrix<S> together = before, alone = before, head_by_head = before, computed = before;
  rope.rotate(together, positions);
  short_table.rotate(computed, positions);
  CHECK(computed == together);
  for (Index t = 0; t < 5; ++t) {
    const std::vector<Position> one{positions[static_cast<std::size_t>(t)]};
    rope.rotate(alone.middleRows(t, 1), one);
    for (Index c = 0; c < 60; c += 20) rope.rotate(head_by_head.block(t, c, 1, 20), one);
  }
  CHECK(alone == together);
  CHECK(head_by_head == together);
}

TEST_CASE("angles are products of float32 numbers", "[rope]") {
  const Rope<float> rope({.head_dim = 8});
  Matrix<float> x = Matrix<float>::Zero(1, 8);
  x(0, 1) = 1;
  rope.rotate(x, std::vector<Position>{1000003});
  const float angle = 1000003.f * (1.f / std::pow(10000.f, 2.f / 8.f));
  CHECK(x(0, 1) == std::cos(angle));
  CHECK(x(0, 5) == std::sin(angle));
}

TEMPLATE_TEST_CASE("rotate by a difference goes both ways", "[rope]", float, double) {
  using S = TestType;
  const Rope<S> rope({.head_dim = 32, .theta = 5e5, .scaling = {.type = RopeType::linear, .factor = 4}});
  std::mt19937_64 rng(11);
  const Matrix<S> before = pith_test::random_matrix<S>(4, 64, rng);
  const std::vector<Position> a{5, 900, 40, 3000}, delta{10, -300, 0, -2999}, sum{15, 600, 40, 1};
  Matrix<S> x = before, y = before;
  rope.rotate(x, a);
  rope.rotate_by(x, delta);
  rope.rotate(y, sum);
  CHECK(near(x, y, turn_bound(before, 6000)));
}

TEST_CASE("products of rotated queries and keys depend on their distance alone", "[rope]") {
  const Rope<double> rope({.head_dim = 16});
  std::mt19937_64 rng(13);
  const Matrix<double> q = pith_test::random_matrix<double>(1, 16, rng), k = pith_test::random_matrix<double>(1, 16, rng);
  const auto product = [&](Position at, Position key) {
    Matrix<double> a = q, b = k;
    rope.rotate(a, std::vector<Position>{at});
    rope.rotate(b, std::vector<Position>{key});
    return a.row(0).dot(b.row(0));
  };
  for (const Position shift : {1, 100, 3000}) CHECK(std::abs(product(40 + shift, 7 + shift) - product(40, 7)) < turn_bound(q, 4000) * 16);
  CHECK(std::abs(product(41, 7) - product(40, 7)) > 1e-3);
}

TEMPLATE_TEST_CASE("linear scaling divides frequencies", "[rope]", float, double) {
  const Rope<TestType> rope({.head_dim = 16, .scaling = {.type = RopeType::linear, .factor = 4}});
  CHECK(near(frequencies(rope), inverse_frequencies(16, 10000) / 4, freq_bound<TestType>()));
}

TEST_CASE("dynamic scaling is a function of the length", "[rope]") {
  const Index d = 16;
  const RopeOptions options{.head_dim = d, .scaling = {.type = RopeType::dynamic, .factor = 2}, .max_position_embeddings = 32};
  const Rope<double> rope(options), plain({.head_dim = d});
  std::mt19937_64 rng(15);
  const Matrix<double> before = pith_test::random_matrix<double>(2, d, rng);
  const std::vector<Position> positions{5, 31};
  const auto turned = [&](const std::vector<Position>& p, Position length) {
    Matrix<double> x = before;
    rope.rotate(x, p, length);
    return x;
  };
  Matrix<double> unscaled = before;
  plain.rotate(unscaled, positions);
  CHECK(turned(positions, 32) == unscaled);
  CHECK(turned(positions, 0) == unscaled);  // the largest position + 1 = 32
  const double theta = 10000 * std::pow(2.0 * 48 / 32 - 1, 16.0 / 14.0);
  CHECK(near(turned(positions, 48), rotated(before, positions, inverse_frequencies(d, theta)), turn_bound(before, 32)));
  CHECK(turned(positions, 32) == unscaled);  // a long call leaves nothing behind
  CHECK(turned({5, 47}, 0) == turned({5, 47}, 48));
  CHECK(turned({47, 5}, 0) == turned({47, 5}, 48));
  Matrix<double> x = before;
  CHECK_THROWS_AS(rope.rotate_by(x, positions), UnsupportedError);
  CHECK(x == before);
}

TEMPLATE_TEST_CASE("llama3 scaling keeps short wavelengths, stretches long ones and blends between", "[rope]", float, double) {
  const Index d = 64;
  const double factor = 8, low = 1, high = 4, length = 512;
  const Rope<TestType> rope({.head_dim = d,
                             .theta = 5e5,
                             .scaling = {.type = RopeType::llama3,
                                         .factor = factor,
                                         .low_freq_factor = low,
                                         .high_freq_factor = high,
                                         .original_max_position_embeddings = Index(length)}});
  Matrix<double> expected = inverse_frequencies(d, 5e5);
  int kept = 0, blended = 0, stretched = 0;
  for (Index i = 0; i < d / 2; ++i) {
    const double inv = expected(i, 0), wavelength = 2 * std::numbers::pi / inv;
    if (wavelength < length / high) {
      ++kept;
    } else if (wavelength > length / low) {
      ++stretched;
      expected(i, 0) = inv / factor;
    } else {
      ++blended;
      const double s = (length / wavelength - low) / (high - low);
      expected(i, 0) = (1 - s) * inv / factor + s * inv;
    }
  }
  CHECK((kept > 0 && blended > 0 && stretched > 0));
  CHECK(near(frequencies(rope), expected, freq_bound<TestType>() * expected.maxCoeff()));
  for (Index i = 0; i < d / 2; ++i) CHECK(std::abs(frequencies(rope)(i, 0) / expected(i, 0) - 1) < 64 * freq_bound<TestType>());
}

TEMPLATE_TEST_CASE("yarn blends between two numbers of turns, and scales", "[rope]", float, double) {
  using S = TestType;
  // theta 16 over 8 features: 1, 1/2, 1/4, 1/8. A pair that turns 4096/(2 pi 16^(i/4)) times in 4096 positions is pair i.
  const auto turns = [](double pair) { return 4096 / (2 * std::numbers::pi * std::pow(16., pair / 4)); };
  RopeOptions options{
      .head_dim = 8,
      .theta = 16,
      .scaling = {
          .type = RopeType::yarn, .factor = 4, .original_max_position_embeddings = 4096, .beta_fast = turns(1.3), .beta_slow = turns(2.6)}};
  const auto inv = [&](std::vector<double> expected, double factor) {
    const Rope<S> rope(options);
    for (Index i = 0; i < 4; ++i) CHECK(std::abs(double(rope.inv_freq()[i]) - expected[static_cast<std::size_t>(i)]) < 4 * freq_bound<S>());
    CHECK(std::abs(double(rope.attention_factor()) - factor) < freq_bound<S>());
  };
  inv({1, 0.5, 0.5 * 0.25 + 0.5 * 0.0625, 0.125 / 4}, 1.1386294361119891);  // from pair 1 to pair 3; A = 0.1 ln 4 + 1
  options.scaling.truncate = false;
  const double ramp = 0.7 / 1.3;  // of pair 2, from 1.3 to 2.6
  inv({1, 0.5, (1 - ramp) * 0.25 + ramp * 0.0625, 0.125 / 4}, 1.1386294361119891);
  options.scaling.mscale = 2, options.scaling.mscale_all_dim = 1;
  inv({1, 0.5, (1 - ramp) * 0.25 + ramp * 0.0625, 0.125 / 4}, 1.2772588722239782 / 1.1386294361119891);
  options.scaling.attention_factor = 0.75;
  options.scaling.truncate = true;
  options.scaling.beta_fast = options.scaling.beta_slow = turns(-0.5);  // both ends at pair 0
  inv({1, 0.125, 0.0625, 0.03125}, 0.75);
}

TEMPLATE_TEST_CASE("longrope has a table for short texts and one for long ones, and one factor", "[rope]", float, double) {
  using S = TestType;
  const RopeOptions options{
      .head_dim = 4,
      .theta = 100,
      .scaling = {.type = RopeType::longrope, .original_max_position_embeddings = 16, .short_factor = {1, 2}, .long_factor = {4, 8}},
      .max_position_embeddings = 64};
  const Rope<S> rope(options), brief(options.at_length(16)), lengthy(options.at_length(17));
  const double factor = std::sqrt(1.5);  // ln 4 / ln 16 = 1/2
  const Matrix<double> below{{1, 0.05}}, above{{0.25, 0.0125}};
  CHECK(near(rope.inv_freq(16), below.transpose(), freq_bound<S>()));
  CHECK(near(rope.inv_freq(17), above.transpose(), freq_bound<S>()));
  for (const Rope<S>* one : {&rope, &brief, &lengthy}) CHECK(std::abs(double(one->attention_factor()) - factor) < freq_bound<S>());
  std::mt19937_64 rng(4);
  const Matrix<S> before = pith_test::random_matrix<S>(3, 8, rng);
  const std::vector<Position> positions{0, 3, 15};
  const auto turned = [&](const Rope<S>& by, Position length) {
    Matrix<S> x = before;
    by.rotate(x, positions, length);
    return x;
  };
  CHECK(near(turned(rope, 16), factor * rotated(before, positions, below.transpose()), 2 * turn_bound(before, 16)));
  CHECK(near(turned(rope, 17), factor * rotated(before, positions, above.transpose()), 2 * turn_bound(before, 16)));
  CHECK(turned(rope, 0) == turned(rope, 16));  // the largest position + 1
  CHECK((turned(brief, 17) == turned(rope, 16) && turned(lengthy, 1) == turned(rope, 17)));
  Matrix<S> x = before;
  CHECK_THROWS_WITH(rope.rotate_by(x, positions), pith_test::contains("under longrope"));
  CHECK_NOTHROW(lengthy.rotate_by(x, positions));
}

TEMPLATE_TEST_CASE("an attention factor multiplies what turns, at position 0 too, and once", "[rope]", float, double) {
  using S = TestType;
  for (const bool interleaved : {false, true}) {
    CAPTURE(interleaved);
    const Rope<S> rope({.head_dim = 10,
                        .scaling = {.type = RopeType::yarn, .factor = 2, .original_max_position_embeddings = 64, .attention_factor = 1.5},
                        .max_position_embeddings = 8,  // the table ends before the text
                        .rotary_dim = 6,
                        .interleaved = interleaved});
    const Matrix<double> inv = frequencies(rope);
    REQUIRE(inv.rows() == 3);
    std::mt19937_64 rng(5);
    const Matrix<S> before = pith_test::random_matrix<S>(5, 20, rng);
    const std::vector<Position> positions{0, 3, 3, 11, 0};
    Matrix<double> expected = before.template cast<double>();
    for (Index t = 0; t < 5; ++t)
      for (Index h = 0; h < 20; h += 10)
        for (Index i = 0; i < 3; ++i) {
          const Index one = h + (interleaved ? 2 * i : i), two = h + (interleaved ? 2 * i + 1 : i + 3);
          const double angle = positions[static_cast<std::size_t>(t)] * inv(i, 0), a = expected(t, one), b = expected(t, two);
          expected(t, one) = 1.5 * (a * std::cos(angle) - b * std::sin(angle));
          expected(t, two) = 1.5 * (b * std::cos(angle) + a * std::sin(angle));
        }
    Matrix<S> x = before;
    rope.rotate(x, positions);
    CHECK(near(x, expected, 2 * turn_bound(before, 12)));
    for (Index t = 0; t < 5; ++t)  // what does not turn keeps its bits
      CHECK((x.row(t).segment(6, 4) == before.row(t).segment(6, 4) && x.row(t).tail(4) == before.row(t).tail(4)));
    Matrix<S> back = x, forth = before;
    rope.rotate_by(back, std::vector<Position>{5, -3, 0, -11, 0});
    rope.rotate(forth, std::vector<Position>{5, 0, 3, 0, 0});
    CHECK(near(back, forth, 4 * turn_bound(before, 12)));
    Matrix<S> alone = before;
    for (Index t = 0; t < 5; ++t) rope.rotate(alone.middleRows(t, 1), std::vector<Position>{positions[static_cast<std::size_t>(t)]});
    CHECK(alone == x);
  }
}

TEST_CASE("a layer without rope has one that does not rotate", "[rope]") {
  const Rope<float> rope({.head_dim = 7, .scaling = {.type = RopeType::identity}});
  std::mt19937_64 rng(6);
  const Matrix<float> before = pith_test::random_matrix<float>(2, 14, rng);
  Matrix<float> x = before;
  rope.rotate(x, std::vector<Position>{5, 90000});
  rope.rotate_by(x, std::vector<Position>{-5, 7});
  CHECK(x == before);
  CHECK((rope.attention_factor() == 1 && rope.inv_freq().size() == 0));
  CHECK_THROWS_AS(rope.rotate(x, std::vector<Position>{5}), ShapeError);
}

TEST_CASE("rope refuses constants that make no sense", "[rope]") {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  const auto refused = [](const RopeOptions& options, const std::string& message) {
    CHECK_THROWS_AS(Rope<float>(options), ShapeError);
    CHECK_THROWS_WITH(Rope<float>(options), pith_test::contains(message));
  };
  for (const Index d : {0, -2, 1026}) refused({.head_dim = d}, "expected 1 to 1024");
  refused({.head_dim = 7}, "head_dim is 7, expected an even number");
  for (const double theta : {0.0, -1.0, nan, inf}) refused({.head_dim = 8, .theta = theta}, "theta is");
  refused({.head_dim = 8, .theta = 1e-300}, "finite frequencies");
  refused({.head_dim = 8, .max_position_embeddings = 0}, "max_position_embeddings is 0");
  for (const RopeType type : {RopeType::linear, RopeType::dynamic, RopeType::llama3})
    for (const double factor : {0.0, -4.0, nan, inf}) refused({.head_dim = 8, .scaling = {.type = type, .factor = factor}}, "factor");
  refused({.head_dim = 2, .scaling = {.type = RopeType::dynamic, .factor = 2}}, "4 or more rotating features");
  refused({.head_dim = 8, .scaling = {.type = RopeType::dynamic, .factor = .5}}, "at least 1");
  refused({.head_dim = 8, .scaling = {.type = RopeType::llama3, .factor = 8}}, "original_max_position_embeddings is 0");
  refused({.head_dim = 8, .rotary_dim = 10}, "rotary_dim is 10, expected an even number from 2 to head_dim, 8");
  for (const Index width : {3, -2, 7}) refused({.head_dim = 7, .rotary_dim = width}, detail::text("rotary_dim is ", width));
  const RopeScaling yarn{.type = RopeType::yarn, .factor = 4, .original_max_position_embeddings = 64};
  const auto with = [&](const std::function<void(RopeScaling&)>& change, RopeScaling scaling) {
    change(scaling);
    return RopeOptions{.head_dim = 8, .scaling = scaling};
  };
  refused(with([](auto& s) { s.original_max_position_embeddings = 0; }, yarn), "original_max_position_embeddings is 0");
  refused(with([=](auto& s) { s.factor = nan; }, yarn), "the scaling factor is");
  refused(with([](auto& s) { s.beta_slow = 0; }, yarn), "beta_slow is 0");
  refused(with([](auto& s) { s.beta_fast = 0.5; }, yarn), "beta_fast is 0.5");
  refused(with([=](auto& s) { s.attention_factor = inf; }, yarn), "attention_factor is");
  refused(with([](auto& s) { s.mscale = -1; }, yarn), "mscale is");
  refused({.head_dim = 8, .theta = 1, .scaling = yarn}, "theta is 1");
  const RopeScaling longrope{
      .type = RopeType::longrope, .original_max_position_embeddings = 64, .short_factor = {1, 1, 1, 1}, .long_factor = {1, 2, 3, 4}};
  CHECK_NOTHROW(Rope<float>(with([](auto&) {}, longrope)));
  refused(with([](auto& s) { s.short_factor.pop_back(); }, longrope), "short_factor has 3 numbers, expected one for each pair");
  refused(with([](auto& s) { s.long_factor.push_back(5); }, longrope), "long_factor has 5 numbers");
  refused(with([](auto& s) { s.long_factor[2] = 0; }, longrope), "long_factor is 0");
  refused(with([](auto& s) { s.original_max_position_embeddings = 1; }, longrope), "which gives no attention_factor");
  refused({.head_dim = 8,
           .scaling = {.type = RopeType::llama3, .low_freq_factor = 4, .high_freq_factor = 4, .original_max_position_embeddings = 8192}},
          "expected less than high_freq_factor, which is 4");
}

TEST_CASE("rope refuses operands that do not fit and leaves them alone", "[rope]") {
  const Rope<float> rope({.head_dim = 8});
  Matrix<float> x = Matrix<float>::Ones(2, 16), odd = Matrix<float>::Ones(2, 12);
  CHECK_THROWS_WITH(rope.rotate(x, std::vector<Position>{1}), pith_test::contains("x is [2, 16], expected [1, *]"));
  CHECK_THROWS_AS(rope.rotate(x, std::vector<Position>{1, -1}), ShapeError);
  CHECK_THROWS_AS(rope.rotate(x, std::vector<Position>{1, 2}, -1), ShapeError);
  CHECK_THROWS_WITH(rope.rotate(odd, std::vector<Position>{1, 2}), pith_test::contains("12 features, expected whole heads of 8"));
  CHECK_THROWS_AS(rope.rotate_by(odd, std::vector<Position>{1, 2}), ShapeError);
  CHECK((x.array() == 1.f).all());
  Matrix<float> none(0, 16);
  CHECK_NOTHROW(rope.rotate(none, {}));

  Matrix<float> far = x;
  const Position last = std::numeric_limits<Position>::max();
  const Rope<float> dynamic({.head_dim = 8, .scaling = {.type = RopeType::dynamic, .factor = 2}});
  dynamic.rotate(far, std::vector<Position>{last, last});
  CHECK(far.allFinite());
}
