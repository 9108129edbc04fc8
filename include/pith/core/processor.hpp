#pragma once

#include <cstddef>
#include <cstdint>

// What kernels do differently by the processor that they are compiled for. The results have the same bits.
namespace pith { inline namespace v0 { namespace detail {

/// How a kernel should read memory.
struct Processor {
  /// Attention reads rows of keys of more bytes one after the other, others a cache line of several in turn; few queries are below four.
  std::size_t long_row = SIZE_MAX, long_row_of_few_queries = SIZE_MAX;

  bool keys_into_l2 = false;   ///< prefetch keys into L2, a fixed distance ahead; otherwise into L1, a block of rows ahead
  bool values_by_hand = true;  ///< prefetch values; otherwise the processor does it alone

  /// Panels of 4-bit weights whose groups take more bytes are read one at a time, prefetched further ahead, others four side by side.
  std::size_t long_record = SIZE_MAX;

  bool narrow_streamed = false;  ///< widen weights of 8 and 16 bits in registers for each tile of tokens, rather than in blocks for all
};

// -march and -mtune define these macros for AMD's Zen 1 to 5. Measured on a Zen 4, cold, one thread: pure loads of rows of 512 bytes run at
// 28-32 GB/s one after the other and at 9-11 a line of 2 to 16 of them in turn; values of 512 bytes at 25 GB/s without prefetching or into
// L2, at 13-16 into L1. On Intel's Xeons the order does not matter, and values without prefetching take up to a fifth longer.
//
// On a Zen 5, of reading as many bytes: one token over four-bit panels in groups of 128 .85 side by side and 1.15 one at a time, in groups
// of 32 a tenth less one at a time. 13 to 128 tokens over weights of 8 and 16 bits, of the peak: .85 to .95 widened in registers, .71 to .8
// in blocks.
#if defined(__znver1__) || defined(__znver2__) || defined(__znver3__) || defined(__znver4__) || defined(__znver5__) || \
    defined(__tune_znver1__) || defined(__tune_znver2__) || defined(__tune_znver3__) || defined(__tune_znver4__) ||    \
    defined(__tune_znver5__)
inline constexpr Processor processor{.long_row = 256,
                                     .long_row_of_few_queries = 128,
                                     .keys_into_l2 = true,
                                     .values_by_hand = false,
                                     .long_record = 2048,
                                     .narrow_streamed = true};
#else
inline constexpr Processor processor{};
#endif

}}}  // namespace pith::v0::detail
