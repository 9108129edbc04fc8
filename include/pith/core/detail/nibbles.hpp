#pragma once

#include <cstdint>
#include <cstring>

#include <pith/core/types.hpp>

// Where codes of four bits lie in a word.

namespace pith { inline namespace v0 { namespace detail {

/// The place of input j of eight in the 32-bit word of an output: its lowest bit. Masks of 16 bits then find neighbours, (0, 1) by none,
/// (2, 3), (4, 5) and (6, 7) by a shift, and masks of bytes find 0, 2, 1, 3 in the low nibbles and 4, 6, 5, 7 in the high ones.
constexpr int nibble_shift(Index j) {
  constexpr int shifts[4] = {0, 8, 4, 12};
  return shifts[j / 2] + 16 * int(j % 2);
}

/// Two neighbours of 16 bits as one word.
inline int word_at(const std::int16_t* p) {
  int word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

/// Keeps additions to a register in the order of the source: g++ makes all their products first, for which there are not registers enough.
template <class Register> inline void add_in_order([[maybe_unused]] Register& sum) {
#if defined(__GNUC__) && defined(__AVX512F__)
  asm("" : "+v"(sum));
#elif defined(__GNUC__) && defined(__SSE2__)
  asm("" : "+x"(sum));
#endif
}

}}}  // namespace pith::v0::detail
