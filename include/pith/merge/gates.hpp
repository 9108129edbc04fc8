#pragma once

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

  /// Throws   ShapeError if `least` is not a number
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

/// Number k, from 0 on, of n numbers in rising order; value(i) is one of them, none is NaN.
///
/// Cost     as many passes over the numbers as they have bits
/// Heap     none
template <class S, class Value> S kth_smallest(Index n, Index k, Value&& value) {
  using Word = std::conditional_t<sizeof(S) == 4, std::uint32_t, std::uint64_t>;
  constexpr Word sign = Word(1) << (8 * sizeof(S) - 1);
  const auto rank = [&](Index i) {  // rises with the number
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

/// The q-quantile of the n largest of skipped + n numbers, between two of them by linear interpolation, as torch and numpy round it.
template <class S, class Value> S quantile(Index n, double q, Index skipped, Value&& value) {
  double place = q * static_cast<double>(n - 1);
  if (std::abs(place - std::round(place)) < 1e-9) place = std::round(place);  // 1 - .9 is not a tenth
  const double whole = std::floor(place);
  const Index rank = skipped + static_cast<Index>(whole);
  const S low = kth_smallest<S>(skipped + n, rank, value), share = static_cast<S>(place - whole);
  const S high = place > whole ? kth_smallest<S>(skipped + n, rank + 1, value) : low;
  return share < S(.5) ? low + share * (high - low) : high - (high - low) * (S(1) - share);
}

}  // namespace detail

/// What a share is of.
enum class ShareOf {
  passing,  ///< the rows that the rule inside would merge
  evicted,  ///< all that leave, those it would not merge counting as least similar; where the cut is then not a number, none is merged
};

/// M, for the most similar share of the rows that leave a head: those whose cosine reaches the (1 - merge_fraction)-quantile of all; other
/// rows are dropped. Of n different cosines that is n - ceil((1 - merge_fraction)(n - 1)).
///
///   BestShare(Gated(ValuesOnly{}, .3), .5)
///
/// ShareOf::evicted is what the published code does (kvpress, MergingPress).
///
/// Heap     none
template <class M> struct BestShare : WrappedRule<M> {
  double merge_fraction;  ///< 0 .. 1; 1 merges all, 0 the most similar alone
  ShareOf of;

  /// Throws   ShapeError unless 0 <= fraction <= 1
  explicit BestShare(M rule, double fraction, ShareOf share_of = ShareOf::passing)
      : WrappedRule<M>{std::move(rule)}, merge_fraction(fraction), of(share_of) {
    if (!(fraction >= 0 && fraction <= 1))
      raise<ShapeError>(detail::text("pith::BestShare: merge_fraction is ", fraction, ", expected 0 .. 1"));
  }

  template <class S> void gate(LayerMatches<S>& matches, VectorRef<S> memory) const {
    detail::gate_matches(this->inner, matches, memory);
    if (merge_fraction >= 1) return;
    for (Index h = 0; h < matches.num_heads(); ++h) {
      Index dropped = 0;
      for (Index e = 0; e < matches.size(h); ++e) dropped += matches.row(h, e) < 0;
      if (dropped == matches.size(h)) continue;
      const Index skipped = of == ShareOf::passing ? dropped : 0;  // rows that were dropped are the least of all
      const S cut = detail::quantile<S>(matches.size(h) - skipped, 1 - merge_fraction, skipped, [&](Index e) {
        return matches.row(h, e) < 0 ? -std::numeric_limits<S>::infinity() : matches.cosine(h, e);
      });
      for (Index e = 0; e < matches.size(h); ++e)
        if (!(matches.cosine(h, e) >= cut)) matches.row(h, e) = -1;
    }
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

  /// Throws   ShapeError if alpha or beta is not finite
  explicit MovingThreshold(M rule, double a = .5, double b = .5) : WrappedRule<M>{std::move(rule)}, alpha(a), beta(b) {
    if (!std::isfinite(a) || !std::isfinite(b))
      raise<ShapeError>(detail::text("pith::MovingThreshold: alpha ", a, " and beta ", b, ", expected finite numbers"));
  }

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

}}  // namespace pith::v0
