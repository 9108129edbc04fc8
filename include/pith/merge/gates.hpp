#pragma once
// Gates of merge strategies: they decide which evicted rows are merged and which are dropped.

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/merge/merge_rule.hpp>

namespace pith { inline namespace v0 {

/// The evicted rows of one layer and the kept row that each is matched to. A gate sees all heads, so that they may decide together.
template <class S> class LayerMatches {
 public:
  struct Head {
    std::span<std::int32_t> rows = {};  ///< [evicted], oldest position first: the kept row of each; -1: dropped
    ConstVectorRef<S> cosines = {};     ///< [evicted]
    Index kept = 0;                     ///< number of kept rows: a gate may match an evicted row to any of 0 .. kept - 1
  };
  explicit LayerMatches(std::span<const Head> heads) : heads_(heads) {}

  Index num_heads() const { return static_cast<Index>(heads_.size()); }
  const Head& head(Index h) const { return heads_[static_cast<std::size_t>(h)]; }
  Index size(Index h) const { return static_cast<Index>(head(h).rows.size()); }  ///< number of evicted rows of head h
  S cosine(Index h, Index evicted) const { return head(h).cosines[evicted]; }
  std::int32_t& row(Index h, Index evicted) const { return head(h).rows[static_cast<std::size_t>(evicted)]; }
  /// Calls f(head, evicted) for every row that is not dropped.
  template <class F> void for_each(F&& f) const {
    for (Index h = 0; h < num_heads(); ++h)
      for (Index e = 0; e < size(h); ++e)
        if (row(h, e) >= 0) f(h, e);
  }

 private:
  std::span<const Head> heads_;
};

namespace detail {

/// Calls the rule's gate, if it has one.
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

/// Base of the wrappers below: forwards everything to the inner rule; a wrapper adds a gate.
template <class M> struct WrappedRule {
  M inner;
  template <class S> S weight(const MergePair<S>& pair) const { return inner.weight(pair); }
  template <class S> MergeMix<S> mix(S mass, S count, S sum) const { return inner.mix(mass, count, sum); }
  bool merges_keys() const { return detail::merges_keys(inner); }
  Index memory() const { return detail::gate_memory(inner); }
};

/// Merges by M the pairs with cos >= min_similarity; other rows are dropped.
///
///   Gated(Pivotal{}, .5)
template <class M> struct Gated : WrappedRule<M> {
  double min_similarity;  ///< smallest cosine that is merged

  /// Throws   ShapeError if `least` is NaN
  explicit Gated(M rule, double least = 0) : WrappedRule<M>{std::move(rule)}, min_similarity(least) {
    if (std::isnan(least)) raise<ShapeError>("pith::Gated: min_similarity is not a number: expected a cosine");
  }

  template <class S> void gate(LayerMatches<S>& matches, VectorRef<S> memory) const {
    detail::gate_matches(this->inner, matches, memory);
    matches.for_each([&](Index h, Index e) {
      if (matches.cosine(h, e) < static_cast<S>(min_similarity)) matches.row(h, e) = -1;
    });
  }
};

namespace detail {

/// The k-th smallest (from 0) of the n numbers value(0) … value(n - 1), none of them NaN.
///
/// Cost     one pass over the numbers for each of their bits
/// Heap     none
template <class S, class Value> S kth_smallest(Index n, Index k, Value&& value) {
  using Word = std::conditional_t<sizeof(S) == 4, std::uint32_t, std::uint64_t>;
  constexpr Word sign = Word(1) << (8 * sizeof(S) - 1);
  const auto rank = [&](Index i) {  // ordered as the numbers are
    const Word bits = bits_as<Word>(static_cast<S>(value(i) + S(0)));
    return (bits & sign) != 0 ? Word(~bits) : Word(bits | sign);
  };
  Word found = 0;
  for (Word bit = sign; bit != 0; bit >>= 1) {
    Index below = 0;
    for (Index i = 0; i < n; ++i) below += rank(i) < Word(found | bit);
    if (below <= k) found |= bit;
  }
  return bits_as<S>((found & sign) != 0 ? Word(found & ~sign) : Word(~found));
}

/// The q-quantile of the n largest of skipped + n numbers, by linear interpolation, rounded as torch and numpy do.
template <class S, class Value> S quantile(Index n, double q, Index skipped, Value&& value) {
  double place = q * static_cast<double>(n - 1);
  if (std::abs(place - std::round(place)) < 1e-9) place = std::round(place);  // 1 - .9 is not exactly .1
  const double whole = std::floor(place);
  const Index rank = skipped + static_cast<Index>(whole);
  const S low = kth_smallest<S>(skipped + n, rank, value), share = static_cast<S>(place - whole);
  const S high = place > whole ? kth_smallest<S>(skipped + n, rank + 1, value) : low;
  return share < S(.5) ? low + share * (high - low) : high - (high - low) * (S(1) - share);
}

}  // namespace detail

/// The rows that BestShare takes its share of.
enum class ShareOf {
  passing,  ///< the rows that the inner rule would merge
  evicted,  ///< all evicted rows; those the inner rule drops count as least similar; if the quantile is NaN, no row is merged
};

/// Merges by M the most similar share of a head's evicted rows, cos >= the (1 - merge_fraction)-quantile; other rows are dropped.
///
/// Of n different cosines it merges n - ceil((1 - merge_fraction)(n - 1)). The published code (kvpress, MergingPress) does as
/// ShareOf::evicted.
///
///   BestShare(Gated(ValuesOnly{}, .3), .5)
///
/// Heap     none
template <class M> struct BestShare : WrappedRule<M> {
  double merge_fraction;  ///< 0 .. 1; 1 merges all rows, 0 only the most similar row
  ShareOf of;

  /// Throws   ShapeError unless 0 <= fraction <= 1
  explicit BestShare(M rule, double fraction, ShareOf share_of = ShareOf::passing)
      : WrappedRule<M>{std::move(rule)}, merge_fraction(fraction), of(share_of) {
    if (!(fraction >= 0 && fraction <= 1)) raise<ShapeError>("pith::BestShare: merge_fraction is ", fraction, ", expected 0 .. 1");
  }

  template <class S> void gate(LayerMatches<S>& matches, VectorRef<S> memory) const {
    detail::gate_matches(this->inner, matches, memory);
    if (merge_fraction >= 1) return;
    for (Index h = 0; h < matches.num_heads(); ++h) {
      Index dropped = 0;
      for (Index e = 0; e < matches.size(h); ++e) dropped += matches.row(h, e) < 0;
      if (dropped == matches.size(h)) continue;
      const Index skipped = of == ShareOf::passing ? dropped : 0;  // dropped rows rank below all others
      const S cut = detail::quantile<S>(matches.size(h) - skipped, 1 - merge_fraction, skipped, [&](Index e) {
        return matches.row(h, e) < 0 ? -std::numeric_limits<S>::infinity() : matches.cosine(h, e);
      });
      for (Index e = 0; e < matches.size(h); ++e)
        if (!(matches.cosine(h, e) >= cut)) matches.row(h, e) = -1;
    }
  }
};

/// D2O: merges or drops by a threshold τ that follows the similarities seen so far, with one decision for all heads.
///
///   τ = m at first, later τ = α τ + β m;   row e is merged if mean_h cos(h, e) >= τ
///
/// m is the mean of all cosines of this eviction. Row e is the e-th oldest evicted row of every head.
///
///   MovingThreshold(Weighted{})
///
/// Paper    D2O: arXiv:2406.13035
template <class M> struct MovingThreshold : WrappedRule<M> {
  double alpha, beta;

  /// Throws   ShapeError if alpha or beta is not finite
  explicit MovingThreshold(M rule, double a = .5, double b = .5) : WrappedRule<M>{std::move(rule)}, alpha(a), beta(b) {
    if (!std::isfinite(a) || !std::isfinite(b))
      raise<ShapeError>("pith::MovingThreshold: alpha ", a, " and beta ", b, ", expected finite numbers");
  }

  Index memory() const { return 2 + WrappedRule<M>::memory(); }  // τ, whether τ is set, and the inner rule's numbers
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

}}  // namespace pith::v0
