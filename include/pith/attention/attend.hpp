#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <memory>
#include <span>
#include <string_view>
#include <type_traits>

#include <pith/attention/detail/attend_tile.hpp>
#include <pith/attention/kv_view.hpp>
#include <pith/attention/reads.hpp>
#include <pith/attention/shape.hpp>
#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>

namespace pith { inline namespace v0 {

// Attention over the rows of a cache: softmax(q Kᵀ/√d) V, grouped-query heads, a sliding window and softmax_n included.

/// Options of attend().
template <class S> struct AttendOptions {
  Position first_query = -1;       ///< position of the first query; -1: the queries are the newest tokens, view.next - tokens + i
  S scale = 0;                     ///< multiplies scores in place of 1/√head_dim; 0: 1/√head_dim
  S softcap = 0;                   ///< scaled scores become cap·tanh(score/cap), before masses, mask and observers; 0: no cap
  Index window = 0;                ///< sliding-window models: rows at a rope distance >= window are hidden; 0: none
  S n = 0;                         ///< softmax_n: weights are exp(x) / (n + Σ exp(x)), as with n extra keys of logit 0 and value 0
  ConstMatrixRef<S> q_sinks = {};  ///< [tokens, num_heads*head_dim] the queries rotated by position - gap, for reading KvRun::sinks
  Position gap = 0;                ///< subtracted from the distances to sinks: they are this much nearer than their positions say
  Index observe_last = -1;         ///< number of last queries shown to the observer; -1: all
  /// [tokens] the newest position that each query sees, at least its own; empty: its own. Image tokens may see each other this way.
  std::span<const Position> sight = {};
  /// Rows whose weights sum to at most this share of a query's softmax are not read: their values, and with KvRun::scouts their keys. 0:
  /// all are. See attend().
  S skip_below = 0;
  AttentionReads* reads = nullptr;  ///< counts the rows of the cache and those that were read; nullptr: not counted
};

/// Attention weights of the queries of one tile in one kv head: valid until the observer returns.
template <class S> struct AttentionTile {
  Index kv_head = 0;
  ConstMatrixRef<S> weights;    ///< [queries*group, rows] softmax rows, query by query; columns = rows of the head's last run (no prefix)
  ConstVectorRef<S> log_sum;    ///< [queries*group] log of the softmax's denominator: log(n + Σ exp(logit)), prefix included
  ConstMatrixRef<S> queries;    ///< [queries*group, head_dim] as given
  Index first_query_index = 0;  ///< row of q that holds the first of these queries
  Index num_queries = 0;
  Position first_query = 0;  ///< position of the first of these queries
};

/// An observer that watches nothing and costs nothing.
struct NoObserver {};

namespace detail {

/// Checks the arguments of attend(); returns the rows of the largest head.
template <class T>
Index check_attend(const ConstMatrixRef<arithmetic_t<T>>& q, const KvView<T>& view, const MatrixRef<arithmetic_t<T>>& out,
                   const AttendOptions<arithmetic_t<T>>& options) {
  view.shape.check("attend");
  const Index tokens = q.rows(), width = view.shape.num_heads * view.shape.head_dim, heads = view.shape.num_kv_heads;
  check_shape("attend", "q", q, any_extent, width);
  check_shape("attend", "out", out, tokens, width);
  const auto refuse = [](const std::string& what) { raise<ShapeError>("pith::attend: " + what); };
  const Index runs = static_cast<Index>(view.runs.size());
  const Index a_head = runs / heads;
  if (runs % heads != 0 || a_head < 1 || a_head > 3)
    refuse(text("the view has ", runs, " runs, expected one to three for each of ", heads, " kv heads"));
  const Index least = key_units<T>(view.shape.head_dim), least_values = value_units<T>(view.shape.head_dim);
  using Parts = KvParts<T>;
  constexpr auto at_row = [](Index stride, std::size_t number) { return stride * Index(sizeof(T)) % Index(number) == 0; };
  Index most = 0, sinks = 0, of_head = 0;
  for (Index r = 0; r < runs; ++r) {
    const KvRun<T>& run = view.runs[static_cast<std::size_t>(r)];
    const auto refuse_run = [&](const std::string& what) { refuse(text("run ", r, " of the view ", what)); };
    if (const Index rows = run.rows; rows < 0 || rows > (std::numeric_limits<Position>::max)())
      refuse_run(text("has ", run.rows, " rows, expected 0 .. 2147483647"));
    if (run.rows > 0 && (run.keys == nullptr || run.values == nullptr)) refuse_run("has rows but no keys or no values");
    const auto check_stride = [&](std::string_view name, Index stride, Index row, std::size_t number) {
      if (run.rows > 0 && stride < row)
        refuse_run(text("has ", name, " ", stride, ", expected at least ",
                        PlainStorage<T> ? "head_dim, which is " : "the bytes of a row, which are ", row));
      if (run.rows > 0 && !at_row(stride, number))
        refuse_run(text("has ", name, " ", stride, ", expected whole numbers of ", number, " bytes"));
    };
    check_stride("stride", run.stride, least, sizeof(typename Parts::Key));
    check_stride("value_stride", run.steps_of_values(), least_values, sizeof(typename Parts::Value));
    if (run.sinks < 0 || run.sinks > run.rows) refuse_run(text("has ", run.sinks, " sinks, expected 0 .. ", run.rows, ", its rows"));
    sinks = (std::max)(sinks, run.sinks);
    of_head = r % a_head == 0 ? run.rows : of_head + run.rows;
    most = (std::max)(most, of_head + (a_head == 3 ? attention_block : 0));  // TileMemory counts the ends of two runs
  }
  if (options.q_sinks.size() > 0) check_shape("attend", "q_sinks", options.q_sinks, tokens, width);
  if (sinks > 0 && tokens > 0 && options.q_sinks.size() == 0)
    refuse(text("the view has ", sinks, " sinks: give AttendOptions::q_sinks, the queries rotated by position - gap (KvCache::gap())"));
  const Index first = options.first_query >= 0 ? Index(options.first_query) : Index(view.next) - tokens;
  if (options.first_query < -1) refuse(text("first_query is ", options.first_query, ", expected a position, or -1 for the newest tokens"));
  if (first < 0) refuse(text(tokens, " queries are more than the ", view.next, " tokens seen; give AttendOptions::first_query"));
  if (first + tokens - 1 > (std::numeric_limits<Position>::max)())
    raise<CapacityError>("pith::attend: ", tokens, " queries from position ", first, " on run out of positions");
  if (options.window < 0) refuse(text("window is ", options.window, ", expected 0 (none) or more"));
  if (options.gap < 0) refuse(text("gap is ", options.gap, ", expected 0 or more"));
  if (!(options.n >= 0) || !std::isfinite(options.n)) refuse(text("n is ", options.n, ", expected a finite number >= 0"));
  if (!(options.scale >= 0) || !std::isfinite(options.scale)) refuse(text("scale is ", options.scale, ", expected a finite number >= 0"));
  if (!(options.softcap >= 0) || !std::isfinite(options.softcap))
    refuse(text("softcap is ", options.softcap, ", expected a finite number >= 0"));
  if (!(options.skip_below >= 0 && options.skip_below < 1))
    refuse(text("skip_below is ", options.skip_below, ", expected 0 or more, less than 1"));
  if (!options.sight.empty() && static_cast<Index>(options.sight.size()) != tokens)
    refuse(text("sight of ", options.sight.size(), " queries, expected ", tokens, " or none"));
  for (std::size_t t = 0; t < options.sight.size(); ++t)
    if (options.sight[t] < first + static_cast<Index>(t))
      refuse(
          text("query ", t, " at position ", first + static_cast<Index>(t), " sees up to ", options.sight[t], ", expected itself or more"));
  if (options.observe_last < -1) refuse(text("observe_last is ", options.observe_last, ", expected -1 (all) or more"));
  return most;
}

/// An observer of any type behind a pointer: attend() calls it once for each tile.
template <class S> class TileObserver {
 public:
  template <class Observer> explicit TileObserver(Observer& observer) {
    if constexpr (!std::is_same_v<std::remove_const_t<Observer>, NoObserver>) {
      observer_ = reinterpret_cast<void*>(const_cast<std::remove_const_t<Observer>*>(std::addressof(observer)));  // or a function
      call_ = [](void* by, const AttentionTile<S>& tile) { (*reinterpret_cast<Observer*>(by))(tile); };
    }
  }
  explicit operator bool() const { return call_ != nullptr; }
  void operator()(const AttentionTile<S>& tile) const { call_(observer_, tile); }

 private:
  void* observer_ = nullptr;
  void (*call_)(void*, const AttentionTile<S>&) = nullptr;
};

/// attend() under any observer. Not inline: a program that declares an instance extern leaves all of it to the source file that
/// instantiates it.
template <KvStorage T>
void attend_observed(const ConstMatrixRef<arithmetic_t<T>>& q, const KvView<T>& view, MatrixRef<arithmetic_t<T>> out, Workspace& ws,
                     TileObserver<arithmetic_t<T>> observer, const AttendOptions<arithmetic_t<T>>& options) {
  using S = arithmetic_t<T>;
  const Index most = check_attend<T>(q, view, out, options);
  const Index tokens = q.rows(), heads = view.shape.num_kv_heads, group = view.shape.group(), width = group * view.shape.head_dim;
  if (tokens == 0) return;
  const TileMemory<S> memory(view.shape, most, tokens);
  const ExecutorRef executor = ws.executor();
  const Index workers = executor.size();
  const Workspace::Scope scope(ws);
  S* const scratch = ws.take<S>(checked_product("attend", memory.size, (std::min)(workers, heads)));
  const auto first = static_cast<Position>(options.first_query >= 0 ? Index(options.first_query) : Index(view.next) - tokens);
  const std::size_t runs = view.runs.size() / static_cast<std::size_t>(heads);
  const Index observed_from = options.observe_last < 0 ? 0 : (std::max)(Index(0), tokens - options.observe_last);

  executor(workers, [&](Index worker) {
    const Share own = share(heads, worker, workers);
    for (Index h = own.begin; h < own.end; ++h) {
      AttendTile<T> tile(memory, scratch + worker * memory.size, view.runs.subspan(static_cast<std::size_t>(h) * runs, runs), group,
                         {options.window, options.gap}, {options.n, options.scale, options.softcap, options.skip_below});
      for (Index t = 0; t < tokens; t += attention_tile) {
        const Index count = (std::min)(attention_tile, tokens - t), column = h * width;
        const S* const queries = q.data() + t * q.outerStride() + column;
        const S* const sinks = options.q_sinks.size() == 0 ? nullptr : options.q_sinks.data() + t * options.q_sinks.outerStride() + column;
        tile.load_queries(queries, q.outerStride(), sinks, options.q_sinks.outerStride(), count, static_cast<Position>(first + t),
                          options.sight.empty() ? nullptr : options.sight.data() + t);
        tile.run(h + 1 < own.end ? view.runs[static_cast<std::size_t>(h + 1) * runs].keys : nullptr);
        if (options.reads != nullptr) options.reads->add(tile.reads());
        if (observer) {
          if (const Index skipped = (std::max)(Index(0), observed_from - t); skipped < count)
            observer(AttentionTile<S>{.kv_head = h,
                                      .weights = tile.weights(skipped),
                                      .log_sum = tile.log_sums(skipped),
                                      .queries = tile.shown_queries(queries, q.outerStride(), skipped),
                                      .first_query_index = t + skipped,
                                      .num_queries = count - skipped,
                                      .first_query = static_cast<Position>(first + t + skipped)});
        }
        tile.store_output(out.data() + t * out.outerStride() + column, out.outerStride());
      }
    }
  });
}

}  // namespace detail

/// Attends each query to every cached row at or before its own position, or before the one that AttendOptions::sight gives it. A query
/// that sees no row gets zeros.
///
///   out = softmax(q Kᵀ/√d) V, softmax_n: w_r = exp(x_r) / (n + Σ exp(x)); with a scale and a cap: x = cap·tanh(scale·q Kᵀ/cap)
///
/// Query heads of a group share every row read; queries go in tiles of at most 16, kv heads are split over the workers of ws. The observer
/// is called once per tile and kv head, in ascending order of a head's tiles; threads may call it for different heads at once. It must not
/// throw if ws has several workers.
///
/// With skip_below = ε > 0 the values of the rows U of least weight, w_U = Σ_U w_r <= ε, are not read (a query's U is its own; what is read
/// serves all heads of a group, and all queries of a tile):
///
///   out_S = Σ_S exp(x_r) v_r / (n + Σ_S exp(x_r)), |out - out_S| = w_U |out_U - out_S| <= 2 ε max |v_r|
///
/// where out_U is the average of the values of U by their weights: out = (1 - w_U) out_S + w_U out_U. Keys are read, so weights are exact
/// and no other error enters but that of summing in another order. It saves time where weights spread and rows are many: thousands, with
/// logits of deviation 4 or more where heads of a group look at different rows. Observers are shown the weights of all rows, as without it.
///
/// Runs with scout codes (KvRun::scouts) leave keys unread as well. Codes bound every score, lo_r <= x_r <= hi_r (scout_encode()), and U is
/// the largest set of lightest hi with Σ_U e^hi <= ε (n + Σ e^lo), which has w_U <= ε, since n + Σ exp(x) is at least n + Σ e^lo: the same
/// bound of the output holds. Scores of S are computed from their keys. Rounding: bounds are widened by what sums in float lose, the
/// comparison is stricter by 2^-12, more than exponentials and their sums are off. Observers are shown 0 for U. Codes pay beside float rows
/// where a tenth of the rows is needed, beside 16-bit rows hardly anywhere.
///
/// Where most rows are needed, all are read in order, which is faster. A query of which a sample of its rows shows this (from 2000 rows on)
/// reads every row and is exact: then skip_below costs 2 to 9 % of the time (detail::FlatQueries), with scouts up to a quarter.
///
/// Shapes   q [tokens, num_heads*head_dim] (already rotated) · view rows [size(h), head_dim] per kv head
///          out [tokens, num_heads*head_dim]
/// Cost     4·tokens·num_heads·rows·head_dim flops; K and V are read once per group and tile; rows no query of a tile sees are not read
/// Heap     none, given ws of attend_workspace_bytes(shape, rows, workers, tokens)
/// Throws   ShapeError if q, view and out disagree, CapacityError if ws is too small or positions run out
/// Law      a query's bits depend only on the query and its rows: not on other queries, tile, workers, or rows behind its last visible one
/// Law      an observer changes no bit of out; row order changes it by rounding only
/// Law      rows that a lower skip_below skips, a higher one skips as well; where no row can be skipped, no bit of out changes
/// Law      a row of weight 0 adds nothing, even if its value is infinite or NaN
/// Paper    GQA: arXiv:2305.13245
template <KvStorage T, class Observer = NoObserver>
void attend(std::type_identity_t<ConstMatrixRef<arithmetic_t<T>>> q, const KvView<T>& view,
            std::type_identity_t<MatrixRef<arithmetic_t<T>>> out, Workspace& ws, Observer&& observer = {},
            const std::type_identity_t<AttendOptions<arithmetic_t<T>>>& options = {}) {
  detail::attend_observed<T>(q, view, out, ws, detail::TileObserver<arithmetic_t<T>>(observer), options);
}

/// Workspace bytes for attend(). `rows`: rows of the largest head, prefix included, and 32 more where heads have three runs;
/// `tokens`: most queries of a call, 1 if it only decodes.
template <class S = float>
std::size_t attend_workspace_bytes(const AttentionShape& shape, Index rows, Index workers = 1, Index tokens = detail::attention_tile) {
  shape.check("attend_workspace_bytes");
  const detail::TileMemory<S> memory(shape, rows, tokens);
  return Workspace::bytes_for<S>(
      detail::checked_product("attend_workspace_bytes", memory.size, std::clamp(workers, Index(1), shape.num_kv_heads)));
}

}}  // namespace pith::v0
