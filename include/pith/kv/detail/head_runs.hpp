#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include <pith/attention/kv_view.hpp>
#include <pith/kv/detail/cache_rules.hpp>
#include <pith/kv/detail/slab.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// The runs that attention reads for each head: the rows of the prefix, if there is one, then the head's own.
template <KvStorage T> class HeadRuns {
 public:
  explicit HeadRuns(const CacheRules& rules)
      : heads_(rules.shape.num_kv_heads),
        counts_(rules.options.keep_masses),
        runs_(static_cast<std::size_t>(heads_ * (rules.options.prefix ? 2 : 1))) {
    const KvPrefix& prefix = rules.options.prefix;
    prefix.template check<T>(rules.shape, rules.options.layer);
    for (Index h = 0; prefix && h < heads_; ++h) {
      run(h, false) = prefix.template run<T>(rules.options.layer, h);
      prefix_scouts_.push_back(run(h, false).scouts);
    }
  }

  std::span<const KvRun<T>> all() const { return runs_; }

  /// Points a head's own run at its first `rows` rows in `slab`. The sinks' queries read the first `sinks` rows and the whole prefix; -1:
  /// there are no such queries. `scouts`: keys are read where their scout codes cannot exclude them.
  void set(Index h, const KvSlab<T>& slab, Index rows, Index sinks, bool scouts) {
    if (prefixed()) {
      run(h, false).sinks = sinks >= 0 ? run(h, false).rows : 0;
      run(h, false).scouts = scouts ? prefix_scouts_[static_cast<std::size_t>(h)] : nullptr;
    }
    run(h, true) = {.keys = slab.keys(h),
                    .values = slab.values(h),
                    .rows = rows,
                    .stride = slab.key_stride(),
                    .positions = slab.positions(h),
                    .log_mass = counts_ ? slab.log_masses(h) : nullptr,
                    .sinks = std::clamp(sinks, Index(0), rows),
                    .value_stride = slab.value_stride(),
                    .scouts = scouts ? slab.scouts(h) : nullptr};
  }

 private:
  bool prefixed() const { return static_cast<Index>(runs_.size()) > heads_; }
  KvRun<T>& run(Index h, bool own) { return runs_[static_cast<std::size_t>(prefixed() ? 2 * h + (own ? 1 : 0) : h)]; }

  Index heads_;
  bool counts_;  ///< a row counts as all the tokens it stands for
  std::vector<KvRun<T>> runs_;
  std::vector<const std::byte*> prefix_scouts_;  ///< [heads] of a prefix's rows
};

}}}  // namespace pith::v0::detail
