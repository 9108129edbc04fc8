#pragma once

#include <concepts>
#include <cstddef>
#include <optional>
#include <type_traits>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/decode/logit_rules.hpp>

// What a speculative step restores when it throws: the text and the generator.
namespace pith { inline namespace v0 { namespace detail {

/// Guessed tokens appended to the text; the destructor removes them.
class Guessed {
 public:
  explicit Guessed(RuledText& text) : text_(text), size_(text.size()) {}
  ~Guessed() { text_.shrink(size_); }
  Guessed(const Guessed&) = delete;
  Guessed& operator=(const Guessed&) = delete;

 private:
  RuledText& text_;
  std::size_t size_;
};

/// Restores the generator, if it can be copied, unless keep() was called.
template <class Rng> class Dice {
 public:
  Dice(Rng& rng, bool idle) : rng_(rng) {
    if constexpr (std::copyable<Rng>) {
      if (!idle) before_.emplace(rng);
    }
  }
  ~Dice() { throw_again(); }
  Dice(const Dice&) = delete;
  Dice& operator=(const Dice&) = delete;
  void throw_again() {
    if constexpr (std::copyable<Rng>) {
      if (before_) rng_ = *before_;
    }
  }
  void keep() { before_.reset(); }

 private:
  Rng& rng_;
  std::optional<std::conditional_t<std::copyable<Rng>, Rng, char>> before_;
};

}}}  // namespace pith::v0::detail
