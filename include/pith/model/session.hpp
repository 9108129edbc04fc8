#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/kv/any_policy.hpp>
#include <pith/kv/kv_cache.hpp>
#include <pith/model/detail/head.hpp>
#include <pith/model/detail/layer_pass.hpp>
#include <pith/model/detail/rope_switch.hpp>
#include <pith/model/detail/session_attachment.hpp>
#include <pith/model/detail/session_checks.hpp>
#include <pith/model/detail/session_copies.hpp>
#include <pith/model/detail/session_layout.hpp>
#include <pith/model/detail/session_tables.hpp>
#include <pith/model/detail/session_undo.hpp>
#include <pith/model/look.hpp>
#include <pith/model/session_options.hpp>

namespace pith { inline namespace v0 {

/// One conversation with a decoder: a KV cache for each layer, and all buffers that prefill() and decode() need.
///
/// Heap     at construction only: prefill, decode, checkpoint and crop allocate nothing
/// Law      logits are bit-identical for any number of threads, and for a token decoded alone or in a batch
/// Law      crop() restores the state bit for bit under every policy
/// Law      a call that throws is undone. Two exceptions leave only clear(): one thrown by a user's policy or merge, and a later prompt
///          that a later layer refuses by scores, if the policy does not declare PolicyTraits::overfills
/// Law      once a text outgrows a longrope's short table, its tokens are recomputed under the long one if no layer evicts; else the call
///          is refused (SessionOptions::text_length)
template <class S, KvStorage T = S>
requires std::same_as<arithmetic_t<T>, S>
class Session {
 public:
  using Scalar = S;
  using Cache = KvCache<T>;

  /// Decoder::start() calls this.
  ///
  /// Throws   ShapeError for invalid options or a wrong number of policies, UnsupportedError for cache positions under dynamic rope, and
  ///          for a policy that predicts scores where a layer caps them
  Session(std::shared_ptr<const detail::DecoderModel<S>> model, std::span<const AnyPolicy<S>> per_layer, const SessionOptions& options,
          const AnyMerge<S>& merge = {});

  Session(Session&&) = default;
  Session& operator=(Session&&) = default;

  /// An independent copy of the conversation: rows, journal, logits and adapter. Only weights, prefix and executor are shared.
  ///
  /// Heap     all buffers of a session
  /// Throws   StateError after a call that could not be undone, and in the middle of one
  /// Law      both continue bit for bit alike, and neither changes the other
  Session clone() const;

  /// Reads a prompt, or the next turn, in one pass: every token attends to all rows before it, then each layer evicts once.
  ///
  /// Shapes   returns logits [1, vocab_size] of the last token, valid until the next call
  /// Heap     none; with options.progress a copy of the rows, before a later turn of layers that evict
  /// Throws   CapacityError for more than max_prompt tokens or a full Dense cache, ShapeError for no tokens or one outside the vocabulary,
  ///          Cancelled if options.progress returns false
  ConstMatrixRef<S> prefill(std::span<const Token> tokens, const PrefillOptions& options = {}) {
    const Index n = static_cast<Index>(tokens.size());
    const AppendOptions marks = begin_prompt(n, {}, options);
    look_up(tokens, hidden_.middleRows(adapter_.prompt_rows(next_position()), n));
    adapter_.invoke(tokens, next_position(), options.adapted_from);
    read_prompt(n, marks, options);
    options.masses.empty() && options.sight.empty() ? switch_.note(tokens) : switch_.note_unknown();
    return logits();
  }
  /// Overload for embedding rows [tokens, hidden_size], each with its kind (none given: text).
  ConstMatrixRef<S> prefill(ConstMatrixRef<S> embeddings, std::span<const TokenKind> kinds = {}, const PrefillOptions& options = {}) {
    check_shape("Session::prefill", "embeddings", embeddings, any_extent, model_->config.hidden_size);
    const Index n = embeddings.rows();
    const AppendOptions marks = begin_prompt(n, kinds, options);
    hidden_.middleRows(adapter_.prompt_rows(next_position()), n) = embeddings;
    adapter_.invoke_rows(n, next_position(), options.adapted_from);
    read_prompt(n, marks, options);
    switch_.note_unknown();
    return logits();
  }

  /// Feeds the next 1 .. max_draft + 1 tokens. Each token is appended, attends and evicts before the next, so a chunk gives bit for bit
  /// what its tokens give one by one, while every weight is read once.
  ///
  /// Shapes   returns logits [tokens, vocab_size], row i follows token i; valid until the next call
  /// Throws   CapacityError for a longer chunk or a full Dense cache, ShapeError for no tokens or one outside the vocabulary
  ConstMatrixRef<S> decode(std::span<const Token> tokens) {
    const Index n = static_cast<Index>(tokens.size());
    detail::check_chunk(n, max_chunk_);
    check_ready(n, {});
    detail::SessionTables::decode(*this, tokens);
    return logits_.topRows(n);
  }
  ConstMatrixRef<S> decode(Token token) { return decode(std::span<const Token>(&token, 1)); }

  /// Proxy pass: these tokens attend to the cache as if they came next, `see` is shown their queries and weights (LookTile), and they leave
  /// no trace: no row, number, position, journal entry or logit. Threads may call `see` for different kv heads at once.
  ///
  /// Heap     the tokens' hidden states, their rows in one layer, and a workspace
  /// Throws   ShapeError for no tokens, one outside the vocabulary or an adapter of another decoder; UnsupportedError past the
  ///          table of a longrope
  template <class See> void look(std::span<const Token> tokens, See&& see, const LookOptions<S>& options = {}) const;

  /// Logits that follow the newest token: [1, vocab_size], valid until the next call; [0, vocab_size] at the start and after crop()
  /// or clear().
  ConstMatrixRef<S> logits() const { return logits_.middleRows((std::max)(newest_, Index(0)), newest_ < 0 ? 0 : 1); }

  /// Uses this adapter from now on; it must outlive its use. nullptr: the base model alone.
  ///
  /// An activated LoRA may be used over rows of the base: it begins at the last occurrence of its invocation in the first prompt that has
  /// one; decoded tokens invoke nothing. After crop(adapter_start()) the base, or another activated LoRA, may be used over the same rows.
  ///
  /// Cost     a pointer assignment; nothing is copied, and the decoder is never written
  /// Heap     a larger workspace, the first time that an adapter turns inputs or has other changes than low-rank terms
  /// Throws   ShapeError for an adapter of another decoder, StateError while rows of another adapter are cached: clear() first;
  ///          CapacityError if its soft prompt leaves no room in max_prompt
  void use(const ModelAdapter<S>* adapter);
  const ModelAdapter<S>* adapter() const { return adapter_.get(); }
  Position adapter_start() const { return adapter_.start(); }  ///< first row that an activated LoRA changes; -1: not invoked, or none
  Index vocab_size() const { return model_->config.vocab_size; }
  Position next_position() const { return caches_.front().next_position(); }
  Index max_chunk() const { return max_chunk_; }  ///< the most tokens that one decode() takes and one journal records: max_draft + 1
  /// Tokens that decode() can take before a layer that never evicts, or evicts only at the next prompt, is full.
  Index room() const { return switch_.room(next_position(), caches_.room()); }
  /// What attention has read so far, over all layers.
  AttentionReads reads() const {
    AttentionReads all;
    for (const Cache& cache : caches_) all.add(cache.reads());
    return all;
  }
  const DecoderConfig& config() const { return model_->config; }

  /// Starts (or restarts) the journal of every layer: crop() can then return to before any token decoded after it.
  void checkpoint();
  /// Restores exactly the state before the token at p and ends the journal; crop(next_position()) accepts every token since.
  ///
  /// Throws   StateError unless p was reached by decode() since the checkpoint; Dense needs no checkpoint
  void crop(Position p);
  /// Removes the tokens at first .. last - 1 from every layer, a reasoning trace that later turns need not see: KvCache::drop().
  ///
  /// Returns  rows dropped, over all layers and heads
  /// Throws   ShapeError unless the positions ascend within the text, StateError where KvCache::drop() does; nothing has changed then
  Index drop(Position first, Position last);
  /// Drops the conversation; no memory is freed or allocated.
  void clear();
  /// Evicts until every layer can take `coming` tokens within its budget: call it before a turn whose answer should see all of the turn.
  Index make_room(Index coming);

  /// Copies all rows so far, as a prefix that any number of sessions can start with (SessionOptions::prefix).
  ///
  /// Throws   StateError where KvCache::freeze() does
  KvPrefix freeze() const;

  /// The whole state as plain numbers: read and compress a prompt once, answer it many times, in any process.
  ///
  /// Throws   StateError inside a journal
  SessionSnapshot<S, T> snapshot() const;
  /// The reason why restore() would refuse a snapshot, or empty: another model, storage, policy or prefix, no room, or an impossible state.
  std::string problem(const SessionSnapshot<S, T>& s) const;
  /// Continues from the snapshot of a session with the same model, storage and policies; no weight is read.
  ///
  /// Throws   ShapeError with the problem; the session is then unchanged
  void restore(const SessionSnapshot<S, T>& s);

  std::span<Cache> caches() { return caches_; }
  std::span<const Cache> caches() const { return caches_; }
  /// Bytes allocated for the rows of all layers and their bookkeeping.
  std::size_t cache_bytes() const { return caches_.bytes(); }
  /// Bytes allocated for one prompt longer than the budget; the layers use this buffer in turn.
  std::size_t prompt_buffer_bytes() const { return prompt_buffer_ ? prompt_buffer_->bytes() : 0; }
  std::size_t bytes() const {
    return cache_bytes() + prompt_buffer_bytes() + ws_.bytes() +
           static_cast<std::size_t>(hidden_.size() + normed_.size() + logits_.size()) * sizeof(S);
  }

 private:
  template <class, KvStorage> friend class detail::TogetherPass;
  friend struct detail::SessionTables;
  Session(const Session&) = default;  // clone()
  detail::LayerPass<S> pass(std::size_t layer, std::span<const Position> places = {}) {
    return {*model_, static_cast<Index>(layer), ws_, adapter_.runs(caches_[layer].next_position(), places), switch_.beyond()};
  }
  Index tile() const { return (std::max)((std::min)(detail::prefill_tile, max_prompt_), max_chunk_); }  ///< most rows computed together
  void look_up(std::span<const Token> tokens, MatrixRef<S> out) const { detail::look_up(*model_, adapter_.get(), tokens, out); }

  // All templates below are compiled with these. They are defined outside the class (detail/session_reading.hpp), hence not inline: a
  // program that declares the class extern leaves them to the source file that instantiates it.
  void read_prompt(Index n, const AppendOptions& marks, const PrefillOptions& options, bool with_logits = true);
  void read_next(Index first, Index n);
  /// Checks a prompt of n tokens, chooses the longrope's table for it, and returns its append options, which include the rows of the
  /// adapter's prompt before it.
  AppendOptions begin_prompt(Index n, std::span<const TokenKind> kinds, const PrefillOptions& options);
  /// Checks every layer before the first one changes.
  void check_ready(Index n, const AppendOptions& marks);

  /// Writes the logits of these tokens from row `first` on.
  void read_logits(Index first, ConstMatrixRef<S> hidden) {
    const Index n = hidden.rows();
    detail::read_head(*model_, adapter_.runs(next_position() - static_cast<Position>(n)), hidden, normed_.topRows(n),
                      logits_.middleRows(first, n), ws_);
    newest_ = first + n - 1;
  }

  void check_whole() const {
    if (!whole_)
      raise<StateError>("pith::Session: in the middle of a call, or an earlier one threw half-way through the layers: clear() first");
  }

  friend class detail::SessionAttempt<Session>;
  using Attempt = detail::SessionAttempt<Session>;
  Index begin() {
    whole_ = false;
    return std::exchange(newest_, -1);
  }
  void end() {
    undo_.end(caches_);
    whole_ = true;
  }
  void take_back(Index newest) {
    whole_ = undo_.take_back(caches_);
    if (!whole_) return;
    newest_ = newest;
    adapter_.cut(next_position());
  }

  std::shared_ptr<const detail::DecoderModel<S>> model_;
  Index max_prompt_, max_chunk_;
  detail::SessionAttachment<S> adapter_;
  detail::RopeSwitch switch_{0, 0, 0, false};
  Index rows_ = 0;  ///< the most rows that a head of any layer may hold, including its prefix
  detail::SessionCaches<Cache> caches_;
  detail::SessionPromptBuffer<T> prompt_buffer_;
  Matrix<S> hidden_, normed_, logits_;
  detail::SessionWorkspace ws_;
  detail::SessionUndo<T> undo_;
  Index newest_ = -1;  ///< row of logits_ that follows the newest token; -1: none
  bool whole_ = true;  ///< all layers have read the same tokens
};

}}  // namespace pith::v0

#include <pith/model/detail/session_looking.hpp>
#include <pith/model/detail/session_reading.hpp>
#include <pith/model/detail/session_states.hpp>
