#pragma once
// Many LoRA adapters in one batch: several for every row, or another one for each row.

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/nn/linear_op.hpp>
#include <pith/peft/detail/dense.hpp>
#include <pith/peft/detail/fresh.hpp>
#include <pith/peft/lora.hpp>
#include <pith/peft/low_rank.hpp>

namespace pith { inline namespace v0 {

/// A view of any adapter's numbers, which must outlive it.
template <class S = float> class LowRankView {
 public:
  using Scalar = S;

  LowRankView() = default;
  template <LowRankAdapter A>
  requires(!std::same_as<A, LowRankView> && std::same_as<typename A::Scalar, S>) LowRankView(const A& adapter)
      : down_(adapter.down_rows()), up_(adapter.up_rows()), gain_(adapter.gain()), scaled_bias_(detail::scaled_bias_of(adapter)) {}
  template <LowRankAdapter A>
  requires(!std::same_as<A, LowRankView> && !std::is_reference_v<A>) LowRankView(A&&)
  = delete;  // the view would outlive the adapter
  LowRankView(ConstMatrixRef<S> down_rows, ConstMatrixRef<S> up_rows, ConstVectorRef<S> gain, ConstVectorRef<S> scaled_bias = {})
      : down_(down_rows), up_(up_rows), gain_(gain), scaled_bias_(scaled_bias) {}

  Index rank() const { return down_.rows(); }
  ConstMatrixRef<S> down_rows() const { return down_; }
  ConstMatrixRef<S> up_rows() const { return up_; }
  ConstVectorRef<S> gain() const { return gain_; }
  ConstVectorRef<S> scaled_bias() const { return scaled_bias_; }

 private:
  ConstMatrixRef<S> down_, up_;
  ConstVectorRef<S> gain_, scaled_bias_;
};

inline constexpr Index no_adapter = -1;  ///< marks a row that uses the base only

/// Adds to each row its own adapter: yᵢ += (xᵢ A_cᵀ) diag(gain_c) B_cᵀ + bias_c with c = chosen[i]. For several adapters of a row, call it
/// once for each.
///
/// Shapes   x [tokens, in] · chosen [tokens] no_adapter or an index into adapters · y [tokens, out]; y overlaps none of the others
/// Cost     2·rank·(in + out) flops for each row with an adapter; each adapter is read once, and its rows are gathered if they are not
///          consecutive
/// Heap     none, given ws of multi_lora_workspace_bytes<S>(tokens, in, out, adapters, largest rank, workers)
/// Throws   ShapeError if shapes disagree or a chosen index is out of range, CapacityError if ws is too small; before y is touched
/// Law      each row has the same bits as add_low_rank() with its adapter
template <class S>
void add_multi_lora(std::type_identity_t<ConstMatrixRef<S>> x, std::span<const LowRankView<S>> adapters, std::span<const Index> chosen,
                    std::type_identity_t<MatrixRef<S>> y, Workspace& ws);

template <class S>
constexpr std::size_t multi_lora_workspace_bytes(Index tokens, Index in, Index out, Index adapters, Index rank, Index workers = 1) {
  if (tokens <= 0 || adapters <= 0) return 0;
  return Workspace::bytes_for<Index>(adapters) + Workspace::alignment + Workspace::bytes_for<Index>(tokens) +
         Workspace::bytes_for<S>(tokens, in) + Workspace::bytes_for<S>(tokens, out) +
         Workspace::bytes_for<S>(workers, (std::min)(tokens, detail::token_block), rank) + Workspace::bytes_for<Index>(workers, rank) +
         Workspace::bytes_for<S>(workers, rank, detail::panel_width);
}

namespace detail {

/// The rows grouped by adapter, ascending within each group.
struct RowGroups {
  const Index* begin;  // [adapters + 1]
  const Index* row;    // [rows that have an adapter]
};

inline RowGroups group_rows(std::span<const Index> chosen, Index adapters, Workspace& ws) {
  Index* begin = ws.take<Index>(adapters + 1);
  Index* row = ws.take<Index>(static_cast<Index>(chosen.size()));
  std::fill_n(begin, adapters + 1, Index{0});
  for (const Index a : chosen)
    if (a != no_adapter) ++begin[a];
  Index sum = 0;
  for (Index a = 0; a < adapters; ++a) sum += std::exchange(begin[a], sum);
  for (Index i = 0; i < static_cast<Index>(chosen.size()); ++i)
    if (const Index a = chosen[static_cast<std::size_t>(i)]; a != no_adapter) row[begin[a]++] = i;
  for (Index a = adapters; a > 0; --a) begin[a] = begin[a - 1];
  begin[0] = 0;
  return {begin, row};
}

template <class S>
void check_multi_lora(const ConstMatrixRef<S>& x, std::span<const LowRankView<S>> adapters, std::span<const Index> chosen,
                      const MatrixRef<S>& y) {
  check_shape("add_multi_lora", "y", y, x.rows(), any_extent);
  if (static_cast<Index>(chosen.size()) != x.rows()) [[unlikely]]
    raise<ShapeError>("pith::add_multi_lora: ", chosen.size(), " choices for ", x.rows(), " rows: expected one each");
  for (const LowRankView<S>& a : adapters) {
    check_shape("add_multi_lora", "down", a.down_rows(), a.rank(), x.cols());
    check_shape("add_multi_lora", "up", a.up_rows(), a.rank(), y.cols());
    check_shape("add_multi_lora", "gain", a.gain(), a.rank(), 1);
    check_bias("add_multi_lora", y.cols(), a.scaled_bias().size());
  }
  for (const Index a : chosen)
    if (a != no_adapter && (a < 0 || a >= static_cast<Index>(adapters.size()))) [[unlikely]]
      raise<ShapeError>("pith::add_multi_lora: adapter ", a, " of ", adapters.size(), "; no_adapter (-1) is none");
}

}  // namespace detail

template <class S>
void add_multi_lora(std::type_identity_t<ConstMatrixRef<S>> x, std::span<const LowRankView<S>> adapters, std::span<const Index> chosen,
                    std::type_identity_t<MatrixRef<S>> y, Workspace& ws) {
  detail::check_multi_lora(x, adapters, chosen, y);
  const Workspace::Scope scope(ws);
  const Index count = static_cast<Index>(adapters.size()), in = x.cols(), out = y.cols();
  if (count == 0 || x.rows() == 0) return;
  const detail::RowGroups groups = detail::group_rows(chosen, count, ws);
  Index rank = 0, most = 0;
  for (Index a = 0; a < count; ++a) {
    const Index rows = groups.begin[a + 1] - groups.begin[a];
    if (rows == 0) continue;
    rank = (std::max)(rank, adapters[static_cast<std::size_t>(a)].rank());
    most = (std::max)(most, rows);
  }
  const Index all = groups.begin[count];
  if (all == 0) return;
  S* gathered_x = ws.take<S>(all * in);
  S* gathered_y = ws.take<S>(all * out);
  const Index workers = double(all) * double(rank) * double(in + out) < detail::worth_waking ? 1 : ws.workers();
  const Index t_size = (std::min)(most, detail::token_block) * rank, panel_size = rank * detail::panel_width;
  S* ts = ws.take<S>(workers * t_size);
  Index* picked = ws.take<Index>(workers * rank);
  S* panels = ws.take<S>(workers * panel_size);
  ws.executor()(workers, [&](Index worker) {
    const detail::Share mine = detail::share(all, worker, workers);
    for (Index a = 0; a < count; ++a) {
      const Index first = groups.begin[a], rows = groups.begin[a + 1] - first;
      if (rows == 0 || first < mine.begin || first >= mine.end) continue;  // a group belongs to the worker of its first row
      const LowRankView<S>& adapter = adapters[static_cast<std::size_t>(a)];
      const Index* row = groups.row + first;
      const auto add = [&](ConstMatrixRef<S> from, MatrixRef<S> to) {
        detail::add_components<S, S>(from, adapter.down_rows(), adapter.up_rows(), adapter.gain(), to, ts + worker * t_size,
                                     picked + worker * rank, panels + worker * panel_size, serial);
        if (adapter.scaled_bias().size() > 0) to.rowwise() += adapter.scaled_bias().transpose();
      };
      if (row[rows - 1] - row[0] == rows - 1) {
        add(x.middleRows(row[0], rows), y.middleRows(row[0], rows));
        continue;
      }
      MatrixRef<S> from(gathered_x + first * in, rows, in), to(gathered_y + first * out, rows, out);
      for (Index i = 0; i < rows; ++i) from.row(i) = x.row(row[i]), to.row(i) = y.row(row[i]);
      add(from, to);
      for (Index i = 0; i < rows; ++i) y.row(row[i]) = to.row(i);
    }
  });
}

/// A layer with several adapters: the active ones apply to all rows in order, or each row chooses its own. The base is never written.
///
/// Shapes   x [tokens, in] · y [tokens, out]
/// Heap     none in forward(…, ws), given ws of workspace_bytes(tokens, workers)
/// Throws   ShapeError if an adapter does not fit or an index is out of range
/// Law      without active adapters, the bits of the base
template <LinearOp Base, LowRankAdapter Adapter = LoraAdapter<typename Base::Scalar>>
requires std::same_as<typename Base::Scalar, typename Adapter::Scalar>
class MultiLoraLinear {
 public:
  using Scalar = typename Base::Scalar;

  MultiLoraLinear(Base base, std::vector<Adapter> adapters) : base_(std::move(base)), adapters_(std::move(adapters)) {
    for (const Adapter& adapter : adapters_) {
      check_shape("MultiLoraLinear", "down", ConstMatrixRef<Scalar>(adapter.down_rows()), adapter.rank(), base_.in());
      check_shape("MultiLoraLinear", "up", ConstMatrixRef<Scalar>(adapter.up_rows()), adapter.rank(), base_.out());
      detail::check_bias("MultiLoraLinear", base_.out(), detail::scaled_bias_of(adapter).size());
    }
  }

  /// Sets the adapters that forward(x, y, ws) adds, in this order; initially none.
  void use(std::vector<Index> active) {
    for (const Index a : active) check_index(a);
    active_ = std::move(active);
  }
  std::span<const Index> active() const { return active_; }

  void forward(ConstMatrixRef<Scalar> x, MatrixRef<Scalar> y, Workspace& ws) const {
    for (const Index a : active_) detail::check_ready(adapters_[static_cast<std::size_t>(a)]);
    base_.forward(x, y, ws);
    for (const Index a : active_) add_low_rank(x, adapters_[static_cast<std::size_t>(a)], y, ws);
  }
  Matrix<Scalar> forward(ConstMatrixRef<Scalar> x) const { return detail::forward_alone(*this, x); }
  /// Applies adapter chosen[i] (or no_adapter) to row i; active adapters are ignored.
  void forward(ConstMatrixRef<Scalar> x, std::span<const Index> chosen, MatrixRef<Scalar> y, Workspace& ws) const {
    base_.forward(x, y, ws);
    const Workspace::Scope scope(ws);
    const Index n = size();
    LowRankView<Scalar>* views = ws.take<LowRankView<Scalar>>(n);
    for (Index a = 0; a < n; ++a) std::construct_at(views + a, adapters_[static_cast<std::size_t>(a)]);
    add_multi_lora<Scalar>(x, std::span<const LowRankView<Scalar>>(views, static_cast<std::size_t>(n)), chosen, y, ws);
  }

  Index in() const { return base_.in(); }
  Index out() const { return base_.out(); }
  Index size() const { return static_cast<Index>(adapters_.size()); }
  std::size_t workspace_bytes(Index tokens, Index workers = 1) const {
    Index rank = 0;
    for (const Adapter& adapter : adapters_) rank = (std::max)(rank, detail::most_rank(adapter));
    return (std::max)(detail::workspace_bytes_of(base_, tokens, workers),
                      Workspace::bytes_for<LowRankView<Scalar>>(size()) +
                          (std::max)(low_rank_workspace_bytes<Scalar>(tokens, rank, workers),
                                     multi_lora_workspace_bytes<Scalar>(tokens, in(), out(), size(), rank, workers)));
  }

  const Base& base() const { return base_; }
  const Adapter& adapter(Index a) const { return adapters_[check_index(a)]; }
  Adapter& adapter(Index a) { return adapters_[check_index(a)]; }

 private:
  std::size_t check_index(Index a) const {
    if (a < 0 || a >= size()) [[unlikely]]
      raise<ShapeError>("pith::MultiLoraLinear: adapter ", a, " of ", size());
    return static_cast<std::size_t>(a);
  }

  Base base_;
  std::vector<Adapter> adapters_;
  std::vector<Index> active_;
};

}}  // namespace pith::v0
