#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
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

/// Decodes the next tokens of each of several sessions through all layers, sorted by adapter so that each adapter is read once.
template <class S, KvStorage T> class TogetherPass {
 public:
  using Sessions = std::span<Session<S, T>* const>;
  using Chunks = std::span<const std::span<const Token>>;

  TogetherPass(const DecoderModel<S>& model, Sessions sessions, Workspace& ws) : model_(model), sessions_(sessions), ws_(ws) {}

  static const DecoderModel<S>& model_of(const Session<S, T>& session) { return *session.model_; }

  /// Workspace for `tokens` rows of all sessions together.
  static std::size_t workspace_bytes(const DecoderModel<S>& model, Sessions sessions, Index tokens, Index workers) {
    const Index n = static_cast<Index>(sessions.size());
    if (workers < 1) raise<ShapeError>(text("pith::Decoder::together_workspace_bytes: ", workers, " workers, expected 1 or more"));
    if (tokens < 0) raise<ShapeError>(text("pith::Decoder::together_workspace_bytes: ", tokens, " tokens, expected 0 or more"));
    if (const auto null = std::find(sessions.begin(), sessions.end(), nullptr); null != sessions.end())
      raise<ShapeError>(text("pith::Decoder::together_workspace_bytes: session ", null - sessions.begin(), " is a null pointer"));
    Index rows = 0;
    std::size_t more = 0;
    for (const Session<S, T>* session : sessions) {
      rows = (std::max)(rows, session->rows_);
      if (const ModelAdapter<S>* adapter = session->adapter()) more = (std::max)(more, adapter->more_workspace_bytes(tokens, workers));
    }
    return more + layer_workspace_bytes<S>(model, tokens, rows, workers) + 2 * Workspace::bytes_for<S>(tokens, model.config.hidden_size) +
           3 * Workspace::bytes_for<Index>(n) + Workspace::bytes_for<Index>(tokens) + Workspace::bytes_for<RowsOfAdapter<S>>(n) +
           Workspace::bytes_for<std::span<const Token>>(n);
  }

  /// One token of each session.
  void run(std::span<const Token> tokens, MatrixRef<S> logits) const {
    const Index n = static_cast<Index>(sessions_.size());
    if (n > 0 && static_cast<Index>(tokens.size()) != n) refuse(text(tokens.size(), " tokens for ", n, " sessions, expected one of each"));
    check_sessions();
    const std::size_t left = ws_.bytes() - ws_.used();
    check_space(n, left);
    const Workspace::Scope scope(ws_);
    auto* const each = ws_.take<std::span<const Token>>(n);
    for (Index i = 0; i < n; ++i) std::construct_at(each + i, tokens.subspan(static_cast<std::size_t>(i), 1));
    run(Chunks(each, sessions_.size()), logits, left);
  }

  /// Chunks of tokens. Throws every refusal before anything changes.
  void run(Chunks chunks, MatrixRef<S> logits) const { run(chunks, logits, ws_.bytes() - ws_.used()); }

 private:
  /// `left`: bytes of the workspace at the beginning of the call.
  void run(Chunks chunks, MatrixRef<S> logits, std::size_t left) const {
    const Index tokens = check(chunks, logits, left);
    const Index n = static_cast<Index>(sessions_.size());
    const Workspace::Scope scope(ws_);
    const std::span<Index> newest(ws_.take<Index>(n), sessions_.size());  ///< each session's Session::newest_, lost or apart
    const std::span<Index> order(ws_.take<Index>(n), sessions_.size());
    const std::span<Index> first(ws_.take<Index>(n), sessions_.size());                       ///< each session's first row of logits
    const std::span<Index> owner(ws_.take<Index>(tokens), static_cast<std::size_t>(tokens));  ///< the session of each row, sorted
    const std::span<RowsOfAdapter<S>> memory(ws_.take<RowsOfAdapter<S>>(n), sessions_.size());
    for (Index i = 0, at = 0; i < n; at += size_of(chunks, i++)) first[at_(i)] = at;
    std::iota(order.begin(), order.end(), Index(0));
    std::sort(order.begin(), order.end(), [&](Index a, Index b) {
      const std::uint64_t one = session(a).adapter_.key(), other = session(b).adapter_.key();
      return one == other ? a < b : one < other;
    });
    MatrixRef<S> hidden = ws_.matrix<S>(tokens, model_.config.hidden_size), normed = ws_.matrix<S>(tokens, model_.config.hidden_size);
    // A chunk on both sides of a longrope's switch is decoded apart, by its own session; its rows here are ignored.
    for (Index i = 0; i < n; ++i) {
      Session<S, T>& s = session(i);
      newest[at_(i)] = s.switch_.run(s.next_position(), size_of(chunks, i)) == size_of(chunks, i) ? Index(0) : apart;
      if (newest[at_(i)] != apart) SessionTables::choose(s, s.next_position() + size_of(chunks, i));
    }
    Index row = 0;
    for (const Index i : order) {
      Session<S, T>& s = session(i);
      const Index count = size_of(chunks, i);
      s.look_up(chunks[at_(i)], hidden.middleRows(row, count));
      for (Index k = 0; k < count; ++k) owner[at_(row + k)] = i;
      row += count;
      if (newest[at_(i)] == apart) continue;
      s.undo_.begin_chunk(s.caches_, count);
      newest[at_(i)] = s.begin();
    }
    enter(model_, hidden);
    const RowsByAdapter<S> sorted = runs(chunks, order, memory);
    Refusals refusals{*this, newest, {}};
    for (std::size_t layer = 0; layer < model_.layers.size(); ++layer)
      LayerPass<S>{model_, static_cast<Index>(layer), ws_, sorted}.decode(
          hidden, [&](Index r) -> typename Session<S, T>::Cache& { return session(owner[at_(r)]).caches_[layer]; },
          [&](Index r, auto&& verbs) { return refusals.attempt(owner[at_(r)], verbs); },
          [&](Index r) { return session(owner[at_(r)]).switch_.beyond(); });
    // The head writes straight into logits, so rows return to the order of the sessions.
    row = 0;
    for (const Index i : order) {
      normed.middleRows(first[at_(i)], size_of(chunks, i)) = hidden.middleRows(row, size_of(chunks, i));
      row += size_of(chunks, i);
    }
    std::iota(order.begin(), order.end(), Index(0));
    read_head(model_, runs(chunks, order, memory), normed, hidden, logits, ws_);
    for (Index i = 0; i < n; ++i) {
      Session<S, T>& s = session(i);
      const Index count = size_of(chunks, i);
      MatrixRef<S> mine = logits.middleRows(first[at_(i)], count);
      if (newest[at_(i)] == apart) {
        refusals.apart(i, [&] { mine = s.decode(chunks[at_(i)]); });
        if (newest[at_(i)] == lost) mine.setConstant(std::numeric_limits<S>::quiet_NaN());
        continue;
      }
      if (newest[at_(i)] == lost) {
        mine.setConstant(std::numeric_limits<S>::quiet_NaN());
        continue;
      }
      s.logits_.topRows(count) = mine;
      s.newest_ = count - 1;
      s.switch_.note(chunks[at_(i)]);
      s.end();
    }
    refusals.rethrow();
  }

  static constexpr Index lost = -2, apart = -3;

  /// Sessions whose caches refuse a token half-way through the layers: each is undone by itself, the others continue.
  struct Refusals {
    const TogetherPass& pass;
    std::span<Index> newest;
    std::exception_ptr first;

    template <class Verbs> bool attempt(Index i, Verbs&& verbs) {
      Index& mine = newest[at_(i)];
      if (mine == lost || mine == TogetherPass::apart) return false;
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
    /// A session that decodes by itself, and undoes itself.
    template <class Call> void apart(Index i, Call&& call) {
#if PITH_HAS_EXCEPTIONS
      try {
        call();
      } catch (...) {
        if (!first) first = std::current_exception();
        newest[at_(i)] = lost;
      }
#else
      call();
      static_cast<void>(i);
#endif
    }
    void rethrow() const {
#if PITH_HAS_EXCEPTIONS
      if (first) std::rethrow_exception(first);
#endif
    }
  };

  static std::size_t at_(Index i) { return static_cast<std::size_t>(i); }
  static Index size_of(Chunks chunks, Index i) { return static_cast<Index>(chunks[at_(i)].size()); }
  Session<S, T>& session(Index i) const { return *sessions_[at_(i)]; }
  [[noreturn]] static void refuse(const std::string& what) { raise<ShapeError>("pith::Decoder::decode_together: " + what); }

  void check_space(Index tokens, std::size_t left) const {
    if (const std::size_t needed = workspace_bytes(model_, sessions_, tokens, ws_.workers()); needed > left)
      raise<CapacityError>(text("pith::Decoder::decode_together: the workspace has ", left, " bytes left, expected ", needed,
                                ": make one of together_workspace_bytes(sessions, workers)"));
  }
  void check_sessions() const {
    if (sessions_.empty()) refuse("no sessions, expected 1 or more");
    for (std::size_t i = 0; i < sessions_.size(); ++i) {
      if (sessions_[i] == nullptr) refuse(text("session ", i, " is a null pointer"));
      if (sessions_[i]->model_.get() != &model_) refuse(text("session ", i, " is another decoder's"));
      const auto end = sessions_.begin() + static_cast<std::ptrdiff_t>(i);
      if (std::find(sessions_.begin(), end, sessions_[i]) != end) refuse(text("session ", i, " is given twice"));
    }
  }
  /// Throws every refusal before anything changes; returns the number of tokens.
  Index check(Chunks chunks, const MatrixRef<S>& logits, std::size_t left) const {
    check_sessions();
    if (chunks.size() != sessions_.size())
      refuse(text(chunks.size(), " chunks of tokens for ", sessions_.size(), " sessions, expected one of each"));
    Index tokens = 0;
    for (std::size_t i = 0; i < sessions_.size(); ++i) {
      check_chunk(static_cast<Index>(chunks[i].size()), sessions_[i]->max_chunk_);
      for (const Token token : chunks[i])
        if (token < 0 || token >= model_.config.vocab_size)
          refuse(text("token ", token, " at index ", i, " is outside the vocabulary of ", model_.config.vocab_size));
      tokens += static_cast<Index>(chunks[i].size());
    }
    check_shape("Decoder::decode_together", "logits", logits, tokens, model_.config.vocab_size);
    for (std::size_t i = 0; i < sessions_.size(); ++i) sessions_[i]->check_ready(static_cast<Index>(chunks[i].size()), {});
    check_space(tokens, left);
    return tokens;
  }

  /// Groups neighbouring rows with the same adapter into runs; returns no runs if no row has an adapter.
  RowsByAdapter<S> runs(Chunks chunks, std::span<const Index> order, std::span<RowsOfAdapter<S>> memory) const {
    std::size_t count = 0;
    bool any = false;
    for (const Index i : order) {
      const ModelAdapter<S>* adapter = session(i).adapter_.acting();
      any = any || adapter != nullptr;
      if (count > 0 && memory[count - 1].adapter == adapter)
        memory[count - 1].rows += size_of(chunks, i);
      else
        memory[count++] = {adapter, size_of(chunks, i)};
    }
    return {memory.first(any ? count : 0)};
  }

  const DecoderModel<S>& model_;
  Sessions sessions_;
  Workspace& ws_;
};

}}}  // namespace pith::v0::detail
