#pragma once

#include <cstdint>
#include <span>
#include <utility>

#include <pith/core/view.hpp>
#include <pith/merge/strategies.hpp>

namespace pith::inline v0 {

/// The rows that leave one layer and where each is about to go, for gates: the heads of a layer may decide together.
template <class S> class LayerMatches {
 public:
  struct Head {
    std::span<std::int32_t> rows = {};  ///< [evicted] by position, the oldest first: the kept row of each; -1: dropped
    ConstVectorRef<S> cosines = {};     ///< [evicted]
    Index kept = 0;                     ///< rows that stay: a gate may send an evicted one to any of 0 .. kept - 1
  };
  explicit LayerMatches(std::span<const Head> heads) : heads_(heads) {}

  Index num_heads() const { return static_cast<Index>(heads_.size()); }
  const Head& head(Index h) const { return heads_[static_cast<std::size_t>(h)]; }
  Index size(Index h) const { return static_cast<Index>(head(h).rows.size()); }  ///< rows that leave head h
  S cosine(Index h, Index evicted) const { return head(h).cosines[evicted]; }
  std::int32_t& row(Index h, Index evicted) const { return head(h).rows[static_cast<std::size_t>(evicted)]; }
  /// f(head, evicted) for every row that is still to be merged.
  template <class F> void for_each(F&& f) const {
    for (Index h = 0; h < num_heads(); ++h)
      for (Index e = 0; e < size(h); ++e)
        if (row(h, e) >= 0) f(h, e);
  }

 private:
  std::span<const Head> heads_;
};

namespace detail {

/// Lets a rule reject or re-pair, if it wants to.
template <class S, class M> void gate_matches(const M& rule, LayerMatches<S>& matches, VectorRef<S> memory) {
  if constexpr (requires { rule.gate(matches, memory); }) rule.gate(matches, memory);
}
template <class M> Index gate_memory(const M& rule) {
  if constexpr (requires { rule.memory(); }) {
    return rule.memory();
  } else {
    return 0;
  }
}

}  // namespace detail

/// A rule inside another one: everything as it is, until the wrapper gates it besides.
template <class M> struct WrappedRule {
  M inner;
  template <class S> S weight(const MergePair<S>& pair) const { return inner.weight(pair); }
  template <class S> MergeMix<S> mix(S mass, S count, S sum) const { return inner.mix(mass, count, sum); }
  bool merges_keys() const { return detail::merges_keys(inner); }
  Index memory() const { return detail::gate_memory(inner); }
};

/// M, for pairs that are similar enough; other rows are dropped.
///
///   Gated(Pivotal{}, .5)
template <class M> struct Gated : WrappedRule<M> {
  double min_similarity;  ///< least cosine

  explicit Gated(M rule, double least = 0) : WrappedRule<M>{std::move(rule)}, min_similarity(least) {}

  template <class S> void gate(LayerMatches<S>& matches, VectorRef<S> memory) const {
    detail::gate_matches(this->inner, matches, memory);
    matches.for_each([&](Index h, Index e) {
      if (matches.cosine(h, e) < static_cast<S>(min_similarity)) matches.row(h, e) = -1;
    });
  }
};

/// D2O: merges or discards by a threshold that follows the similarities seen so far, one decision for all heads.
///
/// Row number e, by age, of every head is merged when the mean over heads of its cosine reaches τ; τ = the mean of all cosines m at first,
/// then α τ + β m.
///
///   MovingThreshold(Weighted{})
///
/// Paper    D2O: arXiv:2406.13035
template <class M> struct MovingThreshold : WrappedRule<M> {
  double alpha, beta;

  explicit MovingThreshold(M rule, double a = .5, double b = .5) : WrappedRule<M>{std::move(rule)}, alpha(a), beta(b) {}

  Index memory() const { return 2 + WrappedRule<M>::memory(); }  // τ, whether there is one, and what the rule inside keeps
  template <class S> void gate(LayerMatches<S>& matches, VectorRef<S> memory) const {
    detail::gate_matches(this->inner, matches, VectorRef<S>(memory.tail(memory.size() - 2)));
    S sum = 0, count = 0;
    matches.for_each([&](Index h, Index e) {
      sum += matches.cosine(h, e);
      count += 1;
    });
    if (count == S(0)) return;
    const S mean = sum / count;
    memory[0] = memory[1] == S(0) ? mean : static_cast<S>(alpha) * memory[0] + static_cast<S>(beta) * mean;
    memory[1] = 1;
    for (Index e = 0, more = 1; more > 0; ++e) {
      S slot = 0;
      more = 0;
      for (Index h = 0; h < matches.num_heads(); ++h) {
        if (e >= matches.size(h)) continue;
        slot += matches.row(h, e) < 0 ? S(0) : matches.cosine(h, e);
        ++more;
      }
      for (Index h = 0; h < matches.num_heads(); ++h)
        if (e < matches.size(h) && slot < memory[0] * static_cast<S>(more)) matches.row(h, e) = -1;
    }
  }
};

}  // namespace pith::inline v0
