#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include <pith/decode/sampling.hpp>

#include "support/catch.hpp"

namespace {

using pith::Index;
using pith::Sampler;
using pith::SamplerOptions;
using pith::StateError;
using pith::Token;
using pith::Vector;
using pith_test::contains;

constexpr float infinite = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

/// The filters as Hugging Face describes them, one after the other, on a full sort and renormalised after each.
template <class S> std::vector<double> naive_distribution(const Vector<S>& logits, const SamplerOptions& o) {
  std::vector<Token> order(std::size_t(logits.size()));
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = Token(i);
  std::stable_sort(order.begin(), order.end(), [&](Token a, Token b) { return logits[a] > logits[b]; });
  if (o.top_k > 0) order.resize(std::min(order.size(), std::size_t(o.top_k)));
  const auto softmax = [&] {
    std::vector<double> p;
    double sum = 0;
    for (const Token t : order) sum += p.emplace_back(std::exp((double(logits[t]) - double(logits[order[0]])) / double(o.temperature)));
    for (double& x : p) x /= sum;
    return p;
  };
  if (o.top_p < 1) {
    const auto p = softmax();
    double heavier = 0;
    std::size_t kept = 0;
    while (kept < p.size() && heavier < double(o.top_p)) heavier += p[kept++];
    order.resize(kept);
  }
  const auto p = softmax();
  std::size_t kept = 0;
  while (kept < p.size() && p[kept] >= double(o.min_p) * p[0]) ++kept;
  order.resize(kept);
  const auto last = softmax();
  std::vector<double> out(std::size_t(logits.size()), 0.0);
  for (std::size_t i = 0; i < order.size(); ++i) out[std::size_t(order[i])] = last[i];
  return out;
}

/// Few distinct values, so many ties, and some -inf; never only -inf.
template <class S> Vector<S> random_logits(Index size, std::mt19937_64& rng) {
  Vector<S> logits(size);
  for (S& l : logits) {
    const double u = pith::canonical<double>(rng);
    l = u < .1 ? -std::numeric_limits<S>::infinity() : u < .5 ? S(std::floor(16 * u)) : S(pith::normal<double>(rng) * 3);
  }
  logits[size / 2] = 1;
  return logits;
}

/// Pearson's statistic of `draws` samples against p, in standard deviations above its mean.
double chi_square(Sampler<float>& sampler, const Vector<float>& logits, const std::vector<double>& p, Index draws, unsigned seed) {
  std::mt19937_64 rng(seed);
  std::vector<double> seen(p.size(), 0.0);
  for (Index i = 0; i < draws; ++i) ++seen[std::size_t(sampler.sample(logits, rng))];
  double statistic = 0, freedom = -1;
  for (std::size_t i = 0; i < p.size(); ++i) {
    if (p[i] == 0) {
      CHECK(seen[i] == 0);
      continue;
    }
    const double expected = p[i] * double(draws);
    statistic += (seen[i] - expected) * (seen[i] - expected) / expected;
    ++freedom;
  }
  return (statistic - freedom) / std::sqrt(2 * std::max(freedom, 1.0));
}

/// A generator whose every draw is the same.
struct Always {
  using result_type = std::uint64_t;
  std::uint64_t bits;
  static constexpr std::uint64_t min() { return 0; }
  static constexpr std::uint64_t max() { return ~std::uint64_t(0); }
  std::uint64_t operator()() const { return bits; }
};

template <class S> void check_against_naive() {
  std::mt19937_64 rng(7);
  int compared = 0;
  for (const Index size : {1, 2, 17, 97, 700})
    for (const float temperature : {.6f, 1.f, 3.f})
      for (const Index top_k : {0, 1, 3, 40, 1000})
        for (const float top_p : {1.f, .93f, .37f, .0001f})
          for (const float min_p : {0.f, .013f, 1.f}) {
            const SamplerOptions options{.temperature = temperature, .top_k = top_k, .top_p = top_p, .min_p = min_p};
            const auto logits = random_logits<S>(size, rng);
            Sampler<S> sampler(options, size);
            Vector<S> found(size);
            sampler.distribution(logits, found);
            const auto expected = naive_distribution(logits, options);
            // Two roundings of each value and one of the sum; exp adds the rounding of its argument, at most 30 / temperature.
            const double eps = double(std::numeric_limits<S>::epsilon());
            const double bound = 2 * eps + (4 + 60 / double(temperature)) * std::numeric_limits<double>::epsilon();
            Index wrong = 0, first = -1;
            for (Index i = 0; i < size; ++i)
              if (const double want = expected[std::size_t(i)];
                  (found[i] > 0) != (want > 0) || std::abs(double(found[i]) - want) > bound * want)
                if (wrong++ == 0) first = i;
            const double off = std::abs(double(found.template cast<double>().sum()) - 1);
            CAPTURE(size, temperature, top_k, top_p, min_p, first, bound);
            CHECK(wrong == 0);
            CHECK(off <= eps + double(size) * std::numeric_limits<double>::epsilon());
            ++compared;
          }
  CHECK(compared == 900);
}

std::vector<Token> kept(const SamplerOptions& options, const Vector<float>& logits) {
  Sampler sampler(options, logits.size());
  Vector<float> p(logits.size());
  sampler.distribution(logits, p);
  std::vector<Token> tokens;
  for (Index i = 0; i < p.size(); ++i)
    if (p[i] > 0) tokens.push_back(Token(i));
  return tokens;
}

}  // namespace

TEST_CASE("The distribution is that of the filters applied one by one", "[decode]") {
  SECTION("float") { check_against_naive<float>(); }
  SECTION("double") { check_against_naive<double>(); }
}

TEST_CASE("A large flat vocabulary: the nucleus needs most of it, the first chunks of the sort do not reach", "[decode]") {
  std::mt19937_64 rng(3);
  Vector<float> logits(20000);
  for (float& l : logits) l = float(pith::canonical<double>(rng));
  const SamplerOptions options{.top_p = .8f};
  Sampler sampler(options, logits.size());
  Vector<float> found(logits.size());
  sampler.distribution(logits, found);
  const auto expected = naive_distribution(logits, options);
  Index differ = 0;
  for (Index i = 0; i < logits.size(); ++i) differ += (found[i] > 0) != (expected[std::size_t(i)] > 0);
  CHECK(differ == 0);
  CHECK((found.array() > 0).count() > 12000);
}

TEST_CASE("At a boundary and among equals the lowest token stays", "[decode]") {
  Vector<float> ties(6);
  ties << 1, 2, 2, 0, 2, -infinite;
  CHECK(kept({.top_k = 2}, ties) == std::vector<Token>{1, 2});
  CHECK(kept({.top_k = 4}, ties) == std::vector<Token>{0, 1, 2, 4});
  CHECK(kept({.top_k = 6}, ties) == std::vector<Token>{0, 1, 2, 3, 4});

  const Vector<float> flat = Vector<float>::Constant(4, -3.f);
  CHECK(kept({.top_p = .5f}, flat) == std::vector<Token>{0, 1});  // two weigh exactly half: no third
  CHECK(kept({.top_p = .5001f}, flat) == std::vector<Token>{0, 1, 2});
  CHECK(kept({.top_p = 1e-30f}, flat) == std::vector<Token>{0});      // never none
  CHECK(kept({.min_p = 1}, flat) == std::vector<Token>{0, 1, 2, 3});  // as likely as the likeliest
  CHECK(kept({.min_p = 1}, ties) == std::vector<Token>{1, 2, 4});
  CHECK(kept({.top_k = 2, .top_p = .9f}, ties) == std::vector<Token>{1, 2});
  CHECK(kept({.top_k = 2, .top_p = .5f}, ties) == std::vector<Token>{1});  // a share of what top_k left, not of everything
  CHECK(kept({.temperature = 1e-30f}, ties) == std::vector<Token>{1, 2, 4});
}

TEST_CASE("Greedy takes the largest logit, of equals the lowest token, and leaves the generator alone", "[decode]") {
  Vector<float> logits(5);
  logits << -infinite, 2, 3, 3, -1;
  Sampler sampler(SamplerOptions{.temperature = 0, .top_k = 1, .top_p = .1f}, 5);
  std::mt19937_64 rng(1), untouched(1);
  CHECK(sampler.greedy());
  CHECK(sampler.sample(logits, rng) == 2);
  CHECK(rng == untouched);
  Vector<float> p(5);
  sampler.distribution(logits, p);
  CHECK((p == Vector<float>::Unit(5, 2)));
  const Vector<float> zeros{{0.f, -0.f, 0.f}};
  Sampler three(SamplerOptions{.temperature = 0}, 3);
  CHECK(three.sample(zeros, rng) == 0);
}

TEST_CASE("Samples follow the distribution", "[decode]") {
  std::mt19937_64 rng(5);
  const auto logits = random_logits<float>(24, rng);
  for (const SamplerOptions& options : {SamplerOptions{}, SamplerOptions{.temperature = .7f}, SamplerOptions{.top_k = 5},
                                        SamplerOptions{.top_p = .9f}, SamplerOptions{.temperature = 2, .top_k = 12, .min_p = .05f}}) {
    Sampler sampler(options, logits.size());
    const auto p = naive_distribution(logits, options);
    CHECK(chi_square(sampler, logits, p, 20000, 11) < 5);
  }
  SECTION("and the statistic tells a temperature of 1 from 1.2") {
    Sampler sampler(SamplerOptions{.temperature = 1.2f}, logits.size());
    CHECK(chi_square(sampler, logits, naive_distribution(logits, {}), 20000, 11) > 5);
  }
}

TEST_CASE("sample is draw of distribution, in place too, and the same everywhere", "[decode]") {
  std::mt19937_64 made(9);
  const auto logits = random_logits<float>(50, made);
  Sampler sampler(SamplerOptions{.temperature = .9f, .top_k = 20, .top_p = .95f, .min_p = .01f}, 50);
  Vector<float> p(50), in_place = logits;
  sampler.distribution(logits, p);
  sampler.distribution(in_place, in_place);
  CHECK((p == in_place));
  std::mt19937_64 one(2), other(2);
  for (int i = 0; i < 200; ++i) REQUIRE(sampler.sample(logits, one) == Sampler<float>::draw(p, other));
  CHECK(one == other);

  const Vector<float> eighths{{1, 2, 1, 4}};  // exact in binary: no exp, so these tokens are those of every platform
  std::mt19937_64 rng(42);
  std::vector<Token> drawn;
  for (int i = 0; i < 12; ++i) drawn.push_back(Sampler<float>::draw(eighths, rng));
  CHECK(drawn == std::vector<Token>{3, 3, 3, 1, 3, 0, 3, 1, 1, 2, 0, 3});
}

TEST_CASE("draw reaches both ends and never a weight of 0", "[decode]") {
  const Vector<float> weights{{0.f, 1e-30f, 0.f, 3.f, 1e-3f, 0.f}};
  Always lowest{0}, highest{~std::uint64_t(0)};
  CHECK(Sampler<float>::draw(weights, lowest) == 1);
  CHECK(Sampler<float>::draw(weights, highest) == 4);
  const Vector<double> tenths = Vector<double>::Constant(10, .1);  // sums to less than 1
  CHECK(Sampler<double>::draw(tenths, lowest) == 0);
  CHECK(Sampler<double>::draw(tenths, highest) == 9);
}

TEST_CASE("A sampler refuses options that mean nothing", "[decode]") {
  const auto refuses = [](const SamplerOptions& options, const char* part) {
    CHECK_THROWS_AS(Sampler<float>(options, 8), StateError);
    CHECK_THROWS_WITH(Sampler<float>(options, 8), contains(part));
  };
  refuses({.temperature = -1}, "temperature is -1");
  refuses({.temperature = not_a_number}, "temperature is");
  refuses({.temperature = infinite}, "temperature is inf");
  refuses({.top_k = -1}, "top_k is -1, expected 0 (off) or more");
  refuses({.top_p = 0}, "top_p is 0");
  refuses({.top_p = 1.5f}, "expected a number in (0, 1]; 1 is off");
  refuses({.top_p = not_a_number}, "top_p is");
  refuses({.min_p = -.1f}, "min_p is -0.1");
  refuses({.min_p = 2}, "expected a number in [0, 1]; 0 is off");
  refuses({.min_p = not_a_number}, "min_p is");
  CHECK_THROWS_AS(Sampler<float>({}, 0), StateError);
  CHECK_THROWS_AS(Sampler<float>({}, Index(1) << 40), StateError);
}

TEST_CASE("A sampler refuses logits without a distribution", "[decode]") {
  for (const float temperature : {0.f, 1.f}) {
    Sampler sampler(SamplerOptions{.temperature = temperature}, 20);
    std::mt19937_64 rng(1), untouched(1);
    Vector<float> logits = Vector<float>::Zero(20), out = Vector<float>::Constant(20, 7.f);
    logits[17] = not_a_number;
    CHECK_THROWS_AS(sampler.sample(logits, rng), StateError);
    CHECK_THROWS_WITH(sampler.sample(logits, rng), contains("logit 17 is NaN"));
    logits[17] = infinite;
    CHECK_THROWS_WITH(sampler.distribution(logits, out), contains("logit 17 is +inf"));
    logits.setConstant(-infinite);
    CHECK_THROWS_AS(sampler.sample(logits, rng), StateError);
    CHECK_THROWS_WITH(sampler.distribution(logits, out), contains("all 20 logits are -inf"));
    CHECK_THROWS_AS(sampler.sample(logits.head(19), rng), pith::ShapeError);
    CHECK_THROWS_WITH(sampler.sample(logits.head(19), rng), contains("logits is [19, 1], expected [20, 1]"));
    logits.setZero();
    CHECK_THROWS_AS(sampler.distribution(logits, out.head(19)), pith::ShapeError);
    CHECK((out == Vector<float>::Constant(20, 7.f)));
    CHECK(rng == untouched);
  }
  std::mt19937_64 rng(1);
  const Vector<float> none = Vector<float>::Zero(3), negative{{1.f, -1.f}}, wrong{{1.f, not_a_number}}, endless{{1.f, infinite}};
  CHECK_THROWS_WITH(Sampler<float>::draw(none, rng), contains("3 weights sum to 0"));
  CHECK_THROWS_WITH(Sampler<float>::draw(negative, rng), contains("weight 1 is -1"));
  CHECK_THROWS_AS(Sampler<float>::draw(wrong, rng), StateError);
  CHECK_THROWS_AS(Sampler<float>::draw(endless, rng), StateError);
  CHECK_THROWS_AS(Sampler<float>::draw(none.head(0), rng), StateError);
}
