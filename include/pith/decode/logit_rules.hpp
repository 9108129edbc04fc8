#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>

namespace pith { inline namespace v0 {

/// Changes logits before a token is chosen: bans, biases, another library's grammar. Refers to a callable void(std::span<S> logits,
/// std::span<const Token> text), which must outlive it; it bans a token by -inf.
class LogitMask {
 public:
  LogitMask() = default;
  /// A callable that takes auto or std::span<double> logits also serves models of double.
  template <class F>
  requires(!std::same_as<F, LogitMask> && (std::invocable<F&, std::span<float>, std::span<const Token>> ||
                                           std::invocable<F&, std::span<double>, std::span<const Token>>)) LogitMask(F& f)
      : callable_(const_cast<std::remove_const_t<F>*>(&f)) {
    if constexpr (std::invocable<F&, std::span<float>, std::span<const Token>>) float_ = call<F, float>;
    if constexpr (std::invocable<F&, std::span<double>, std::span<const Token>>) double_ = call<F, double>;
  }

  explicit operator bool() const { return callable_ != nullptr; }
  template <std::floating_point S> void operator()(std::span<S> logits, std::span<const Token> text) const {
    const auto f = [this] {
      if constexpr (std::same_as<S, float>)
        return float_;
      else
        return double_;
    }();
    if (f == nullptr) [[unlikely]]
      raise<StateError>("pith::LogitMask: the callable does not take logits of the model's scalar: let it take auto");
    f(callable_, logits, text);
  }

 private:
  template <class F, class S> static void call(void* f, std::span<S> logits, std::span<const Token> text) {
    (*static_cast<F*>(f))(logits, text);
  }
  void* callable_ = nullptr;
  void (*float_)(void*, std::span<float>, std::span<const Token>) = nullptr;
  void (*double_)(void*, std::span<double>, std::span<const Token>) = nullptr;
};

/// Rules applied to logits before the Sampler, based on the text so far: repetition penalty, then mask, as in Hugging Face.
struct LogitRules {
  float repetition_penalty = 1;  ///< above 0; tokens in the text: x > 0 ? x / penalty : x * penalty; 1: off   arXiv:1909.05858
  LogitMask mask = {};           ///< applied last, so a banned token is never chosen

  bool any() const { return repetition_penalty != 1 || bool(mask); }
  void check() const {
    if (!(repetition_penalty > 0 && std::isfinite(repetition_penalty)))
      raise<StateError>("pith::LogitRules: repetition_penalty is ", repetition_penalty, ", expected a number above 0; 1 is off");
  }
};

namespace detail {

/// The text so far and the tokens that occur in it, for LogitRules; grows and shrinks at its end.
class RuledText {
 public:
  /// Reserves `capacity` tokens. Without rules, nothing is stored.
  RuledText(const LogitRules& rules, Index vocab_size, std::size_t capacity) : rules_(rules) {
    rules.check();
    if (!rules.any()) return;
    text_.reserve(capacity);
    if (rules.repetition_penalty == 1) return;
    occurs_.resize(static_cast<std::size_t>(vocab_size));
    distinct_.reserve((std::min)(capacity, occurs_.size()));
  }

  bool any() const { return rules_.any(); }
  std::size_t size() const { return text_.size(); }
  void clear() { shrink(0); }
  void push(Token token) {
    if (!any()) return;
    text_.push_back(token);
    if (occurs_.empty() || token < 0 || static_cast<std::size_t>(token) >= occurs_.size()) return;
    Occurrence& o = occurs_[static_cast<std::size_t>(token)];
    if (o.count++ > 0) return;
    o.place = static_cast<std::uint32_t>(distinct_.size());
    distinct_.push_back(token);
  }
  void push(std::span<const Token> tokens) {
    for (const Token token : tokens) push(token);
  }
  /// Removes all but the first `size` tokens.
  void shrink(std::size_t size) {
    for (; text_.size() > size; text_.pop_back()) {
      const Token token = text_.back();
      if (occurs_.empty() || token < 0 || static_cast<std::size_t>(token) >= occurs_.size()) continue;
      Occurrence& o = occurs_[static_cast<std::size_t>(token)];
      if (--o.count > 0) continue;
      const Token last = distinct_.back();  // moves into the place of the removed token
      distinct_[o.place] = last;
      occurs_[static_cast<std::size_t>(last)].place = o.place;
      distinct_.pop_back();
    }
  }

  /// Returns `row` itself without rules, else a copy in `scratch` with the rules applied.
  template <std::floating_point S> ConstVectorRef<S> apply(const ConstVectorRef<S>& row, Vector<S>& scratch) const {
    if (!any()) return row;
    scratch = row;
    const S penalty = static_cast<S>(rules_.repetition_penalty);
    for (const Token token : distinct_) {
      S& logit = scratch[token];
      logit = logit > S(0) ? logit / penalty : logit * penalty;
    }
    if (rules_.mask) rules_.mask(std::span<S>(scratch.data(), static_cast<std::size_t>(scratch.size())), std::span<const Token>(text_));
    return scratch;
  }

 private:
  struct Occurrence {
    std::uint32_t count = 0, place = 0;
  };
  LogitRules rules_;
  std::vector<Token> text_;
  std::vector<Occurrence> occurs_;  // [vocab_size]
  std::vector<Token> distinct_;     // each distinct token of the text
};

}  // namespace detail

}}  // namespace pith::v0
