#pragma once

#include <algorithm>
#include <limits>

#include <pith/kv/layer_scores.hpp>
#include <pith/kv/policy.hpp>
#include <pith/kv/query_window.hpp>

namespace pith::inline v0 {

/// H2O: keeps the rows that attracted most attention so far, plus the newest.
///
/// A row's score is the softmax weight it received from every query since it was appended, its own included, summed over the query heads
/// that share the kv head; it never decays, so a long prompt's favourites stay for long.
///
/// Keeps    `heavy` rows by accumulated attention and the newest `recent`
/// Needs    attention weights
/// Cost     one add per weight while watching, one look at every score when evicting
/// Paper    H2O: arXiv:2306.14048
struct HeavyHitter {
  Index heavy = 512;   ///< rows kept for their accumulated attention (k of the paper's H2 set)
  Index recent = 512;  ///< newest rows, always kept
  Index budget() const { return detail::sum_of_rows(heavy, recent); }
  void check(const AttentionShape&) const {
    detail::check_count("HeavyHitter", "heavy", heavy, 0);
    detail::check_count("HeavyHitter", "recent", recent, 0, detail::most_rows - heavy);
    detail::check_count("HeavyHitter", "heavy + recent", heavy + recent, 1);
  }
  Index stats(const AttentionShape&) const { return 1; }
  template <class S> void observe(const AttentionBlock<S>& seen, const KvRows<S>&, MatrixRef<S> stats) const {
    add_rows<S>(seen.weights, stats.topRows(1));
  }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    keep_newest<S>(rows, recent, rows.stats.row(0).data(), out);
  }
};

/// Observed attention: the weight a row received from a prompt, per query of this prompt that could see it; so an early row has no
/// advantage of age, and a row of an earlier turn none of queries that went before.
///
/// Keeps    `keep` rows by average attention, when a prompt ends
/// Needs    attention weights of the whole prompt
/// Cost     one add per weight while watching
/// Paper    after H2O, arXiv:2306.14048, as its one-shot form is measured
struct ObservedAttention {
  Index keep = 1024;  ///< rows kept
  Index budget() const { return keep; }
  void check(const AttentionShape&) const { detail::check_count("ObservedAttention", "keep", keep, 1); }
  PolicyTraits traits() const { return {.prompt_only = true}; }
  Index stats(const AttentionShape&) const { return 2; }  // the weight received, and how many weights that is the sum of
  template <class S> void observe(const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S> stats) const {
    add_rows<S>(seen.weights, stats.topRows(1));
    const Index group = rows.shape.group(), end = seen.first_row + seen.weights.rows() / group;
    for (Index r = 0; r < end; ++r) stats(1, r) += static_cast<S>(group * (end - (std::max)(r, seen.first_row)));
  }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    for (Index r = 0; r < rows.size(); ++r) out[r] = rows.stats(0, r) / (std::max)(rows.stats(1, r), S(1));
  }
};

/// TOVA: drops what the newest query looks at least, the same row for all heads of a layer, be it the newest.
///
/// Keeps    `keep` rows by the last query's attention, averaged over all heads
/// Needs    attention weights of the last query
/// Cost     one add per weight of one query; one look at every score when evicting
/// Paper    TOVA: arXiv:2401.06104
struct Tova {
  Index keep = 1024;  ///< rows kept
  Index budget() const { return keep; }
  void check(const AttentionShape&) const { detail::check_count("Tova", "keep", keep, 1); }
  PolicyTraits traits() const { return {.keeps_newest = false, .watches = 1}; }
  Index stats(const AttentionShape&) const { return 1; }
  template <class S> void observe(const AttentionBlock<S>& seen, const KvRows<S>&, MatrixRef<S> stats) const {
    stats.row(0).setZero();
    add_rows<S>(seen.weights, stats.topRows(1));
  }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const { out = rows.stats.row(0); }
  /// All heads drop the same rows, so all hold the same tokens in the same order.
  template <class S> void combine(LayerScores<S>& layer) const {
    for (Index h = 1; h < layer.num_heads(); ++h) layer.scores(0) += layer.scores(h);
    for (Index h = 1; h < layer.num_heads(); ++h) layer.scores(h) = layer.scores(0);
  }
};

/// Scissorhands: a query marks a row it looks at more than at the average one; the rows with the fewest marks leave, half of all at once.
///
/// Marks are counted over the last `history` queries, to half of that: counts move on in two halves.
///
/// Keeps    half of `keep` by marks, the newest `recent` among them; then fills up again
/// Needs    attention weights
/// Cost     one compare and add per weight while watching; one eviction every keep/2 tokens
/// Paper    Scissorhands: arXiv:2305.17118
struct Scissorhands {
  Index keep = 1024;    ///< rows kept at most (B of the paper)
  Index history = 400;  ///< queries whose marks count (w)
  Index recent = 10;    ///< newest rows, always kept (r)
  Index budget() const { return keep; }
  void check(const AttentionShape&) const {
    detail::check_count("Scissorhands", "keep", keep, 1);
    detail::check_count("Scissorhands", "history", history, 2);
    detail::check_count("Scissorhands", "recent", recent, 0, retain(), "half of keep is left after an eviction");
  }
  Index retain() const { return keep - keep / 2; }        // m = B/2 leave at once
  Index stats(const AttentionShape&) const { return 3; }  // marks of this half of the history, of the one before, and which half it is
  template <class S> void observe(const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S> stats) const {
    const Index group = rows.shape.group(), half_history = (std::max)(Index(1), history / 2);
    for (Index q = 0; q < seen.weights.rows(); ++q) {
      const Position position = rows.positions[static_cast<std::size_t>(seen.first_row + q / group)];
      const S half = static_cast<S>(position / half_history);
      const auto sees = [&](Position p) { return p <= position; };
      const auto visible = std::count_if(rows.positions.begin(), rows.positions.end(), sees);
      for (Index r = 0; r < rows.size(); ++r) {
        if (const S passed = half - stats(2, r); passed > S(0)) {
          stats(1, r) = passed == S(1) ? stats(0, r) : S(0);
          stats(0, r) = S(0);
          stats(2, r) = half;
        }
        if (seen.weights(q, r) * static_cast<S>(visible) > S(1)) stats(0, r) += S(1);
      }
    }
  }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    out = rows.stats.row(0) + rows.stats.row(1);
    keep_newest(rows, recent, out);
  }
};

/// SnapKV: when a prompt ends, keeps what its last queries look at, and the neighbours of it.
///
/// Keeps    `keep` rows by pooled attention of the last `window` queries, those tokens among them
/// Needs    attention weights of the last `window` queries
/// Cost     one add per weight of the window; `kernel` looks per row, once; memory for `window` numbers a row, group() times as many for
///          Group::largest, so that a prompt may come in pieces
/// Paper    SnapKV: arXiv:2404.14469
struct SnapKv {
  enum class Pool : std::uint8_t { average, largest };
  enum class Group : std::uint8_t { mean, largest };
  Index keep = 1024;          ///< rows kept, the window included
  Index window = 32;          ///< last queries watched; their tokens stay
  Index kernel = 5;           ///< rows pooled together, odd
  Pool pool = Pool::average;  ///< averages count what lies past the ends as 0
  Group group = Group::mean;  ///< how the query heads of a kv head agree, before pooling
  Index budget() const { return keep; }
  void check(const AttentionShape&) const {
    detail::check_count("SnapKv", "keep", keep, 1);
    detail::check_count("SnapKv", "window", window, 1, keep, "the window is part of keep");
    detail::check_count("SnapKv", "kernel", kernel, 1);
    if (kernel % 2 == 0)
      raise<ShapeError>(detail::text("pith::SnapKv: kernel is ", kernel, ", expected an odd number: as many rows before as behind"));
  }
  PolicyTraits traits() const { return {.prompt_only = true, .ordered = true, .watches = window}; }
  Index stats(const AttentionShape& shape) const { return sums(shape) * (1 + window); }
  Index memory(const AttentionShape&) const { return QueryWindow<float>::memory_size; }
  template <class S> void observe(const AttentionBlock<S>& seen, const KvRows<S>& rows, MatrixRef<S> stats, VectorRef<S> memory) const {
    const Index n = sums(rows.shape), heads = rows.shape.group();
    QueryWindow<S> last(window, memory);
    const auto slot = [&](Index row) { return stats.middleRows(n * (1 + last.slot(row)), n); };
    last.slide(seen, rows, [&](Index first, Index end) {
      stats.topRows(n).setZero();
      for (Index row = first; row < end; ++row) stats.topRows(n) += slot(row);
    });
    for (Index q = 0; q < seen.weights.rows(); q += heads) {
      auto one = slot(seen.first_row + q / heads);
      one = seen.weights.middleRows(q, n);
      for (Index g = n; g < heads; ++g) one.row(0) += seen.weights.row(q + g);
      stats.topRows(n) += one;
    }
  }
  template <class S> void score(const KvRows<S>& rows, VectorRef<S> out) const {
    const Index candidates = (std::max)(Index(0), rows.size() - window), reach = kernel / 2;
    const Index n = sums(rows.shape), added = window * rows.shape.group() / n;  // weights in a sum
    for (Index r = 0; r < candidates; ++r) rows.scratch[r] = rows.stats.col(r).head(n).maxCoeff() / static_cast<S>(added);
    for (Index r = 0; r < candidates; ++r) {
      const Index first = (std::max)(Index(0), r - reach), last = (std::min)(candidates - 1, r + reach);
      const ConstVectorRef<S> seen(rows.scratch + first, last - first + 1);
      out[r] = pool == Pool::average ? seen.sum() / static_cast<S>(2 * reach + 1) : seen.maxCoeff();
    }
    out.tail(rows.size() - candidates).setConstant(std::numeric_limits<S>::infinity());
  }

 private:
  Index sums(const AttentionShape& shape) const { return group == Group::mean ? 1 : shape.group(); }
};

}  // namespace pith::inline v0
