#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <limits>
#include <span>
#include <string_view>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/decode/token_model.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Target or draft of a speculative decoder: the position at which a call leaves it, and whether its journal is open within a step.
template <TokenModel M> class SteppedModel {
 public:
  using Rows = ConstMatrixRef<typename M::Scalar>;

  explicit SteppedModel(M& model) : model_(&model) {}
  M& model() { return *model_; }

  /// Throws   CapacityError if the model says that it takes fewer than draft_tokens + 1 tokens at once
  static void check_chunk(std::string_view name, const M& model, Index draft_tokens) {
    if constexpr (requires {
                    { model.max_chunk() } -> std::convertible_to<Index>;
                  })
      if (draft_tokens >= Index(model.max_chunk()))
        raise<CapacityError>("pith::SpeculativeDecoder: draft_tokens is ", draft_tokens, ", but the ", name, " takes only ",
                             Index(model.max_chunk()), " tokens at once, expected ", draft_tokens,
                             " + 1: start it with max_draft = ", draft_tokens, " or more");
  }

  /// Feeds a prompt, by prefill() if the model has it, else `most` tokens at a time; calls sees(rows) with logits whose last row follows
  /// the tokens read so far.
  template <class Sees> void read(std::span<const Token> tokens, std::size_t most, Sees&& sees) {
    if constexpr (requires {
                    { model_->prefill(tokens) } -> std::convertible_to<Rows>;
                  }) {
      sees(Rows(model_->prefill(tokens)));
    } else {
      for (std::size_t at = 0; at < tokens.size(); at += most)
        sees(Rows(model_->decode(tokens.subspan(at, (std::min)(most, tokens.size() - at)))));
    }
  }

  /// Lets a full model refuse a token before a step opens its journal, which would end one that the caller has open.
  void refuse_if_full(Token token) {
    if (room() > 0) return;
    model_->decode(std::span<const Token>(&token, 1));
    raise<StateError>("pith::SpeculativeDecoder: the target's room() is ", room(), ", but its decode() took a token, expected a refusal");
  }
  void checkpoint() {
    model_->checkpoint();
    open_ = true;
  }
  /// Ends the journal of a step at p, or where the model is if it has read less.
  void end(Position p) {
    if (open_) model_->crop((std::min)(p, model_->next_position()));
    open_ = false;
  }
  /// Undoes the step and ignores failure: the next call finds a model that cannot crop out of step.
  void undo() {
    if (open_) try_crop((std::min)(next_, model_->next_position()));
    open_ = false;
  }
  /// Leaves the journal as it is: the caller has moved the model by itself.
  void forget_journal() { open_ = false; }

  void note_position() { next_ = model_->next_position(); }
  Position next() const { return next_; }  ///< position at the end of the last call; -1: nothing has been read
  Position next_position() const { return model_->next_position(); }
  bool moved() const { return model_->next_position() != next_; }
  /// Tokens that it can still read, if it knows.
  Index room() const {
    if constexpr (requires {
                    { model_->room() } -> std::convertible_to<Index>;
                  }) {
      return Index(model_->room());
    } else {
      return (std::numeric_limits<Index>::max)();
    }
  }

 private:
  void try_crop(Position p) {
#if PITH_HAS_EXCEPTIONS
    try {
      model_->crop(p);
    } catch (...) {
    }
#else
    model_->crop(p);
#endif
  }

  M* model_;
  Position next_ = -1;
  bool open_ = false;
};

}}}  // namespace pith::v0::detail
