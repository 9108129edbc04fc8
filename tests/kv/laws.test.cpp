// The law suite itself: what it must find in policies and caches that break a law.
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <string>

#include <pith/kv.hpp>
#include <pith/kv/policy_laws.hpp>
#include <pith/merge/gates.hpp>
#include <pith/merge/weighted.hpp>

#include "support/catch.hpp"
#include "support/kv_stream.hpp"

using namespace pith;
using pith_test::contains;
using pith_test::KvStream;
using pith_test::same_state;

namespace {

/// Keeps the rows whose attention is furthest from what its head has seen on average, which it remembers, decoding as well.
struct Unusual {
  Index rows = 9;
  Index budget() const { return rows; }
  Index stats(const AttentionShape&) const { return 1; }
  Index memory(const AttentionShape&) const { return 2; }
  template <class S> void observe(const AttentionBlock<S>& seen, const KvRows<S>&, MatrixRef<S> stats, VectorRef<S> memory) const {
    stats.row(0) += seen.weights.colwise().sum();
    memory[0] += seen.weights.squaredNorm();
    memory[1] += S(seen.weights.rows());
  }
  template <class S> void score(const KvRows<S>& rows_, VectorRef<S> out) const {
    for (Index r = 0; r < rows_.size(); ++r) out[r] = std::abs(rows_.stats(0, r) - rows_.memory[0] / std::max(S(1), rows_.memory[1]));
  }
};

}  // namespace

TEST_CASE("a policy that remembers keeps the laws while decoding", "[kv]") {
  policy_laws<double>(Unusual{});
  policy_laws<bfloat16>(Unusual{.rows = 5}, {.shape = {6, 3, 4}});
  policy_laws(AtCachePositions(Unusual{.rows = 12}));
}

namespace {

/// Scores rows by how often the cache called observe(), which depends on how a prompt was cut.
struct ByCalls {
  Index budget() const { return 6; }
  PolicyTraits traits() const { return {.prompt_only = true}; }
  Index stats(const AttentionShape&) const { return 1; }
  template <class S> void observe(const AttentionBlock<S>&, const KvRows<S>&, MatrixRef<S> stats) const { stats.array() += S(1); }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    for (Index r = 0; r < rows.size(); ++r)
      out[r] = S((13 * static_cast<Index>(rows.stats(0, r)) + rows.positions[static_cast<std::size_t>(r)]) % 7);
  }
};
/// Scores by how often it was asked before.
struct ByMood {
  std::shared_ptr<int> asked = std::make_shared<int>(0);
  Index budget() const { return 7; }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    for (Index r = 0; r < rows.size(); ++r) out[r] = S((++*asked * 31) % 17);
  }
};
/// Protects more rows than its budget.
struct Hoarder {
  bool says_so = false;
  Index budget() const { return 4; }
  PolicyTraits traits() const { return {.overfills = says_so}; }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    for (Index r = 0; r < rows.size(); ++r)
      out[r] = rows.positions[static_cast<std::size_t>(r)] < 6 ? std::numeric_limits<S>::infinity() : S(0);
  }
};

}  // namespace

TEST_CASE("the law suite finds policies that break a law", "[kv]") {
  const auto broken = [](const char* law) { return contains(std::string("pith::policy_laws: broken: ") + law); };
  CHECK_THROWS_WITH(policy_laws(Hoarder{}), broken("a head keeps at most its budget"));
  CHECK_THROWS_WITH(policy_laws(Hoarder{}, {.beyond = 3}), broken("a policy that may exceed its budget has traits().overfills"));
  CHECK_THROWS_WITH(policy_laws(Hoarder{.says_so = true}, {.beyond = 2}), broken("a head keeps at most its budget"));
  CHECK_NOTHROW(policy_laws(Hoarder{.says_so = true}, {.beyond = 3}));  // six rows and the newest
  CHECK_THROWS_WITH(policy_laws(ByMood{}), broken("a restored cache goes on like the first"));
  CHECK_THROWS_WITH(prompt_laws(ByCalls{}), broken("a prompt in pieces keeps the rows"));
}

TEST_CASE("crop() gives back what a policy remembers of a head", "[kv]") {
  const AttentionShape shape{2, 2, 4};
  KvCache cache(shape, Unusual{}, {.max_draft = 3});
  KvStream<float> stream(shape, 3);
  for (int i = 0; i < 12; ++i) stream.step(cache, 1);
  const Matrix<float> memory = cache.snapshot().memory;
  REQUIRE(memory(0, 1) == 12);
  cache.checkpoint();
  for (int i = 0; i < 3; ++i) stream.step(cache, 1);
  cache.crop(12);
  CHECK(cache.snapshot().memory == memory);
}

TEST_CASE("snapshots are equal when every number is, and only then", "[kv]") {
  const AttentionShape shape{2, 1, 4};
  KvCache cache(shape, AtCachePositions(Unusual{.rows = 4}), {.max_draft = 2, .keep_masses = true}, MovingThreshold(Weighted{}));
  KvStream<float> stream(shape, 3);
  for (int i = 0; i < 9; ++i) stream.step(cache, 1);
  const auto one = cache.snapshot();
  CHECK(one == cache.clone().snapshot());
  const auto differs = [&](auto&& change) {
    auto other = one;
    change(other);
    return !(one == other);
  };
  CHECK(differs([](auto& s) { s.layout += " "; }));
  CHECK(differs([](auto& s) { ++s.next; }));
  CHECK(differs([](auto& s) { ++s.next_rope_position; }));
  CHECK(differs([](auto& s) { ++s.unevicted; }));
  CHECK(differs([](auto& s) { ++s.lost_initial; }));
  CHECK(differs([](auto& s) { s.prefill = !s.prefill; }));
  CHECK(differs([](auto& s) { s.more = !s.more; }));
  CHECK(differs([](auto& s) { ++s.heads[2]; }));
  CHECK(differs([](auto& s) { s.keys[3] = -s.keys[3]; }));
  CHECK(differs([](auto& s) { s.values.pop_back(); }));
  CHECK(differs([](auto& s) { ++s.positions[0]; }));
  CHECK(differs([](auto& s) { ++s.rope_positions[1]; }));
  CHECK(differs([](auto& s) { s.kinds[1] = TokenKind::image; }));
  CHECK(differs([](auto& s) { s.stats(0, 2) += 1; }));
  CHECK(differs([](auto& s) { s.memory(0, 0) += 1; }));
  CHECK(differs([](auto& s) { s.masses[0] += 1; }));
  CHECK(differs([](auto& s) { s.gate[0] += 1; }));
  auto zero = one, negative = one;
  zero.keys[0] = 0;
  negative.keys[0] = -0.f;
  CHECK_FALSE(zero == negative);
  zero.keys[0] = negative.keys[0] = std::numeric_limits<float>::quiet_NaN();
  CHECK(zero == negative);
}

TEST_CASE("the survivors that the law suite expects are those of the documented ranks", "[kv]") {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  const std::map<Position, double> scores{{0, 1}, {1, nan}, {2, -inf}, {3, 1}, {4, inf}, {5, 0}, {6, -7}};
  using Set = std::set<Position>;
  CHECK(detail::survivors(scores, 4, {}) == Set{0, 3, 4, 5});
  CHECK(detail::survivors(scores, 2, {}) == Set{3, 4});              // of equals the older leaves
  CHECK(detail::survivors(scores, 7, {}) == Set{0, 1, 3, 4, 5, 6});  // -inf is evicted for any budget
  CHECK(detail::survivors(scores, 1, Position(6)) == Set{4, 6});     // +inf and the newest stay for any budget
  CHECK(detail::survivors(scores, 5, {}) == Set{0, 3, 4, 5, 6});     // not-a-numbers rank below every number
}
