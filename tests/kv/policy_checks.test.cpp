// Numbers that make no sense are refused when a cache is constructed, by a message that names the policy and the number.
#include <limits>
#include <memory>

#include <pith/kv.hpp>

#include "support/catch.hpp"
#include "support/random_matrix.hpp"

using namespace pith;
using pith_test::contains;

namespace {

constexpr AttentionShape checked_shape{4, 2, 8};
constexpr Index huge = std::numeric_limits<Index>::max();
constexpr double no_number = std::numeric_limits<double>::quiet_NaN();

template <class P> void refused(const P& policy, const std::string& message) {
  INFO(message);
  CHECK_THROWS_WITH(KvCache<>(checked_shape, policy), contains(message));
}
template <class P> void accepted(const P& policy) { CHECK_NOTHROW(KvCache<>(checked_shape, policy)); }

std::shared_ptr<const Rope<float>> rope(Index head_dim, RopeType type = RopeType::none) {
  return std::make_shared<const Rope<float>>(RopeOptions{.head_dim = head_dim, .scaling = {.type = type, .factor = 2}});
}
std::shared_ptr<const Matrix<float>> projection(Index columns) {
  return std::make_shared<const Matrix<float>>(pith_test::random_matrix<float>(12, columns, 3));
}

/// A policy of a user.
struct Odd {
  Index keep = 3;
  Index budget() const { return keep; }
  void check(const AttentionShape& layer) const {
    if (keep % 2 == 0 || layer.head_dim != 8) raise<ShapeError>("Odd: keep must be odd, for heads of 8");
  }
  template <class S> void score(const KvRows<S>&, VectorRef<S> out) const { out.setZero(); }
};

}  // namespace

TEST_CASE("policies refuse numbers that make no sense", "[kv]") {
  refused(Window{.window = 0}, "pith::Window: window is 0");
  refused(SinkWindow{.sinks = -1, .window = 4}, "pith::SinkWindow: sinks is -1");
  refused(SinkWindow{.sinks = huge, .window = 4}, "pith::SinkWindow: sinks is");
  refused(SinkWindow{.sinks = 2, .window = 0}, "window is 0");
  refused(HeavyHitter{.heavy = -1, .recent = 4}, "pith::HeavyHitter: heavy is -1");
  refused(HeavyHitter{.heavy = huge, .recent = 4}, "heavy is");
  refused(HeavyHitter{.heavy = 4, .recent = huge}, "recent is");
  refused(HeavyHitter{.heavy = 0, .recent = 0}, "heavy + recent is 0");
  refused(ObservedAttention{.keep = 0}, "pith::ObservedAttention: keep is 0");
  refused(Tova{.keep = -3}, "pith::Tova: keep is -3");
  refused(Scissorhands{.keep = 0}, "pith::Scissorhands: keep is 0");
  refused(Scissorhands{.keep = 30, .history = 1}, "history is 1");
  refused(Scissorhands{.keep = 30, .history = 8, .recent = 16}, "recent is 16, expected 0 .. 15");
  refused(SnapKv{.keep = 8, .window = 0}, "pith::SnapKv: window is 0");
  refused(SnapKv{.keep = 8, .window = -2}, "window is -2");
  refused(SnapKv{.keep = 8}, "window is 32, expected 1 .. 8: the window is part of keep");
  refused(SnapKv{.keep = 8, .window = 4, .kernel = 4}, "kernel is 4, expected an odd number");
  refused(SnapKv{.keep = 8, .window = 4, .kernel = -1}, "kernel is -1");
  refused(SnapKv{.keep = 8, .window = 4, .kernel = huge}, "kernel is");
  refused(Csp{.heavy = 4, .recent = 0}, "pith::Csp: recent is 0");
  refused(Csp{.heavy = 4, .recent = 4, .protects = 9}, "protects is 9, expected -1 .. 8");
  refused(Csp{.heavy = 4, .recent = 4, .cross_ratio = no_number}, "cross_ratio is nan, expected 0 .. 1");
  refused(Csp{.heavy = 4, .recent = 4, .cross_ratio = 1.5}, "cross_ratio is 1.5");
  refused(Csp{.heavy = 4, .recent = 4, .n = -1}, "n is -1");
  refused(Csp{.heavy = huge, .recent = 4}, "heavy is");
  refused(KeyNorm{.keep = 0}, "pith::KeyNorm: keep is 0");
  refused(KeyDiff{.keep = 8, .rows_per_eviction = 9}, "pith::KeyDiff: rows_per_eviction is 9, expected 1 .. 8");
  refused(KeyDiff{.keep = 8, .rows_per_eviction = 0}, "rows_per_eviction is 0");
  refused(Cur{.keep = 4}, "pith::Cur: sinks is 4, expected 0 .. 3");
  refused(Cur{.keep = 8, .sinks = -1}, "sinks is -1");
  refused(Cur{.keep = 8, .block = 0}, "block is 0");
  refused(LagKv{.keep = 8, .sinks = 4, .lag = 0}, "pith::LagKv: lag is 0");
  refused(LagKv{.keep = 8, .sinks = 8}, "sinks is 8");
  refused(LagKv{.keep = 8, .sinks = 4, .lag = huge}, "lag is");
  refused(Random{.keep = 0}, "pith::Random: keep is 0");
  accepted(SnapKv{.keep = 8, .window = 8, .kernel = 1});
  accepted(HeavyHitter{.heavy = 0, .recent = 1});
  accepted(Csp{.heavy = 0, .recent = 1, .protects = 0, .cross_ratio = 1});
  accepted(LagKv{.keep = 1, .sinks = 0, .lag = 1});
}

TEST_CASE("policies that need something of the model refuse another model's", "[kv]") {
  using Expected = ExpectedAttention<float>;
  refused(Expected{}, "pith::ExpectedAttention: rope is null");
  refused(Expected{.rope = rope(6)}, "the rope turns heads of 6, the layer has heads of 8");
  refused(Expected{.rope = rope(8), .keep = 4}, "sinks is 4, expected 0 .. 3");
  refused(Expected{.rope = rope(8), .future = 0}, "future is 0");
  refused(Expected{.rope = rope(8), .future = huge}, "future is");
  refused(Expected{.rope = rope(8), .epsilon = std::numeric_limits<float>::infinity()}, "epsilon is inf");
  CHECK_THROWS_AS(KvCache<>(checked_shape, Expected{.rope = rope(8, RopeType::dynamic)}), UnsupportedError);
  accepted(Expected{.rope = rope(8), .keep = 5});

  using Critical = CriticalValues<SnapKv, float>;
  const SnapKv snap{.keep = 8, .window = 4};
  refused(Critical(snap, nullptr), "pith::CriticalValues: o_proj is null");
  refused(Critical(snap, projection(33)), "pith::CriticalValues: o_proj is [12, 33], expected [*, 32]");
  Critical odd(snap, projection(32));
  accepted(odd);
  odd.first_stage = 3;
  refused(odd, "first_stage is 3");
  odd.first_stage = no_number;
  refused(odd, "first_stage is nan");
  odd.first_stage = 1;
  odd.epsilon = std::numeric_limits<float>::quiet_NaN();
  refused(odd, "epsilon is nan");
}

TEST_CASE("wrappers check what is inside, and refuse pairs that undo each other", "[kv]") {
  const SnapKv snap{.keep = 8, .window = 4}, wrong{.keep = 8, .window = 9};
  const KeyNorm keys{.keep = 8};
  const Csp lists{.heavy = 4, .recent = 4};
  refused(PromptOnly(wrong), "window is 9");
  refused(Protect(wrong, {}), "window is 9");
  refused(Adaptive(wrong), "window is 9");
  refused(Chunkwise(wrong, 2), "window is 9");
  refused(AtCachePositions(wrong), "window is 9");
  refused(CriticalValues<SnapKv, float>(wrong, projection(32)), "window is 9");
  refused(Protect(keys, {.sinks = -1}), "pith::Protect: sinks is -1");
  refused(Protect(keys, {.recent = huge}), "pith::Protect: recent is");
  refused(Adaptive(snap, {.floor = no_number}), "pith::Adaptive: floor is nan");
  refused(Adaptive(snap, {.floor = 1.01}), "floor is 1.01");
  refused(Adaptive(snap, {.floor = -0.5}), "floor is -0.5");
  refused(Chunkwise(keys, 0), "pith::Chunkwise: chunk is 0");

  refused(Chunkwise(Adaptive(snap), 2), "pith::Chunkwise: around a policy that decides itself which rows stay");
  refused(Chunkwise(lists, 2), "decides itself");
  refused(Chunkwise(Protect(Chunkwise(keys, 2), {}), 2), "decides itself");
  refused(Adaptive(Chunkwise(keys, 2)), "pith::Adaptive: around a policy that decides itself which rows stay");
  refused(Adaptive<Adaptive<SnapKv>>(Adaptive(snap)), "decides itself");
  refused(Adaptive(lists), "decides itself");
  refused(CriticalValues<Csp, float>(lists, projection(32)), "there is no score to weigh");
  refused(AtCachePositions(lists), "heads may keep different numbers of rows");
  refused(AtCachePositions(Protect(lists, {.sinks = 1})), "heads may keep different numbers of rows");
  refused(AtCachePositions(Adaptive(snap)), "heads may keep different numbers of rows");
  refused(AtCachePositions(ExpectedAttention<float>{.rope = rope(8)}), "rotated at text positions");
  accepted(CriticalValues<Adaptive<SnapKv>, float>(Adaptive(snap), projection(32)));
  accepted(Adaptive(Tova{.keep = 8}));
  accepted(AtCachePositions(Chunkwise(keys, 2)));

  // The same around policies that are chosen at run time.
  const auto any = [](auto policy) { return AnyPolicy<float>(policy); };
  refused(Chunkwise(any(Adaptive(snap)), 2), "decides itself");
  refused(AtCachePositions(any(lists)), "heads may keep different numbers of rows");
  refused(Protect(any(Window{.window = 4}), {.sinks = 1}), "does not score its rows");
  refused(PromptOnly(any(Dense{})), "does not score its rows");
  refused(PromptOnly(any(wrong)), "window is 9");
}

TEST_CASE("a wrapper of a policy chosen at run time asks for what that one asks for", "[kv]") {
  const AnyPolicy<float> snap = SnapKv{.keep = 8, .window = 4}, keys = KeyDiff{.keep = 9, .rows_per_eviction = 3},
                         lists = Csp{.heavy = 4, .recent = 4};
  const PolicyFacts watching = detail::policy_facts<float>(Protect(snap, {.sinks = 1}), checked_shape);
  CHECK(watching.observes);
  CHECK(!watching.admits);
  CHECK(!watching.combines);
  CHECK(watching.traits.prompt_only);
  CHECK(watching.traits.watches == 4);
  const PolicyFacts reading = detail::policy_facts<float>(PromptOnly(keys), checked_shape);
  CHECK(!reading.observes);
  CHECK(reading.traits.reads_rows);
  CHECK(reading.retain == 7);
  CHECK(detail::policy_facts<float>(Protect(lists, {}), checked_shape).traits.needs_log_sum);
  CHECK(detail::policy_facts<float>(Adaptive(snap), checked_shape).combines);
}

TEST_CASE("a policy of your own is checked as well, before anything else is asked of it", "[kv]") {
  accepted(Odd{});
  refused(Odd{.keep = 4}, "keep must be odd");
  refused(Protect(Odd{.keep = 2}, {}), "keep must be odd");
  CHECK_THROWS_WITH(KvCache<>({4, 2, 6}, Odd{}), contains("for heads of 8"));
  CHECK_THROWS_WITH(KvCache<>({4, 0, 8}, SnapKv{.group = SnapKv::Group::largest}), contains("num_kv_heads 0"));
}

TEST_CASE("the numbers of a pyramid are checked", "[kv]") {
  CHECK_THROWS_AS((Pyramid{.layers = 4, .window = 2}.budgets_at(no_number, 100)), ShapeError);
  CHECK_THROWS_AS((Pyramid{.layers = 4, .window = 2}.budgets_at(1.5, 100)), ShapeError);
  CHECK_THROWS_AS((Pyramid{.layers = 4, .window = 2}.budgets(huge, 100)), ShapeError);
  CHECK_THROWS_AS((Pyramid{.layers = huge, .window = 2}.budgets(10, 100)), ShapeError);
}
