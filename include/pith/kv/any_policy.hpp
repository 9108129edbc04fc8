#pragma once

#include <concepts>
#include <memory>
#include <type_traits>
#include <utility>

#include <pith/kv/detail/policy_facts.hpp>
#include <pith/kv/detail/policy_members.hpp>
#include <pith/kv/policies/dense.hpp>
#include <pith/kv/policy.hpp>
#include <pith/kv/policy_facts.hpp>

namespace pith { inline namespace v0 {

/// AnyPolicy holds any policy behind one type: to choose at run time, or differently for each layer. Copies share the immutable policy.
///
/// Cost     one virtual call per kv head and step, none for policies by age
/// Heap     one allocation when made from a policy; none when copied or used
template <class S = float> class AnyPolicy {
 public:
  AnyPolicy() : AnyPolicy(Dense{}) {}

  /// From any policy. A mistake in its members is a compile error that says which.
  template <class P>
  requires(!std::same_as<P, AnyPolicy> && detail::policy_like<P>) AnyPolicy(P policy) : held_(hold(std::move(policy))) {}

  Index budget() const { return held_->budget(); }
  Index retain() const { return held_->retain(); }
  PolicyTraits traits() const { return held_->traits(); }
  /// Throws   what the policy's check() throws
  void check(const AttentionShape& shape) const { held_->facts(shape); }
  Index stats(const AttentionShape& shape) const { return held_->facts(shape).stats; }
  PolicyFacts facts(const AttentionShape& shape) const { return held_->facts(shape); }
  bool observes() const { return held_->observes(); }
  bool admits() const { return held_->admits(); }
  bool combines() const { return held_->combines(); }
  void score(const KvRows<S>& rows, VectorRef<S> out) const { held_->score(rows, out); }
  Index memory(const AttentionShape& shape) const { return held_->facts(shape).memory; }
  void observe(const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S> stats, VectorRef<S> memory) const {
    held_->observe(seen, rows, stats, memory);
  }
  void admit(const KvRows<S>& fresh, MatrixRef<S> stats) const { held_->admit(fresh, stats); }
  void combine(LayerScores<S>& layer) const { held_->combine(layer); }

 private:
  struct Held;
  template <class P> static std::shared_ptr<const Held> hold(P policy) {
    detail::check_policy_type<P, S>();
    if constexpr (detail::whole_policy<P, S>) return std::make_shared<Holder<P>>(std::move(policy));
  }

  struct Held {
    virtual ~Held() = default;
    virtual Index budget() const = 0;
    virtual Index retain() const = 0;
    virtual PolicyTraits traits() const = 0;
    virtual bool observes() const = 0;
    virtual bool admits() const = 0;
    virtual bool combines() const = 0;
    virtual PolicyFacts facts(const AttentionShape&) const = 0;
    virtual void score(const KvRows<S>&, VectorRef<S>) const {}
    virtual void observe(const AttentionBlock<S>&, const KvRows<S>&, MatrixRef<S>, VectorRef<S>) const {}
    virtual void admit(const KvRows<S>&, MatrixRef<S>) const {}
    virtual void combine(LayerScores<S>&) const {}
  };
  template <class P> struct Holder final : Held {
    explicit Holder(P p) : policy(std::move(p)) {}
    Index budget() const override { return policy.budget(); }
    Index retain() const override { return detail::retain_of(policy); }
    PolicyTraits traits() const override { return detail::traits_of(policy); }
    bool observes() const override { return detail::observes<S>(policy); }
    bool admits() const override { return detail::admits<S>(policy); }
    bool combines() const override { return detail::combines<S>(policy); }
    PolicyFacts facts(const AttentionShape& shape) const override { return detail::policy_facts<S>(policy, shape); }
    void score(const KvRows<S>& rows, VectorRef<S> out) const override {
      if constexpr (detail::has_score<P, S>) policy.score(rows, out);
    }
    void observe(const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S> stats, VectorRef<S> memory) const override {
      if constexpr (detail::remembers<P, S>) {
        policy.observe(seen, rows, stats, memory);
      } else if constexpr (detail::watches<P, S>) {
        policy.observe(seen, rows, stats);
      }
    }
    void admit(const KvRows<S>& fresh, MatrixRef<S> stats) const override {
      if constexpr (detail::admits_rows<P, S>) policy.admit(fresh, stats);
    }
    void combine(LayerScores<S>& layer) const override {
      if constexpr (detail::combines_heads<P, S>) policy.combine(layer);
    }
    P policy;
  };
  std::shared_ptr<const Held> held_;
};

}}  // namespace pith::v0
