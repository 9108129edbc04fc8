#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <exception>
#include <memory>
#include <random>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/executor.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/core/workspace.hpp>
#include <pith/decode/any_draft.hpp>
#include <pith/decode/generate.hpp>
#include <pith/decode/speculative_options.hpp>
#include <pith/decode/token_model.hpp>
#include <pith/model/detail/decode_together.hpp>
#include <pith/model/detail/speculative_member.hpp>
#include <pith/model/session.hpp>

namespace pith { inline namespace v0 {

/// Speculative decoding of many conversations together: each has its own adapter, draft, draft length, sampler and generator, and one pass
/// over the weights verifies the guesses of all of them.
///
///   SpeculativeBatch<float> batch;
///   batch.add(polite, lookup_a, {.draft_tokens = 5});      // prompt lookup
///   batch.add(terse, terse_draft, {.draft_tokens = 3});    // a session under another adapter: drafts in the same passes
///   for (Index i = 0; i < 2; ++i) batch.prefill(i, prompt);
///   while (batch.step([](Index conversation, Token token) { … return more; })) {}
///
/// In each pass a conversation either verifies all its guesses, or feeds one token to its draft, if that is a session of any decoder;
/// other drafts guess between the passes. So a draft that is the target itself under another adapter, or without one, costs rows of the
/// passes in which others verify. Passes become fewer with drafts that are no sessions, cheaper with those of fewer bits.
///
/// Cost     step(): one pass over the weights of each decoder that some conversation asks
/// Heap     in add(); in prefill() and step() what the models need: sessions and PromptLookup nothing
/// Throws   as SpeculativeDecoder: what one conversation throws, after all others took their step
/// Law      each text is, bit for bit, that of a SpeculativeDecoder of its own with the same options and generator
template <class S = float, KvStorage T = S, std::uniform_random_bit_generator Rng = std::mt19937_64> class SpeculativeBatch {
  using Member = detail::SpeculativeMember<S, T, Rng>;

 public:
  explicit SpeculativeBatch(ExecutorRef executor = serial) : executor_(executor) {}
  SpeculativeBatch(SpeculativeBatch&&) = default;
  SpeculativeBatch& operator=(SpeculativeBatch&&) = default;

  /// Adds a conversation and returns its index. Target and draft must outlive the batch, and only it may feed them.
  ///
  /// Throws   as SpeculativeDecoder; StateError for a session that is already in the batch
  template <TokenModel Draft> Index add(Session<S, T>& target, Draft& draft, const SpeculativeOptions& options = {}, Rng rng = {}) {
    if (uses(&target) || uses(&draft))
      raise<StateError>("pith::SpeculativeBatch::add: a target or draft that is already in the batch: start another one");
    members_.push_back(std::make_unique<Member>(target, draft, options, std::move(rng)));
    reserve();
    return size() - 1;
  }

  Index size() const { return static_cast<Index>(members_.size()); }
  /// Both models of a conversation read a prompt, or the next turn; a conversation that had ended goes on.
  void prefill(Index i, std::span<const Token> tokens) { member(i, "prefill").prefill(tokens); }
  /// Starts from here, once target and draft of a conversation have read the same text by themselves.
  void resume(Index i, ConstMatrixRef<S> logits, std::span<const Token> text = {}) { member(i, "resume").resume(logits, text); }
  /// Ends a conversation between steps: later steps pass over it.
  void stop(Index i) { member(i, "stop").stop(); }
  bool active(Index i) const { return member(i, "active").active(); }
  Token pending(Index i) const { return member(i, "pending").pending(); }
  const SpeculativeStats& stats(Index i) const { return member(i, "stats").stats(); }
  Index passes() const { return passes_; }  ///< passes over a decoder's weights so far

  /// One pass for all active conversations. on_token(conversation, token) is called with each token that is chosen; if it returns false,
  /// its token is pending and ends the conversation. Returns whether some conversation is active.
  template <std::invocable<Index, Token> OnToken> bool step(OnToken&& on_token) {
    std::exception_ptr first;
    const auto report = [&](Index i) {
      return [&on_token, i](Token token) -> bool {
        if constexpr (std::is_void_v<std::invoke_result_t<OnToken&, Index, Token>>) {
          on_token(i, token);
          return true;
        } else {
          return on_token(i, token);
        }
      };
    };
    for (Index i = 0; i < size(); ++i) guarded(first, i, [&](Member& m) { m.prepare(report(i)); });
    pass(first);
    for (Index i = 0; i < size(); ++i) guarded(first, i, [&](Member& m) { m.take(report(i)); });
#if PITH_HAS_EXCEPTIONS
    if (first) std::rethrow_exception(first);
#endif
    return std::any_of(members_.begin(), members_.end(), [](const auto& m) { return m->active(); });
  }

 private:
  bool uses(const void* model) const {
    return std::any_of(members_.begin(), members_.end(), [&](const auto& m) { return m->uses(model); });
  }
  Member& member(Index i, const char* where) const {
    if (i < 0 || i >= size()) [[unlikely]]
      raise<ShapeError>("pith::SpeculativeBatch::", where, ": conversation ", i, " of ", size());
    return *members_[static_cast<std::size_t>(i)];
  }
  /// Calls a conversation; what it throws waits until all others had their turn, and leaves it undone.
  template <class Call> void guarded(std::exception_ptr& first, Index i, Call&& call) {
    Member& m = *members_[static_cast<std::size_t>(i)];
    if (!m.active()) return;
#if PITH_HAS_EXCEPTIONS
    try {
      call(m);
    } catch (...) {
      m.give_up();
      if (!first) first = std::current_exception();
    }
#else
    call(m);
    static_cast<void>(first);
#endif
  }

  void reserve() {
    Index rows = 0, vocab = 0;
    sessions_.clear();
    for (const auto& m : members_) {
      rows += m->most_rows();
      vocab = (std::max)(vocab, m->vocab_size());
      for (Session<S, T>* session : m->sessions()) sessions_.push_back(session);
    }
    std::size_t bytes = 0;
    for (Session<S, T>* session : sessions_)
      bytes = (std::max)(bytes, Pass::workspace_bytes(Pass::model_of(*session), sessions_, rows, executor_.size()));
    logits_.resize(rows, vocab);
    chunks_.reserve(sessions_.size());
    asked_.reserve(members_.size());
    fed_.reserve(sessions_.size());
    if (bytes > ws_.bytes()) ws_ = Workspace(bytes, executor_);
  }

  /// Decodes what the conversations ask for, one pass for each decoder.
  void pass(std::exception_ptr& first) {
    asked_.clear();
    for (const auto& m : members_)
      if (m->asks() != nullptr) asked_.push_back(m.get());
    Index row = 0;
    for (std::size_t done = 0; done < asked_.size();) {
      const detail::DecoderModel<S>& model = Pass::model_of(*asked_[done]->asks());
      const auto rest = asked_.begin() + static_cast<std::ptrdiff_t>(done);
      const auto end = std::partition(rest, asked_.end(), [&](const Member* m) { return &Pass::model_of(*m->asks()) == &model; });
      fed_.clear(), chunks_.clear();
      Index tokens = 0;
      for (auto m = rest; m != end; ++m) {
        fed_.push_back((*m)->asks());
        chunks_.push_back((*m)->feed());
        tokens += static_cast<Index>(chunks_.back().size());
      }
      if (const std::size_t needed = Pass::workspace_bytes(model, fed_, tokens, executor_.size()); needed > ws_.bytes())
        ws_ = Workspace(needed, executor_);  // an adapter that came after add() needs more
      MatrixRef<S> logits(logits_.data() + row * logits_.cols(), tokens, model.config.vocab_size, logits_.cols());
#if PITH_HAS_EXCEPTIONS
      try {
        Pass(model, fed_, ws_).run(typename Pass::Chunks(chunks_), logits);
      } catch (const StateError&) {  // each refused conversation is asked again by itself and says why
      } catch (const CapacityError&) {
      } catch (...) {
        if (!first) first = std::current_exception();
      }
#else
      Pass(model, fed_, ws_).run(typename Pass::Chunks(chunks_), logits);
      static_cast<void>(first);
#endif
      ++passes_;
      Index at = 0;
      for (auto m = rest; m != end; ++m) {
        const Index n = static_cast<Index>((*m)->feed().size());
        (*m)->answer(ConstMatrixRef<S>(logits.data() + at * logits.outerStride(), n, logits.cols(), logits.outerStride()));
        at += n;
      }
      row += tokens;
      done = static_cast<std::size_t>(end - asked_.begin());
    }
  }

  using Pass = detail::TogetherPass<S, T>;
  ExecutorRef executor_;
  std::vector<std::unique_ptr<Member>> members_;
  std::vector<Session<S, T>*> sessions_, fed_;
  std::vector<std::span<const Token>> chunks_;
  std::vector<Member*> asked_;
  Matrix<S> logits_;
  Workspace ws_;
  Index passes_ = 0;
};

}}  // namespace pith::v0
