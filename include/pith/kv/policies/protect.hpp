#pragma once
// Keeps chosen rows regardless of a policy's scores.

#include <concepts>
#include <limits>
#include <optional>
#include <utility>

#include <pith/kv/layer_scores.hpp>
#include <pith/kv/wrapped_policy.hpp>

namespace pith { inline namespace v0 {

/// The rows that Protect keeps regardless of scores: first tokens, newest tokens, one kind of token.
struct ProtectOptions {
  Index sinks = 0;                     ///< the first tokens
  Index recent = 0;                    ///< the newest tokens
  std::optional<TokenKind> kind = {};  ///< every token of this kind
};

/// Keeps chosen rows regardless of P's scores. They count against P's budget, and exceed it if necessary.
///
///   score'_r = +inf if r is protected, else score_r
///
///   Protect(PromptOnly(HeavyHitter{.heavy = 200, .recent = 200}), {.kind = TokenKind::text})   // LOOK-M's text prior
///
/// Keeps    sinks, the newest, one kind; of the rest what P keeps
/// Needs    what P needs
/// Cost     one read of every position and kind when evicting
/// Paper    LOOK-M: arXiv:2406.18139
template <class P> struct Protect : WrappedPolicy<P> {
  ProtectOptions options;

  Protect(std::same_as<P> auto policy, const ProtectOptions& o) : WrappedPolicy<P>{std::move(policy)}, options(o) {}

  void check(const AttentionShape& shape) const {
    WrappedPolicy<P>::check(shape);
    check_count("Protect", "sinks", options.sinks, 0);
    check_count("Protect", "recent", options.recent, 0);
  }

  PolicyTraits traits() const {
    PolicyTraits traits = WrappedPolicy<P>::traits();
    traits.overfills = traits.overfills || options.kind || options.sinks + options.recent >= this->budget();
    return traits;
  }

  template <class S>
  requires ScoresRows<P, S>
  void score(const KvRows<S>& rows, VectorRef<S> out) const {
    this->inner.score(rows, out);
    mark(rows, out);
  }
  template <class S>
  requires CombinesHeads<P, S>
  void combine(LayerScores<S>& layer) const {
    this->inner.combine(layer);
    for (Index h = 0; h < layer.num_heads(); ++h) mark(layer.rows(h), layer.scores(h));
  }

 private:
  template <class S> void mark(const KvRows<S>& rows, VectorRef<S> out) const {
    for (Index r = 0; r < rows.size(); ++r) {
      const auto i = static_cast<std::size_t>(r);
      if (rows.positions[i] - rows.first < options.sinks || Index(rows.next) - rows.positions[i] <= options.recent ||
          rows.kinds[i] == options.kind)
        out[r] = std::numeric_limits<S>::infinity();
    }
  }
};
template <class P> Protect(P, const ProtectOptions&) -> Protect<P>;

}}  // namespace pith::v0
