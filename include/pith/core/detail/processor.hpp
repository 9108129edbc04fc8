#pragma once

#include <cstddef>
#include <cstdint>

// How kernels read memory on the processor they are compiled for. Results are bit-identical for every choice.
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

// -march and -mtune define these macros for AMD's Zen 1 to 5. g++ 12 takes a Zen 4 for a Zen 3, so AVX-512 tells them apart. Each choice is
// the fastest measured: bench/README.md, "Speed on AMD".
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
