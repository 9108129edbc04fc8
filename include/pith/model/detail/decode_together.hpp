#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <numeric>
#include <span>
#include <string>

#include <pith/core/check.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/model/detail/head.hpp>
#include <pith/model/detail/layer_pass.hpp>
#include <pith/model/session.hpp>
#include <pith/peft/detail/rows_by_adapter.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Decodes one token of each of several sessions through all layers, sorted by adapter so that each adapter is read once.
template <class S, KvStorage T> class TogetherPass {
 public:
  using Sessions = std::span<Session<S, T>* const>;

  TogetherPass(const DecoderModel<S>& model, Sessions sessions, Workspace& ws) : model_(model), sessions_(sessions), ws_(ws) {}

  static std::size_t workspace_bytes(const DecoderModel<S>& model, Sessions sessions, Index workers) {
    const Index n = static_cast<Index>(sessions.size());
    if (workers < 1) raise<ShapeError>(text("pith::Decoder::together_workspace_bytes: ", workers, " workers, expected 1 or more"));
    if (const auto null = std::find(sessions.begin(), sessions.end(), nullptr); null != sessions.end())
      raise<ShapeError>(text("pith::Decoder::together_workspace_bytes: session ", null - sessions.begin(), " is a null pointer"));
    Index rows = 0;
    std::size_t more = 0;
    for (const Session<S, T>* session : sessions) {
      rows = (std::max)(rows, session->rows_);
      if (const ModelAdapter<S>* adapter = session->adapter()) more = (std::max)(more, adapter->more_workspace_bytes(n, workers));
    }
    return more + layer_workspace_bytes<S>(model, n, rows, workers) + 2 * Workspace::bytes_for<S>(n, model.config.hidden_size) +
           2 * Workspace::bytes_for<Index>(n) + Workspace::bytes_for<RowsOfAdapter<S>>(n);
  }

  /// Throws every refusal before anything changes.
  void check(std::span<const Token> tokens, const MatrixRef<S>& logits) const {
    const Index n = static_cast<Index>(sessions_.size());
    const auto refuse = [](const std::string& what) { raise<ShapeError>("pith::Decoder::decode_together: " + what); };
    if (n == 0) refuse("no sessions, expected 1 or more");
    if (static_cast<Index>(tokens.size()) != n) refuse(text(tokens.size(), " tokens for ", n, " sessions, expected one of each"));
    check_shape("Decoder::decode_together", "logits", logits, n, model_.config.vocab_size);
    for (std::size_t i = 0; i < sessions_.size(); ++i) {
      if (sessions_[i] == nullptr) refuse(text("session ", i, " is a null pointer"));
      if (sessions_[i]->model_.get() != &model_) refuse(text("session ", i, " is another decoder's"));
      if (std::find(sessions_.begin(), sessions_.begin() + static_cast<std::ptrdiff_t>(i), sessions_[i]) !=
          sessions_.begin() + static_cast<std::ptrdiff_t>(i))
        refuse(text("session ", i, " is given twice"));
      if (tokens[i] < 0 || tokens[i] >= model_.config.vocab_size)
        refuse(text("token ", tokens[i], " at index ", i, " is outside the vocabulary of ", model_.config.vocab_size));
    }
    for (Session<S, T>* session : sessions_) session->check_ready(1, {});
    if (const std::size_t needed = workspace_bytes(model_, sessions_, ws_.workers()); needed > ws_.bytes() - ws_.used())
      raise<CapacityError>(text("pith::Decoder::decode_together: the workspace has ", ws_.bytes() - ws_.used(), " bytes left, expected ",
                                needed, ": make one of together_workspace_bytes(sessions, workers)"));
  }

  void run(std::span<const Token> tokens, MatrixRef<S> logits) const {
    const Index n = static_cast<Index>(sessions_.size());
    const Workspace::Scope scope(ws_);
    const std::span<Index> newest(ws_.take<Index>(n), sessions_.size());  ///< each session's Session::newest_; lost: its token was refused
    const std::span<Index> order(ws_.take<Index>(n), sessions_.size());
    const std::span<RowsOfAdapter<S>> memory(ws_.take<RowsOfAdapter<S>>(n), sessions_.size());
    std::iota(order.begin(), order.end(), Index(0));
    std::sort(order.begin(), order.end(), [&](Index a, Index b) {
      const std::uint64_t first = session(a).adapter_.key(), second = session(b).adapter_.key();
      return first == second ? a < b : first < second;
    });
    for (Session<S, T>* s : sessions_) SessionTables::choose(*s, s->next_position() + 1);
    MatrixRef<S> hidden = ws_.matrix<S>(n, model_.config.hidden_size), normed = ws_.matrix<S>(n, model_.config.hidden_size);
    for (Index row = 0; row < n; ++row) {
      Session<S, T>& s = session(order[static_cast<std::size_t>(row)]);
      s.undo_.begin_chunk(s.caches_, 1);
      newest[static_cast<std::size_t>(order[static_cast<std::size_t>(row)])] = s.begin();
      s.look_up(tokens.subspan(static_cast<std::size_t>(order[static_cast<std::size_t>(row)]), 1), hidden.middleRows(row, 1));
    }
    enter(model_, hidden);
    const RowsByAdapter<S> sorted = runs(order, memory);
    Refusals refusals{*this, newest, {}};
    for (std::size_t layer = 0; layer < model_.layers.size(); ++layer)
      LayerPass<S>{model_, static_cast<Index>(layer), ws_, sorted}.decode(
          hidden, [&](Index row) -> typename Session<S, T>::Cache& { return session(order[static_cast<std::size_t>(row)]).caches_[layer]; },
          [&](Index row, auto&& verbs) { return refusals.attempt(order[static_cast<std::size_t>(row)], verbs); },
          [&](Index row) { return session(order[static_cast<std::size_t>(row)]).switch_.beyond(); });
    // The head writes straight into logits, so rows return to the order of the sessions.
    for (Index row = 0; row < n; ++row) normed.row(order[static_cast<std::size_t>(row)]) = hidden.row(row);
    std::iota(order.begin(), order.end(), Index(0));
    read_head(model_, runs(order, memory), normed, hidden, logits, ws_);
    for (Index i = 0; i < n; ++i) {
      if (newest[static_cast<std::size_t>(i)] == lost) {
        logits.row(i).setConstant(std::numeric_limits<S>::quiet_NaN());
        continue;
      }
      Session<S, T>& s = session(i);
      s.logits_.row(0) = logits.row(i);
      s.newest_ = 0;
      s.switch_.note(tokens.subspan(static_cast<std::size_t>(i), 1));
      s.end();
    }
    refusals.rethrow();
  }

 private:
  static constexpr Index lost = -2;

  /// Sessions whose caches refuse their token half-way through the layers: each is undone by itself, the others continue.
  struct Refusals {
    const TogetherPass& pass;
    std::span<Index> newest;
    std::exception_ptr first;

    template <class Verbs> bool attempt(Index i, Verbs&& verbs) {
      Index& mine = newest[static_cast<std::size_t>(i)];
      if (mine == lost) return false;
#if PITH_HAS_EXCEPTIONS
      try {
        verbs();
      } catch (...) {
        if (!first) first = std::current_exception();
        pass.session(i).take_back(mine);
        mine = lost;
        return false;
      }
#else
      verbs();
#endif
      return true;
    }
    void rethrow() const {
#if PITH_HAS_EXCEPTIONS
      if (first) std::rethrow_exception(first);
#endif
    }
  };

  Session<S, T>& session(Index i) const { return *sessions_[static_cast<std::size_t>(i)]; }

  /// Groups neighbouring rows with the same adapter into runs; returns no runs if no row has an adapter.
  RowsByAdapter<S> runs(std::span<const Index> order, std::span<RowsOfAdapter<S>> memory) const {
    std::size_t count = 0;
    bool any = false;
    for (const Index i : order) {
      const ModelAdapter<S>* adapter = session(i).adapter_.acting();
      any = any || adapter != nullptr;
      if (count > 0 && memory[count - 1].adapter == adapter)
        ++memory[count - 1].rows;
      else
        memory[count++] = {adapter, 1};
    }
    return {memory.first(any ? count : 0)};
  }

  const DecoderModel<S>& model_;
  Sessions sessions_;
  Workspace& ws_;
};

}}}  // namespace pith::v0::detail
