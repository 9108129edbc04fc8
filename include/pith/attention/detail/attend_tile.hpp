#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>

#include <pith/attention/detail/attend_kernel.hpp>
#include <pith/attention/detail/score_columns.hpp>
#include <pith/attention/detail/visible_rows.hpp>
#include <pith/attention/kv_view.hpp>
#include <pith/core/check.hpp>
#include <pith/core/simd.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/activation.hpp>

// Attention of one tile of queries to one kv head, on top of the kernels.

namespace pith { inline namespace v0 { namespace detail {

inline constexpr Index attention_tile = 16;  ///< most queries attended together

/// The scratch memory of a worker while it attends a tile: offsets into one slice of S.
template <class S> struct TileMemory {
  Index lanes, head_dim, padded, row_stride, blocks;  ///< lanes: queries times group; padded: head_dim in whole packets
  Index queries, sink_queries, shown, sums, mass, largest, top, total, inverse, log_sum, stage, columns, weights, queries_that_see, size;

  TileMemory(const AttentionShape& shape, Index rows, Index tokens) {
    const auto product = [](Index a, Index b) { return checked_product("attend", a, b); };
    const Index width = Simd<S>::width, line = Index(Workspace::alignment / sizeof(S));
    check_size(rows);
    check_size(shape.head_dim);
    lanes = product(shape.group(), (std::min)(tokens, attention_tile));
    head_dim = shape.head_dim;
    padded = (head_dim + width - 1) / width * width;
    blocks = rows / attention_block + 2;                        // every run starts a new block
    row_stride = (blocks * attention_block / line | 1) * line;  // an odd number of lines: rows of weights do not share cache sets
    if (row_stride < blocks * attention_block) row_stride += 2 * line;
    size = 0;
    const auto take = [&](Index n) {
      const Index at = size;
      if (__builtin_add_overflow(size, (n + line - 1) / line * line, &size)) check_size(-1);
      return at;
    };
    queries = take(product(lanes, padded));
    sink_queries = take(product(lanes, padded));
    shown = take(product(lanes, head_dim));
    sums = take(product(lanes, padded));
    mass = take(product(lanes, attention_block));
    largest = take(product(lanes, width));
    top = take(lanes);
    total = take(lanes);
    inverse = take(lanes);
    log_sum = take(lanes);
    stage = take(product(attention_block, padded));
    columns = take(lanes < ColumnScores<S>::worth_turning ? 0 : product(attention_block, padded));
    weights = take(product(lanes, row_stride));
    queries_that_see = take(blocks);
    checked_product("attend", size, Index(sizeof(S)));
  }

 private:
  static void check_size(Index n) {
    constexpr Index most = (std::numeric_limits<Index>::max)() / 64;
    if (n < 0 || n > most) raise<CapacityError>("pith::attend: ", n, " rows or features are negative or too many");
  }
};

/// How scores become weights: see AttendOptions.
template <class S> struct ScoreNumbers { S n = 0, scale = 0, softcap = 0; };

/// Attention of up to attention_tile queries to one kv head: scores of all rows, then weights and values block by block.
///
///   out = Σ_r exp(x_r - top) v_r / (n exp(-top) + Σ_r exp(x_r - top)), x_r = q·k_r/√d (scaled and capped) + log_mass_r, top = max x
template <class T> class AttendTile {
 public:
  using S = arithmetic_t<T>;
  using V = Simd<S>;

  AttendTile(const TileMemory<S>& memory, S* scratch, std::span<const KvRun<T>> runs, Index group, const VisibilityLimits& limits,
             const ScoreNumbers<S>& numbers)
      : m_(memory), scratch_(scratch), runs_(runs), group_(group), limits_(limits), numbers_(numbers), layout_(memory.head_dim) {}

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
    score_all();
    for (Index l = 0; l < lanes(); ++l) settle_top(l);
    std::fill_n(at(m_.sums), lanes() * m_.padded, S(0));
    std::fill_n(at(m_.mass), lanes() * attention_block, S(0));
    for_blocks([this](const KvRun<T>& run, Index row, Index count, Index block) {
      const QueryRange seen = queries_that_see()[block];
      if (seen.begin == seen.end) return;
      for (Index l = seen.begin * group_; l < seen.end * group_; ++l) weigh(l, block);
      add_values(run, row, count, block, seen.begin * group_, seen.end * group_);
    });
    for (Index l = 0; l < lanes(); ++l) finish(l);
  }

  void store_output(S* out, Index out_stride) const {
    for (Index l = 0; l < lanes(); ++l)
      layout_.restore(at(m_.sums) + l * m_.padded, at(m_.inverse)[l], out + l / group_ * out_stride + l % group_ * m_.head_dim);
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

  static Index blocks_of(const KvRun<T>& run) { return (run.rows + attention_block - 1) / attention_block; }

  /// Calls f(run, first row, rows, block) for the blocks of every run; blocks are numbered across runs.
  template <class F> void for_blocks(F&& f) const {
    Index block = 0;
    for (const KvRun<T>& run : runs_)
      for (Index row = 0; row < run.rows; row += attention_block, ++block) f(run, row, (std::min)(attention_block, run.rows - row), block);
  }

  void scale_queries(const S* q, Index stride, S* to) const {
    const S scale = numbers_.scale > 0 ? numbers_.scale : S(1) / std::sqrt(static_cast<S>(m_.head_dim));
    for (Index l = 0; l < lanes(); ++l) layout_.arrange(q + l / group_ * stride + l % group_ * m_.head_dim, scale, to + l * m_.padded);
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
    const T* const ahead = next < run.rows ? run.keys + next * run.stride : run.values;
    const bool whole = first == 0 && (last == attention_block || row + last == run.rows);
    with_rows({run.keys + (row + first) * run.stride, run.stride, last - first, ahead}, end - begin, [&](auto rows) {
      if constexpr (std::is_same_v<decltype(rows), Rows<S>>)
        if (whole && end - begin >= ColumnScores<S>::worth_turning) {
          ColumnScores<S>::turn(rows, m_.padded, at(m_.columns));
          return ColumnScores<S>::score(queries + begin * m_.padded, m_.padded, end - begin, at(m_.columns), weight(begin, block),
                                        m_.row_stride);
        }
      for_query_groups(end - begin, [&](Index group, auto size) {
        const Index lane = begin + group;
        kernel_of<ScoreKernel, size()>(rows).run(queries + lane * m_.padded, m_.padded, rows, weight(lane, block) + first, m_.row_stride);
        rows.ahead = nullptr;
      });
    });
  }

  /// Rows beyond a block by which values are prefetched earlier: strips fetch the last of them late although they are needed soon.
  static constexpr Index fetch_lead = 8;

  void add_values(const KvRun<T>& run, Index row, Index count, Index block, Index begin, Index end) {
    const Index next = row + attention_block + fetch_lead;
    const T* const ahead = next < run.rows ? run.values + next * run.stride : next_;
    with_rows({run.values + row * run.stride, run.stride, count, ahead}, end - begin, [&](auto rows) {
      for_query_groups(end - begin, [&](Index group, auto size) {
        const Index lane = begin + group;
        kernel_of<ValueKernel, size()>(rows).run(weight(lane, block), m_.row_stride, rows, at(m_.sums) + lane * m_.padded, m_.padded);
        rows.ahead = nullptr;
      });
    });
  }

  template <template <class, int> class Kernel, int Q, class U> static Kernel<U, Q> kernel_of(const Rows<U>&) { return {}; }

  /// Calls f with the rows: in place, widened once for many queries, or padded.
  template <class F> void with_rows(const Rows<T>& rows, Index queries, F&& f) {
    constexpr Index few = PlainStorage<T> ? 8 : 4;
    if constexpr (RowLayout<T>::in_registers)
      if (layout_.whole && (std::is_same_v<T, S> || queries <= few)) return f(rows);
    layout_.stage(rows.first, rows.stride, rows.count, at(m_.stage), rows.ahead);
    f(Rows<S>{at(m_.stage), m_.padded, rows.count, nullptr});
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

  void finish(Index lane) {
    const S* const mass = at(m_.mass) + lane * attention_block;
    typename V::Packet all = V::load(mass);
    for (Index i = V::width; i < attention_block; i += V::width) all = V::add(all, V::load(mass + i));
    S sum = V::sum(all);
    if (numbers_.n > 0) sum += numbers_.n * std::exp(-at(m_.top)[lane]);
    at(m_.total)[lane] = sum;
    at(m_.inverse)[lane] = sum == S(0) ? S(0) : S(1) / sum;
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
        if (weight(lane, block)[i] == S(0)) continue;
        layout_.stage(run.values + (row + i) * run.stride, run.stride, 1, at(m_.stage));
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
  RowLayout<T> layout_;
  Index tokens_ = 0;
  Position first_ = 0;
  const Position* sight_ = nullptr;
  const T* next_ = nullptr;
};

}}}  // namespace pith::v0::detail
