#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
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
#include <pith/core/check.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/activation.hpp>

// Attention of one tile of queries to one kv head, on top of the kernels.

namespace pith { inline namespace v0 { namespace detail {

/// How scores become weights: see AttendOptions.
template <class S> struct ScoreNumbers { S n = 0, scale = 0, softcap = 0, skip_below = 0; };

/// Attention of up to attention_tile queries to one kv head: scores of all rows, then weights and values block by block.
///
///   out = Σ_r exp(x_r - top) v_r / (n exp(-top) + Σ_r exp(x_r - top)), x_r = q·k_r/√d (scaled and capped) + log_mass_r, top = max x
template <class T> class AttendTile {
 public:
  using S = arithmetic_t<T>;
  using V = Simd<S>;
  using Key = coded_t<typename KvParts<T>::Key>;
  using Value = coded_t<typename KvParts<T>::Value>;
  static constexpr bool turns_keys = Coded<typename KvParts<T>::Key>::rotated, turns_values = Coded<typename KvParts<T>::Value>::rotated;

  AttendTile(const TileMemory<S>& memory, S* scratch, std::span<const KvRun<T>> runs, Index group, const VisibilityLimits& limits,
             const ScoreNumbers<S>& numbers)
      : m_(memory),
        scratch_(scratch),
        runs_(runs),
        group_(group),
        limits_(limits),
        numbers_(numbers),
        keys_(memory.head_dim),
        values_(memory.head_dim) {}

  /// Loads the queries of the head: [tokens] rows of q, each with `group` queries of head_dim numbers one after the other. `sight`: the
  /// newest position that each token sees; nullptr: its own.
  void load_queries(const S* q, Index q_stride, const S* sinks, Index sinks_stride, Index tokens, Position first, const Position* sight) {
    tokens_ = tokens;
    first_ = first;
    sight_ = sight;
    scale_queries(q, q_stride, at(m_.queries));
    if (sinks != nullptr) scale_queries(sinks, sinks_stride, at(m_.sink_queries));
  }

  /// Computes the tile; `next` is the address of the rows that will be read after this head.
  void run(const T* next) {
    next_ = next;
    reads_ = {};
    score_all();
    for (Index l = 0; l < lanes(); ++l) settle_top(l);
    std::fill_n(at(m_.sums), lanes() * m_.padded, S(0));
    std::fill_n(at(m_.mass), lanes() * attention_block, S(0));
    if (skips()) return run_skipping();
    for_seen_blocks([this](const KvRun<T>& run, Index row, Index count, Index block, const QueryRange& seen) {
      reads_.rows += count;
      reads_.values += count;
      for (Index l = seen.begin * group_; l < seen.end * group_; ++l) weigh(l, block);
      add_values(run, row, count, block, seen.begin * group_, seen.end * group_);
    });
    for (Index l = 0; l < lanes(); ++l) {
      add_masses(l);
      check_sums(l);
    }
  }

  void store_output(S* out, Index out_stride) const {
    for (Index l = 0; l < lanes(); ++l) {
      S* const features = out + l / group_ * out_stride + l % group_ * m_.head_dim;
      values_.restore(at(m_.sums) + l * m_.padded, skips() ? inverse_of_read()[l] : at(m_.inverse)[l], features);
      if constexpr (turns_values) rotate_row(features, m_.head_dim, rotation_block(m_.head_dim));
    }
  }

  /// Softmax rows of the last run, from query `first` of the tile on: [(tokens - first)*group, rows].
  ConstMatrixRef<S> weights(Index first) {
    Index begin = 0;  // first block of the last run
    for (const KvRun<T>& run : runs_.first(runs_.size() - 1)) begin += blocks_of(run);
    const Index end = begin + blocks_of(runs_.back());
    for (Index l = first * group_; l < lanes(); ++l) {
      const Index t = l / group_;
      const typename V::Packet scale = V::broadcast(at(m_.inverse)[l]);
      for (Index block = begin; block < end; ++block) {
        S* const w = weight(l, block);
        if (const QueryRange seen = queries_that_see()[block]; t < seen.begin || t >= seen.end) {
          std::fill_n(w, attention_block, S(0));
        } else {
          for (Index i = 0; i < attention_block; i += V::width) V::store(w + i, V::mul(V::load(w + i), scale));
        }
      }
    }
    return {weight(first * group_, begin), lanes() - first * group_, runs_.back().rows, m_.row_stride};
  }

  /// Rows that at least one query of the tile saw, and those whose values were read.
  const AttentionReads& reads() const { return reads_; }

  ConstVectorRef<S> log_sums(Index first) {
    for (Index l = first * group_; l < lanes(); ++l) at(m_.log_sum)[l] = at(m_.top)[l] + std::log(at(m_.total)[l]);
    return {at(m_.log_sum) + first * group_, lanes() - first * group_};
  }

  ConstMatrixRef<S> shown_queries(const S* q, Index q_stride, Index first) {
    for (Index t = first; t < tokens_; ++t) std::copy_n(q + t * q_stride, group_ * m_.head_dim, at(m_.shown) + t * group_ * m_.head_dim);
    return {at(m_.shown) + first * group_ * m_.head_dim, (tokens_ - first) * group_, m_.head_dim};
  }

 private:
  Index lanes() const { return tokens_ * group_; }
  S* at(Index offset) const { return scratch_ + offset; }
  S* weight(Index lane, Index block) const { return at(m_.weights) + lane * m_.row_stride + block * attention_block; }
  QueryRange* queries_that_see() const { return reinterpret_cast<QueryRange*>(at(m_.queries_that_see)); }

  static const Key* key_at(const KvRun<T>& run, Index r) { return reinterpret_cast<const Key*>(key_of(run, r)); }
  static const Value* value_at(const KvRun<T>& run, Index r) { return reinterpret_cast<const Value*>(value_of(run, r)); }
  static Index value_stride(const KvRun<T>& run) { return run.steps_of_values() * Index(sizeof(T)) / Index(sizeof(Value)); }

  static Index blocks_of(const KvRun<T>& run) { return (run.rows + attention_block - 1) / attention_block; }

  /// Calls f(run, first row, rows, block) for the blocks of every run; blocks are numbered across runs.
  template <class F> void for_blocks(F&& f) const {
    Index block = 0;
    for (const KvRun<T>& run : runs_)
      for (Index row = 0; row < run.rows; row += attention_block, ++block) f(run, row, (std::min)(attention_block, run.rows - row), block);
  }

  void scale_queries(const S* q, Index stride, S* to) const {
    const S scale = numbers_.scale > 0 ? numbers_.scale : S(1) / std::sqrt(static_cast<S>(m_.head_dim));
    for (Index l = 0; l < lanes(); ++l) {
      const S* features = q + l / group_ * stride + l % group_ * m_.head_dim;
      if constexpr (turns_keys) {
        std::copy_n(features, m_.head_dim, at(m_.shown));
        rotate_row(at(m_.shown), m_.head_dim, rotation_block(m_.head_dim));
        features = at(m_.shown);
      }
      keys_.arrange(features, scale, to + l * m_.padded);
    }
  }

  void score_all() {
    constexpr S lowest = -std::numeric_limits<S>::infinity();
    std::fill_n(at(m_.largest), lanes() * V::width, lowest);
    for_blocks([&](const KvRun<T>& run, Index row, Index count, Index block) {
      const VisibleRows<T> visible(run, row, count, first_, sight_, limits_);
      const QueryRange seen = visible.queries_that_see(tokens_);
      queries_that_see()[block] = seen;
      if (seen.begin == seen.end) return;
      score(run, row, count, block, seen.begin * group_, seen.end * group_);
      if (numbers_.softcap > 0) cap_scores(count, block, seen.begin * group_, seen.end * group_);
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
    });
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
    with_rows(keys_, {key_at(run, row + first), run.stride * Index(sizeof(T)) / Index(sizeof(Key)), last - first, ahead}, end - begin,
              [&](auto rows) {
                if constexpr (std::is_same_v<decltype(rows), Rows<S>>)
                  if (whole && end - begin >= ColumnScores<S>::worth_turning) {
                    ColumnScores<S>::turn(rows, m_.padded, at(m_.columns));
                    return ColumnScores<S>::score(queries + begin * m_.padded, m_.padded, end - begin, at(m_.columns), weight(begin, block),
                                                  m_.row_stride);
                  }
                for_query_groups(end - begin, [&](Index group, auto size) {
                  const Index lane = begin + group;
                  kernel_of<ScoreKernel, size()>(rows).run(queries + lane * m_.padded, m_.padded, rows, weight(lane, block) + first,
                                                           m_.row_stride);
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
      for_query_groups(end - begin, [&](Index group, auto size) {
        const Index lane = begin + group;
        kernel_of<ValueKernel, size()>(rows).run(weights_of(lane), weight_stride, rows, at(m_.sums) + lane * m_.padded, m_.padded);
        rows.ahead = nullptr;
      });
    });
  }

  template <template <class, int> class Kernel, int Q, class U> static Kernel<U, Q> kernel_of(const Rows<U>&) { return {}; }

  /// Calls f with the rows: in place, widened once for many queries, or padded.
  template <class E, class F> void with_rows(const RowLayout<E>& layout, const Rows<E>& rows, Index queries, F&& f) {
    constexpr Index few = PlainStorage<E> ? 8 : 4;
    if constexpr (RowLayout<E>::in_registers)
      if (layout.whole && (std::is_same_v<E, S> || queries <= few)) return f(rows);
    layout.stage(rows.first, rows.stride, rows.count, at(m_.stage), rows.ahead);
    f(Rows<S>{at(m_.stage), m_.padded, rows.count, nullptr});
  }

  bool skips() const { return numbers_.skip_below > 0; }

  /// Scoring leaves the memory of the queries free: for the least weight that each lane reads, and 1 / (n + Σ exp) over what it reads.
  S* least() const { return at(m_.queries); }
  S* inverse_of_read() const { return at(m_.sink_queries); }

  /// Weighs all rows, then reads the values that some lane needs. Others count as weight 0 in the sums, so the bits of a lane depend on its
  /// own weights alone.
  void run_skipping() {
    for_seen_blocks([this](const KvRun<T>&, Index, Index, Index block, const QueryRange& seen) {
      for (Index l = seen.begin * group_; l < seen.end * group_; ++l) weigh(l, block);
    });
    Index rows = 0;
    for (const KvRun<T>& run : runs_) rows += run.rows;
    for (Index l = 0; l < lanes(); ++l) {
      const WeightFloor<S> floor = FloorSearch<S>::run(numbers_.skip_below, rows, [&](auto&& see) {
        for_seen_blocks([&](const KvRun<T>&, Index, Index, Index block, const QueryRange& seen) {
          if (l >= seen.begin * group_ && l < seen.end * group_) see(weight(l, block), block);
        });
      });
      least()[l] = floor.least;
      add_masses(l);
      inverse_of_read()[l] = floor.skipped == S(0) ? at(m_.inverse)[l] : S(1) / (at(m_.total)[l] - floor.skipped);
    }
    Gathered gathered;
    for_seen_blocks([&](const KvRun<T>& run, Index row, Index count, Index block, const QueryRange& seen) {
      std::uint32_t needed = rows_needed(block, seen);
      if (count < attention_block) needed &= (std::uint32_t(1) << count) - 1;
      reads_.rows += count;
      if (std::popcount(needed) > attention_block - attention_block / 4) {  // in place, as without skipping, behind what came before
        add_all_gathered(gathered);
        reads_.values += count;
        return add_masked(run, row, count, block);
      }
      reads_.values += std::popcount(needed);
      for (; needed != 0; needed &= needed - 1) {
        const int i = std::countr_zero(needed);
        gathered.add(value_at(run, row + i), value_stride(run), block * attention_block + i);
        if (gathered.count == gathered.at.size()) add_gathered(gathered, attention_block);
      }
    });
    add_all_gathered(gathered);
    for (Index l = 0; l < lanes(); ++l) check_sums(l);
  }

  /// Rows of values on their way into the caches: while a block of them is added, the next one is fetched.
  struct Gathered {
    std::array<const Value*, 2 * std::size_t(attention_block)> at;
    std::array<Index, 2 * std::size_t(attention_block)> place;  ///< of their weights
    std::size_t count = 0;

    void add(const Value* row, Index units, Index where) {
      for (Index i = 0; i < units; i += Index(64 / sizeof(Value))) fetch(row + i);
      at[count] = row;
      place[count++] = where;
    }
    void drop(std::size_t n) {
      std::copy(at.begin() + n, at.begin() + count, at.begin());
      std::copy(place.begin() + n, place.begin() + count, place.begin());
      count -= n;
    }
  };

  /// A bit for each row of the block that a lane reads.
  std::uint32_t rows_needed(Index block, const QueryRange& seen) const {
    S needed[std::size_t(attention_block)] = {};
    for (Index l = seen.begin * group_; l < seen.end * group_; ++l) {
      const typename V::Packet floor = V::broadcast(least()[l]);
      for (Index i = 0; i < attention_block; i += V::width) {
        const typename V::Packet reads = V::select(V::less(V::load(weight(l, block) + i), floor), V::zero(), V::broadcast(S(1)));
        V::store(needed + i, V::larger(V::load(needed + i), reads));
      }
    }
    std::uint32_t bits = 0;
    for (std::uint32_t i = 0; i < attention_block; ++i) bits |= std::uint32_t(needed[i] != S(0)) << i;
    return bits;
  }

  void add_all_gathered(Gathered& gathered) {
    while (gathered.count > 0) add_gathered(gathered, (std::min)(attention_block, static_cast<Index>(gathered.count)));
  }

  /// Adds a whole block to the sums of all lanes; what a lane does not read has weight 0.
  void add_masked(const KvRun<T>& run, Index row, Index count, Index block) {
    const QueryRange seen = queries_that_see()[block];
    for (Index l = seen.begin * group_; l < seen.end * group_; ++l) {
      const typename V::Packet floor = V::broadcast(least()[l]);
      for (Index i = 0; i < attention_block; i += V::width) {
        const typename V::Packet e = V::load(weight(l, block) + i);
        V::store(at(m_.mass) + l * attention_block + i, V::select(V::less(e, floor), V::zero(), e));
      }
    }
    add_rows(
        run, row, count, seen.begin * group_, seen.end * group_, [this](Index lane) { return at(m_.mass) + lane * attention_block; },
        attention_block);
  }

  /// Adds the first `count` gathered rows to the sums of all lanes; their weights go where the masses were.
  void add_gathered(Gathered& gathered, Index count) {
    for (Index l = 0; l < lanes(); ++l) {
      S* const w = at(m_.mass) + l * attention_block;
      for (Index i = 0; i < count; ++i) {
        const Index place = gathered.place[std::size_t(i)], block = place / attention_block;
        const QueryRange seen = queries_that_see()[block];
        const S e = at(m_.weights)[l * m_.row_stride + place];
        w[i] = l < seen.begin * group_ || l >= seen.end * group_ || e < least()[l] ? S(0) : e;
      }
    }
    const auto add = [&](const auto& rows) {
      for_query_groups(lanes(), [&](Index lane, auto size) {
        value_kernel<size()>(rows).run(at(m_.mass) + lane * attention_block, attention_block, rows, at(m_.sums) + lane * m_.padded,
                                       m_.padded);
      });
    };
    if (RowLayout<Value>::in_registers && values_.whole) {
      if constexpr (RowLayout<Value>::in_registers) add(GatheredRows<Value>{gathered.at.data(), count});
    } else {
      for (Index i = 0; i < count; ++i) values_.stage(gathered.at[std::size_t(i)], 0, 1, at(m_.stage) + i * m_.padded);
      add(Rows<S>{at(m_.stage), m_.padded, count, nullptr});
    }
    gathered.drop(std::size_t(count));
  }

  template <int Q, class U> static ValueKernel<U, Q> value_kernel(const Rows<U>&) { return {}; }
  template <int Q, class U> static ValueKernel<U, Q> value_kernel(const GatheredRows<U>&) { return {}; }

  /// for_blocks() over those that some query sees.
  template <class F> void for_seen_blocks(F&& f) const {
    for_blocks([&](const KvRun<T>& run, Index row, Index count, Index block) {
      if (const QueryRange seen = queries_that_see()[block]; seen.begin != seen.end) f(run, row, count, block, seen);
    });
  }

  /// Sets the number subtracted from every logit of a lane. NaN logits still reach the weights, even if the maximum drops them.
  void settle_top(Index lane) {
    S top = V::largest(V::load(at(m_.largest) + lane * V::width));
    if (numbers_.n > 0) top = (std::max)(top, S(0));
    at(m_.top)[lane] = top == -std::numeric_limits<S>::infinity() ? S(0) : top;
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
    at(m_.inverse)[lane] = sum == S(0) ? S(0) : S(1) / sum;
  }

  void check_sums(Index lane) {
    const S* const values = at(m_.sums) + lane * m_.padded;
    typename V::Packet odd = V::zero();  // becomes NaN if any number is not finite
    for (Index i = 0; i < m_.padded; i += V::width) odd = V::add(odd, V::sub(V::load(values + i), V::load(values + i)));
    if (!(V::sum(odd) == S(0))) [[unlikely]]
      sum_again(lane);
  }

  /// Sums a lane again without the rows of weight 0: they must add nothing, but 0 * inf would.
  void sum_again(Index lane) {
    S* const sums = at(m_.sums) + lane * m_.padded;
    std::fill_n(sums, m_.padded, S(0));
    for_blocks([&](const KvRun<T>& run, Index row, Index count, Index block) {
      const QueryRange seen = queries_that_see()[block];
      if (lane < seen.begin * group_ || lane >= seen.end * group_) return;
      for (Index i = 0; i < count; ++i) {
        if (weight(lane, block)[i] == S(0) || (skips() && weight(lane, block)[i] < least()[lane])) continue;
        values_.stage(value_at(run, row + i), value_stride(run), 1, at(m_.stage));
        ValueKernel<S, 1>::run(weight(lane, block) + i, m_.row_stride, {at(m_.stage), m_.padded, 1, nullptr}, sums, m_.padded);
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
