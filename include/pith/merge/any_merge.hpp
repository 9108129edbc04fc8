#pragma once
// A merge strategy behind one type, chosen at run time.

#include <concepts>
#include <memory>
#include <type_traits>
#include <utility>

#include <pith/merge/gates.hpp>
#include <pith/merge/merge_rule.hpp>

namespace pith { inline namespace v0 {

namespace detail {

/// The constant properties of a merge strategy, which a cache reads once.
struct MergeFacts {
  bool merges = false;
  Index memory = 0;
};

template <class S, class M> MergeFacts merge_facts(const M& merge) {
  MergeFacts facts;
  facts.merges = true;
  facts.memory = gate_memory(merge);
  return facts;
}

}  // namespace detail

/// Holds any merge strategy behind one type, so that it can be chosen at run time. Copies share the immutable strategy.
///
/// Cost     two virtual calls for each merged row, none if it holds Drop
/// Heap     one allocation when it is made from a rule; none when it is copied or used
template <class S = float> class AnyMerge {
 public:
  AnyMerge() = default;
  AnyMerge(Drop) {}
  template <class M>
  requires(!std::same_as<M, AnyMerge> && MergeRule<M, S>) AnyMerge(M rule) : held_(std::make_shared<Holder<M>>(std::move(rule))) {}

  detail::MergeFacts facts() const { return held_ ? held_->facts() : detail::MergeFacts{}; }
  S weight(const MergePair<S>& pair) const { return held_ ? held_->weight(pair) : S(0); }
  MergeMix<S> mix(S mass, S count, S sum) const { return held_ ? held_->mix(mass, count, sum) : MergeMix<S>{1, 1}; }
  bool merges_keys() const { return held_ == nullptr || held_->merges_keys(); }
  void gate(LayerMatches<S>& matches, VectorRef<S> memory) const {
    if (held_) held_->gate(matches, memory);
  }

 private:
  struct Held {
    virtual ~Held() = default;
    virtual detail::MergeFacts facts() const = 0;
    virtual S weight(const MergePair<S>&) const = 0;
    virtual MergeMix<S> mix(S mass, S count, S sum) const = 0;
    virtual bool merges_keys() const = 0;
    virtual void gate(LayerMatches<S>&, VectorRef<S>) const = 0;
  };
  template <class M> struct Holder final : Held {
    explicit Holder(M m) : rule(std::move(m)) {}
    detail::MergeFacts facts() const override { return detail::merge_facts<S>(rule); }
    S weight(const MergePair<S>& pair) const override { return rule.weight(pair); }
    MergeMix<S> mix(S mass, S count, S sum) const override { return rule.mix(mass, count, sum); }
    bool merges_keys() const override { return detail::merges_keys(rule); }
    void gate(LayerMatches<S>& matches, VectorRef<S> memory) const override { detail::gate_matches(rule, matches, memory); }
    M rule;
  };
  std::shared_ptr<const Held> held_;
};

}}  // namespace pith::v0
