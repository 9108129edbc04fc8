#pragma once

#include <algorithm>

#include <pith/kv/policy.hpp>

namespace pith { inline namespace v0 {

/// Observed attention: ranks rows by the mean weight they received from the prompt's queries that could see them.
///
///   score_r = Σ_q softmax(q Kᵀ / √d)_r / #{q that could see r}
///
/// So an early row has no advantage of age, and a row of an earlier turn gains nothing from earlier queries.
///
/// Keeps    `keep` rows by average attention, when a prompt ends
/// Needs    attention weights of the whole prompt
/// Cost     one add per weight while watching
/// Paper    after H2O, arXiv:2306.14048, in its one-shot form
struct ObservedAttention {
  Index keep = 1024;  ///< rows kept
  Index budget() const { return keep; }
  void check(const AttentionShape&) const { check_count("ObservedAttention", "keep", keep, 1); }
  PolicyTraits traits() const { return {.prompt_only = true}; }
  Index stats(const AttentionShape&) const { return 2; }  // the sum of weights received, and their number
  template <class S> void observe(const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S> stats) const {
    add_rows<S>(seen.weights, stats.topRows(1));
    const Index group = rows.shape.group(), end = seen.first_row + seen.weights.rows() / group;
    for (Index r = 0; r < end; ++r) stats(1, r) += static_cast<S>(group * (end - (std::max)(r, seen.first_row)));
  }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    for (Index r = 0; r < rows.size(); ++r) out[r] = rows.stats(0, r) / (std::max)(rows.stats(1, r), S(1));
  }
};

}}  // namespace pith::v0
