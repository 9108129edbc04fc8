#pragma once

#include <algorithm>
#include <concepts>
#include <limits>
#include <memory>
#include <span>

#include <pith/core/types.hpp>
#include <pith/core/view.hpp>
#include <pith/decode/token_model.hpp>

namespace pith { inline namespace v0 {

/// A reference to any TokenModel over S, which must outlive it: different drafts in one container.
///
/// Heap     one allocation at construction
template <class S = float> class AnyDraft {
 public:
  using Scalar = S;

  template <TokenModel M>
  requires(!std::same_as<M, AnyDraft> && std::same_as<typename M::Scalar, S>) explicit AnyDraft(M& model)
      : model_(std::make_unique<Held<M>>(model)) {}

  Index vocab_size() const { return model_->vocab_size(); }
  Position next_position() const { return model_->next_position(); }
  Index max_chunk() const { return model_->max_chunk(); }
  Index room() const { return model_->room(); }
  ConstMatrixRef<S> decode(std::span<const Token> tokens) { return model_->decode(tokens); }
  /// Logits whose last row follows the tokens.
  ConstMatrixRef<S> prefill(std::span<const Token> tokens) { return model_->prefill(tokens); }
  void checkpoint() { model_->checkpoint(); }
  void crop(Position p) { model_->crop(p); }
  /// The model itself.
  const void* address() const { return model_->address(); }

 private:
  struct Model {
    virtual ~Model() = default;
    virtual Index vocab_size() const = 0;
    virtual Position next_position() const = 0;
    virtual Index max_chunk() const = 0;
    virtual Index room() const = 0;
    virtual ConstMatrixRef<S> decode(std::span<const Token>) = 0;
    virtual ConstMatrixRef<S> prefill(std::span<const Token>) = 0;
    virtual void checkpoint() = 0;
    virtual void crop(Position) = 0;
    virtual const void* address() const = 0;
  };
  template <class M> struct Held final : Model {
    explicit Held(M& m) : model(m) {}
    Index vocab_size() const override { return static_cast<Index>(model.vocab_size()); }
    Position next_position() const override { return model.next_position(); }
    Index max_chunk() const override {
      if constexpr (requires { model.max_chunk(); }) return static_cast<Index>(model.max_chunk());
      return (std::numeric_limits<Index>::max)();
    }
    Index room() const override {
      if constexpr (requires { model.room(); }) return static_cast<Index>(model.room());
      return (std::numeric_limits<Index>::max)();
    }
    ConstMatrixRef<S> decode(std::span<const Token> tokens) override { return model.decode(tokens); }
    ConstMatrixRef<S> prefill(std::span<const Token> tokens) override {
      if constexpr (requires { model.prefill(tokens); }) {
        return model.prefill(tokens);
      } else {
        const auto most = static_cast<std::size_t>((std::min)(max_chunk(), Index(1) << 20));
        for (; tokens.size() > most; tokens = tokens.subspan(most)) model.decode(tokens.first(most));
        return model.decode(tokens);
      }
    }
    void checkpoint() override { model.checkpoint(); }
    void crop(Position p) override { model.crop(p); }
    const void* address() const override { return &model; }
    M& model;
  };

  std::unique_ptr<Model> model_;
};

}}  // namespace pith::v0
