// expect: pith: a policy is a value that can be copied
// expect: pith: a policy needs `Index budget() const`
// expect: pith: the policy has no way to evict
// expect: pith: the policy's score() cannot be called
// expect: pith: the policy's initial() cannot be called
// expect: pith: the policy's traits() cannot be called
// expect: pith: is the policy's traits() misspelt?
// expect: pith: the policy's retain() cannot be called
// expect: pith: is the policy's retain() misspelt?
// expect: pith: the policy's check() cannot be called
// expect: pith: the policy's stats() cannot be called
// expect: pith: is the policy's stats() misspelt?
// expect: pith: the policy's memory() cannot be called
// expect: pith: the policy's observe() cannot be called
// expect: pith: is the policy's observe() misspelt?
// expect: pith: the policy's admit() cannot be called
// expect: pith: is the policy's admit() misspelt?
// expect: pith: the policy's combine() cannot be called
// expect: pith: is the policy's combine() misspelt?
// expect: pith: the policy has observe() but keeps nothing
// expect: pith: the policy has admit() but keeps nothing
// expect: pith: the policy has stats() but nothing that fills them
// expect: pith: the policy has memory() but nothing that fills it
// expect: pith: a wrapper changes scores: the policy inside needs score()
#include <pith/kv.hpp>
#include <pith/kv/policy_laws.hpp>
#include <pith/model.hpp>

using namespace pith;

/// What a mistake below spoils.
struct Whole {
  Index budget() const { return 8; }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const { out = rows.stats.row(0); }
};

struct NoCopies : Whole {
  NoCopies() = default;
  NoCopies(NoCopies&&) = default;
};
struct NoBudget {
  template <class S> void score(const KvRows<S>&, VectorRef<S> out) const { out.setZero(); }
};
struct MisspeltScore {
  Index budget() const { return 8; }
  template <class S> void scores(const KvRows<S>&, VectorRef<S> out) const { out.setZero(); }
};
struct ScoreOfAnotherShape {
  Index budget() const { return 8; }
  template <class S> void score(const KvRows<S>&, MatrixRef<S> out) const { out.setZero(); }
};
struct ScoreThatChangesThePolicy {
  Index budget() const { return 8; }
  template <class S> void score(const KvRows<S>&, VectorRef<S> out) { out.setZero(); }
};
struct InitialOfAHead {
  Index budget() const { return 8; }
  Index initial(Index head) const { return head; }
};
struct TraitsOfAnotherType : Whole {
  bool traits() const { return true; }
};
struct MisspeltTraits : Whole {
  PolicyTraits trait() const { return {.reads_rows = true}; }
};
struct RetainOfAHead : Whole {
  Index retain(Index head) const { return head; }
};
struct MisspeltRetain : Whole {
  Index retains() const { return 4; }
};
struct CheckOfNothing : Whole {
  void check() const {}
};
struct StatsOfNothing : Whole {
  Index stats() const { return 1; }
};
struct MisspeltStats : Whole {
  Index statistics(const AttentionShape&) const { return 1; }
};
struct MemoryOfNothing : Whole {
  Index memory() const { return 1; }
};
struct ObserveOfWeights : Whole {
  Index stats(const AttentionShape&) const { return 1; }
  template <class S> void observe(const Matrix<S>& weights, MatrixRef<S> stats) const { stats.row(0) += weights.row(0); }
};
struct MisspeltObserve : Whole {
  Index stats(const AttentionShape&) const { return 1; }
  template <class S> void observed(const AttentionBlock<S>&, const KvRows<S>&, MatrixRef<S>) const {}
};
struct AdmitOfKeys : Whole {
  Index stats(const AttentionShape&) const { return 1; }
  template <class S> void admit(const Matrix<S>& keys, MatrixRef<S> stats) const { stats.row(0) = keys.rowwise().norm(); }
};
struct MisspeltAdmit : Whole {
  Index stats(const AttentionShape&) const { return 1; }
  template <class S> void admitted(const KvRows<S>&, MatrixRef<S>) const {}
};
struct CombineOfAHead : Whole {
  template <class S> void combine(LayerScores<S>&, Index) const {}
};
struct MisspeltCombine : Whole {
  template <class S> void combined(LayerScores<S>&) const {}
};
struct ObserveWithoutStats : Whole {
  template <class S> void observe(const AttentionBlock<S>&, const KvRows<S>&, MatrixRef<S>) const {}
};
struct AdmitWithoutStats : Whole {
  template <class S> void admit(const KvRows<S>&, MatrixRef<S>) const {}
};
struct StatsOfNoUse : Whole {
  Index stats(const AttentionShape&) const { return 1; }
};
struct MemoryOfNoUse : Whole {
  Index memory(const AttentionShape&) const { return 1; }
};

// Every way in which a policy reaches a cache.
void mistakes(const AttentionShape& shape, const Decoder<float>& decoder) {
#ifndef PITH_CONTROL
  KvCache no_copies(shape, NoCopies{});
  KvCache no_budget(shape, NoBudget{});
  KvCache<half> misspelt_score(shape, MisspeltScore{}, {.max_chunk = 4});
  AnyPolicy<float> other_score = ScoreOfAnotherShape{};
  decoder.start(ScoreThatChangesThePolicy{});
  KvCache initial(shape, InitialOfAHead{});
  decoder.start<bfloat16>(TraitsOfAnotherType{}, {.max_prompt = 9});
  policy_laws(MisspeltTraits{});
  KvCache retain(shape, RetainOfAHead{});
  KvCache misspelt_retain(shape, MisspeltRetain{});
  KvCache check(shape, CheckOfNothing{});
  KvCache stats(shape, StatsOfNothing{});
  KvCache misspelt_stats(shape, Protect(MisspeltStats{}, {.sinks = 4}));
  KvCache memory(shape, MemoryOfNothing{});
  KvCache observe(shape, PromptOnly(ObserveOfWeights{}));
  KvCache misspelt_observe(shape, Adaptive(MisspeltObserve{}));
  KvCache admit(shape, Chunkwise(Protect(AdmitOfKeys{}, {.sinks = 4}), 3));
  KvCache misspelt_admit(shape, MisspeltAdmit{});
  KvCache combine(shape, AtCachePositions(CombineOfAHead{}));
  KvCache misspelt_combine(shape, MisspeltCombine{});
  KvCache observe_without_stats(shape, ObserveWithoutStats{});
  KvCache admit_without_stats(shape, AdmitWithoutStats{});
  KvCache stats_of_no_use(shape, StatsOfNoUse{});
  KvCache memory_of_no_use(shape, MemoryOfNoUse{});
  KvCache wrapped(shape, Protect(Window{}, {.sinks = 4}));
#else
  KvCache whole(shape, Whole{});
  KvCache<half> by_age(shape, Window{}, {.max_chunk = 4});
  AnyPolicy<float> wrapped = Chunkwise(Protect(Whole{}, {.sinks = 4}), 3);
  decoder.start(PromptOnly(Whole{}));
  decoder.start<bfloat16>(wrapped, {.max_prompt = 9});
  policy_laws(Adaptive(Whole{}));
#endif
}
