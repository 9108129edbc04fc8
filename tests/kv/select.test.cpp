#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include <pith/core/random.hpp>
#include <pith/kv/detail/select.hpp>

#include "support/catch.hpp"

using namespace pith;

namespace {

/// The rule in plain words: sort everything, the first `count` leave.
template <class S>
std::vector<std::int32_t> naive_victims(const std::vector<S>& score, const std::vector<Position>& positions, Index count) {
  const auto level = [](S s) { return s == -std::numeric_limits<S>::infinity() ? 0 : s != s ? 1 : 2; };
  std::vector<std::int32_t> rows(score.size());
  std::iota(rows.begin(), rows.end(), 0);
  std::sort(rows.begin(), rows.end(), [&](std::int32_t a, std::int32_t b) {
    const S x = score[static_cast<std::size_t>(a)], y = score[static_cast<std::size_t>(b)];
    if (level(x) != level(y)) return level(x) < level(y);
    if (level(x) == 2 && x != y) return x < y;
    return positions[static_cast<std::size_t>(a)] < positions[static_cast<std::size_t>(b)];
  });
  rows.resize(static_cast<std::size_t>(count));
  std::sort(rows.begin(), rows.end());
  return rows;
}

}  // namespace

TEMPLATE_TEST_CASE("victims are the lowest scores, older first among equals, NaN below every number", "[kv]", float, double) {
  using S = TestType;
  constexpr S inf = std::numeric_limits<S>::infinity(), nan = std::numeric_limits<S>::quiet_NaN();
  const std::vector<S> odd = {inf,
                              -inf,
                              nan,
                              -nan,
                              S(0),
                              S(-0.0),
                              std::numeric_limits<S>::lowest(),
                              std::numeric_limits<S>::max(),
                              std::numeric_limits<S>::denorm_min(),
                              -std::numeric_limits<S>::denorm_min(),
                              S(1),
                              S(1),
                              S(1)};
  std::mt19937_64 rng(3);
  for (int round = 0; round < 400; ++round) {
    const std::size_t n = 1 + rng() % 40;
    std::vector<S> score(n);
    std::vector<Position> positions(n);
    std::iota(positions.begin(), positions.end(), 5);
    std::shuffle(positions.begin(), positions.end(), rng);
    for (S& s : score) s = rng() % 3 != 0 ? odd[rng() % odd.size()] : normal<S>(rng);
    std::vector<RankedRow<S>> candidates(n);
    for (Index count = 0; count <= static_cast<Index>(n); count += count < 2 ? 1 : 1 + static_cast<Index>(rng() % 5)) {
      std::vector<std::int32_t> victims(n);
      detail::choose_victims<S>(score, positions, count, candidates.data(), victims.data());
      victims.resize(static_cast<std::size_t>(count));
      INFO("round " << round << ", " << n << " rows, " << count << " leave");
      REQUIRE(victims == naive_victims(score, positions, count));
    }
  }
}

TEST_CASE("infinities overrule the budget", "[kv]") {
  constexpr float inf = std::numeric_limits<float>::infinity();
  CHECK(detail::count_to_evict<float>(std::vector<float>{1, 2, 3, 4}, 3) == 1);
  CHECK(detail::count_to_evict<float>(std::vector<float>{-inf, -inf, 3, 4}, 3) == 2);
  CHECK(detail::count_to_evict<float>(std::vector<float>{inf, inf, inf, 4}, 2) == 1);
  CHECK(detail::count_to_evict<float>(std::vector<float>{inf, inf, inf, inf}, 2) == 0);
  CHECK(detail::count_to_evict<float>(std::vector<float>{-inf, -inf}, 2) == 2);
}
