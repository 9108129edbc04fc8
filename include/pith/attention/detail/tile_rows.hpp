#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>

#include <pith/attention/detail/attend_kernel.hpp>
#include <pith/attention/detail/score_columns.hpp>
#include <pith/attention/detail/stored_rows.hpp>
#include <pith/attention/detail/tile_memory.hpp>
#include <pith/attention/detail/visible_rows.hpp>
#include <pith/attention/detail/weight_floor.hpp>
#include <pith/attention/kv_view.hpp>
#include <pith/attention/reads.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>
#include <pith/nn/activation.hpp>

// What attention does with blocks of rows: scores, weights, sums of values.

namespace pith { inline namespace v0 { namespace detail {

/// How scores become weights: see AttendOptions.
template <class S> struct ScoreNumbers { S n = 0, scale = 0, softcap = 0, skip_below = 0; };

struct EveryBlock {
  bool operator()(Index) const { return true; }
};

/// The rows that a tile of queries reads in one kv head, and its scratch. A lane is one query of one head of the group.
template <class T> struct TileRows {
  using S = arithmetic_t<T>;
  using V = Simd<S>;
  using Key = coded_t<typename KvParts<T>::Key>;
  using Value = coded_t<typename KvParts<T>::Value>;
  static constexpr bool turns_keys = Coded<typename KvParts<T>::Key>::rotated, turns_values = Coded<typename KvParts<T>::Value>::rotated;

  TileRows(const TileMemory<S>& memory, S* scratch, std::span<const KvRun<T>> runs, Index group, const VisibilityLimits& limits,
           const ScoreNumbers<S>& numbers)
      : m_(memory),
        scratch_(scratch),
        runs_(runs),
        group_(group),
        limits_(limits),
        numbers_(numbers),
        keys_(memory.head_dim),
        values_(memory.head_dim) {}

  Index lanes() const { return tokens_ * group_; }
  S* at(Index offset) const { return scratch_ + offset; }
  S* weight(Index lane, Index block) const { return at(m_.weights) + lane * m_.row_stride + block * attention_block; }
  S* floors() const { return at(m_.floors); }                                                ///< the least weight that each lane reads
  S& spare(Index lane) const { return at(m_.log_sum)[lane]; }                                ///< what the weights of unread rows may sum to
  std::uint32_t* picked() const { return reinterpret_cast<std::uint32_t*>(at(m_.picked)); }  ///< room for the numbers of all rows
  QueryRange* queries_that_see() const { return reinterpret_cast<QueryRange*>(at(m_.queries_that_see)); }

  static const Key* key_at(const KvRun<T>& run, Index r) { return reinterpret_cast<const Key*>(key_of(run, r)); }
  static const Value* value_at(const KvRun<T>& run, Index r) { return reinterpret_cast<const Value*>(value_of(run, r)); }
  static Index key_stride(const KvRun<T>& run) { return run.stride * Index(sizeof(T)) / Index(sizeof(Key)); }
  static Index value_stride(const KvRun<T>& run) { return run.steps_of_values() * Index(sizeof(T)) / Index(sizeof(Value)); }

  Index all_blocks() const {
    Index blocks = 0;
    for (const KvRun<T>& run : runs_) blocks += blocks_of(run);
    return blocks;
  }
  static Index blocks_of(const KvRun<T>& run) { return (run.rows + attention_block - 1) / attention_block; }

  /// Calls f(run, first row, rows, block) for the blocks of every run; blocks are numbered across runs.
  template <class F> void for_blocks(F&& f) const {
    Index block = 0;
    for (const KvRun<T>& run : runs_)
      for (Index row = 0; row < run.rows; row += attention_block, ++block) f(run, row, (std::min)(attention_block, run.rows - row), block);
  }

  /// for_blocks() over those that some query sees.
  template <class F> void for_seen_blocks(F&& f) const {
    for_blocks([&](const KvRun<T>& run, Index row, Index count, Index block) {
      if (const QueryRange seen = queries_that_see()[block]; seen.begin != seen.end) f(run, row, count, block, seen);
    });
  }

  /// Calls f(lane) for the lanes that see a block, and makes the weights of the others 0.
  template <class F> void for_lanes(Index block, F&& f) const {
    const QueryRange seen = queries_that_see()[block];
    for (Index l = 0; l < lanes(); ++l) {
      if (l >= seen.begin * group_ && l < seen.end * group_) {
        f(l);
      } else {
        std::fill_n(weight(l, block), attention_block, S(0));
      }
    }
  }

  /// Calls f(run, row, count, block, visible rows, queries that see) for the blocks that some query sees, and notes which ones see others.
  /// wanted(block): only these.
  template <class F, class Wanted = EveryBlock> void for_visible_blocks(F&& f, Wanted&& wanted = {}) {
    for_blocks([&](const KvRun<T>& run, Index row, Index count, Index block) {
      if (!wanted(block)) return;
      const VisibleRows<T> visible(run, row, count, first_, sight_, limits_);
      const QueryRange seen = visible.queries_that_see(tokens_);
      queries_that_see()[block] = seen;
      if (seen.begin != seen.end) f(run, row, count, block, visible, seen);
    });
  }

  /// Scores of every row, for the lanes that see it.
  void score_all() {
    start_scores();
    for_visible_blocks([&](const KvRun<T>& run, Index row, Index count, Index block, const auto& visible, const QueryRange& seen) {
      reads_.keys += count;
      score(run, row, count, block, seen.begin * group_, seen.end * group_);
      if (numbers_.softcap > 0) cap_scores(count, block, seen.begin * group_, seen.end * group_);
      finish_scores(run, row, count, block, visible, seen);
    });
  }

  void start_scores() { std::fill_n(at(m_.largest), lanes() * V::width, -std::numeric_limits<S>::infinity()); }

  /// Adds masses, hides what a query must not see, and notes the largest.
  void finish_scores(const KvRun<T>& run, Index row, Index count, Index block, const VisibleRows<T>& visible, const QueryRange& seen) {
    constexpr S lowest = -std::numeric_limits<S>::infinity();
    for (Index t = seen.begin; t < seen.end; ++t) {
      bool hidden[attention_block];
      const bool some_hidden = visible.hidden(t, hidden);
      for (Index l = t * group_; l < (t + 1) * group_; ++l) {
        S* const w = weight(l, block);
        if (run.log_mass != nullptr)
          for (Index i = 0; i < count; ++i) w[i] += static_cast<S>(run.log_mass[row + i]);
        if (some_hidden)
          for (Index i = 0; i < count; ++i) w[i] = hidden[i] ? lowest : w[i];
        std::fill(w + count, w + attention_block, lowest);
        S* const largest = at(m_.largest) + l * V::width;
        typename V::Packet most = V::load(largest);
        for (Index i = 0; i < attention_block; i += V::width) most = V::larger(V::load(w + i), most);
        V::store(largest, most);
      }
    }
  }

  void cap_scores(Index count, Index block, Index begin, Index end) {
    const typename V::Packet cap = V::broadcast(numbers_.softcap), per_cap = V::broadcast(S(1) / numbers_.softcap);
    for (Index l = begin; l < end; ++l) {
      S* const w = weight(l, block);
      for (Index i = 0; i < count; i += V::width) V::store(w + i, soft_cap<S>(V::load(w + i), cap, per_cap));
    }
  }

  void score(const KvRun<T>& run, Index row, Index count, Index block, Index begin, Index end) {
    const Index sinks = std::clamp(run.sinks - row, Index(0), count);
    if (sinks > 0) score_rows(at(m_.sink_queries), run, row, 0, sinks, block, begin, end);
    if (sinks < count) score_rows(at(m_.queries), run, row, sinks, count, block, begin, end);
  }

  /// Scores the rows first .. last - 1 of a block.
  void score_rows(const S* queries, const KvRun<T>& run, Index row, Index first, Index last, Index block, Index begin, Index end) {
    const Index next = row + attention_block;
    const Key* const ahead = next < run.rows ? key_at(run, next) : reinterpret_cast<const Key*>(run.values);
    const bool whole = first == 0 && (last == attention_block || row + last == run.rows);
    with_rows(keys_, {key_at(run, row + first), key_stride(run), last - first, ahead}, end - begin, [&](auto rows) {
      if constexpr (std::is_same_v<decltype(rows), Rows<S>>)
        if (whole && end - begin >= ColumnScores<S>::worth_turning) {
          ColumnScores<S>::turn(rows, m_.padded, at(m_.columns));
          return ColumnScores<S>::score(queries + begin * m_.padded, m_.padded, end - begin, at(m_.columns), weight(begin, block),
                                        m_.row_stride);
        }
      for_query_groups<typename decltype(rows)::Element>(end - begin, [&](Index group, auto size) {
        const Index lane = begin + group;
        kernel_of<ScoreKernel, size()>(rows).run(queries + lane * m_.padded, m_.padded, rows, weight(lane, block) + first, m_.row_stride);
        rows.ahead = nullptr;
      });
    });
  }

  /// Rows beyond a block by which values are prefetched earlier: strips fetch the last of them late although they are needed soon.
  static constexpr Index fetch_lead = 8;

  void add_values(const KvRun<T>& run, Index row, Index count, Index block, Index begin, Index end) {
    add_rows(
        run, row, count, begin, end, [=, this](Index lane) { return weight(lane, block); }, m_.row_stride);
  }

  /// Adds rows to the sums of some lanes, whose weights are at weights_of(lane).
  template <class Weights>
  void add_rows(const KvRun<T>& run, Index row, Index count, Index begin, Index end, Weights&& weights_of, Index weight_stride) {
    const Index next = row + attention_block + fetch_lead;
    const Value* const ahead = next < run.rows ? value_at(run, next) : reinterpret_cast<const Value*>(next_);
    with_rows(values_, {value_at(run, row), value_stride(run), count, ahead}, end - begin, [&](auto rows) {
      for_query_groups<typename decltype(rows)::Element>(end - begin, [&](Index group, auto size) {
        const Index lane = begin + group;
        kernel_of<ValueKernel, size()>(rows).run(weights_of(lane), weight_stride, rows, at(m_.sums) + lane * m_.padded, m_.padded);
        rows.ahead = nullptr;
      });
    });
  }

  /// Adds the values of all rows, which have their weights.
  void add_all_values() {
    for_seen_blocks([this](const KvRun<T>& run, Index row, Index count, Index block, const QueryRange& seen) {
      reads_.rows += count;
      reads_.values += count;
      add_values(run, row, count, block, seen.begin * group_, seen.end * group_);
    });
    reads_.needed = reads_.values;
  }

  template <template <class, int> class Kernel, int Q, template <class> class R, class U> static Kernel<U, Q> kernel_of(const R<U>&) {
    return {};
  }

  /// Calls f with the rows: in place, widened once for many queries, or padded.
  template <class E, class F> void with_rows(const RowLayout<E>& layout, const Rows<E>& rows, Index queries, F&& f) {
    constexpr Index few = PlainStorage<E> ? 8 : 4;
    if constexpr (RowLayout<E>::in_registers)
      if (layout.whole && (std::is_same_v<E, S> || queries <= few)) return f(rows);
    layout.stage(rows.first, rows.stride, rows.count, at(m_.stage), rows.ahead);
    f(Rows<S>{at(m_.stage), m_.padded, rows.count, nullptr});
  }

  /// Sets the number subtracted from every logit of a lane. NaN logits still reach the weights, even if the maximum drops them.
  void settle_top(Index lane) {
    S top = V::largest(V::load(at(m_.largest) + lane * V::width));
    if (numbers_.n > 0) top = (std::max)(top, S(0));
    at(m_.top)[lane] = top == -std::numeric_limits<S>::infinity() ? S(0) : top;
  }

  /// Between scores and weights.
  void start_weights() {
    for (Index l = 0; l < lanes(); ++l) settle_top(l);
    std::fill_n(at(m_.sums), lanes() * m_.padded, S(0));
    std::fill_n(at(m_.mass), lanes() * attention_block, S(0));
    std::fill_n(floors(), lanes(), WeightFloor<S>().least);
  }

  void weigh(Index lane, Index block) {
    const typename V::Packet top = V::broadcast(at(m_.top)[lane]);
    S* const w = weight(lane, block);
    S* const mass = at(m_.mass) + lane * attention_block;
    for (Index i = 0; i < attention_block; i += V::width) {
      const typename V::Packet e = V::exp_down(V::sub(V::load(w + i), top));
      V::store(w + i, e);
      V::store(mass + i, V::add(V::load(mass + i), e));
    }
  }

  void add_masses(Index lane) {
    const S* const mass = at(m_.mass) + lane * attention_block;
    typename V::Packet all = V::load(mass);
    for (Index i = V::width; i < attention_block; i += V::width) all = V::add(all, V::load(mass + i));
    S sum = V::sum(all);
    if (numbers_.n > 0) sum += numbers_.n * std::exp(-at(m_.top)[lane]);
    at(m_.total)[lane] = sum;
    at(m_.inverse)[lane] = at(m_.inverse_of_read)[lane] = sum == S(0) ? S(0) : S(1) / sum;
  }

  void check_sums(Index lane) {
    const S* const values = at(m_.sums) + lane * m_.padded;
    typename V::Packet odd = V::zero();  // becomes NaN if any number is not finite
    for (Index i = 0; i < m_.padded; i += V::width) odd = V::add(odd, V::sub(V::load(values + i), V::load(values + i)));
    if (!(V::sum(odd) == S(0))) [[unlikely]]
      sum_again(lane);
  }

  /// Sums a lane again without the rows below its floor: they must add nothing, but 0 * inf would.
  void sum_again(Index lane) {
    S* const sums = at(m_.sums) + lane * m_.padded;
    std::fill_n(sums, m_.padded, S(0));
    for_blocks([&](const KvRun<T>& run, Index row, Index count, Index block) {
      const QueryRange seen = queries_that_see()[block];
      if (lane < seen.begin * group_ || lane >= seen.end * group_) return;
      for (Index i = 0; i < count; ++i) {
        if (weight(lane, block)[i] < floors()[lane]) continue;
        values_.stage(value_at(run, row + i), value_stride(run), 1, at(m_.stage));
        ValueKernel<S, 1>::run(weight(lane, block) + i, m_.row_stride, Rows<S>{at(m_.stage), m_.padded, 1, nullptr}, sums, m_.padded);
      }
    });
  }

  const TileMemory<S>& m_;
  S* scratch_;
  std::span<const KvRun<T>> runs_;
  Index group_;
  VisibilityLimits limits_;
  ScoreNumbers<S> numbers_;
  RowLayout<Key> keys_;
  RowLayout<Value> values_;
  Index tokens_ = 0;
  Position first_ = 0;
  const Position* sight_ = nullptr;
  const T* next_ = nullptr;
  AttentionReads reads_;
};

}}}  // namespace pith::v0::detail
