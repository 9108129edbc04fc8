#pragma once
// Detects numbers that changed after others were computed from them.

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include <pith/core/check.hpp>
#include <pith/core/types.hpp>
#include <pith/core/view.hpp>

namespace pith { inline namespace v0 { namespace detail {

/// Whether two vectors have the same bits: NaN equals itself, 0 and -0 differ.
template <class S> bool same_numbers(ConstVectorRef<S> a, ConstVectorRef<S> b) {
  using Word = std::conditional_t<sizeof(S) == 4, std::uint32_t, std::uint64_t>;
  return a.size() == b.size() &&
         std::equal(a.data(), a.data() + a.size(), b.data(), [](S x, S y) { return bits_as<Word>(x) == bits_as<Word>(y); });
}

/// A copy of the numbers that others were computed from, to detect later changes.
///
/// Cost     one comparison for each number
template <class S> class Fresh {
 public:
  void set(ConstVectorRef<S> numbers) { numbers_ = numbers; }
  /// Throws   StateError if the numbers have changed
  void check(std::string_view where, std::string_view what, ConstVectorRef<S> numbers) const {
    if (!same_numbers<S>(numbers_, numbers)) [[unlikely]]
      raise<StateError>("pith::", where, ": ", what, " changed after the last refresh(): call refresh() first");
  }

 private:
  Vector<S> numbers_;
};

/// Lets an adapter throw before anything is written, if its numbers are stale.
template <class A> void check_ready(const A& adapter) {
  static_cast<void>(adapter.gain());
  if constexpr (requires { adapter.scaled_bias(); }) static_cast<void>(adapter.scaled_bias());
}

/// The adapter's count of accesses for writing, or 0 if it does not count them.
template <class A> std::uint64_t changes_of(const A& adapter) {
  if constexpr (requires { adapter.changes(); }) {
    return adapter.changes();
  } else {
    return 0;
  }
}

}}}  // namespace pith::v0::detail
