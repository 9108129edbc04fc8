#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Bit by bit: a number that is not one equals itself, 0 and -0 differ.
template <class S> bool same_numbers(ConstVectorRef<S> a, ConstVectorRef<S> b) {
  using Word = std::conditional_t<sizeof(S) == 4, std::uint32_t, std::uint64_t>;
  return a.size() == b.size() &&
         std::equal(a.data(), a.data() + a.size(), b.data(), [](S x, S y) { return bits_as<Word>(x) == bits_as<Word>(y); });
}

/// Numbers that others were computed from, as they were then.
///
/// Cost     one comparison for each number
template <class S> class Fresh {
 public:
  void set(ConstVectorRef<S> numbers) { numbers_ = numbers; }
  /// Throws   StateError if they are others now
  void check(std::string_view where, std::string_view what, ConstVectorRef<S> numbers) const {
    if (!same_numbers<S>(numbers_, numbers)) [[unlikely]]
      raise<StateError>(text("pith::", where, ": ", what, " changed after the last refresh(): call refresh() first"));
  }

 private:
  Vector<S> numbers_;
};

/// Lets an adapter refuse what it would add before anything is written.
template <class A> void check_ready(const A& adapter) {
  static_cast<void>(adapter.gain());
  if constexpr (requires { adapter.bias(); }) static_cast<void>(adapter.bias());
}

/// How often an adapter has handed out its numbers for writing, or 0 if it does not count.
template <class A> std::uint64_t changes_of(const A& adapter) {
  if constexpr (requires { adapter.changes(); }) {
    return adapter.changes();
  } else {
    return 0;
  }
}

}}}  // namespace pith::v0::detail
