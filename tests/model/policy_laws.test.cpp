// Law 7, which takes a model: policies of a user's own, in a session.
#include <algorithm>

#include <pith/kv.hpp>

#include "laws/policy_in_session.hpp"
#include "support/catch.hpp"

using namespace pith;

namespace {

/// Keeps what was looked at most, measured by what its head has seen so far.
struct Remembers {
  Index rows = 10;
  Index budget() const { return rows; }
  Index stats(const AttentionShape&) const { return 1; }
  Index memory(const AttentionShape&) const { return 1; }
  template <class S> void observe(const AttentionBlock<S>& seen, const KvRows<S>&, MatrixRef<S> stats, VectorRef<S> memory) const {
    stats.row(0) += seen.weights.colwise().sum();
    memory[0] += seen.weights.maxCoeff();
  }
  template <class S> void score(const KvRows<S>& kept, VectorRef<S> out) const {
    for (Index r = 0; r < kept.size(); ++r) out[r] = -std::abs(kept.stats(0, r) - kept.memory[0] / S(8));
  }
};

}  // namespace

TEST_CASE("tokens decoded together are the tokens one by one, under a policy of one's own", "[model]") {
  pith_test::policy_in_session(Remembers{});
  pith_test::policy_in_session<bfloat16>(Remembers{.rows = 6}, 2);
  pith_test::policy_in_session(AtCachePositions(Remembers{}), 3);
  pith_test::policy_in_session(PromptOnly(Remembers{}), 4);
  pith_test::policy_in_session(Protect(Remembers{}, {.sinks = 3}), 5);
}
