#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include <pith/attention/kv_view.hpp>
#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/kv/compact_options.hpp>
#include <pith/kv/detail/attention_match.hpp>
#include <pith/kv/detail/kept_head.hpp>
#include <pith/kv/detail/slab.hpp>
#include <pith/kv/kept_rows.hpp>
#include <pith/kv/kv_cache.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// The compaction of one kv head of one cache: scored, then solved for the rows that are to stay.
template <KvStorage T> class CompactHead {
 public:
  using S = arithmetic_t<T>;

  CompactHead(const KvCache<T>& cache, const LayerScale& layer, Index kv_head, ConstMatrixRef<S> queries, const CompactOptions& options)
      : cache_(&cache), layer_(layer), kv_head_(kv_head), queries_(queries), options_(&options) {
    const std::span<const Position> positions = cache.positions(kv_head);
    order_.resize(positions.size());
    std::iota(order_.begin(), order_.end(), Index(0));
    const auto at = [positions](Index row) { return positions[static_cast<std::size_t>(row)]; };
    std::sort(order_.begin(), order_.end(), [&](Index a, Index b) { return at(a) < at(b); });
    if (options.end >= 0)
      std::erase_if(order_, [&](Index row) {
        if (at(row) >= options.end) after_.push_back(row);
        return at(row) >= options.end;
      });
    for (const Index row : order_) positions_.push_back(at(row));
  }

  /// Whether the layer is compacted at all: where a window hides rows, they stay as they are.
  bool solves() const { return layer_.window == 0 && !order_.empty(); }
  std::span<const Position> positions() const { return positions_; }
  const KeptHead<T>& kept() const { return kept_; }

  /// Scores of the rows before `end`, by age.
  std::vector<double> score(Index budget) {
    const MatchRows rows = widened();
    const AttentionMatch match(rows, *options_);
    std::vector<double> scores;
    sums_ = match.score(scores);
    if (options_->select == CompactOptions::Select::pursuit) {
      double rank = static_cast<double>(scores.size());
      std::fill(scores.begin(), scores.end(), 0.0);
      for (const Index row : match.pursue(sums_, budget)) scores[static_cast<std::size_t>(row)] = rank--;
    }
    return scores;
  }

  /// `stay`: rows by age, indices among the scored ones.
  void solve(std::span<const Index> stay) {
    std::vector<Index> rows;
    for (const Index r : stay) rows.push_back(order_[static_cast<std::size_t>(r)]);
    rows.insert(rows.end(), after_.begin(), after_.end());
    kept_ = KeptHead<T>(*cache_, kv_head_, rows);
    if (!solves() || stay.size() == order_.size() || (!options_->masses && !options_->values)) return;
    const MatchRows all = widened();
    const AttentionMatch match(all, *options_);
    const Index count = all.rows(), chunk = options_->chunk > 0 ? options_->chunk : count, d = all.keys.cols();
    for (std::size_t begin = 0, end = 0; begin < stay.size(); begin = end) {
      const Index first = stay[begin] / chunk * chunk, last = (std::min)(count, first + chunk);
      while (end < stay.size() && stay[end] < last) ++end;
      const MatchSolution solution = match.solve(sums_, first, last, stay.subspan(begin, end - begin));
      for (std::size_t i = begin; i < end; ++i) {
        const Index j = static_cast<Index>(i - begin);
        kept_.log_mass[i] += solution.log_mass[static_cast<std::size_t>(j)];
        const Vector<S> value = solution.values.row(j).template cast<S>();
        if (options_->values && last - first > static_cast<Index>(end - begin))
          narrow_value<T>(value.data(), kept_.values.data() + static_cast<Index>(i) * value_units<T>(d), d);
      }
    }
  }

 private:
  /// Rows and queries in double, rows by age.
  MatchRows widened() const {
    const Index d = cache_->shape().head_dim, n = static_cast<Index>(order_.size());
    const KvRun<T>& run = own_run(cache_->view(), kv_head_);
    MatchRows out{MatchMatrix(n, d), MatchMatrix(n, d), MatchVector::Zero(n), queries_.template cast<double>()};
    Vector<S> row(d);
    for (Index i = 0; i < n; ++i) {
      const Index r = order_[static_cast<std::size_t>(i)];
      widen_key(key_of(run, r), row.data(), d);
      out.keys.row(i) = row.template cast<double>();
      widen_value(value_of(run, r), row.data(), d);
      out.values.row(i) = row.template cast<double>();
      if (run.log_mass != nullptr) out.log_mass[i] = double(run.log_mass[r]);
      if (!out.keys.row(i).allFinite() || !out.values.row(i).allFinite())
        raise<ShapeError>("pith::compact: the row of position ", run.positions[r], " of kv head ", kv_head_,
                          " is not finite: evict it (drop()) before compaction");
    }
    if (!out.queries.allFinite()) raise<ShapeError>("pith::compact: a reference query of kv head ", kv_head_, " is not finite");
    out.scale = layer_.scale > 0 ? layer_.scale : 1 / std::sqrt(static_cast<double>(d));
    out.softcap = layer_.softcap;
    return out;
  }

  const KvCache<T>* cache_;
  LayerScale layer_;
  Index kv_head_;
  ConstMatrixRef<S> queries_;
  const CompactOptions* options_;
  std::vector<Index> order_, after_;  ///< rows before `end` by age, rows from it on
  std::vector<Position> positions_;   ///< of the rows before it
  MatchSums sums_;
  KeptHead<T> kept_;
};

}}}  // namespace pith::v0::detail
