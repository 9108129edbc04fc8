#pragma once

#include <concepts>
#include <cstddef>
#include <limits>
#include <optional>
#include <type_traits>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/decode/logit_rules.hpp>

// Helpers that undo a speculative step when it throws, and tell how many tokens a model can still read.
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

/// Crops a model and ignores failure: a model that cannot crop is found out of step by the next call.
template <class M> void try_crop(M& model, Position p) {
#if PITH_HAS_EXCEPTIONS
  try {
    model.crop(p);
  } catch (...) {
  }
#else
  model.crop(p);
#endif
}

template <class M> Index room_of(const M& model) {
  if constexpr (requires {
                  { model.room() } -> std::convertible_to<Index>;
                }) {
    return Index(model.room());
  } else {
    return (std::numeric_limits<Index>::max)();
  }
}

}}}  // namespace pith::v0::detail
