#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include <pith/attention/kv_view.hpp>
#include <pith/kv/detail/cache_rules.hpp>
#include <pith/kv/detail/slab.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// What attention reads of each head: the rows of the prefix, if there is one, then the head's own.
template <KvStorage T> class HeadRuns {
 public:
  explicit HeadRuns(const CacheRules& rules)
      : heads_(rules.shape.num_kv_heads),
        counts_(rules.options.keep_masses),
        runs_(static_cast<std::size_t>(heads_ * (rules.options.prefix ? 2 : 1))) {
    const KvPrefix& prefix = rules.options.prefix;
    prefix.template check<T>(rules.shape, rules.options.layer);
    for (Index h = 0; prefix && h < heads_; ++h) run(h, false) = prefix.template run<T>(rules.options.layer, h);
  }

  std::span<const KvRun<T>> all() const { return runs_; }

  /// The first `rows` rows of a head of `slab`; of these `sinks`, and the whole prefix, are read by the sinks' queries, unless it is -1.
  void set(Index h, const KvSlab<T>& slab, Index rows, Index sinks) {
    if (prefixed()) run(h, false).sinks = sinks >= 0 ? run(h, false).rows : 0;
    run(h, true) = {.keys = slab.keys(h),
                    .values = slab.values(h),
                    .rows = rows,
                    .stride = slab.row_stride(),
                    .positions = slab.positions(h),
                    .log_mass = counts_ ? slab.log_masses(h) : nullptr,
                    .sinks = std::clamp(sinks, Index(0), rows)};
  }

 private:
  bool prefixed() const { return static_cast<Index>(runs_.size()) > heads_; }
  KvRun<T>& run(Index h, bool own) { return runs_[static_cast<std::size_t>(prefixed() ? 2 * h + (own ? 1 : 0) : h)]; }

  Index heads_;
  bool counts_;  ///< rows count as the tokens they stand for
  std::vector<KvRun<T>> runs_;
};

}}}  // namespace pith::v0::detail
