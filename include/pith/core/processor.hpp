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

  /// Prefetch one line in four, into L2, of rows and of one token's weights that take longer to read than to compute with.
  bool few_lines = false;

  /// Several tiles of tokens read a whole panel in turn, from L2, rather than blocks of it from L1. Weights of 8 and 16 bits are then
  /// widened in registers for each tile.
  bool narrow_streamed = false, floats_streamed = false;
};

// -march and -mtune define these macros for AMD's Zen 1 to 5. Measured on a Zen 4, cold, one thread: pure loads of rows of 512 bytes run at
// 28-32 GB/s one after the other and at 9-11 a line of 2 to 16 of them in turn; values of 512 bytes at 25 GB/s without prefetching or into
// L2, at 13-16 into L1. On Intel's Xeons the order does not matter, and values without prefetching take up to a fifth longer.
//
// On a Zen 5, of reading as many bytes: one token over four-bit panels in groups of 128 .85 side by side and 1.15 one at a time, in groups
// of 32 a tenth less one at a time, and much less without every line in L1. 13 to 128 tokens over weights of 8 and 16 bits, of the peak:
// .85 to .95 widened in registers, .71 to .8 in blocks.
//
// Floats on a Zen 4, of the peak, 2048 x 2048: 13, 16, 32 and 128 tokens .73, .8, .88 and .89 in blocks, .85, .88, .92 and .94 streamed,
// and as much with panels of 1 MB. 4, 10, 12 and 13 tokens .49, .77, .77 and .85 fetched 2 KB ahead, .54, .86, .84 and .89 fetched 4 KB
// ahead and with 11 or 12 tokens in two tiles.
//
// Few lines, which start the processor's own prefetching in each page, on a Zen 4. One token, of reading as many bytes, with every line
// into L1 and so: f32 .93 and 1.05, bfloat16 .83 and 1.03, 4-bit groups of 32 .48 side by side and .92 one at a time, of 128 .71 and .92.
// Attention, its time over that with every line of keys and none of values: 16 heads over 8 of 64, f32 .78, 8-bit rows .86; 32 over 32 of
// 128, bfloat16 .86. g++ 12 takes a Zen 4 for a Zen 3.
#if defined(__znver1__) || defined(__znver2__) || defined(__znver3__) || defined(__znver4__) || defined(__znver5__) || \
    defined(__tune_znver1__) || defined(__tune_znver2__) || defined(__tune_znver3__) || defined(__tune_znver4__) ||    \
    defined(__tune_znver5__)
#if defined(__AVX512F__) && !defined(__AVX512VP2INTERSECT__) && !defined(__znver5__) && !defined(__tune_znver5__)
inline constexpr bool zen4 = true;
#else
inline constexpr bool zen4 = false;
#endif
inline constexpr Processor processor{.long_row = 256,
                                     .long_row_of_few_queries = 128,
                                     .keys_into_l2 = true,
                                     .values_by_hand = false,
                                     .long_record = zen4 ? 0 : 2048,
                                     .few_lines = zen4,
                                     .narrow_streamed = true,
                                     .floats_streamed = zen4};
#else
inline constexpr Processor processor{};
#endif

inline constexpr std::ptrdiff_t fetched_ahead = 2048;  ///< bytes: the distance of prefetching that hides a read

/// Prefetches one line in four of some bytes into L2.
inline void fetch_some_into_l2(const void* from, std::ptrdiff_t bytes) {
  constexpr std::uintptr_t apart = 256;
  const auto begin = reinterpret_cast<std::uintptr_t>(from), end = begin + static_cast<std::uintptr_t>(bytes);
  for (std::uintptr_t at = (begin + apart - 1) / apart * apart; at < end; at += apart)
    __builtin_prefetch(reinterpret_cast<const void*>(at), 0, 2);
}

/// How a kernel prefetches the weights that it reads in order.
enum class Prefetch { every_line, every_line_into_l2, some_lines_into_l2 };

/// For some tokens together, whose multiply-adds hide L1's misses, every line.
constexpr Prefetch prefetch_of(int tokens, Prefetch of_one_token) {
  return processor.few_lines && tokens == 1 ? of_one_token : Prefetch::every_line;
}

/// Prefetches the line of weights that is read `offset` bytes behind the first.
template <Prefetch How> void fetch_weights(const char* line, std::ptrdiff_t offset) {
  if constexpr (How == Prefetch::every_line) {
    __builtin_prefetch(line);
  } else if (How == Prefetch::every_line_into_l2 || offset % 256 == 0) {
    __builtin_prefetch(line, 0, 2);
  }
}

}}}  // namespace pith::v0::detail
