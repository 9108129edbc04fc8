#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include <pith/kv/policy.hpp>
#include <pith/kv/query_window.hpp>

namespace pith { inline namespace v0 {

/// CSP, cross-self pruning: ranks the rows of a prompt of text and images in two lists, by attention from queries of the same kind of token
/// (self) and by attention from queries of other kinds (cross).
///
///   A_qr = exp(x_qr) / (n + Σ_r' exp(x_qr')), self_r = Σ_{q: kind q = kind r} A_qr, cross_r = Σ_{q: kind q ≠ kind r} A_qr
///
/// Both lists share one denominator. A row in both lists counts once, so a head may keep fewer rows than the budget.
///
/// Keeps    the newest `protects` rows, and of the other heavy + recent - protects: (1 - cross_ratio) by attention within a kind and
///          cross_ratio by attention across kinds, when a prompt ends
/// Needs    attention weights of the last `recent` queries, and token kinds
/// Cost     one add per weight of the window; two selections, once; memory for `recent` numbers a row, so that a prompt may come in pieces
/// Paper    CSP: arXiv:2412.04652
struct Csp {
  enum class Picks : std::uint8_t {
    either,  ///< rows in either list, as in the released code
    both,    ///< rows in both lists, as in the paper
  };
  Index heavy = 512;         ///< rows kept for the attention they received
  Index recent = 512;        ///< last queries watched
  Index protects = -1;       ///< newest rows always kept; -1: as many as `recent`
  double cross_ratio = 0.5;  ///< share of the rows chosen by the cross list
  double n = 1;              ///< the n of softmax_n
  Picks picks = Picks::either;
  Index budget() const { return sum_of_rows(heavy, recent); }
  void check(const AttentionShape&) const {
    check_count("Csp", "heavy", heavy, 0);
    check_count("Csp", "recent", recent, 1, max_head_rows - heavy);
    check_count("Csp", "protects", protects, -1, budget(), "protected rows are part of heavy + recent");
    check_share("Csp", "cross_ratio", cross_ratio);
    check_amount("Csp", "n", n);
  }
  PolicyTraits traits() const { return {.prompt_only = true, .watches = recent, .needs_log_sum = true, .uneven = true, .decides = true}; }
  Index stats(const AttentionShape&) const { return 2 + recent; }  // self, cross, then one slot per query of the window
  Index memory(const AttentionShape&) const { return QueryWindow<float>::memory_size; }

  template <class S> void observe(const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S> stats, VectorRef<S> memory) const {
    const Index group = rows.shape.group();
    QueryWindow<S> last(recent, memory);
    const auto slot = [&](Index query) { return stats.row(2 + last.slot(query)); };
    const auto kind = [&](Index row) { return rows.kinds[static_cast<std::size_t>(row)]; };
    const auto add = [&](Index query) {
      const auto one = slot(query);
      for (Index r = 0; r < rows.size(); ++r) stats(kind(r) == kind(query) ? 0 : 1, r) += one[r];
    };
    last.slide(seen, rows, [&](Index first, Index end) {
      stats.topRows(2).setZero();
      for (Index query = first; query < end; ++query) add(query);
    });
    for (Index q = 0; q < seen.weights.rows(); ++q) {
      const S share = S(1) / (S(1) + static_cast<S>(n) * std::exp(-seen.log_sum[q]));  // Σ exp(x) / (n + Σ exp(x))
      const Index query = seen.first_row + q / group;
      auto one = slot(query);
      if (q % group == 0) one.setZero();
      one += share * seen.weights.row(q);
      if (q % group == group - 1) add(query);
    }
  }

  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    constexpr S stays = std::numeric_limits<S>::infinity(), goes = -stays;
    const Index newest = (std::max)(Index(1), protects < 0 ? recent : protects), oldest = Index(rows.next) - newest;
    const auto is_protected = [&](Index r) { return rows.positions[static_cast<std::size_t>(r)] >= oldest; };
    const auto list = [&](Index by) {
      const VectorRef<S> score(rows.scratch, rows.size());
      for (Index r = 0; r < rows.size(); ++r) rows.scratch[r] = is_protected(r) ? goes : rows.stats(by, r);
      return score;
    };
    const double places = static_cast<double>(heavy + recent - newest);
    const auto by_self = static_cast<Index>(places * (1 - cross_ratio)), by_cross = static_cast<Index>(places * cross_ratio);
    for (Index r = 0; r < rows.size(); ++r) out[r] = is_protected(r) ? stays : goes;
    best_rows(rows, ConstVectorRef<S>(list(0)), by_self, [&](Index r) { out[r] = picks == Picks::either ? stays : S(1); });
    best_rows(rows, ConstVectorRef<S>(list(1)), by_cross, [&](Index r) {
      if (picks == Picks::either || out[r] == S(1)) out[r] = stays;
    });
    for (Index r = 0; r < rows.size(); ++r)
      if (out[r] == S(1)) out[r] = goes;
  }
};

}}  // namespace pith::v0
